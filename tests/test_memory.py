"""Freed memory is kept while training lasts, and given back afterwards."""
import ctypes
import json
import subprocess
import sys

import pytest

from ssl_expr.memory import kept_memory

PROGRAM = """
import json, resource, torch
from pathlib import Path
from ssl_expr.memory import kept_memory

def faults(steps=20, size=2**24):
    for step in range(2*steps):
        if step == steps: before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident(): return int(Path("/proc/self/statm").read_text().split()[1])*4096

outside, start = faults(), resident()
with kept_memory(): inside, held = faults(), resident()
left = resident() - start
print(json.dumps([outside, inside, held - start, left, max(faults(size=size) for size in (2**18, 2**21, 5*2**20))]))
"""


def on_glibc():
    try: return bool(ctypes.CDLL(None).gnu_get_libc_version)
    except (OSError, AttributeError, TypeError): return False


@pytest.mark.skipif(not on_glibc(), reason="only glibc has the switches")
def test_steps_of_training_fault_no_pages_and_give_the_memory_back_at_the_end():
    answer = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    outside, inside, held, left, after = json.loads(answer.stdout)
    assert outside >= 20*16_384, "blocks of 64 MB should be new pages every time"
    assert inside < outside/100
    assert held > 50e6 and left < 20e6
    assert after < 1000, "blocks of 1 to 20 MB must not become slower than before"


@pytest.mark.parametrize("library", [OSError, object()])
def test_elsewhere_nothing_happens(monkeypatch, library):
    def load(name):
        if library is OSError: raise OSError
        return library
    monkeypatch.setattr(ctypes, "CDLL", load)
    with kept_memory(): done = True
    assert done


def test_an_error_inside_comes_out():
    with pytest.raises(ValueError, match="inside"), kept_memory(): raise ValueError("inside")
