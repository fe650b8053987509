"""Preprocessing: equal to slow versions, fitted on training rows only, and honest about what it cannot do."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.preprocessing import StandardScaler, normalize

from ssl_expr.data import load, toy
from ssl_expr.preprocess import (
    DepthNormalise,
    FillMissing,
    GeneFilter,
    Log2,
    Moments,
    QuantileNormalise,
    UndoLog2,
    ZScore,
    fit_in_blocks,
    preprocessor,
    transform_in_blocks,
)
from ssl_expr.splits import fitting_rows, make_split
from ssl_expr.store import open_store, write_store

STEPS = [DepthNormalise(), Log2(), GeneFilter(n_top=20), FillMissing(), QuantileNormalise(), ZScore()]
FITTED = [GeneFilter(max_missing=0.5, n_top=20), FillMissing(), QuantileNormalise(), ZScore()]


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
    ("strict", "log2(counts+1)", ["unlog", "depth", "log", "genes", "fill", "scale"]),
    ("paper", "log2(counts+1)", ["genes", "fill", "quantile", "scale"]),
    ("paper", "counts", ["genes", "fill", "log", "quantile", "scale"]),
    ("paper", "log2(x+1)", ["genes", "fill", "quantile", "scale"])])
def test_units_decide_the_steps_so_no_logarithm_is_taken_twice(protocol, units, steps):
    assert [name for name, _ in preprocessor(protocol, units).steps] == steps


def test_strict_may_normalise_quantiles_against_the_training_rows_only():
    data = toy(120, n_genes=50).X
    pipeline = preprocessor("strict", "counts", 20, quantile=True).fit(data[:80])
    assert list(pipeline.named_steps) == ["depth", "log", "genes", "fill", "quantile", "top", "scale"]
    quantiles = pipeline[:5].transform(data[80:])
    np.testing.assert_allclose(quantiles.mean(1), pipeline["quantile"].reference_.mean(), rtol=1e-5)  # ties share means
    noisy = np.vstack([data[:80], np.random.default_rng(0).poisson(9, data[80:].shape).astype(np.float32)])
    again = preprocessor("strict", "counts", 20, quantile=True).fit(noisy[:80])
    np.testing.assert_array_equal(again.transform(data), pipeline.transform(data))
    assert pipeline.transform(data).shape == (120, 20)


def test_strict_may_keep_genes_with_gaps_and_fills_them_by_their_training_mean():
    X = toy(100, n_genes=30).X.copy()
    X[:20, 3] = X[0, 4] = np.nan                     # of 80 training rows: a quarter, and one
    kept = {share: preprocessor("strict", "TPM", max_missing=share).fit(X[:80]) for share in (0, 0.1, 0.25)}
    missing = {share: 30 - steps["genes"].kept_.sum() for share, steps in kept.items()}
    assert missing == {0: 2, 0.1: 1, 0.25: 0}
    np.testing.assert_allclose(kept[0.25].transform(X)[:20, 3], 0, atol=1e-6)    # the mean, scaled
    with pytest.raises(ValueError, match="from 0 to 1, got 20"): preprocessor("strict", "TPM", max_missing=20).fit(X)


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
    (lambda: UndoLog2().fit_transform([[1., -2]]), "negative value -2 in row 0, column 1"),
    (lambda: UndoLog2().fit_transform([[1., 2], [900, 1]]), "value 900 in row 1, column 0"),
    (lambda: GeneFilter().fit(np.ones((3, 4))), "no gene is left"),
    (lambda: GeneFilter(n_top=0).fit(np.eye(3)), "at least 1, got 0"),
    (lambda: FillMissing().fit([[1., np.nan], [1, np.nan]]), "column 1 has no value"),
    (lambda: ZScore().fit([[1., np.nan], [1, np.nan]]), "column 1 has no value"),
    (lambda: QuantileNormalise().fit([[1., np.nan]]), "FillMissing")])
def test_values_a_step_cannot_take_are_named(action, message):
    with pytest.raises(ValueError) as refusal: action()
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


REFERENCE = Path(__file__).parent/"reference"/"quantile_normalisation.csv"


def test_quantile_normalisation_equals_the_package_qnorm_by_committed_numbers():
    table = pd.read_csv(REFERENCE, comment="#", index_col="part")
    X, everything, held_out = (table.loc[part].to_numpy() for part in ("input", "all", "held out"))
    np.testing.assert_allclose(QuantileNormalise().fit_transform(X), everything, rtol=0, atol=1e-9)
    np.testing.assert_allclose(QuantileNormalise().fit(X[:5]).transform(X[5:]), held_out, rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_quantile_normalisation_equals_the_package_qnorm_where_it_is_installed(seed):
    qnorm = pytest.importorskip("qnorm")
    rng = np.random.default_rng(seed)
    for X in (rng.normal(size=(20, 300)), rng.poisson(2, (20, 300)).astype(float)):
        np.testing.assert_allclose(QuantileNormalise().fit_transform(X), qnorm.quantile_normalize(X, axis=0), rtol=1e-9)


def test_reads_per_million_equal_scikit_learn_and_z_scores_equal_its_scaler():
    X = toy(60).X.astype(float)
    np.testing.assert_allclose(DepthNormalise().fit_transform(X), 1e6*normalize(X, norm="l1"), rtol=1e-12)
    ours, theirs = ZScore(clip=False).fit(X[:40]), StandardScaler().fit(X[:40])
    np.testing.assert_allclose(ours.transform(X), theirs.transform(X), rtol=1e-9, atol=1e-12)
    gaps = np.where(np.random.default_rng(0).random(X.shape) < 0.1, np.nan, X)
    ours, theirs = ZScore(clip=False).fit(gaps), StandardScaler().fit(gaps)
    np.testing.assert_allclose(ours.transform(gaps), theirs.transform(gaps), rtol=1e-9, atol=1e-12)


def with_gaps(n=90, genes=120, share=0.02, seed=0):
    "Counts with missing values; the first gene is complete, so no row is empty."
    X = toy(n, n_genes=genes, seed=seed).X
    gaps = np.random.default_rng(seed).random(X.shape) < share
    gaps[:, 0] = False
    return np.where(gaps, np.float32(np.nan), X)


def learned(step):
    "Every number a step has learned, by name."
    numbers = {name: value for name, value in vars(step).items() if isinstance(value, np.ndarray)}
    return numbers | {f"moments.{name}": value for name, value in vars(getattr(step, "moments_", None) or step).items()
                      if isinstance(value, np.ndarray)}


@pytest.mark.parametrize("ends", [(), (1,), (30, 31, 70), tuple(range(1, 90))],
                         ids=["one block", "one row first", "uneven", "single rows"])
@pytest.mark.parametrize("step", FITTED, ids=lambda step: type(step).__name__)
def test_a_step_learns_the_same_from_blocks_as_from_the_whole(step, ends):
    X = with_gaps(share=0 if isinstance(step, QuantileNormalise) else 0.02)
    whole, parts = clone(step).fit(X), clone(step)
    for block in np.split(X, ends): assert parts.partial_fit(block) is parts
    assert learned(whole).keys() == learned(parts).keys()
    for name, numbers in learned(whole).items():
        np.testing.assert_allclose(learned(parts)[name], numbers, rtol=1e-12, err_msg=name)
    np.testing.assert_allclose(parts.transform(X), whole.transform(X), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("step", FITTED, ids=lambda step: type(step).__name__)
def test_fit_forgets_what_partial_fit_had_learned(step):
    X = with_gaps(share=0)
    again = clone(step).partial_fit(3*X[:50] + 1).fit(X)
    for name, numbers in learned(clone(step).fit(X)).items():
        np.testing.assert_array_equal(learned(again)[name], numbers)
    assert not learned(again.reset()) and again.get_params() == step.get_params()


@pytest.mark.parametrize("seed", range(5))
def test_moments_are_those_of_float64_even_far_from_zero_and_with_genes_absent_from_some_blocks(seed):
    rng = np.random.default_rng(seed)
    X = (rng.normal(size=(200, 6)) + [0, 10, 1e4, -1e6, 5, 5]).astype(np.float32)
    X[:120, 4], X[rng.random(200) < 0.5, 5] = np.nan, np.nan
    gathered = Moments(6)
    for block in np.split(X, np.sort(rng.choice(np.arange(1, 200), 9, replace=False))): gathered.add(block)
    wide = X.astype(np.float64)
    np.testing.assert_allclose(gathered.mean, np.nanmean(wide, 0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(gathered.variance, np.nanvar(wide, 0), rtol=1e-9)
    np.testing.assert_array_equal([gathered.low, gathered.high], [np.nanmin(X, 0), np.nanmax(X, 0)])
    np.testing.assert_array_equal(gathered.n_present, (~np.isnan(X)).sum(0))


PIPELINES = [("strict", "counts", 40), ("strict", "log2(counts+1)", None), ("strict", "TPM", 40),
             ("strict", "log2(TPM+1)", 500), ("paper", "counts", 40), ("paper", "log2(x+1)", None)]


@pytest.mark.parametrize("rows_in_block", [1, 7, 1000], ids=["single rows", "seven rows", "one block"])
@pytest.mark.parametrize("protocol, units, n_genes", PIPELINES)
def test_a_pipeline_fitted_in_blocks_equals_one_fitted_in_memory(protocol, units, n_genes, rows_in_block):
    X, size = with_gaps(), rows_in_block*4*120
    if units.startswith("log2"): X = np.log2(X + 1)
    rows = np.random.default_rng(1).permutation(90)[:60]
    whole = preprocessor(protocol, units, n_genes).fit(X[rows])
    blocks = fit_in_blocks(preprocessor(protocol, units, n_genes), X, rows, size)
    np.testing.assert_array_equal(blocks.get_feature_names_out(), whole.get_feature_names_out())
    Z = transform_in_blocks(blocks, X, size=size)
    assert Z.dtype == np.float32 and np.isfinite(Z).all()
    np.testing.assert_allclose(Z, whole.transform(X), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(transform_in_blocks(blocks, X, rows[:9], size), Z[rows[:9]])


def test_fitting_in_blocks_again_forgets_the_earlier_data():
    again = fit_in_blocks(preprocessor("strict", "counts", 40), with_gaps(seed=1))
    fresh = preprocessor("strict", "counts", 40)
    for pipeline in (again, fresh): fit_in_blocks(pipeline, with_gaps())
    assert fitted_numbers(again).keys() == fitted_numbers(fresh).keys()
    for name, numbers in fitted_numbers(fresh).items():
        np.testing.assert_array_equal(fitted_numbers(again)[name], numbers)


def test_the_logarithm_of_counts_is_undone_so_both_give_the_same_network_input(tmp_path):
    counts = with_gaps(200)
    from_counts = preprocessor("strict", "counts", 40).fit_transform(counts)
    logged = np.log2(counts + 1)
    from_logs = preprocessor("strict", "log2(counts+1)", 40).fit_transform(logged)
    np.testing.assert_allclose(from_logs, from_counts, atol=1e-4)
    obs, var = (pd.DataFrame(index=[f"{i}" for i in range(n)]) for n in logged.shape)
    write_store(tmp_path/"a.h5ad", obs, var, {}, [logged], "float16")
    X = open_store(tmp_path/"a.h5ad").X
    sixteen_bits = transform_in_blocks(fit_in_blocks(preprocessor("strict", "log2(counts+1)", 40), X), X)
    assert abs(sixteen_bits - from_counts).max() < 0.03      # standard deviations


def test_stateless_steps_cost_no_pass_and_fitted_steps_one_each(monkeypatch):
    X, read = with_gaps(40), []
    import ssl_expr.preprocess as module
    original = module.row_blocks
    def counted(*arguments):
        for block in original(*arguments):
            read.append(len(block))
            yield block
    monkeypatch.setattr(module, "row_blocks", counted)
    fit_in_blocks(preprocessor("strict", "log2(counts+1)"), np.log2(X + 1), size=10*4*120)
    assert read == [10]*3 + [10, 10, 10, 10]*3     # one look at the width by each of three steps, then three passes


@pytest.mark.parametrize("row, value, message", [
    (33, -2.0, "negative value -2 in row 33, column 4"), (12, np.inf, "infinite value in row 12, column 4")])
@pytest.mark.parametrize("rows", [None, list(range(39, -1, -1))], ids=["all", "backwards"])
def test_a_value_that_stops_a_step_is_named_by_its_row_in_the_whole_matrix(row, value, message, rows):
    X = with_gaps(40, share=0)
    X[row, 4] = value
    with pytest.raises(ValueError, match=message): fit_in_blocks(preprocessor("strict", "counts"), X, rows, 7*4*120)
    fitted = preprocessor("strict", "counts").fit(with_gaps(40, share=0))
    with pytest.raises(ValueError, match=message): transform_in_blocks(fitted, X, rows, 7*4*120)


def test_genes_constant_in_every_block_but_not_over_all_are_kept_and_useless_fits_are_refused_at_the_end():
    X = np.repeat(np.eye(4, dtype=np.float32), 5, axis=0)        # five equal rows in each block
    assert fit_in_blocks(preprocessor("strict", "log2(x+1)"), X, size=5*4*4)["genes"].kept_.all()
    with pytest.raises(ValueError, match="no gene is left"):
        fit_in_blocks(preprocessor("strict", "log2(x+1)"), X[:5], size=16)
    with pytest.raises(ValueError, match="no gene is left"): GeneFilter().partial_fit(X[:5]).transform(X)
    fitted = preprocessor("strict", "log2(x+1)").fit(X)
    with pytest.raises(ValueError, match="no row"): fit_in_blocks(fitted, X, [])
    with pytest.raises(ValueError, match="no row"): transform_in_blocks(fitted, X, [])
    with pytest.raises(ValueError, match="4 genes and got 3"): ZScore().partial_fit(X).partial_fit(X[:, 1:])


def test_noise_in_held_out_rows_moves_nothing_that_is_fitted_in_blocks():
    X, rng = with_gaps(), np.random.default_rng(0)
    rows, noisy = np.arange(60), X.copy()
    noisy[60:] = rng.poisson(1000, (30, 120))
    before, after = (fitted_numbers(fit_in_blocks(preprocessor("strict", "counts", 40), matrix, rows, 7*4*120))
                     for matrix in (X, noisy))
    for name in before: np.testing.assert_array_equal(before[name], after[name])


TENTH_OF_ARCHS4 = (5328, 67_128)
PROGRAM = """
import sys
import numpy as np
from ssl_expr.preprocess import fit_in_blocks, preprocessor, transform_in_blocks
from ssl_expr.store import open_store
def status(name): return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])/1024
def peak(): return status("VmHWM")      # ru_maxrss would count the process that started this one
X, steps = open_store(sys.argv[1]).X, preprocessor("strict", "log2(counts+1)", 5000)
start = peak()
fit_in_blocks(steps, X, np.arange(0, len(X), 2))
few = transform_in_blocks(steps, X, np.arange(500))
after_few = peak()
Z = transform_in_blocks(steps, X)
assert Z.shape == (len(X), 5000) and np.isfinite(Z).all()
print(start, after_few - start, peak() - start, Z.nbytes/2**20, status("RssAnon"), status("RssFile"), peak())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_tenth_of_archs4_is_prepared_in_a_fraction_of_its_size(tmp_path):
    "715 MB of float16, 1,431 MB as float32; measured: 240 MB before any row is read, then at most 160 MB more."
    n_rows, n_genes = TENTH_OF_ARCHS4
    rng = np.random.default_rng(0)
    piece = (rng.gamma(1, 2, n_genes) + rng.uniform(0, 1, (48, n_genes))).astype(np.float16)
    obs, var = (pd.DataFrame(index=[f"{i}" for i in range(n)]) for n in TENTH_OF_ARCHS4)
    write_store(tmp_path/"a.h5ad", obs, var, {}, (np.roll(piece, k, 1) for k in range(n_rows//48)), "float16")
    answer = subprocess.run([sys.executable, "-c", PROGRAM, tmp_path/"a.h5ad"], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    start, few, growth, result, anonymous, mapped, high_water = map(float, answer.stdout.split())
    float32 = n_rows*n_genes*4/2**20
    assert growth < 0.2*float32 and high_water < 0.5*float32      # all of it, libraries included
    assert growth - few < 1.1*result                              # ten times the rows: more of the result, nothing else
    assert anonymous + mapped < 0.4*float32                       # pages of the file that are lent to us are given back
