"""The study from profile to figures, at toy size: complete, resumable, repeatable, redone only where it changed."""
import json
import os
import shutil
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from conftest import KEEPING, TINY

from ssl_expr.data import toy
from ssl_expr.nets import embed
from ssl_expr.prepare import load_prepared
from ssl_expr.pretrain import load_encoder, train_encoder
from ssl_expr.run import digest
from ssl_expr.study import TARGETS

METRICS = ("figures/data/tiny/*.csv",)


def targets(study): return set(study.files(*(f"results/**/*.{kind}" for kind in ("parquet", "safetensors", "csv"))))


def moments(study):
    return {path: path.stat().st_mtime_ns
            for kind in ("parquet", "safetensors") for path in study.folder.glob(f"results/**/*.{kind}")}


def test_every_figure_and_table_has_its_five_files(finished):
    not_asked = {"fig_anatomy", "fig_phenotypes", "fig_labels_needed", "table_shortcuts",
                 "table_search"}   # by the tiny profile; other tests draw them
    notebooks = {path.stem for path in (finished.folder/"nbs"/"figures").glob("*.ipynb")}
    assert not_asked <= notebooks
    for name in notebooks - not_asked:
        for kind in ("svg", "png", "csv", "md", "json"):
            path = finished.folder/"figures"/"tiny"/f"{name}.{kind}"
            assert path.is_file() and path.stat().st_size > 0, path.name


def test_the_executed_notebook_of_every_run_is_kept(finished):
    for target in finished.folder.glob("results/**/*.parquet"):
        assert list(target.parent.glob("*.ipynb")), target
    executed = json.loads(next(finished.folder.glob("results/**/vime/seed0/pretrain.ipynb")).read_text())
    assert all(cell["execution_count"] for cell in executed["cells"] if cell["cell_type"] == "code" and cell["source"])


def test_every_result_names_its_parameters_data_versions_and_cost(finished):
    record = json.loads(next(finished.folder.glob("results/**/vime/seed0/encoder.json")).read_text())
    assert record["parameters"]["epochs"] == 2 and record["facts"]["fingerprint"]
    assert record["provenance"]["versions"]["torch"]
    assert record["cost"]["cpu_seconds"] > 0 and record["cost"]["peak_memory_mb"] > 0


def test_every_arm_is_scored_beside_the_baselines_with_intervals(finished):
    curves = pd.read_csv(finished.folder/"figures/data/tiny/label_curve.csv")
    assert {"scratch", "scarf", "vime", "byol", "logistic-genes", "logistic-pca"} == set(curves["arm"])
    assert (curves["low"] <= curves["mean"]).all() and (curves["mean"] <= curves["high"]).all()
    assert curves.loc[curves["metric"] != "log_loss", "mean"].between(0, 1).all() and (curves["mean"] >= 0).all()


def test_grids_are_compared_in_pairs_with_the_network_from_scratch_and_with_clean_samples(finished):
    def table(name): return pd.read_csv(finished.folder/f"figures/data/tiny/{name}.csv")
    sizes, corrupted = table("pretraining_size"), table("corruption")
    scratch = sizes.query("n_pretrain == 0 and mode == 'unfrozen'").drop(columns="arm")
    grids = dict(pretraining_size=(["arm", "n_pretrain"], [], sizes.query("n_pretrain > 0"), scratch),
                 corruption=(["arm", "replacement", "corruption_rate"], ["arm", "replacement"],
                             corrupted.query("corruption_rate > 0"), corrupted.query("corruption_rate == 0")))
    for name, (cell, alike, ours, theirs) in grids.items():
        like = ["metric", "fraction", *alike]
        alone = ours.merge(theirs[[*like, "mean"]], on=like, suffixes=("", "_reference"))
        pairs = table(f"{name}_difference").merge(alone, on=["metric", "fraction", *cell], suffixes=("", "_alone"))
        assert len(pairs) == len(ours) > 0, name
        assert pairs["difference"].to_numpy() == pytest.approx(pairs["mean"] - pairs["mean_reference"], abs=2e-5)
        assert ((pairs["low"] <= pairs["difference"]) & (pairs["difference"] <= pairs["high"])).all()


def test_simple_models_stand_beside_every_question(finished):
    for name in ("architecture", "pretraining_size", "corruption"):
        table = pd.read_csv(finished.folder/f"figures/data/tiny/{name}.csv").query("mode == 'baseline'")
        assert set(table["arm"]) == {"logistic-genes", "logistic-pca"}, name
    shapes = pd.read_csv(finished.folder/"figures/data/tiny/architecture.csv").query("arm == 'logistic-genes'")
    assert set(shapes["depth"]) == {1, 2}


def test_tables_of_depth_and_size_say_how_long_each_arm_was_pretrained(finished):
    for name in ("architecture", "pretraining_size"):
        table = pd.read_csv(finished.folder/f"figures/data/tiny/{name}.csv").groupby("arm")
        epochs = table[["pretrain_epochs", "published_epochs"]].agg(lambda column: column.unique().tolist())
        assert epochs.loc["scarf"].tolist() == [[3], [1000]], name
        assert epochs.loc["logistic-genes"].tolist() == [[0], [0]], name


def test_arms_gain_over_each_other_too_and_a_replacement_over_its_source(finished):
    gains = pd.read_csv(finished.folder/"figures/data/tiny/gains.csv").query("mode == 'unfrozen' and upto == 1")
    gains = gains.query("metric == 'accuracy'").set_index(["arm", "reference"])["gain"]
    assert gains["scarf", "byol"] == pytest.approx(gains["scarf", "scratch"] - gains["byol", "scratch"], abs=2e-5)
    assert gains["scarf", "scarf-marginal"] == pytest.approx(
        gains["scarf", "scratch"] - gains["scarf-marginal", "scratch"], abs=2e-5)


def test_a_second_run_has_nothing_to_do_and_says_so(finished):
    before, started = moments(finished), time.time()
    answer = finished.command("run", "--profile", "tiny")
    assert answer.returncode == 0 and "Nothing to do" in answer.stdout, answer.stdout + answer.stderr
    assert moments(finished) == before, f"rerun after {time.time() - started:.0f} s"


def test_status_counts_what_is_done_and_what_is_missing(finished, study_copy):
    done, empty = (study.command("status", "--profile", "tiny").stdout for study in (finished, study_copy))
    def row(text, name): return next(line.split() for line in text.splitlines() if line.startswith(name))
    assert row(done, "pretrain")[1:] == ["4", "·", "·", "·", "·"]
    assert row(empty, "pretrain")[1:] == ["·", "·", "·", "·", "4"]


def test_one_changed_parameter_redoes_that_arm_and_the_figures_that_use_it_only(finished, tmp_path):
    study = finished.clone(tmp_path/"copy")
    before = moments(study)
    figures = {path: path.stat().st_mtime_ns for path in study.folder.glob("figures/tiny/*.csv")}
    study.write_profile("tiny", TINY.replace("vime, epochs: 2", "vime, epochs: 3"))
    answer = study.command("run", "--profile", "tiny")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    redone = {path for path, moment in moments(study).items() if before.get(path) != moment}
    assert redone == {study.folder/"results/tiny/toy/strict/split0/vime/seed0"/name
                      for name in ("encoder.safetensors", "label_curve.parquet")}
    redrawn = {path.stem for path, moment in figures.items() if path.stat().st_mtime_ns != moment}
    assert "fig3_label_efficiency" in redrawn
    assert not {"tableS4_grid", "fig4_architecture", "tableS1_classes"} & redrawn


def test_a_killed_study_continues_to_the_same_metrics(finished, study_copy):
    curves = ("run", "--profile", "tiny", "--", "figures/data/tiny/label_curve.csv")
    process = study_copy.start(*curves)
    waiting_until = time.time() + 120
    while len(list(study_copy.folder.glob("results/**/label_curve.parquet"))) < 2 and time.time() < waiting_until:
        time.sleep(0.2)
    study_copy.kill(process)
    assert targets(finished) - targets(study_copy), "killed too late to prove anything"
    answer = study_copy.command(*curves)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    tables = ["figures/data/tiny/label_curve.csv", "figures/data/tiny/difference.csv", "results/**/label_curve.parquet"]
    assert study_copy.files(*tables) == finished.files(*tables)


def test_two_profiles_never_share_a_result(finished, tmp_path):
    study = finished.clone(tmp_path/"copy")
    before = study.files("results/tiny/**/*.parquet", *METRICS)
    tuning = "fine_tuning: {fractions: [1.0], repeats: 1, epochs: 1}"
    study.write_profile("other", f"dataset: toy\narms: {{scratch: {{}}}}\n{tuning}\n")
    answer = study.command("run", "--profile", "other", "--", "--until", "label_curve")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert list(study.folder.glob("results/other/**/label_curve.parquet"))
    assert study.files("results/tiny/**/*.parquet", *METRICS) == before


def test_figures_are_redrawn_without_results_and_with_identical_numbers(finished, tmp_path):
    study = finished.clone(tmp_path/"copy")
    shutil.rmtree(study.folder/"results")
    shutil.rmtree(study.folder/"figures"/"tiny")
    answer = study.command("figures", "--profile", "tiny")
    assert answer.returncode == 0, answer.stdout
    kinds = [f"figures/tiny/*.{kind}" for kind in ("csv", "md", "svg", "png")]
    assert study.files(*kinds) == finished.files(*kinds)


def test_a_second_run_at_the_same_time_is_refused(study_copy):
    process = study_copy.start("run", "--profile", "tiny")
    log, waiting_until = study_copy.folder/"results/tiny/snakemake.log", time.time() + 60
    try:
        while not log.exists() and time.time() < waiting_until: time.sleep(0.1)
        answer = study_copy.command("run", "--profile", "tiny")
        assert answer.returncode == 1 and "Another `ssl-expr run" in answer.stderr
    finally: study_copy.kill(process)


@pytest.mark.parametrize("name, value, said", [
    ("epoch", "5", "no parameter 'epoch'"),
    ("epochs", "five", "must be of type int"),
])
def test_plain_papermill_refuses_a_wrong_parameter(study_copy, name, value, said):
    command = ["papermill", "nbs/experiments/pretrain.ipynb", "out.ipynb", "-p", name, value, "-k", "python3"]
    answer = subprocess.run([sys.executable, "-m", *command], cwd=study_copy.folder, env=study_copy.environment,
                            capture_output=True, text=True)
    assert answer.returncode == 1 and said in answer.stderr


def test_a_failed_run_is_reported_in_one_sentence_and_leaves_no_result(study_copy):
    values = dict(method="scrf", folder="results/x")
    answer = study_copy.command("notebook", "experiments/pretrain", "results/x/pretrain.ipynb", json.dumps(values))
    assert answer.returncode == 1 and answer.stderr.count("\n") == 1 and "scrf" in answer.stderr
    assert not list((study_copy.folder/"results/x").glob("*.safetensors"))


def test_donors_of_an_arm_are_found_in_the_annotations_of_the_prepared_data(study_copy):
    def notebook(name, **values):
        values = json.dumps(values | dict(folder="results/x"))
        return study_copy.command("notebook", f"experiments/{name}", f"results/x/{name}.ipynb", values)
    toy().write_h5ad(study_copy.folder/"mine.h5ad")
    assert notebook("prepare", dataset="mine.h5ad", genes=30).returncode == 0
    choice = dict(prepared="results/x/prepared.safetensors", method="mixing", epochs=2)
    wrong = notebook("pretrain", **choice, donors={"batch": ["batch-9"]})
    assert wrong.returncode == 1 and "donors: no sample has batch 'batch-9': it can be" in wrong.stderr
    answer = notebook("pretrain", **choice, donors={"batch": ["batch-1"]})
    assert answer.returncode == 0, answer.stderr

    data = load_prepared(study_copy.folder/"results/x/prepared.safetensors")
    rows = data.split.pretrain
    donors = toy().obs.loc[data.samples, "batch"].eq("batch-1").to_numpy()[rows]
    record = json.loads((study_copy.folder/"results/x/encoder.json").read_text())
    assert 0 < record["facts"]["n_donors"] == donors.sum() < len(rows)
    encoder, _ = load_encoder(study_copy.folder/"results/x/encoder.safetensors")
    wanted, others = (train_encoder("mixing", data.X[rows], 256, 4, 0.2, epochs=2, progress=False, donors=chosen)[0]
                      for chosen in (donors, None))
    found, same, other = (embed(each, data.X) for each in (encoder, wanted.encoder, others.encoder))
    assert torch.allclose(found, same, atol=1e-4) and not torch.allclose(found, other, atol=1e-2)


def test_a_damaged_result_file_is_named(finished, tmp_path):
    study = finished.clone(tmp_path/"copy")
    prepared = study.folder/"results/tiny/toy/strict/split0/prepared.safetensors"
    prepared.write_bytes(prepared.read_bytes()[:100])
    values = dict(prepared=str(prepared.relative_to(study.folder)), folder="results/x")
    answer = study.command("notebook", "experiments/pretrain", "results/x/pretrain.ipynb", json.dumps(values))
    assert answer.returncode == 1 and "prepared.safetensors" in answer.stderr


CURVE = "toy/strict/split0/scarf/seed0/label_curve.parquet"
KEPT = "figures/data/keeping/runs"
TABLES = ("figures/data/keeping/*.csv", "figures/data/keeping/*.json")


def only_committed(study):
    "What a fresh clone has, all of one age."
    for name in ("results", ".snakemake", "figures/keeping"): shutil.rmtree(study.folder/name)
    for path in study.folder.glob("**/*"): os.utime(path, (1e9, 1e9))
    return study


def work_of(answer):
    "Runs done and to be computed, CPU hours, memory and disk, by experiment: what `run` says first."
    rows = [line.split() for line in answer.stdout.splitlines()]
    return {row[0]: row[1:] for row in rows if row[:1] and row[0] in TARGETS and len(row) == 6}


def test_what_two_parts_share_is_run_once_and_both_are_scored(keeping):
    assert len(list(keeping.folder.glob("results/**/encoder.safetensors"))) == 1
    curves = pd.read_csv(keeping.folder/"figures/data/keeping/label_curve.csv")
    assert list(curves.columns[:2]) == ["part", "protocol"] and set(curves["part"]) == {"main", "longer"}
    same = curves[curves["arm"] == "logistic-genes"].drop(columns="part")
    assert len(same) and same.drop_duplicates().shape[0] == len(same)/2


def test_a_shortcut_is_compared_in_score_and_in_gain_on_the_same_samples(keeping):
    table = pd.read_csv(keeping.folder/"figures/data/keeping/shortcuts.csv")
    curves = pd.read_csv(keeping.folder/"figures/data/keeping/label_curve.csv")
    assert table["paired"].all() and set(table["part"]) == {"longer"} and set(table["against"]) == {"main"}
    assert {"scratch", "scarf", "scarf − scratch", "logistic-genes − scratch"} <= set(table["arm"])
    keys = ["protocol", "arm", "mode", "metric", "fraction"]
    both = table.merge(curves[curves["part"] == "main"], on=keys)
    assert len(both) and (both["score_against"] - both["mean"]).abs().max() < 1e-5
    gain = table[(table["arm"] == "scarf − scratch") & (table["mode"] == "unfrozen")].set_index(keys[3:])
    parts = {arm: table[(table["arm"] == arm) & (table["mode"] == "unfrozen")].set_index(keys[3:])
             for arm in ("scarf", "scratch")}
    assert (gain["difference"] - parts["scarf"]["difference"] + parts["scratch"]["difference"]).abs().max() < 1e-5
    equal = table[table["arm"] == "logistic-genes"]
    assert (equal["difference"] == 0).all() and (equal["verdict"] == "tie").all()


def test_costs_count_a_shared_run_once(keeping):
    costs = pd.read_csv(keeping.folder/"figures/data/keeping/costs.csv", keep_default_na=False)
    counted = costs.groupby("experiment")["runs"].sum()
    assert counted["pretrain"] == 1 and counted["label_curve"] == 4
    assert (costs["cpu_seconds"] > 0).all() and costs["processor"].str.len().min() > 0


def test_a_study_that_keeps_has_nothing_to_do_the_second_time(keeping):
    answer = keeping.command("run", "--profile", "keeping")
    assert answer.returncode == 0 and "Nothing to do" in answer.stdout, answer.stdout + answer.stderr
    assert work_of(answer)["label_curve"] == ["4", *"····"]


def test_a_fresh_clone_collects_and_draws_the_same_from_kept_runs_alone(keeping, tmp_path):
    study = only_committed(keeping.clone(tmp_path/"copy"))
    for path in study.folder.glob("figures/data/keeping/*.*"): path.unlink()
    answer = study.command("run", "--profile", "keeping")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert study.files(*TABLES, "figures/keeping/*.csv") == keeping.files(*TABLES, "figures/keeping/*.csv")
    assert not list(study.folder.glob("results/keeping/**/*.parquet")), "a kept run was done again"
    done = study.command("status", "--profile", "keeping").stdout
    assert next(line.split()[1:] for line in done.splitlines() if line.startswith("pretrain")) == ["1", *"····"]


def test_an_unfinished_study_reports_what_is_complete_and_names_what_is_not(keeping, tmp_path):
    study = only_committed(keeping.clone(tmp_path/"copy"))
    whole = pd.read_csv(study.folder/"figures/data/keeping/label_curve.csv")
    (study.folder/KEPT/"longer/strict/split0/scarf/seed0/label_curve.json").unlink()
    figures = study.folder/"figures/keeping"
    figures.mkdir()
    for name in ("table_shortcuts.md", "mine.md"): (figures/name).write_text("an earlier report\n")
    answer = study.command("figures", "--profile", "keeping", "--collect")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "left out: longer" in answer.stdout and "table_shortcuts: drawn" not in answer.stdout
    curves = pd.read_csv(study.folder/"figures/data/keeping/label_curve.csv")
    pd.testing.assert_frame_equal(curves, whole[whole["part"] == "main"])
    assert not (study.folder/"figures/data/keeping/shortcuts.csv").exists(), "a table of an unfinished part was left"
    assert not (figures/"table_shortcuts.md").exists(), "a figure of an unfinished part was left"
    assert (figures/"mine.md").exists()
    assert json.loads((study.folder/"figures/data/keeping/curves.json").read_text())["unfinished"] == ["longer"]
    (study.folder/KEPT/"toy/strict/split0/baselines/seed0/baselines.parquet").write_bytes(b"damaged")
    answer = study.command("figures", "--profile", "keeping", "--collect")
    assert answer.returncode == 1 and "No split of profile keeping is finished" in answer.stderr


def test_a_changed_library_does_not_redo_what_is_kept(keeping, tmp_path):
    study = keeping.clone(tmp_path/"copy")
    with open(study.folder/"ssl_expr"/"pretrain.py", "a") as module: module.write("# changed\n")
    before = moments(study)
    (study.folder/KEPT/CURVE).unlink()
    answer = study.command("run", "--profile", "keeping", "--", f"{KEPT}/{CURVE}")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    redone = {path for path, moment in moments(study).items() if before.get(path) != moment}
    assert redone == {study.folder/"results/keeping"/CURVE}, "an encoder at hand was pretrained again"


def test_a_damaged_kept_file_is_named_and_only_that_run_is_planned_with_what_it_needs(keeping, tmp_path):
    study = only_committed(keeping.clone(tmp_path/"copy"))
    (study.folder/KEPT/CURVE).write_bytes(b"damaged")
    said = study.command("status", "--profile", "keeping").stdout
    assert f"damaged: {KEPT}/{CURVE}" in said
    answer = study.command("run", "--profile", "keeping", "--dry-run")
    work = work_of(answer)
    assert [work[name][1] for name in ("prepare", "pretrain", "label_curve", "baselines")] == ["1", "1", "1", "·"]
    assert float(work["pretrain"][2]) > 0 and "GPU hours" in answer.stdout
    assert "1 keep_label_curve" in answer.stdout and len(answer.stdout.splitlines()) < 30


def test_a_changed_parameter_replans_what_rests_on_it_and_keeps_the_rest(keeping, tmp_path):
    study = only_committed(keeping.clone(tmp_path/"copy"))
    study.write_profile("keeping", KEEPING.replace("scarf, epochs: 2", "scarf, epochs: 3"))
    work = work_of(study.command("run", "--profile", "keeping", "--dry-run"))
    assert [work[name][:2] for name in ("prepare", "pretrain", "label_curve", "baselines")] == [
        ["1", "1"], ["·", "1"], ["2", "2"], ["1", "·"]]


def test_a_run_done_again_is_the_same_to_the_last_bit_or_is_said_not_to_be(keeping, tmp_path):
    study = only_committed(keeping.clone(tmp_path/"copy"))
    target = "longer/strict/split0/scratch/seed0/label_curve.parquet"
    answer = study.command("reproduce", target, "--profile", "keeping")
    assert answer.returncode == 0 and "bit-identical" in answer.stdout, answer.stdout + answer.stderr
    place = study.folder/KEPT/target
    predictions = pd.read_parquet(place)
    predictions.assign(truth=(predictions["truth"] + 1) % 3).to_parquet(place, index=False)
    record = json.loads(place.with_suffix(".json").read_text())
    record["kept"][place.name] = digest(place)
    place.with_suffix(".json").write_text(json.dumps(record))
    answer = study.command("reproduce", target, "--profile", "keeping")
    assert answer.returncode == 1 and "outside the kept interval" in answer.stdout, answer.stdout + answer.stderr
