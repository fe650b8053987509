"""Intervals against brute force and simulation, verdicts, labels saved on hand-made curves."""
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss, roc_auc_score
from test_metrics import brute_force_calibration_error

from ssl_expr.evaluate import (
    Resamples,
    _draw,
    _repeat_weights,
    differences,
    label_curves,
    paired_difference,
    resample,
    scores,
)
from ssl_expr.metrics import LOWER_IS_BETTER, METRICS, score_samples, write_scores
from ssl_expr.savings import (
    BEST,
    gain_area,
    gain_areas,
    labels_needed,
    labels_saved,
    labels_saved_interval,
    leaders,
    saved,
    times_fewer,
    with_best,
)

C = 3


def predictions_of(right_of, n_splits=1, n_repeats=1, fractions=(0.1, 1.0), arms=("scarf", "scratch"), seed=0,
                   n_test=40, n_patients=60, samples_per_patient=1):
    """`right_of(arm, fraction, hard, rng)` says who is classified rightly; patients differ in `hard`."""
    rng, frames = np.random.default_rng(seed), []
    truth, hard = rng.choice(C, n_patients, p=[0.73, 0.14, 0.13]), rng.normal(size=n_patients)
    for split in range(n_splits):
        patient = np.repeat(np.sort(rng.permutation(n_patients)[:n_test]), samples_per_patient)
        for arm in arms:
            for fraction in fractions:
                for repeat in range(n_repeats):
                    right = right_of(arm, fraction, hard[patient], rng)
                    called = np.where(right, truth[patient], (truth[patient] + rng.integers(1, C, len(patient))) % C)
                    frames.append(pd.DataFrame(dict(
                        protocol="strict", split=split, arm=arm, mode="unfrozen", fraction=fraction, repeat=repeat,
                        n_labels=int(200*fraction), epochs=1, sample=np.arange(len(patient)) + 1000*split,
                        patient=[f"TCGA-{p}" for p in patient], truth=truth[patient],
                        **{f"p{c}": 0.2 + 0.4*(called == c) for c in range(C)})))
    return pd.concat(frames, ignore_index=True)


def mostly(arm, fraction, hard, rng):
    """Hard patients are hard for every arm; scarf is a little better."""
    return hard + 0.3*rng.normal(size=len(hard)) < 0.5 + 0.5*fraction + 0.25*(arm == "scarf")


EXACT = [m for m, metric in enumerate(METRICS) if metric != "auroc"] # AUROC of a resample: see test_metrics.py


def by_sklearn(rows):
    """The exact metrics of a run's rows; AUROC is NaN."""
    probabilities = rows[["p0", "p1", "p2"]].to_numpy()
    truth, called = rows["truth"].to_numpy(), probabilities.argmax(1)
    with warnings.catch_warnings(action="ignore"): # of classes that a resample does not contain
        return np.array([accuracy_score(truth, called), balanced_accuracy_score(truth, called),
                         f1_score(truth, called, average="macro"), np.nan,
                         log_loss(truth, probabilities, labels=range(C)),
                         brute_force_calibration_error(truth, probabilities)])


def test_scores_are_those_of_scikit_learn():
    predictions = predictions_of(mostly, n_splits=2, n_repeats=2)
    table = scores(predictions)
    assert len(table) == 2*2*2*2
    for row in table.to_dict("records"):
        part = predictions
        for key in ("split", "arm", "fraction", "repeat"):
            part = part[part[key] == row[key]]
        values = np.array([row[m] for m in METRICS])
        np.testing.assert_allclose(values[:3], by_sklearn(part)[:3], rtol=1e-6)
        np.testing.assert_allclose(values[EXACT], by_sklearn(part)[EXACT], atol=5e-4) # 16 bits
        exact = roc_auc_score(part["truth"], part[["p0", "p1", "p2"]], multi_class="ovr")
        assert abs(row["auroc"] - exact) < 2e-5


def centred(draws, estimate):
    """Resamples of the calibration error, the last metric, without what drawing adds on average."""
    return np.column_stack([draws[:, :5], np.maximum(draws[:, 5] - draws[:, 5].mean() + estimate[5], 0)])


def test_every_resample_is_scikit_learn_on_copied_rows():
    predictions = predictions_of(mostly, arms=("scratch",), fractions=(0.5,), n_test=12, samples_per_patient=2)
    drawn = resample(predictions, n_resamples=60, seed=3)
    patients = np.unique(predictions["patient"])
    weights, absent, expected = _draw(len(patients), 60, 3), 0, []
    for b in range(60):
        times = pd.Series(weights[b + 1], patients)[predictions["patient"]].astype(int)
        rows = predictions.loc[predictions.index.repeat(times)]
        absent += rows["truth"].nunique() < predictions["truth"].nunique()
        expected.append(by_sklearn(rows))
        pseudo = score_samples(predictions)["auroc"].astype(float)[rows.index]
        np.testing.assert_allclose(drawn.draws[0, b, METRICS.index("auroc")], pseudo.mean(), rtol=1e-5)
    expected = centred(np.array(expected), by_sklearn(predictions))
    np.testing.assert_allclose(drawn.draws[0, :, :3], expected[:, :3], rtol=1e-5)
    np.testing.assert_allclose(drawn.draws[0][:, EXACT], expected[:, EXACT], atol=5e-4)
    assert absent > 0, "some resample should lack a class, or that case is not tested"


def test_splits_and_repeats_are_drawn_too():
    predictions = predictions_of(mostly, n_splits=3, n_repeats=2, arms=("scratch",), fractions=(0.5,))
    drawn = resample(predictions, n_resamples=20, seed=1)
    patients = np.unique(predictions["patient"])
    patient_weight, split_weight = _draw(len(patients), 20, 1), _draw(3, 20, 1, 1)
    totals = np.zeros((21, 6))
    for b in range(21):
        for s in range(3):
            repeat_weight = _draw(2, 20, 1, 2, s, 2)[b]
            for r in range(2):
                part = predictions[(predictions["split"] == s) & (predictions["repeat"] == r)]
                times = pd.Series(patient_weight[b], patients)[part["patient"]].astype(int)
                rows = part.loc[part.index.repeat(times)]
                totals[b] += split_weight[b, s]/3*repeat_weight[r]/2*by_sklearn(rows)
    values = np.vstack([drawn.mean[0], drawn.draws[0]])
    expected = np.vstack([totals[:1], centred(totals[1:], totals[0])])
    np.testing.assert_allclose(values[:, :3], expected[:, :3], rtol=1e-5)
    np.testing.assert_allclose(values[:, EXACT], expected[:, EXACT], atol=5e-4)


def test_the_interval_of_a_small_calibration_error_holds_the_estimate():
    """Probabilities that are right: drawing again adds noise to every bin, and would lift all resamples above it."""
    rng, n = np.random.default_rng(0), 400
    confidence = rng.uniform(0.5, 1, n)
    truth = (rng.random(n) > confidence).astype(int)
    frame = pd.DataFrame(dict(protocol="strict", split=0, arm="scarf", mode="unfrozen", fraction=1.0, repeat=0,
                              n_labels=9, epochs=1, sample=range(n), patient=[f"p{i}" for i in range(n)], truth=truth,
                              p0=confidence, p1=1 - confidence))
    curve = label_curves(frame).set_index("metric").loc["calibration_error"]
    assert 0 <= curve["low"] < curve["mean"] < curve["high"] < curve["mean"] + 0.05


def test_raw_and_scored_predictions_give_the_same_tables(tmp_path):
    raw = predictions_of(mostly, n_splits=2, n_repeats=2)
    write_scores(score_samples(raw), tmp_path/"scores.parquet")
    scored = pd.read_parquet(tmp_path/"scores.parquet")
    assert "p0" not in scored
    for table in (scores, label_curves, differences, saved, gain_areas):
        pd.testing.assert_frame_equal(table(raw), table(scored))


def coverage(cluster_by, n_studies=500, n_patients=60, samples_per_patient=3):
    """Share of simulated studies whose interval holds the true accuracy of 0.7; samples of a patient agree."""
    right = np.repeat(np.random.default_rng(0).random((n_studies, n_patients)) < 0.7, samples_per_patient, axis=1)
    samples = np.tile(np.arange(right.shape[1]), n_studies)
    frame = pd.DataFrame(dict(protocol="strict", split=0, arm=np.repeat(np.arange(n_studies), right.shape[1]), mode="",
                              fraction=1.0, repeat=0, n_labels=9, sample=samples, truth=0, p1=0.5))
    frame["p0"] = 1.0*right.ravel()
    frame["patient"] = samples//samples_per_patient if cluster_by == "patient" else samples
    table = label_curves(frame)
    table = table[table["metric"] == "accuracy"]
    assert len(table) == n_studies
    return ((table["low"] <= 0.7) & (0.7 <= table["high"])).mean()


def test_intervals_by_patient_hold_the_truth_in_about_95_percent_of_studies():
    assert 0.90 <= coverage("patient") <= 0.98


def test_intervals_by_sample_would_be_too_narrow():
    assert coverage("sample") < 0.85


def test_a_patient_tested_in_every_split_is_one_patient():
    """Five copies of one split hold no more patients than one: the interval must not shrink."""
    one = predictions_of(mostly, arms=("scratch",), fractions=(0.5,))
    five = pd.concat([one.assign(split=split) for split in range(5)])
    np.testing.assert_allclose(resample(one).draws, resample(five).draws, rtol=1e-5)


def test_a_paired_interval_is_narrower_than_an_unpaired_one():
    drawn = resample(predictions_of(mostly, n_splits=2, n_repeats=2))
    scarf, scratch = (drawn.draws[drawn.points.index[drawn.points["arm"] == arm]] for arm in ("scarf", "scratch"))
    rng = np.random.default_rng(0)
    def width(gap): return np.ptp(np.quantile(gap, [0.025, 0.975], axis=1), axis=0)
    paired, unpaired = width(scarf - scratch), width(scarf - scratch[:, rng.permutation(1000)])
    assert (paired < 0.7*unpaired)[:, 0].all() and (paired < unpaired).all()


def test_verdicts_follow_from_the_interval():
    def skill(arm, fraction, hard, rng): return hard < {"same": 0.2, "scratch": 0.2, "better": 1.0, "worse": -0.6}[arm]
    table = differences(predictions_of(skill, arms=("same", "better", "worse", "scratch"), n_test=50))
    table = table[table["metric"] == "accuracy"]
    assert set(table["arm"]) == {"same", "better", "worse"} and (table["reference"] == "scratch").all()
    for arm, verdict in dict(same="tie", better="better", worse="worse").items():
        assert (table.loc[table["arm"] == arm, "verdict"] == verdict).all()
    assert ((table["low"] <= table["difference"]) & (table["difference"] <= table["high"])).all()
    same = table[table["arm"] == "same"] # equal on every patient, so equal in every draw of patients
    assert (same[["difference", "low", "high"]] == 0).all(axis=None)


def test_a_lower_loss_and_calibration_error_are_better():
    def skill(arm, fraction, hard, rng): return hard < {"scratch": 0.2, "better": 1.0, "worse": -0.6}[arm]
    table = differences(predictions_of(skill, arms=("better", "worse", "scratch"), n_test=50))
    table = table[table["metric"] == "log_loss"]
    assert (table["arm"] == table["verdict"]).all() and len(table) == 4
    assert (table.loc[table["arm"] == "better", "high"] < 0).all()


def test_an_arm_that_knows_how_often_it_errs_is_better_calibrated():
    """Two arms right on the same third of patients, one of them with 36 % confidence, the other with 60 %."""
    both = predictions_of(lambda arm, fraction, hard, rng: hard < -0.5, n_test=50)
    honest, probabilities = both["arm"] == "scarf", ["p0", "p1", "p2"]
    both.loc[honest, probabilities] = np.where(both.loc[honest, probabilities] > 0.5, 0.36, 0.32)
    verdicts = differences(both).set_index("metric")["verdict"]
    assert set(verdicts["calibration_error"]) == {"better"} and set(verdicts["accuracy"]) == {"tie"}


def test_a_gap_smaller_than_its_interval_is_a_tie():
    def skill(arm, fraction, hard, rng): return rng.random(len(hard)) < 0.7 + 0.02*(arm == "scarf")
    table = differences(predictions_of(skill, n_splits=2, n_repeats=2))
    assert (table["difference"] != 0).all() and (table["verdict"] == "tie").all()


def test_what_arms_are_beside_it_does_not_move_an_interval():
    predictions = predictions_of(mostly, n_splits=2, n_repeats=2, arms=("vime", "scarf", "scratch"))
    whole = label_curves(predictions)
    shuffled = predictions[predictions["arm"] == "scarf"].sample(frac=1, random_state=0)
    alone = label_curves(shuffled)
    same = whole[whole["arm"] == "scarf"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, same, rtol=1e-6)


def test_the_same_seed_gives_the_same_tables_to_the_last_bit():
    predictions = predictions_of(mostly, n_splits=2, n_repeats=2)
    for table in (label_curves, differences, saved, gain_areas):
        assert table(predictions).equals(table(predictions)), table.__name__
        assert table(resample(predictions)).equals(table(predictions)), table.__name__
    assert not label_curves(predictions, seed=1)["low"].equals(label_curves(predictions)["low"])


def test_scratch_is_compared_with_in_its_unfrozen_mode():
    predictions = predictions_of(mostly)
    untrained = predictions[predictions["arm"] == "scratch"].assign(mode="frozen")
    logistic = predictions[predictions["arm"] == "scarf"].assign(arm="logistic-pca", mode="baseline")
    table = differences(pd.concat([predictions, untrained, logistic]), ["scratch", "logistic-pca"])
    def rivals(reference):
        rows = table[table["reference"] == reference]
        return set(zip(rows["arm"], rows["mode"], strict=True))
    assert rivals("scratch") == {("scarf", "unfrozen"), ("scratch", "frozen"), ("logistic-pca", "baseline")}
    assert rivals("logistic-pca") == {("scarf", "unfrozen"), ("scratch", "frozen"), ("scratch", "unfrozen")}


def test_protocols_are_never_mixed():
    predictions = predictions_of(mostly)
    both = pd.concat([predictions, predictions_of(mostly, seed=9, n_test=30).assign(protocol="paper")])
    table = label_curves(both)
    assert table.groupby("protocol")["n_test"].unique().map(list).to_dict() == dict(paper=[30], strict=[40])
    strict = table[table["protocol"] == "strict"].reset_index(drop=True)
    pd.testing.assert_frame_equal(strict, label_curves(predictions), rtol=1e-6)


def test_arms_of_unequal_repeats_can_be_compared():
    predictions = predictions_of(mostly, n_splits=2, n_repeats=3)
    fewer = predictions[(predictions["arm"] == "scratch") | (predictions["repeat"] == 1)]
    table = label_curves(fewer)
    assert table.groupby("arm")["n_repeats"].unique().map(list).to_dict() == dict(scarf=[1], scratch=[3])
    assert np.isfinite(differences(fewer)[["difference", "low", "high"]]).all(axis=None)


def test_two_frames_are_compared_as_their_arms_are():
    predictions = predictions_of(mostly, n_splits=2, n_repeats=2)
    scarf, scratch = (predictions[predictions["arm"] == arm] for arm in ("scarf", "scratch"))
    ours = paired_difference(scarf, scratch, "macro_f1")
    table = differences(predictions)
    theirs = table.loc[table["metric"] == "macro_f1", list(ours)].reset_index(drop=True)
    pd.testing.assert_frame_equal(ours, theirs)
    with pytest.raises(ValueError, match="metric must be one of"):
        paired_difference(scarf, scratch, "auc")


P = [0.1, 0.2, 0.6, 1.0]


@pytest.mark.parametrize("curve, baseline, want", [
    ([0.5, 0.6, 0.7, 0.8], [0.5, 0.6, 0.7, 0.8], 0.0),    # itself
    ([0.5, 0.8, 0.8, 0.8], [0.5, 0.6, 0.7, 0.8], 0.8),    # at 0.2 instead of 1
    ([0.5, 0.7, 0.9, 0.9], [0.5, 0.6, 0.7, 0.8], 0.6),    # half-way from 0.2 to 0.6
    ([0.9, 0.9, 0.9, 0.9], [0.5, 0.6, 0.7, 0.8], 0.9),    # at the first fraction: never less than that
    ([0.5, 0.8, 0.6, 0.9], [0.5, 0.6, 0.7, 0.8], 0.8),    # first crossing, although it dips
    ([0.5, 0.6, 0.7, 0.79], [0.5, 0.6, 0.7, 0.8], np.nan), # never
    ([0.5, 0.6, 0.8, 0.9], [0.5, 0.8, 0.7, 0.7], -2.0),   # later than an early maximum
    ([0.8, 0.8, 0.8, 0.8], [0.8, 0.8, 0.8, 0.8], 0.0)])   # flat
def test_labels_saved_on_hand_made_curves(curve, baseline, want):
    np.testing.assert_allclose(labels_saved(P, curve, baseline), want)


def test_the_interval_of_labels_saved_says_when_the_level_is_out_of_reach():
    baseline = np.tile([0.5, 0.6, 0.7, 0.8], (100, 1))
    reaching = np.tile([0.5, 0.7, 0.9, 0.9], (100, 1))
    assert labels_saved_interval(P, baseline, baseline) == (0.0, 0.0)
    np.testing.assert_allclose(labels_saved_interval(P, reaching, baseline), (0.6, 0.6))
    reaching[:10] = 0.1 # in a tenth of the resamples never
    low, high = labels_saved_interval(P, reaching, baseline)
    assert np.isnan(low) and np.isclose(high, 0.6)
    reaching[:] = 0.1
    assert np.isnan(labels_saved_interval(P, reaching, baseline)).all()


def test_the_table_of_labels_saved_leaves_the_baseline_out_and_holds_its_estimate():
    table = saved(predictions_of(mostly, fractions=(0.1, 0.3, 0.6, 1.0), n_splits=2, n_repeats=2))
    assert list(table) == ["protocol", "arm", "mode", "reference", "target", "metric", "saved", "low", "high"]
    assert set(table["arm"]) == {"scarf"} and set(table["reference"]) == {"scratch"}
    assert set(table["metric"]) == set(METRICS) - set(LOWER_IS_BETTER) and len(table) == 2*4
    row = table[table["metric"] == "accuracy"].iloc[0]
    assert row["low"] <= row["saved"] <= row["high"]


def by_hand(curves, n=200):
    """Draws of given accuracy curves: in half of the resamples every score is 0.0625 higher, else lower."""
    points = pd.DataFrame([dict(protocol="strict", arm=arm, mode=mode, fraction=p, n_labels=int(100*p), n_splits=1,
                                n_repeats=1, n_test=9) for arm, mode in curves for p in P])
    mean = np.repeat(np.concatenate(list(curves.values()))[:, None], len(METRICS), axis=1)
    return Resamples(points, mean, mean[:, None] + 0.0625*np.where(np.arange(n) % 2, 1, -1)[:, None])


def test_labels_saved_for_both_targets_as_computed_by_hand():
    drawn = by_hand({("scarf", "unfrozen"): [0.5, 0.75, 0.875, 1.0], ("scratch", "frozen"): [0.25, 0.25, 0.25, 0.25],
                     ("scratch", "unfrozen"): [0.5, 0.625, 0.75, 0.875],
                     ("logistic", "baseline"): [0.25, 0.75, 0.5, 0.5]})
    table = saved(drawn, ["scratch", "logistic"])
    keys = ["reference", "arm", "mode", "target"]
    table = table[table["metric"] == "auroc"].set_index(keys)[["saved", "low", "high"]]
    want = {("scratch", "scarf", "unfrozen", "best"): 0.4,                       # 0.875 at 0.6 instead of 1
            ("scratch", "scarf", "unfrozen", "best minus interval"): 0.5,        # 0.8125 at 0.4 instead of 0.8
            ("scratch", "logistic", "baseline", "best"): np.nan,
            ("scratch", "logistic", "baseline", "best minus interval"): np.nan,
            ("scratch", "scratch", "frozen", "best"): np.nan,
            ("scratch", "scratch", "frozen", "best minus interval"): np.nan,
            ("logistic", "scarf", "unfrozen", "best"): 0.0,                      # 0.75 at 0.2, as logistic
            ("logistic", "scarf", "unfrozen", "best minus interval"): 1 - 0.175/0.1875, # 0.6875 from 0.1 to 0.2
            ("logistic", "scratch", "unfrozen", "best"): -2.0,                   # 0.75 at 0.6 instead of 0.2
            ("logistic", "scratch", "unfrozen", "best minus interval"): 1 - 0.4/0.1875,
            ("logistic", "scratch", "frozen", "best"): np.nan,
            ("logistic", "scratch", "frozen", "best minus interval"): np.nan}
    assert set(table.index) == set(want)
    for key, share in want.items(): np.testing.assert_allclose(table.loc[key], share, rtol=1e-9, err_msg=str(key))


def test_labels_are_saved_not_shares_which_are_rounded_up():
    drawn = by_hand({("scarf", "unfrozen"): [0.875, 0.9, 0.9, 0.9], ("scratch", "unfrozen"): [0.5, 0.6, 0.7, 0.875]})
    drawn.points["n_labels"] = [44, 60, 80, 100]*2          # of shares 0.1, 0.2, 0.6 and 1
    found = saved(drawn).query("metric == 'accuracy' and target == 'best'")
    np.testing.assert_allclose(found[["saved", "low", "high"]], 0.56)


def test_the_best_simple_model_is_at_every_share_the_baseline_with_the_highest_mean():
    baselines = ["genes", "pca", "trees"]
    def skill(arm, fraction, hard, rng):
        level = {"scarf": 2.0, "genes": fraction, "pca": 0.5, "trees": 0.4}[arm]   # pca leads, then genes
        return hard + 0.1*rng.normal(size=len(hard)) < level
    frame = predictions_of(skill, arms=("scarf", *baselines), fractions=(0.1, 1.0), n_splits=2, n_repeats=2)
    frame["mode"] = np.where(frame["arm"].isin(baselines), "baseline", "self-training")
    drawn = resample(pd.concat([frame, frame.assign(protocol="paper")]), n_resamples=50)
    both, balanced = with_best(drawn, baselines), METRICS.index("balanced_accuracy")
    assert both.points["arm"].iloc[leaders(drawn, baselines)].tolist() == ["pca", "genes"]*2
    added = both.points.index[both.points["arm"] == BEST]
    assert len(added) == 4 and set(both.points.loc[added, "mode"]) == {"baseline"}
    for k in added:
        here = (drawn.points[["protocol", "fraction"]] == both.points.loc[k, ["protocol", "fraction"]]).all(axis=1)
        rivals = drawn.points.index[here & drawn.points["arm"].isin(baselines)]
        chosen = rivals[drawn.mean[rivals, balanced].argmax()]
        assert (both.mean[k] == drawn.mean[chosen]).all() and (both.draws[k] == drawn.draws[chosen]).all()
    assert (both.mean[:len(drawn.mean)] == drawn.mean).all(), "the other arms are as they were"
    with pytest.raises(ValueError, match="no baseline scarf has predictions: choose among genes, pca, trees"):
        with_best(drawn, ["scarf", "pca"])


def slow_bounds(labels, curve, level):
    """Between which numbers of labels a curve first stands at a level, walked along its straight lines."""
    if curve[0] >= level: return 0, labels[0]
    for i in range(1, len(curve)):
        if curve[i] >= level:
            exact = np.interp(level, curve[i - 1:i + 1], labels[i - 1:i + 1])
            return exact, exact
    return labels[-1], np.inf


def slow_end(values, rank):
    """The value of this rank from below (from above, if negative); open ends are NaN."""
    value = sorted(values)[rank]
    return value if 0 < value < np.inf else np.nan


def noisy_curves(n=200, seed=0):
    """Rising curves with luck: of one another, of a level and of where they end; the reference has two modes."""
    rng, labels = np.random.default_rng(seed), np.array([10, 25, 60, 150])
    keys = [("ours", "frozen"), ("ours", "unfrozen"), ("low", "frozen"), ("best", "frozen"), ("best", "unfrozen")]
    height = np.array([0.05, 0.1, -0.1, -0.2, 0])[:, None] + [0.5, 0.65, 0.75, 0.8]
    points = pd.DataFrame([dict(protocol="strict", arm=arm, mode=mode, fraction=n/150, n_labels=n, n_splits=1,
                                n_repeats=1, n_test=9) for arm, mode in keys for n in labels])
    luck = 0.04*rng.normal(size=(1, n, 1)) + 0.03*rng.normal(size=(len(points), n, 1))
    mean = np.repeat(height.ravel()[:, None], len(METRICS), axis=1)
    return Resamples(points, mean, mean[:, None] + luck), labels


LEVELS = (0.3, 0.45, 0.52, 0.6, 0.7, 0.79, 0.86, 0.99)


def test_labels_needed_are_those_of_a_slow_walk_along_every_resampled_curve():
    drawn, labels = noisy_curves()
    table = labels_needed(drawn, LEVELS, "macro_f1").set_index(["arm", "mode", "level"])
    assert len(table) == 5*len(LEVELS)
    for (arm, mode), rows in drawn.points.groupby(["arm", "mode"]):
        for level in LEVELS:
            found = table.loc[(arm, mode, level)]
            least, most = slow_bounds(labels, drawn.mean[rows.index, 2], level)
            draws = [slow_bounds(labels, curve, level)[1] for curve in drawn.draws[rows.index, :, 2].T]
            want = [most if most < np.inf else np.nan, slow_end(draws, 4), slow_end(draws, -6)]  # of 200
            np.testing.assert_allclose(found[["labels", "low", "high"]].astype(float), want, rtol=1e-9)
            assert found["at_most"] == (least == 0)
    assert table["at_most"].any() and table["labels"].isna().any() and table["high"].notna().any()


def test_times_fewer_lies_between_the_bounds_of_a_slow_walk_in_every_resample():
    drawn, labels = noisy_curves()
    table = times_fewer(drawn, "best", LEVELS, "macro_f1").set_index(["arm", "mode", "level"])
    reference = drawn.points.query("arm == 'best' and mode == 'unfrozen'").index   # as in `against`
    assert len(table) == 4*len(LEVELS) and ("best", "frozen") in table.index.droplevel("level")
    def between(ours, theirs): return theirs[0]/ours[1], theirs[1]/ours[0] if ours[0] else np.inf
    for (*curve, level), found in table.iterrows():
        rows = drawn.points.index[(drawn.points[["arm", "mode"]] == curve).all(axis=1)]
        def of(curves, rows=rows, level=level):
            return between(*(slow_bounds(labels, curves[at], level) for at in (rows, reference)))
        lower, upper = of(drawn.mean[:, 2])
        draws = [of(drawn.draws[:, b, 2]) for b in range(200)]
        assert (found["at_least"], found["at_most"]) == (upper == np.inf, lower == 0)
        want = np.nan if upper == np.inf and not lower else upper if upper < np.inf else lower
        ends = slow_end([low for low, _ in draws], 4), slow_end([high for _, high in draws], -6)
        np.testing.assert_allclose(found[["factor", "low", "high"]].astype(float), [want, *ends], rtol=1e-9)
    kinds = set(table[["at_least", "at_most"]].itertuples(index=False, name=None))
    assert len(kinds) == 4, "a number, a bound from either side, and nothing at all should all occur"


def test_no_interval_of_a_factor_ends_above_1_for_a_level_below_both_curves():
    """Both start above it: ours may need as few labels as theirs, or more."""
    drawn = by_hand({("ours", "frozen"): [0.8, 0.9, 0.9, 0.9], ("genes", "baseline"): [0.7, 0.7, 0.7, 0.9]})
    found = times_fewer(drawn, "genes", [0.5]).iloc[0]
    assert found[["factor", "low", "high"]].isna().all() and found["at_least"] and found["at_most"]


def test_labels_are_not_counted_for_a_score_that_falls():
    with pytest.raises(ValueError, match="a score that rises, got 'log_loss': choose one of accuracy"):
        labels_needed(noisy_curves()[0], [0.5], "log_loss")


def test_an_arm_equal_to_scratch_saves_nothing_and_gains_nothing():
    scratch = predictions_of(mostly, arms=("scratch",), fractions=(0.1, 0.3, 1.0))
    both = pd.concat([scratch, scratch.assign(arm="scarf")])
    assert (saved(both)[["saved", "low", "high"]] == 0).all(axis=None)
    assert (gain_areas(both)[["gain", "low", "high"]] == 0).all(axis=None)


def test_gain_area_is_the_mean_height_of_the_gap():
    curve, baseline = [0.6, 0.8, 0.8, 0.9], [0.5, 0.6, 0.8, 0.9]
    np.testing.assert_allclose(gain_area(P, curve, baseline), 0.15)     # 0.1 and 0.2 up to 0.3
    np.testing.assert_allclose(gain_area(P, curve, baseline, upto=0.6), (0.015 + 0.04)/0.5)
    np.testing.assert_allclose(gain_area([0.3], [0.7], [0.6]), 0.1)     # one fraction
    with pytest.raises(ValueError, match="no label fraction is at most 0.3"):
        gain_area([0.5, 1.0], [1, 1], [0, 0])


def test_a_resample_without_any_patient_of_a_small_split_is_survived():
    def always(arm, fraction, hard, rng): return np.ones(len(hard), bool)
    table = label_curves(predictions_of(always, n_splits=3, n_test=2)).set_index("metric")[["mean", "low", "high"]]
    assert (table.loc[list(METRICS[:3])] == 1).all(axis=None)
    np.testing.assert_allclose(table.loc["log_loss"], -np.log(0.6), atol=5e-4)


def test_the_interval_of_an_auroc_ends_at_1_where_the_first_order_passes_it():
    table = label_curves(by_hand({("scarf", "unfrozen"): [0.5, 0.75, 0.875, 1.0]})).set_index("metric")
    assert table.loc["auroc", "high"].tolist() == [0.5625, 0.8125, 0.9375, 1.0]
    assert table.loc["log_loss", "high"].max() == 1.0625


def test_without_a_second_class_there_is_no_auroc_but_all_other_scores():
    predictions = predictions_of(mostly).assign(truth=0)
    table = label_curves(predictions).set_index("metric")[["mean", "low", "high"]]
    assert table.loc["auroc"].isna().all(axis=None) and table.drop("auroc").notna().all(axis=None)


@pytest.mark.parametrize("spoil, message", [
    (lambda p: p.drop(columns=["patient", "arm"]), "lack the column.s. arm, patient"),
    (lambda p: p.iloc[:0], "no rows"),
    (lambda p: p.assign(p0=np.nan), "NaN probabilities"),
    (lambda p: pd.concat([score_samples(p[p["split"] == 0]), p[p["split"] == 1]]), "rows without scores"),
    (lambda p: p[~((p["arm"] == "scarf") & (p["sample"] == 3))],
     "arm 'scratch' was tested on other samples than 'scarf'"),
    (lambda p: p.assign(sample=p["sample"] + (p["arm"] == "scratch")), "was tested on other samples"),
    (lambda p: p[~((p["arm"] == "scarf") & (p["split"] == 1))], "arm 'scarf' has 1 of 2 splits"),
    (lambda p: p[p["arm"] == "scarf"], "reference arm 'scratch' has no predictions")])
def test_a_mistake_gives_one_clear_sentence(spoil, message):
    with pytest.raises(ValueError, match=message) as error:
        differences(spoil(predictions_of(mostly, n_splits=2)))
    assert "\n" not in str(error.value)


def test_gains_say_over_how_many_splits_and_repeats_they_are():
    table = gain_areas(predictions_of(mostly, n_splits=2, n_repeats=3))
    assert (table["n_splits"] == 2).all() and (table["n_repeats"] == 3).all()
    fewer = predictions_of(mostly, n_splits=2, n_repeats=3).query("arm != 'scratch' or repeat == 0")
    assert (gain_areas(fewer)["n_repeats"] == 1).all()   # the reference's single run is in every gain


def test_repeats_that_share_an_encoder_are_drawn_together():
    "Luck of three encoders, two repeats each: the mean varies as that of three draws, not of six."
    luck = np.array([-1, -1, 0, 0, 1, 1])
    together, apart = (_repeat_weights(kind, 20_000, 0) for kind in ("2 2 2", "6"))
    for weights in (together, apart):
        np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
        np.testing.assert_allclose(weights[0], 1/6)
    assert (together[1:] @ luck).var() == pytest.approx(2/3/3, rel=0.05)
    assert (apart[1:] @ luck).var() == pytest.approx(2/3/6, rel=0.05)


def test_intervals_know_which_repeats_share_an_encoder():
    def lucky(arm, fraction, hard, rng): return hard < 0.5
    frame = predictions_of(lucky, n_repeats=6, fractions=(1.0,), arms=("scarf",))
    bad = frame["repeat"].isin([4, 5])   # the third encoder is bad
    classes = frame[[f"p{c}" for c in range(C)]].to_numpy()
    frame.loc[bad, [f"p{c}" for c in range(C)]] = np.roll(classes, 1, axis=1)[bad]
    shared = frame.assign(repeat=1000*(frame["repeat"]//2) + frame["repeat"] % 2)
    def width(frame):
        row = label_curves(frame).query("metric == 'accuracy'").iloc[0]
        return row["mean"], row["high"] - row["low"]
    (mean, wide), (same, narrow) = width(shared), width(frame)
    assert mean == pytest.approx(same) and wide > 1.1*narrow
