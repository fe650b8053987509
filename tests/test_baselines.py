"""Baselines: the same labels as fine-tuning, tuned inside them, and nothing fitted on test samples."""
import warnings
from dataclasses import replace

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.semi_supervised import SelfTrainingClassifier

from ssl_expr.baselines import BASELINES, TunedLogistic, fit_baseline, make_baseline, read_baseline
from ssl_expr.finetune import FineTuning, finetune, fresh_encoder, plan_runs
from ssl_expr.splits import Split

N, G, C = 130, 30, 3
FRACTIONS = [0.05, 0.45, 1.0]
PROBABILITIES = ["p0", "p1", "p2"]


@pytest.fixture(scope="module")
def problem():
    """Classes of 70, 18 and 12 %, told apart by five of thirty genes."""
    rng = np.random.default_rng(0)
    y = rng.choice(C, N, p=[0.7, 0.18, 0.12])
    X = rng.normal(size=(N, G)).astype("float32")
    X[:, :5] += 1.5*y[:, None]
    rows = rng.permutation(N)
    return X, y, Split(rows[:85], rows[15:85], rows[85:105], rows[105:])


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_learns_without_a_warning(problem, name):
    X, y, split = problem
    with warnings.catch_warnings(action="error"):
        table = fit_baseline(name, X, y, split, FRACTIONS, 2)
    full = table[table["fraction"] == 1.0]
    right = (full[PROBABILITIES].to_numpy().argmax(1) == full["truth"]).mean()
    assert right > np.bincount(y[split.test]).max()/len(split.test) + 0.05
    np.testing.assert_allclose(table[PROBABILITIES].sum(axis=1), 1, atol=1e-5)


def test_baselines_spend_the_labels_of_fine_tuning_and_give_its_table(problem):
    X, y, split = problem
    ours = fit_baseline("logistic-genes", X, y, split, FRACTIONS, 2)
    theirs = finetune(fresh_encoder(G, 8, 1), X, y, split, FRACTIONS, 2, settings=FineTuning(epochs=1))
    assert list(ours) == list(theirs) and (ours.dtypes == theirs.dtypes).all()
    same = ["fraction", "repeat", "n_labels", "sample", "truth"]
    assert ours[same].equals(theirs[same]) and (ours["epochs"] == 0).all()


@pytest.mark.parametrize("name", BASELINES)
def test_a_fit_sees_the_labelled_rows_of_its_run_and_no_others(problem, name):
    X, y, split = problem
    run = plan_runs(y, split, [0.45], 1)[0]
    spent = np.concatenate([run.train, run.validation])
    split, noisy = replace(split, pretrain=spent), X.copy()
    unseen = np.setdiff1d(np.concatenate([split.train, split.validation]), spent)
    noisy[unseen] = 30
    assert fit_baseline(name, X, y, split, [0.45], 1).equals(fit_baseline(name, noisy, y, split, [0.45], 1))
    noisy[run.validation] = 30 # validation labels are spent, so their rows are learned from
    assert not fit_baseline(name, X, y, split, [0.45], 1).equals(fit_baseline(name, noisy, y, split, [0.45], 1))


@pytest.mark.parametrize("name", BASELINES)
def test_on_a_networks_terms_validation_rows_teach_nothing_and_spent_labels_are_the_same(problem, name):
    X, y, split = problem
    run = plan_runs(y, split, [0.45], 1)[0]
    split = replace(split, pretrain=run.train)
    def fit(X, terms): return fit_baseline(name, X, y, split, [0.45], 1, like_for_like=terms)
    noisy = X.copy()
    noisy[run.validation] = 30
    assert fit(X, True).equals(fit(noisy, True)) and not fit(X, False).equals(fit(noisy, False))
    assert (fit(X, True)["n_labels"] == fit(X, False)["n_labels"]).all()


def test_on_a_networks_terms_samples_weigh_alike(problem):
    X, y, split = problem
    common, rare = (split.train[(y[split.train] == 0) == chosen] for chosen in (True, False))
    split = replace(split, train=np.concatenate([common, *(rare[y[rare] == c][:3] for c in np.unique(y[rare]))]))
    run = plan_runs(y, split, [1.0], 1)[0]
    C = TunedLogistic(random_state=run.seed, class_weight=None).fit(X[run.train], y[run.train]).C_
    by_hand = LogisticRegression(C=C, max_iter=10_000).fit(X[run.train], y[run.train])
    table = fit_baseline("logistic-genes", X, y, split, [1.0], 1, like_for_like=True)
    np.testing.assert_allclose(table[PROBABILITIES], by_hand.predict_proba(X[split.test]), atol=1e-6)


def test_logistic_pca_is_pca_on_the_pretraining_rows_and_a_logistic_regression(problem):
    X, y, split = problem
    pca = PCA(G, random_state=0).fit(X[split.pretrain])
    run = plan_runs(y, split, [1.0], 1)[0]
    rows = np.concatenate([run.train, run.validation])
    C = TunedLogistic(random_state=run.seed).fit(pca.transform(X[rows]), y[rows]).C_
    by_hand = LogisticRegression(C=C, class_weight="balanced", max_iter=10_000).fit(pca.transform(X[rows]), y[rows])
    table = fit_baseline("logistic-pca", X, y, split, [1.0], 1)
    np.testing.assert_allclose(table[PROBABILITIES], by_hand.predict_proba(pca.transform(X[split.test])), atol=1e-6)


def test_self_training_on_whitened_components_is_what_its_name_says(problem):
    X, y, split = problem
    run = plan_runs(y, split, [0.45], 1)[0]
    labelled = np.concatenate([run.train, run.validation])
    others = np.setdiff1d(split.pretrain, labelled)
    Z = PCA(7, whiten=True, random_state=0).fit(X[split.pretrain]).transform(X)
    model = SelfTrainingClassifier(LogisticRegression(C=1, class_weight="balanced", max_iter=10_000), threshold=0.9)
    model.fit(Z[np.r_[labelled, others]], np.r_[y[labelled], np.full(len(others), -1)])
    table = fit_baseline("self-training-white7-C1", X, y, split, [0.45], 1)
    np.testing.assert_allclose(table[PROBABILITIES], model.predict_proba(Z[split.test]), atol=1e-6)
    assert len(others) > 0 and (model.labeled_iter_ > 0).any(), "samples without a label were learned from"


@pytest.mark.parametrize("name", ["self-training-pca", "label-spreading-pca"])
def test_what_a_model_learns_of_unlabelled_samples_it_learns_from_pretraining_rows_without_their_labels(problem, name):
    X, y, split = problem
    run = plan_runs(y, split, [0.2], 1)[0]
    spent = np.concatenate([run.train, run.validation])
    hidden = np.setdiff1d(split.pretrain, np.r_[spent, split.validation])
    others = y.copy()
    others[hidden] = np.roll(y[hidden], 1)  # labels that may not be known
    noisy = X.copy()
    noisy[hidden] = np.random.default_rng(1).normal(size=noisy[hidden].shape)
    few = replace(split, train=spent)
    def fit(X, y): return fit_baseline(name, X, y, few, [1.0], 1)[PROBABILITIES]
    assert fit(X, y).equals(fit(X, others)) and not fit(X, y).equals(fit(noisy, y))


def test_a_sample_that_no_label_has_reached_may_be_of_any_class():
    X = np.r_[np.zeros((6, 2)), np.full((6, 2), 100.0)] + np.random.default_rng(0).normal(size=(12, 2))
    model = make_baseline("label-spreading-genes-k3", X).fit(X, np.r_[0, 1, 0, 1, -1, -1, [-1]*6])
    np.testing.assert_allclose(model.predict_proba([[100.0, 100.0]]), 0.5)
    assert model.predict_proba([[0.0, 0.0]]).sum() == pytest.approx(1)


@pytest.mark.parametrize("name, parts", [
    ("logistic-genes", ("logistic", "genes", {})), ("boosted-trees", ("boosted-trees", "genes", {})),
    ("logistic-pca100", ("logistic", "pca100", {})),
    ("self-training-white70-C1e-3", ("self-training", "white70", {"C": 1e-3})),
    ("label-spreading-pca-k5", ("label-spreading", "pca", {"neighbours": 5})),
    ("self-training-C0.1", ("self-training", "genes", {"C": 0.1}))])
def test_a_name_says_what_a_baseline_is(name, parts):
    assert read_baseline(name) == parts


@pytest.mark.parametrize("name, message", [
    ("svm-genes", "unknown baseline"), ("logistics-genes", "unknown baseline"),
    ("logistic-kernel", "unknown baseline"), ("logistic-pca50x", "unknown baseline"),
    ("logistic-pca-C1", "logistic has no -C"), ("self-training-pca-k5", "self-training has no -k")])
def test_a_name_that_says_nothing_is_refused(name, message):
    with pytest.raises(ValueError, match=message): read_baseline(name)


def test_whitened_components_have_variance_one_where_they_were_fitted(problem):
    X, _, split = problem
    seen = X[split.pretrain]
    white, plain = (make_baseline(f"logistic-{kind}5", seen)[0].transform(seen) for kind in ("white", "pca"))
    np.testing.assert_allclose(white.var(0, ddof=1), 1, rtol=1e-4)
    assert plain.var(0)[0] > 1.2*plain.var(0)[4]


def test_the_penalty_is_chosen_inside_the_labels_and_matters(problem):
    X, y, _ = problem
    rng = np.random.default_rng(0)
    noise = rng.permutation(y)
    assert TunedLogistic().fit(X, y).C_ > TunedLogistic().fit(X, noise).C_, "labels at random call for a strong penalty"
    few = np.concatenate([np.flatnonzero(y == c)[:2] for c in range(C)])
    assert TunedLogistic(default_C=0.07).fit(X[few], y[few]).C_ != 0.07, "two samples of a class make two folds"
    assert TunedLogistic(default_C=0.07).fit(X[few[:-1]], y[few[:-1]]).C_ == 0.07, "a single sample makes none"


def test_logistic_regression_weighs_every_class_alike(problem):
    X, y, _ = problem
    copies = np.concatenate([np.arange(N), np.repeat(np.flatnonzero(y == 0), 2)]) # the largest class, three times
    once, thrice = (TunedLogistic(folds=1, default_C=1/len(rows)).fit(X[rows], y[rows])
                    for rows in (np.arange(N), copies))
    np.testing.assert_allclose(once.predict_proba(X), thrice.predict_proba(X), atol=1e-3)


def moves_with_test_rows(predict, X, y, split):
    """Rewrite half of the test samples with noise: does anything move but the predictions of these samples?"""
    noisy = X.copy()
    noisy[split.test[::2]] = 30*np.random.default_rng(1).normal(size=(len(split.test[::2]), X.shape[1]))
    before, after = predict(X), predict(noisy)
    touched = before["sample"].isin(split.test[::2])
    assert not np.allclose(before.loc[touched, PROBABILITIES], after.loc[touched, PROBABILITIES]), "no effect"
    return not before[~touched].equals(after[~touched])


@pytest.mark.parametrize("name", BASELINES)
def test_noise_in_test_samples_moves_nothing_but_their_own_predictions(problem, name):
    X, y, split = problem
    assert not moves_with_test_rows(lambda X: fit_baseline(name, X, y, split, [0.45], 1), X, y, split)


def test_the_scramble_catches_a_pca_fitted_on_all_rows(problem):
    X, y, split = problem
    cheating = replace(split, pretrain=np.arange(N))
    assert moves_with_test_rows(lambda X: fit_baseline("logistic-pca", X, y, cheating, [0.45], 1), X, y, split)


@pytest.mark.parametrize("name", BASELINES)
def test_a_run_gives_the_same_bits_in_any_company(problem, name):
    X, y, split = problem
    whole = fit_baseline(name, X, y, split, FRACTIONS, 2, seed=3)
    assert whole.equals(fit_baseline(name, X, y, split, FRACTIONS, 2, seed=3))
    part = whole[(whole["fraction"] == 0.45) & (whole["repeat"] == 0)].reset_index(drop=True)
    assert part.equals(fit_baseline(name, X, y, split, [0.45], 1, seed=3))


def test_repeats_of_the_paper_are_one_and_the_same_fit(problem):
    X, y, split = problem
    ours, paper = (fit_baseline("logistic-genes", X, y, split, [0.1], 2, vary_subset=vary) for vary in (True, False))
    for table, same in ((ours, False), (paper, True)):
        first, second = (table.loc[table["repeat"] == r, PROBABILITIES].to_numpy() for r in (0, 1))
        assert np.allclose(first, second) == same


@pytest.mark.parametrize("change, message", [
    (dict(name="svm"), "unknown baseline 'svm': it must be <classifier>-<features>"),
    (dict(X=np.full((N, G), np.nan)), "missing value"), (dict(y=np.zeros(N, int)), "at least two are needed"),
    (dict(fractions=[1.2]), "fractions must be")])
def test_a_mistake_gives_one_clear_sentence(problem, change, message):
    X, y, split = problem
    arguments = dict(name="logistic-genes", X=X, y=y, split=split, fractions=[0.5], repeats=1) | change
    with pytest.raises(ValueError, match=message) as error:
        fit_baseline(**arguments)
    assert "\n" not in str(error.value)
