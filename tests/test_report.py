"""Figures and tables: same numbers, same bytes; five files together or not at all; one colour per arm."""
import io
import json
import os
import re
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from ssl_expr import report
from ssl_expr.objective import objectives
from ssl_expr.run import repository

KINDS = {"svg", "png", "csv", "md", "json"}
RUNS = dict(profile="quick", dataset="toy", fingerprint="f00d", runs=[dict(target="results/quick/a.parquet")],
            data=dict(protocol="strict", rows=dict(pretrain=450, train=300, validation=50, test=90)))


@pytest.fixture(autouse=True)
def look():
    report.style()
    yield
    plt.close("all")


def curves(arms=("scarf", "scratch")):
    return pd.concat([pd.DataFrame(dict(arm=arm, fraction=[0.1, 1.0], n_labels=[30, 300], mean=[i/10, 1/3],
                                        low=[0.0, 0.2], high=[0.4, 0.5])) for i, arm in enumerate(arms)])


def drawing():
    figure, axes = plt.subplots(figsize=(report.SINGLE, 2))
    report.draw_curves(axes, curves())
    report.legend_below(figure)
    return figure


def save(folder, figure=None, data=None):
    data = curves() if data is None else data
    return report.save_figure(figure or drawing(), "fig", data, "**A title.**", folder, RUNS)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_five_files_are_written_and_nothing_else(tmp_path):
    assert set(save(tmp_path)) == set(contents(tmp_path)) == {f"fig.{kind}" for kind in KINDS}


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    save(tmp_path/"once"), save(tmp_path/"twice")
    assert contents(tmp_path/"once") == contents(tmp_path/"twice")


def test_saving_a_figure_again_does_not_move_anything(tmp_path):
    figure = drawing()
    save(tmp_path/"once", figure), save(tmp_path/"twice", figure)
    assert contents(tmp_path/"once") == contents(tmp_path/"twice")


def test_showing_a_figure_before_saving_it_does_not_move_anything(tmp_path):
    shown = drawing()
    shown.canvas.print_figure(io.BytesIO(), format="png", bbox_inches="tight")   # what a notebook does
    save(tmp_path/"shown", shown), save(tmp_path/"not shown")
    assert contents(tmp_path/"shown") == contents(tmp_path/"not shown")


def test_another_process_gives_the_same_bytes(tmp_path):
    program = ("import sys; sys.path.insert(0, sys.argv[1]); import test_report as t; from pathlib import Path; "
               "t.report.style(); t.save(Path(sys.argv[2]))")
    for name, seed in [("once", "1"), ("twice", "2")]:
        subprocess.run([sys.executable, "-c", program, os.path.dirname(__file__), str(tmp_path/name)], check=True,
                       env=os.environ | {"PYTHONHASHSEED": seed, "MPLBACKEND": "Agg"})
    assert contents(tmp_path/"once") == contents(tmp_path/"twice")


def test_pictures_carry_no_date_and_no_program(tmp_path):
    save(tmp_path)
    assert b"dc:date" not in (tmp_path/"fig.svg").read_bytes()
    assert b"Software" not in (tmp_path/"fig.png").read_bytes()


def test_the_provenance_names_the_runs_the_data_and_the_versions(tmp_path):
    save(tmp_path)
    origin = json.loads((tmp_path/"fig.json").read_text())
    assert (origin["profile"], origin["dataset"], origin["fingerprint"]) == ("quick", "toy", "f00d")
    assert origin["runs"] == RUNS["runs"]
    assert {"python", "torch", "numpy"} <= set(origin["drawn_with"]["versions"])


def test_the_csv_holds_every_number_in_a_fixed_format(tmp_path):
    save(tmp_path)
    assert (tmp_path/"fig.csv").read_text().splitlines()[2] == "scarf,1,300,0.333333,0.2,0.5"


class Unwritable(pd.DataFrame):
    def to_csv(self, *_, **__): raise OSError("no space left on device")


def test_a_failure_while_writing_leaves_the_earlier_files_as_they_were(tmp_path, monkeypatch):
    save(tmp_path)
    before = contents(tmp_path)
    other = drawing()
    other.axes[0].set_title("changed")
    with pytest.raises(OSError): save(tmp_path, other, Unwritable(curves()))
    assert contents(tmp_path) == before

    written = []

    def full_disk(path, real=report.atomic):
        written.append(path)
        if len(written) == 4: raise OSError("no space left on device")
        return real(path)

    monkeypatch.setattr(report, "atomic", full_disk)
    with pytest.raises(OSError): save(tmp_path, other)
    assert contents(tmp_path) == before


def test_a_failure_while_drawing_writes_nothing(tmp_path):
    figure = drawing()
    figure.axes[0].set_xlabel("$\\nonsense{$")
    with pytest.raises(ValueError): save(tmp_path, figure)
    assert not list(tmp_path.iterdir())


def test_a_picture_that_is_too_large_is_refused_with_advice(tmp_path):
    figure, axes = plt.subplots()
    axes.plot(*np.random.default_rng(0).random((2, 20000)), "o")
    with pytest.raises(ValueError, match=r"fig\.svg has \d+ kB, more than 300 kB: draw fewer points") as refusal:
        save(tmp_path, figure)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_every_known_arm_has_a_colour_and_a_marker_of_its_own():
    assert len(set(report.COLOURS[arm] for arm in report.ARMS)) == len(report.ARMS)
    assert len(set(report.MARKERS[arm] for arm in report.ARMS)) == len(report.ARMS)


def test_every_registered_objective_has_a_colour():
    import ssl_expr.pretrain  # noqa: F401
    assert {"scarf", "vime", "byol"} <= set(objectives())
    colours = [report.COLOURS[name] for name in objectives()]
    assert len(set(colours)) == len(colours)


def test_a_newcomer_keeps_its_colour_in_another_process():
    ask = "from ssl_expr.report import COLOURS, MARKERS; print(COLOURS['vicreg'], MARKERS['vicreg'])"
    answers = {subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True,
                              env=os.environ | {"PYTHONHASHSEED": seed}).stdout for seed in ("1", "2")}
    assert len(answers) == 1


def test_newcomers_get_different_colours_which_no_known_arm_has():
    colours = report.ByArm({arm: look[1] for arm, look in report.ARMS.items()}, report.SPARE_COLOURS)
    found = [colours[f"newcomer-{i}"] for i in range(len(report.SPARE_COLOURS))]
    assert len(set(found)) == len(found)
    assert not set(found) & {look[1] for look in report.ARMS.values()}
    assert colours["one-too-many"] in report.SPARE_COLOURS


def test_newcomers_stand_between_methods_and_baselines():
    assert report.in_order(["boosted-trees", "zeta", "scratch", "byol", "alpha", "scarf"]) == [
        "scarf", "byol", "alpha", "zeta", "scratch", "boosted-trees"]


@pytest.mark.parametrize("n, said", [(60, True), (1999, True), (2000, False), (50_000, False)])
def test_only_small_pretraining_sets_owe_the_reader_a_remark(n, said):
    assert (f"{n:,} samples is below" in report.remark(n)) == said


def test_a_missing_table_says_how_to_make_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="grid.csv is missing: run the study first .*--profile quick"):
        report.read(tmp_path/"quick", "grid")


@pytest.mark.parametrize("content", [
    b"", b"\n", b"depth,wid", b"depth,width\n", b"depth,width\n2,64\n4,2", b"depth,width\n2,64\n4,64,1,1\n",
    b'depth,width\n2,"64\n', b"depth,width\n2,\xff\xfe\n"])
def test_a_damaged_table_is_named_with_its_remedy_in_one_sentence(tmp_path, content):
    (tmp_path/"quick").mkdir()
    (tmp_path/"quick"/"grid.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"grid\.csv is damaged .*: delete it and .*--profile quick") as refusal:
        report.read(tmp_path/"quick", "grid")
    assert "\n" not in str(refusal.value)


def test_a_table_may_be_empty_where_that_is_allowed(tmp_path):
    (tmp_path/"settings.csv").write_text("arm,setting\n")
    assert report.read(tmp_path, "settings", empty_allowed=True).empty


def repeated(n_splits, n_repeats, arm="scarf"):
    return pd.DataFrame(dict(arm=[arm, "scratch"], n_splits=n_splits, n_repeats=n_repeats))


@pytest.mark.parametrize("n_splits, n_repeats, resampled, left_out", [
    (1, 1, "resampling patients.", "the single split and of the single repeat is not"),
    (1, 2, "resampling patients and repeats.", "the single split is not"),
    (3, 1, "resampling patients and splits.", "the single repeat is not"),
    (2, 5, "resampling patients, splits and repeats.", ""),
    ([1, 2], 2, "resampling patients, splits and repeats.", "the single split (where there is one only) is not")])
def test_a_caption_names_what_was_resampled_and_which_luck_is_missing(n_splits, n_repeats, resampled, left_out):
    said = report.describe_intervals(repeated(n_splits, n_repeats))
    assert resampled in said and (left_out in said if left_out else "The luck of the single" not in said)


def test_only_pretrained_arms_bring_up_the_luck_of_pretraining():
    assert "luck of pretraining" in report.describe_intervals(repeated(2, 2, "a-newcomer"))
    for arm in ("logistic-pca", np.nan): assert "pretraining" not in report.describe_intervals(repeated(2, 2, arm))


def test_a_table_without_its_number_of_splits_is_refused():
    with pytest.raises(ValueError, match="lacks n_splits: collect it again"):
        report.describe_intervals(repeated(1, 1).drop(columns="n_splits"))


def test_a_tally_says_how_many_comparisons_there_were():
    assert report.tally(["tie", "worse", np.nan]) == (
        "0 better, 1 worse, 1 tie in 2 comparisons, not corrected for their number")


def test_the_runs_of_several_collections_are_joined_without_repeats(tmp_path):
    for name, targets in dict(curves=["a", "b"], grid=["b", "c"]).items():
        (tmp_path/f"{name}.json").write_text(json.dumps(RUNS | dict(runs=[dict(target=target) for target in targets])))
    assert [run["target"] for run in report.read_runs(tmp_path, "curves", "grid")["runs"]] == ["a", "b", "c"]


def test_a_profile_with_one_protocol_shows_that_one():
    table = pd.DataFrame(dict(protocol=["paper", "paper"], mean=[1, 2]))
    assert len(report.of_protocol(table, "strict")) == 2
    assert report.of_protocol(table.head(0), "strict").empty


@pytest.mark.parametrize("values", [[5], [1, 2], [0.02 + 0.01*i for i in range(99)]])
def test_log_ticks_are_few_and_keep_both_ends(values):
    ticks = report.log_ticks(values)
    assert (ticks[0], ticks[-1]) == (min(values), max(values)) and len(ticks) <= 6
    assert all(later > earlier for earlier, later in zip(ticks, ticks[1:], strict=False))


def words(figure):
    return [text for text in figure.axes[0].texts if text.get_text()]


def test_no_text_of_a_table_is_cut_or_overlaps(tmp_path):
    frame = pd.DataFrame({"arm": ["SCARF", "from scratch"], "n": [118, 7],
                          "text": ["a long sentence about what was done and why it matters " * 3, "short"],
                          "other": ["another long sentence that needs to be wrapped as well " * 2, "short"]})
    figure = report.draw_table(frame, width=report.SINGLE)
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in words(figure)]
    for i, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        for other in boxes[i + 1:]:
            assert box.x1 <= other.x0 or other.x1 <= box.x0 or box.y1 <= other.y0 + 1.5 or other.y1 <= box.y0 + 1.5


def test_a_table_is_saved_with_its_text_and_its_full_numbers(tmp_path):
    full = pd.DataFrame(dict(arm=["scarf"], mean=[0.123456789]))
    report.save_table(pd.DataFrame(dict(arm=["SCARF"], mean=["0.12"])), "table", "**T.**", tmp_path, RUNS, full)
    assert "| SCARF | 0.12 |" in (tmp_path/"table.md").read_text()
    assert (tmp_path/"table.csv").read_text() == "arm,mean\nscarf,0.123457\n"
    assert {path.suffix[1:] for path in tmp_path.iterdir()} == KINDS


def test_a_curve_of_one_point_still_shows_its_interval():
    figure, axes = plt.subplots()
    report.draw_curves(axes, curves().query("fraction == 1"))
    assert [len(part.get_segments()) for part in axes.collections if hasattr(part, "get_segments")] == [1, 1]


def test_the_untrained_encoder_is_not_called_from_scratch():
    assert report.label("scratch") == "from scratch"
    assert report.label("scratch", "frozen") == "untrained encoder"


FIGURES = sorted((repository()/"nbs"/"figures").glob("*.ipynb"))


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.stem)
def test_a_figure_notebook_reads_and_draws_but_never_trains_or_scores(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    source = "\n".join("".join(cell["source"]) for cell in cells)
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in cells) == 1
    assert f'parameters("figures/{path.stem}", globals())' in source and f'"{path.stem}"' in source
    used = set(re.findall(r"(?:import|from) ssl_expr\.(\w+)", source))
    drawn_from_the_classes = {"nets", "objective", "pretrain"}   # Figs. 1 and 2 show the encoder and the objectives
    assert used - {"report", "run"} <= (drawn_from_the_classes if path.stem[:4] in ("fig1", "fig2") else set())
    assert not re.search(r"\b(pretrain|finetune|fit|scores|accuracy_score|summarise)\(", source)
