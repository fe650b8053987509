"""Tables: every format and either direction gives the same object; every bad file is answered with one sentence."""
import gzip
import pickle
import struct

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.io import mmwrite
from scipy.sparse import csr_matrix

from ssl_expr.data import load
from ssl_expr.orientation import detect_orientation
from ssl_expr.tables import read_table
from ssl_expr.textfiles import ending, is_table

GENES, SAMPLES = ["TP53", "MYC", "KRAS"], ["TCGA-AA-0001", "TCGA-AA-0002"]
VALUES = np.array([[1.5, 0, 40], [2.5, 7, 3.25]], dtype=np.float32)


@pytest.fixture
def table(): return pd.DataFrame(VALUES, index=pd.Index(SAMPLES, name="sample"), columns=GENES)


def write_gct(path, frame, version="1.2"):
    "GCT of a samples x genes frame, 1.3 with one annotation of genes and two of samples."
    genes, samples = frame.shape[1], frame.shape[0]
    sizes, above = f"{genes}\t{samples}", ""
    if version == "1.3":
        sizes += "\t1\t2"
        above = "".join(f"{name}\tna\t" + "\t".join(values) + "\n"
                        for name, values in (("tissue", ["colon", "lung"]), ("patient", ["007", "008"])))
    rows = "".join(f"{g}\tgene {g}\t" + "\t".join(map(str, frame[g])) + "\n" for g in frame)
    head = "Name\tDescription\t" + "\t".join(frame.index)
    path.write_text(f"#{version}\n{sizes}\n{head}\n{above}{rows}")


def write_folder(folder, matrix, genes, barcodes):
    folder.mkdir(exist_ok=True)
    mmwrite(folder/"matrix.mtx", csr_matrix(matrix))
    (folder/"features.tsv").write_text("".join(f"ENSG0000000000{n}\t{g}\tGene Expression\n" for n,
        g in enumerate(genes)))
    (folder/"barcodes.tsv").write_text("".join(f"{b}\n" for b in barcodes))
    return folder


# the same matrix from every format, either way round

@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "tsv", "tsv.gz", "txt", "parquet", "gct", "gct.gz", "h5ad", "CSV"])
@pytest.mark.parametrize("rows", ["samples", "genes"])
def test_the_same_matrix_comes_back_from_every_format_and_direction(table, tmp_path, suffix, rows):
    path, frame = tmp_path/f"mine.{suffix}", table if rows == "samples" else table.T
    if suffix == "parquet": frame.to_parquet(path)
    elif suffix == "h5ad": anndata.AnnData(csr_matrix(frame), frame[[]], frame.T[[]]).write_h5ad(path)
    elif "gct" in suffix:
        write_gct(tmp_path/"plain.gct", table)
        text = (tmp_path/"plain.gct").read_bytes()
        path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    else: frame.to_csv(path, sep="," if suffix.lower().startswith("csv") else "\t")
    data = read_table(path, orientation="genes" if suffix == "h5ad" and rows == "genes" else "auto")
    assert type(data.X) is np.ndarray and data.X.dtype == np.float32
    np.testing.assert_array_equal(data.X, VALUES)
    assert list(data.obs_names) == SAMPLES and list(data.var_names) == GENES
    assert data.uns["provenance"]["orientation"]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rows", ["genes", "samples"])
def test_a_matrix_folder_is_read_either_way_round(table, tmp_path, packed, rows):
    folder = write_folder(tmp_path/"run", VALUES.T if rows == "genes" else VALUES, GENES, SAMPLES)
    if packed:
        for path in list(folder.iterdir()):
            (folder/f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    data = load(folder)
    np.testing.assert_array_equal(data.X, VALUES)
    assert list(data.obs_names) == SAMPLES and list(data.var["symbol"]) == GENES
    assert data.var_names[1] == "ENSG00000000001" and rows in data.uns["provenance"]["orientation"]


def test_gct_1_3_brings_its_annotations_along(table, tmp_path):
    write_gct(tmp_path/"mine.gct", table, "1.3")
    data = load(tmp_path/"mine.gct")
    np.testing.assert_array_equal(data.X, VALUES)
    assert list(data.obs["tissue"]) == ["colon", "lung"] and list(data.obs["patient"]) == ["007", "008"]
    assert data.uns["labels"] == ["tissue"] and list(data.var["description"]) == [f"gene {g}" for g in GENES]


def test_columns_that_annotate_genes_go_to_var(table, tmp_path):
    frame = table.T.rename_axis("Hugo_Symbol")
    frame.insert(0, "Entrez_Gene_Id", [7157, 4609, 3845])
    frame.to_csv(tmp_path/"mine.txt", sep="\t")
    data = read_table(tmp_path/"mine.txt")
    np.testing.assert_array_equal(data.X, VALUES)
    assert list(data.var["entrez"]) == ["7157", "4609", "3845"]
    assert "annotates genes" in data.uns["provenance"]["orientation"]


def test_where_symbols_repeat_a_complete_column_of_ids_names_the_genes_and_that_is_said(tmp_path):
    (tmp_path/"mine.tsv").write_text("Hugo_Symbol\tEntrez_Gene_Id\ts1\ts2\nTP53\t7157\t1\t2\nTP53\t1\t3\t4\n\t3\t5\t6\n")
    data = read_table(tmp_path/"mine.tsv")
    assert list(data.var_names) == ["7157", "1", "3"] and list(data.var["symbol"]) == ["TP53", "TP53", ""]
    assert "'Entrez_Gene_Id'" in data.uns["provenance"]["reading"]


# the direction

@pytest.mark.parametrize("rows, columns, want, because", [
    (["TCGA-AA-0001", "TCGA-AA-0002"], ["x", "y"], "samples", "TCGA"),
    (["GTEX.1117F.0226", "b"], ["x", "y"], "samples", "GTEX"),
    (["x", "y"], ["GSM1", "GSM2"], "genes", "GSM1"),
    (["ENSG00000141510.18", "ENSG00000136997.22"], ["x", "y"], "genes", "ENSG"),
    (["hsa-let-7a-1", "hsa-mir-21"], ["x", "y"], "genes", "hsa-let"),
    (["7157", "1956", "4609"], ["a", "b"], "genes", "7157"),
    (["x", "y"], ["A", "TP53"], "samples", "TP53"),
    ([f"r{n}" for n in range(5000)], ["a", "b"], "genes", "5000 rows"),
    (["a", "b"], [f"r{n}" for n in range(5000)], "samples", "5000 columns"),
    (["TP53", "MYC"], ["patient", "x"], "samples", "patient"),
    (["1", "2", "3"], ["a", "b", "c"], "samples", ""),
    (["TP53"], ["MYC"], "samples", ""),
])
def test_names_and_shape_tell_the_direction_and_the_reason_is_given(rows, columns, want, because):
    direction, why = detect_orientation(rows, columns)
    assert direction == want and because in why and bool(why) == bool(because)


def test_an_undecidable_table_is_assumed_to_have_samples_in_rows_and_says_so(tmp_path):
    (tmp_path/"mine.csv").write_text("id,a,b\nx,1,2\ny,3,4\n")
    assert load(tmp_path/"mine.csv").uns["provenance"]["orientation"].startswith("assumed: rows are samples")
    turned = load(tmp_path/"mine.csv", orientation="genes")
    assert list(turned.obs_names) == ["a",
        "b"] and turned.uns["provenance"]["orientation"] == "rows are genes (as stated)"


def test_a_stated_direction_overrules_the_names(table, tmp_path):
    table.to_csv(tmp_path/"mine.csv")
    assert list(read_table(tmp_path/"mine.csv", orientation="genes").obs_names) == GENES
    with pytest.raises(ValueError, match="orientation must be one of"): read_table(tmp_path/"mine.csv",
        orientation="rows")


# labels in a second file

def test_labels_of_a_second_file_find_their_samples_in_any_order_and_gaps_are_counted(table, tmp_path):
    table.T.to_csv(tmp_path/"mine.csv")
    (tmp_path/"labels.tsv").write_text("tissue\tsample\tage\tstage\nlung\tTCGA-AA-0002\t61\t02\nskin\tother\t5\t02\n")
    data = load("mine.csv", tmp_path, annotations="labels.tsv", labels=["tissue", "stage"])
    assert data.obs["tissue"].tolist() == [np.nan, "lung"] and data.obs["stage"].tolist() == [np.nan, "02"]
    assert data.obs["age"].tolist()[1] == 61 and data.uns["labels"] == ["tissue", "stage"]
    said = data.uns["provenance"]["annotations"]
    assert "1 of 2 samples found" in said and "'TCGA-AA-0001'" in said and "left out since the data lack them 1" in said


def test_ids_of_a_second_file_decide_the_direction(tmp_path):
    (tmp_path/"mine.csv").write_text("id,a,b\nx,1,2\ny,3,4\n")
    (tmp_path/"labels.csv").write_text("id,tissue\na,lung\nb,lung\n")
    data = read_table(tmp_path/"mine.csv", annotations=tmp_path/"labels.csv")
    assert list(data.obs_names) == ["a", "b"] and "annotations" in data.uns["provenance"]["orientation"]


def test_only_text_that_repeats_is_a_label_unless_the_user_names_it(table, tmp_path):
    table.to_csv(tmp_path/"mine.csv")
    (tmp_path/"labels.csv").write_text("id,tissue,name,age,label:grade\nTCGA-AA-0001,lung,a,61,1\nTCGA-AA-0002,lung,b,61,2\n")
    plain = load(tmp_path/"mine.csv", annotations=tmp_path/"labels.csv")
    assert plain.uns["labels"] == ["tissue", "grade"]
    assert load(tmp_path/"mine.csv", annotations=tmp_path/"labels.csv", labels=["age"]).uns["labels"] == ["age"]


def test_a_named_data_set_takes_a_second_file_too(tmp_path):
    (tmp_path/"labels.csv").write_text("id,grade\nsample-0000,high\nsample-0001,high\n")
    data = load("toy", annotations=tmp_path/"labels.csv", labels=["grade"])
    assert data.obs["grade"].notna().sum() == 2 and "298" in data.uns["provenance"]["annotations"]


# what is put right is said

@pytest.mark.parametrize("content, note", [
    (b"\xef\xbb\xbfid,A,B\ns1,1,2\n", "byte-order mark"), (b"id,A,B\r\ns1,1,2\ns2,1,2\r\n", "line ends"),
    (b"id,A,B\n\ns1,1,2\n\n", "2 blank lines"), (b"id, A,B\ns1 ,1,2\n", "blanks around 1 names of rows"),
    (b"id,A,B\r\ns1,1,2\r\n", None), (b'"id","A","B"\n"s1",1,2\n', None)])
def test_what_is_put_right_is_said(tmp_path, content, note):
    (tmp_path/"mine.csv").write_bytes(content)
    data = read_table(tmp_path/"mine.csv")
    assert list(data.var_names) == ["A", "B"] and data.obs_names[0] == "s1" and data.X[0].tolist() == [1, 2]
    assert (note or "") in data.uns["provenance"].get("reading",
        "") and (note is None) == ("reading" not in data.uns["provenance"])


def test_names_are_text_whatever_they_look_like(tmp_path):
    (tmp_path/"mine.csv").write_text("id,NA,nan,7\n007,1,2,3\nNA,4,5,6\n../../etc,7,8,9\n")
    data = read_table(tmp_path/"mine.csv")
    assert list(data.obs_names) == ["007", "NA", "../../etc"] and list(data.var_names) == ["NA", "nan", "7"]


def test_the_ending_is_found_behind_gz_and_capitals():
    assert [ending(name) for name in ("a.csv.gz", "b.TSV", "c.gct.GZ", "folder/d")] == [".csv", ".tsv", ".gct", ""]
    assert is_table("a.xlsx") and not is_table("coadread")


# bad files: (name, content) -> what the sentence must say

BAD_TEXT = {
    "ragged row, too short": ("mine.csv", "id,A,B\ns1,1,2\ns2,1\n", "2 fields in line 3 but 3 in its header: complete"),
    "ragged row, too long": ("mine.csv", "id,A\ns1,1\ns2,1,2\n", "3 fields in line 3 but 2 in its header"),
    "header too short": ("mine.csv", "A,B\ns1,1,2\n", "2 names in its header but 3 columns in line 2: name every"),
    "tabs in a .csv": ("mine.csv", "id\tA\tB\ns1\t1\t2\n",
        "separated by tabs, but its ending stands for commas: rename it to .tsv"),
    "commas in a .tsv": ("mine.tsv", "id,A,B\ns1,1,2\n",
        "separated by commas, but its ending stands for tabs: rename it to .csv"),
    "commas in a .txt": ("mine.txt", "id,A,B\ns1,1,2\n", "rename it to .csv"),
    "semicolons and decimal commas": ("mine.csv", "id;A;B\ns1;1,5;2\n",
        "separated by semicolons.*points in decimal numbers"),
    "spaces": ("mine.tsv", "id A B\ns1 1 2\n", "separated by spaces"),
    "text in numbers": ("mine.csv", "id,A,B\ns1,1,2\ns2,1,high\n",
        r"text \('high'\) in sample 's2', gene 'B': write a number"),
    "text, genes in rows": ("mine.csv", "gene,s1,s2\nA,1,2\nB,1,high\n", r"text \('high'\) in sample 's2', gene 'B'"),
    "decimal comma": ("mine.tsv", "id\tA\tB\ns1\t1,5\t2\n",
        r"text \('1,5'\) in sample 's1', gene 'A': write decimal numbers with a point"),
    "thousands": ("mine.csv", 'id,A,B\ns1,"1,234,567.5",2\n', r"'1,234,567.5'.*without thousands separators"),
    "ambiguous thousand": ("mine.tsv", "id\tA\tB\ns1\t1,234\t2\n", "without thousands separators"),
    "yes and no": ("mine.csv", "id,A,B\ns1,True,2\ns2,False,3\n", r"text \('True'\) in sample 's1', gene 'A'"),
    "an error of a spreadsheet": ("mine.csv", "id,A,B\ns1,#DIV/0!,2\n", r"text \('#DIV/0!'\)"),
    "huge number": ("mine.csv", "id,A,B\ns1,1,1e300\n", r"1e\+300 in sample 's1', gene 'B', which is too large"),
    "huge whole number": ("mine.csv", f"id,A,B\ns1,1,{'9'*60}\n", "in sample 's1', gene 'B': this is too large"),
    "all zero": ("mine.csv", "id,A,B\ns1,0,0\ns2,0,0\n", "nothing but zeros: give the file"),
    "infinite": ("mine.csv", "id,A,B\ns1,1,2\ns2,inf,4\n",
        r"infinite value in sample 's2', gene 'A' \(1 such entries\): remove"),
    "negative infinite": ("mine.csv", "id,A,B\ns1,1,-inf\n", "infinite value in sample 's1', gene 'B'"),
    "duplicate genes": ("mine.csv", "id,A,A\ns1,1,2\n", r"gene 'A' 2 times.*keep one of each"),
    "duplicate genes in rows": ("mine.csv", "gene,x,y\nA,1,2\nA,3,4\n", "gene 'A' 2 times"),
    "duplicate genes but for blanks": ("mine.csv", "id,A, A\ns1,1,2\n", "gene 'A' 2 times"),
    "duplicate samples": ("mine.csv", "id,A,B\ns1,1,2\ns1,3,4\n", "sample 's1' 2 times"),
    "a label and a gene of one name": ("mine.csv", "id,label:A,A\ns1,x,2\n", "gene 'A' 2 times"),
    "unnamed gene": ("mine.csv", "id,A,\ns1,1,2\n", "a gene without a name: name every gene"),
    "unnamed sample": ("mine.csv", "id,A,B\n,1,2\n", "a sample without a name"),
    "gene without values": ("mine.csv", "id,A,B\ns1,1,\ns2,2,\n", "no value of gene 'B' in any sample"),
    "patient missing": ("mine.csv", "id,patient,A\ns1,p,1\ns2,,2\n", "sample without a patient: fill"),
    "empty": ("mine.csv", "", r"cannot be read as csv \(it is empty\): write it again"),
    "blank lines only": ("mine.csv", "\n\n", r"cannot be read as csv \(no line\): write it again"),
    "header only": ("mine.csv", "id,A\n", r"cannot be read as csv \(a header and no row\): write it again"),
    "one column": ("mine.csv", "id\ns1\n",
        "one column only: it needs names of samples and of genes, at least one of each"),
    "labels only": ("mine.csv", "id,patient,label:x\ns1,p,a\n", "is empty .1 samples x 0 genes."),
    "names left out": ("mine.csv", "TP53,MYC\n1.5,2\n2.5,3\n",
        "numbers such as 1.5 in its first column where names belong: write"),
    "Excel date": ("mine.csv", "id,TP53,1-Sep\ns1,1,2\n", "gene '1-Sep', a name that Excel has changed"),
    "Excel date in rows": ("mine.csv", "gene,s1\nTP53,1\n2-Mar,2\n", "gene '2-Mar', a name that Excel has changed"),
    "ISO date": ("mine.csv", "id,TP53,2021-09-01\ns1,1,2\n", "gene '2021-09-01', a name that Excel"),
    "old Mac line ends": ("mine.csv", "id,A\rs1,1\rs2,2\r", "carriage return inside line 1: save it"),
    "NUL bytes": ("mine.csv", "id,A\ns1,1\0\n", r"cannot be read as csv \(line 2 holds a NUL byte"),
    "open quote": ("mine.csv", 'id,A\ns1,1\n"s2,2\n', "quotation mark without its partner in line 3"),
    "annotation among genes": ("mine.csv", "gene,s1,s2\npatient,p,q\nTP53,1,2\n",
        "'patient' among its genes: put annotations of samples into a second file"),
    "gct of another version": ("mine.gct", "#1.1\n1\t1\nName\tDescription\ts1\nA\ta\t1\n",
        "'#1.1' in line 1 where a GCT file has #1.2"),
    "gct without its first lines": ("mine.gct", "Name\tDescription\ts1\nA\ta\t1\n", "in line 1 where a GCT file"),
    "gct with other sizes": ("mine.gct", "#1.2\n3\t1\nName\tDescription\ts1\nA\ta\t1\n",
        "announces 3 genes x 1 samples in line 2 but holds 1 x 1"),
    "gct without sizes": ("mine.gct", "#1.2\nmany\t1\nName\tDescription\ts1\nA\ta\t1\n", "'many 1' in line 2 where"),
    "gct without Description": ("mine.gct", "#1.2\n1\t2\nName\ts1\ts2\ts3\nA\t1\t2\t3\n",
        "'s1' as second column where a GCT file has Description"),
    "gct 1.3 with two sizes": ("mine.gct", "#1.3\n1\t1\nid\tDescription\ts1\nA\ta\t1\n",
        "where a GCT file has 4 numbers"),
    "gct, empty": ("mine.gct", "#1.2\n1\t1\n", "no line"),
}


def sentence(function, *arguments, **settings):
    with pytest.raises((ValueError, OSError)) as refusal: function(*arguments, **settings)
    answer = str(refusal.value)
    assert "\n" not in answer and ":" in answer and len(answer) < 600
    return answer


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name, text, message", BAD_TEXT.values(), ids=BAD_TEXT)
def test_a_bad_table_is_answered_with_one_sentence_that_names_file_place_and_remedy(tmp_path, name, text, message):
    path = tmp_path/name
    path.write_bytes(text.encode())
    answer = sentence(load, path)
    assert answer.startswith(str(path)) and pd.Series(answer).str.contains(message).all(), answer


def damage(kind, folder):
    "Make one bad file that is not plain text, and return its path."
    path = folder/"mine.csv"
    good = b"id,TP53,MYC\ns1,1,2\ns2,3,4\n"
    if kind == "binary": path.write_bytes(b"\x89\xff\x00\x01 not a table \xfe"*50)
    elif kind == "UTF-16": path.write_bytes(good.decode().encode("utf-16"))
    elif kind == "Latin-1": path.write_bytes(good.replace(b"s2", b"s\xe9"))
    elif kind == "gzip without .gz": path.write_bytes(gzip.compress(good))
    elif kind == "workbook as .csv": path.write_bytes(b"PK\x03\x04 rest of an archive")
    elif kind == "pickle as .csv": path.write_bytes(pickle.dumps([1, 2]))
    elif kind == "parquet as .csv": pd.DataFrame({"A": [1]}).to_parquet(path)
    elif kind in ("gzip cut short", "gzip damaged", "no gzip"):
        path = folder/"mine.csv.gz"
        packed = gzip.compress(good*1000)
        path.write_bytes({"gzip cut short": packed[:-20], "no gzip": good}.get(kind,
            packed[:-8] + b"abcd" + packed[-4:]))
    elif kind in ("xlsx", "xls"): (path := folder/f"mine.{kind}").write_bytes(b"PK\x03\x04")
    elif kind in ("rda", "pkl", "zip", "mtx"): (path := folder/f"mine.{kind}").write_bytes(b"anything")
    elif kind == "pickle as .h5ad": (path := folder/"mine.h5ad").write_bytes(pickle.dumps([1, 2]))
    elif kind == "pickle as .parquet": (path := folder/"mine.parquet").write_bytes(pickle.dumps([1, 2]))
    elif kind == "folder called .csv": path.mkdir()
    elif kind == "line break in the name": (path := folder/"mi\nne.csv").write_bytes(good)
    elif kind == "parquet cut short":
        pd.DataFrame({"id": ["a"], "TP53": [1]}).to_parquet(path := folder/"mine.parquet")
        path.write_bytes(path.read_bytes()[:-30])
    elif kind == "numbers as text in parquet":
        pd.DataFrame({"id": ["a"], "TP53": ["1.5"]}).to_parquet(path := folder/"mine.parquet")
    elif kind == "parquet of nested values":
        pd.DataFrame({"id": ["a"], "TP53": [[1, 2]]}).to_parquet(path := folder/"mine.parquet")
    return path


DAMAGED = {
    "binary": r"cannot be read as csv \(line 1 .*write it again", "UTF-16": "UTF-16 text: save it as UTF-8",
    "Latin-1": r"line 3 is not UTF-8 text\): save it as UTF-8", "gzip without .gz": "a gzip file: add .gz to its name",
    "workbook as .csv": "Excel workbook.*save it as .csv", "pickle as .csv": "Python pickle, which may run any program",
    "parquet as .csv": "parquet file: rename it",
    "gzip cut short": r"cannot be read as csv \(the compressed data end too early",
    "gzip damaged": "cannot be read as csv", "no gzip": "cannot be read as csv.*compressed",
    "xlsx": "SEPT1 into dates: save it as .csv", "xls": "Excel workbook", "rda": "write.csv", "pkl": "Python pickle",
    "zip": "unpack it first", "mtx": "give the folder", "pickle as .h5ad": "Python pickle",
    "pickle as .parquet": "Python pickle",
    "folder called .csv": "no file .*matrix.mtx", "line break in the name": "line break in it: rename it",
    "parquet cut short": "cannot be read as parquet.*write it again",
    "numbers as text in parquet": "text \\('1.5'\\) in sample 'a', gene 'TP53': store numbers as numbers",
    "parquet of nested values": "mine.parquet",
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind, message", DAMAGED.items(), ids=DAMAGED)
def test_a_damaged_or_foreign_file_is_answered_with_one_sentence(tmp_path, kind, message):
    path = damage(kind, tmp_path)
    answer = sentence(load, path)
    assert pd.Series(answer).str.contains(message).all(), answer
    assert path.name.replace("\n", "\\n") in answer


def make_h5ad(kind, folder):
    "Make one bad h5ad and return its path."
    path, frame = folder/"mine.h5ad", pd.DataFrame([[1, 2.0], [3, 4]], index=["s1", "s2"], columns=["TP53", "MYC"],
        dtype=np.float32)
    data = anndata.AnnData(frame)
    if kind == "transposed": data = anndata.AnnData(frame.T.rename(columns={"s1": "TCGA-AA-1", "s2": "TCGA-AA-2"}))
    if kind == "negative counts": data.X[1, 0], data.uns["units"] = -1, "counts"
    if kind == "infinite": data.X[1, 0] = np.inf
    if kind == "too large": data.X = data.X.astype(np.float64)*1e200
    if kind == "dates": data.var_names = ["1-Sep", "MYC"]
    if kind == "repeated genes": data.var_names = ["MYC", "MYC"]
    data.write_h5ad(path)
    if kind == "cut short": path.write_bytes(path.read_bytes()[:5000])
    if kind in ("without X", "without var", "without obs", "X in another file", "X of text", "X of another shape",
        "not AnnData"):
        with h5py.File(path, "a") as file:
            if kind == "not AnnData":
                for name in list(file): del file[name]
                file["table"] = [1, 2]
            elif kind.startswith("without"): del file[kind.split()[1]]
            else:
                del file["X"]
                if kind == "X in another file": file["X"] = h5py.ExternalLink("/etc/hostname", "X")
                if kind == "X of text": file["X"] = np.array([[b"a", b"b"], [b"c", b"d"]])
                if kind == "X of another shape": file["X"] = np.ones((5, 2))
    return path


BAD_H5AD = {
    "transposed": "genes where AnnData keeps samples.*orientation='genes'",
    "cut short": "cannot be read as h5ad.*write it again",
    "negative counts": "negative count in sample 's2', gene 'TP53'",
    "infinite": "infinite value in sample 's2', gene 'TP53'",
    "too large": "sample 's1', gene 'TP53', which is too large", "dates": "'1-Sep', a name that Excel",
    "repeated genes": "gene 'MYC' 2 times", "without X": "no matrix X: write the expression into X",
    "without var": "has no var: write",
    "without obs": "has no obs: write", "X in another file": "takes 'X' from another file: save it whole",
    "X of text": "text .*in sample 's1', gene 'TP53'",
    "X of another shape": "cannot be read as h5ad", "not AnnData": "has no obs",
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind, message", BAD_H5AD.items(), ids=BAD_H5AD)
def test_a_bad_h5ad_is_answered_with_one_sentence(tmp_path, kind, message):
    path = make_h5ad(kind, tmp_path)
    answer = sentence(load, path)
    assert answer.startswith(str(path)) and pd.Series(answer).str.contains(message).all(), answer


def break_folder(kind, folder):
    "Break one file of a matrix folder."
    matrix, barcodes = folder/"matrix.mtx", folder/"barcodes.tsv"
    head = "%%MatrixMarket matrix coordinate real general\n3 2 2\n"
    if kind == "no matrix": matrix.unlink()
    if kind == "no barcodes": barcodes.unlink()
    if kind == "one barcode too many": barcodes.write_text(barcodes.read_text() + "more\n")
    if kind == "repeated barcodes": barcodes.write_text("a\na\n")
    if kind == "row out of range": matrix.write_text(head + "1 1 1.5\n9 1 2\n")
    if kind == "row zero": matrix.write_text(head + "0 1 1.5\n1 1 2\n")
    if kind == "entry twice": matrix.write_text(head + "1 1 1.5\n1 1 2\n")
    if kind == "entries missing": matrix.write_text(head + "1 1 1.5\n")
    if kind == "text": matrix.write_text(head + "1 1 many\n1 2 3\n")
    if kind == "pattern": matrix.write_text(head.replace("real", "pattern") + "1 1\n1 2\n")
    if kind == "huge": matrix.write_text(head.replace("3 2 2", "2000000000 2000000000 2") + "1 1 1.5\n1 2 2\n")
    if kind == "no header": matrix.write_text("1 1 1.5\n")
    if kind == "plain and packed": (folder/"matrix.mtx.gz").write_bytes(gzip.compress(matrix.read_bytes()))
    if kind == "packed and cut short":
        (folder/"matrix.mtx.gz").write_bytes(gzip.compress(matrix.read_bytes())[:-12])
        matrix.unlink()
    if kind == "date": (folder/"features.tsv").write_text("1-Sep\nTP53\nMYC\n")


BAD_FOLDERS = {
    "no matrix": "no file .*matrix.mtx: a matrix folder holds", "no barcodes": "no file .*barcodes.tsv",
    "one barcode too many": "3 x 2 but run names 3 genes and 3 barcodes: put files together",
    "repeated barcodes": "sample 'a' 2 times",
    "row out of range": "matrix.mtx cannot be read", "row zero": "matrix.mtx cannot be read",
    "entry twice": "entry 1 1 twice: keep one", "entries missing": "matrix.mtx cannot be read",
    "text": "matrix.mtx cannot be read",
    "pattern": "pattern values: write numbers", "huge": "2000000000 x 2000000000 but run names 3 genes",
    "no header": "matrix.mtx cannot be read", "plain and packed": "both matrix.mtx and matrix.mtx.gz: keep the one",
    "packed and cut short": "matrix.mtx.gz cannot be read", "date": "'1-Sep', a name that Excel",
}


@pytest.mark.parametrize("kind, message", BAD_FOLDERS.items(), ids=BAD_FOLDERS)
def test_a_bad_matrix_folder_is_answered_with_one_sentence(tmp_path, kind, message):
    folder = write_folder(tmp_path/"run", VALUES.T, GENES, SAMPLES)
    break_folder(kind, folder)
    answer = sentence(load, folder)
    assert str(folder) in answer and pd.Series(answer).str.contains(message).all(), answer


BAD_LABELS = {
    "labels for other samples": ("labels.csv", "id,tissue\nx1,lung\nx2,lung\n",
        "it names x1, x2, the data have TCGA-AA-0001"),
    "a sample twice": ("labels.csv", "id,tissue\nTCGA-AA-0001,lung\nTCGA-AA-0001,lung\n",
        "sample 'TCGA-AA-0001' 2 times"),
    "a sample without a name": ("labels.csv", "tissue,sample\nlung,\n", "sample without a name"),
    "a column twice": ("labels.csv", "id,tissue,tissue\nTCGA-AA-0001,a,b\n", "column 'tissue' 2 times"),
    "a column that is there": ("labels.csv", "id,patient\nTCGA-AA-0001,p\n",
        "column 'patient', which the data have as well"),
    "a workbook": ("labels.xlsx", "PK", "save it as .csv"),
    "another format": ("labels.gct", "#1.2", "cannot hold annotations"),
    "tabs": ("labels.csv", "id\ttissue\na\tb\n", "separated by tabs"), "empty": ("labels.csv", "", "it is empty"),
    "short row": ("labels.csv", "id,tissue,site\nTCGA-AA-0001,lung\n", "2 fields in line 2 but 3 in its header"),
}


@pytest.mark.parametrize("name, text, message", BAD_LABELS.values(), ids=BAD_LABELS)
def test_a_bad_label_file_is_answered_with_one_sentence(table, tmp_path, name, text, message):
    table.assign(patient=["p", "q"]).to_csv(tmp_path/"mine.csv")
    (tmp_path/name).write_text(text)
    answer = sentence(load, "mine.csv", tmp_path, annotations=name)
    assert answer.startswith(str(tmp_path/name)) and pd.Series(answer).str.contains(message).all(), answer


@pytest.mark.parametrize("target", ["nowhere.csv", "folder", "../mine.csv/../../x.csv"])
def test_a_label_file_that_is_no_file_is_named(table, tmp_path, target):
    table.to_csv(tmp_path/"mine.csv")
    (tmp_path/"folder").mkdir()
    assert target in sentence(load, "mine.csv", tmp_path, annotations=target)


def test_a_missing_patient_in_the_second_file_is_not_made_up(table, tmp_path):
    table.to_csv(tmp_path/"mine.csv")
    (tmp_path/"labels.csv").write_text("id,patient\nTCGA-AA-0001,p\n")
    assert "labels.csv names no patient for 1 of 2 samples, such as 'TCGA-AA-0002': add" in sentence(
        load, "mine.csv", tmp_path, annotations="labels.csv")


def test_a_file_without_permission_is_one_sentence(table, tmp_path, monkeypatch):
    table.to_csv(tmp_path/"mine.csv")
    def refuse(path): raise PermissionError(13, "Permission denied", str(path))
    monkeypatch.setattr("ssl_expr.textfiles.open_bytes", refuse)
    assert "Permission denied" in sentence(load, tmp_path/"mine.csv")


def test_a_bad_header_of_hdf5_never_crashes(tmp_path):
    make_h5ad("good", tmp_path)
    content = (tmp_path/"mine.h5ad").read_bytes()
    for place in range(8, 96, 8):
        (tmp_path/"bad.h5ad").write_bytes(content[:place] + struct.pack("<Q", 2**63 - 1) + content[place + 8:])
        try: load(tmp_path/"bad.h5ad")
        except ValueError as error: assert "\n" not in str(error)


def test_a_count_table_of_featurecounts_is_read_and_its_comment_is_mentioned(tmp_path):
    head = ["Geneid", "Chr", "Start", "End", "Strand", "Length", "GSM1", "GSM2"]
    rows = [["TP53", "17;17", "1;9", "5;12", "-;-", "8", "3", "4"], ["MYC", "8", "2", "7", "+", "6", "0", "9"]]
    lines = ["# Program:featureCounts v2.0.1", *("\t".join(row) for row in [head, *rows])]
    (tmp_path/"counts.txt").write_text("\n".join(lines) + "\n")
    data = read_table(tmp_path/"counts.txt")
    np.testing.assert_array_equal(data.X, [[3, 0], [4, 9]])
    assert list(data.obs_names) == ["GSM1", "GSM2"] and list(data.var_names) == ["TP53", "MYC"]
    assert any("line 1 is a comment and was skipped" in text for text in data.uns["provenance"].values())


def test_a_comment_below_the_header_is_no_comment(tmp_path):
    (tmp_path/"mine.csv").write_text("id,A,B\n# s1,1,2\ns2,3,4\n")
    assert list(read_table(tmp_path/"mine.csv").obs_names) == ["# s1", "s2"]


@pytest.mark.parametrize("row", ["__no_feature", "N_unmapped"])
def test_totals_that_count_reads_of_no_gene_are_refused(tmp_path, row):
    (tmp_path/"htseq.tsv").write_text(f"gene\tGSM1\tGSM2\nTP53\t3\t4\nMYC\t1\t2\n{row}\t99\t98\n")
    with pytest.raises(ValueError, match=f"htseq.tsv counts reads of no gene under '{row}' .*: remove them"):
        read_table(tmp_path/"htseq.tsv")
