"Stores: ordinary .h5ad files, written by blocks, opened without loading, refused when they are anything else."
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import weakref
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from scipy import sparse

from ssl_expr import fetch as fetch_module
from ssl_expr import store
from ssl_expr.blocks import row_blocks
from ssl_expr.fetch import fetch, sources
from ssl_expr.store import built, open_or_build, open_store, write_store

N, G = 23, 17
OBS = pd.DataFrame({"patient": [f"p{i}" for i in range(N)], "label": pd.Categorical(["a", None] + ["b"]*(N - 2))},
                   index=[f"s{i}" for i in range(N)])
VAR = pd.DataFrame({"symbol": [f"G{j}" for j in range(G)]}, index=[f"g{j}" for j in range(G)])
UNS = {"units": "log2(counts+1)", "labels": ["label"], "provenance": {"source": "made up"}}
X = np.log2(np.random.default_rng(0).integers(0, 10**6, (N, G)) + 1).astype(np.float32)
X[3, 4] = np.nan


def parts(matrix=X, *ends): return np.split(matrix, ends or [5, 6, 20])


def write(path, blocks=None, dtype="float32", obs=OBS): write_store(path, obs, VAR, UNS, blocks or parts(), dtype)


def child(program, *words):
    "What a process of its own prints."
    answer = subprocess.run([sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("ends", [(5, 6, 20), tuple(range(1, N)), (N,)], ids=["uneven", "single rows", "one block"])
def test_a_store_gives_back_what_was_written_to_us_and_to_anndata_alone(tmp_path, dtype, ends):
    write(tmp_path/"a.h5ad", parts(X, *ends), dtype)
    for read in (open_store, anndata.read_h5ad):
        adata = read(tmp_path/"a.h5ad")
        assert adata.X.dtype == dtype and adata.uns["units"] == "log2(counts+1)"
        np.testing.assert_array_equal(adata.X, X.astype(dtype))
        pd.testing.assert_frame_equal(adata.obs, OBS, check_categorical=True)
        pd.testing.assert_frame_equal(adata.var, VAR)
    assert open_store(tmp_path/"a.h5ad").uns == UNS


def test_the_matrix_of_an_opened_store_is_the_file_itself_and_cannot_be_written_to(tmp_path):
    write(tmp_path/"a.h5ad")
    opened = open_store(tmp_path/"a.h5ad")
    assert isinstance(opened.X, np.memmap) and Path(opened.X.filename) == tmp_path/"a.h5ad"
    with pytest.raises(ValueError, match="read-only"): opened.X[0, 0] = 1


def test_counts_come_back_from_sixteen_bit_logarithms_within_the_stated_error():
    counts = np.arange(1, 65_536)
    back = np.exp2(np.log2(counts + 1).astype(np.float16).astype(float)) - 1
    assert (abs(back - counts)/counts).max() < 0.0028


@pytest.mark.parametrize("blocks, message", [
    (parts()[:2], "end after 6 of 23 samples"), ([*parts(), X[:1]], "at row 23 does not fit"),
    ([X[:, 1:]], r"shape \(23, 16\) at row 0"), ([X[0]], "does not fit 23 samples")])
def test_blocks_that_do_not_fit_the_annotations_are_refused_and_leave_nothing(tmp_path, blocks, message):
    with pytest.raises(ValueError, match=message): write(tmp_path/"a.h5ad", blocks)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value, dtype, message", [
    (70_000, "float16", "the value 70000 in sample 's7', gene 'g2' does not fit float16, which ends at 65504"),
    (1e39, "float32", "the value 1e\\+39 in sample 's7', gene 'g2' does not fit float32"),
    (np.inf, "float32", "the infinite value in sample 's7', gene 'g2'")])
def test_a_value_that_does_not_fit_is_named_and_the_older_store_survives(tmp_path, value, dtype, message):
    write(tmp_path/"a.h5ad")
    matrix = X.astype(float)
    matrix[7, 2] = value
    with pytest.raises(ValueError, match=message) as refusal: write(tmp_path/"a.h5ad", parts(matrix), dtype)
    assert "\n" not in str(refusal.value) and os.listdir(tmp_path) == ["a.h5ad"]
    np.testing.assert_array_equal(open_store(tmp_path/"a.h5ad").X, X)


@pytest.mark.parametrize("dtype", ["int32", "float64"])
def test_other_types_and_empty_stores_are_refused(tmp_path, dtype):
    with pytest.raises(ValueError, match="float16 or float32"): write(tmp_path/"a.h5ad", dtype=dtype)
    with pytest.raises(ValueError, match="would be empty"): write(tmp_path/"a.h5ad", obs=OBS[:0])


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 4*N*G - 1})())
    with pytest.raises(OSError, match="free some space"): write(tmp_path/"a.h5ad", untouched())
    assert list(tmp_path.iterdir()) == []
    write(tmp_path/"a.h5ad", dtype="float16")      # half as large


def untouched():
    raise AssertionError("a block was asked for")
    yield


@pytest.mark.parametrize("obs, var, message", [
    (OBS.rename({"s3": "s1"}), VAR, "a.h5ad has sample 's1' 2 times"), (OBS.rename({"s3": ""}), VAR, "without a name"),
    (OBS, VAR.rename({"g3": "g1"}), "a.h5ad has gene 'g1' 2 times"), (OBS, VAR.rename({"g3": None}), "without a name")])
def test_names_that_are_missing_or_repeated_are_refused_before_a_block_is_made(tmp_path, obs, var, message):
    with pytest.raises(ValueError, match=message): write_store(tmp_path/"a.h5ad", obs, var, UNS, untouched())
    assert list(tmp_path.iterdir()) == []


def test_one_block_is_in_memory_at_a_time(tmp_path):
    seen, alive = [], []
    def blocks():
        for start in range(0, N, 4):
            alive.append(sum(other() is not None for other in seen))
            block = X[start:start + 4].copy()
            seen.append(weakref.ref(block))
            yield block
            del block
    write(tmp_path/"a.h5ad", blocks())
    assert alive == [0]*6


def cut(share):
    def damage(path):
        content = path.read_bytes()
        path.write_bytes(content[:int(len(content)*share)])
    return damage


def changed(change):
    def damage(path):
        with h5py.File(path, "r+") as file: change(file)
    return damage


def other_matrix(**options):
    def change(file):
        del file["X"]
        file.create_dataset("X", **({"data": X} | options))
    return changed(change)


def stored_elsewhere(file):
    del file["X"]
    file.create_dataset("X", X.shape, "f4", external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)])


def linked(file):
    with h5py.File(Path(file.filename).with_name("other.h5"), "w") as other: other["X"] = X
    del file["X"]
    file["X"] = h5py.ExternalLink("other.h5", "X")


def virtual(file):
    del file["X"]
    layout = h5py.VirtualLayout(X.shape, "f4")
    layout[:] = h5py.VirtualSource("other.h5", "X", X.shape)
    file.create_virtual_dataset("X", layout)


def another(matrix): return lambda path: anndata.AnnData(matrix, OBS, VAR).write_h5ad(path)


def without(name): return changed(lambda file: file.pop(name))


DAMAGE = {
    "empty": cut(0), "cut in the header": cut(0.1), "cut in the middle": cut(0.5), "cut at the end": cut(0.999),
    "text": lambda path: path.write_text("sample,gene\n"), "pickle": lambda path: path.write_bytes(b"\x80\x04K\x01."),
    "no X": without("X"), "no obs": without("obs"), "no var": without("var"), "no uns": without("uns"),
    "compressed": other_matrix(compression="gzip"), "chunked": other_matrix(chunks=(5, 5)),
    "float64": other_matrix(data=X.astype(float)), "whole numbers": other_matrix(data=np.nan_to_num(X).astype(int)),
    "one row less": other_matrix(data=X[1:]), "one gene less": other_matrix(data=X[:, 1:]),
    "one dimension": other_matrix(data=X[0]), "never filled": other_matrix(data=None, shape=X.shape, dtype="f4"),
    "big-endian": other_matrix(data=X.astype(">f4")),
    "sparse": another(sparse.csr_matrix(np.nan_to_num(X))), "stored elsewhere": changed(stored_elsewhere),
    "a link": changed(linked), "virtual": changed(virtual)}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_or_foreign_file_is_answered_with_one_sentence(tmp_path, damage):
    path = tmp_path/"a.h5ad"
    write(path)
    damage(path)
    with pytest.raises(ValueError) as refusal: open_store(path)
    message = str(refusal.value)
    assert message.startswith(f"{path} cannot be opened as a store (") and "write it again" in message
    assert "\n" not in message and "()" not in message


def test_a_missing_store_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="check the path"): open_store(tmp_path/"a.h5ad")


BUILD = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from test_store import OBS, UNS, VAR, X, open_or_build
def build():
    with open(sys.argv[2] + ".built", "a") as file: file.write("once\\n")
    def blocks():
        for row in X:
            time.sleep(float(sys.argv[3]))
            yield row[None]
    return dict(obs=OBS, var=VAR, uns=UNS, blocks=blocks())
print(float(open_or_build(sys.argv[2], build).X[0].sum()))
"""
HERE = str(Path(__file__).parent)


def start(path, pause): return subprocess.Popen([sys.executable, "-c", BUILD, HERE, str(path), str(pause)],
                                                stdout=subprocess.PIPE, text=True)


def test_of_three_processes_one_builds_and_all_read_the_whole_store(tmp_path):
    processes = [start(tmp_path/"a.h5ad", 0.02) for _ in range(3)]
    answers = [process.communicate()[0] for process in processes]
    assert (tmp_path/"a.h5ad.built").read_text() == "once\n"
    assert [float(answer) for answer in answers] == [float(X[0].sum())]*3


def test_a_killed_builder_leaves_no_store_and_the_next_one_builds_it(tmp_path):
    path = tmp_path/"a.h5ad"
    builder = start(path, 60)
    while not list(tmp_path.glob(".partial-*")): time.sleep(0.05)
    builder.kill()
    builder.communicate()
    assert not path.exists() and list(tmp_path.glob(".partial-*"))
    built = open_or_build(path, lambda: dict(obs=OBS, var=VAR, uns=UNS, blocks=parts()))
    np.testing.assert_array_equal(built.X, X)
    assert not list(tmp_path.glob(".partial-*"))


def test_a_finished_store_is_opened_without_a_lock_even_where_nothing_may_be_written(tmp_path):
    write(tmp_path/"a.h5ad")
    assert open_or_build(tmp_path/"a.h5ad", None).shape == (N, G) and os.listdir(tmp_path) == ["a.h5ad"]


def test_a_damaged_store_is_never_silently_replaced(tmp_path):
    write(tmp_path/"a.h5ad")
    cut(0.5)(tmp_path/"a.h5ad")
    with pytest.raises(ValueError, match="is damaged: delete it"): open_or_build(tmp_path/"a.h5ad", None)


def test_an_error_while_building_is_told_and_the_next_attempt_may_build(tmp_path):
    with pytest.raises(ZeroDivisionError): open_or_build(tmp_path/"a.h5ad", lambda: 1/0)
    open_or_build(tmp_path/"a.h5ad", lambda: dict(obs=OBS, var=VAR, uns=UNS, blocks=parts()))


class Shelf:
    "A folder that plays the publisher: the data set `main`, which needs `labels`, one file each that holds a number."
    def __init__(self, folder):
        self.folder, self.manifest, self.stores = folder/"disk", folder/"manifest.json", folder/"stores"
        self.n_built = 0
        self.folder.mkdir()

    def put(self, **contents):
        manifest = {}
        for name, content in contents.items():
            (self.folder/f"{name}.txt").write_text(str(content))
            file = {"name": f"{name}.txt", "address": f"file:///{name}.txt", "size": None,
                    "sha256": hashlib.sha256(str(content).encode()).hexdigest()}
            manifest[name] = {"title": "", "licence": "", "citation": "", "pattern": "", "files": [file],
                              "needs": ["labels"] if name == "main" else []}
        self.manifest.write_text(json.dumps(manifest))

    def built(self, layout=1):
        def build(folder):
            self.n_built += 1
            paths = folder/"main.txt", fetch("labels", self.folder)/"labels.txt"
            main, labels = (int(path.read_text()) for path in paths)
            return dict(obs=OBS, var=VAR, uns=UNS, blocks=[np.full((N, G), 10_000*layout + 100*main + labels)])
        return built("main", self.folder, layout, build)

    @property
    def held(self): return sorted(path.name for path in self.stores.glob("*.h5ad"))


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    shelf = Shelf(tmp_path)
    shelf.put(main=5, labels=7)
    monkeypatch.setenv("SSL_EXPR_CACHE", str(tmp_path))
    monkeypatch.delenv("SSL_EXPR_MIRROR", raising=False)
    for module in (fetch_module, store): monkeypatch.setattr(module, "sources", lambda: sources(shelf.manifest))
    return shelf


@pytest.mark.filterwarnings("ignore:.*is damaged and is fetched again")     # the cache holds the former version
def test_a_source_is_read_once_for_each_state_of_its_files_of_those_it_needs_and_of_the_code(shelf):
    names, steps = [], [({}, 1, 10_507), ({"main": 6}, 1, 10_607), ({"labels": 8}, 1, 10_508), ({}, 2, 20_507)]
    for n_built, (change, layout, value) in enumerate(steps, 1):
        shelf.put(**{"main": 5, "labels": 7} | change)
        for _ in range(2): assert (shelf.built(layout).X == value).all()
        assert shelf.n_built == n_built and len(shelf.held) == 1
        names += shelf.held
    assert len(set(names)) == len(steps) and all(name.startswith("main-") for name in names)


@pytest.mark.filterwarnings("ignore:.*is damaged and is fetched again")
def test_a_new_store_replaces_the_older_ones_of_its_name_and_who_has_one_open_keeps_its_numbers(shelf):
    opened = shelf.built()
    key, (older,) = "0123456789ab", shelf.held
    others = [f"main-extra-{key}.h5ad", f"remain-{key}.h5ad", f"main-{key}.h5ad.bak", "main-notes.h5ad"]
    left = [f".partial-0a1b2c3d-main-{key}.h5ad", f".partial-0a1b2c3d-{older}"]      # by builders that were killed
    kept = [f".partial-0a1b2c3d-main-extra-{key}.h5ad"]
    for name in others + left + kept: (shelf.stores/name).write_text("")
    shelf.built()
    assert (shelf.stores/left[0]).exists() and older in shelf.held      # nothing new, nothing to replace
    shelf.put(main=6, labels=7)
    assert (shelf.built().X == 10_607).all() and (opened.X == 10_507).all()
    there = {path.name for path in shelf.stores.iterdir()}
    assert there.issuperset(others + kept) and not there & {older, *left}


@pytest.mark.filterwarnings("ignore:.*is damaged and is fetched again")
def test_a_store_that_is_being_built_is_not_removed_by_another(shelf):
    busy = shelf.stores/".partial-0a1b2c3d-main-0123456789ab.h5ad"
    busy.parent.mkdir()
    busy.write_text("half")
    with FileLock(shelf.stores/".main-0123456789ab.h5ad.lock", thread_local=False): shelf.built()
    assert busy.read_text() == "half"


@pytest.mark.parametrize("size", [1, 3*4*G, 10**6], ids=["one row", "three rows", "all"])
@pytest.mark.parametrize("rows", [None, [4], [22, 0, 5, 5, 1], np.arange(N)[::-1], np.arange(N) % 3 == 0, [-1, -2]],
                         ids=["all", "one", "any order, repeated", "backwards", "true and false", "negative"])
@pytest.mark.parametrize("kind", ["float16 in a file", "float32 in a file", "in memory"])
def test_blocks_together_are_the_rows_that_were_asked_for(tmp_path, kind, rows, size):
    matrix = X
    if kind != "in memory":
        write(tmp_path/"a.h5ad", dtype=kind[:7])
        matrix = open_store(tmp_path/"a.h5ad").X
    blocks = list(row_blocks(matrix, rows, size))
    np.testing.assert_array_equal(np.concatenate(blocks), np.asarray(matrix if rows is None else matrix[rows], "f4"))
    assert all(block.dtype == np.float32 and type(block) is np.ndarray for block in blocks)
    assert max(map(len, blocks)) <= max(1, size//(4*G)) and min(map(len, blocks)) > 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_opening_and_reading_by_blocks_takes_little_memory(tmp_path):
    "A store of 100 MB (200 MB as float32): what the process itself holds, and pages of the file that are lent to it."
    obs, var = (pd.DataFrame(index=[f"{i}" for i in range(n)]) for n in (2500, 20_000))
    write_store(tmp_path/"a.h5ad", obs, var, {}, (np.ones((250, 20_000), "f2") for _ in range(10)), "float16")
    opening, reading, kept = map(float, child("""
import sys
from ssl_expr.blocks import row_blocks
from ssl_expr.store import open_store
def status(name): return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])/1024
def peak(): return status("VmHWM")      # ru_maxrss would count the process that started this one
adata, before = open_store(sys.argv[2]), peak()      # a small one first: the libraries are loaded
adata = open_store(sys.argv[1])
opened = peak()
held = status("VmRSS")
for block in row_blocks(adata.X, size=2**23): block.sum()
del block
print(opened - before, peak() - opened, status("VmRSS") - held)
""", tmp_path/"a.h5ad", _small(tmp_path)).split())
    assert opening < 20 and reading < 40 and kept < 20


def _small(folder):
    write(folder/"small.h5ad")
    return folder/"small.h5ad"
