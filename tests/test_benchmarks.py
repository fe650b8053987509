"The benchmark notebooks run at toy size; what they measure is for their tables, never for a test."
import json

import pandas as pd
import pytest

from ssl_expr.cli import execute
from ssl_expr.run import repository

TOY = {
    "pretraining": dict(genes=[60], n_samples=64, repeats=1),
    "finetuning": dict(genes=[60], sweep_genes=[60], n_labelled=120, n_classes=3, fractions=2, heads_timed=2,
                       repeats=1),
    "memory": dict(n_genes=60, n_samples=64, epochs=[1, 2]),
    "growth": dict(samples=[32, 64], genes=[20, 40], few_genes=20, few_samples=32),
    "accelerator": dict(shapes={"made-up": [32, 20]}, without={"made-up": [32, 20]}, epochs=[1, 2]),
}


@pytest.mark.parametrize("name", TOY)
def test_a_benchmark_runs_and_writes_its_table_and_its_hardware(name, tmp_path):
    done = execute(f"benchmarks/{name}", str(tmp_path/"out.ipynb"), TOY[name] | dict(folder=str(tmp_path)))
    assert done.returncode == 0, done.stderr
    table, record = pd.read_csv(tmp_path/f"{name}.csv"), json.loads((tmp_path/f"{name}.json").read_text())
    assert len(table) and record["drawn_with"]["hardware"]["processor"]
    assert "Hardware: " in (tmp_path/f"{name}.md").read_text()


def test_every_benchmark_is_run_by_one_command():
    names = {path.stem for path in (repository()/"nbs"/"benchmarks").glob("*.ipynb")}
    assert names == {*TOY, "loading", "overhead"}
    makefile = (repository()/"Makefile").read_text()
    run = makefile.partition("for name in ")[2].partition(";")[0].split()
    assert {*run} == names - {"loading"}   # which needs files from outside
