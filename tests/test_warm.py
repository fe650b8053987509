"""Notebooks without a kernel, and jobs that start warm: the same results, and processes that end when they should."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from ssl_expr.execute import is_locked
from ssl_expr.run import digest
from ssl_expr.warm import SOCKET, ask, warm

REPOSITORY = Path(__file__).resolve().parent.parent


def notebook(*sources):
    "A notebook of these cells; the first holds the parameters."
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata.tags = ["parameters"]
    return nbformat.v4.new_notebook(cells=cells)


@pytest.fixture
def study(tmp_path, monkeypatch):
    "A folder that passes for a study; its notebooks are given as sources of cells."
    (tmp_path/"nbs"/"experiments").mkdir(parents=True)
    (tmp_path/"Snakefile").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    def add(name, *sources): nbformat.write(notebook(*sources), tmp_path/"nbs"/"experiments"/f"{name}.ipynb")
    return add


def command(name, **values):
    words = ["notebook", f"experiments/{name}", f"{name}.ipynb", json.dumps(values)]
    return [sys.executable, "-m", "ssl_expr.cli", *words]


def run(name, **values): return subprocess.run(command(name, **values), capture_output=True, text=True)


def until(condition, seconds=60):
    end = time.time() + seconds
    while not condition() and time.time() < end: time.sleep(0.05)
    return condition()


def ended(process_id):
    "Has this process ended? One that nobody waited for counts as ended."
    try: return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError: return True


def test_a_notebook_makes_the_same_file_here_and_warm_as_in_a_kernel(study_copy, monkeypatch):
    monkeypatch.chdir(study_copy.folder)
    monkeypatch.setenv("PYTHONPATH", str(study_copy.folder))
    def made(folder, *words):
        subprocess.run([sys.executable, "-m", *words], check=True)
        kinds = [[output.output_type for output in cell.get("outputs", [])]
                 for cell in nbformat.read("done.ipynb", 4).cells]
        return digest(Path(folder)/"prepared.safetensors"), kinds
    values = dict(dataset="toy", genes=40, folder="results/kernel")
    given = [word for name, value in values.items() for word in ("-p", name, str(value))]
    plain = ["papermill", "nbs/experiments/prepare.ipynb", "done.ipynb", *given, "-k", "python3"]
    expected = made("results/kernel", *plain)
    words = ["ssl_expr.cli", "notebook", "experiments/prepare", "done.ipynb"]
    def ours(folder): return [*words, json.dumps(values | dict(folder=folder))]
    assert made("results/here", *ours("results/here")) == expected
    with warm(): assert made("results/warm", *ours("results/warm")) == expected


def test_outputs_are_those_of_a_kernel_in_kind_order_and_content(study):
    study("shown", "x = 1", "print('a')\nprint('b')\ndisplay(x)\nprint('c')\nx + 1",
          "%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.figure(figsize=(1, 1)).add_subplot().plot([1, 2]);",
          "_ + 40, In[-1][:1]")
    assert run("shown", x=2).returncode == 0
    plain = ["papermill", "nbs/experiments/shown.ipynb", "plain.ipynb", "-p", "x", "2", "-k", "python3"]
    subprocess.run([sys.executable, "-m", *plain, "--language", "python"], check=True)
    def outputs(path):
        return [[{key: output.get(key) for key in ("output_type", "name", "text", "data", "execution_count")}
                 for output in cell.outputs] for cell in nbformat.read(path, 4).cells]
    assert outputs("shown.ipynb") == outputs("plain.ipynb")
    assert [output["output_type"] for output in outputs("shown.ipynb")[2]] == [
        "stream", "display_data", "stream", "execute_result"]


def test_printing_and_complaining_stay_in_order(study):
    study("says", "x = 1", "import sys\nprint('a')\nprint('b', file=sys.stderr)\nprint('c')")
    assert run("says").returncode == 0
    said = [(output.name, output.text) for output in nbformat.read("says.ipynb", 4).cells[-1].outputs]
    assert said == [("stdout", "a\n"), ("stderr", "b\n"), ("stdout", "c\n")]


def test_a_failing_cell_ends_the_run_in_one_sentence_warm_or_not(study):
    study("fails", "x = 1", "raise ValueError(f'x is {x}')", "open('reached', 'w')")
    for answer in (run("fails", x=3), *_warmed(lambda: run("fails", x=3))):
        assert answer.returncode == 1
        assert answer.stderr.startswith("ssl-expr: experiments/fails failed: ValueError: x is 3")
        assert answer.stderr.count("\n") == 1 and not Path("reached").exists()


def _warmed(do):
    with warm(): return [do(), do()]


def test_warm_jobs_are_processes_of_one_parent_and_leave_nothing_to_each_other(study):
    study("mark", "x = 1", "import os, json, numpy, threading", "numpy.random.seed(x); seen = os.environ.get('MARK')",
          "os.environ['MARK'] = numpy.MARK = 'set' if not hasattr(numpy, 'MARK') else 'met'",
          "open(f'{x}.json', 'w').write(json.dumps([os.getpid(), os.getppid(), seen, numpy.MARK]));")
    with warm():
        for x in (1, 2): assert run("mark", x=x).returncode == 0
    first, second = (json.loads(Path(f"{x}.json").read_text()) for x in (1, 2))
    assert first[0] != second[0] and first[1] == second[1]
    assert first[2:] == second[2:] == [None, "set"]


def test_a_killed_job_ends_its_copy_too(study):
    study("sleeps", "x = 1", "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(600)")
    with warm():
        job = subprocess.Popen(command("sleeps"))
        assert until(lambda: Path("pid").exists() and Path("pid").read_text())
        copy = int(Path("pid").read_text())
        assert copy != job.pid and not ended(copy) and is_locked(Path("sleeps.lock"))
        job.kill(); job.wait()
        assert until(lambda: ended(copy)) and not is_locked(Path("sleeps.lock"))


def test_a_copy_that_is_killed_fails_its_job_with_a_sentence(study):
    study("dies", "x = 1", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with warm():
        answer = run("dies")
        assert answer.returncode == 1 and "notebook experiments/dies` was killed" in answer.stderr
        assert answer.stderr.count("\n") == 1
        study("lives", "x = 1")
        assert run("lives").returncode == 0, "one dead copy must not end the others"


def test_the_warm_process_ends_with_whoever_started_it(study):
    program = ("import os, time\nfrom ssl_expr.warm import SOCKET, warm\n"
               "with warm(): print(os.environ[SOCKET], flush=True); time.sleep(600)")
    starter = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    address = starter.stdout.readline().strip()
    def listening(): return [path for path in Path("/proc").glob("[0-9]*/cmdline") if _holds(path, address)]
    assert len(listening()) == 1
    starter.send_signal(signal.SIGKILL); starter.wait()
    assert until(lambda: not listening())


def _holds(path, text):
    try: return text.encode() in path.read_bytes()
    except OSError: return False


def test_without_a_warm_process_or_under_a_cluster_a_job_does_its_own_work(study, monkeypatch, tmp_path):
    study("alone", "x = 1", "import os\nopen('parent', 'w').write(str(os.getppid()));")
    monkeypatch.setenv(SOCKET, str(tmp_path/"gone"))
    assert ask(["list"]) is None
    assert run("alone").returncode == 0 and Path("parent").read_text() == str(os.getpid())
    monkeypatch.delenv(SOCKET)
    with warm():
        Path("parent").unlink()
        monkeypatch.setenv("SLURM_JOB_ID", "1")
        assert run("alone").returncode == 0 and Path("parent").read_text() == str(os.getpid())
        monkeypatch.delenv("SLURM_JOB_ID")
        assert run("alone").returncode == 0 and Path("parent").read_text() != str(os.getpid())


def test_a_job_that_had_helpers_of_its_own_ends_without_waiting_for_them(study):
    study("helpers", "from joblib import Parallel, delayed", "Parallel(n_jobs=2)(delayed(abs)(i) for i in range(4))")
    with warm():
        job = subprocess.Popen(command("helpers"))
        assert until(lambda: job.poll() is not None), "idle helpers of joblib live for five minutes"
        assert job.returncode == 0


def test_what_a_job_prints_and_its_exit_status_reach_the_caller(study):
    program = "import sys, ssl_expr.warm as warm; sys.exit(warm.ask(sys.argv[1:]))"
    def asked(*words): return subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    with warm():
        helped, refused = asked("status", "--help"), asked("statues")
        assert helped.returncode == 0 and helped.stdout.startswith("usage:") and not helped.stderr
        assert refused.returncode == 2 and "invalid choice" in refused.stderr and not refused.stdout
        words = [sys.executable, "-c", program, "fetch", "toy"]
        jobs = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(6)]
        said = {job.communicate()[0] for job in jobs}
    assert said == {"toy comes with the package: load it by its name\n"} and not any(job.returncode for job in jobs)


def test_nobody_else_may_reach_the_socket(study):
    with warm():
        assert Path(os.environ[SOCKET]).parent.stat().st_mode & 0o077 == 0
