"""The study from profile to figures, at toy size: complete, resumable, repeatable, redone only where it changed."""
import json
import shutil
import subprocess
import sys
import time

import pandas as pd
import pytest
from conftest import TINY, StudyCopy

METRICS = ("figures/data/tiny/*.csv",)


def targets(study): return set(study.files(*(f"results/**/*.{kind}" for kind in ("parquet", "safetensors", "csv"))))


def moments(study):
    return {path: path.stat().st_mtime_ns
            for kind in ("parquet", "safetensors") for path in study.folder.glob(f"results/**/*.{kind}")}


def a_copy_of(finished, tmp_path):
    copy = StudyCopy.__new__(StudyCopy)
    shutil.copytree(finished.folder, tmp_path/"copy")
    copy.folder, copy.environment = tmp_path/"copy", finished.environment
    return copy


def test_every_figure_and_table_has_its_five_files(finished):
    for notebook in (finished.folder/"nbs"/"figures").glob("*.ipynb"):
        for kind in ("svg", "png", "csv", "md", "json"):
            path = finished.folder/"figures"/"tiny"/f"{notebook.stem}.{kind}"
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
    assert curves["mean"].between(0, 1).all() and set(curves["protocol"]) == {"strict", "paper"}


def test_a_second_run_has_nothing_to_do_and_says_so(finished):
    before, started = moments(finished), time.time()
    answer = finished.command("run", "--profile", "tiny")
    assert answer.returncode == 0 and "Nothing to do" in answer.stdout, answer.stdout + answer.stderr
    assert moments(finished) == before, f"rerun after {time.time() - started:.0f} s"


def test_status_counts_what_is_done_and_what_is_missing(finished, study_copy):
    done, empty = (study.command("status", "--profile", "tiny").stdout for study in (finished, study_copy))
    def row(text, name): return next(line.split() for line in text.splitlines() if line.startswith(name))
    assert row(done, "pretrain")[1:] == ["7", "·", "·", "·", "·"]
    assert row(empty, "pretrain")[1:] == ["·", "·", "·", "·", "7"]


def test_one_changed_parameter_redoes_that_arm_and_the_figures_that_use_it_only(finished, tmp_path):
    study = a_copy_of(finished, tmp_path)
    before = moments(study)
    figures = {path: path.stat().st_mtime_ns for path in study.folder.glob("figures/tiny/*.csv")}
    study.write_profile("tiny", TINY.replace("vime, epochs: 2", "vime, epochs: 3"))
    answer = study.command("run", "--profile", "tiny")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    redone = {path for path, moment in moments(study).items() if before.get(path) != moment}
    assert redone == {study.folder/f"results/tiny/toy/{protocol}/split0/vime/seed0/{name}"
                      for protocol in ("strict", "paper") for name in ("encoder.safetensors", "label_curve.parquet")}
    redrawn = {path.stem for path, moment in figures.items() if path.stat().st_mtime_ns != moment}
    assert "fig3_label_efficiency" in redrawn
    assert not {"tableS4_grid", "fig5_pretraining_size"} & redrawn


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
    study = a_copy_of(finished, tmp_path)
    before = study.files("results/tiny/**/*.parquet", *METRICS)
    tuning = "fine_tuning: {fractions: [1.0], repeats: 1, epochs: 1}"
    study.write_profile("other", f"dataset: toy\narms: {{scratch: {{}}}}\n{tuning}\n")
    answer = study.command("run", "--profile", "other", "--", "--until", "label_curve")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert list(study.folder.glob("results/other/**/label_curve.parquet"))
    assert study.files("results/tiny/**/*.parquet", *METRICS) == before


def test_figures_are_redrawn_without_results_and_with_identical_numbers(finished, tmp_path):
    study = a_copy_of(finished, tmp_path)
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


def test_a_damaged_result_file_is_named(finished, tmp_path):
    study = a_copy_of(finished, tmp_path)
    prepared = study.folder/"results/tiny/toy/strict/split0/prepared.safetensors"
    prepared.write_bytes(prepared.read_bytes()[:100])
    values = dict(prepared=str(prepared.relative_to(study.folder)), folder="results/x")
    answer = study.command("notebook", "experiments/pretrain", "results/x/pretrain.ipynb", json.dumps(values))
    assert answer.returncode == 1 and "prepared.safetensors" in answer.stderr
