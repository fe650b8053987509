"""One results folder, several machines: only one of them runs a study, also where the file system keeps locks apart."""
import errno
import fcntl
import os
import subprocess
import sys
import time
from threading import Timer

import pytest

from ssl_expr import execute
from ssl_expr.execute import alone, locked

HOLDER = """
import sys
from pathlib import Path
from ssl_expr import execute
execute._machine = lambda: sys.argv[2]
with execute.alone(Path(sys.argv[1]), "In use.", beat=0.5):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def lock(tmp_path): return tmp_path/"run.lock"


@pytest.fixture
def another(lock):
    "A process of another machine that holds the lock."
    with subprocess.Popen([sys.executable, "-c", HOLDER, lock, "another"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def take(lock):
    with alone(lock, "In use.", beat=0.5): return True


def test_a_lock_that_reaches_both_machines_is_enough(lock, another):
    with pytest.raises(RuntimeError, match="^In use.$"): take(lock)
    another.kill(); another.wait()
    with pytest.raises(RuntimeError, match="if that has crashed, try again in"): take(lock)


def test_where_locks_do_not_reach_the_signature_tells_who_is_at_work_until_it_is_old(lock, another, monkeypatch):
    monkeypatch.setattr(execute.fcntl, "flock", lambda *_: None)
    for _ in range(4):   # longer than a machine may be silent: this one is not
        with pytest.raises(RuntimeError, match="In use. It is on .*, seen 0 s ago"): take(lock)
        time.sleep(0.7)
    another.kill(); another.wait()
    with pytest.raises(RuntimeError, match="In use"): take(lock)
    time.sleep(2.5)
    assert take(lock)


def test_on_the_same_machine_a_crash_frees_the_lock_at_once(lock):
    with subprocess.Popen([sys.executable, "-c", HOLDER, lock, execute._machine()], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        with pytest.raises(RuntimeError, match="^In use.$"): take(lock)
        process.kill(); process.wait()
        assert lock.read_text() and take(lock) and lock.read_text() == ""


def test_a_study_at_work_on_another_machine_is_not_run_here(study_copy):
    place = study_copy.folder/"results/tiny/run.lock"
    place.parent.mkdir(parents=True)
    place.write_text("far\nanother")
    answer = study_copy.command("run", "--profile", "tiny")
    assert answer.returncode == 1 and "is at work" in answer.stderr and "It is on far" in answer.stderr
    assert place.read_text() == "far\nanother" and not (place.parent/"snakemake.log").exists()


def test_a_file_system_without_locks_is_named(lock, monkeypatch):
    def refuse(*_): raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    monkeypatch.setattr(execute.fcntl, "flock", refuse)
    with pytest.raises(OSError, match="run.lock cannot be locked .* choose another folder"): take(lock)


def test_whoever_only_asks_does_not_stand_in_the_way(lock):
    asking = open(lock, "a")
    fcntl.flock(asking, fcntl.LOCK_EX)
    Timer(0.05, asking.close).start()
    with locked(lock, "In use."): pass
