"""Why a pretext task works: measures against brute force, no help from held-out rows, the experiment at toy size."""
import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import NearestCentroid
from test_report import draw

from ssl_expr.anatomy import (
    centroid_accuracy,
    class_separation,
    correlation,
    forecasts,
    giveaway,
    out_of_step,
    pca_rebuilder,
    rebuilder,
    recovery,
)
from ssl_expr.collect import QUANTILES, anatomy
from ssl_expr.nets import embed, seeded, standardised
from ssl_expr.objective import build
from ssl_expr.prepare import prepare
from ssl_expr.pretrain import pretrain, train_encoder
from ssl_expr.run import declared
from ssl_expr.storage import tensor_digest
from ssl_expr.study import DEFAULTS, Plan, collections, figures, runs_behind

TRAIN, ASKED = np.arange(300), np.arange(300, 500)


def programs(n=500, seed=0, noise=0.5):
    "Eight programs of six genes that move together."
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 8, generator=generator).repeat_interleave(6, 1) + noise*torch.randn(
        n, 48, generator=generator)


# ------------------------------------------------------------------------------------- what is rebuilt

def test_a_perfect_rebuilder_recovers_everything_and_one_that_only_guesses_nothing():
    X = programs()
    noise = torch.randn(200, 48, generator=torch.Generator().manual_seed(9))
    found = recovery({"truth": lambda x: X[ASKED], "noise": lambda x: 3 + noise, "constant": lambda x: 0*x + 7.0},
                     X, ASKED, TRAIN, [0.3, 0.6])
    middle = found.groupby(["by", "rate"])["correlation"].median()
    assert (found.query("by == 'truth'")["correlation"] - 1).abs().max() < 1e-6
    assert middle["noise"].abs().max() < 0.05
    assert found.query("by == 'constant'")["correlation"].isna().all()


def test_only_the_entries_of_the_donor_count():
    X = programs()
    left_alone = recovery({"hole": lambda x: x}, X, ASKED, TRAIN, [0.2])["correlation"]
    assert abs(left_alone.median()) < 0.1, "what was never replaced was counted as recovered"


def test_correlations_equal_those_of_numpy_gene_by_gene():
    a, b = programs(60, 1), programs(60, 2) + programs(60, 1)
    mask = torch.rand(60, 48, generator=torch.Generator().manual_seed(0)) < 0.3
    mask[2:, 5] = False
    found = correlation(a, b, mask)
    for gene in range(48):
        if gene == 5: assert found[gene].isnan(), "two entries make no correlation"
        else:
            want = np.corrcoef(a[mask[:, gene], gene], b[mask[:, gene], gene])[0, 1]
            assert found[gene].item() == pytest.approx(want, abs=1e-6)


def test_every_rebuilder_is_shown_the_same_mixtures_and_donors_are_training_rows():
    X, shown = programs(), []
    def keep(x): shown.append(x.clone()); return x
    recovery({"one": keep, "two": keep}, X, ASKED, TRAIN, [0.5], seed=3)
    assert torch.equal(*shown)
    foreign = shown[0] != X[ASKED]
    assert foreign.sum(1).tolist() == [24]*200
    for mixed, mask in zip(shown[0], foreign, strict=True):
        assert (X[TRAIN][:, mask] == mixed[mask]).all(1).any()
    with pytest.raises(ValueError, match="row 299 is asked and may be a donor"):
        recovery({"one": keep}, X, np.arange(299, 310), TRAIN, [0.5])


def test_pca_finds_what_lies_in_its_plane():
    plane = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) @ torch.randn(3, 48)
    clean = pca_rebuilder(plane[TRAIN], 3)(plane[ASKED])
    torch.testing.assert_close(clean, plane[ASKED], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method, rebuilds", [
    ("unmixing", True), ("denoising", True), ("vime", True), ("scarf", False), ("barlow-twins", False)])
def test_objectives_that_rebuild_are_asked_and_others_are_not(method, rebuilds):
    with seeded(0): made = rebuilder(build(method, 48, width=8, depth=1))
    assert (made is not None) == rebuilds
    if made: assert made(programs(5)).shape == (5, 48)


# ------------------------------------------------------------------------------------- what gives a gene away

def test_a_forecast_is_the_ridge_regression_of_a_gene_on_all_others():
    X = programs().double()
    mean, inverse = forecasts(X[TRAIN], penalty=0.5)
    found = out_of_step(X[ASKED], mean, inverse)
    for gene in (0, 17, 47):
        others = np.delete(np.arange(48), gene)
        ridge = Ridge(alpha=0.5*299).fit(X[TRAIN][:, others], X[TRAIN][:, gene])
        missed = np.abs(X[ASKED][:, gene].numpy() - ridge.predict(X[ASKED][:, others]))
        np.testing.assert_allclose(found[:, gene], missed*float(inverse[gene, gene])**0.5, rtol=1e-8)


@pytest.mark.parametrize("seed", [0, 1])
def test_each_replacement_leaves_fewer_shortcuts_and_a_donor_of_one_half_none(seed):
    found = giveaway(programs(seed=seed), TRAIN, ASKED, ["uniform", "marginal", "donor"], [0.2, 0.5], seed)
    auroc = found.set_index(["detector", "replacement", "rate"])["auroc"]
    for rate in (0.2, 0.5):
        assert auroc["others", "uniform", rate] > auroc["others", "marginal", rate] > auroc["others", "donor", rate]
        assert auroc["alone", "uniform", rate] > 0.6
        for replacement in ("marginal", "donor"): assert abs(auroc["alone", replacement, rate] - 0.5) < 0.05
    assert auroc["others", "donor", 0.2] > 0.6 and abs(auroc["others", "donor", 0.5] - 0.5) < 0.05


def test_detectors_and_replacements_know_training_rows_only():
    X, elsewhere = programs(700), programs(700)
    elsewhere[500:] = 99.0
    asked = [["uniform", "marginal", "donor"], [0.3]]
    pd.testing.assert_frame_equal(giveaway(X, TRAIN, ASKED, *asked), giveaway(elsewhere, TRAIN, ASKED, *asked))


@pytest.mark.parametrize("rate", [0.0, 0.01, 1.0])
def test_a_rate_that_leaves_nothing_to_tell_apart_is_refused(rate):
    with pytest.raises(ValueError, match="choose rates between 0 and 1"):
        giveaway(programs(), TRAIN, ASKED, ["donor"], [rate])


# ------------------------------------------------------------------------------------- what an embedding holds

def in_classes(n=120, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(-1, 4, n)
    return rng.normal(size=(n, 6)) + rng.normal(size=(5, 6))[y], y


def test_separation_equals_the_definition_written_as_loops():
    Z, y = in_classes()
    rows = [i for i in range(len(y)) if y[i] >= 0]
    middle = sum(Z[i] for i in rows)/len(rows)
    total = sum(((Z[i] - middle)**2).sum() for i in rows)
    between = 0.0
    for k in range(4):
        members = [Z[i] for i in rows if y[i] == k]
        between += len(members)*(((sum(members)/len(members)) - middle)**2).sum()
    assert class_separation(Z, y) == pytest.approx(between/total, abs=1e-12)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    assert class_separation(5*Z @ rotation + 3, y) == pytest.approx(between/total, abs=1e-9)


def test_classes_drawn_by_lot_hold_the_share_that_chance_gives_them():
    Z = np.random.default_rng(0).normal(size=(101, 50))
    lots = [class_separation(Z, np.random.default_rng(seed).permutation(101) % 6) for seed in range(200)]
    assert np.mean(lots) == pytest.approx(5/100, rel=0.03)


def test_the_read_out_of_few_labels_is_that_of_nearest_centroids():
    Z, y = in_classes()
    labelled, asked = np.arange(0, 60), np.arange(60, 120)
    known, judged = labelled[y[labelled] >= 0], asked[y[asked] >= 0]
    called = NearestCentroid().fit(Z[known], y[known]).predict(Z[judged])
    assert centroid_accuracy(Z, y, labelled, asked) == pytest.approx(balanced_accuracy_score(y[judged], called))


# ------------------------------------------------------------------------------------- the hook of pretraining

def test_looking_at_a_pretraining_after_every_epoch_changes_no_bit_of_it(tmp_path):
    X, seen = programs(), []
    def look(epoch, objective):
        seen.append(epoch)
        torch.rand(5); objective.train(); embed(objective.encoder, X)
    def trained(**options):
        with seeded(0): task = build("unmixing", 48, width=16, depth=2, dropout=0.2)
        history = pretrain(task, X[TRAIN], batch_size=64, progress=False, **options)
        return tensor_digest(task.state_dict()), history
    alone, watched = trained(epochs=4), trained(epochs=4, after_epoch=look)
    assert seen == [1, 2, 3, 4] and alone[0] == watched[0]
    pd.testing.assert_frame_equal(alone[1], watched[1], check_exact=True)
    def stop(epoch, objective):
        if epoch == 3: raise RuntimeError("power cut")
    kept = dict(checkpoint=tmp_path/"a.safetensors", checkpoint_every=1)
    with pytest.raises(RuntimeError, match="power cut"): trained(epochs=4, after_epoch=stop, **kept)
    assert trained(epochs=4, **kept)[0] == alone[0], "a hook made another run of it"


# ------------------------------------------------------------------------------------- the experiment

ARMS = {"scratch": {}, "unmixing": dict(method="unmixing", epochs=6, batch_size=64, width=24),
        "scarf": dict(method="scarf", epochs=3, settings=dict(temperature=0.5))}
ASK = dict(arms=["scratch", "unmixing", "scarf"], looks=3, rates=[0.3, 0.6], repeats=2, fraction=0.3)
PROFILE = DEFAULTS | dict(prepare=dict(genes=60), splits={"strict": [0, 1]}, encoder=dict(width=16, depth=2), arms=ARMS)


def test_a_profile_asks_every_arm_with_its_own_settings_on_the_splits_named():
    plan = Plan("x", PROFILE | dict(anatomy=ASK | dict(splits=[1])))
    runs = {run.arm: run for run in plan.of("anatomy")}
    assert list(runs) == ASK["arms"] and {run.split for run in runs.values()} == {1}
    assert [runs[arm].parameters["method"] for arm in runs] == ["", "unmixing", "scarf"]
    assert [runs[arm].parameters["width"] for arm in runs] == [16, 24, 16]
    assert runs["scarf"].parameters["settings"] == dict(temperature=0.5) and runs["unmixing"].parameters["epochs"] == 6
    assert all(run.needs == (run.parameters["prepared"],) and run.parameters["looks"] == 3 for run in runs.values())
    assert "anatomy" in collections(plan) and "fig_anatomy" in figures(plan)
    assert [run.arm for run in runs_behind("anatomy", plan)] == ASK["arms"]
    nothing = Plan("x", PROFILE)
    assert "anatomy" not in collections(nothing) and "fig_anatomy" not in figures(nothing)
    fewer = Plan("x", PROFILE | dict(anatomy=ASK | dict(epochs=dict(unmixing=2))))
    assert next(run for run in fewer.of("anatomy") if run.arm == "unmixing").parameters["epochs"] == 2


@pytest.mark.parametrize("change, said", [
    (dict(arms=["unmixing"]), "one of them from scratch"),
    (dict(arms=["scratch", "unmxing"]), "'unmxing'"),
    (dict(look=3), "no parameter 'look'"),
])
def test_a_question_that_would_fail_later_is_refused_when_planned(change, said):
    with pytest.raises(ValueError, match=re.escape(said)): Plan("x", PROFILE | dict(anatomy=ASK | change))


def test_whatever_an_arm_may_set_of_its_pretraining_the_experiment_takes_too():
    of_pretraining = declared("experiments/pretrain")
    own = declared("experiments/anatomy")
    assert set(of_pretraining) - {"checkpoint_every", "donors"} <= set(own)   # an arm with donors is refused
    alike = set(of_pretraining) - {"checkpoint_every", "donors", "method", "folder"}
    assert {name: own[name] for name in alike} == {name: of_pretraining[name] for name in alike}


@pytest.fixture(scope="module")
def looked(tmp_path_factory):
    "The runs of the question at toy size, where to find what they made, and the plan."
    from conftest import StudyCopy
    study = StudyCopy(tmp_path_factory.mktemp("anatomy"))
    plan = Plan("x", PROFILE | dict(splits={"strict": [0]}, anatomy=ASK))
    for run in (*plan.of("prepare"), *plan.of("anatomy")):
        answer = study.command("notebook", f"experiments/{run.experiment}", run.log, json.dumps(run.parameters))
        assert answer.returncode == 0, answer.stdout + answer.stderr
    return study.folder, plan


def made(looked, arm):
    folder, plan = looked
    return pd.read_parquet(folder/next(run.target for run in plan.of("anatomy") if run.arm == arm))


def test_the_data_themselves_are_asked_once_and_encoders_for_what_they_can(looked):
    kinds = {arm: made(looked, arm).groupby("kind")["by"].unique().map(set).to_dict() for arm in ASK["arms"]}
    assert kinds == dict(
        scratch=dict(detection={"alone", "others"}, separation={"genes", "pca"},
                     recovery={"hole", "pca", "class mean"}),
        unmixing=dict(separation={""}, recovery={""}), scarf=dict(separation={""}))


def test_looks_go_from_the_first_weights_to_the_encoder_that_pretraining_gives(looked):
    found = made(looked, "unmixing").query("kind == 'separation'").pivot(
        index="epoch", columns="measure", values="value")
    assert found.index.tolist() == [0, 1, 3, 6]
    data = prepare("toy", genes=60)
    with seeded(0): first = build("unmixing", 60, width=24, depth=2).encoder
    last = train_encoder("unmixing", data.X[data.split.pretrain], 24, 2, 0.2, epochs=6, batch_size=64,
                         progress=False)[0].encoder
    for epoch, encoder in ((0, first), (6, last)):
        read = standardised(embed(encoder, data.X), data.split.pretrain)[data.split.test]
        want = class_separation(read, data.y[data.split.test])
        assert found.loc[epoch, "between_classes"] == pytest.approx(want, abs=1e-5)


def test_what_was_found_is_collected_and_drawn(looked, tmp_path):
    folder, plan = looked
    class Found:
        def source(self, run): return folder/run.target
    tables = anatomy(Found(), plan.of("anatomy"))
    assert set(tables["separation"]["arm"]) == {"genes", "pca", "unmixing", "scarf"}
    assert set(tables["recovery"]["arm"]) == {"hole", "pca", "class mean", "unmixing"}
    last = tables["separation"].query("arm == 'scarf'").groupby("measure")["done"].max()
    assert (last == 1).all() and tables["separation"]["done"].between(0, 1).all()
    genes = made(looked, "unmixing").query("kind == 'recovery' and rate == 0.3")["value"]
    drawn = tables["recovery"].query("arm == 'unmixing' and rate == 0.3").set_index("quantile")["correlation"]
    assert drawn.tolist() == pytest.approx(genes.quantile(QUANTILES).tolist())
    data = tmp_path/"data"
    data.mkdir()
    for name, table in tables.items():
        table.assign(part="main")[["part", *table]].to_csv(data/f"{name}.csv", index=False)
    facts = json.loads((folder/plan.of("prepare")[0].target).with_suffix(".json").read_text())["facts"]
    (data/"anatomy.json").write_text(json.dumps(dict(profile="x", dataset="toy", fingerprint="", data=facts, runs=[])))
    caption, numbers = draw("fig_anatomy", data, tmp_path)
    plt.close("all")
    assert set(numbers["panel"]) == {"detection", "separation", "recovery"}
    assert "PCA" in caption and "SCARF 3" in caption and "no network was trained with them" in caption
