"""Other phenotypes: pairs and hazards against brute force and libraries, and no test patient among those who teach."""
import json
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import make_spd_matrix

from ssl_expr.data import load
from ssl_expr.finetune import fresh_encoder
from ssl_expr.phenotypes import (
    collect_phenotypes,
    open_rows,
    outcome,
    phenotype_scores,
    probe,
    representations,
    survival_risks,
    survival_rows,
)
from ssl_expr.prepare import prepare
from ssl_expr.splits import Split
from ssl_expr.study import PlannedRun
from ssl_expr.survival import TunedCox, comparable_pairs, concordance, fit_cox, survival_scores


def patients(n, seed, beta=0.0):
    "Days with ties, deaths and types; the first of five features raises the hazard, the second tells the types apart."
    rng = np.random.default_rng(seed)
    types = rng.choice(["deadly", "mild"], n)
    X = rng.normal(size=(n, 5))
    X[:, 1] += 4*(types == "deadly")
    lived = rng.exponential(np.where(types == "deadly", 60, 600)*np.exp(-beta*X[:, 0]))
    seen = rng.uniform(0, 400, n)
    return X, np.ceil(np.minimum(lived, seen)), lived < seen, types


def brute_force_concordance(risk, days, died, types):
    right = pairs = 0.0
    for i in range(len(risk)):
        for j in range(len(risk)):
            if types[i] != types[j] or not died[i]: continue
            if days[i] < days[j] or (days[i] == days[j] and not died[j]):
                pairs += 1
                right += 1 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0
    return right/pairs, pairs


@pytest.mark.parametrize("seed", range(3))
def test_concordance_is_that_of_brute_force_with_ties_and_patients_still_alive(seed):
    X, days, died, types = patients(70, seed)
    days, risk = np.ceil(days/20), X[:, 0].round()
    pairs = comparable_pairs(days, died, types)
    assert (concordance(risk, pairs), len(pairs)) == brute_force_concordance(risk, days, died, types)


X24 = np.array([
    1.76, 0.4, 0.98, 2.24, 1.87, -0.98, 0.95, -0.15, -0.1, 0.41, 0.14, 1.45, 0.76, 0.12, 0.44, 0.33, 1.49, -0.21,
    0.31, -0.85, -2.55, 0.65, 0.86, -0.74, 2.27, -1.45, 0.05, -0.19, 1.53, 1.47, 0.15, 0.38, -0.89, -1.98, -0.35, 0.16,
    1.23, 1.2, -0.39, -0.3, -1.05, -1.42, -1.71, 1.95, -0.51, -0.44, -1.25, 0.78, -1.61, -0.21, -0.9, 0.39, -0.51,
    -1.18, -0.03, 0.43, 0.07, 0.3, -0.63, -0.36, -0.67, -0.36, -0.81, -1.73, 0.18, -0.4, -1.63, 0.46, -0.91,
    0.05, 0.73, 0.13,
]).reshape(24, 3)
DAYS24 = np.array([5, 6, 19, 2, 8, 10, 16, 13, 21, 14, 22, 23, 15, 11, 4, 7, 18, 1, 17, 20, 3, 24, 9, 12.])
DIED24 = np.array([0, 1, 0, 0, 0, 0, 1, 0, 1, 0, 1, 0, 1, 1, 0, 1, 0, 1, 1, 1, 0, 1, 1, 0], bool)


def test_coefficients_and_concordance_are_those_of_scikit_survival():
    "Numbers of scikit-survival 0.28: CoxPHSurvivalAnalysis(alpha=1.2, ties='breslow'), concordance_index_censored."
    tied, one_group = np.ceil(DAYS24/3), np.zeros(24)
    beta = fit_cox(X24, tied, DIED24, one_group, penalty=0.1)
    np.testing.assert_allclose(beta, [0.3050535858, 0.0127239781, -0.4495506404], atol=1e-5)
    pairs = comparable_pairs(tied, DIED24, one_group)
    assert len(pairs) == 124 and concordance(X24[:, 0].round(), pairs) == pytest.approx(70/124)


def test_coefficients_of_strata_are_those_of_lifelines():
    "Numbers of lifelines 0.30, CoxPHFitter(penalizer=0.1), strata: its penalty is per patient, ours per death."
    X = (X24 - X24.mean(0))/X24.std(0, ddof=1)
    beta = fit_cox(X, DAYS24, DIED24, np.arange(24) % 2, penalty=0.1*24/DIED24.sum())
    np.testing.assert_allclose(beta, [0.3415869015, -0.0652625195, -0.4183932718], atol=1e-5)


def test_cox_recovers_a_known_coefficient_and_is_not_drawn_to_what_tells_types_apart():
    X, days, died, types = patients(3000, seed=0, beta=0.7)
    within, across = (fit_cox(X, days, died, groups, 1e-3) for groups in (types, np.zeros(3000)))
    np.testing.assert_allclose(within, [0.7, 0, 0, 0, 0], atol=0.08)
    assert across[1] > 0.3


def test_a_constant_added_to_a_type_changes_no_coefficient():
    X, days, died, types = patients(300, seed=1, beta=0.5)
    shifted = X + 7*(types == "deadly")[:, None]
    same = [fit_cox(features, days, died, types, 0.1) for features in (X, shifted)]
    np.testing.assert_allclose(*same, atol=1e-4)


def test_the_penalty_is_strong_where_there_is_nothing_to_learn():
    X, days, died, types = patients(150, seed=2)
    X = np.random.default_rng(0).normal(size=(150, 80)) @ make_spd_matrix(80, random_state=0)
    assert TunedCox().fit(X, days, died, types).penalty_ >= 1
    with pytest.raises(ValueError, match="nobody died"): fit_cox(X, days, died & False, types, 1.0)


def risks_of(seed=0, n=200, splits=(0,), **risks):
    X, days, died, types = patients(n, seed, beta=1.0)
    about = dict(sample=np.arange(n), patient=[f"p{i}" for i in range(n)], cancer_type=types, days=days, died=died)
    return pd.concat([pd.DataFrame(about | dict(split=split, arm=arm, risk=risk(X, types)))
                      for split in splits for arm, risk in risks.items()], ignore_index=True)


def knows_type(X, types): return 1.0*(types == "deadly")
def knows_all(X, types): return X[:, 0] + 100*(types == "deadly")


def test_a_risk_that_only_knows_the_type_has_concordance_one_half_for_sure():
    frame = risks_of(type=knows_type, all=knows_all)
    across = comparable_pairs(*frame.query("arm == 'type'")[["days", "died"]].to_numpy().T, np.zeros(200))
    assert concordance(frame.query("arm == 'type'")["risk"].to_numpy(), across) > 0.6
    table = survival_scores(frame, ["type"], n_resamples=100).set_index(["arm", "cancer_type", "reference"])
    for name in ("all", "deadly", "mild"):
        assert (table.loc[("type", name, ""), ["concordance", "low", "high"]] == 0.5).all()
    known = table.sort_index().loc[("all", "all")]
    assert known.loc["", "low"] > 0.6 and known.loc["type", "verdict"] == "better"
    assert known.loc["type", "concordance"] == pytest.approx(known.loc["", "concordance"] - 0.5)


def test_patients_of_different_splits_are_never_compared_and_a_patient_in_two_splits_adds_no_certainty():
    once, twice = (survival_scores(risks_of(all=knows_all, splits=splits), n_resamples=300) for splits in ([0], [0, 1]))
    assert (twice["n_pairs"] == 2*once["n_pairs"]).all() and (twice["n_patients"] == once["n_patients"]).all()
    np.testing.assert_allclose(once[["concordance", "low", "high"]], twice[["concordance", "low", "high"]], atol=1e-6)


def test_types_with_few_deaths_count_in_the_whole_but_have_no_row():
    frame = risks_of(all=knows_all)
    few = frame.query("died and cancer_type == 'mild'")["patient"].nunique() + 1
    table = survival_scores(frame, n_resamples=10, min_deaths=few)
    assert set(table["cancer_type"]) == {"all", "deadly"} and table["n_patients"].iloc[0] == 200


def test_arms_tested_on_other_patients_are_refused():
    frame = risks_of(all=knows_all, type=knows_type)
    with pytest.raises(ValueError, match="'type' was not tested"): survival_scores(frame.iloc[:-1])


@pytest.fixture(scope="module")
def study():
    "The toy data with a made-up follow-up, a second sample of some patients, and few labels kept."
    data = prepare("toy", labelled_share=0.3)
    rng = np.random.default_rng(0)
    n = len(data.samples)
    lived, seen = rng.exponential(500*np.exp(-data.X[:, 0].numpy()), n), rng.uniform(1, 2000, n)
    obs = load("toy").obs.loc[data.samples].assign(
        sample_type=rng.choice(["primary tumour", "metastasis"], n, p=[0.9, 0.1]),
        survival_days=np.minimum(lived, seen) + 1, died=1.0*(lived < seen))
    names = np.array(data.patients)
    names[::2] = names[1::2]                    # every patient has two samples, perhaps one of them in the test part
    data = replace(data, patients=list(names))
    parts = {part: np.intersect1d(getattr(data.split, part), open_rows(data)) for part in ("pretrain", "train")}
    return replace(data, split=replace(data.split, **parts)), obs


def test_who_teaches_shares_no_patient_with_test_or_validation(study):
    data, obs = study
    names = np.array(data.patients)
    held = set(names[data.split.test]) | set(names[data.split.validation])
    taught = open_rows(data)
    assert not held & set(names[taught])
    assert len(taught) == sum(name not in held for name in names) < len(names) - len(data.split.test)
    _, rows, _ = outcome(data, obs, "label", {"batch": ["batch-1"]})
    assert not held & set(names[rows.train]) and set(rows.test) <= set(data.split.test)


def test_noise_in_rows_of_held_out_patients_moves_no_prediction_but_their_own(study):
    data, obs = study
    encoders = {"scratch": fresh_encoder(data.X.shape[1], 16, 2)(0)}
    y, rows, _ = outcome(data, obs, "label")
    tested = rows.test[::4]                     # these stay as they are; all else of held-out patients is rewritten
    rewritten = np.setdiff1d(np.arange(len(data.samples)), np.r_[open_rows(data), tested])
    noisy = replace(data, X=data.X.clone())
    noisy.X[rewritten] = 30.0
    strange = obs.copy()
    strange.loc[strange.index[rewritten], ["survival_days", "died"]] = [1e6, 0.0]
    relabelled = np.where(np.isin(np.arange(len(y)), np.r_[data.split.test, data.split.validation]), 0, y)
    outputs = []
    for given, labels, about in [(data, y, obs), (noisy, relabelled, strange)]:
        spaces = representations(given, encoders, n_components=5)
        said = [frame.loc[frame["sample"].isin(tested), ["p0", "p1", "p2"] if "p0" in frame else ["risk"]].to_numpy()
                for Z in spaces.values()
                for frame in (probe(Z, labels, rows, [0.5, 1.0], 1), survival_risks(Z, given, about, "truth"))]
        outputs.append(np.concatenate([values.ravel() for values in said]))
    assert len(outputs[0]) > 100
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-4)


def test_survival_takes_one_primary_tumour_per_patient(study):
    data, obs = study
    rows = survival_rows(obs, data.patients, np.arange(len(obs)))
    names = np.array(data.patients)[rows]
    assert len(set(names)) == len(names) and (obs["sample_type"].iloc[rows] == "primary tumour").all()
    primary = np.array(data.patients)[(obs["sample_type"] == "primary tumour").to_numpy()]
    assert set(names) == set(primary)
    risks = survival_risks(data.X.numpy(), data, obs, "truth")
    assert risks["patient"].is_unique and set(risks["sample"]) <= set(data.split.test)


def test_labels_of_few_samples_are_dropped_and_hopeless_questions_refused(study):
    data, obs = study
    rare = obs.assign(label=obs["label"].astype(object).where(np.arange(len(obs)) > 3, "rare"))
    y, _, classes = outcome(data, rare, "label")
    assert classes == ["class-0", "class-1", "class-2"] and (y[:4] == -1).all()
    for asked, words in [(dict(label="grade"), "no annotation 'grade'"), (dict(label="patient"), "too few samples"),
                         (dict(label="label", where={"organ": ["lung"]}), "no annotation 'organ'")]:
        with pytest.raises(ValueError, match=words): outcome(data, obs, **asked)


def test_standardising_uses_pretraining_rows_only(study):
    data, _ = study
    encoders = {"scratch": fresh_encoder(data.X.shape[1], 16, 2)(0)}
    some = replace(data, split=Split(*(np.arange(20*i, 20*i + 20) for i in range(4))))
    Z = representations(some, encoders, 5)["scratch"]
    np.testing.assert_allclose(Z[:20].mean(0), 0, atol=1e-4)
    assert abs(Z[20:].mean(0)).max() > 0.05


def test_the_experiment_writes_what_is_collected(study_copy, tmp_path):
    toy = load("toy")
    rng = np.random.default_rng(0)
    obs = toy.obs.assign(sample_type="primary tumour", survival_days=rng.integers(1, 900, 300),
                         died=rng.integers(0, 2, 300))
    anndata.AnnData(toy.X, obs.astype({name: str for name in ("label", "truth", "batch")}), toy.var).write_h5ad(
        tmp_path/"follow.h5ad")
    given = dict(dataset=str(tmp_path/"follow.h5ad"), label="label", units="counts", genes=40, folder="results/x/a")
    asked = dict(prepared="results/x/a/prepared.safetensors", within="truth", survival=True, repeats=1, width=16,
                 depth=2, fractions=[1.0], annotations={"units": "counts"}, folder="results/x/a",
                 outcomes=[{"name": "class", "label": "label", "where": {"batch": ["batch-0"]}},
                           {"name": "batch", "label": "batch"}])
    for name, values in (("prepare", given), ("phenotypes", asked)):
        answer = study_copy.command("notebook", f"experiments/{name}", f"results/x/a/{name}.ipynb", json.dumps(values))
        assert answer.returncode == 0, answer.stdout + answer.stderr

    class Found:
        def source(self, run): return study_copy.folder/run.target
    run = PlannedRun("phenotypes", "results/x/a/phenotypes.parquet", asked, protocol="strict", split=0)
    tables = collect_phenotypes(Found(), [run])
    phenotypes, survival = tables["phenotypes"], tables["survival"]
    assert set(phenotypes["outcome"]) == {"class", "batch"}
    assert set(phenotypes["arm"]) == {"logistic-genes", "logistic-pca", "scratch"}
    assert not phenotypes.query("metric == 'auroc'").empty
    assert phenotypes.loc[phenotypes["reference"] == "", "verdict"].eq("").all()
    assert phenotypes.loc[phenotypes["reference"] != "", "verdict"].isin(["better", "worse", "tie"]).all()
    assert set(survival["arm"]) == {"genes", "pca", "scratch"} and "all" in set(survival["cancer_type"])
    without = asked | dict(survival=False)
    answer = study_copy.command("notebook", "experiments/phenotypes", "results/x/a/again.ipynb", json.dumps(without))
    assert answer.returncode == 0 and collect_phenotypes(Found(), [run])["survival"].empty


def test_collected_means_are_plain_balanced_accuracies(study):
    data, obs = study
    y, rows, _ = outcome(data, obs, "label")
    frame = probe(data.X.numpy(), y, rows, [1.0], 1).assign(outcome="class", protocol="strict", split=0)
    frame["patient"] = np.array(data.patients)[frame["sample"]]
    called = frame.filter(regex=r"^p\d").to_numpy().argmax(1)
    recalls = [(called[frame["truth"] == k] == k).mean() for k in range(3)]
    both = pd.concat([frame.assign(arm="logistic-genes", mode="baseline"), frame.assign(arm="same", mode="frozen")])
    table = phenotype_scores(both, n_resamples=10).query("metric == 'balanced_accuracy'")
    assert table["mean"].tolist() == pytest.approx([np.mean(recalls), np.mean(recalls), 0.0])
    assert table["verdict"].tolist() == ["", "", "tie"]


def test_a_search_that_gets_stuck_is_refused(monkeypatch):
    from scipy.optimize import OptimizeResult

    from ssl_expr import survival
    stuck = OptimizeResult(x=np.zeros(1), jac=np.array([1e-2]), success=False, message="ABNORMAL")
    monkeypatch.setattr(survival, "minimize", lambda *_, **__: stuck)
    with pytest.raises(ValueError, match="did not converge: ABNORMAL"):
        survival.fit_cox(np.ones((3, 1)), np.arange(1., 4), np.ones(3, bool), np.zeros(3), penalty=1.0)


def test_a_risk_far_above_all_others_leaves_loss_and_slope_finite():
    "A unit that is all but silent in training can be huge elsewhere once it is standardised."
    from scipy.special import logsumexp

    from ssl_expr.survival import partial_loss, risk_sets
    risk, days, died = np.array([2000.0, 1.0, -1.0, 0.5]), np.arange(1.0, 5), np.ones(4, bool)
    loss, gradient = partial_loss(risk, risk_sets(days, died, np.zeros(4)))
    assert loss == pytest.approx(sum(logsumexp(risk[i:]) - risk[i] for i in range(4)))
    shares = [np.exp(risk[i:] - logsumexp(risk[i:])) for i in range(4)]
    want = [sum(shares[i][k - i] for i in range(k + 1)) - 1 for k in range(4)]
    assert gradient == pytest.approx(np.array(want), abs=1e-12)
