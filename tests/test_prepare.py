"Preparing a split: from stores, with a second file, the paper's sample list, and the paper's batch correction."
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from ssl_expr import data as data_module
from ssl_expr import preprocess
from ssl_expr.data import toy
from ssl_expr.prepare import load_prepared, prepare, save_prepared
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
        return X + pd.factorize(batches)[0][:, None].astype(np.float32)
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


def test_a_second_file_is_handed_to_load_only_when_there_is_one(monkeypatch):
    asked = []
    def load(name, **options):
        asked.append(options)
        return toy()
    monkeypatch.setattr(data_module, "load", load)
    prepare("toy", annotations="labels.csv")
    prepare("toy")
    assert asked[0]["annotations"] == "labels.csv" and "annotations" not in asked[1]


def test_what_was_left_out_survives_saving(tmp_path):
    data = prepare("toy", labelled_only=True)
    save_prepared(tmp_path/"prepared.safetensors", data)
    again = load_prepared(tmp_path/"prepared.safetensors")
    assert again.facts == data.facts and torch.equal(again.X, data.X)
