"""Units: every step reads them, changes them and says so; what makes no sense is refused with the way out."""
import anndata
import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import normalize

from ssl_expr.data import load, toy
from ssl_expr.preprocess import DepthNormalise, Log2
from ssl_expr.units import (
    Units,
    depth_normalise,
    log2,
    log2_plus_one,
    parse_units,
    scale_rows,
    state_units,
    to_tpm,
    unlog,
)

LINEAR = ["counts", "TPM", "FPKM", "RPM", "CPM", "RSEM"]
STEPS = [log2, unlog, depth_normalise, to_tpm]
LENGTHS = np.array([1000.0, 2000, 10000])
READS = np.array([[10.0, 20, 970], [400, 400, 200]])


def small(X=READS, units=None, **columns):
    "Two samples and three genes in these units."
    uns = {} if units is None else {"units": units}
    names = pd.Index(["short", "middle", "long"][:np.shape(X)[1]])
    return anndata.AnnData(np.asarray(X), pd.DataFrame(index=["A", "B"]), pd.DataFrame(columns, index=names), uns)


@pytest.mark.parametrize("text, want", [
    ("counts", "counts"), ("raw counts", "counts"), ("Read_Count", "counts"), ("expected_count", "counts"),
    ("TPM", "TPM"), ("tpm", "TPM"), ("transcripts per million", "TPM"), ("RPKM", "FPKM"), ("fpkm values", "FPKM"),
    ("reads_per_million_miRNA_mapped", "RPM"), ("RPM", "RPM"), ("cpm", "CPM"), ("RSEM", "RSEM"),
    ("log2(TPM+1)", "log2(TPM+1)"), ("log2(tpm + 1)", "log2(TPM+1)"), ("log2 tpm", "log2(TPM+1)"),
    ("log2(1+TPM)", "log2(TPM+1)"), ("log2-transformed TPM", "log2(TPM+1)"), ("log2 TPM + 1", "log2(TPM+1)"),
    ("log2(counts+1)", "log2(counts+1)"), ("log2(expected_count+1)", "log2(counts+1)"), ("logCPM", "log2(CPM+1)"),
    ("log2", "log2(x+1)"), ("log2(x+1)", "log2(x+1)"), ("log1p", "ln(x+1)"), ("log1p(TPM)", "ln(TPM+1)"),
    ("ln(TPM+1)", "ln(TPM+1)"), ("log10(FPKM+1)", "log10(FPKM+1)"), ("log2(TPM+0.001)", "log2(TPM+0.001)"),
    ("z-score", "z-score"), ("Z score", "z-score"), ("zscores", "z-score"), ("unknown", "unknown")])
def test_spellings_are_understood_and_their_canonical_name_stays_itself(text, want):
    assert str(parse_units(text)) == want
    assert parse_units(want) == parse_units(text)


@pytest.mark.parametrize("text", ["", "furlongs", "x", "counts+1", "1+TPM", "log2(log2(TPM+1)+1)", "log2(z-score)",
                                  "log2(unknown)", "log1p(TPM+1)", "counts per", "FPKM-UQ", "None", "log", "(+)"])
def test_an_unknown_spelling_is_refused_with_the_known_ones_or_the_missing_base(text):
    with pytest.raises(ValueError, match="known are counts, TPM, FPKM|which logarithm") as refusal:
        parse_units(text)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("text", ["log(TPM+1)", "log TPM", "log(x+1)"])
def test_a_logarithm_without_a_base_is_not_guessed(text):
    with pytest.raises(ValueError, match="do not say which logarithm: write log2"):
        parse_units(text)


@pytest.mark.parametrize("text", ["log2(TPM+0)", "log2(TPM+1.0.0)"])
def test_an_impossible_offset_is_refused(text):
    with pytest.raises(ValueError, match="a number above 0"):
        parse_units(text)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_counts_per_million_add_up_and_equal_the_preprocessing_step(dtype):
    data = toy(30)
    data.X = data.X.astype(dtype)
    million = depth_normalise(data)
    assert million.X.dtype == dtype and million.uns["units"] == "CPM"
    tolerance = 1e-12 if dtype == np.float64 else 1e-6
    np.testing.assert_allclose(million.X.sum(1, dtype=np.float64), 1e6, rtol=tolerance)
    np.testing.assert_allclose(million.X, DepthNormalise().fit_transform(data.X), rtol=tolerance)
    np.testing.assert_allclose(log2(million).X, Log2().fit_transform(million.X), rtol=tolerance, atol=tolerance)


def test_counts_per_million_equal_the_normaliser_of_scikit_learn():
    data = toy(30)
    want = normalize(data.X.astype(np.float64), norm="l1")*1e6
    np.testing.assert_allclose(scale_rows(data.X.astype(np.float64)), want, rtol=1e-12)


def test_fpkm_rescaled_and_counts_with_lengths_give_the_same_tpm():
    fpkm = READS/READS.sum(1, keepdims=True)*1e9/LENGTHS
    want = np.array([[10, 10, 97], [400, 200, 20]])/np.array([[117], [620]])*1e6     # by hand: reads per kilobase
    np.testing.assert_allclose(to_tpm(small(fpkm, "FPKM")).X, want, rtol=1e-12)
    for units, X in (("counts", READS), ("CPM", READS*1000), ("RPM", READS*1000), ("RSEM", READS*0.37)):
        np.testing.assert_allclose(to_tpm(small(X, units, length=LENGTHS)).X, want, rtol=1e-12)
    assert to_tpm(small(fpkm, "FPKM")).uns["units"] == "TPM"


@pytest.mark.parametrize("units", LINEAR)
def test_the_logarithm_and_its_undoing_are_inverse_and_named(units):
    data = small(np.array([[0, 1e-6, 3], [1e6, np.nan, 7]]), units)
    logged = log2(data)
    assert logged.uns["units"] == f"log2({units}+1)"
    np.testing.assert_allclose(logged.X, np.log2(data.X + 1), rtol=1e-9)
    back = unlog(logged)
    assert back.uns["units"] == units
    np.testing.assert_allclose(back.X, data.X, rtol=1e-12)


def test_the_published_tumours_go_back_to_linear_values_and_forth():
    tumours = load("coadread")
    linear = unlog(tumours)
    assert linear.uns["units"] == "RSEM" and np.nanmax(linear.X) > 1e5 and np.nanmin(linear.X) == 0
    np.testing.assert_allclose(log2(linear).X, tumours.X, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("step, units, remedy", [
    *[(log2, f"log2({unit}+1)", "logged already, `unlog` goes back") for unit in LINEAR],
    (log2, "ln(TPM+1)", "logged already"), (log2, "log2(x+1)", "state what x is"),
    *[(depth_normalise, unit, "the depth has been divided out already") for unit in LINEAR[1:]],
    (depth_normalise, "log2(counts+1)", "logged already, `unlog` goes back"),
    (to_tpm, "TPM", "divided out already"), (to_tpm, "log2(FPKM+1)", "logged already"),
    *[(unlog, unit, "there is no logarithm to undo") for unit in LINEAR], (unlog, "log2(x+1)", "state what x is"),
    *[(step, "z-score", "start again from the values before scaling") for step in STEPS],
    *[(step, "unknown", "name them with `state_units`") for step in STEPS],
    *[(step, None, "name them with `state_units`") for step in STEPS],
    *[(step, "furlongs", "known are counts") for step in STEPS]])
def test_a_step_that_makes_no_sense_is_refused_with_the_way_out(step, units, remedy):
    with pytest.raises(ValueError, match=remedy) as refusal:
        step(small(np.ones((2, 3)), units))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("step, units", [
    (depth_normalise, "counts"), (log2, "TPM"), (to_tpm, "FPKM"), (unlog, "log2(TPM+1)")])
@pytest.mark.parametrize("value", [-0.5, np.inf, -np.inf])
def test_values_that_cannot_be_are_refused_with_their_place(step, units, value):
    X = np.ones((2, 3))
    X[1, 2] = value
    with pytest.raises(ValueError, match=f"value {value:.4g} in sample 'B', gene 'long' .1 such entries. cannot be"):
        step(small(X, units))


def test_values_too_large_for_a_logarithm_are_refused():
    with pytest.raises(ValueError, match="value 970 in sample 'A', gene 'long' .4 such entries. cannot be log2.TPM.1."):
        unlog(small(READS, "log2(TPM+1)"))


def test_a_sample_without_a_read_and_a_gene_without_a_length_are_refused():
    with pytest.raises(ValueError, match="row 1 has a total of 0 .1 such samples.: remove it"):
        depth_normalise(small([[1.0, 2, 3], [0, np.nan, 0]], "counts"))
    with pytest.raises(ValueError, match="conversion of counts to TPM needs gene lengths: add them in bases"):
        to_tpm(small(READS, "counts"))
    for wrong in (0, -5, np.nan, np.inf):
        with pytest.raises(ValueError, match="gene 'middle' has length .* .1 such genes.: give a length above 0"):
            to_tpm(small(READS, "counts", length=[1000, wrong, 500]))


def test_missing_values_stay_missing_and_count_for_nothing():
    data = small([[1.0, np.nan, 3], [5, 5, 10]], "counts")
    np.testing.assert_allclose(depth_normalise(data).X, [[250000, np.nan, 750000], [250000, 250000, 500000]])
    np.testing.assert_array_equal(np.isnan(log2(data).X), np.isnan(data.X))


def test_all_else_is_kept_the_input_is_untouched_and_the_provenance_tells_every_step():
    data = toy(20)
    data.uns["provenance"]["units"] = "stated by the user"
    before, matrix = dict(data.uns["provenance"]), data.X.copy()
    result = unlog(log2(depth_normalise(data)))
    np.testing.assert_array_equal(data.X, matrix)
    assert data.uns["units"] == "counts" and data.uns["provenance"] == before
    pd.testing.assert_frame_equal(result.obs, data.obs)
    pd.testing.assert_frame_equal(result.var, data.var)
    assert result.uns["labels"] == ["label"] and result.uns["truth"] == data.uns["truth"]
    assert set(result.obsm) == {"programs"} and set(result.varm) == {"programs"}
    told = result.uns["provenance"]
    assert told["source"] == before["source"] and told["units"] == (
        "stated by the user; then divided by the depth: counts became CPM; then log2(x+1) of CPM; "
        "then logarithm undone from log2(CPM+1)")
    result.uns["truth"]["rule"] = "changed"
    assert data.uns["truth"]["rule"] != "changed"


def test_a_read_only_half_precision_file_gives_single_precision_without_overflow(tmp_path):
    np.array([[60000.0, 100, 0], [5, 10, 30000]], np.float16).tofile(tmp_path/"X")
    data = small(READS, "counts")
    data = anndata.AnnData(np.memmap(tmp_path/"X", np.float16, "r", shape=(2, 3)), data.obs, data.var, dict(data.uns))
    for result in (depth_normalise(data), log2(data), log2(depth_normalise(data)), state_units(data, "counts")):
        assert result.X.dtype == np.float32 and np.isfinite(result.X).all()
    np.testing.assert_allclose(depth_normalise(data).X.sum(1), 1e6, rtol=1e-6)


@pytest.mark.parametrize("text, function", [
    ("ln(TPM+1)", np.log1p), ("log1p(TPM)", np.log1p), ("log10(TPM+1)", lambda x: np.log10(x + 1)),
    ("log2(TPM+0.001)", lambda x: np.log2(x + 0.001)), ("log2(TPM+2)", lambda x: np.log2(x + 2)),
    ("ln(TPM+0.5)", lambda x: np.log(x + 0.5)), ("log2(TPM+1)", lambda x: np.log2(x + 1))])
def test_other_logarithms_become_log2_of_one_more_exactly(text, function):
    tpm = np.array([[0, 0.5, 999999.5], [1, np.nan, 8e5]])
    result = state_units(small(function(tpm), "unknown"), text)
    assert result.uns["units"] == "log2(TPM+1)"
    np.testing.assert_allclose(result.X, np.log2(tpm + 1), rtol=1e-12, atol=1e-12)
    rounded = state_units(small(function(tpm).round(4), "unknown"), text)      # as published tables are
    np.testing.assert_allclose(rounded.X, np.log2(tpm + 1), rtol=0, atol=3e-4)


def test_units_are_stated_once_and_the_same_again_is_welcome():
    data = state_units(small(READS), "raw counts")
    assert data.uns == {"units": "counts", "provenance": {"units": "stated as counts"}}
    assert not np.shares_memory(data.X, state_units(data, "counts").X)
    assert state_units(data, "counts").uns["units"] == "counts"
    assert state_units(small(READS/1000, "log2(x+1)"), "log2 TPM").uns["units"] == "log2(TPM+1)"
    assert state_units(small(READS - 50), "z-score").uns["units"] == "z-score"
    for stated, other in (("counts", "TPM"), ("counts", "log2(counts+1)"), ("log2(x+1)", "TPM"), ("z-score", "counts"),
                          ("log2(TPM+1)", "ln(TPM+1)"), ("log2(TPM+1)", "unknown"), ("log2(x+1)", "ln(TPM+1)")):
        with pytest.raises(ValueError, match="already and cannot be stated as .*: correct one of the two"):
            state_units(small(READS/1000, stated), other)


@pytest.mark.parametrize("X, text", [(-READS, "counts"), (READS, "log2(TPM+1)"), (READS, "ln(TPM+1)"),
                                     (READS - 20, "log2(TPM+0.001)"), (READS/10, "log10(TPM+1)")])
def test_units_that_the_values_contradict_are_refused(X, text):
    with pytest.raises(ValueError, match="cannot be .*: correct it or state other units"):
        state_units(small(X), text)


def test_a_zero_that_was_rounded_below_the_offset_is_zero_again():
    assert unlog(small(np.full((2, 3), -9.966), "log2(TPM+0.001)")).X.tolist() == [[0.0]*3]*2


def test_undoing_a_logarithm_costs_single_precision_no_more_than_one_rounding():
    logged = np.linspace(0, 20, 6, dtype=np.float32).reshape(2, 3)
    want = np.exp2(logged.astype(np.float64)) - 1
    np.testing.assert_allclose(unlog(small(logged, "log2(TPM+1)")).X, want, rtol=np.finfo(np.float32).eps/2)


def test_log2_plus_one_is_exact_for_tiny_values_and_keeps_the_type():
    tiny = np.array([1e-12, 0, 1], np.float64)
    np.testing.assert_allclose(log2_plus_one(tiny), [1e-12/np.log(2), 0, 1], rtol=1e-12)
    assert log2_plus_one(tiny.astype(np.float32)).dtype == np.float32
    assert str(Units("TPM", "log2", 0.001)) == "log2(TPM+0.001)"
