"""The report about a file: each fault is found, named with its remedy, and weighs as it should in the verdict."""
import anndata
import numpy as np
import pandas as pd
import pytest

from ssl_expr.data import load, toy
from ssl_expr.genes import known_genes
from ssl_expr.inspection import inspect_file
from ssl_expr.prepare import prepare


def saved(data, folder):
    data.write_h5ad(folder/"mine.h5ad")
    return folder/"mine.h5ad"


def test_good_data_are_ready_and_the_page_says_what_they_are():
    report = inspect_file("toy")
    page = str(report)
    assert report.verdict == "ready" and report.usable
    assert "300 samples x 200 genes" in page and "counts (stated by the data)" in page and "class-0 86" in page
    assert page.count("\n") < 25 and max(map(len, page.splitlines())) <= 100


def test_coadread_is_usable_and_its_batch_of_missing_genes_is_found():
    report = inspect_file("coadread")
    assert "in 227 samples and 3024 genes, in 1 block" in report.facts["missing"]
    assert report.usable and "227 samples as a batch" in report.verdict and "HM-SNV (10)" in report.verdict
    assert report.facts["label site"] == "colon 438, rectum 154"


def test_what_is_ready_can_be_prepared(tmp_path):
    path = saved(toy(200), tmp_path)
    assert inspect_file(path).verdict == "ready"
    assert prepare(str(path)).X.shape[0] == 200


def negative(data): data.X[3, 4] = -1
def infinite(data): data.X[3, 4] = np.inf
def unmeasured(data): data.X[:, 4] = np.nan
def standardised(data):
    data.X = (data.X - data.X.mean(0))/(data.X.std(0) + 1e-6)
    del data.uns["units"]
def centred(data):
    data.X = data.X - data.X.mean(0)
    del data.uns["units"]
def empty_sample(data): data.X[5] = 0
def without_patient(data): data.obs.loc["sample-0003", "patient"] = None


@pytest.mark.parametrize("fault, message", [
    (negative, "negative count in sample 'sample-0003', gene 'gene-0004'.*: remove or correct it"),
    (infinite, "infinite value in sample 'sample-0003', gene 'gene-0004'"),
        (unmeasured, "no value of gene 'gene-0004'.*drop them"),
    (standardised, "units 'z-score' cannot be preprocessed.*give the values before scaling"),
    (centred, "units 'unknown' cannot be preprocessed.*state the units"),
    (empty_sample, "sample 'sample-0005' holds nothing but zeros: remove it"),
        (without_patient, "sample without a patient: fill")])
@pytest.mark.filterwarnings("error")
def test_an_obstacle_makes_data_unusable_and_the_remedy_is_named(tmp_path, fault, message):
    data = toy(100)
    fault(data)
    report = inspect_file(saved(data, tmp_path))
    assert not report.usable and report.verdict.startswith("not usable: ")
    assert pd.Series(report.verdict).str.contains(message).all(), report.verdict


def copies(data): data.X[7] = data.X[3]
def shallow(data): data.X[7] = np.floor(data.X[7]/300)
def one_class(data): data.obs["label"] = pd.Categorical(["a"]*100)
def tiny_classes(data): data.obs["label"] = pd.Categorical([f"c{n//10}" for n in range(100)])
def a_small_class(data): data.obs["label"] = pd.Categorical(["a"]*48 + ["b"]*48 + ["c"]*4)
def two_patients(data):
    data.obs["label"] = pd.Categorical(["a"]*80 + ["b"]*20)
    data.obs["patient"] = [*data.obs["patient"][:80], *["p", "q"]*10]
def block(data): data.X[:40, :20] = np.nan
def mostly_incomplete(data): data.X[np.arange(100), np.arange(100)] = np.nan; data.X[np.arange(100),
    np.arange(100, 200)] = np.nan
def mostly_constant(data): data.X[:, :150] = 5
def no_labels(data): data.obs, data.uns["labels"] = data.obs[["patient"]], []


@pytest.mark.parametrize("fault, message", [
    (copies, "2 samples are copies .'sample-0003' and 'sample-0007'.*keep one of each"),
    (shallow, "depths differ .*-fold: look at the shallowest sample 'sample-0007'"),
    (one_class, "'label' has one class only, so it cannot be learned: add samples or choose"),
    (tiny_classes, "fewer than two classes of 15 samples"),
        (a_small_class, r"fewer than 15 samples lose their label 'label': c \(4\).*or lower `min_class_size`"),
    (two_patients, "cannot be split by patient .class 'b' has samples of 2 patients only"),
    (block, "missing values mark 40 samples as a batch"),
        (mostly_incomplete, "genes are complete and the strict protocol drops"),
    (mostly_constant, "150 of 200 genes never vary"),
    (no_labels, "only for pretraining and embedding, since no column is known to be a label: name one")])
@pytest.mark.filterwarnings("error")
def test_a_reservation_leaves_data_usable_and_the_remedy_is_named(tmp_path, fault, message):
    data = toy(100)
    fault(data)
    report = inspect_file(saved(data, tmp_path))
    assert report.usable and report.verdict.startswith("usable, but ")
    assert pd.Series(report.verdict).str.contains(message).all(), report.verdict


@pytest.mark.parametrize("fault", [one_class, tiny_classes, two_patients])
def test_a_label_that_was_asked_for_and_cannot_be_learned_is_an_obstacle(tmp_path, fault):
    data = toy(100)
    fault(data)
    report = inspect_file(saved(data, tmp_path), ["label"])
    assert not report.usable and "label 'label'" in report.verdict


def test_only_the_first_label_that_was_asked_for_is_the_one_to_learn(tmp_path):
    data = toy(100)
    one_class(data)
    data.obs["site"] = pd.Categorical(["left", "right"]*50)
    data.uns["labels"] = ["site", "label"]
    report = inspect_file(saved(data, tmp_path), ["site", "label"])
    assert report.usable and {"label site", "column label"} <= report.facts.keys()


def test_genes_that_no_sample_has_make_no_batch(tmp_path):
    data = toy(100)
    data.X[:, :20] = np.nan
    assert "batch" not in inspect_file(saved(data, tmp_path)).verdict


def test_the_depth_of_logarithms_is_that_of_the_values_before(tmp_path):
    data = toy(100)
    data.X, data.uns["units"] = np.log2(data.X + 1), "log2(counts+1)"
    logs, counts = (inspect_file(saved(d, tmp_path)).facts["depth"].split("; ")[1] for d in (data, toy(100)))
    assert logs == counts and "fold apart" in counts


def test_scattered_gaps_are_counted_but_are_no_batch(tmp_path):
    data = toy(100)
    data.X[np.random.default_rng(0).random(data.shape) < 0.01] = np.nan
    data.X[:, 100:] = toy(100).X[:, 100:]
    data.X[:, :100] = np.where(np.isnan(data.X[:, :100]) & (np.arange(100) > 40), 1, data.X[:, :100])
    report = inspect_file(saved(data, tmp_path))
    assert "% of the values" in report.facts["missing"] and "block" not in report.facts["missing"]
    assert "see its `max_missing`" in report.facts["missing"]
    assert report.verdict == "ready"


def test_repeated_patients_are_counted_and_hidden_ones_suspected(tmp_path):
    assert "50, 50 of them with several samples (at most 2)" in \
        inspect_file(saved(toy(100, samples_per_patient=2), tmp_path)).facts["patients"]
    frame = toy(60).to_df().set_axis([f"TCGA-AA-{n//2:04d}-{n%2:02d}" for n in range(60)])
    frame.to_csv(tmp_path/"mine.csv")
    report = inspect_file(tmp_path/"mine.csv")
    assert "30 samples share a TCGA patient" in report.verdict and "add a column `patient`" in report.verdict


def test_an_assumed_direction_and_a_suspicious_one_are_named(tmp_path):
    frame = pd.DataFrame(toy(40, 30).X, [f"a{n}" for n in range(40)], [f"b{n}" for n in range(30)])
    frame.to_csv(tmp_path/"mine.csv")
    assert "only assumed: state `orientation`" in inspect_file(tmp_path/"mine.csv").verdict
    assert "assumed" not in inspect_file(tmp_path/"mine.csv", orientation="samples").verdict
    toy(40, 30).to_df().to_csv(tmp_path/"toy.csv")
    assert "samples look like genes" in inspect_file(tmp_path/"toy.csv", orientation="genes").verdict


def test_labels_units_and_annotations_are_passed_on(tmp_path):
    data = toy(100, unlabelled=0)
    data.to_df().T.to_csv(tmp_path/"mine.tsv", sep="\t")
    data.obs[["truth"]].to_csv(tmp_path/"labels.csv")
    report = inspect_file(tmp_path/"mine.tsv", ["truth"], tmp_path/"labels.csv", "RSEM")
    assert report.verdict == "ready" and report.facts["units"] == "RSEM (stated as RSEM)"
    assert "rows are genes" in report.facts["orientation"] and "100 of 100 samples" in report.facts["annotations"]


@pytest.mark.parametrize("name", ["nowhere.csv", "unknown-name", "labels.xlsx"])
def test_what_cannot_be_read_is_a_verdict_and_no_exception(tmp_path, name):
    report = inspect_file(name)
    assert not report.usable and report.facts == {} and name in report.verdict and "Traceback" not in str(report)


def test_a_matrix_on_the_disk_gives_the_same_page(tmp_path, monkeypatch):
    data, whole = toy(50), str(inspect_file("toy"))
    assert whole
    disk = np.memmap(tmp_path/"X", np.float32, "w+", shape=data.shape)
    disk[:] = data.X
    opened = anndata.AnnData(data.X, data.obs, data.var, data.uns)
    opened.X = disk
    pages = []
    for source in (data, opened):
        monkeypatch.setattr("ssl_expr.inspection.load", lambda *_, source=source, **__: source)
        monkeypatch.setattr("ssl_expr.data.matrix_blocks.__defaults__", (1000,))
        pages.append(str(inspect_file("toy")))
    assert pages[0] == pages[1] and "50 samples" in pages[0]


def test_a_named_data_set_is_loaded_unchecked_only_by_request():
    assert load("toy", check=False).shape == load("toy").shape


def test_numbers_that_annotate_samples_are_suspected_among_the_genes(tmp_path):
    data = toy(60, n_genes=40)
    data.var_names = [*sorted(known_genes("symbol"))[:38], "stage", "os_days"]
    report = inspect_file(saved(data, tmp_path))
    assert any("2 names such as 'stage' are no genes" in text for text in report.reservations)
    data.var_names = sorted(known_genes("symbol"))[:40]
    assert not any("are no genes" in text for text in inspect_file(saved(data, tmp_path)).reservations)
