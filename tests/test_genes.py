"""Names of genes: what is recognised, renamed, merged, refused, and what the shipped mapping is worth on real data."""
import hashlib
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from anndata import AnnData

from ssl_expr.data import load, toy
from ssl_expr.genes import KINDS, align_genes, kind_of, known_genes, rename_genes, shared_genes

MAPPING = Path(str(files("ssl_expr")))/"datasets"/"genes.parquet"
SHA256 = "8da34e44adc8b03d6c827ef9f5473799fb5a1ae588de9a0a5d6c6ff48385ea35"
FAMOUS = {"symbol": ["TP53", "KRAS", "MIR21"], "entrez": ["7157", "3845", "406991"],
          "ensembl": ["ENSG00000141510", "ENSG00000133703", "ENSG00000284190"]}


def data(names, X=None, units="counts", **columns):
    X = np.arange(1., 2*len(names) + 1, dtype=np.float32).reshape(2, -1) if X is None else X
    var = pd.DataFrame(columns, index=pd.Index(list(names)))
    obs = pd.DataFrame({"patient": [f"p{i}" for i in range(len(X))]}, [f"s{i}" for i in range(len(X))])
    return AnnData(X, obs, var, {"units": units})


def table(): return pd.read_parquet(MAPPING)


@pytest.fixture(scope="module")
def coadread(): return load("coadread")


def test_the_shipped_mapping_is_the_pinned_file_and_small():
    assert hashlib.sha256(MAPPING.read_bytes()).hexdigest() == SHA256 and MAPPING.stat().st_size < 1.5e6


@pytest.mark.parametrize("kind, form", [("symbol", r"\S+"), ("entrez", r"[1-9]\d*"), ("ensembl", r"ENSG\d{11}"),
                                        ("mirna", r"hsa-\S+")])
def test_every_identifier_of_the_mapping_has_its_form_and_names_one_gene(kind, form):
    names = table()[kind]
    names = names[names != ""]
    assert names.is_unique and names.str.fullmatch(form).all() and set(names) <= known_genes(kind)


def test_known_genes_hold_former_names_only_where_one_gene_is_meant():
    former = table()["previous_symbol"].str.split().explode().dropna()
    owners = former[~former.isin(table()["symbol"])].value_counts()
    known = known_genes("symbol") - set(table()["symbol"])
    assert known == set(owners[owners == 1].index) and (owners > 1).any()


@pytest.mark.parametrize("names, want", [
    (["TP53", "KRAS", "SEPT2"], "symbol"), ([" TP53", "KRAS "], "symbol"), (["tp53", "kras"], "unknown"),
    (["7157", "3845"], "entrez"), ([7157, 3845], "entrez"), ([7157.0, 3845.0], "entrez"), (["  7157", "385"], "entrez"),
    (range(20531), "unknown"), (map(str, range(1, 99)), "unknown"), (["ENSG00000141510", "ENSG00000999999"], "ensembl"),
    (["ENSG00000141510.18", "ENSG00000182378.15_PAR_Y", "ENSGR0000182378.10"], "ensembl"),
    (["ENSMUSG00000059552"], "unknown"), (["hsa-mir-21", "hsa-let-7a-1", "hsa-miR-21-5p"], "mirna"), ([], "unknown"),
    (["gene-0001", "gene-0002"], "unknown"), (["TP53", "x1", "x2"], "unknown"), ([np.nan, None], "unknown")])
def test_the_kind_of_names_is_recognised(names, want): assert kind_of(names) == want


def test_the_share_that_has_to_be_of_one_kind_is_a_choice():
    names = ["TP53", "KRAS", "x1", "x2", "x3"]
    assert (kind_of(names, share=0.4), kind_of(names, share=0.41)) == ("symbol", "unknown")


@pytest.mark.parametrize("source", FAMOUS)
@pytest.mark.parametrize("to", FAMOUS)
def test_any_kind_becomes_any_other_and_the_values_follow(source, to):
    adata = data(FAMOUS[source])
    renamed, report = rename_genes(adata, to)
    assert list(renamed.var_names) == FAMOUS[to] and np.array_equal(renamed.X, adata.X)
    assert report.n_renamed == (0 if source == to else 3) and not report.unmapped


def test_micrornas_have_two_kinds_of_names_and_old_ones_are_followed():
    renamed, report = rename_genes(data(["hsa-mir-21", "hsa-mir-18", "hsa-mir-0"]), "symbol")
    assert list(renamed.var_names) == ["MIR21", "MIR18A"] and report.unmapped == ("hsa-mir-0",)
    assert list(rename_genes(renamed, "mirna")[0].var_names) == ["hsa-mir-21", "hsa-mir-18a"]


def test_versions_fall_off_and_the_copy_on_y_stays_apart():
    names = ["ENSG00000182378.15", "ENSG00000182378.15_PAR_Y", "ENSGR0000182378.10", "ENSG00000999999.1"]
    plain = ["ENSG00000182378", "ENSG00000182378_PAR_Y", "ENSGR0000182378", "ENSG00000999999"]
    renamed, report = rename_genes(data(names), "ensembl")
    assert list(renamed.var_names) == plain and report.n_renamed == 4 and not report.merged
    by_symbol, report = rename_genes(data(names), "symbol")
    assert list(by_symbol.var_names) == ["PLCXD1"] and report.unmapped == tuple(names[1:])
    assert list(by_symbol.var["ensembl"]) == names[:1]


def test_two_versions_of_one_gene_are_duplicates():
    with pytest.raises(ValueError, match="2 genes become 'ENSG00000141510'"):
        rename_genes(data(["ENSG00000141510.17", "ENSG00000141510.18"]), "ensembl")


def test_a_former_symbol_is_followed_unless_several_genes_had_it():
    renamed, report = rename_genes(data(["SEPT2", "MARCH1", "QARS", "TP53", "no-gene"]), "symbol")
    assert list(renamed.var_names) == ["SEPTIN2", "MARCHF1", "TP53"]
    assert report.ambiguous == ("QARS",) and report.unmapped == ("QARS", "no-gene") and report.n_renamed == 2


def test_a_symbol_borne_today_is_not_taken_for_the_former_one_of_another_gene():
    assert "AK3" in " ".join(table()["previous_symbol"]).split()
    assert list(rename_genes(data(["AK3", "TP53"]), "symbol")[0].var_names) == ["AK3", "TP53"]


@pytest.mark.parametrize("date", ["2-Sep", "Sep-02", "1-mar", "2021-09-02", "2/9/21", "01-Dec-21"])
def test_dates_made_by_a_spreadsheet_are_named_and_never_guessed(date):
    renamed, report = rename_genes(data(["TP53", date]), "symbol")
    assert list(renamed.var_names) == ["TP53"] and report.dates == (date,) and "spreadsheet" in str(report)


def test_no_known_symbol_looks_like_a_date():
    names = sorted(known_genes("symbol"))
    adata = data([*names, "2-Sep"], X=np.zeros((2, len(names) + 1), np.float32))
    assert rename_genes(adata, "symbol", duplicates="first")[1].dates == ("2-Sep",)


def test_genes_without_a_counterpart_are_dropped_or_kept_by_choice():
    adata = data(["TP53", "no-gene", "SEPT2"])
    dropped, report = rename_genes(adata, "entrez")
    assert list(dropped.var_names) == ["7157", "4735"] and np.array_equal(dropped.X, adata.X[:, [0, 2]])
    assert report.unmapped == ("no-gene",) and "dropped: no-gene" in str(report)
    kept, report = rename_genes(adata, "entrez", unmapped="keep")
    assert list(kept.var_names) == ["7157", "no-gene", "4735"] and "kept: no-gene" in str(report)


def merged_slowly(X, names, how):
    order = list(dict.fromkeys(names))
    columns = [[X[:, j] for j, name in enumerate(names) if name == wanted] for wanted in order]
    combine = {"sum": lambda c: np.sum(c, axis=0), "mean": lambda c: np.mean(c, axis=0), "first": lambda c: c[0]}[how]
    return order, np.stack([combine(group) for group in columns], axis=1)


@pytest.mark.parametrize("how", ["sum", "mean", "first"])
def test_merging_equals_a_loop_over_genes(how):
    rng = np.random.default_rng(0)
    ids = np.array(FAMOUS["ensembl"])[rng.integers(3, size=40)]
    versions = [f"{name}.{version}" for version, name in enumerate(ids)]
    X = rng.integers(0, 1000, (7, 40)).astype(np.float32)
    X[rng.random(X.shape) < 0.02] = np.nan
    renamed, report = rename_genes(data(versions, X), "ensembl", duplicates=how)
    order, want = merged_slowly(X.astype(float), ids, how)
    assert list(renamed.var_names) == order and renamed.X.dtype == np.float32
    np.testing.assert_array_equal(renamed.X, want.astype(np.float32))
    assert np.isnan(want).any() and {new: len(old) for new, old in report.merged.items()} == dict(
        pd.Series(ids).value_counts())


def test_a_merge_with_a_missing_part_is_missing():
    adata = data(["GATSL1", "GATSL2", "TP53"], np.array([[1, np.nan, 3], [1, 2, 3]], np.float32))
    for how, want in (("sum", 3), ("mean", 1.5)):
        merged = rename_genes(adata, "symbol", duplicates=how)[0].X
        np.testing.assert_array_equal(merged, [[np.nan, 3], [want, 3]])


@pytest.mark.parametrize("units", ["counts", "TPM", "FPKM", "RPM", "CPM", "RSEM"])
def test_linear_units_are_summed(units):
    renamed, _ = rename_genes(data(["GATSL1", "GATSL2", "TP53"], units=units), "symbol", duplicates="sum")
    assert renamed.X[:, 0].tolist() == [3, 9] and renamed.var_names[0] == "CASTOR2"


@pytest.mark.parametrize("units", ["log2(TPM+1)", "log2(x+1)", "z-score", "unknown"])
def test_other_units_are_not_summed_but_may_be_averaged(units):
    adata = data(["GATSL1", "GATSL2", "TP53"], units=units)
    with pytest.raises(ValueError, match="cannot be added: use duplicates='mean'"):
        rename_genes(adata, "symbol", duplicates="sum")
    assert rename_genes(adata, "symbol", duplicates="mean")[0].X[:, 0].tolist() == [1.5, 4.5]


@pytest.mark.parametrize("action, message", [
    (lambda: rename_genes(data(["GATSL1", "TP53", "GATSL2"]), "symbol"), "2 genes become 'CASTOR2' (GATSL1, GATSL2"),
    (lambda: rename_genes(data(["TP53"]), "probe"), "unknown kind of gene names 'probe'"),
    (lambda: known_genes("probe"), "unknown kind of gene names 'probe'"),
    (lambda: rename_genes(data(["TP53"]), "entrez", duplicates="max"), "unknown duplicates='max'"),
    (lambda: rename_genes(data(["TP53"]), "entrez", unmapped="guess"), "unknown unmapped='guess'"),
    (lambda: rename_genes(data(["TP53"]), "entrez", trust="ensembl"), "no identifier 'ensembl' to trust"),
    (lambda: rename_genes(toy(), "symbol"), "of no known kind"),
    (lambda: rename_genes(data(["ENSG00000999999"]), "symbol"), "none of the 1 genes"),
    (lambda: shared_genes(data(["TP53"]), data(["3845"]), by="entrez"), "no gene in common"),
    (lambda: shared_genes(data(["TP53"]), data(["3845"]), by="probe"), "unknown kind")])
def test_what_cannot_be_renamed_is_refused_in_one_sentence(action, message):
    with pytest.raises(ValueError) as refusal: action()
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_columns_help_where_names_are_unknown_and_decide_only_when_trusted():
    adata = data(["NAA38", "LOC1", "TP53"], entrez=[51691, 3845, 0])
    renamed, report = rename_genes(adata, "symbol")
    assert list(renamed.var_names) == ["NAA38", "KRAS", "TP53"] and report.contradicted == ("NAA38",)
    renamed, report = rename_genes(adata, "symbol", trust="entrez")
    assert list(renamed.var_names) == ["LSM8", "KRAS", "TP53"] and report.contradicted == ("NAA38",)
    assert "Entrez numbers decided" in str(report)


def test_numbers_in_a_column_serve_where_the_mapping_has_none_and_zero_is_no_number():
    adata = data(["TP53", "KRAS", "LOC1", "LOC2"], entrez=["7157", "   3845", "100130426", "0"])
    renamed, report = rename_genes(adata, "entrez")
    assert list(renamed.var_names) == ["7157", "3845", "100130426"] and report.unmapped == ("LOC2",)


def test_a_number_that_is_wanted_and_there_stays_when_it_is_the_one_that_decides():
    adata = data(["ENSG00000999999.1", "ENSG00000133703.2"], entrez=[7157, 3845])     # the first is not in the mapping
    assert list(rename_genes(adata, "ensembl")[0].var_names) == ["ENSG00000999999", "ENSG00000133703"]
    sisters = data(["ACTG1", "TP53"], entrez=[60, 7157])     # 60 is ACTB: the file is wrong
    assert list(rename_genes(sisters, "entrez")[0].var_names) == ["71", "7157"]
    assert list(rename_genes(sisters, "entrez", trust="entrez")[0].var_names) == ["60", "7157"]


def test_columns_alone_are_enough():
    renamed, report = rename_genes(data(["a", "b"], ensembl=["ENSG00000141510.1", "ENSG00000133703"]), "symbol")
    assert list(renamed.var_names) == ["TP53", "KRAS"] and report.kind == "ensembl"


def test_samples_and_annotations_stay_and_the_original_is_untouched():
    adata = data(["SEPT2", "TP53"], chromosome=["2", "17"])
    adata.uns |= {"labels": ["patient"], "provenance": {"genes": "by hand", "source": "here"}}
    adata.obsm["place"] = np.eye(2)
    renamed, report = rename_genes(adata, "ensembl")
    renamed.X[:], renamed.obs["patient"] = 0, "nobody"
    assert list(adata.var_names) == ["SEPT2", "TP53"] and (adata.X > 0).all() and adata.obs["patient"].nunique() == 2
    assert adata.uns["provenance"] == {"genes": "by hand", "source": "here"} and list(adata.var) == ["chromosome"]
    assert renamed.uns["provenance"] == {"genes": f"by hand; then {report}", "source": "here"}
    assert renamed.uns["labels"] == ["patient"] and np.array_equal(renamed.obsm["place"], np.eye(2))
    assert list(renamed.var["symbol"]) == ["SEPT2", "TP53"] and list(renamed.var["chromosome"]) == ["2", "17"]


def test_renaming_back_and_forth_comes_home(coadread):
    there, _ = rename_genes(coadread[:5], "ensembl", duplicates="first")
    back, report = rename_genes(there, "symbol")
    again, _ = rename_genes(back, "ensembl")
    assert not report.unmapped and list(again.var_names) == list(there.var_names) and np.array_equal(
        again.X, there.X, equal_nan=True)


def test_a_view_and_a_sparse_matrix_give_a_plain_array():
    adata = data(["SEPT2", "TP53", "KRAS"])
    sparse = adata.copy()
    sparse.X = scipy.sparse.csr_matrix(adata.X)
    for source in (adata[:, :2], sparse[:, :2].copy()):
        renamed, _ = rename_genes(source, "symbol")
        assert type(renamed.X) is np.ndarray and np.array_equal(renamed.X, adata.X[:, :2])


def on_disk(folder, names, values, dtype=np.float16):
    stored = np.memmap(folder/"x.bin", dtype, "w+", shape=values.shape)
    stored[:] = values
    stored.flush()
    return data(names, np.memmap(folder/"x.bin", dtype, "r", shape=values.shape))


def test_a_matrix_on_disk_stays_there_when_only_names_change(tmp_path):
    adata = on_disk(tmp_path, ["SEPT2", "TP53"], np.ones((2, 2)))
    renamed, _ = rename_genes(adata, "symbol")
    assert np.shares_memory(renamed.X, adata.X) and isinstance(renamed.X, np.memmap)


def test_columns_of_a_matrix_on_disk_keep_their_type_and_sums_do_not_overflow(tmp_path):
    adata = on_disk(tmp_path, ["SEPT2", "no-gene", "TP53"], np.arange(6.).reshape(2, 3))
    chosen = rename_genes(adata, "symbol")[0].X
    assert type(chosen) is np.ndarray and chosen.dtype == np.float16 and np.array_equal(chosen, [[0, 2], [3, 5]])
    adata = on_disk(tmp_path, ["GATSL1", "GATSL2"], np.full((2, 2), 60000.))
    summed = rename_genes(adata, "symbol", duplicates="sum")[0].X
    assert summed.dtype == np.float32 and summed.tolist() == [[120000], [120000]]


def test_the_report_counts_every_gene_once(coadread):
    renamed, report = rename_genes(coadread, "symbol", duplicates="mean")
    surplus = sum(len(old) - 1 for old in report.merged.values())
    assert report.n_genes == coadread.n_vars == renamed.n_vars + surplus + len(report.unmapped)
    same = (coadread.var_names.isin(table()["symbol"])).sum()
    assert report.n_genes - len(report.unmapped) - same == report.n_renamed and repr(report) == str(report)


def test_aligned_genes_stand_in_the_wanted_order_with_gaps_where_absent():
    X = np.arange(8, dtype=np.float32).reshape(2, 4)
    aligned, coverage = align_genes(X, list("abcd"), list("dxa"))
    np.testing.assert_array_equal(aligned, np.array([[3, np.nan, 0], [7, np.nan, 4]], dtype=np.float32))
    assert aligned.dtype == np.float32
    assert (coverage.n_wanted, coverage.n_found, coverage.missing) == (3, 2, ("x",))
    assert coverage.share == pytest.approx(2/3) and str(coverage) == "2 of 3 genes found (66.7%)"


@pytest.mark.parametrize("genes, wanted, message", [
    (["A", "B"], ["C"], "no gene in common"), (["A", "A"], ["A"], "the data name gene 'A' twice"),
    (["A", "B"], ["B", "B"], "the wanted genes name gene 'B' twice"), (["A"], ["A"], "do not fit"),
    (["ENSG00000141510.1", "ENSG00000133703.2"], ["TP53", "KRAS"],
     r"Ensembl ids and symbols, so rename the data with ssl_expr.genes.rename_genes\(data, 'symbol'\)"),
    (["ENSG00000141510.1", "ENSG00000133703.2"], FAMOUS["ensembl"],
     r"Ensembl ids of two versions, so rename the data .*\(data, 'ensembl'\)"),
    (["TP53", "SEPT2"], ["KRAS", "SEPTIN2"], "symbols of two versions, so rename"),
    (["TP53", "x"], ["KRAS", "y"], "for different genes"),
    (["a", "b"], ["TP53", "KRAS"], "use the same kind of gene names")])
def test_genes_that_cannot_be_aligned_are_refused_with_the_remedy(genes, wanted, message):
    with pytest.raises(ValueError, match=message): align_genes(np.ones((3, 2)), genes, wanted)


def test_shared_genes_come_in_the_order_of_the_first_with_the_values_of_each():
    a = data(["KRAS", "SEPT2", "BRAF"])
    b = data(["ENSG00000141510.1", "ENSG00000168385.9", "ENSG00000133703.2", "ENSG00000999999.1"])
    for by, names in (("symbol", ["KRAS", "SEPTIN2"]), ("entrez", ["3845", "4735"])):
        first, second, coverage = shared_genes(a, b, by=by)
        assert list(first.var_names) == list(second.var_names) == names
        assert np.array_equal(first.X, a.X[:, [0, 1]]) and np.array_equal(second.X, b.X[:, [2, 1]])
        assert (coverage.n_wanted, coverage.n_found, len(coverage.missing)) == (3, 2, 1)
        assert str(coverage) in first.uns["provenance"]["genes"]


def test_sharing_merges_only_genes_that_are_shared():
    a, b = data(["GATSL1", "GATSL2", "TP53"]), data(["TP53", "KRAS"])
    assert list(shared_genes(a, b)[0].var_names) == ["TP53"]
    with pytest.raises(ValueError, match="2 genes become 'CASTOR2'"): shared_genes(a, data(["TP53", "CASTOR2"]))
    both = shared_genes(data(["TP53", "CASTOR2"]), a, duplicates="sum")
    assert both[1].X.tolist() == [[3, 3], [6, 9]]


def agreement(symbols, numbers):
    "How many pairs lead somewhere by both ways, and how many of these to different genes."
    mapping = table()
    former = mapping.assign(name=mapping["previous_symbol"].str.split()).explode("name").dropna(subset="name")
    former = former[~former["name"].duplicated(keep=False)]
    by_symbol = dict(zip(former["name"], former["symbol"], strict=True)) | {name: name for name in mapping["symbol"]}
    by_number = dict(zip(mapping["entrez"], mapping["symbol"], strict=True))
    known = [(by_symbol[symbol], by_number[number]) for symbol, number in zip(symbols, numbers, strict=True)
             if symbol in by_symbol and number in by_number]
    return len(known), sum(one != other for one, other in known)


def test_symbols_and_numbers_of_coadread_agree(coadread):
    both, differ = agreement(coadread.var_names, coadread.var["entrez"].astype(str))
    assert both > 19500 and differ == 10     # 0.05 %: symbols given to another gene since
    assert len(rename_genes(coadread[:1], "symbol", "first")[1].contradicted) == differ


@pytest.mark.real_data
def test_symbols_and_numbers_of_rnaseqdb_agree_but_for_families_of_like_genes(coadread, real_data):
    file = sorted(real_data.rglob("*-rsem-count-*.txt.gz"))[0]
    pairs = pd.read_csv(file, sep="\t", usecols=["Hugo_Symbol", "Entrez_Gene_Id"], dtype=str)
    symbols, numbers = pairs["Hugo_Symbol"].str.strip(), pairs["Entrez_Gene_Id"].str.strip()
    both, differ = agreement(symbols, numbers)
    assert both > 18700 and differ == 300 and 1 - differ/both > 0.984
    assert dict(zip(symbols, numbers, strict=True))["ACTG1"] == "60"     # which is ACTB
    rnaseqdb = data(symbols, np.zeros((2, len(symbols)), np.float32), entrez=numbers.to_numpy())
    _, theirs, coverage = shared_genes(coadread, rnaseqdb, by="entrez", duplicates="mean")
    assert theirs.n_vars > 18500 and coverage.share > 0.9


def test_every_kind_can_be_said(): assert list(KINDS) == ["ensembl", "entrez", "symbol", "mirna"]


def test_mature_micrornas_are_told_from_precursors():
    mature, precursors = ["hsa-miR-21-5p", "hsa-let-7a-3p"], ["hsa-mir-21", "hsa-let-7a-1"]
    with pytest.raises(ValueError, match="mature microRNAs and wanted are their precursors"):
        align_genes(np.ones((1, 2)), mature, precursors)


def test_only_an_anndata_is_renamed():
    with pytest.raises(ValueError, match="needs an AnnData, not a DataFrame"):
        rename_genes(pd.DataFrame({"TP53": [1.0]}), "ensembl")
