# The study as a workflow: experiment notebooks -> kept runs -> collected tables -> figure notebooks.
# ssl_expr.study unfolds a profile into runs, with their parameters and files; this file only says how each kind is made.
# Use it through `ssl-expr run --profile quick`, or directly: snakemake --config profile=quick --cores 2
import json
import os
import re
import sys
from functools import cache
from math import ceil
from pathlib import Path

from ssl_expr.cost import Cost, expected
from ssl_expr.keep import kept_path
from ssl_expr.study import BESIDE, COLLECTIONS, TARGETS, Plan, code_behind, collections, figures, parts_in
from ssl_expr.study import read_profile, runs_behind, simple_models, tables_read

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads under competition make a small training step 30 times slower

PROFILE = config.get("profile", "quick")
PLAN = Plan(PROFILE, read_profile(PROFILE))
DATA, FIGURES = f"figures/data/{PROFILE}", f"figures/{PROFILE}"
KINDS = ["svg", "png", "csv", "md", "json"]
COMMAND = f"{sys.executable} -m ssl_expr.cli"
MADE = collections(PLAN)
COLLECTION_OF = {table: name for name in MADE for table in COLLECTIONS[name].tables}
TO_MAKE = PLAN.to_make()
FEW = Cost(120, 900, 1)  # of making tables: more than any took in the study


@cache
def costs():
    "What each run to be made is expected to take, by target (chapter *cost*)."
    return expected(PLAN)


def request(target=""):
    "What a job asks a cluster for: three times what its run should take, more at each attempt; a GPU for device `cuda`."
    def run(wildcards): return f"results/{PROFILE}/{wildcards.folder}/{target}"
    def cost(wildcards): return costs().get(run(wildcards), FEW) if target else FEW
    def uses_gpu(wildcards): return PLAN.runs[run(wildcards)].parameters.get("device") == "cuda"

    return dict(
        runtime=lambda wildcards, attempt: attempt*(10 + ceil(cost(wildcards).cpu_seconds/20)),  # minutes
        mem_mb=lambda wildcards, attempt: attempt*(500 + ceil(1.5*cost(wildcards).memory_mb)),   # 500 for Snakemake
        **dict(gpu=lambda wildcards: 1 if uses_gpu(wildcards) else None) if target else {})


def products(runs):
    "What a reader of runs waits for: what is kept of them and of all they rest on, else the files they make."
    if not PLAN.profile["keep"]: return [run.target for run in runs]
    return [str(kept_path(run.target).with_suffix(".json")) for run in PLAN.with_needs(runs)]


def folders(runs):
    "A pattern for the folders of these runs: what is kept, and at hand, is no rule's business."
    return "|".join(re.escape(str(Path(run.target).parent.relative_to(f"results/{PROFILE}"))) for run in runs) or "(?!)"


rule all:
    input:
        expand(f"{FIGURES}/{{figure}}.{{kind}}", figure=figures(PLAN), kind=KINDS),
        expand(f"{DATA}/{{table}}.csv", table=COLLECTION_OF),
        products(PLAN.runs.values()),


# two rules for each experiment notebook: do the run, and keep what is worth it
for experiment, target in TARGETS.items():
    if not PLAN.of(experiment): continue

    rule:
        name: experiment
        input:
            code_behind(f"experiments/{experiment}"),
            needs=lambda wildcards, target=target: PLAN.runs[f"results/{PROFILE}/{wildcards.folder}/{target}"].needs,
        output:
            f"results/{PROFILE}/{{folder}}/{target}",
            f"results/{PROFILE}/{{folder}}/{Path(target).stem}.json",
            [f"results/{PROFILE}/{{folder}}/{name}" for name in BESIDE.get(experiment, [])],
        log:
            f"results/{PROFILE}/{{folder}}/{experiment}.ipynb",
        wildcard_constraints:
            folder=folders(run for run in TO_MAKE if run.experiment == experiment),
        params:
            values=lambda wildcards, target=target: json.dumps(
                PLAN.runs[f"results/{PROFILE}/{wildcards.folder}/{target}"].parameters),
            notebook=f"experiments/{experiment}",
        threads: 1
        resources:
            **request(target),
        shell:
            f"{COMMAND} notebook {{params.notebook}} {{log}} {{params.values:q}}"

    rule:
        name: f"keep_{experiment}"
        input:
            f"results/{PROFILE}/{{folder}}/{target}",
        output:
            f"{DATA}/runs/{{folder}}/{Path(target).stem}.json",
            [f"{DATA}/runs/{{folder}}/{name}" for name in PLAN.of(experiment)[0].kept],
        wildcard_constraints:
            folder=folders(run for run in PLAN.of(experiment) if not PLAN.kept(run)),
        priority: 1
        localrule: True
        shell:
            f"{COMMAND} keep {{input}} --profile {PROFILE}"


# one rule for each group of collected tables
for collection in MADE:

    rule:
        name: f"collect_{collection}"
        input:
            "ssl_expr/collect.py",
            [f"ssl_expr/{module}.py" for module in ("metrics", "evaluate", "savings", "phenotypes", "survival")],
            products(runs_behind(collection, PLAN)),
        output:
            expand(f"{DATA}/{{table}}.csv", table=COLLECTIONS[collection].tables),
            f"{DATA}/{collection}.json",
        params:
            collection=collection,
            arms=json.dumps(PLAN.profile if collection == "settings" else sorted({
                (part, run.arm) for part in parts_in(collection, PLAN)
                for run in PLAN.of(*COLLECTIONS[collection].experiments, part=part)})),
            compared=json.dumps([[own["replacement_arms"], simple_models(own), own["against"]]
                                 for own in map(PLAN.parts.get, parts_in(collection, PLAN))]
                                if collection in ("curves", "best", "shortcuts") else []),
        threads: 1
        resources:
            **request(),
        shell:
            f"{COMMAND} collect {{params.collection}} --profile {PROFILE}"


rule figure:
    input:
        lambda wildcards: code_behind(f"figures/{wildcards.figure}"),
        lambda wildcards: [f"{DATA}/{table}.csv" for table in tables_read(wildcards.figure, PLAN)],
        lambda wildcards: sorted({f"{DATA}/{COLLECTION_OF[table]}.json" for table in tables_read(wildcards.figure, PLAN)}),
    output:
        expand(f"{FIGURES}/{{{{figure}}}}.{{kind}}", kind=KINDS),
    log:
        f"results/{PROFILE}/figures/{{figure}}.ipynb",
    params:
        values=json.dumps(dict(profile=PROFILE, data=DATA, folder=FIGURES)),
    localrule: True
    shell:
        f"{COMMAND} notebook figures/{{wildcards.figure}} {{log}} {{params.values:q}}"
