"""Figures and tables: same numbers, same bytes; five files together or not at all; one colour per arm."""
import io
import json
import os
import re
import subprocess
import sys

import made_up
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from ssl_expr import report
from ssl_expr.data import toy
from ssl_expr.objective import objectives
from ssl_expr.prepare import prepare
from ssl_expr.run import repository
from ssl_expr.savings import gain_area

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


@pytest.mark.parametrize("width", [report.SINGLE, report.DOUBLE])
@pytest.mark.parametrize("n", [1, 7, 12])
def test_no_name_of_a_legend_is_cut_however_many_there_are(width, n):
    figure, axes = plt.subplots(figsize=(width, 3))
    for i in range(n): axes.plot([0, 1], [0, i], label=f"an arm with a long name {i}")
    report.legend_below(figure, columns=7)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and len(figure.legends[0].get_texts()) == n


def test_every_known_arm_has_a_label_of_its_own():
    assert report.LABELS.keys() >= report.ARMS.keys() and len(set(report.LABELS.values())) == len(report.LABELS)


def as_seen(colour, vision):
    "CIE Lab of a colour, as a normal, deutan or protan eye sees it (Machado et al. 2009)."
    rgb = np.array([int(colour[i:i + 2], 16)/255 for i in (1, 3, 5)])
    rgb = np.where(rgb <= 0.04045, rgb/12.92, ((rgb + 0.055)/1.055)**2.4)
    rgb = np.clip(np.array(dict(
        normal=np.eye(3),
        deutan=[[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        protan=[[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]])[vision]) @ rgb, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb
    x, y, z = np.cbrt(np.maximum(xyz/[0.9505, 1, 1.089], 1e-4))
    return np.array([116*y, 500*(x - y), 200*(y - z)])


@pytest.mark.parametrize("together", [
    ["scarf", "vime", "byol", "byol-200", "scratch", *report.LINEAR, "barlow-twins", "vicreg", "denoising",
     "donor-swap", "unmixing", "mixing"], ["unmixing", "scarf", "vime", "byol", report.BEST]], ids=["curves", "best"])
@pytest.mark.parametrize("vision", ["normal", "deutan", "protan"])
def test_arms_drawn_together_stay_apart_for_every_eye(vision, together):
    seen = {arm: as_seen(report.COLOURS[arm], vision) for arm in together}
    gaps = {(a, b): np.linalg.norm(seen[a] - seen[b]) for a in seen for b in seen if a < b}
    assert min(gaps.values()) > 15, min(gaps, key=gaps.get)


def test_every_registered_objective_has_a_name_and_a_look_of_its_own():
    import ssl_expr.pretrain  # noqa: F401
    assert {"scarf", "vime", "byol"} <= set(objectives()) <= set(report.ARMS)


def test_a_newcomer_keeps_its_colour_in_another_process():
    ask = "from ssl_expr.report import COLOURS, MARKERS; print(COLOURS['simsiam'], MARKERS['simsiam'])"
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


@pytest.mark.parametrize("chosen, said", [
    ([], ""), ([0.02], "2%"), ([0.02, 0.05], "2% to 5%"), ([0.02, 0.1], "2%, 10%"), ([0.05, 0.1, 1.0], "5% to 100%"),
    ([0.025], "2.5%")])
def test_neighbouring_shares_are_joined_and_others_are_not(chosen, said):
    assert report.shares(chosen, {0.02, 0.05, 0.1, 1.0, *chosen}) == said


def test_an_arm_s_standing_tells_wins_losses_and_ties():
    verdicts = pd.DataFrame(dict(arm="byol-200", fraction=[1.0, 0.1, 0.02], verdict=["worse", "tie", "worse"]))
    assert report.standing(verdicts) == (
        "BYOL, 200 epochs is better at none, worse at 2%, 100%, a tie at 10%")


@pytest.mark.parametrize("metric, best", [("auroc", "logistic-pca"), ("log_loss", "logistic-genes")])
def test_the_best_linear_model_has_the_best_mean_at_few_labels(metric, best):
    means = {"scarf": [0.9, 0.1], "boosted-trees": [0.0, 1.0], "logistic-genes": [0.5, 0.9], "logistic-pca": [0.6, 0.7]}
    table = pd.concat([pd.DataFrame(dict(arm=arm, fraction=[0.1, 1.0], mean=mean)) for arm, mean in means.items()])
    assert report.best_linear(table, metric) == best
    assert report.best_linear(table.query("fraction == 1"), metric) != best, "no share is small: the others decide"
    assert report.best_linear(table.query("arm == 'scarf'"), metric) == "scratch"


def test_the_best_linear_model_is_that_of_the_gains_where_shares_lie_unevenly():
    means = {"logistic-genes": [0.7, 0.7, 0.5], "logistic-pca": [0.5, 0.5, 0.8]}   # ahead at two shares; over a range
    table = pd.DataFrame(means, index=pd.Index([0.02, 0.03, 0.1], name="fraction")).melt(
        var_name="arm", value_name="mean", ignore_index=False).reset_index()
    ours, theirs = (table.query("arm == @arm")["mean"].to_numpy() for arm in means)
    assert ours.mean() > theirs.mean() and gain_area([0.02, 0.03, 0.1], ours, theirs) < 0
    assert report.best_linear(table) == "logistic-pca"


@pytest.mark.parametrize("metric, bars", [
    ("auroc", {0.1: "logistic-pca", 1.0: "logistic-genes"}),
    ("log_loss", {0.1: "logistic-genes", 1.0: "logistic-pca"})])
def test_the_bar_at_each_share_is_the_linear_model_that_leads_there(metric, bars):
    means = {"scarf": [0.9, 0.1], "boosted-trees": [0.0, 1.0], "logistic-genes": [0.5, 0.9], "logistic-pca": [0.6, 0.7]}
    table = pd.concat([pd.DataFrame(dict(arm=arm, fraction=[0.1, 1.0], mean=mean)) for arm, mean in means.items()])
    found = report.better_linear(table, metric)
    every = pd.DataFrame([dict(reference=arm, fraction=share) for arm in means for share in bars])
    assert found.to_dict() == bars
    assert report.against(every, found).set_index("fraction")["reference"].to_dict() == bars
    assert set(report.better_linear(table.query("arm == 'scarf'"), metric)) == {"scratch"}


@pytest.mark.parametrize("mean, low, high, digits", [
    (0.688, 0.66, 0.71, 2), (0.997, 0.9961, 0.9985, 3), (0.992, 0.989, 0.994, 3), (0.333, 0.3333, 0.3333, 3)])
def test_no_interval_is_rounded_off_its_mean(mean, low, high, digits):
    assert report.ends_digits(mean, low, high) == digits


def test_axes_say_so_where_lower_is_better():
    metrics = pytest.importorskip("ssl_expr.metrics")
    assert tuple(report.METRIC_WORDS) == metrics.METRICS and report.LOWER_IS_BETTER == metrics.LOWER_IS_BETTER
    assert report.in_words("log_loss", direction=True) == "log-loss (lower is better)"
    assert report.in_words("auroc", direction=True) == "AUROC"


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


@pytest.mark.parametrize("name", ["nonresponder", "non_responder_with_a_name_of_one_word"])
def test_a_table_with_a_word_too_long_to_wrap_is_drawn_all_the_same(name):
    counts = {f"a count {i}": [1234, 5] for i in range(6)}
    figure = report.draw_table(pd.DataFrame({"class": [name, "other"], **counts}), width=report.SINGLE)
    assert name in [text.get_text() for text in words(figure)]


def test_a_table_without_rows_is_drawn_and_saved(tmp_path):
    "A user's file may have no annotation but the label."
    empty = pd.DataFrame(columns=["annotation", "value", "samples", "pretraining", "training", "no label used"])
    figure = report.draw_table(empty, width=1.5)
    made = report.save_table(empty, "table", "None.", tmp_path, figure=figure)
    assert made and "annotation" in (tmp_path/"table.csv").read_text()


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
    judging = ("table_claims", "table_recommendations", "table_shortcuts", "fig5_pretraining_size", "figS5_corruption",
               "fig_labels_needed", "table_search")
    judged_by = {"claims", "findings", "lookup", "pages", "recommended", "verdicts"} if path.stem in judging else set()
    allowed = drawn_from_the_classes if path.stem[:4] in ("fig1", "fig2") else judged_by
    assert used - {"report", "run"} <= allowed
    assert not re.search(r"\b(pretrain|finetune|fit|scores|accuracy_score|summarise)\(", source)


NEW = ("fig_headline", "fig_datasets", "table_metrics", "table_savings", "table_shortcuts")
FEW = (0.05, 0.2, 1.0)


def draw(figure, data, folder, **values):
    "Run a figure notebook here on collected tables; its caption and the plotted numbers."
    names = {}
    for cell in json.loads((repository()/"nbs"/"figures"/f"{figure}.ipynb").read_text())["cells"]:
        if cell["cell_type"] != "code": continue
        exec("".join(cell["source"]), names)
        if "parameters" in cell["metadata"].get("tags", []):
            names |= dict(profile="study", data=str(data), folder=str(folder)) | values
    return (folder/f"{figure}.md").read_text(), pd.read_csv(folder/f"{figure}.csv")


def made_up_tables():
    parts = {name: made_up.PARTS[name] for name in ("tcga-to-gtex", "colorectal")}
    return made_up.tables(("scarf", "byol-200"), FEW, FEW, parts)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made up")
    made_up.write(folder/"data", made_up_tables())
    report.style()
    answers = {name: draw(name, folder/"data", folder) for name in (*NEW, "fig3_label_efficiency")}
    plt.close("all")
    return answers


@pytest.mark.parametrize("name", NEW)
def test_every_new_figure_shows_a_baseline_and_intervals(drawn, name):
    caption, numbers = drawn[name]
    arms = set(numbers["arm"]) | set(numbers.get("reference", []))
    assert "scratch" in arms and arms & set(report.LINEAR)
    shown = numbers.dropna(subset=["low", "high"])
    assert len(shown) > 0.8*len(numbers) and (shown["low"] <= shown["high"]).all()
    assert "Intervals are 95 %" in caption


def set_verdict(table, verdicts, arm="scarf", bar="logistic-genes"):
    "Let an arm win, tie or lose against a linear model at each share."
    for fraction, verdict in verdicts.items():
        rows = (table["arm"].eq(arm) & table["mode"].eq("unfrozen") & table["reference"].eq(bar)
                & np.isclose(table["fraction"], fraction) & table["part"].eq("main"))
        low, high = dict(better=(0.01, 0.03), worse=(-0.03, -0.01), tie=(-0.01, 0.01))[verdict]
        table.loc[rows, ["difference", "low", "high", "verdict"]] = [(low + high)/2, low, high, verdict]
        assert rows.any()


@pytest.fixture(scope="module")
def decided(tmp_path_factory):
    "Tables in which SCARF wins with few labels, ties, and loses with all."
    folder, tables = tmp_path_factory.mktemp("decided"), made_up_tables()
    set_verdict(tables["difference"], {0.05: "better", 0.2: "tie", 1.0: "worse"})
    set_verdict(tables["difference"], dict.fromkeys(FEW, "worse"), arm="byol-200")
    made_up.write(folder/"data", tables)
    return folder


@pytest.mark.parametrize("name", ["fig_headline", "fig3_label_efficiency"])
def test_losses_to_logistic_regression_are_told_as_plainly_as_wins(decided, name):
    caption, _ = draw(name, decided/"data", decided)
    assert "SCARF is better at 5%, worse at 100%, a tie at 20%" in caption
    assert "BYOL, 200 epochs is better at none, worse at 5% to 100%, a tie at none" in caption


def test_the_headline_judges_each_share_by_the_linear_model_that_leads_there(tmp_path):
    tables = made_up_tables()
    curves = tables["label_curve"]
    curves.loc[curves["arm"].eq("logistic-pca") & curves["fraction"].lt(0.1), ["mean", "low", "high"]] = 0.99
    set_verdict(tables["difference"], {0.05: "worse"}, bar="logistic-pca")
    set_verdict(tables["difference"], {0.05: "better", 0.2: "tie", 1.0: "tie"})
    made_up.write(tmp_path/"data", tables)
    caption, numbers = draw("fig_headline", tmp_path/"data", tmp_path)
    judged = numbers.query("panel == 'fine-tuned' and arm == 'scarf'").set_index("fraction")["reference"].to_dict()
    assert judged == {0.05: "logistic-pca", 0.2: "logistic-genes", 1.0: "logistic-genes"}
    assert "SCARF is better at none, worse at 5%, a tie at 20% to 100%" in caption
    assert "components at 5%" in caption and "genes at 20% to 100%" in caption


def test_what_is_no_shortcut_stands_below_the_shortcuts_and_is_not_counted_among_them(tmp_path):
    tables = made_up_tables()
    taken = tables["shortcuts"]
    tables["shortcuts"] = pd.concat([taken[taken["part"] == "fit-on-everything"].assign(part="tenfold-rate"), taken])
    made_up.write(tmp_path/"data", tables)
    caption, numbers = draw("table_shortcuts", tmp_path/"data", tmp_path)
    kinds = [line.split(" | ")[0].removeprefix("| ") for line in caption.splitlines() if line.startswith("| ")]
    assert list(filter(str.strip, kinds))[2:] == ["shortcut", "all at once", "no shortcut: fine-tuning"]
    gains = numbers[numbers["arm"].str.endswith(" − scratch")]
    n_single = (gains["kind"] == "shortcut").sum()
    assert 0 < n_single < len(gains) and f"in {n_single} comparisons" in caption


def test_fig_3_draws_one_verdict_for_each_arm_and_share_and_both_savings(drawn):
    _, numbers = drawn["fig3_label_efficiency"]
    verdicts = numbers.query("panel == 'verdicts' and mode == 'unfrozen' and arm in ['scarf', 'byol-200', 'scratch']")
    assert len(verdicts) == 3*len(FEW) and set(verdicts["reference"]) == {"logistic-genes"}
    assert {"labels saved", "labels saved, best minus interval"} <= set(numbers["panel"])


def test_without_a_linear_model_networks_are_compared_with_the_one_from_scratch(tmp_path):
    tables = {name: table[~table["arm"].isin(made_up.BASELINES)] for name, table in made_up_tables().items()}
    tables["difference"] = tables["difference"][tables["difference"]["reference"] == "scratch"]
    made_up.write(tmp_path/"data", tables)
    caption, numbers = draw("fig_headline", tmp_path/"data", tmp_path)
    assert set(numbers.query("panel == 'fine-tuned'")["reference"]) == {"scratch"} and "Against from scratch" in caption


def test_panels_of_other_data_leave_out_parts_that_only_bend_the_protocol(drawn):
    caption, numbers = drawn["fig_datasets"]
    assert {"mRNA, TCGA → GTEx", "mRNA, colorectal", "miRNA, cancer types"} == {
        line.split(" | ")[0].removeprefix("| ") for line in caption.splitlines()[4:] if line}
    assert "mRNA, colorectal (500) lie below" in caption and "TCGA → GTEx (" not in caption.split("|")[0]


def test_the_best_of_a_metric_is_its_lowest_where_lower_is_better(drawn):
    _, numbers = drawn["table_metrics"]
    groups = numbers.groupby(["fraction", "metric"])["mean"]
    for metric, wanted in dict(auroc=groups.max(), log_loss=groups.min(), calibration_error=groups.min()).items():
        best = numbers[(numbers["reading"] == "best") & (numbers["metric"] == metric)].set_index("fraction")["mean"]
        pd.testing.assert_series_equal(best.sort_index(), wanted.xs(metric, level="metric"), check_names=False)


def test_a_cell_that_reaches_the_best_from_below_is_told_from_one_that_trails(drawn):
    _, numbers = drawn["table_metrics"]
    for (_, metric), rows in numbers.groupby(["fraction", "metric"]):
        better_end = -rows["low"] if metric in report.LOWER_IS_BETTER else rows["high"]
        best = (-rows["mean"] if metric in report.LOWER_IS_BETTER else rows["mean"]).max()
        assert ((better_end < best) == (rows["reading"] == "trails")).all()


def test_shortcuts_are_marked_where_they_could_not_be_paired(drawn):
    caption, numbers = drawn["table_shortcuts"]
    rows = [line.split(" | ") for line in caption.splitlines() if line.startswith("| ")]
    marked = {row[1]: "†" in str(row) for row in rows if row[1]}
    assert marked["split by sample"] and marked["whole paper protocol"] and not marked["fit on everything"]
    assert set(numbers["fraction"]) == {0.05, 1.0}


def test_a_profile_without_other_parts_and_with_one_protocol_still_has_every_figure(tmp_path):
    tables = made_up.tables(("scarf",), FEW, FEW, parts={}, shortcut_methods=())
    tables = {name: table[table["protocol"] == "strict"] for name, table in tables.items()}
    tables |= {name: tables[name][:0] for name in ("protocol_change", "protocol_change_means")}
    made_up.write(tmp_path/"data", tables, parts={}, main=made_up.PARTS["colorectal"])
    captions = {name: draw(name, tmp_path/"data", tmp_path)[0] for name in NEW if name != "table_metrics"}
    assert "takes no shortcut on its own. This profile runs one protocol only." in captions["table_shortcuts"]
    assert "mRNA, subtype (500) lie below" in captions["fig_datasets"]


def draw_needed(folder, worth=made_up.WORTH, change=None):
    "The figure of labels needed, of a study where a label is worth so many to each arm; its words, too."
    tables = made_up.against_the_best(worth)
    if change: change(tables["labels_needed"])
    made_up.write(folder/"data", tables, parts={})
    caption, numbers = draw("fig_labels_needed", folder/"data", folder)
    words = [text.get_text() for text in plt.gcf().axes[1].texts]
    plt.close("all")
    return tables, caption, numbers, words


def test_labels_needed_are_drawn_beside_the_best_simple_model_and_the_best_read_out_of_each_method(tmp_path):
    tables, caption, numbers, words = draw_needed(tmp_path)
    curves = numbers[numbers["panel"] == "score"]
    assert set(curves.groupby("arm")["mode"].first().items()) == {
        ("unmixing", "self-training-C0.1"), ("scarf", "self-training-C0.1"), ("vime", "linear probe"),
        ("byol", "linear probe"), (report.BEST, "baseline")}
    simple = tables["label_curve"].query("mode == 'baseline' and metric == 'balanced_accuracy'")
    np.testing.assert_allclose(curves.query("arm == @report.BEST")["mean"], simple.groupby("fraction")["mean"].max(),
                               rtol=1e-5)
    needed = numbers[numbers["panel"] == "labels needed"]
    assert needed["level"].nunique() == 4 and len(needed) == 4*5
    for row, said in zip(needed.query("arm == 'unmixing'").sort_values("level", ascending=False).itertuples(), words,
                         strict=True):
        assert f"{row.factor:.1f} times fewer" in said and said.startswith("at least") == row.factor_at_least
        if row.factor_low == row.factor_low: assert f"({row.factor_low:.1f} to " in said
    assert "of 3 with the highest mean there" in caption and "picked by the test patients" in caption
    assert "SCARF: self-training-C0.1, VIME: linear probe" in caption and "2 splits and 2 repeats each" in caption
    assert "un-mixing is better at" in caption


def test_a_recipe_that_needs_more_labels_is_told_so_and_needs_no_method_of_the_paper(tmp_path):
    def sure(needed):
        needed.loc[:, ["factor", "factor_low", "factor_high"]] = 0.5, 0.4, 0.8
        needed.loc[:, ["factor_at_least", "factor_at_most"]] = False, True
    worth = {key: times for key, times in made_up.WORTH.items() if key[0] not in ("scarf", "vime", "byol")}
    _, caption, numbers, words = draw_needed(tmp_path, worth, sure)
    assert set(words) == {"at least 2.0 times more (1.2 to 2.5)"}   # 1/0.5, 1/0.8 and 1/0.4
    assert "methods of the paper" not in caption and set(numbers["arm"]) == {"unmixing", report.BEST}


def test_a_task_of_ones_own_stands_where_the_recipe_would(tmp_path):
    worth = {("mine" if arm == "unmixing" else arm, mode): times for (arm, mode), times in made_up.WORTH.items()}
    _, caption, numbers, words = draw_needed(tmp_path, worth)
    assert "mine" in set(numbers["arm"]) and words and "mine (self-training-C0.1)" in caption


def test_without_a_known_factor_the_figure_says_so_where_labels_needed_would_be(tmp_path):
    def unknown(needed): needed["factor"] = np.nan
    _, _, numbers, words = draw_needed(tmp_path, change=unknown)
    assert words == ["each score from 0.70 to 0.94\nis reached from the start, or never"]
    assert "labels needed" not in set(numbers["panel"]) and "score" in set(numbers["panel"])


def test_a_study_without_the_recipe_is_refused_in_one_sentence(tmp_path):
    worth = {key: times for key, times in made_up.WORTH.items() if key != ("unmixing", "self-training-C0.1")}
    with pytest.raises(ValueError, match="There is no self-training-C0.1 of 'unmixing' in .*: choose another arm"):
        draw_needed(tmp_path, worth)


@pytest.mark.parametrize("settings", [dict(), dict(labelled_share=0.5, disjoint_pretraining=True)])
def test_samples_without_a_part_are_counted(tmp_path, settings):
    samples = toy(n_samples=600, n_genes=30, unlabelled=0.2)
    samples.obs["patient"] = [f"patient {i//2}" for i in range(samples.n_obs)]   # two samples each
    samples.write_h5ad(tmp_path/"pairs.h5ad")
    data = prepare(str(tmp_path/"pairs.h5ad"), **settings)
    parts = {name: len(rows) for name, rows in vars(data.split).items()}
    left = len(data.y) - len(np.unique(np.concatenate(list(vars(data.split).values()))))
    assert left > 0 and report.idle(data.facts | dict(rows=parts)) == left
