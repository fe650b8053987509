# The study as a workflow: experiment notebooks -> collected tables -> figure notebooks.
# ssl_expr.study unfolds a profile into runs, with their parameters and files; this file only says how each kind is made.
# Use it through `ssl-expr run --profile quick`, or directly: snakemake --config profile=quick --cores 2
import json
import os
import sys
from pathlib import Path

from ssl_expr.study import COLLECTIONS, TARGETS, Plan, code_behind, figures, read_profile, tables_read

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads under competition make a small training step 30 times slower

PROFILE = config.get("profile", "quick")
PLAN = Plan(PROFILE, read_profile(PROFILE))
DATA, FIGURES = f"figures/data/{PROFILE}", f"figures/{PROFILE}"
KINDS = ["svg", "png", "csv", "md", "json"]
COMMAND = f"{sys.executable} -m ssl_expr.cli"
BESIDE = {"pretrain": ["history.csv"], "architectures": ["spectra.csv"]}  # what an experiment makes beside its target
COLLECTION_OF = {table: name for name, (tables, _) in COLLECTIONS.items() for table in tables}


rule all:
    input:
        expand(f"{FIGURES}/{{figure}}.{{kind}}", figure=figures(), kind=KINDS),
        expand(f"{DATA}/{{table}}.csv", table=COLLECTION_OF),


# one rule for each experiment notebook
for experiment, target in TARGETS.items():

    rule:
        name: experiment
        input:
            code_behind(f"experiments/{experiment}"),
            needs=lambda wildcards, target=target: PLAN.runs[f"results/{wildcards.folder}/{target}"].needs,
        output:
            f"results/{{folder}}/{target}",
            f"results/{{folder}}/{Path(target).stem}.json",
            [f"results/{{folder}}/{name}" for name in BESIDE.get(experiment, [])],
        log:
            f"results/{{folder}}/{experiment}.ipynb",
        params:
            values=lambda wildcards, target=target: json.dumps(PLAN.runs[f"results/{wildcards.folder}/{target}"].parameters),
            notebook=f"experiments/{experiment}",
        shell:
            f"{COMMAND} notebook {{params.notebook}} {{log}} {{params.values:q}}"


# one rule for each group of collected tables
for collection, (tables, experiments) in COLLECTIONS.items():

    rule:
        name: f"collect_{collection}"
        input:
            "ssl_expr/collect.py",
            "ssl_expr/evaluate.py",
            [run.target for run in PLAN.of(*experiments)],
        output:
            expand(f"{DATA}/{{table}}.csv", table=tables),
            f"{DATA}/{collection}.json",
        params:
            collection=collection,
            arms=json.dumps(PLAN.profile if collection == "settings" else sorted({run.arm for run in PLAN.of(*experiments)})),
            compared=json.dumps([PLAN.profile["replacement_arms"], PLAN.profile["baselines"]] if collection == "curves" else []),
        shell:
            f"{COMMAND} collect {{params.collection}} --profile {PROFILE}"


rule figure:
    input:
        lambda wildcards: code_behind(f"figures/{wildcards.figure}"),
        lambda wildcards: [f"{DATA}/{table}.csv" for table in tables_read(wildcards.figure)],
        lambda wildcards: sorted({f"{DATA}/{COLLECTION_OF[table]}.json" for table in tables_read(wildcards.figure)}),
    output:
        expand(f"{FIGURES}/{{{{figure}}}}.{{kind}}", kind=KINDS),
    log:
        f"results/{PROFILE}/figures/{{figure}}.ipynb",
    params:
        values=json.dumps(dict(profile=PROFILE, data=DATA, folder=FIGURES)),
    shell:
        f"{COMMAND} notebook figures/{{wildcards.figure}} {{log}} {{params.values:q}}"
