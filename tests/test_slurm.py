"""A study on Slurm: its driver dies, jobs are cancelled, killed and preempted, and the figures are those made here."""
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import REPOSITORY, StudyCopy

from ssl_expr.cli import cancel_left
from ssl_expr.execute import is_locked
from ssl_expr.run import read_result

PROFILE = """
dataset: toy
prepare: {genes: 40}
encoder: {width: 8, depth: 1}
arms: {scratch: {}}
baselines: [logistic-genes]
fine_tuning: {fractions: [0.3, 1.0], repeats: 2, epochs: 2}
"""
RUNS = "results/slurm/toy/strict/split0"
PLACES = dict(prepare=f"{RUNS}/prepare", label_curve=f"{RUNS}/scratch/seed0/label_curve",
              baselines=f"{RUNS}/baselines/seed0/baselines")
FIGURES = ("fig3_label_efficiency", "tableS1_classes")
WORDS, WANTED = ("run", "--profile", "slurm"), [f"figures/slurm/{name}.svg" for name in FIGURES]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    "A Slurm of one node, and the path of its commands; skipped where there is none."
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="no Slurm plugin: pip install '.[cluster]'")
    folder, script = tmp_path_factory.mktemp("slurm"), REPOSITORY/"tests"/"slurm.sh"
    started = subprocess.run([script, "up", folder], capture_output=True, text=True)
    if started.returncode: pytest.skip(started.stderr.strip().splitlines()[-1])
    yield os.pathsep.join([str(folder/"bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run([script, "down", folder], check=True)


def until(condition, what, seconds=300):
    end = time.time() + seconds
    while not (found := condition()):
        assert time.time() < end, f"{what}: not within {seconds} s"
        time.sleep(0.05)
    return found


class Cluster:
    "What a user and an administrator may do to the jobs of one study."
    def __init__(self, study, path): self.study, self.path = study, path

    def call(self, *words):
        answer = subprocess.run(words, env=os.environ | {"PATH": self.path}, capture_output=True, text=True)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    def cancel(self, experiment): self.call("scancel", self._job(experiment))

    def preempt(self, experiment): self.call("scontrol", "requeue", self._job(experiment))

    def kill(self, experiment): os.kill(self._process(experiment), signal.SIGKILL)

    def freeze(self, experiment): os.kill(self._process(experiment), signal.SIGSTOP)

    def as_they_work(self, **actions):
        "Do something to the job of each experiment named, once it executes its notebook."
        waiting = dict(actions)
        def one_less():
            for experiment in list(waiting):
                if is_locked(self.study.folder/f"{PLACES[experiment]}.lock"): waiting.pop(experiment)(experiment)
            return not waiting
        until(one_less, f"{waiting.keys()} at work")

    def _job(self, experiment):
        jobs = [line.split() for line in self.call("squeue", "-h", "-t", "R", "-o", "%i %k").splitlines()]
        return next(job for job, comment in jobs if comment.startswith(f"rule_{experiment}_"))

    def _process(self, experiment):
        def mine(place):
            try: words, folder = (place/"cmdline").read_bytes().split(b"\0"), (place/"cwd").resolve()
            except OSError: return False
            return f"experiments/{experiment}".encode() in words and folder == self.study.folder
        return next(int(place.name) for place in Path("/proc").glob("[0-9]*") if mine(place))


@pytest.fixture(scope="module")
def here(tmp_path_factory, slurm):
    "The study, run on this machine."
    study = slurm_study(tmp_path_factory.mktemp("here"), slurm)
    answer = study.command(*WORDS, "--", *WANTED)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return study


def slurm_study(folder, path):
    study = StudyCopy(folder)
    study.write_profile("slurm", PROFILE)
    study.environment["PATH"] = path
    return study


@pytest.fixture(scope="module")
def disturbed(slurm, tmp_path_factory):
    "The study on Slurm: its driver killed and started again, one job cancelled, one preempted, one killed."
    study = slurm_study(tmp_path_factory.mktemp("there"), slurm)
    cluster, logs = Cluster(study, slurm), []
    log = study.folder/"results/slurm/snakemake.log"
    def run(**trouble):
        driver = study.start(*WORDS, "--on", "slurm", "--", "--slurm-init-seconds-before-status-checks", "8", *WANTED)
        def submitting():
            said = log.read_text() if log.is_file() else ""
            return "has been submitted" in said and said[:2000] not in "".join(logs)
        try:
            until(submitting, "a job submitted by this driver")   # what an earlier one left is gone then
            cluster.as_they_work(**trouble)
            if logs: until(lambda: driver.poll() is not None, "the study ended")
        finally:
            if driver.poll() is None: study.kill(driver)
        logs.append(log.read_text())
        return driver.returncode
    run(prepare=cluster.freeze)   # or it might end well without its driver, and be taken as done
    status = run(prepare=cluster.cancel, baselines=cluster.preempt, label_curve=cluster.kill)
    return SimpleNamespace(study=study, cluster=cluster, logs=logs, status=status)


def test_the_figures_are_those_of_a_run_on_this_machine(here, disturbed):
    drawn = [f"figures/slurm/*.{kind}" for kind in ("svg", "png", "csv", "md")]
    def made(study):
        files = study.files(*drawn, "figures/data/slurm/*.csv", "results/slurm/**/*.parquet")
        return {name: content for name, content in files.items() if "costs" not in name}
    ours, theirs = made(here), made(disturbed.study)
    assert ours.keys() == theirs.keys() >= set(WANTED)
    assert [name for name in ours if ours[name] != theirs[name]] == []


def test_the_study_ends_well_and_every_job_has_succeeded_once(disturbed):
    assert disturbed.status == 0, disturbed.logs[-1][-2000:]
    finished = re.findall(r"Finished jobid: \d+ \(Rule: (\w+)\)", "".join(disturbed.logs))
    assert {"prepare", "baselines", "label_curve", "collect_curves"} <= set(finished)
    assert all(times == 1 for rule, times in Counter(finished).items() if rule != "figure")
    for place in PLACES.values(): assert read_result(next((disturbed.study.folder/place).parent.glob("*.[ps]*")))


def submitted(disturbed, rule): return re.findall(rf"SLURM jobid (\d+) \(log: \S+/rule_{rule}/", disturbed.logs[-1])


def test_a_cancelled_and_a_killed_job_are_submitted_again_and_ask_for_more(disturbed):
    for rule, state in dict(prepare="CANCELLED", label_curve="FAILED").items():
        first, again = submitted(disturbed, rule)
        assert f"SLURM-job '{first}' failed, SLURM status is: '{state}'" in disturbed.logs[-1]
        asked = [re.search(r"MinMemoryNode=(\d+)M.*", disturbed.cluster.call("scontrol", "show", "job", job))[1]
                 for job in (first, again)]
        assert int(asked[1]) == 2*int(asked[0])


def test_a_preempted_job_is_left_to_slurm_which_starts_it_again(disturbed):
    job, = submitted(disturbed, "baselines")
    assert "Restarts=1 " in disturbed.cluster.call("scontrol", "show", "job", job)


def test_nothing_is_left_in_the_queue_or_half_written(disturbed):
    assert disturbed.cluster.call("squeue", "-h", "-t", "PD,R,CG,S") == ""
    assert not list(disturbed.study.folder.glob("figures/**/.partial-*"))


def test_what_a_dead_driver_left_in_the_queue_is_cancelled(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", slurm)
    for name in ("left", "of-another-study"):
        subprocess.run(["sbatch", "--job-name", name, "--output", tmp_path/"out", "--wrap", "sleep 600"], check=True)
    (tmp_path/"snakemake.log").write_text("Building DAG of jobs...\nSLURM run ID: left\n")
    cancel_left(tmp_path/"snakemake.log")
    queue = subprocess.run(["squeue", "-h", "-t", "PD,R", "-o", "%j"], capture_output=True, text=True).stdout.split()
    assert queue == ["of-another-study"]
    subprocess.run(["scancel", "--name", "of-another-study"], check=True)


def test_an_unknown_cluster_is_refused_and_those_known_are_named(study_copy):
    answer = study_copy.command("run", "--profile", "tiny", "--on", "slrum")
    assert answer.returncode == 1 and "no cluster 'slrum': choose one of" in answer.stderr and "slurm" in answer.stderr
