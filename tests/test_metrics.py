"""The six metrics against scikit-learn and brute force; what one test sample contributes to each."""
import itertools

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss, roc_auc_score

from ssl_expr.metrics import (
    METRICS,
    SCORED,
    auroc_contributions,
    calibration_error,
    score_samples,
    weighted_metrics,
    write_scores,
)


def a_run(n=300, n_classes=5, seed=0, decimals=None):
    """Truth and probabilities of one run; with few decimals there are ties."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(n_classes, n, p=np.arange(1, n_classes + 1)/np.arange(1, n_classes + 1).sum())
    logits = rng.normal(size=(n, n_classes)) + 1.5*np.eye(n_classes)[truth]
    probabilities = np.exp(logits)/np.exp(logits).sum(1, keepdims=True)
    return truth, probabilities if decimals is None else probabilities.round(decimals)


def frame_of(truth, probabilities, **columns):
    columns = dict(sample=np.arange(len(truth)), truth=truth) | columns
    return pd.DataFrame(columns | {f"p{c}": values for c, values in enumerate(probabilities.T)})


def brute_force_calibration_error(truth, probabilities):
    """Sample by sample into 15 bins (lower edge, upper edge]."""
    bins = {}
    for true, row in zip(truth, probabilities, strict=True):
        confidence = np.float32(np.float16(row.max()))
        place = next(b for b in range(15) if confidence <= np.float32((b + 1)/15) or b == 14)
        bins.setdefault(place, []).append((row.argmax() == true, confidence))
    gaps = {b: abs(np.mean([r for r, _ in held]) - np.mean([c for _, c in held])) for b, held in bins.items()}
    return sum(len(held)*gaps[b] for b, held in bins.items())/len(truth)


def macro_auroc(truth, probabilities, weight=None):
    """Mean over the classes that can be ranked."""
    ranked = [k for k in np.unique(truth) if (truth != k).any()]
    return np.mean([roc_auc_score(truth == k, probabilities[:, k], sample_weight=weight) for k in ranked])


@pytest.mark.parametrize("decimals", [None, 1])
def test_the_six_metrics_are_those_of_scikit_learn(decimals):
    truth, probabilities = a_run(decimals=decimals)
    if decimals: probabilities = (probabilities + 0.01)/(probabilities + 0.01).sum(1, keepdims=True)
    scored, called = score_samples(frame_of(truth, probabilities)), probabilities.argmax(1)
    arrays = {name: scored[name].to_numpy()[None] for name in SCORED}
    values = weighted_metrics(np.ones((1, len(truth)), np.float32), truth, arrays, 5)[0, 0]
    auroc = roc_auc_score(truth, probabilities, multi_class="ovr", average="macro")
    want = dict(accuracy=accuracy_score(truth, called), balanced_accuracy=balanced_accuracy_score(truth, called),
                macro_f1=f1_score(truth, called, average="macro"), auroc=auroc, log_loss=log_loss(truth, probabilities),
                calibration_error=brute_force_calibration_error(truth, probabilities))
    assert list(want) == list(METRICS)
    assert (np.abs(values - list(want.values())) < [1e-6, 1e-6, 1e-6, 2e-5, 5e-4, 1e-4]).all()


def test_a_confidence_at_the_edge_of_a_bin_belongs_below():
    confidence = np.float32([0.2, 0.2, 0.201, 0.201])
    errors = calibration_error(np.array([0, 1, 0, 1]), confidence, np.ones((1, 4)))
    np.testing.assert_allclose(errors, 0.2995, rtol=1e-3)
    right = calibration_error(np.array([0, 0, 1, 1]), confidence, np.ones((1, 4)))
    np.testing.assert_allclose(right, (0.2 + 0.799)/2, rtol=1e-3) # in one bin they would cancel out


def test_nothing_drawn_is_nan_and_not_zero():
    truth, probabilities = a_run(20)
    scored = score_samples(frame_of(truth, probabilities))
    arrays = {name: scored[name].to_numpy()[None] for name in SCORED}
    values = weighted_metrics(np.zeros((1, 20), np.float32), truth, arrays, 5)
    assert np.isnan(values).all()


@pytest.mark.parametrize("n, n_classes, decimals", [(50, 2, None), (300, 5, None), (300, 5, 1), (1022, 19, 2)])
def test_the_mean_of_pseudo_values_is_the_auroc(n, n_classes, decimals):
    truth, probabilities = a_run(n, n_classes, decimals=decimals)
    pseudo, exact = auroc_contributions(truth, probabilities), macro_auroc(truth, probabilities)
    assert abs(pseudo.mean() - exact) < 1e-12
    assert abs(score_samples(frame_of(truth, probabilities))["auroc"].astype(float).mean() - exact) < 2e-5


def test_rounding_to_16_bits_keeps_the_mean_of_a_nearly_perfect_run():
    """Nearly all pseudo-values are the same number there, so that rounding errors do not cancel out."""
    truth, wrong = np.arange(1022) % 19, np.random.default_rng(0).permutation(1022) < 12
    probabilities = 0.9*np.eye(19)[(truth + wrong) % 19] + 0.1/19
    pseudo = auroc_contributions(truth, probabilities)
    kept = score_samples(frame_of(truth, probabilities))["auroc"]
    assert abs(pseudo.astype(np.float16).astype(float).mean() - pseudo.mean()) > 2e-5, "not the hard case"
    assert abs(kept.astype(float).mean() - pseudo.mean()) < 2e-6
    assert np.abs(kept - pseudo).max() < 0.05


def test_a_class_without_samples_is_left_out_and_a_single_class_has_no_auroc():
    truth, probabilities = a_run(100, 5)
    few = np.where(truth == 3, 4, truth)
    assert abs(auroc_contributions(few, probabilities).mean() - macro_auroc(few, probabilities)) < 1e-12
    assert np.isnan(auroc_contributions(np.zeros(100, int), probabilities)).all()


def test_pseudo_values_are_the_slope_of_the_auroc_in_the_weight_of_a_sample():
    truth, probabilities = a_run(60, 3)
    pseudo, step = auroc_contributions(truth, probabilities), 1e-6
    for i in range(60):
        weight = np.ones(60)
        weight[i] += step
        slope = (macro_auroc(truth, probabilities, weight) - macro_auroc(truth, probabilities))/step
        np.testing.assert_allclose(pseudo[i] - pseudo.mean(), 60*slope, atol=1e-3)


def test_weighted_pseudo_values_follow_the_auroc_of_resamples():
    """First order: what is left out is of the order 1/(samples of a class), here 20 to 100, of the spread itself."""
    truth, probabilities = a_run(300, 5)
    pseudo = auroc_contributions(truth, probabilities)
    drawn = np.random.default_rng(99).multinomial(300, np.full(300, 1/300), 400)
    exact = np.array([macro_auroc(truth, probabilities, times) for times in drawn])
    close = drawn @ pseudo/300
    assert np.sqrt(np.mean((close - exact)**2)) < 0.25*exact.std()       # a quarter of what an interval measures
    assert abs(close.std()/exact.std() - 1) < 0.05                       # so intervals are as wide
    bounds = np.quantile(exact, [0.025, 0.975]), np.quantile(close, [0.025, 0.975])
    assert np.abs(np.subtract(*bounds)).max() < 0.1*np.ptp(bounds[0])    # and end where they should


def test_runs_are_told_apart_by_whatever_columns_there_are():
    columns = dict(arm=["a", "b"], depth=[2, 4], repeat=[0, 1])
    frames = [frame_of(*a_run(seed=i), **dict(zip(columns, key, strict=True)))
              for i, key in enumerate(itertools.product(*columns.values()))]
    together = pd.concat(frames).sample(frac=1, random_state=0)
    alone = pd.concat([score_samples(frame) for frame in frames])
    keys = [*columns, "sample"]
    pd.testing.assert_frame_equal(score_samples(together).sort_values(keys, ignore_index=True)[[*keys, "auroc"]],
                                  alone.sort_values(keys, ignore_index=True)[[*keys, "auroc"]], atol=1e-3, rtol=2e-3)
    means = score_samples(together).astype(dict(auroc=float)).groupby(list(columns))["auroc"].mean()
    assert means.nunique() == 8
    for frame, mean in zip(frames, means, strict=True):
        exact = macro_auroc(frame["truth"].to_numpy(), frame.filter(regex="^p").to_numpy())
        assert abs(mean - exact) < 2e-5


def test_patients_are_those_of_the_sample_rows_and_need_not_be_given():
    truth, probabilities = a_run(4)
    frame = frame_of(truth, probabilities, sample=[7, 2, 2, 0])
    assert score_samples(frame, [f"P{i}" for i in range(8)])["patient"].tolist() == ["P7", "P2", "P2", "P0"]
    assert list(score_samples(frame)) == ["sample", "truth", *SCORED]
    assert list(score_samples(frame.assign(patient=["a", "b", "b", "c"])))[-1] == "auroc"


def test_more_than_ten_classes_are_kept_in_order():
    truth, probabilities = a_run(200, 12)
    frame = frame_of(truth, probabilities)
    shuffled = frame[["p11", "p10", *frame.columns.drop(["p10", "p11"])]]
    pd.testing.assert_frame_equal(score_samples(shuffled), score_samples(frame))
    assert (score_samples(shuffled)["called"] == probabilities.argmax(1)).all()


def test_certainty_that_proves_wrong_costs_much_but_not_infinitely_much():
    scored = score_samples(frame_of(np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]])))
    np.testing.assert_allclose(scored["log_loss"].astype(float), [-np.log(1e-7), 0], atol=0.01)


def test_scores_survive_the_file_and_are_sorted_by_sample(tmp_path):
    frame = pd.concat([frame_of(*a_run(seed=i), arm=f"arm {i}", fraction=0.1*i) for i in range(3)])
    scored = score_samples(frame, [f"TCGA-{i}" for i in range(300)])
    write_scores(scored, tmp_path/"scores.parquet")
    back = pd.read_parquet(tmp_path/"scores.parquet")
    assert back["sample"].is_monotonic_increasing and set(back.dtypes[list(SCORED)[1:]]) == {np.dtype("float16")}
    keys = ["arm", "sample"]
    back, scored = (frame.sort_values(keys, ignore_index=True) for frame in (back, scored))
    pd.testing.assert_frame_equal(back, scored)


@pytest.mark.parametrize("spoil, message", [
    (lambda p: p.iloc[:0], "no rows"), (lambda p: p.drop(columns=["p0", "p1", "p2", "p3", "p4"]), "no probabilities"),
    (lambda p: p.assign(p2=np.nan), "NaN probabilities: a run has diverged")])
def test_what_cannot_be_scored_is_refused(spoil, message):
    with pytest.raises(ValueError, match=message): score_samples(spoil(frame_of(*a_run(10))))
