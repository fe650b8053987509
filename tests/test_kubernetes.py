"""The Kubernetes folder, as far as it can be tried without a Kubernetes: a dry run, and a stand-in for `kubectl`."""
import json
import os
import subprocess
import sys
from math import ceil
from pathlib import Path

import pytest
from conftest import REPOSITORY

PREPARED = "results/tiny/toy/strict/split0/prepared.safetensors"
KUBECTL = f"""#!{sys.executable}
import json, os, subprocess, sys
from pathlib import Path
jobs = Path(os.environ["JOBS"])
if sys.argv[1] == "create":
    job = json.load(sys.stdin)
    place = jobs/job["metadata"]["name"]
    place.write_text(json.dumps(job))
    command = ["sh", "-c", '"$@"; echo $? >"$0"', place.with_suffix(".ended"),
               *job["spec"]["template"]["spec"]["containers"][0]["command"]]
    nowhere = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    few = {{"PATH": "/usr/bin:/bin", "PYTHONPATH": os.environ["PYTHONPATH"]}}
    subprocess.Popen(command, **nowhere, cwd="/", env=few)
elif (ended := jobs/f"{{sys.argv[3]}}.ended").is_file() and ended.read_text():
    print("Complete" if ended.read_text().strip() == "0" else "Failed")
elif not (jobs/sys.argv[3]).is_file(): sys.exit("Error from server (NotFound)")
"""


@pytest.fixture
def pods(study_copy, tmp_path_factory):
    "A study whose `kubectl` starts a Job as a process of this machine; the folder of the Jobs it was given."
    pytest.importorskip("snakemake_executor_plugin_cluster_generic", reason="needs pip install '.[cluster]'")
    programs, jobs = tmp_path_factory.mktemp("programs"), tmp_path_factory.mktemp("jobs")
    (programs/"kubectl").write_text(KUBECTL)
    (programs/"kubectl").chmod(0o755)
    paths = [str(study_copy.folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    study_copy.environment |= {"PATH": f"{programs}{os.pathsep}{study_copy.environment['PATH']}", "JOBS": str(jobs),
                               "PYTHONPATH": os.pathsep.join(paths)}
    return jobs


def test_a_dry_run_plans_the_study(study_copy, pods):
    answer = study_copy.command("run", "--profile", "tiny", "--on", "kubernetes", "--dry-run")
    assert answer.returncode == 0 and "label_curve" in answer.stdout, answer.stdout + answer.stderr


def test_a_run_becomes_a_job_that_says_what_it_needs_and_makes_its_file(study_copy, pods):
    program = ("import json; from ssl_expr.cost import expected; from ssl_expr.study import Plan, read_profile; "
               f"print(json.dumps(expected(Plan('tiny', read_profile('tiny')))[{PREPARED!r}]))")
    answer = subprocess.run([sys.executable, "-c", program], cwd=study_copy.folder, env=study_copy.environment,
                            capture_output=True, text=True)
    seconds, memory, _ = json.loads(answer.stdout)
    answer = study_copy.command("run", "--profile", "tiny", "--on", "kubernetes", "--",
                                "--seconds-between-status-checks", "1", PREPARED)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert (study_copy.folder/PREPARED).is_file()
    jobs = [path for path in pods.iterdir() if path.suffix != ".ended"]
    first = min(jobs, key=lambda path: path.stat().st_mtime)   # of several, if one had to be tried again
    made = json.loads(first.read_text())
    pod = made["spec"]["template"]["spec"]
    container, = pod["containers"]
    assert container["resources"]["limits"] == {"memory": f"{500 + ceil(1.5*memory)}M"}
    assert container["resources"]["requests"]["cpu"] == 1
    assert pod["activeDeadlineSeconds"] == 60*(10 + ceil(seconds/20))
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "study"


def test_the_state_of_a_job_is_told_in_snakemakes_words(pods, study_copy):
    status = REPOSITORY/"clusters"/"kubernetes"/"status"
    (pods/"works").touch()
    for name, rc in dict(good="0", bad="1").items():
        (pods/name).touch()
        (pods/f"{name}.ended").write_text(rc)
    for name, state in dict(works="running", good="success", bad="failed", gone="failed").items():
        said = subprocess.run([status, name], env=study_copy.environment, capture_output=True, text=True)
        assert said.stdout.strip() == state, name
    Path(study_copy.environment["PATH"].split(os.pathsep)[0], "kubectl").write_text("#!/bin/sh\nexit 1\n")
    said = subprocess.run([status, "good"], env=study_copy.environment, capture_output=True, text=True)
    assert said.stdout.strip() == "running", "a server that does not answer once must not fail a job"
