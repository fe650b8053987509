"""Made-up collected tables, as a study writes them, for trying figures without a study."""
import json
from pathlib import Path

import numpy as np
import pandas as pd

from ssl_expr.collect import over_best
from ssl_expr.evaluate import label_curves, resample
from ssl_expr.report import LOWER_IS_BETTER, METRIC_WORDS

METHODS = ("scarf", "vime", "byol", "byol-200")
BASELINES = ("logistic-genes", "logistic-pca", "boosted-trees")
LEVEL = {"scarf": 0.06, "vime": 0.02, "byol": 0.0, "byol-200": 0.03, "scarf-short": 0.04, "scarf-marginal": 0.01,
         "scratch": -0.02, "logistic-genes": 0.03, "logistic-pca": -0.04, "boosted-trees": -0.1}
FEW = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
FULL = (0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.12, 0.14, 0.16, 0.18, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0)
TIMES = dict(n_splits=3, n_repeats=3, n_test=1029)


def facts(dataset, label, classes, pretrain, train, validation, test, protocol="strict", n_genes=2000):
    n = pretrain + test
    return dict(dataset=dataset, label=label, protocol=protocol, split=0, classes=list(classes), n_genes=n_genes,
                rows=dict(pretrain=pretrain, train=train, validation=validation, test=test), units="counts",
                n_samples=n, n_patients=n - 40)


MAIN = facts("tcga-mirna", "cancer_type", [f"C{i:02}" for i in range(19)], 7138, 880, 130, 1029)
PARTS = {"organs": facts("rnaseqdb", "organ", [f"organ {i}" for i in range(14)], 5900, 700, 100, 1000),
         "tcga-to-gtex": facts("rnaseqdb", "organ", [f"organ {i}" for i in range(10)], 4100, 600, 90, 800),
         "gtex-to-tcga": facts("rnaseqdb", "organ", [f"organ {i}" for i in range(10)], 2600, 600, 90, 1500),
         "unseen-cohorts": facts("tcga-mirna", "cancer_type", [f"D{i}" for i in range(6)], 6800, 300, 40, 350),
         "colorectal": facts("coadread", "subtype", ["CIN", "GS", "MSI"], 500, 287, 72, 90)}
SHORTCUTS = ("split-by-sample", "fit-on-everything", "test-selection", "unlike-optimisers")


def value(arm, mode, metric, fraction, rng, noise=0.004):
    "A score that rises with the labels; less so without pretraining, and for a linear model."
    head_start = LEVEL.get(arm, 0.02)
    score = 0.93 - 0.22*(fraction**-0.35 - 1)/3*(1 - 4*head_start) - (0.12 if mode == "frozen" else 0)
    if arm.startswith("logistic"): score -= 0.015*np.sqrt(fraction)
    score = float(np.clip(score + rng.normal(0, noise), 0.02, 0.99))
    return {"log_loss": 3*(1 - score), "calibration_error": 0.5*(1 - score), "auroc": 0.5 + score/2}.get(metric, score)


def curves(methods, fractions, n_train, seed, protocol="strict", modes=("unfrozen", "frozen"), shift=0.0):
    rng, rows = np.random.default_rng(seed), []
    named = [(arm, mode) for arm in (*methods, "scratch") for mode in modes] + [(arm, "baseline") for arm in BASELINES]
    for metric in METRIC_WORDS:
        for arm, mode in named:
            for fraction in fractions:
                mean = value(arm, mode, metric, fraction, rng) + shift
                half = 0.008 + 0.01*(1 - fraction)
                rows.append(dict(protocol=protocol, arm=arm, mode=mode, metric=metric, fraction=fraction,
                                 n_labels=round(fraction*n_train), mean=mean, low=mean - half, high=mean + half*0.8))
    return pd.DataFrame(rows).assign(**TIMES, n_pretrain=7138)


def differences(table):
    parts = []
    for reference in ("scratch", *BASELINES):
        mode = "unfrozen" if reference == "scratch" else "baseline"
        theirs = table[(table["arm"] == reference) & (table["mode"] == mode)]
        both = table.merge(theirs[["protocol", "metric", "fraction", "mean"]], suffixes=("", "_theirs"),
                           on=["protocol", "metric", "fraction"])
        both = both[(both["arm"] != reference) | (both["mode"] != mode)]
        gap = both["mean"] - both["mean_theirs"]
        half = 0.01 + 0.008*(1 - both["fraction"])
        parts.append(both.assign(reference=reference, difference=gap, low=gap - half, high=gap + half))
    found = pd.concat(parts, ignore_index=True)
    good = np.where(found["metric"].isin(LOWER_IS_BETTER), -1, 1)
    low, high = (found[["low", "high"]].mul(good, axis=0).agg(side, axis=1) for side in ("min", "max"))
    found["verdict"] = np.select([low > 0, high < 0], ["better", "worse"], "tie")
    return found[["protocol", "arm", "mode", "reference", "metric", "fraction", "n_labels", "difference", "low", "high",
                  "verdict"]]


def savings(table, rng):
    keys = table[["protocol", "arm", "mode", "metric"]].drop_duplicates()
    rows = []
    for reference in ("scratch", *BASELINES):
        for target in ("best", "best minus interval"):
            for key in keys[keys["arm"] != reference].to_dict("records"):
                share = 0.3 + 4*LEVEL.get(key["arm"], 0) + (0.15 if target != "best" else 0) + rng.normal(0, 0.05)
                share = np.nan if share < 0.15 else share
                rows.append(key | dict(reference=reference, target=target, saved=share, low=share - 0.3,
                                       high=min(share + 0.2, 0.97)))
    return pd.DataFrame(rows)


def shortcuts(methods, fractions, rng, n_train, parts=SHORTCUTS):
    rows = []
    for number, part in enumerate(parts if methods else ()):
        for metric in METRIC_WORDS:
            for arm in ("scratch", *methods, *BASELINES, *(f"{method} − scratch" for method in methods)):
                mode = "baseline" if arm in BASELINES else "unfrozen"
                if number > 1 and arm in BASELINES: continue   # these shortcuts do not concern a linear model
                for fraction in fractions:
                    gap, half = rng.normal(0.01*number, 0.01), 0.015
                    verdict = "better" if gap > half else "worse" if gap < -half else "tie"
                    rows.append(dict(part=part, against="honest", protocol="strict", arm=arm, mode=mode, metric=metric,
                                     fraction=fraction, n_labels=round(fraction*n_train), score=0.9 + gap,
                                     score_against=0.9, difference=gap, low=gap - half, high=gap + half,
                                     verdict=verdict, paired=number > 0, n_splits=3, n_repeats=2))
    columns = ["part", "against", "protocol", "arm", "mode", "metric", "fraction", "n_labels", "score",
               "score_against", "difference", "low", "high", "verdict", "paired", "n_splits", "n_repeats"]
    return pd.DataFrame(rows, columns=columns)


def along_the_curve(table):
    "Means of a table of shortcuts over shares, as the study averages them in every resample."
    keys = ["part", "against", "protocol", "arm", "mode", "metric", "paired"]
    averaged = ["difference", "low", "high"]
    return pd.concat([table[table["fraction"] <= upto].groupby(keys, as_index=False)[averaged].mean().assign(
        upto=upto, verdict="tie", n_splits=3, n_repeats=2) for upto in (0.1, 1.0)], ignore_index=True)


def questions(methods, depths=(2, 4, 7, 10), widths=(256, 1024), rates=(0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9),
              sizes=(100, 250, 500, 1000, 2000, 3500, 5000, 7138)):
    "Tables of Figs. 4, 5, S5 and Table S4."
    rng, keys = np.random.default_rng(5), dict(protocol="strict", mode="unfrozen", metric="balanced_accuracy")
    times = dict(n_splits=1, n_repeats=3)
    def around(value, half=0.012): return dict(mean=value, low=value - half, high=value + half)
    gains, spectra, rises, rotten, shapes = [], [], [], [], []
    for depth in depths:
        for width in widths:
            for arm in (*methods, "scratch"):
                gain = LEVEL[arm]*np.log(depth) + rng.normal(0, 0.01) - (0.03 if arm == "vime" and width > 256 else 0)
                gains.append(keys | times | dict(arm=arm, depth=depth, width=width, gain=gain, low=gain - 0.015,
                                                 high=gain + 0.012))
                value = np.exp(-np.linspace(0, 6 + 8*(arm == "vime") + depth/2*(arm == "scarf"), width))
                spectra.append(pd.DataFrame(dict(depth=depth, width=width, index=np.arange(1, width + 1),
                                                 singular_value=3*value, arm=arm)))
        shapes += [keys | times | around(0.9 + rng.normal(0, 0.01)) | dict(
            depth=depth, width=width, dropout=dropout, fraction=1.0, n_labels=880, n_test=130, arm=np.nan)
            for width in widths for dropout in (0.0, 0.2, 0.5)]
    for size in sizes:
        rises += [keys | times | around(0.85 + LEVEL[arm]*(np.log10(size) - 2.8)) | dict(arm=arm, n_pretrain=size)
                  for arm in methods]
    rises += [keys | times | around(0.84) | dict(arm="scratch", n_pretrain=0)]
    rises += [keys | times | around(0.86 + 0.01*i) | dict(arm=arm, n_pretrain=0, mode="baseline")
              for i, arm in enumerate(("logistic-genes", "logistic-pca"))]
    for rate in rates:
        for number, replacement in enumerate(("marginal", "uniform")):
            for arm in (np.nan, "logistic-genes"):
                falls = 0.93 - 0.1*rate**2*(1 + number) - (0.02 if arm == arm else 0) + rng.normal(0, 0.003)
                rotten.append(keys | times | around(falls) | dict(
                    replacement=replacement, corruption_rate=rate, arm=arm, fraction=1.0, n_labels=880, n_test=1029,
                    mode="baseline" if arm == arm else "unfrozen"))
    few = dict(fraction=0.1, n_labels=88, n_test=1029)
    return dict(architecture=pd.DataFrame(gains).query("arm != 'scratch'"), spectra=pd.concat(spectra),
                pretraining_size=pd.DataFrame(rises).assign(**few), corruption=pd.DataFrame(rotten),
                grid=pd.DataFrame(shapes))


def tables(methods=METHODS, fractions=FULL, few=FEW, parts=PARTS, shortcut_methods=("scarf-short",)):
    "Every table that figures of label curves, differences, savings and shortcuts read; by name."
    main = pd.concat([curves(methods, fractions, 880, seed, protocol, shift=0.01*seed)
                      for seed, protocol in enumerate(["strict", "paper"])])
    by_part = {"main": main} | {name: curves(methods[:3], few, known["rows"]["train"], 9 + i).assign(
        n_pretrain=known["rows"]["pretrain"]) for i, (name, known) in enumerate(parts.items())}
    if shortcut_methods:
        by_part |= {name: curves(shortcut_methods, few, 880, 30 + i, modes=("unfrozen",))
                    for i, name in enumerate(("honest", *SHORTCUTS))}
    rng = np.random.default_rng(1)
    def joined(make): return pd.concat([make(table).assign(part=name) for name, table in by_part.items()])
    found = dict(label_curve=joined(lambda table: table), difference=joined(differences),
                 labels_saved=joined(lambda table: savings(table, rng)),
                 protocols=main.drop(columns="n_pretrain").assign(part="main"),
                 replacement=curves(("scarf", "scarf-marginal"), fractions, 880, 7).query(
                     "mode != 'baseline'").assign(part="main"))
    found = {name: table[["part", *table.columns.drop("part")]] for name, table in found.items()}
    taken = shortcuts(shortcut_methods, (0.05, 0.2, 1.0), rng, 880)
    change = shortcuts(methods, fractions, rng, 880, parts=("main",)).assign(
        against="strict protocol", protocol="paper", paired=False)
    curve = found["label_curve"]
    epochs = curve.loc[curve["mode"] == "unfrozen", ["part", "protocol", "arm", "mode", "fraction"]].drop_duplicates()
    return found | dict(shortcuts=taken, shortcut_means=along_the_curve(taken), protocol_change=change,
                        protocol_change_means=along_the_curve(change),
                        kept_epochs=epochs.assign(epoch=97.0, most=100))


SIMPLE = ("logistic-genes", "logistic-pca100", "boosted-trees")
WORTH = {("unmixing", "self-training-C0.1"): 2.5, ("unmixing", "linear probe"): 1.4, ("scarf", "linear probe"): 0.5,
         ("scarf", "self-training-C0.1"): 0.7, ("byol", "linear probe"): 0.35, ("vime", "linear probe"): 0.2,
         ("logistic-pca100", "baseline"): 1.0, ("logistic-genes", "baseline"): 0.8, ("boosted-trees", "baseline"): 0.2}


def against_the_best(worth=WORTH, fractions=FEW, n_labels=1000, n_test=300, n_classes=6):
    "Tables of a study in which a label is worth `worth` labels to each arm and mode: made-up predictions, scored."
    rng, frames = np.random.default_rng(0), []
    truth, hard = rng.integers(0, n_classes, 1000), rng.normal(size=1000)
    for split in range(2):
        tested = rng.permutation(1000)[:n_test]
        for fraction in fractions:
            for repeat in range(2):
                luck = 0.1*rng.normal(size=n_test)
                for (arm, mode), times in worth.items():
                    skill = 0.1 + 0.75*np.log10(fraction*times*n_labels/20 + 1) + 0.03*rng.normal()
                    right = hard[tested] + luck + 0.2*rng.normal(size=n_test) < skill
                    frames.append(pd.DataFrame(dict(
                        protocol="strict", split=split, arm=arm, mode=mode, fraction=fraction, repeat=repeat,
                        n_labels=round(fraction*n_labels), sample=tested, patient=[f"P{i}" for i in tested],
                        truth=truth[tested], called=np.where(right, truth[tested], (truth[tested] + 1) % n_classes),
                        log_loss=0.5, confidence=0.9, auroc=0.8)))
    drawn = resample(pd.concat(frames, ignore_index=True), n_resamples=200)
    simple = [arm for arm, mode in worth if mode == "baseline"]
    found = dict(label_curve=label_curves(drawn).assign(n_pretrain=7138), **over_best(drawn, simple))
    return {name: table.assign(part="main")[["part", *table]] for name, table in found.items()}


def write(folder, found, parts=PARTS, main=MAIN, profile="study"):
    "Write tables as the study does, with the origin of each collection."
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in found.items():
        table.to_csv(folder/f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")
    own = {part: main for part in found["label_curve"]["part"].unique() if part != "main"} | parts
    origin = dict(profile=profile, dataset=main["dataset"], fingerprint="f00d", data=main,
                  parts={part: dict(dataset=known["dataset"], data=known) for part, known in own.items()},
                  runs=[dict(target=f"results/{profile}/a.parquet")])
    for name in ("curves", "best", "shortcuts", "architectures", "pretraining_sizes", "corruption", "grid"):
        (folder/f"{name}.json").write_text(json.dumps(origin))
