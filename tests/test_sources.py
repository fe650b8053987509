"""Public sources: read from files in their true format, and, where they are at hand, from the original files."""
import gc
import gzip
import os
import warnings
from contextlib import nullcontext
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from ssl_expr import archs4, gtex, rnaseqdb, tcga
from ssl_expr.data import datasets, load
from ssl_expr.fetch import fetch, sources
from ssl_expr.prepare import prepare


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "A folder of source files, and a cache of its own."
    monkeypatch.setenv("SSL_EXPR_CACHE", str(tmp_path/"cache"))
    monkeypatch.delenv("SSL_EXPR_MIRROR", raising=False)
    (tmp_path/"source").mkdir()
    return tmp_path/"source"


def write_gzip(path: Path, text: str): path.write_bytes(gzip.compress(text.encode()))


# labels of TCGA

@pytest.fixture
def tables(tmp_path):
    "The two label tables, with the columns of the public ones."
    samples = ["TCGA-AA-0001-01A", "TCGA-AA-0001-11A", "TCGA-AA-0002-01A", "TCGA-BB-0003-01A"]
    pd.DataFrame({"sampleID": samples, "cancer_type": ["TCGA-COAD", "Normal", "TCGA-COAD", "TCGA-LUAD"],
                  "subtype": ["GI.CIN", "GI.CIN", "GI.NA", "LUAD.1"]}).to_parquet(tmp_path/"paper_label.parquet")
    clinical = pd.DataFrame({
        "sample_id": ["TCGA-AA-0001-01", "TCGA-BB-0003-01"], "patient_id": ["TCGA-AA-0001", "TCGA-BB-0003"],
        "gender": ["Male", "Female"], "age_diagnosed": [60, 70], "ajcc_stage": ["Stage I", None],
        "days_survived": [100, 200], "dead": [1, 0]})
    clinical.to_csv(tmp_path/"tcga_clinical_cc0.tsv", sep="\t", index=False)
    return tmp_path


def test_a_barcode_tells_patient_tissue_and_kind():
    barcodes = ["TCGA-AA-0001-01A-11R-1", "TCGA-AA-0001-11", "TCGA-AB-2803-03A", "TCGA-AA-0001-06B"]
    facts = tcga.barcode_facts(pd.Index(barcodes))
    assert facts["patient"].tolist() == ["TCGA-AA-0001"]*2 + ["TCGA-AB-2803", "TCGA-AA-0001"]
    assert facts["tumour"].tolist() == ["tumour", "normal", "tumour", "tumour"]
    assert facts["sample"].tolist() == ["TCGA-AA-0001-01A", "TCGA-AA-0001-11A", "TCGA-AB-2803-03A", "TCGA-AA-0001-06B"]
    assert facts["sample_type"].tolist() == ["primary tumour", "normal tissue", "blood cancer", "metastasis"]


def test_of_a_sample_that_was_sequenced_twice_the_deeper_run_stays():
    counts = np.array([[5, np.nan], [9, 1], [1, 1], [2, 2]], np.float32)
    assert tcga.deepest_runs(counts, pd.Index(["a", "a", "b", "c"])).tolist() == [1, 2, 3]
    assert tcga.deepest_runs(counts[::-1], pd.Index(["c", "b", "a", "a"])).tolist() == [0, 1, 2]


def test_labels_come_by_sample_and_a_normal_has_none_of_what_is_said_of_the_tumour(tables):
    samples = ["TCGA-AA-0001-01A", "TCGA-AA-0001-11A", "TCGA-AA-0002-01A", "TCGA-ZZ-0009-01A"]
    barcodes = pd.Index([f"{sample}-11R" for sample in samples])
    obs = tcga.annotate_tcga(barcodes, pd.Index(["COAD", "COAD", "COAD", "LUAD"]), tables)
    assert obs["cancer_type"].astype(object).fillna("-").tolist() == ["COAD", "Normal", "COAD", "-"]
    assert obs["subtype"].astype(object).fillna("-").tolist() == ["GI.CIN", "-", "-", "-"]     # GI.NA: unknown
    assert obs["stage"].astype(object).fillna("-").tolist() == ["Stage I", "-", "-", "-"]
    assert obs["organ"].tolist() == ["colon", "colon", "colon", "lung"]
    np.testing.assert_array_equal(obs["survival_days"], [100, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(obs["died"], [1, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(obs["age"], [60, 60, np.nan, np.nan])                       # the patient's
    assert obs["sex"].astype(object).fillna("-").tolist() == ["Male", "Male", "-", "-"]
    with pytest.raises(ValueError, match="'XXXX' is no TCGA project"):
        tcga.annotate_tcga(barcodes[:1], pd.Index(["XXXX"]), tables)


# tcga, mRNA

GENES = ["ENSG00000000003.15", "ENSG00000000005.6", "ENSG00000002586.20_PAR_Y"]


def write_star_counts(folder, project, samples, counts, change=lambda text: text):
    "A table of UCSC Xena: genes x samples, log2(count + 1)."
    rows = [[gene, *map(str, np.log2(np.asarray(row) + 1))] for gene, row in zip(GENES, counts, strict=True)]
    text = "\n".join("\t".join(row) for row in [["Ensembl_ID", *samples], *rows]) + "\n"
    write_gzip(folder/f"TCGA-{project}.star_counts.tsv.gz", change(text))
    return folder/f"TCGA-{project}.star_counts.tsv.gz"


def test_star_counts_come_back_as_the_counts_they_were(tmp_path):
    counts = [[0, 1, 12_345_678], [7, 65_536, 2], [99, 0, 1_000_003]]
    samples = ["TCGA-AA-0001-01A", "TCGA-AA-0001-11A", "TCGA-AA-0002-01A"]
    read, genes = tcga.read_star_counts(write_star_counts(tmp_path, "COAD", samples, counts))
    np.testing.assert_array_equal(read, np.array(counts).T)
    assert list(genes) == GENES and read.dtype == np.float32


@pytest.mark.parametrize("written", [lambda value: str(np.float32(value)), "{:.7g}".format, str])
def test_counts_up_to_a_hundred_million_come_back_from_single_precision_and_from_seven_digits(tmp_path, written):
    counts = np.unique(np.geomspace(1, 1e8, 300).round())
    text = "".join(f"ENSG{int(count)}.1\t{written(np.log2(count + 1))}\n" for count in counts)
    write_gzip(tmp_path/"TCGA-COAD.star_counts.tsv.gz", "Ensembl_ID\tTCGA-AA-0001-01A\n" + text)
    read, _ = tcga.read_star_counts(tmp_path/"TCGA-COAD.star_counts.tsv.gz")
    np.testing.assert_allclose(read[0], counts, rtol=tcga.ROUNDING)
    np.testing.assert_array_equal(read[0, counts < 1e5], counts[counts < 1e5])


@pytest.mark.parametrize("value", [0.01, 0.5, 3.3, 500.4, 9_999.5])
def test_a_number_between_two_counts_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match="no log2.count . 1.: fetch it again"):
        tcga.read_star_counts(write_star_counts(tmp_path, "COAD", ["TCGA-AA-0001-01A"], [[1], [value], [5]]))


def test_projects_become_one_matrix_with_the_labels_of_the_paper(tmp_path, tables):
    write_star_counts(tmp_path, "COAD", ["TCGA-AA-0001-01A", "TCGA-AA-0001-11A"], [[1, 2], [3, 4], [5, 6]])
    write_star_counts(tmp_path, "LUAD", ["TCGA-BB-0003-01A"], [[7], [8], [9]])
    parts = tcga._build_mrna(tmp_path, tables)
    np.testing.assert_array_equal(np.concatenate(list(parts["blocks"])), [[1, 3, 5], [2, 4, 6], [7, 8, 9]])
    assert parts["obs"]["cancer_type"].tolist() == ["COAD", "Normal", "LUAD"]
    assert parts["obs"]["project"].tolist() == ["COAD", "COAD", "LUAD"]
    assert parts["var"]["ensembl"].tolist() == ["ENSG00000000003", "ENSG00000000005", "ENSG00000002586_PAR_Y"]


@pytest.mark.parametrize("change, said", [
    (lambda text: text.replace("Ensembl_ID", "gene"), "first column is 'gene', not 'Ensembl_ID'"),
    (lambda text: text.replace("\t2.0", "\t0.3"), "0.3 in gene 'ENSG00000000005.6', sample 'TCGA-AA-0001-01A'"),
    (lambda text: text.replace("\t2.0", "\t"), "nan in gene 'ENSG00000000005.6'"),
    (lambda text: text.replace("\t2.0", "\tmany"), "many in gene 'ENSG00000000005.6', sample 'TCGA-AA-0001-01A'"),
    (lambda text: text.split("\n")[0], "lists no gene"), (lambda text: "", "cannot be read as a gzipped table"),
    (lambda text: text + "a\tb\tc\td\n", "TCGA-COAD.star_counts.tsv.gz cannot be read as a gzipped table")])
def test_a_project_that_is_no_log_of_counts_is_refused(tmp_path, change, said):
    path = write_star_counts(tmp_path, "COAD", ["TCGA-AA-0001-01A"], [[1], [3], [5]], change)
    with pytest.raises(ValueError) as refusal: tcga.read_star_counts(path)
    sentence = str(refusal.value)
    assert said in sentence and "fetch it again" in sentence and "\n" not in sentence


def test_projects_of_different_releases_are_refused(tmp_path, tables):
    counts = [[1], [2], [3]]
    write_star_counts(tmp_path, "COAD", ["TCGA-AA-0001-01A"], counts)
    write_star_counts(tmp_path, "LUAD", ["TCGA-BB-0003-01A"], counts, lambda text: text.replace("0005.6", "0005.7"))
    with pytest.raises(ValueError, match="TCGA-LUAD.*lists other genes than TCGA-COAD"):
        list(tcga._build_mrna(tmp_path, tables)["blocks"])


DAMAGES = [lambda whole: whole[:-12], lambda whole: whole[:40], lambda whole: b"<html>moved</html>",
           lambda whole: whole[:30] + b"\xff"*20 + whole[50:]]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_gzip_file_is_one_sentence_with_its_name(folder, tmp_path, tables, damage):
    write_gzip(tmp_path/"coad-rsem-count-tcga.txt.gz",
               expected_counts(["TCGA-AA-0001-11A-1"], [("TP53", 7157, [1.5]), ("MYC", 4609, [3])]))
    write_star_counts(tmp_path, "COAD", ["TCGA-AA-0001-01A"], [[1], [3], [5]])
    small_gtex(tmp_path)
    readers = {"coad-*.gz": rnaseqdb.read_counts, "TCGA-*.gz": tcga.read_star_counts, "GTEx*.gz": gtex.read_gtex}
    for pattern, read in readers.items():
        path, = tmp_path.glob(pattern)
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(ValueError) as refusal: read(path)
        said = str(refusal.value)
        assert said.startswith(f"{path.name} cannot be read as a gzipped table") and "\n" not in said, said


# rnaseqdb

def expected_counts(samples, rows):
    "The text of a file of RNAseqDB: padded Entrez numbers, two decimals."
    lines = [["Hugo_Symbol", "Entrez_Gene_Id", *samples]]
    lines += [[gene, f"{entrez:9}", *map("{:.2f}".format, values)] for gene, entrez, values in rows]
    return "\n".join("\t".join(line) for line in lines) + "\n"


def test_files_in_another_gene_order_are_aligned_and_their_names_become_annotations(tmp_path, tables):
    tumours = ["TCGA-AA-0001-01A-1", "TCGA-AA-0002-01A-1"]
    write_gzip(tmp_path/"coad-rsem-count-tcga-t.txt.gz",
               expected_counts(tumours, [("TP53", 7157, [1.5, 2]), ("MYC", 4609, [3, 4])]))
    write_gzip(tmp_path/"esophagus_muc-rsem-count-gtex.txt.gz",
               expected_counts(["GTEX-S32W-1126-SM-4AD5V"], [("MYC", 4609, [10]), ("TP53", 7157, [20])]))
    parts = rnaseqdb._build(tmp_path, tables)
    np.testing.assert_array_equal(parts["blocks"][0], [[1.5, 3], [2, 4], [20, 10]])
    obs = parts["obs"]
    assert obs["organ"].tolist() == ["colon", "colon", "esophagus"]
    assert obs["source"].tolist() == ["TCGA", "TCGA", "GTEx"]
    assert obs["tumour"].tolist() == ["tumour", "tumour", "normal"] and obs["patient"].iloc[2] == "GTEX-S32W"
    assert parts["var"].to_dict() == {"entrez": {"TP53": "7157", "MYC": "4609"}}
    assert "`entrez` does not identify a gene" in parts["uns"]["provenance"]["genes"]


@pytest.mark.parametrize("name, change, said", [
    ("coad-rsem-count-tcga.txt.gz", lambda text: text.replace("1.50", "-2"), "'-2.0' instead of a count in gene 'TP53"),
    ("coad-rsem-count-tcga.txt.gz", lambda text: text.replace("1.50", "much"), "'much' instead of a count"),
    ("coad-rsem-count-tcga.txt.gz", lambda text: text.replace("1.50", ""), "has 'nan' instead of a count"),
    ("coad-rsem-count-tcga.txt.gz", lambda text: text.replace("MYC", "TP53"), "names a gene twice"),
    ("coad-rsem-count-tcga.txt.gz", lambda text: text.replace("Entrez", "Other"), "Hugo_Symbol, Entrez_Gene_Id"),
    ("xyz-rsem-count-tcga.txt.gz", lambda text: text, "is not named"),
    ("liver-rsem-count-gtex.txt.gz", lambda text: text, "no GTEx id")])
def test_a_file_of_another_kind_is_refused_by_name(tmp_path, tables, name, change, said):
    text = expected_counts(["TCGA-AA-0001-11A-1"], [("TP53", 7157, [1.5]), ("MYC", 4609, [3])])
    write_gzip(tmp_path/name, change(text))
    with pytest.raises(ValueError) as refusal: rnaseqdb._build(tmp_path, tables)
    assert said in str(refusal.value) and str(refusal.value).startswith(name)


def test_a_sample_in_two_files_is_kept_once_and_a_gene_without_number_has_none(tmp_path, tables):
    rows = [("TP53", 7157, [1]), ("NEW", 0, [2])]
    for name in ("coad-rsem-count-tcga", "read-rsem-count-tcga"):
        write_gzip(tmp_path/f"{name}.txt.gz", expected_counts(["TCGA-AA-0001-11A-1"], rows))
    parts = rnaseqdb._build(tmp_path, tables)
    np.testing.assert_array_equal(parts["blocks"][0], [[1, 2]])
    assert parts["obs"]["organ"].tolist() == ["colon"] and parts["var"]["entrez"].tolist() == ["7157", ""]


@pytest.mark.parametrize("rows", [
    [("TP53", 7157, [1])], [("TP53", 7157, [1]), ("MYC", 4609, [2])],
    [("TP53", 7157, [1]), ("NEW", 0, [2]), ("MYC", 4609, [3])]])
def test_files_with_other_genes_are_refused(tmp_path, tables, rows):
    write_gzip(tmp_path/"coad-rsem-count-tcga.txt.gz",
               expected_counts(["TCGA-AA-0001-11A-1"], [("TP53", 7157, [1]), ("NEW", 0, [2])]))
    write_gzip(tmp_path/"liver-rsem-count-gtex.txt.gz", expected_counts(["GTEX-S32W-1126-SM-4AD5V"], rows))
    with pytest.raises(ValueError, match="^liver-rsem-count-gtex.txt.gz lists other genes than coad"):
        rnaseqdb._build(tmp_path, tables)


# archs4

def small_archs4(path: Path, n_genes=20, n_samples=30, chunk=7, seed=0):
    "The layout of human_gene_v2.2.h5; returns the counts and the texts."
    rng = np.random.default_rng(seed)
    counts = rng.poisson(30, (n_genes, n_samples)).astype("uint32")
    counts[0, 0] = 3_000_000
    texts = [f"tissue: {archs4.KEYWORDS[i % 19].title()}" for i in range(n_samples)]
    sources = ["a sample"]*n_samples
    texts[3], texts[4], texts[5], texts[8] = "tissue: brain, lung", "organ: lung", "tissue: HeLa", "organ: skin"
    sources[8] = "Some Tissue"
    single = np.where(np.arange(n_samples) % 10 == 9, 0.8, 0.1)
    with h5py.File(path, "w") as file:
        file.create_dataset("data/expression", data=counts, chunks=(n_genes, chunk), compression="gzip")
        file["meta/genes/ensembl_gene_id"] = [f"ENSG{g:011d}" for g in range(n_genes)]
        file["meta/genes/symbol"] = [f"G{g}" for g in range(n_genes)]
        meta = file.create_group("meta/samples")
        meta["geo_accession"] = [f"GSM{i}" for i in range(n_samples)]
        meta["series_id"] = [f"GSE{i//4},GSE9{i}" for i in range(n_samples)]
        meta["characteristics_ch1"], meta["singlecellprobability"] = texts, single
        meta["source_name_ch1"], meta["title"] = sources, ["a title"]*n_samples
    return counts, single


def test_archs4_takes_bulk_samples_with_a_keyword_and_groups_them_by_series(folder):
    counts, single = small_archs4(folder/"human_gene_v2.2.h5")
    data = load("archs4", folder)
    chosen = [i for i in range(30) if single[i] < 0.5 and i not in (4, 5)]     # of 4 nobody says tissue, of 5 which
    assert list(data.obs_names) == [f"GSM{i}" for i in chosen]
    assert list(data.obs["patient"]) == [f"GSE{i//4}" for i in chosen]
    assert list(data.var_names[:2]) == ["ENSG00000000000", "ENSG00000000001"] and data.var["symbol"].iloc[1] == "G1"
    assert type(data.X) is np.memmap and data.X.dtype == np.float16 and data.uns["units"] == "log2(counts+1)"
    truth = counts[:, chosen].T.astype(float)
    half_spacing = np.spacing(np.log2(truth + 1).astype(np.float16)).astype(float)/2
    error = abs(np.exp2(np.asarray(data.X, float)) - 1 - truth)
    assert (error <= np.expm1(half_spacing*np.log(2))*(truth + 1)).all()      # ln 2 (c + 1) of half a float16 spacing


def test_samples_of_overlapping_series_are_one_group_with_the_smallest_number(folder):
    texts = ["GSE10,GSE99", "GSE20,GSE99", "GSE99,GSE10", "GSE20", "GSE30", "GSE100\tGSE9", ""]
    names = [f"GSM{i}" for i in range(len(texts))]
    groups = archs4.series_groups(pd.Series(texts, names))
    assert groups.tolist() == ["GSE10"]*4 + ["GSE30", "GSE9", "GSM6"]
    assert archs4.series_groups(pd.Series(texts[::-1], names)).tolist() == ["GSM0", "GSE9", "GSE30"] + ["GSE10"]*4
    assert archs4.series_groups(pd.Series(["", ""], ["GSM1", "GSM2"])).tolist() == ["GSM1", "GSM2"]
    small_archs4(folder/"human_gene_v2.2.h5")
    with h5py.File(folder/"human_gene_v2.2.h5", "r+") as file:
        file["meta/samples/series_id"][:5] = ["GSE10,GSE99", "GSE20,GSE99", "GSE99,GSE10", "GSE20", "GSE2000,GSE50"]
        file["meta/samples/characteristics_ch1"][2] = "cell line"     # not chosen, so it connects nothing
    obs = load("archs4", folder).obs
    assert obs.loc[["GSM0", "GSM1", "GSM3"], "patient"].tolist() == ["GSE10"]*3
    assert obs.loc[["GSM0", "GSM1", "GSM3"], "series"].tolist() == ["GSE10,GSE99", "GSE20,GSE99", "GSE20"]


def test_a_series_connects_chosen_samples_only():
    fields = dict(characteristics_ch1="tissue: liver", singlecellprobability=0.1, mentions_tissue=True)
    samples = pd.DataFrame([dict(fields, geo_accession=f"GSM{i}", series_id=text)
                            for i, text in enumerate(["GSE1", "GSE1,GSE2", "GSE2"])])
    assert archs4.annotate_samples(samples)["patient"].tolist() == ["GSE1"]*3
    samples.loc[1, "singlecellprobability"] = 0.9
    chosen = samples.iloc[archs4.choose_samples(samples)]
    assert archs4.annotate_samples(chosen)["patient"].tolist() == ["GSE1", "GSE2"]


def replace_texts(path, field, texts):
    with h5py.File(path, "r+") as file:
        if field in file["meta/samples"]: del file[f"meta/samples/{field}"]
        if texts is not None: file[f"meta/samples/{field}"] = texts


@pytest.mark.parametrize("protocol, chosen", [("Fresh Tissue was frozen", True), ("tis-sue", True), ("blood", False)])
def test_the_word_tissue_is_searched_in_the_extraction_protocol_too(folder, protocol, chosen):
    path = folder/"human_gene_v2.2.h5"
    small_archs4(path)
    replace_texts(path, "characteristics_ch1", ["organ: liver"]*30)
    replace_texts(path, "source_name_ch1", ["a sample"]*30)
    replace_texts(path, "extract_protocol_ch1", ["cells"]*17 + [protocol] + ["cells"]*12)
    with h5py.File(path) as file:
        assert np.flatnonzero(archs4.mentions(file, "tissue", size=4)).tolist() == [17]*chosen
        assert archs4.choose_samples(archs4.read_samples(file, "file")).tolist() == [17]*chosen


def test_fields_that_are_only_searched_may_be_absent(folder):
    path = folder/"human_gene_v2.2.h5"
    small_archs4(path)
    replace_texts(path, "source_name_ch1", None)
    replace_texts(path, "title", None)
    obs = load("archs4", folder).obs
    assert "GSM8" not in obs.index and "GSM0" in obs.index and "title" not in obs     # of 8 the source said tissue


def test_the_strict_tissue_is_a_whole_word_and_the_only_one():
    texts = ["cell type: colony", "foreskin", "tissue: colony of the Liver", "lung_2; squamous", "lung_2", "brain/skin"]
    labels = archs4.tissue_labels(texts).astype(object).fillna("-")
    assert labels["tissue"].tolist() == ["colon", "skin", "colon", "lung", "lung", "brain"]
    assert labels["tissue_strict"].tolist() == ["-", "-", "liver", "-", "lung", "-"]


def test_a_sample_with_two_tissues_keeps_the_first_and_is_refused_by_the_strict_label(folder):
    small_archs4(folder/"human_gene_v2.2.h5")
    obs = load("archs4", folder).obs
    assert obs.loc["GSM3", "tissue"] == "brain" and pd.isna(obs.loc["GSM3", "tissue_strict"])
    others = obs.drop(index="GSM3")
    assert (others["tissue"] == others["tissue_strict"]).all()
    assert set(obs["tissue_10"].dropna()) == {word for word in archs4.PAPER_TISSUES if word in set(obs["tissue"])}


@pytest.mark.parametrize("chunk, size", [(1, 1), (7, 3), (7, 512), (30, 4)])
def test_columns_are_read_in_order_whatever_the_chunks(tmp_path, chunk, size):
    counts, _ = small_archs4(tmp_path/"a.h5", chunk=chunk)
    columns = np.array([8, 9, 13, 14, 20, 21, 28, 29])
    with h5py.File(tmp_path/"a.h5") as file:
        blocks = list(archs4.column_blocks(file["data/expression"], columns, size))
    np.testing.assert_allclose(np.concatenate(blocks), np.log2(counts[:, columns].T + 1.0), rtol=1e-6)


@pytest.mark.parametrize("field", ["meta/samples/singlecellprobability", "meta/genes/symbol", "data/expression"])
def test_an_archs4_file_without_a_field_is_refused_by_its_name(folder, field):
    small_archs4(folder/"human_gene_v2.2.h5")
    with h5py.File(folder/"human_gene_v2.2.h5", "r+") as file: del file[field]
    with pytest.raises(ValueError, match=f"human_gene_v2.2.h5 has no field {field}: it is no ARCHS4"):
        load("archs4", folder)


def test_the_file_is_closed_whether_reading_succeeds_or_not(folder):
    path = folder/"human_gene_v2.2.h5"
    small_archs4(path)
    parts = archs4._build(folder)
    with h5py.File(path, "r+") as file: file["meta/samples/singlecellprobability"][:] = 0.9     # fails on an open file
    assert len(np.concatenate(list(parts["blocks"]))) == len(parts["obs"])
    with pytest.raises(ValueError, match="no bulk sample") as refusal: archs4._build(folder)
    with h5py.File(path, "r+") as file: del file["meta/genes/symbol"]
    with pytest.raises(ValueError, match="no field") as refusal: archs4._build(folder)
    with h5py.File(path, "r+"): assert refusal.traceback     # which would keep an open file alive


def test_an_archs4_file_whose_parts_do_not_fit_or_that_has_no_tissue_is_refused(folder):
    small_archs4(folder/"human_gene_v2.2.h5")
    with h5py.File(folder/"human_gene_v2.2.h5", "r+") as file:
        file["meta/samples/singlecellprobability"][:] = 0.9
    with pytest.raises(ValueError, match="no bulk sample of a known tissue"): archs4._build(folder)
    with h5py.File(folder/"human_gene_v2.2.h5", "r+") as file:
        del file["meta/genes/symbol"]
        file["meta/genes/symbol"] = ["G1"]
    with pytest.raises(ValueError, match="a matrix of .20, 30. for 1 genes x 30 samples"): archs4._build(folder)


def test_a_file_that_is_no_hdf5_is_refused(folder):
    (folder/"human_gene_v2.2.h5").write_bytes(b"<html>moved</html>")
    with pytest.raises(ValueError, match="human_gene_v2.2.h5 is no readable HDF5 file"): load("archs4", folder)


# gtex

def small_gtex(folder: Path, change=lambda text: text):
    "The three files of GTEx v8: two samples of one donor, and a cell line that no table knows."
    samples = ["GTEX-1117F-0226-SM-5GZZ7", "GTEX-1117F-0426-SM-5EGHI", "K-562-SM-26GMQ"]
    rows = [["#1.2"], ["2", "3"], ["Name", "Description", *samples],
            ["ENSG00000223972.5", "DDX11L1", "0", "3", "1"], ["ENSG1.1", "X", "700000", "7", "0.5"]]
    tissues = [["SAMPID", "SMATSSCR", "SMTS", "SMTSD"], [samples[0], "1", "Cervix Uteri", "Cervix - Ectocervix"],
               [samples[1], "0", "Muscle", "Muscle - Skeletal"]]
    donors = [["SUBJID", "SEX", "AGE", "DTHHRDY"], ["GTEX-1117F", "2", "60-69", "4"]]
    def text(lines): return "".join("\t".join(line) + "\n" for line in lines)
    write_gzip(folder/"GTEx_Analysis_2017-06-05_v8_RNASeQCv1.1.9_gene_tpm.gct.gz", change(text(rows)))
    (folder/"GTEx_Analysis_v8_Annotations_SampleAttributesDS.txt").write_text(text(tissues))
    (folder/"GTEx_Analysis_v8_Annotations_SubjectPhenotypesDS.txt").write_text(text(donors))


def test_gtex_groups_tissues_by_donor_and_keeps_log2_tpm(folder):
    small_gtex(folder)
    data = load("gtex", folder)
    assert list(data.obs["patient"]) == ["GTEX-1117F", "GTEX-1117F", "K-562"]
    assert data.obs["organ"].astype(object).fillna("-").tolist() == ["cervix", "muscle", "-"]
    assert data.obs["sex"].astype(object).fillna("-").tolist() == ["Female", "Female", "-"]
    np.testing.assert_allclose(np.asarray(data.X, np.float32), np.log2([[1, 700001], [4, 8], [2, 1.5]]), atol=0.008)
    assert data.uns["units"] == "log2(TPM+1)" and list(data.var["symbol"]) == ["DDX11L1", "X"]


@pytest.mark.parametrize("change, said", [
    (lambda text: text.replace("#1.2", "#1.3"), "does not start as a gct file"),
    (lambda text: text.replace("2\t3", "3\t3", 1), "states 3 genes x 3 samples and holds 2"),
    (lambda text: text.replace("2\t3", "1\t3", 1), "does not hold the 1 genes"),
    (lambda text: text.replace("2\t3", "2\t4", 1), "states 2 genes x 4 samples"),
    (lambda text: text.replace("Description", "Gene"), "no columns Name and Description"),
    (lambda text: text.replace("700000", "-1"), "numbers from 0 up"),
    (lambda text: text.replace("700000", "many"), "numbers from 0 up"),
    (lambda text: text + "a\tb\tc\td\te\tf\n", "cannot be read as a gzipped table")])
def test_a_gct_file_that_breaks_its_promise_is_refused(folder, change, said):
    small_gtex(folder, change)
    with pytest.raises(ValueError, match=said): load("gtex", folder)


GTEX_TISSUES = """Adipose Tissue, Adrenal Gland, Bladder, Blood, Blood Vessel, Bone Marrow, Brain, Breast, Cervix Uteri,
    Colon, Esophagus, Fallopian Tube, Heart, Kidney, Liver, Lung, Muscle, Nerve, Ovary, Pancreas, Pituitary, Prostate,
    Salivary Gland, Skin, Small Intestine, Spleen, Stomach, Testis, Thyroid, Uterus, Vagina"""


def test_an_organ_has_one_name_in_all_sources():
    names = {tcga.organ_name(name.strip()) for name in GTEX_TISSUES.split(",")}
    of_their_own = {"adipose tissue", "blood vessel", "bone marrow", "fallopian tube", "heart", "muscle", "nerve",
                    "pituitary", "salivary gland", "small intestine", "spleen", "vagina"}
    assert names - set(tcga.ORGANS.values()) == of_their_own and len(names) == 31
    files = [file.name.split("-rsem")[0] for file in sources()["rnaseqdb"].files if file.name.endswith("gtex.txt.gz")]
    assert {tcga.organ_name(name) for name in files} <= names
    assert tcga.organ_name("esophagus_muc") == "esophagus"


# tcga-mirna: damaged or foreign R files

@pytest.mark.parametrize("content", [b"", b"not R", gzip.compress(b"RDX3\nX\n\x00\x00\x00\x03")],
                         ids=["empty", "not R", "damaged"])
def test_a_damaged_rda_file_is_one_sentence(tmp_path, content):
    (tmp_path/"ACC.miRNASeq.rda").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="ACC.miRNASeq.rda holds no R data frame.*fetch it again") as refusal:
            tcga.read_cohort(tmp_path/"ACC.miRNASeq.rda")
    assert "\n" not in str(refusal.value)


def write_rda(path: Path, thing) -> Path:
    import rdata
    rdata.write_rda(path, {"thing": thing})
    return path


@pytest.mark.parametrize("thing, said", [
    ([1.0, 2.0], "holds no R data frame"), ({"a": 1, "b": 2}, "holds no R data frame"),
    (pd.DataFrame({"a": [1], "b": [2], "c": [3]}), r"is no miRNASeq table \(it starts with a, b\): fetch it again")])
def test_an_rda_file_with_another_object_is_refused(tmp_path, thing, said):
    path = write_rda(tmp_path/"ACC.miRNASeq.rda", thing)
    with pytest.raises(ValueError, match=f"^ACC.miRNASeq.rda {said}"): tcga.read_cohort(path)


@pytest.mark.parametrize("index", [[4, 7, 9], pd.RangeIndex(1, 4), ["x", "y", "z"]])
def test_an_r_data_frame_comes_back_whatever_its_columns_and_row_names_are(tmp_path, index):
    frame = pd.DataFrame({"text": ["p", "q", "r"], "factor": pd.Categorical(["v", None, "u"]), "whole": [1, 2, 3],
                          "real": [0.5, np.nan, 2]}, index=index)
    read = tcga.read_rda(write_rda(tmp_path/"some.rda", frame))
    pd.testing.assert_frame_equal(read, frame.set_axis(frame.index.astype(str)), check_dtype=False)


def test_text_is_read_at_once_as_rdata_reads_it_piece_by_piece(tmp_path, monkeypatch):
    texts = ["plain", "", "ä∂ – 日本", None, "x"*70_000]
    frame = pd.DataFrame({"text": texts, "factor": pd.Categorical(["b", None, "ü", "b", ""]), "number": range(5)})
    path = write_rda(tmp_path/"some.rda", frame)
    quick = tcga.read_rda(path)
    monkeypatch.setattr(tcga, "text_at_once", nullcontext)
    pd.testing.assert_frame_equal(quick, tcga.read_rda(path))
    assert quick["text"].tolist() == texts and quick["factor"].tolist()[2] == "ü"


def test_text_that_is_cut_off_is_refused(tmp_path):
    import rdata
    path = write_rda(tmp_path/"some.rda", pd.DataFrame({"text": ["plain", "text"]}))
    whole = gzip.decompress(path.read_bytes())
    for place in range(20, len(whole)):
        path.write_bytes(whole[:place])
        with pytest.raises(ValueError, match="holds no R data frame"): tcga.read_rda(path)
    assert rdata.parser._xdr.ParserXDR._parse_vector_value.__name__ == "_parse_vector_value" and gc.isenabled()


def mirna_table(samples, counts):
    "A cohort as RTCGA stores it: three rows for each aliquot, numbers as factors; the second row name gets a number."
    kinds = ["read_count", "reads_per_million_miRNA_mapped", "cross-mapped"]
    columns = {"machine": "Illumina HiSeq", "miRNA_ID": kinds*len(samples)}
    for name, values in counts.items():
        columns[name] = pd.Categorical([cell for value in values for cell in (str(value), f"{value/10}", "N")])
    names = [f"{sample}{repeat}" for sample in samples for repeat in ("", ".1", ".2")]
    return pd.DataFrame(columns, index=names)


def test_of_three_rows_of_an_aliquot_the_read_counts_are_kept(tmp_path):
    samples = ["TCGA-AA-0001-01A-11R", "TCGA-AA-0002-11A-11R"]
    path = write_rda(tmp_path/"COAD.miRNASeq.rda", mirna_table(samples, {"let-7": [30, 5], "mir-21": [200_000, 0]}))
    counts, machine = tcga.read_cohort(path)
    assert list(counts.index) == samples and list(counts.columns) == ["let-7", "mir-21"]
    np.testing.assert_array_equal(counts, [[30, 200_000], [5, 0]])
    assert machine.to_dict() == dict.fromkeys(samples, "Illumina HiSeq")


@pytest.mark.parametrize("cell, shown", [("many", "many"), (None, "nan")])
def test_a_cell_without_a_number_is_refused_by_its_place(tmp_path, cell, shown):
    table = mirna_table(["TCGA-AA-0001-01A-11R"], {"let-7": [3]})
    table["let-7"] = pd.Categorical([cell, "0.3", "N"])
    path = write_rda(tmp_path/"COAD.miRNASeq.rda", table)
    with pytest.raises(ValueError, match=f"'{shown}' instead of a count in 'TCGA-AA-0001-01A-11R', 'let-7'"):
        tcga.read_cohort(path)


def test_cohorts_become_one_matrix_of_samples_without_second_runs_and_misleading_cohorts(tmp_path, tables):
    def cohort(project, samples, counts): write_rda(tmp_path/f"{project}.miRNASeq.rda", mirna_table(samples, counts))
    cohort("COAD", ["TCGA-AA-0001-01A-11R", "TCGA-AA-0001-11A-11R"], {"mir-21": [7, 8]})
    cohort("LUAD", ["TCGA-BB-0003-01A-11R", "TCGA-BB-0003-01A-22R"], {"let-7": [1, 2], "mir-21": [3, 4]})
    cohort("GBM", ["TCGA-CC-0004-11A-11R"], {"let-7": [5], "mir-21": [6]})
    parts = tcga._build_mirna(tmp_path, tables)
    assert list(parts["obs"].index) == ["TCGA-AA-0001-01A", "TCGA-AA-0001-11A", "TCGA-BB-0003-01A"]
    np.testing.assert_array_equal(parts["blocks"][0], [[np.nan, 7], [np.nan, 8], [2, 4]])
    assert list(parts["var"].index) == ["let-7", "mir-21"]
    assert parts["obs"]["aliquot"].iloc[2] == "TCGA-BB-0003-01A-22R"
    assert parts["obs"]["cancer_type"].tolist() == ["COAD", "Normal", "LUAD"]
    assert parts["obs"]["project"].tolist() == ["COAD", "COAD", "LUAD"]
    assert parts["uns"]["provenance"]["samples"].startswith("1 samples of FPPP and GBM and 1 shallower runs")


def test_every_source_is_listed():
    assert {"archs4", "coadread", "gtex", "rnaseqdb", "tcga", "tcga-mirna", "toy"} <= set(datasets())


FETCHED = sorted(set(datasets()) & set(sources()))


@pytest.mark.parametrize("name", FETCHED)
def test_a_loader_reads_no_source_but_its_own_and_those_it_needs(name, monkeypatch):
    read = []
    for module in (tcga, rnaseqdb, archs4, gtex):
        for function in [function for function in vars(module) if function.startswith("_build")]:
            monkeypatch.setattr(module, function, lambda *folders: {})
        monkeypatch.setattr(module, "built", lambda name, folder, layout, build: read.append(name) or build(Path()))
        monkeypatch.setattr(module, "fetch", lambda name, folder: read.append(name), raising=False)
    assert load_only(name) is not None
    assert read[0] == name and set(read[1:]) == set(sources()[name].needs)


def load_only(name):
    "What the registered loader returns, unchecked."
    from ssl_expr import data
    return data._loaders[name](None)


def test_rnaseqdb_without_the_labels_fails_when_it_is_fetched(folder):
    write_gzip(folder/"coad-rsem-count-tcga.txt.gz", "")
    with pytest.raises(FileNotFoundError, match="does not hold paper_label.parquet: put it there"):
        fetch("rnaseqdb", folder, progress=False)


@pytest.mark.parametrize("name", FETCHED)
@pytest.mark.parametrize("content", [{}, {"notes.txt": "hello", "counts.csv": "a,b"}])
def test_an_empty_or_a_foreign_folder_is_one_sentence(folder, name, content):
    for file, text in content.items(): (folder/file).write_text(text)
    with pytest.raises(FileNotFoundError) as refusal: load(name, folder)
    said = str(refusal.value)
    assert said.startswith(str(folder)) and "\n" not in said and "hold" in said


# the original files

@pytest.mark.real_data
def test_tcga_mirna_has_the_published_numbers(real_data):
    data = load("tcga-mirna", real_data)
    obs, X = data.obs, np.asarray(data.X)
    assert data.shape == (10_863, 1071) and data.uns["units"] == "counts"      # 10,916 less FPPP, GBM and second runs
    assert "28 samples of FPPP and GBM and 25 shallower runs left out" in data.uns["provenance"]["samples"]
    assert obs["cancer_type"].notna().sum() == 9195                             # of the paper's own table
    assert obs["project"].nunique() == 32 and not {"GBM", "FPPP"} & set(obs["project"])
    older = obs["project"].isin(["COAD", "READ", "LAML", "OV"]).to_numpy()
    assert set((~np.isnan(X[older])).sum(1)) == {705} and set((~np.isnan(X[~older])).sum(1)) == {1046}
    complete = ~np.isnan(X).any(0)
    assert complete.sum() == 680
    assert (X[:, complete] == np.round(X[:, complete])).all() and np.nanmin(X) == 0
    tumour = obs["tumour"] == "tumour"
    both = set(obs.loc[tumour, "patient"]) & set(obs.loc[~tumour, "patient"])
    assert len(both) == 644
    assert obs["sample_type"].value_counts()["normal tissue"] == 659
    assert obs["cancer_type"].nunique() == 19
    assert not obs.loc[~tumour, ["subtype", "stage", "survival_days", "died"]].notna().any(axis=None)
    assert obs.loc[tumour, ["subtype", "stage", "survival_days", "died"]].notna().any().all()


@pytest.mark.real_data
def test_rnaseqdb_has_the_published_numbers(real_data):
    data = load("rnaseqdb", real_data)
    assert data.shape == (989, 20242) and data.obs["patient"].nunique() == 923 and data.obs["organ"].nunique() == 15
    assert set(data.obs.loc[data.obs["tumour"] == "tumour", "project"]) == {"READ", "KICH", "UCS", "CHOL"}
    assert ((data.obs["organ"] == "cervix") & (data.obs["source"] == "TCGA")).sum() == 2
    assert (data.obs["patient"].value_counts() > 1).sum() == 59
    depth = pd.Series(np.asarray(data.X).sum(1)).groupby(data.obs["source"].to_numpy()).median()/1e6
    assert 50 < depth["TCGA"] < 70 and 25 < depth["GTEx"] < 40


@pytest.mark.real_data
@pytest.mark.parametrize("name, label, minimum", [("tcga-mirna", "project", 0.9), ("rnaseqdb", "organ", 0.9)])
def test_a_linear_model_reaches_what_is_known_of_the_data(real_data, monkeypatch, name, label, minimum):
    from sklearn.linear_model import LogisticRegression
    monkeypatch.setenv("SSL_EXPR_MIRROR", str(real_data))
    data = prepare(name, label=label, genes=500, labelled_share=0.5)
    X, rows = data.X.numpy(), data.split
    model = LogisticRegression(C=0.01, max_iter=200).fit(X[rows.train], data.y[rows.train])
    assert model.score(X[rows.test], data.y[rows.test]) > minimum
    def patients(*parts): return {data.patients[row] for part in parts for row in part}
    assert not patients(rows.test) & patients(rows.train, rows.pretrain, rows.validation)


@pytest.mark.real_data
@pytest.mark.parametrize("dataset, label", [("tcga-mirna", "cancer_type"), ("rnaseqdb", "organ")])
def test_the_original_files_run_through_the_experiments(real_data, study_copy, dataset, label):
    "Prepare, pretrain, label curve and baselines, as notebooks, small enough for a test."
    import json
    study_copy.environment |= {"SSL_EXPR_MIRROR": str(real_data), "SSL_EXPR_CACHE": os.environ["SSL_EXPR_CACHE"]}
    prepared, encoder = "results/one/prepared.safetensors", "results/one/encoder.safetensors"
    small = dict(width=32, depth=2)
    steps = {"prepare": dict(dataset=dataset, label=label, genes=200),
             "pretrain": small | dict(prepared=prepared, method="scarf", epochs=2),
             "label_curve": small | dict(prepared=prepared, encoder=encoder, fractions=[0.2], repeats=1, epochs=3),
             "baselines": dict(prepared=prepared, baselines=["logistic-genes"], fractions=[0.2], repeats=1)}
    for experiment, values in steps.items():
        answer = study_copy.command("notebook", f"experiments/{experiment}", f"results/one/{experiment}.ipynb",
                                    json.dumps(values | dict(folder="results/one")))
        assert answer.returncode == 0, answer.stderr
    facts = json.loads((study_copy.folder/"results/one/prepared.json").read_text())["facts"]
    assert facts["dataset"] == dataset and facts["n_genes"] == 200 and len(facts["fingerprint"]) == 64
    scores = pd.read_parquet(study_copy.folder/"results/one/baselines.parquet")
    assert (scores["called"] == scores["truth"]).mean() > 0.6
