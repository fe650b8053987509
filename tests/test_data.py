"""Data sets: what is inside, and the sentence that answers each bad file."""
import hashlib
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from ssl_expr.checks import check_matrix
from ssl_expr.data import datasets, fingerprint, guess_units, load, register_dataset, toy, validate


@pytest.fixture(scope="module")
def tumours(): return load("coadread")


@pytest.fixture
def table():
    values = {"TP53": [1.5, 2.5, 3.25], "MYC": [40.5, 0.5, 7.0]}
    return pd.DataFrame(values, index=pd.Index(["s1", "s2", "s3"], name="sample"))


def test_the_embedded_file_is_the_one_that_was_built_and_fits_the_package():
    content = Path(str(files("ssl_expr"))).joinpath("datasets", "coadread.h5ad").read_bytes()
    assert len(content) <= 18_000_000
    assert hashlib.sha256(content).hexdigest().startswith("5ceb16d70e274323")


def test_coadread_has_the_published_numbers_of_samples_genes_and_labels(tumours):
    assert tumours.shape == (592, 20531) and tumours.X.dtype == np.float32
    assert tumours.obs["patient"].nunique() == 592
    assert tumours.obs["subtype"].value_counts().to_dict() == {"CIN": 328, "MSI": 63, "GS": 58, "HM-SNV": 10}
    assert tumours.obs["subtype"].isna().sum() == 133
    assert tumours.obs["site"].value_counts().to_dict() == {"colon": 438, "rectum": 154}
    assert list(tumours.uns["labels"]) == ["subtype", "site"] and tumours.uns["units"] == "log2(RSEM+1)"


def test_the_batch_annotation_marks_exactly_the_samples_with_missing_genes(tumours):
    missing = np.isnan(tumours.X)
    assert ((tumours.obs["batch"] == "reduced").to_numpy() == missing.any(1)).all()
    assert missing.any(1).sum() == 227 and missing.any(0).sum() == 3024
    assert missing.sum() == 227*3024


def test_coadread_values_are_rounded_logarithms_and_never_negative(tumours):
    values = tumours.X[~np.isnan(tumours.X)]
    assert values.min() == 0 and 19 < values.max() < 20
    assert (values*64 == np.round(values*64)).all()


def test_every_named_data_set_keeps_the_contract():
    for name in ("toy", "coadread"):
        data = load(name)
        assert name in datasets() and data.X.dtype == np.float32
        assert data.obs_names.is_unique and data.var_names.is_unique and "patient" in data.obs
        assert all(isinstance(text, str) for text in data.uns["provenance"].values())
        for label in data.uns["labels"]: assert data.obs[label].dtype == "category"


def test_a_new_source_is_one_registered_function(monkeypatch):
    monkeypatch.setattr("ssl_expr.data._loaders", {})
    monkeypatch.setattr("ssl_expr.data._SOURCES", ())
    register_dataset("mine")(lambda folder: toy(seed=len(str(folder))))
    assert datasets() == ["mine"] and (load("mine", "abc").X == toy(seed=3).X).all()


# toy

def test_toy_is_decided_by_its_seed_alone():
    np.random.seed(1)
    first = toy(seed=7)
    np.random.seed(2)
    assert fingerprint(first) == fingerprint(toy(seed=7)) != fingerprint(toy(seed=8))


def test_toy_labels_follow_the_programs_and_can_be_learned_from_the_genes():
    data = toy(unlabelled=0)
    assert (data.obs["truth"].cat.codes == data.obsm["programs"][:, :3].argmax(1)).all()
    X = np.log2(data.X/data.X.sum(1, keepdims=True)*1e6 + 1)
    X = (X - X[:200].mean(0))/(X[:200].std(0) + 1e-9)
    y = data.obs["label"].astype(str).to_numpy()
    assert LogisticRegression(C=0.01, max_iter=500).fit(X[:200], y[:200]).score(X[200:], y[200:]) > 0.75


def test_toy_counts_are_whole_vary_more_than_poisson_and_differ_in_depth():
    data = toy(400, n_programs=3, n_batches=1)
    assert (data.X == np.round(data.X)).all() and (data.X >= 0).all()
    assert (data.X.var(0) > data.X.mean(0)).mean() > 0.95
    assert np.std(np.log(data.X.sum(1))) == pytest.approx(0.4, abs=0.06)


def test_toy_shares_patients_hides_labels_and_shifts_batches_as_asked():
    data = toy(90, samples_per_patient=3, unlabelled=0.3, n_batches=4)
    assert data.obs["patient"].value_counts().eq(3).all()
    assert data.obs["label"].isna().sum() == 27
    assert data.obs.groupby("patient")["truth"].nunique().eq(1).all()
    assert data.obs["batch"].nunique() == 4


def test_toy_samples_of_a_patient_are_alike_and_batches_are_not():
    data = toy(400, samples_per_patient=2)
    X = np.log2(data.X/data.X.sum(1, keepdims=True)*1e6 + 1)
    nearest = np.corrcoef(X - X.mean(0)) - 2*np.eye(400)
    assert (nearest.argmax(1)//2 == np.arange(400)//2).mean() > 0.5     # the patient's other sample; by chance 1/399
    first, dealt = (data.obs["batch"] == "batch-0").to_numpy(), np.random.default_rng(0).permutation(400) < 200
    shift, chance = (abs(X[rows].mean(0) - X[~rows].mean(0)).mean() for rows in (first, dealt))
    assert shift > 3*chance


@pytest.mark.parametrize("settings", [{"n_classes": 1}, {"n_classes": 9}, {"unlabelled": 1.0}, {"n_genes": 0}])
def test_toy_refuses_settings_that_make_no_data(settings):
    with pytest.raises(ValueError): toy(**settings)


# files

@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "h5ad"])
def test_the_same_matrix_comes_back_from_every_kind_of_file(table, tmp_path, suffix):
    path = tmp_path/f"mine.{suffix}"
    matrix = csr_matrix(table.to_numpy(np.float64))
    if suffix == "parquet": table.to_parquet(path)
    elif suffix == "h5ad": anndata.AnnData(matrix, table[[]], table.T[[]]).write_h5ad(path)
    else: table.to_csv(path, sep={"csv": ",", "tsv": "\t"}[suffix])
    data = load(path)
    assert type(data.X) is np.ndarray and data.X.dtype == np.float32
    np.testing.assert_array_equal(data.X, table.to_numpy(np.float32))
    assert list(data.obs_names) == ["s1", "s2", "s3"] and list(data.var_names) == ["TP53", "MYC"]


def test_a_file_without_patients_gets_one_per_sample_and_says_so(table, tmp_path):
    table.to_csv(tmp_path/"mine.csv")
    data = load("mine.csv", tmp_path)
    assert list(data.obs["patient"]) == ["s1", "s2", "s3"] and "patient" in data.uns["provenance"]


def test_patient_and_label_columns_are_split_off_from_the_matrix(table, tmp_path):
    annotation = {"patient": [7, 7, 8], "label:stage": [1, None, 2], "site": ["a", "b", None]}
    table.assign(**annotation).to_csv(tmp_path/"mine.csv")
    data = load(tmp_path/"mine.csv", labels=["site", "stage"])
    assert list(data.var_names) == ["TP53", "MYC"] and data.uns["labels"] == ["site", "stage"]
    assert data.obs["site"].isna().tolist() == [False, False, True]
    assert data.obs["stage"].isna().tolist() == [False, True, False]


def test_numeric_sample_ids_keep_their_zeros(table, tmp_path):
    table.set_axis(["007", "010", "1e3"]).to_csv(tmp_path/"mine.csv")
    assert list(load(tmp_path/"mine.csv").obs_names) == ["007", "010", "1e3"]


def test_missing_values_are_kept_as_missing(tmp_path):
    (tmp_path/"mine.csv").write_text("id,A,B\ns1,1.5,\ns2,2,NA\ns3,3,4\n")
    np.testing.assert_array_equal(np.isnan(load(tmp_path/"mine.csv").X), [[0, 1], [0, 1], [0, 0]])


@pytest.mark.parametrize("values, units", [("1,2", "counts"), ("1.5,2", "log2(x+1)"), ("-1,2", "unknown"),
                                           ("1.5,99", "unknown"), ("999999.5,0.5", "TPM")])
def test_units_are_guessed_with_a_reason_and_a_statement_overrules(tmp_path, values, units):
    (tmp_path/"mine.csv").write_text(f"id,A,B\ns1,{values}\n")
    guessed = load(tmp_path/"mine.csv")
    assert guessed.uns["units"] == units and guessed.uns["provenance"]["units"].startswith("guessed")
    if not values.startswith("-"): assert load(tmp_path/"mine.csv", units="tpm").uns["units"] == "TPM"


def test_units_may_be_spelled_freely_and_are_converted_or_refused(tmp_path):
    (tmp_path/"mine.csv").write_text("id,A,B\ns1,1.5,-2\ns2,0,1\n")
    with pytest.raises(ValueError, match="value -2 in sample 's1', gene 'B'"): load(tmp_path/"mine.csv", units="TPM")
    (tmp_path/"mine.csv").write_text("id,A,B\ns1,0.693147,0\ns2,0,1.098612\n")
    data = load(tmp_path/"mine.csv", units="ln(TPM + 1)")
    assert data.uns["units"] == "log2(TPM+1)"
    np.testing.assert_allclose(data.X, [[1, 0], [0, np.log2(3)]], atol=1e-5)
    with pytest.raises(ValueError, match="unknown units .furlongs."): load(tmp_path/"mine.csv", units="furlongs")


@pytest.mark.parametrize("units, change", {
    "counts": lambda X: X, "TPM": lambda X: X/X.sum(1, keepdims=True)*1e6, "log2(x+1)": lambda X: np.log2(X + 1),
    "log2(TPM+1)": lambda X: np.log2(X/X.sum(1, keepdims=True)*1e6 + 1),
    "z-score": lambda X: (X - X.mean(0))/(X.std(0) + 1e-9), "unknown": lambda X: X - X.mean(0)}.items())
def test_numbers_give_their_units_away_whatever_is_missing(units, change):
    X = change(toy().X.astype(np.float64)).astype(np.float32)
    assert guess_units(X)[0] == units
    if "TPM" in units: return
    X[::7, ::5] = np.nan
    assert guess_units(X)[0] == units


def test_expected_counts_of_rsem_are_counts_though_some_are_not_whole():
    X, generator = toy(50).X.copy(), np.random.default_rng(0)
    X += (generator.random(X.shape) < 0.2)*0.37
    units, why = guess_units(X)
    assert units == "counts" and "RSEM" in why


def test_units_that_contradict_the_file_are_refused(tmp_path):
    toy(20).write_h5ad(tmp_path/"mine.h5ad")
    with pytest.raises(ValueError, match="says its units are counts, not TPM"): load(tmp_path/"mine.h5ad", units="TPM")


BAD_TABLES = {
    "text in the matrix": ("id,A,B\ns1,1,2\ns2,1,high\n", "text ('high') in sample 's2', gene 'B'"),
    "a decimal comma": ("id;A\ns1;1,5\n", "separated by semicolons"),
    "duplicate genes": ("id,A,A\ns1,1,2\n", "gene 'A' 2 times"),
    "duplicate genes, one with text": ("id,A,A\ns1,1,x\n", "gene 'A' 2 times"),
    "duplicate samples": ("id,A,B\ns1,1,2\ns1,3,4\n", "sample 's1' 2 times"),
    "an infinite value": ("id,A,B\ns1,1,2\ns2,inf,4\n", "infinite value in sample 's2', gene 'A'"),
    "a gene without a name": ("id,A,\ns1,1,2\n", "a gene without a name"),
    "a gene without any value": ("id,A,B\ns1,1,\ns2,2,\n", "no value of gene 'B'"),
    "a header that is too short": ("A,B\ns1,1,2\n", "2 names in its header but 3 columns"),
    "a row that is too long": ("id,A\ns1,1\ns2,1,2\n", "3 fields in line 3 but 2"),
    "a header and nothing else": ("id,A\n", "cannot be read as csv"),
    "nothing at all": ("", "cannot be read as csv"),
    "ids and no genes": ("id\ns1\n", "at least one of each"),
    "a patient missing": ("id,patient,A\ns1,p,1\ns2,,2\n", "without a patient"),
}


@pytest.mark.parametrize("text, message", BAD_TABLES.values(), ids=BAD_TABLES)
def test_a_bad_table_is_answered_with_one_sentence_that_names_the_file(tmp_path, text, message):
    path = tmp_path/"mine.csv"
    path.write_text(text)
    with pytest.raises(ValueError) as refusal: load(path)
    answer = str(refusal.value)
    assert message in answer
    assert answer.startswith(str(path)) and "\n" not in answer and ":" in answer


@pytest.mark.parametrize("suffix", ["csv", "parquet", "h5ad"])
def test_a_damaged_file_is_answered_with_one_sentence(tmp_path, suffix):
    path = tmp_path/f"mine.{suffix}"
    if suffix == "h5ad":
        toy(40).write_h5ad(path)
        path.write_bytes(path.read_bytes()[:5000])
    else: path.write_bytes(b"\x89\xff\x00\x01 not a table \xfe"*50)
    with pytest.raises(ValueError, match=f"cannot be read as {suffix}.*write it again") as refusal: load(path)
    assert "\n" not in str(refusal.value)


def test_an_h5ad_without_a_matrix_is_refused(tmp_path):
    anndata.AnnData(obs=pd.DataFrame(index=["s1"]), var=pd.DataFrame(index=["A"])).write_h5ad(tmp_path/"mine.h5ad")
    with pytest.raises(ValueError, match="no matrix X"): load(tmp_path/"mine.h5ad")


@pytest.mark.parametrize("name", ["coadred", "data.docx", "", "../toy"])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ValueError, match="unknown data set .*coadread.*toy.*h5ad"): load(name)


def test_a_missing_file_and_a_missing_label_column_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.csv: check the path"): load("nowhere.csv", tmp_path)
    with pytest.raises(ValueError, match="no label column 'grade': it has patient"): load("toy", labels=["grade"])


def test_negative_counts_are_refused_and_negative_logarithms_are_not():
    data = toy(30)
    data.X[4, 2] = -1
    with pytest.raises(ValueError, match="negative count in sample 'sample-0004', gene 'gene-0002'"): validate(data)
    data.uns["units"] = "log2(ratio)"
    validate(data)


# what reaches a network

@pytest.mark.parametrize("value, message", [(np.nan, "a missing value in sample 's1', gene 'B'"),
                                            (np.inf, "an infinite value in sample 's1', gene 'B'")])
def test_a_value_that_is_no_number_is_named_by_sample_and_gene(value, message):
    with pytest.raises(ValueError) as refusal: check_matrix([[1, value], [0, 0]], "X", ["A", "B"], ["s1", "s2"])
    assert message in str(refusal.value)


@pytest.mark.parametrize("X", [np.ones(3), np.ones((0, 3)), np.array([["a"]]), np.array([[None]])])
def test_what_is_not_a_matrix_of_numbers_is_refused(X):
    with pytest.raises(ValueError, match="must"): check_matrix(X)


@pytest.mark.parametrize("change", ["value", "label", "patient", "gene", "sample", "units"])
def test_the_fingerprint_notices_every_kind_of_change(change):
    data, before = toy(30), fingerprint(toy(30))
    assert fingerprint(data) == before
    if change == "value": data.X[3, 3] += 1
    if change == "label": data.obs["label"] = data.obs["label"].to_numpy()[::-1]
    if change == "patient": data.obs.loc["sample-0003", "patient"] = "patient-0004"
    if change == "gene": data.var_names = [f"other-{name}" for name in data.var_names]
    if change == "sample": data.obs_names = [f"other-{name}" for name in data.obs_names]
    if change == "units": data.uns["units"] = "TPM"
    assert fingerprint(data) != before


def test_fingerprints_are_those_of_the_first_release(tumours):
    "Runs of earlier versions name their data by these; a change of the function must not change them."
    assert fingerprint(toy()).startswith("45f6c172a2422b62") and fingerprint(tumours).startswith("e1ac2a8a272515f3")


def opened(X, path):
    "The same data with a read-only matrix on the disk."
    np.memmap(path, X.dtype, "w+", shape=X.shape)[:] = X
    data = toy(len(X), X.shape[1])
    data.X = np.memmap(path, X.dtype, "r", shape=X.shape)
    return data


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_matrix_on_the_disk_is_checked_and_fingerprinted_by_blocks(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr("ssl_expr.data.matrix_blocks.__defaults__", (800,))     # four rows at a time
    data = toy(30)
    data.X[:, 3], data.X[7, 3] = 0, np.nan
    data.X = data.X.clip(max=2000)
    small = opened(data.X.astype(dtype), tmp_path/"X")
    assert validate(small) is small and isinstance(small.X, np.memmap) and small.X.dtype == dtype
    assert fingerprint(small) == fingerprint(data)
    data.X[29, 5] = np.inf
    with pytest.raises(ValueError, match="infinite value in sample 'sample-0029', gene 'gene-0005' .1 such"):
        validate(opened(data.X.astype(dtype), tmp_path/"bad"))


def test_a_gene_measured_in_the_first_block_only_is_measured(monkeypatch):
    monkeypatch.setattr("ssl_expr.data.matrix_blocks.__defaults__", (800,))
    data = toy(30)
    data.X[4:, 2] = np.nan
    assert validate(data) is data


CHECKS = """
import sys
import anndata, numpy as np
from ssl_expr.data import fingerprint, guess_units, toy, validate
def status(name): return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])/1024
validate(toy()), fingerprint(toy()), guess_units(toy().X)      # the libraries are loaded
shape = 20_000, 8_000
data = anndata.AnnData(shape=shape, uns={"units": "log2(x+1)"})
data.obs["patient"], data.X = data.obs_names, np.memmap(sys.argv[1], sys.argv[2], "r", shape=shape)
for check in (validate, fingerprint, lambda data: guess_units(data.X)):
    peak, lent = status("VmHWM"), status("RssFile")
    check(data)
    print(status("VmHWM") - peak, status("RssFile") - lent)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_checks_of_a_matrix_on_the_disk_take_memory_for_a_block_only(tmp_path, dtype):
    "320 and 640 MB; of a process of its own, what it holds at most and what of the file stays lent to it."
    with open(tmp_path/"X", "wb") as file:
        for _ in range(100): np.ones((200, 8_000), dtype).tofile(file)
    answer = subprocess.run([sys.executable, "-c", CHECKS, tmp_path/"X", dtype], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    numbers = np.array([line.split() for line in answer.stdout.splitlines()], float)
    assert len(numbers) == 3 and (numbers < (60, 8)).all(), numbers


def test_nothing_but_zeros_is_no_expression():
    data = toy(30)
    data.X[:] = 0
    with pytest.raises(ValueError, match="nothing but zeros: give the file"): validate(data)


def test_sources_are_imported_only_when_one_of_their_names_is_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr("ssl_expr.data._SOURCES", ("a_source",))
    monkeypatch.setattr("ssl_expr.data.import_module", asked.append)
    load("toy")
    assert asked == []
    with pytest.raises(ValueError, match="unknown data set 'a-name'"): load("a-name")
    assert set(asked) == {"ssl_expr.a_source"}


def test_units_that_contradict_a_named_data_set_are_refused():
    with pytest.raises(ValueError, match="toy says its units are counts, not TPM"): load("toy", units="TPM")


@pytest.mark.parametrize("stated, units", [("raw counts", "counts"), ("ln(counts+1)", "log2(counts+1)")])
def test_units_that_an_h5ad_spells_in_its_own_way_are_understood_and_converted(tmp_path, stated, units):
    data = toy(20)
    if units != "counts": data.X = np.log1p(data.X)
    data.uns["units"] = stated
    data.write_h5ad(tmp_path/"mine.h5ad")
    read = load(tmp_path/"mine.h5ad")
    assert read.uns["units"] == units == load(tmp_path/"mine.h5ad", units=stated).uns["units"]
    np.testing.assert_allclose(np.exp2(read.X) - 1 if units != "counts" else read.X, toy(20).X, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stated", ["log2(banana+1)", "reads of the week"])
def test_units_that_nobody_understands_are_refused_with_the_file(tmp_path, stated):
    data = toy(20)
    data.uns["units"] = stated
    data.write_h5ad(tmp_path/"mine.h5ad")
    with pytest.raises(ValueError, match="mine.h5ad: unknown units .*known are counts"): load(tmp_path/"mine.h5ad")


def test_a_file_keeps_its_fingerprint(tmp_path):
    toy(30).write_h5ad(tmp_path/"mine.h5ad")
    assert fingerprint(load(tmp_path/"mine.h5ad")) == fingerprint(toy(30))
