"SSLEncoder behaves like a scikit-learn transformer, finds genes by name, and survives being saved."
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

import ssl_expr.estimator
from ssl_expr.cli import main
from ssl_expr.data import load
from ssl_expr.estimator import FewSamplesWarning, SSLEncoder, align_table, pretrained, sizes_for
from ssl_expr.objective import build, known_settings, objectives
from ssl_expr.preprocess import DepthNormalise, Log2
from ssl_expr.pretrain import batches, hold_out, train_encoder
from ssl_expr.storage import save_tensors

torch.set_num_threads(1) # two threads on a busy machine are many times slower
GENES = [f"gene-{number}" for number in range(17)]
FRAME = pd.DataFrame(np.random.default_rng(0).normal(5, 2, (40, 17)), [f"sample-{n}" for n in range(40)], GENES)


@pytest.fixture(autouse=True)
def no_data_are_too_few(monkeypatch): monkeypatch.setattr("ssl_expr.estimator.FEW_SAMPLES", 0)


def quick(**settings) -> SSLEncoder:
    return SSLEncoder(**{"epochs": 2, "width": 8, "depth": 1, "batch_size": 16} | settings)


def as_anndata(frame=FRAME, units="log2(TPM+1)") -> anndata.AnnData:
    return anndata.AnnData(frame, uns={} if units is None else {"units": units})


@parametrize_with_checks([SSLEncoder(epochs=1, width=8, depth=1)])
def test_scikit_learn_accepts_it(estimator, check): check(estimator)


# ---------------------------------------------------------------------------------------------- as a transformer

@pytest.mark.parametrize("method", sorted(objectives()))
def test_two_fits_with_one_seed_give_the_same_bits(method):
    one, two, other = (quick(method=method, random_state=seed).fit_transform(FRAME) for seed in (1, 1, 2))
    assert one.shape == (40, 8) and one.dtype == np.float32
    assert np.array_equal(one, two) and not np.array_equal(one, other)


def test_random_state_follows_the_rules_of_scikit_learn():
    state = np.random.RandomState(0)
    first, second = (quick(random_state=state).fit_transform(FRAME) for _ in range(2))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, quick(random_state=np.random.RandomState(0)).fit_transform(FRAME))
    assert not np.array_equal(*(quick(random_state=None).fit_transform(FRAME) for _ in range(2)))


def test_array_frame_and_anndata_give_the_same_bits():
    want = quick().fit_transform(FRAME)
    assert np.array_equal(quick().fit_transform(FRAME.to_numpy()), want)
    assert np.array_equal(quick().fit_transform(as_anndata()), want)


def test_a_sparse_anndata_is_read():
    from scipy.sparse import csr_matrix
    adata = anndata.AnnData(csr_matrix(FRAME.to_numpy()), var=pd.DataFrame(index=GENES), uns={"units": "log2(TPM+1)"})
    assert np.array_equal(quick().fit_transform(adata), quick().fit_transform(FRAME))


def test_a_sample_is_embedded_the_same_whoever_is_beside_it():
    model = quick().fit(FRAME)
    whole = model.transform(FRAME)
    np.testing.assert_allclose(model.transform(FRAME.iloc[[7]])[0], whole[7], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(model.transform(FRAME[::-1]), whole[::-1], rtol=1e-4, atol=1e-6)
    assert np.array_equal(whole, model.transform(FRAME))


def test_values_outside_the_training_range_are_clipped():
    model = quick().fit(FRAME)
    high, higher = (FRAME.assign(**{"gene-3": value}) for value in (FRAME["gene-3"].max(), 1e6))
    assert np.array_equal(model.transform(high), model.transform(higher))


def test_grid_search_and_clone_in_a_pipeline():
    labels = (FRAME["gene-0"] > 5).to_numpy()
    pipeline = make_pipeline(quick(), LogisticRegression())
    search = GridSearchCV(pipeline, {"sslencoder__width": [4, 8], "sslencoder__method": ["scarf", "vime"]}, cv=2)
    search.fit(FRAME, labels)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert clone(search.best_estimator_).get_params()["sslencoder"].get_params() == \
        search.best_estimator_["sslencoder"].get_params()


def test_in_a_pipeline_an_anndata_goes_in():
    labels = (FRAME["gene-0"] > 5).to_numpy()
    of_anndata, of_frame = (make_pipeline(quick(), LogisticRegression()).fit(data, labels).predict_proba(data)
                            for data in (as_anndata(), FRAME))
    assert np.array_equal(of_anndata, of_frame)


def test_pandas_output_has_names_and_samples():
    table = quick().set_output(transform="pandas").fit_transform(FRAME)
    assert list(table.columns) == [f"sslencoder{number}" for number in range(8)] and table.index.equals(FRAME.index)


def test_settings_of_the_objective_reach_it():
    alone = quick(objective_settings={"agreement": 0.0}).fit_transform(FRAME)
    assert not np.array_equal(quick().fit_transform(FRAME), alone)


def test_a_checkpoint_makes_a_second_fit_instant(tmp_path):
    path = str(tmp_path/"c")
    want = quick(checkpoint=path).fit_transform(FRAME)
    assert np.array_equal(quick(checkpoint=path).fit_transform(FRAME), want)
    with pytest.raises(ValueError, match="another pretraining"): quick(checkpoint=path, epochs=3).fit(FRAME)


@pytest.mark.parametrize("setting, value, message", [
    ("method", "scraf", "scraf.*known are .*unmixing"), ("method", 3, "unknown method"), ("width", 0, "width"),
    ("depth", "two", "depth"), ("epochs", "ten", "epochs"), ("batch_size", 1, "batch_size"), ("dropout", 2, "dropout"),
    ("learning_rate", 0, "learning_rate"), ("objective_settings", {"temprature": 1}, "temprature.*known are"),
    ("objective_settings", "temperature", "objective_settings"), ("random_state", "seed", "seed")])
def test_a_setting_that_cannot_be_right_is_refused_by_name(setting, value, message):
    with pytest.raises(ValueError, match=message) as caught: quick(**{setting: value}).fit(FRAME)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value, message", [(np.nan, "NaN.*missing value in row 2, gene 'gene-4'"),
                                            (np.inf, "infinite value in row 2, gene 'gene-4'")])
def test_gaps_are_refused_by_row_and_gene(value, message):
    bad = FRAME.copy()
    bad.iloc[2, 4] = value
    for data in (bad, as_anndata(bad)) if np.isinf(value) else (bad,):
        with pytest.raises(ValueError, match=message): quick().fit(data)
        with pytest.raises(ValueError, match=message): quick().fit(FRAME).transform(data)


def test_a_gene_named_twice_is_refused():
    twice = FRAME.rename(columns={"gene-1": "gene-0"})
    with pytest.raises(ValueError, match="gene-0' twice"): quick().fit(twice)
    with pytest.raises(ValueError, match="gene-0' twice"): quick().fit(FRAME).align(twice)


def test_no_test_row_reaches_the_model():
    "Neither the scaler nor the weights know the rows that are only transformed."
    model = quick().fit(FRAME.iloc[:30])
    before = {name: value.clone() for name, value in model.encoder_.state_dict().items()}
    one = model.transform(FRAME.iloc[:30])
    model.transform(FRAME.iloc[30:]*1e6)
    assert all(torch.equal(value, before[name]) for name, value in model.encoder_.state_dict().items())
    assert np.array_equal(one, model.transform(FRAME.iloc[:30]))
    assert np.array_equal(model.scaler_.mean_, quick().fit(FRAME.iloc[:30]).scaler_.mean_)


# ---------------------------------------------------------------------------------------------- the recipe

@pytest.mark.parametrize("method", ["unmixing", "scarf", "vime", "byol"])
def test_what_is_left_open_is_the_objectives_own(method):
    model = SSLEncoder(method, epochs=1)
    before = model.get_params()
    model.fit(FRAME)
    kind = objectives()[method]
    own = known_settings(kind) | sizes_for(40, build(method, 17))
    assert {name: model.recipe_[name] for name in own} == own
    assert (model.recipe_["epochs"], model.recipe_["schedule"]) == (1, kind.paper_training.schedule)
    assert model.transform(FRAME).shape == (40, own["width"])
    assert model.get_params() == before == clone(model).get_params() and before["width"] is None


def test_without_a_method_it_is_unmixing_trained_as_in_the_study():
    model = SSLEncoder(epochs=2).fit(FRAME)
    objective, history = train_encoder("unmixing", model._scaled(FRAME.to_numpy()), epochs=2, progress=False,
                                       batch_size=16, seed=model.recipe_["seed"])
    weights = model.encoder_.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in objective.encoder.state_dict().items())
    pd.testing.assert_frame_equal(history, model.history_, check_exact=True)


@pytest.mark.parametrize("n_samples", [8, 142, 143, 145, 300, 568, 569, 10_000])
def test_an_epoch_of_the_recipe_has_eight_batches_unless_they_were_smaller_than_sixteen(n_samples):
    objective = build("unmixing", 17)
    (size,) = sizes_for(n_samples, objective).values()
    train, _ = hold_out(n_samples, 0.1, torch.Generator())
    assert size == 16 or len(batches(len(train), size, torch.Generator())) >= 8
    assert 16 <= size <= 64 and (size == 64 or len(train)/8 < size + 1)  # no smaller than it has to be


@pytest.mark.parametrize("method", ["scarf", "vime", "byol"])
def test_batches_of_the_papers_objectives_stay_as_published(method):
    assert sizes_for(20, build(method, 17)) == {"batch_size": objectives()[method].paper_training.batch_size}


@pytest.mark.parametrize("method", ["unmixing", "scarf"])
def test_few_samples_are_warned_of_at_fit_and_only_there(monkeypatch, method):
    monkeypatch.setattr("ssl_expr.estimator.FEW_SAMPLES", 41)
    with pytest.warns(FewSamplesWarning, match="are 40 samples .* on fewer than 1,000 .*fit_baseline") as caught:
        model = quick(method=method).fit(FRAME)
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    monkeypatch.setattr("ssl_expr.estimator.FEW_SAMPLES", 40)
    with warnings.catch_warnings(action="error"): quick(method=method).fit(FRAME)
    monkeypatch.setattr("ssl_expr.estimator.FEW_SAMPLES", 41)
    with warnings.catch_warnings(action="error"): model.transform(FRAME)


# ---------------------------------------------------------------------------------------------- alignment

def test_shuffled_and_surplus_genes_change_nothing():
    model = quick().fit(as_anndata())
    want = model.transform(FRAME)
    shuffled = FRAME.assign(stranger=1.)[["stranger", *GENES[::-1]]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(model.transform(as_anndata(shuffled)), want)
    aligned, coverage = model.align(shuffled)
    assert np.array_equal(model.transform(aligned), want) and aligned.index.equals(FRAME.index)
    assert (coverage.n_wanted, coverage.n_found, coverage.share, coverage.missing) == (17, 17, 1.0, ())


def test_missing_genes_take_their_training_mean_which_is_zero_for_the_encoder():
    model = quick().fit(FRAME)
    aligned, coverage = model.align(FRAME.drop(columns=["gene-2", "gene-9"]))
    assert coverage.missing == ("gene-2", "gene-9") and coverage.share == 15/17
    assert np.allclose(aligned[["gene-2", "gene-9"]], FRAME[["gene-2", "gene-9"]].mean())
    scaled = model._scaled(aligned.to_numpy())
    assert (scaled[:, [2, 9]] == 0).all() and np.array_equal(np.delete(scaled, [2, 9], 1),
                                                              np.delete(model._scaled(FRAME.to_numpy()), [2, 9], 1))
    with pytest.warns(UserWarning, match=r"15 of 17 genes found \(88.2%\)"):
        embedded = model.transform(as_anndata(FRAME.drop(columns=["gene-2", "gene-9"])))
    assert np.array_equal(embedded, model.transform(aligned))


def test_no_gene_in_common_is_refused():
    with pytest.raises(ValueError, match="no gene in common"):
        quick().fit(FRAME).transform(as_anndata(FRAME.add_prefix("ENSG")))


def test_a_frame_with_other_columns_is_refused_with_the_remedy():
    for other in (FRAME[GENES[::-1]], FRAME.drop(columns="gene-2"), FRAME.add_prefix("x")):
        with pytest.raises(ValueError, match="align"): quick().fit(FRAME).transform(other)


def test_alignment_needs_names_on_both_sides():
    with pytest.raises(ValueError, match="ndarray has none"): quick().fit(FRAME).align(FRAME.to_numpy())
    for use in (SSLEncoder.align, SSLEncoder.transform):
        with pytest.raises(ValueError, match="fitted on an array without gene names"):
            use(quick().fit(FRAME.to_numpy()), as_anndata())


def test_other_units_are_refused_and_unknown_ones_are_not():
    model = quick().fit(as_anndata(units="log2(TPM+1)"))
    with pytest.raises(ValueError, match=r"trained on log2\(TPM\+1\) and these data are counts"):
        model.transform(as_anndata(units="counts"))
    with pytest.warns(UserWarning, match=r"not stated, those of the model log2\(TPM\+1\)"):
        assert np.array_equal(model.transform(as_anndata(units=None)), model.transform(FRAME))


def test_data_of_which_too_few_genes_are_known_are_refused_unless_one_insists():
    model, few = quick().fit(FRAME), FRAME.iloc[:, :5].rename(columns=lambda name: name.replace("gene-4", "gene-99"))
    for use in (model.align, lambda frame: model.transform(as_anndata(frame, "log2(TPM+1)"))):
        with pytest.raises(ValueError, match="Only 4 of 17 genes found.* the model wants gene-4"), \
             warnings.catch_warnings():
            warnings.simplefilter("ignore")
            use(few)
    assert model.align(few, fewest=0)[1].n_found == 4


def test_counts_in_a_table_are_told_from_logarithms():
    model = quick().fit(as_anndata(COUNTS, "counts"))
    with pytest.raises(ValueError, match=r"trained on counts on a log scale.* uns\['units'\] = 'counts'"):
        model.transform(COUNTS*1000)
    with pytest.warns(UserWarning, match="as large as counts"): quick().fit(COUNTS*1000)


def test_genes_in_rows_and_labels_among_genes_are_refused():
    turned = FRAME.set_axis([f"ENSG{n:011d}" for n in range(FRAME.shape[1])], axis=1).T
    with pytest.raises(ValueError, match="rows of X are called like genes .ENSG00000000000.* give X.T"):
        quick().fit(turned)
    with pytest.raises(ValueError, match="Column 'subtype' of X holds more than numbers"):
        quick().fit(FRAME.assign(subtype="CIN"))


def test_text_in_a_table_to_align_is_refused():
    with pytest.raises(ValueError, match="numbers"):
        align_table(FRAME.astype(str).assign(**{"gene-0": "high"}), pd.Index(GENES), np.zeros(17))


# ---------------------------------------------------------------------------------------------- units and gaps

COUNTS = pd.DataFrame(np.random.default_rng(1).poisson(50, (40, 17)).astype(float), FRAME.index, GENES)


@pytest.mark.parametrize("units, by_hand", [
    ("counts", lambda table: np.log2(table.div(table.sum(axis=1), axis=0)*1e6 + 1)),
    ("TPM", lambda table: np.log2(table + 1)), ("FPKM", lambda table: np.log2(table + 1)),
    ("log2(TPM+1)", lambda table: table)])
def test_an_anndata_is_brought_to_a_log_scale_as_by_hand(tmp_path, units, by_hand):
    model, plain = quick().fit(as_anndata(COUNTS, units)), quick().fit(by_hand(COUNTS))
    np.testing.assert_allclose(model.scaler_.mean_, plain.scaler_.mean_, rtol=1e-12)
    np.testing.assert_allclose(model.history_, plain.history_, rtol=1e-4)
    want = plain.transform(by_hand(COUNTS))
    model.save(tmp_path)
    for one in (model, SSLEncoder.load(tmp_path)):
        np.testing.assert_allclose(one.transform(as_anndata(COUNTS, units)), want, rtol=1e-3, atol=1e-5)
    assert np.array_equal(model.transform(model.align(as_anndata(COUNTS, units))[0]),
                          model.transform(as_anndata(COUNTS, units)))


def test_fractions_without_units_are_refused_by_a_model_of_counts():
    model = quick().fit(as_anndata(COUNTS, "counts"))
    with pytest.raises(ValueError, match="hold fractions and do not state units"):
        model.transform(as_anndata(np.log2(COUNTS + 1), None))
    with pytest.warns(UserWarning, match="not stated"): model.transform(as_anndata(COUNTS, None))


def test_counts_equal_the_steps_of_preprocess_to_the_last_bit():
    table = Log2().fit_transform(DepthNormalise().fit_transform(COUNTS.to_numpy()))
    logged = pd.DataFrame(table, COUNTS.index, GENES)
    assert np.array_equal(quick().fit_transform(as_anndata(COUNTS, "counts")), quick().fit_transform(logged))


def test_the_depth_of_a_sample_does_not_change_its_embedding():
    model = quick().fit(as_anndata(COUNTS, "counts"))
    deeper = COUNTS.mul(np.random.default_rng(2).integers(1, 50, 40), axis=0)
    want = model.transform(as_anndata(COUNTS, "counts"))
    np.testing.assert_allclose(model.transform(as_anndata(deeper, "counts")), want, rtol=1e-4, atol=1e-5)
    alone = model.transform(as_anndata(COUNTS.iloc[[3]], "counts"))
    np.testing.assert_allclose(alone, want[[3]], rtol=1e-4, atol=1e-5)


def test_surplus_genes_do_not_count_to_the_depth():
    model = quick().fit(as_anndata(COUNTS, "counts"))
    shuffled = COUNTS.assign(stranger=1e4)[["stranger", *GENES[::-1]]]
    want = model.transform(as_anndata(COUNTS, "counts"))
    assert np.array_equal(model.transform(as_anndata(shuffled, "counts")), want)


@pytest.mark.parametrize("units, stated", [(None, "are not stated"), ("beads", "are 'beads', which are unknown")])
def test_unknown_units_are_taken_as_they_are_with_one_warning(units, stated):
    with pytest.warns(UserWarning, match=stated) as caught: model = quick().fit(as_anndata(units=units))
    assert len(caught) == 1
    with warnings.catch_warnings(action="error"):
        assert np.array_equal(model.transform(as_anndata(units=units)), quick().fit_transform(FRAME))


def test_a_model_of_unknown_units_says_so_when_it_is_given_counts():
    with pytest.warns(UserWarning, match="these data are counts, those of the model not known") as caught:
        quick().fit(FRAME).transform(as_anndata(units="counts"))
    assert len(caught) == 1


@pytest.mark.parametrize("trained, theirs", [("counts", "TPM"), ("TPM", "counts"), ("counts", "log2(TPM+1)")])
def test_other_units_than_those_of_the_training_data_are_refused(trained, theirs):
    with pytest.raises(ValueError, match="trained on .* and these data are"):
        quick().fit(as_anndata(COUNTS, trained)).transform(as_anndata(COUNTS, theirs))


def test_negative_counts_and_samples_without_reads_are_refused():
    for value, message in ((-1., "negative value"), (0., "no read at all")):
        bad = COUNTS.copy()
        bad.iloc[2] = value
        with pytest.raises(ValueError, match=message): quick().fit(as_anndata(bad, "counts"))
        with pytest.raises(ValueError, match=message):
            quick().fit(as_anndata(COUNTS, "counts")).transform(as_anndata(bad, "counts"))


@pytest.mark.parametrize("units", ["counts", "log2(TPM+1)"])
def test_missing_values_of_an_anndata_take_the_training_mean(tmp_path, units):
    gappy = COUNTS.copy()
    gappy.iloc[:10, 3] = np.nan
    gappy.iloc[5, 7] = np.nan
    with pytest.warns(UserWarning, match=r"11 of 680 entries are missing \(1.6%\)") as caught:
        model = quick().fit(as_anndata(gappy, units))
    assert len(caught) == 1
    if units != "counts": np.testing.assert_allclose(model.scaler_.mean_, gappy.mean(), rtol=1e-12)
    with pytest.warns(UserWarning, match="11 of 680 entries are missing"):
        aligned, _ = model.align(as_anndata(gappy, units))
    assert (model._scaled(aligned.to_numpy())[gappy.isna().to_numpy()] == 0).all()
    model.save(tmp_path)
    for one in (model, SSLEncoder.load(tmp_path)):
        with pytest.warns(UserWarning, match="11 of 680 entries are missing") as caught:
            assert np.array_equal(one.transform(as_anndata(gappy, units)), model.transform(aligned))
        assert len(caught) == 1


def test_genes_that_are_constant_or_never_measured_say_nothing():
    odd = FRAME.assign(**{"gene-1": np.nan, "gene-2": 3.})
    with pytest.warns(UserWarning, match="40 of 680 entries"): model = quick().fit(as_anndata(odd))
    assert np.isfinite(model.history_[["loss", "held_out_loss"]]).all(axis=None)
    with warnings.catch_warnings(action="ignore"): want = model.transform(as_anndata(odd))
    other = odd.assign(**{"gene-1": 7., "gene-2": 8.})
    assert np.isfinite(want).all() and np.array_equal(model.transform(as_anndata(other)), want)


def test_public_tumours_with_gaps_are_embedded():
    adata = load("coadread")
    gaps = np.isnan(adata.X)
    rows, genes = np.argsort(-gaps.sum(1), kind="stable")[:30], np.argsort(-gaps.sum(0), kind="stable")[:40]
    rows = np.concatenate([rows, np.flatnonzero(~gaps.any(1))[:30]])
    part = adata[rows, np.union1d(genes, np.arange(100, 140))].copy()
    n_missing = int(np.isnan(part.X).sum())
    with pytest.warns(UserWarning, match=f"{n_missing} of {part.X.size} entries are missing"):
        embedded = quick().fit_transform(part)
    assert n_missing > 0 and embedded.shape == (60, 8) and np.isfinite(embedded).all()


# ---------------------------------------------------------------------------------------------- on disk

@pytest.mark.parametrize("data", [FRAME, FRAME.to_numpy(), as_anndata()])
def test_a_loaded_model_gives_the_same_bits_and_knows_the_same(tmp_path, data):
    model = quick(random_state=np.random.RandomState(0), objective_settings={"agreement": 0.5}).fit(data)
    model.save(tmp_path/"new"/"model")
    again = SSLEncoder.load(tmp_path/"new"/"model")
    assert np.array_equal(again.transform(data), model.transform(data))
    assert again.get_params() == model.get_params() | {"random_state": None}
    assert again.units_ == model.units_ and again.n_samples_ == 40 and again.n_features_in_ == 17
    assert again.recipe_ == model.recipe_
    assert hasattr(again, "feature_names_in_") == hasattr(model, "feature_names_in_")
    pd.testing.assert_frame_equal(again.history_, model.history_, check_exact=True)
    again.save(tmp_path/"copy")
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path/"copy"/name).read_bytes() == (tmp_path/"new"/"model"/name).read_bytes()


def test_a_loaded_model_works_in_a_new_process(tmp_path):
    model = quick().fit(FRAME)
    model.save(tmp_path)
    FRAME.to_csv(tmp_path/"x.csv")
    code = ("import sys, pandas as pd, numpy as np; from ssl_expr.estimator import SSLEncoder; folder = sys.argv[1]; "
            "table = pd.read_csv(folder + '/x.csv', index_col=0); "
            "np.save(folder + '/z.npy', SSLEncoder.load(folder).transform(table))")
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert np.array_equal(np.load(tmp_path/"z.npy"), model.transform(pd.read_csv(tmp_path/"x.csv", index_col=0)))


def test_the_json_tells_what_the_model_is(tmp_path):
    quick().fit(as_anndata()).save(tmp_path)
    card = json.loads((tmp_path/"model.json").read_text())
    assert card["genes"] == GENES and card["settings"]["method"] == "unmixing"
    trained = card["trained"]
    assert (trained["samples"], trained["genes"], trained["units"]) == (40, 17, "log2(TPM+1)")
    assert trained["recipe"]["agreement"] == 0.2 and trained["recipe"]["schedule"] == "one-cycle"
    assert trained["steps"] == ["ZScore"] and trained["last epoch"]["epoch"] == 2 and "torch" in card["versions"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_the_json_tells_which_steps_were_applied(tmp_path):
    quick().fit(as_anndata(COUNTS, "counts")).save(tmp_path)
    assert json.loads((tmp_path/"model.json").read_text())["trained"]["steps"] == ["DepthNormalise", "Log2", "ZScore"]


def break_json(change):
    def apply(folder):
        card = json.loads((folder/"model.json").read_text())
        change(card)
        (folder/"model.json").write_text(json.dumps(card))
    return apply


def cut(name): return lambda folder: (folder/name).write_bytes((folder/name).read_bytes()[:-9])


@pytest.mark.parametrize("harm, error, message", [
    (cut("model.json"), ValueError, "model.json is damaged"),
    (cut("model.safetensors"), ValueError, "model.safetensors is damaged"),
    (lambda folder: (folder/"model.json").unlink(), FileNotFoundError, "model.json does not exist"),
    (lambda folder: (folder/"model.safetensors").unlink(), FileNotFoundError, "model.safetensors does not exist"),
    (lambda folder: shutil.rmtree(folder), FileNotFoundError, "does not exist"),
    (lambda folder: save_tensors(folder/"model.safetensors", {"a": torch.ones(1)}, {}), ValueError, "different models"),
    (break_json(lambda card: card.update(format="x")), ValueError, "save the model again"),
    (break_json(lambda card: card.pop("encoder")), ValueError, "damaged"),
    (break_json(lambda card: card["encoder"].update(width=9)), ValueError, "damaged"),
    (break_json(lambda card: card["encoder"].update(width="8")), ValueError, "damaged"),
    (break_json(lambda card: card["genes"].pop()), ValueError, "damaged"),
    (break_json(lambda card: card.update(genes=7)), ValueError, "damaged"),
    (break_json(lambda card: card["settings"].update(surprise=1)), ValueError, "damaged"),
    (break_json(lambda card: card["trained"].update(steps=["Sqrt", "ZScore"])), ValueError, "damaged"),
    (break_json(lambda card: card.update(trained=None)), ValueError, "damaged")])
def test_a_folder_that_holds_no_whole_model_is_refused_in_one_sentence(tmp_path, harm, error, message):
    quick().fit(FRAME).save(tmp_path/"m")
    harm(tmp_path/"m")
    with pytest.raises(error, match=message) as caught: SSLEncoder.load(tmp_path/"m")
    assert "\n" not in str(caught.value)


def test_files_of_two_models_cannot_be_mixed(tmp_path):
    for seed in (0, 1): quick(random_state=seed).fit(FRAME).save(tmp_path/str(seed))
    shutil.copy(tmp_path/"0"/"model.json", tmp_path/"1")
    with pytest.raises(ValueError, match="belong to different models"): SSLEncoder.load(tmp_path/"1")


def test_a_model_that_is_not_fitted_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="not fitted"): quick().save(tmp_path/"m")
    assert not (tmp_path/"m").exists()


def test_a_model_saved_before_recipes_were_kept_is_read_and_saved_again(tmp_path):
    model = quick(method="scarf", depth=2, dropout=0.2).fit(FRAME)
    model.save(tmp_path/"old")
    break_json(lambda card: card["trained"].pop("recipe"))(tmp_path/"old")
    old = SSLEncoder.load(tmp_path/"old")
    assert old.recipe_ is None and np.array_equal(old.transform(FRAME), model.transform(FRAME))
    old.save(tmp_path/"new")
    assert np.array_equal(SSLEncoder.load(tmp_path/"new").transform(FRAME), model.transform(FRAME))


# ---------------------------------------------------------------------------------------------- models of the package

PACKAGED = Path(ssl_expr.estimator.__file__).parent/"models"/"tcga-mirna"


@pytest.fixture(scope="module")
def shipped() -> SSLEncoder: return pretrained()


def counts_for(model: SSLEncoder) -> anndata.AnnData:
    "Made-up counts of five samples, for the genes of a model that was trained on counts."
    rates = np.tile(2**model.scaler_.mean_ - 1, (5, 1))
    return anndata.AnnData(pd.DataFrame(np.random.default_rng(0).poisson(rates).astype("float32"),
                                        columns=model.feature_names_in_), uns={"units": "counts"})


def test_the_model_of_the_package_finds_its_genes_by_name(shipped):
    adata = counts_for(shipped)
    want = shipped.transform(adata)
    assert want.shape == (5, shipped.recipe_["width"]) and np.isfinite(want).all() and want.std(0).max() > 0
    assert np.array_equal(shipped.transform(adata[:, ::-1].copy()), want)
    quiet = np.sort(np.argsort(adata.X.sum(0), kind="stable")[30:])  # without the genes that have fewest reads
    with pytest.warns(UserWarning, match=f"{len(quiet)} of {adata.n_vars} genes found"):
        fewer = shipped.transform(adata[:, quiet[::-1]].copy())
    assert not np.array_equal(fewer, want) and np.corrcoef(fewer.ravel(), want.ravel())[0, 1] > 0.9


def test_embed_takes_a_model_of_the_package_by_name_and_says_how_many_genes_it_found(shipped, tmp_path, capsys):
    adata = counts_for(shipped)
    fewer = adata[:, :-30].copy()
    for name, data in (("all", adata), ("fewer", fewer)):
        data.to_df().set_axis([f"s{n}" for n in range(5)]).to_csv(tmp_path/f"{name}.csv")
        assert main(["embed", "tcga-mirna", str(tmp_path/f"{name}.csv"), str(tmp_path/f"{name}-out.csv")]) == 0
    told = capsys.readouterr().out
    assert f"{adata.n_vars} of {adata.n_vars} genes found (100.0%)\n" in told
    assert f"{fewer.n_vars} of {adata.n_vars} genes found" in told and "missing ones take their training mean" in told
    found = pd.read_csv(tmp_path/"all-out.csv", index_col=0)
    assert list(found.index) == [f"s{n}" for n in range(5)]
    np.testing.assert_allclose(found, shipped.transform(adata), rtol=1e-5)


def test_a_corrupt_copy_of_the_model_of_the_package_is_refused(tmp_path):
    for name in ("model.json", "model.safetensors"): shutil.copy(PACKAGED/name, tmp_path)
    content = bytearray((tmp_path/"model.safetensors").read_bytes())
    content[-1000] ^= 1
    (tmp_path/"model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="damaged"): SSLEncoder.load(tmp_path)
    shutil.copy(PACKAGED/"model.safetensors", tmp_path)
    break_json(lambda card: card.update(sha256="0"*64))(tmp_path)
    with pytest.raises(ValueError, match="belong to different models"): SSLEncoder.load(tmp_path)


def test_the_model_card_says_what_the_model_says(shipped):
    card = (PACKAGED/"README.md").read_text(encoding="utf-8")
    assert json.loads((PACKAGED/"model.json").read_text())["sha256"] in card
    for number in (shipped.n_samples_, shipped.n_features_in_): assert f"{number:,}" in card
    for name, value in shipped.recipe_.items(): assert f"| {name} | {value} |" in card, name


@pytest.mark.parametrize("name", ["tcga-mrna", "", "../models/tcga-mirna", "TCGA-miRNA"])
def test_a_model_that_does_not_come_with_the_package_is_answered_with_those_that_do(name):
    with pytest.raises(ValueError, match="comes with ssl_expr: use 'tcga-mirna'"): pretrained(name)
