# `make quick` and `make test` set up .venv by themselves; nothing is installed outside this folder.
PYTHON ?= python3
PROFILE ?= quick
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export OMP_NUM_THREADS ?= 1

.PHONY: quick study figures benchmarks test lessons tests check export lab clean

quick: .venv/installed       ## every figure and table from the embedded data set, in minutes
	ssl-expr run --profile quick

study: .venv/installed       ## the same at full length, overnight
	ssl-expr run --profile study

figures: .venv/installed     ## redraw from collected metrics: make figures PROFILE=study
	ssl-expr figures --profile $(PROFILE)

benchmarks: .venv/installed  ## how fast, how much memory, on this machine (half an hour; nothing else should run)
	for name in pretraining finetuning memory growth overhead accelerator; do \
	  ssl-expr notebook benchmarks/$$name results/benchmarks/$$name.ipynb || exit; done

test: check                  ## everything that must hold before a commit
	$(MAKE) lessons
	$(MAKE) tests

lessons: .venv/installed     ## run every notebook of the library
	nbdev-test --cell-timeout 7200

tests: .venv/installed       ## run every test, a file at a time on every core
	pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

check: .venv/installed       ## package in step with its notebooks, notebooks clean, style, types
	nbdev-export
	nbdev-clean
	git diff --exit-code -- nbs ssl_expr
	ruff check .
	mypy

export: .venv/installed      ## notebooks -> ssl_expr/
	nbdev-export
	nbdev-clean

# served from here, not from nbs/: notebooks show pictures that lie in figures/
lab: .venv/installed         ## read and run the notebooks
	jupyter lab --LabApp.default_url=/lab/tree/nbs/index.ipynb

.venv/installed: settings.ini setup.py   # not pyproject.toml: nbdev-export touches it
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet $(PIP_OPTIONS) --editable '.[dev]'
	touch $@

clean:                       ## remove results and the environment, keep figures
	rm -rf results .venv .snakemake
