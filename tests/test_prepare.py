"Preparing a split: from stores, with a second file, the paper's sample list, and the paper's batch correction."
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from ssl_expr import data as data_module
from ssl_expr import prepare as prepare_module
from ssl_expr import preprocess
from ssl_expr.data import toy
from ssl_expr.prepare import load_prepared, prepare, save_prepared, searched_patients
from ssl_expr.roles import choose_rows
from ssl_expr.splits import fitting_rows
from ssl_expr.store import open_store, write_store


@pytest.fixture
def store(tmp_path, monkeypatch):
    "The toy counts as a store of 16-bit logarithms, known as the data set `stored`."
    adata = toy(240, n_genes=80)
    uns = {"units": "log2(counts+1)", "labels": ["label"], "provenance": {}}
    write_store(tmp_path/"toy.h5ad", adata.obs, adata.var, uns, [np.log2(adata.X + 1)], "float16")
    monkeypatch.setitem(data_module._loaders, "stored", lambda folder: open_store(tmp_path/"toy.h5ad"))
    monkeypatch.setitem(data_module._loaders, "in memory", lambda folder: adata)
    return "stored"


@pytest.fixture
def combat(monkeypatch):
    "Stands in for ComBat: remembers what it was given and moves every sample by its batch number."
    calls = []
    def combat_mean_only(X, batches, groups=None, **options):
        calls.append(SimpleNamespace(X=X.copy(), batches=batches, groups=groups, options=options))
        result = X + pd.factorize(batches)[0][:, None].astype(np.float32)
        if options.get("out") is None: return result
        options["out"][:] = result
        return options["out"]
    monkeypatch.setitem(sys.modules, "ssl_expr.combat", SimpleNamespace(combat_mean_only=combat_mean_only))
    return calls


def test_a_store_gives_what_the_counts_in_memory_give_but_for_sixteen_bits(store):
    stored, in_memory = prepare(store, genes=30), prepare("in memory", genes=30)
    assert stored.genes == in_memory.genes and stored.facts["units"] == "log2(counts+1)"
    for part in ("pretrain", "train", "validation", "test"):
        np.testing.assert_array_equal(getattr(stored.split, part), getattr(in_memory.split, part))
    assert (stored.X - in_memory.X).abs().max() < 0.05


@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_the_matrix_is_what_the_pipeline_gives_when_fitted_on_the_rows_it_may_see(protocol):
    data, counts = prepare("toy", protocol=protocol, genes=50), toy().X
    pipeline = preprocess.preprocessor(protocol, "counts", 50).fit(counts[fitting_rows(data.split, protocol)])
    np.testing.assert_allclose(data.X, pipeline.transform(counts), atol=1e-5)


def test_a_store_is_never_read_as_a_whole(store, monkeypatch):
    read = []
    def watched(X, rows=None, size=0):
        for block in original(X, rows, 20*4*80):
            read.append(len(block))
            yield block
    original = preprocess.row_blocks
    monkeypatch.setattr(preprocess, "row_blocks", watched)
    prepare(store)
    assert max(read) == 20


@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_the_papers_sample_list_leaves_out_rows_without_a_label_and_says_how_many(protocol):
    everything, listed = (prepare("toy", protocol=protocol, labelled_only=only) for only in (False, True))
    labelled = toy().obs["label"].notna().to_numpy()
    assert listed.samples == list(toy().obs_names[labelled]) and (listed.y >= 0).all()
    assert listed.facts["n_left_out"] == (~labelled).sum() and everything.facts["n_left_out"] == 0
    assert listed.X.shape[0] == len(listed.patients) == listed.facts["n_samples"] == labelled.sum()
    counts = toy().X[labelled]
    fitted_on = fitting_rows(listed.split, protocol)
    expected = preprocess.preprocessor(protocol, "counts").fit(counts[fitted_on]).transform(counts)
    np.testing.assert_allclose(listed.X, expected, atol=1e-5)


def test_small_classes_are_named_and_leave_with_the_papers_list(monkeypatch):
    adata = toy()
    label = adata.obs["label"].astype(object)
    label[label[label == "class-2"].index[4:]] = "class-0"
    adata.obs["label"] = label.astype("category")
    monkeypatch.setitem(data_module._loaders, "rare", lambda folder: adata)
    kept, left = prepare("rare"), prepare("rare", labelled_only=True)
    assert kept.facts["small_classes"] == left.facts["small_classes"] == ["class-2"]
    assert kept.classes == left.classes == ["class-0", "class-1"]
    assert left.facts["n_left_out"] == label.isna().sum() + 4 and len(left.samples) == (left.y >= 0).sum()


def test_combat_comes_after_quantile_normalisation_and_before_the_z_score_on_all_rows(combat):
    data = prepare("toy", protocol="paper", batch="batch", genes=50)
    call, = combat
    assert call.X.shape == (300, 50) and list(call.batches) == list(toy().obs["batch"])
    assert list(call.groups) == ["" if pd.isna(name) else name for name in toy().obs["label"]]
    steps = preprocess.preprocessor("paper", "counts", 50)
    fitted_on = fitting_rows(data.split, "paper")
    before = steps[:-1].fit(toy().X[fitted_on]).transform(toy().X)
    np.testing.assert_allclose(call.X, before, atol=1e-5)
    moved = before + pd.factorize(toy().obs["batch"])[0][:, None]
    np.testing.assert_allclose(data.X, preprocess.ZScore(clip=False).fit(moved[fitted_on]).transform(moved), atol=1e-4)
    assert data.facts["batch"] == "batch" and len(data.genes) == 50


def test_combat_sees_only_the_samples_of_the_papers_list(combat):
    data = prepare("toy", protocol="paper", batch="batch", labelled_only=True)
    call, = combat
    assert len(call.batches) == len(call.groups) == len(data.samples) < 300 and "" not in call.groups


@pytest.mark.parametrize("settings, message", [
    (dict(batch="batch"), "tells the class of the test samples"),
    (dict(batch="colour", protocol="paper"), "no column 'colour' for batches: it can be patient, label, truth, batch"),
    (dict(batch="label", protocol="paper"), "has no 'label': name a column without gaps")])
def test_a_batch_that_cannot_be_corrected_is_refused_in_one_sentence(settings, message, combat):
    with pytest.raises(ValueError, match=message) as refusal: prepare("toy", **settings)
    assert "\n" not in str(refusal.value) and not combat


def test_a_second_file_is_handed_to_load_and_an_empty_name_is_none(monkeypatch):
    asked = []
    def load(name, **options):
        asked.append(options)
        return toy()
    monkeypatch.setattr(data_module, "load", load)
    prepare("toy", annotations="labels.csv")
    prepare("toy")
    assert [options["annotations"] for options in asked] == ["labels.csv", None]


def test_what_was_left_out_survives_saving(tmp_path):
    data = prepare("toy", labelled_only=True)
    save_prepared(tmp_path/"prepared.safetensors", data)
    again = load_prepared(tmp_path/"prepared.safetensors")
    assert again.facts == data.facts and torch.equal(again.X, data.X)


def test_the_facts_say_where_the_data_came_from_and_what_was_guessed(tmp_path):
    pd.DataFrame(toy().X, toy().obs_names, toy().var_names).assign(**{"label:kind": toy().obs["label"]}).to_csv(
        tmp_path/"mine.csv")
    assert prepare("toy").facts["provenance"] == toy().uns["provenance"]
    told = prepare(str(tmp_path/"mine.csv")).facts["provenance"]
    assert told["file"] == "mine.csv" and "guessed" in told["units"] and "no column `patient`" in told["patient"]


def test_other_batches_give_other_facts_only_where_they_are_used(monkeypatch):
    other = toy()
    other.obs["batch"] = other.obs["batch"].to_numpy()[::-1]
    monkeypatch.setitem(data_module._loaders, "other", lambda folder: other)
    def digests(**options): return [prepare(name, **options).facts["batch_fingerprint"] for name in ("toy", "other")]
    first, second = digests(protocol="paper", batch="batch")
    assert len(first) == len(second) == 64 and first != second and digests(protocol="paper") == ["", ""]


def test_more_genes_than_memory_has_room_for_are_refused_in_one_sentence(monkeypatch):
    monkeypatch.setattr(prepare_module, "_available_memory", lambda: 4*300*50)
    assert prepare("toy", genes=50).X.shape == (300, 50)
    monkeypatch.setattr(preprocess, "transform_in_blocks", None)      # nothing is made
    with pytest.raises(ValueError, match="300 samples x 51 genes needs 0.0 GB and 0.0 GB .* choose genes=") as refusal:
        prepare("toy", genes=51)
    assert "\n" not in str(refusal.value)


def test_available_memory_is_what_the_system_states_or_all_there_is(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda path: "MemTotal: 900 kB\nMemAvailable:    800 kB\n")
    assert prepare_module._available_memory() == 800*1024
    def missing(path): raise FileNotFoundError(path)
    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 3, "SC_PAGE_SIZE": 4096}.get)
    assert prepare_module._available_memory() == 3*4096
    monkeypatch.delattr(os, "sysconf")
    assert prepare_module._available_memory() == float("inf")


ZERO, ONE = {"batch": ["batch-0"]}, {"batch": ["batch-1"]}


def test_roles_that_every_row_has_change_nothing_and_without_roles_the_facts_say_nothing_of_them():
    everybody = {"batch": ["batch-0", "batch-1"]}
    plain, asked = prepare("toy"), prepare("toy", pretrain_on=everybody, learn_on=everybody)
    assert torch.equal(plain.X, asked.X) and plain.genes == asked.genes and (plain.y == asked.y).all()
    for part, rows in vars(plain.split).items(): np.testing.assert_array_equal(rows, vars(asked.split)[part])
    roles = dict(pretrain_on=everybody, learn_on=everybody, n_without_role=0)
    assert asked.facts == plain.facts | roles and not roles.keys() & plain.facts.keys()


@pytest.mark.parametrize("pretrain_on, learn_on", [(ZERO, ONE), (ONE, ZERO), ({}, ONE), (ZERO, {}), (ZERO, ZERO)])
@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_each_row_is_used_in_its_roles_only_and_a_row_without_one_is_not_there(protocol, pretrain_on, learn_on):
    obs = toy().obs
    data = prepare("toy", protocol=protocol, pretrain_on=pretrain_on, learn_on=learn_on)
    def matching(wanted): return set(obs.index[obs["batch"].isin(wanted.get("batch", ["batch-0", "batch-1"]))])
    parts = {part: set(np.array(data.samples)[rows]) for part, rows in vars(data.split).items()}
    labelled = set(obs.index[obs["label"].notna()]) & matching(learn_on)
    assert parts["train"] | parts["validation"] | parts["test"] == labelled
    assert parts["pretrain"] == matching(pretrain_on) - parts["validation"] - parts["test"]
    assert set(data.samples) == matching(pretrain_on) | labelled
    assert data.facts["n_without_role"] == data.facts["n_left_out"] == 300 - len(data.samples)
    assert {data.samples[row] for row in np.flatnonzero(data.y >= 0)} == labelled


def test_scaling_is_fitted_on_the_training_rows_of_both_sides_of_a_transfer():
    data = prepare("toy", pretrain_on=ZERO, learn_on=ONE)
    fitted_on = np.union1d(data.split.pretrain, data.split.train)
    counts = toy()[data.samples].X
    expected = preprocess.preprocessor("strict", "counts").fit(counts[fitted_on]).transform(counts)
    np.testing.assert_allclose(data.X, expected, atol=1e-5)
    assert data.facts["n_fitted"] == len(fitted_on)


def test_a_class_is_small_if_few_of_the_rows_to_learn_on_have_it():
    obs = pd.DataFrame({"kind": ["a"]*40 + ["b"]*40 + ["c"]*40 + [None]*10, "place": ["x", "y"]*65})
    obs.loc[obs.index[80:116], "place"] = "y"                    # two samples of class c are left at x
    learned = dict(learn_on={"place": ["x"]}, pretrain_on={"place": ["y"]})
    chosen = choose_rows(obs, "kind", **learned)
    assert set(chosen.labels) == {"a", "b", None} and chosen.facts["small_classes"] == ["c"]
    assert choose_rows(obs, "kind", 2, **learned).facts["small_classes"] == []
    assert choose_rows(obs, "kind").facts["small_classes"] == []


def test_the_papers_list_keeps_rows_that_only_pretrain_if_they_have_a_label():
    obs = toy().obs
    data = prepare("toy", labelled_only=True, pretrain_on=ZERO, learn_on=ONE)
    assert data.samples == list(obs.index[obs["label"].notna()])
    assert len(data.split.pretrain) == (obs["label"].notna() & (obs["batch"] == "batch-0")).sum()
    assert (data.y[data.split.pretrain] == -1).all()


def test_values_of_a_role_are_compared_as_text_and_a_missing_one_matches_nothing():
    obs = pd.DataFrame({"kind": ["a", "b"]*30, "year": pd.array([1, 2, None]*20, dtype="Int64")})
    for years in ([1], ["1"]): assert len(choose_rows(obs, "kind", 5, pretrain_on={"year": years}).used) == 60
    chosen = choose_rows(obs, "kind", 5, pretrain_on={"year": [1]}, learn_on={"year": ["2"]})
    assert chosen.facts["n_without_role"] == 20 and chosen.may_pretrain.sum() == 20
    assert chosen.facts["pretrain_on"] == {"year": ["1"]}


@pytest.mark.parametrize("settings, message", [
    (dict(pretrain_on={"tissue": ["lung"]}), "pretrain_on: .* 'tissue': it can be batch, label, patient, truth"),
    (dict(learn_on={"batch": ["batch-1", "batch-7"]}), "learn_on: .* has batch 'batch-7': it can be batch-0, batch-1"),
    (dict(learn_on={"batch": "batch-1"}), "list of values, got 'batch-1': it can be batch-0, batch-1"),
    (dict(learn_on={"batch": []}), "list of values"),
    (dict(learn_on={"patient": ["nobody"]}), "it can be patient-0000, .*, patient-0007 and 292 more"),
    (dict(learn_on={"truth": ["class-0"], "label": ["class-1"]}), "none of the .* samples left .* they have class-0"),
    (dict(label="batch", min_class_size=200),
     r"label 'batch' has fewer than two classes of at least 200 samples: it has batch-\d \(\d+\), batch-\d .*; choose"),
    (dict(learn_on={"truth": ["class-0"]}),
     r"learn_on leaves fewer than two classes of at least 15 samples: it has class-0 \(\d+\); name more values"),
    (dict(learn_on=ONE, pretrain_on=ONE | {"label": ["class-0", "class-1", "class-2"]}, disjoint_pretraining=True),
     "none of the .* rows that may pretrain is outside"),
    (dict(shortcuts=["split by sample"]), "unknown shortcut 'split by sample': known are split-by-sample, fit-on"),
    (dict(shortcuts=["fit-on-everything"], protocol="paper"), "paper takes them anyway")])
def test_a_role_or_shortcut_that_cannot_be_is_refused_in_one_sentence(settings, message):
    with pytest.raises(ValueError, match=message) as refusal: prepare("toy", **settings)
    assert "\n" not in str(refusal.value)


def test_shortcuts_are_written_down_and_fit_on_everything_keeps_the_strict_steps():
    plain, data = prepare("toy", genes=50), prepare("toy", genes=50, shortcuts=["fit-on-everything"])
    everything = preprocess.preprocessor("strict", "counts", 50).fit(toy().X).transform(toy().X)
    np.testing.assert_allclose(data.X, everything, atol=1e-5)
    assert data.facts["shortcuts"] == ["fit-on-everything"] and data.facts["n_fitted"] == 300
    assert "shortcuts" not in plain.facts


FORTIETH_OF_ARCHS4 = (1332, 67_128)
PROGRAM = """
import sys
from ssl_expr import data
from ssl_expr.prepare import prepare, save_prepared
from ssl_expr.store import open_store
def status(name): return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])/1024
options = dict(protocol="paper", batch="batch") if sys.argv[2] == "paper" else {}
save_prepared(sys.argv[3], prepare("toy", **options))      # the libraries are loaded
data._loaders["large"] = lambda folder: open_store(sys.argv[1])
before = status("VmHWM")
prepared = prepare("large", **options)
peak = status("VmHWM")
save_prepared(sys.argv[3], prepared)
print(prepared.X.nbytes/2**20, peak - before, status("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    "171 MB of float16, 341 MB as float32, with three classes and seven batches."
    (n_rows, n_genes), rng = FORTIETH_OF_ARCHS4, np.random.default_rng(0)
    piece = (rng.gamma(1, 2, n_genes) + rng.uniform(0, 1, (36, n_genes))).astype(np.float16)
    number = np.arange(n_rows)
    obs = pd.DataFrame({"patient": number.astype(str), "batch": (number % 7).astype(str),
                        "label": pd.Categorical((number % 3).astype(str))}, index=number.astype(str))
    uns = {"units": "log2(counts+1)", "labels": ["label"], "provenance": {}}
    path, blocks = tmp_path_factory.mktemp("large")/"a.h5ad", (np.roll(piece, k, 1) for k in range(n_rows//36))
    write_store(path, obs, pd.DataFrame(index=np.arange(n_genes).astype(str)), uns, blocks, "float16")
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_loading_checking_preparing_and_saving_all_genes_takes_the_result_and_a_few_blocks(large, tmp_path, protocol):
    "The peak of a process of its own; a second copy of the result, or the file left in memory, would be 171 MB more."
    words = [sys.executable, "-c", PROGRAM, large, protocol, tmp_path/"prepared.safetensors"]
    answer = subprocess.run(words, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    result, preparing, saving = map(float, answer.stdout.split())
    assert result == pytest.approx(4*np.prod(FORTIETH_OF_ARCHS4)/2**20)
    assert preparing < result + 160 and saving - preparing < 20, answer.stdout


def test_a_class_as_small_as_was_asked_for_can_be_split(tmp_path):
    data = toy(150, unlabelled=0)
    rare = np.flatnonzero(data.obs["label"] == "class-2")
    data[np.setdiff1d(np.arange(150), rare[10:])].write_h5ad(tmp_path/"mine.h5ad")     # ten are left
    path = str(tmp_path/"mine.h5ad")
    assert prepare(path).classes == ["class-0", "class-1"]
    assert prepare(path, min_class_size=8).classes == ["class-0", "class-1", "class-2"]


SEARCH = dict(splits=[3, 4], label="label", labelled_share=0.2)


def test_nobody_whose_label_served_the_search_is_tested_and_the_facts_say_how_many_there_were():
    known = searched_patients(toy().obs, SEARCH)
    for number in SEARCH["splits"]:
        earlier = prepare("toy", split=number, labelled_share=0.2)
        for part in ("train", "validation", "test"):
            assert {earlier.patients[row] for row in getattr(earlier.split, part)} <= known
    data = prepare("toy", split=0, searched=SEARCH)
    tested, usual = ({d.patients[row] for row in d.split.test} for d in (data, prepare("toy", split=0)))
    assert not tested & known and usual & known
    assert data.facts["n_searched_patients"] == len(known) and data.facts["searched"] == SEARCH


def test_patients_of_a_search_are_those_of_its_own_classes_whatever_is_asked_now():
    "A comparison of few classes must not test patients who had a label, of another class or not, in the search."
    some = dict(learn_on={"label": sorted(set(toy().obs["label"].dropna()))[:2]})
    few, all_of_them = (prepare("toy", searched=SEARCH, **options) for options in (some, {}))
    assert few.facts["n_searched_patients"] == all_of_them.facts["n_searched_patients"]


def test_fewer_unlabelled_rows_are_some_of_the_more_and_nothing_else_changes():
    sizes = [prepare("toy", unlabelled=n, split=2) for n in (40, 90, 0)]
    few, more, every = (set(data.split.pretrain) for data in sizes)
    assert few < more < every and (len(few), len(more)) == (40, 90)
    for part in ("train", "validation", "test"):
        rows = [getattr(data.split, part) for data in sizes]
        assert all((rows[0] == others).all() for others in rows[1:])
    seen = torch.from_numpy(np.union1d(sizes[0].split.pretrain, sizes[0].split.train))
    assert sizes[0].X[seen].mean(0).abs().max() < 1e-4, "scaled on the rows that are left, no others"


@pytest.mark.parametrize("settings, message", [
    (dict(unlabelled=3), "unlabelled must be 8 to"), (dict(unlabelled=10**6), "rows that may pretrain"),
    (dict(searched=dict(splits=[1])), "must name the splits and the label"),
    (dict(searched=SEARCH | dict(learn_on={})), "nothing beyond")])
def test_what_cannot_be_left_out_is_refused_in_one_sentence(settings, message):
    with pytest.raises(ValueError, match=message): prepare("toy", **settings)
