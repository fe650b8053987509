"""Preprocessing: equal to slow versions, fitted on training rows only, and honest about what it cannot do."""
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from ssl_expr.data import load, toy
from ssl_expr.preprocess import (
    DepthNormalise,
    FillMissing,
    GeneFilter,
    Log2,
    QuantileNormalise,
    ZScore,
    align_genes,
    preprocessor,
)
from ssl_expr.splits import fitting_rows, make_split

STEPS = [DepthNormalise(), Log2(), GeneFilter(n_top=20), FillMissing(), QuantileNormalise(), ZScore()]


def fitted_numbers(pipeline):
    "Every fitted array of a pipeline, by step and name."
    return {f"{name}.{key}": value for name, step in pipeline.steps for key, value in vars(step).items()
            if key.endswith("_") and isinstance(value, np.ndarray)}


def moved(X, units, protocol, split, n_genes=50):
    "Fitted arrays that change when held-out rows are rewritten with noise."
    rng, noisy = np.random.default_rng(1), X.copy()
    held_out = np.concatenate([split.validation, split.test])
    noisy[held_out] = rng.permuted(noisy[held_out], axis=1)*rng.integers(0, 5, (len(held_out), 1))
    rows = fitting_rows(split, protocol)
    before, after = (fitted_numbers(preprocessor(protocol, units, n_genes).fit(matrix[rows])) for matrix in (X, noisy))
    assert before.keys() == after.keys() and len(before) >= 5
    return {name for name in before if not np.array_equal(before[name], after[name])}


@pytest.mark.parametrize("seed", range(5))
def test_noise_in_held_out_rows_moves_no_fitted_number_under_strict_and_many_under_paper(seed):
    data = toy(200, samples_per_patient=2, seed=seed)
    labels, patients = data.obs["label"].to_numpy(), data.obs["patient"].to_numpy()
    assert moved(data.X, "counts", "strict", make_split(labels, patients, "strict", seed)) == set()
    cheat = moved(data.X, "counts", "paper", make_split(labels, patients, "paper", seed))
    assert {"fill.mean_", "quantile.reference_", "scale.mean_", "scale.scale_"} <= cheat


def slow_quantile_normalisation(train, X):
    "Written out: each value becomes the mean of the reference over the places its ties occupy."
    reference = [sum(sorted(row)[place] for row in train)/len(train) for place in range(train.shape[1])]
    result = np.empty_like(X)
    for i, row in enumerate(X):
        for j, value in enumerate(row):
            first = sum(other < value for other in row)
            ties = sum(other == value for other in row)
            result[i, j] = sum(reference[first:first + ties])/ties
    return result


@pytest.mark.parametrize("seed", range(4))
def test_quantile_normalisation_equals_the_slow_version_with_many_ties(seed):
    X = np.random.default_rng(seed).poisson(1.5, (12, 40)).astype(float)
    fast = QuantileNormalise().fit(X[:8]).transform(X)
    np.testing.assert_allclose(fast, slow_quantile_normalisation(X[:8], X), rtol=1e-12)


def test_quantile_normalised_samples_without_ties_share_one_distribution():
    X = np.random.default_rng(0).normal(size=(10, 50))*np.arange(1, 11)[:, None]
    ordered = np.sort(QuantileNormalise().fit_transform(X), axis=1)
    np.testing.assert_allclose(ordered, np.broadcast_to(ordered[0], ordered.shape))


def test_depth_normalised_samples_have_the_same_total_and_do_not_know_each_other():
    X = toy(20).X
    together = DepthNormalise(1e4).fit_transform(X)
    np.testing.assert_allclose(together.sum(1), 1e4, rtol=1e-5)
    np.testing.assert_array_equal(together[3:4], DepthNormalise(1e4).fit_transform(X[3:4]))


def test_a_sample_read_twice_as_deep_gives_the_same_input():
    X = toy(50).X
    pipeline = preprocessor("strict", "counts").fit(X)
    np.testing.assert_allclose(pipeline.transform(X), pipeline.transform(2*X), atol=1e-4)


def test_z_scores_equal_the_formula_and_held_out_values_stay_in_the_training_range():
    rng = np.random.default_rng(0)
    train, held_out = rng.normal(3, 2, (50, 7)), rng.normal(3, 20, (30, 7))
    scaled = ZScore().fit(train)
    np.testing.assert_allclose(scaled.transform(train), (train - train.mean(0))/train.std(0))
    low, high = scaled.transform(train).min(0), scaled.transform(train).max(0)
    clipped, free = scaled.transform(held_out), ZScore(clip=False).fit(train).transform(held_out)
    assert (clipped >= low).all() and (clipped <= high).all() and (free > high).any() and (free < low).any()
    inside = (free >= low) & (free <= high)
    np.testing.assert_allclose(clipped[inside], free[inside])


def test_z_scores_undo_and_leave_gaps_and_constant_genes_alone():
    X = np.array([[1., 5, np.nan], [3, 5, 2], [5, 5, 4]])
    scaler = ZScore().fit(X)
    Z = scaler.transform(X)
    assert np.isnan(Z[0, 2]) and (Z[:, 1] == 0).all() and np.isfinite(np.delete(Z, 2, 1)).all()
    np.testing.assert_allclose(scaler.inverse_transform(Z), X)


def test_only_the_strict_protocol_clips_held_out_values():
    X = np.random.default_rng(0).normal(12, 1, (60, 30))
    X[:, 4] -= 5                                    # among the lowest of every training sample, the highest in this one
    outlier = X[:1].copy()
    outlier[0, 4] = 29
    for protocol, clipped in (("strict", True), ("paper", False)):
        pipeline = preprocessor(protocol, "log2(x+1)").fit(X)
        highest = pipeline.transform(X).max(0)
        assert (pipeline.transform(outlier) <= highest).all() == clipped


def test_missing_values_become_the_training_mean_never_the_held_out_one():
    filler = FillMissing().fit([[1., 4], [3, np.nan]])
    np.testing.assert_array_equal(filler.transform([[np.nan, np.nan], [100, np.nan]]), [[2, 4], [100, 4]])


def test_the_most_variable_genes_are_those_a_sort_by_variance_gives():
    X = np.random.default_rng(0).normal(size=(30, 40))*np.random.default_rng(1).permutation(40)
    X[:, 5] = 3
    X[0, np.argsort(-X.var(0))[0]] = np.nan
    kept = np.flatnonzero(GeneFilter(n_top=10).fit(X).kept_)
    allowed = [j for j in range(40) if not np.isnan(X[:, j]).any() and X[:, j].std() > 0]
    assert set(kept) == set(sorted(allowed, key=lambda j: -X[:, j].var())[:10])
    assert GeneFilter(n_top=500).fit(X).kept_.sum() == len(allowed)


def test_genes_that_vary_only_in_held_out_rows_are_not_chosen():
    X = np.random.default_rng(0).normal(size=(30, 5))
    X[:20, 2] = 1
    assert not GeneFilter().fit(X[:20]).kept_[2]


def test_the_share_of_missing_values_a_gene_may_have_is_a_setting():
    X = np.array([[1., 1, np.nan], [2, np.nan, np.nan], [3, 2, np.nan], [4, 5, np.nan]])
    for share, kept in ((0, [True, False, False]), (0.25, [True, True, False]), (1, [True, True, False])):
        assert list(GeneFilter(max_missing=share).fit(X).kept_) == kept


@pytest.mark.parametrize("protocol, units, steps", [
    ("strict", "counts", ["depth", "log", "genes", "fill", "scale"]),
    ("strict", "TPM", ["log", "genes", "fill", "scale"]),
    ("strict", "log2(RSEM+1)", ["genes", "fill", "scale"]),
    ("paper", "counts", ["genes", "fill", "log", "quantile", "scale"]),
    ("paper", "log2(x+1)", ["genes", "fill", "quantile", "scale"])])
def test_units_decide_the_steps_so_no_logarithm_is_taken_twice(protocol, units, steps):
    assert [name for name, _ in preprocessor(protocol, units).steps] == steps


@pytest.mark.parametrize("units, advice", [("z-score", "before scaling"), ("Z-score of log2", "before scaling"),
                                           ("unknown", "state the units"), ("", "state the units")])
@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_units_that_cannot_be_preprocessed_are_refused_with_advice(protocol, units, advice):
    with pytest.raises(ValueError, match=advice): preprocessor(protocol, units)


def test_an_unknown_protocol_names_the_known_ones():
    with pytest.raises(ValueError, match="strict, paper"): preprocessor("strickt", "counts")


@pytest.mark.parametrize("protocol, n_genes", [("strict", None), ("strict", 300), ("paper", None), ("paper", 300)])
def test_the_real_tumours_become_finite_scaled_numbers(protocol, n_genes):
    tumours = load("coadread")[:120]
    pipeline = preprocessor(protocol, tumours.uns["units"], n_genes).fit(tumours.X[:100])
    Z = pipeline.transform(tumours.X)
    names = pipeline.get_feature_names_out(tumours.var_names.to_numpy())
    assert Z.dtype == np.float32 and np.isfinite(Z).all() and Z.shape == (120, len(names))
    assert n_genes is None or len(names) == n_genes
    np.testing.assert_allclose(Z[:100].mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(Z[:100].std(0), 1, atol=1e-3)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: type(step).__name__)
def test_every_step_is_a_clean_transformer(step):
    X = toy(30, n_genes=60).X
    before, again = X.copy(), clone(step)
    assert again.get_params() == step.get_params() and again.fit(X) is again
    first = again.transform(X)
    np.testing.assert_array_equal(X, before)                                  # the input is left alone
    np.testing.assert_array_equal(first, clone(step).fit_transform(X))
    np.testing.assert_allclose(first[:7], again.transform(X[:7]), rtol=1e-6)  # rows do not depend on their company
    np.testing.assert_array_equal(first, again.transform(pd.DataFrame(X)))
    assert first.dtype == np.float32 and len(again.get_feature_names_out()) == first.shape[1]
    assert again.transform(X.astype(int)).dtype == np.float64


@pytest.mark.parametrize("step", STEPS, ids=lambda step: type(step).__name__)
def test_every_step_refuses_what_it_was_not_fitted_for(step):
    X = toy(30, n_genes=60).X
    with pytest.raises(ValueError, match="not fitted"): clone(step).transform(X)
    with pytest.raises(ValueError, match="60 genes and got 59"): clone(step).fit(X).transform(X[:, 1:])
    with pytest.raises(ValueError, match="samples x genes"): clone(step).fit(X[0])
    X[3, 4] = np.inf
    with pytest.raises(ValueError, match="infinite value in row 3, column 4"): clone(step).fit(X)


@pytest.mark.parametrize("action, message", [
    (lambda: Log2().fit_transform([[1., -2]]), "negative value -2 in row 0, column 1"),
    (lambda: DepthNormalise().fit_transform([[1., -2]]), "negative value -2 in row 0, column 1"),
    (lambda: DepthNormalise().fit_transform([[1., 2], [0, 0]]), "row 1 has no read"),
    (lambda: GeneFilter().fit(np.ones((3, 4))), "no gene is left"),
    (lambda: GeneFilter(n_top=0).fit(np.eye(3)), "at least 1, got 0"),
    (lambda: FillMissing().fit([[1., np.nan], [1, np.nan]]), "column 1 has no value"),
    (lambda: ZScore().fit([[1., np.nan], [1, np.nan]]), "column 1 has no value"),
    (lambda: QuantileNormalise().fit([[1., np.nan]]), "FillMissing")])
def test_values_a_step_cannot_take_are_named(action, message):
    with pytest.raises(ValueError) as refusal: action()
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_aligned_genes_stand_in_the_wanted_order_with_gaps_where_absent():
    X = np.arange(8, dtype=np.float32).reshape(2, 4)
    aligned, coverage = align_genes(X, list("abcd"), list("dxa"))
    np.testing.assert_array_equal(aligned, np.array([[3, np.nan, 0], [7, np.nan, 4]], dtype=np.float32))
    assert aligned.dtype == np.float32
    assert (coverage.n_wanted, coverage.n_found, coverage.missing) == (3, 2, ("x",))
    assert coverage.share == pytest.approx(2/3) and str(coverage) == "2 of 3 genes found (66.7%)"


@pytest.mark.parametrize("genes, wanted, message", [
    (["A", "B"], ["C"], "no gene in common"), (["A", "A"], ["A"], "the data name gene 'A' twice"),
    (["A", "B"], ["B", "B"], "the wanted genes name gene 'B' twice"), (["A"], ["A"], "do not fit")])
def test_genes_that_cannot_be_aligned_are_refused(genes, wanted, message):
    with pytest.raises(ValueError, match=message): align_genes(np.ones((3, 2)), genes, wanted)
