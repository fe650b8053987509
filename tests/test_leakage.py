"""The scramble test: rewrite every held-out row with noise; nothing that was fitted may move."""
import numpy as np
import pytest
import torch
from anndata import read_h5ad

from ssl_expr import preprocess
from ssl_expr.baselines import fit_baseline
from ssl_expr.data import toy
from ssl_expr.finetune import FineTuning, finetune
from ssl_expr.nets import embed, seeded
from ssl_expr.objective import build, objectives
from ssl_expr.prepare import SHORTCUTS, prepare
from ssl_expr.pretrain import pretrain
from ssl_expr.splits import fitting_rows, make_split

TRANSFER = dict(pretrain_on={"batch": ["batch-0"]}, learn_on={"batch": ["batch-1"]})
ROLES = {"every row in both roles": {}, "transfer": TRANSFER, "learned on a part": dict(learn_on=TRANSFER["learn_on"]),
         "pretrained on a part": dict(pretrain_on=TRANSFER["pretrain_on"])}


@pytest.fixture(scope="module")
def scramble(tmp_path_factory):
    "Writes a data set with two samples of each patient, and its copy in which the held-out patients' values are noise."
    folder = tmp_path_factory.mktemp("scramble")
    original = toy(n_samples=240, n_genes=80, samples_per_patient=2, seed=3)
    original.write_h5ad(folder/"original.h5ad")

    def files(whole_patients=True, **options):
        data = prepare(str(folder/"original.h5ad"), **options)
        held_out = np.concatenate([data.split.validation, data.split.test])
        if whole_patients: rows = original.obs["patient"].isin(np.array(data.patients)[held_out]).to_numpy()
        else: rows = original.obs_names.isin(np.array(data.samples)[held_out])
        scrambled = original.copy()
        scrambled.X[rows] = np.random.default_rng(0).poisson(40, scrambled.X[rows].shape)
        scrambled.write_h5ad(folder/"scrambled.h5ad")
        return folder/"original.h5ad", folder/"scrambled.h5ad"
    return files


@pytest.fixture
def files(scramble): return scramble()


def fitted(path, method="scarf", **options):
    "Everything that a run fits: genes, scaling (seen through the training rows), weights, training embeddings."
    data = prepare(str(path), genes=50, **options)
    with seeded(0): objective = build(method, len(data.genes), width=16, depth=2)
    history = pretrain(objective, data.X[data.split.pretrain], epochs=2, batch_size=32, seed=0, progress=False)
    training_rows = torch.from_numpy(np.union1d(data.split.pretrain, data.split.train))
    return dict(genes=data.genes, matrix=data.X[training_rows], history=history.to_numpy(),
                weights=torch.cat([value.flatten().double() for value in objective.state_dict().values()]),
                embedding=embed(objective.encoder, data.X[training_rows])), data, objective


def equal(a, b): return a == b if isinstance(a, list) else np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True)


def moved(files, **options):
    "Names of what was fitted that the noise in the second file has moved."
    original, scrambled = (fitted(path, **options)[0] for path in files)
    return {name for name in original if not equal(original[name], scrambled[name])}


@pytest.mark.parametrize("method", sorted(objectives()))
def test_noise_in_held_out_patients_moves_nothing_that_was_fitted(files, method):
    assert moved(files, method=method) == set()


@pytest.mark.parametrize("options", ROLES.values(), ids=ROLES)
def test_noise_in_held_out_patients_moves_nothing_whatever_the_roles(scramble, options):
    "Also where a held-out patient has a sample on the side that is pretrained on."
    data = prepare("toy", **options)
    assert len(data.split.pretrain) and len(data.split.test)
    assert moved(scramble(**options), **options) == set()


@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize("options", [{}, TRANSFER], ids=["every row in both roles", "transfer"])
def test_the_test_catches_each_shortcut(scramble, shortcut, options):
    options = options | dict(shortcuts=[shortcut])
    assert {"matrix", "weights", "history", "embedding"} <= moved(scramble(**options), **options)


def test_a_shortcut_is_one_leak_and_not_the_other(scramble):
    "By sample, held-out rows are still unseen; fitted on everything, patients are still apart."
    options = dict(shortcuts=["split-by-sample"])
    assert moved(scramble(whole_patients=False, **options), **options) == set()
    original, _ = scramble()
    honest, by_sample, everything = (prepare(str(original), shortcuts=names)
                                     for names in ([], ["split-by-sample"], ["fit-on-everything"]))
    def straddle(data):
        held_out, others = (set(np.array(data.patients)[rows]) for rows in (data.split.test, data.split.pretrain))
        return bool(held_out & others)
    assert [straddle(data) for data in (honest, by_sample, everything)] == [False, True, False]
    for part, rows in vars(honest.split).items(): np.testing.assert_array_equal(rows, vars(everything.split)[part])


def test_the_test_catches_statistics_fitted_on_all_samples(scramble):
    assert {"matrix", "weights"} <= moved(scramble(), protocol="paper")


def test_the_test_catches_a_pretraining_that_saw_the_test_patients(files):
    def cheat(path):
        data = prepare(str(path), genes=50)
        with seeded(0): objective = build("scarf", len(data.genes), width=16, depth=2)
        pretrain(objective, data.X, epochs=2, batch_size=32, seed=0, progress=False)
        return torch.cat([value.flatten().double() for value in objective.state_dict().values()])
    assert not equal(*map(cheat, files))


def test_noise_in_test_rows_moves_no_prediction_of_another_sample(files):
    "Fine-tuned nets and baselines: only the rewritten row's own prediction may change."
    _, data, objective = fitted(files[0])
    changed = data.X.clone()
    changed[data.split.test[0]] = torch.randn(changed.shape[1], generator=torch.Generator().manual_seed(1))
    settings = FineTuning(epochs=3, patience=2)
    for predict in (lambda X: finetune(objective.encoder, X, data.y, data.split, [1.0], 1, "unfrozen", 0, settings),
                    lambda X: finetune(objective.encoder, X, data.y, data.split, [1.0], 1, "frozen", 0, settings),
                    lambda X: fit_baseline("logistic-pca", X.numpy(), data.y, data.split, [1.0], 1, 0)):
        before, after = predict(data.X), predict(changed)
        others = before["sample"] != data.split.test[0]
        probabilities = [name for name in before if name[0] == "p" and name[1:].isdigit()]
        np.testing.assert_allclose(before.loc[others, probabilities], after.loc[others, probabilities], atol=1e-6)
        assert not np.allclose(before.loc[~others, probabilities], after.loc[~others, probabilities])


@pytest.mark.parametrize("mode", ["frozen", "unfrozen"])
def test_only_an_epoch_chosen_by_the_test_score_lets_other_test_rows_move_a_prediction(files, mode):
    _, data, objective = fitted(files[0])
    changed = data.X.clone()
    first, others = data.split.test[0], data.split.test[1:]
    changed[others] = torch.randn(len(others), changed.shape[1], generator=torch.Generator().manual_seed(1))
    def predictions(X, select_on):
        settings = FineTuning(learning_rate=0.01, epochs=15, patience=15, select_on=select_on)
        frame = finetune(objective.encoder, X, data.y, data.split, [0.5], 3, mode, 0, settings)
        return frame.loc[frame["sample"] == first, ["p0", "p1", "p2"]].to_numpy()
    def unmoved(select_on):
        return np.allclose(predictions(data.X, select_on), predictions(changed, select_on), atol=1e-6)
    assert unmoved("validation") and not unmoved("test")


# ------------------------------------------------ quantile normalisation, and genes with missing values kept

BOTH_STEPS = dict(quantile=True, max_missing=1.0, genes=50)


@pytest.fixture
def steps(monkeypatch):
    "The pipelines that `prepare` has fitted, one after the other."
    made, make = [], preprocess.preprocessor
    def remember(*given, **options):
        made.append(make(*given, **options))
        return made[-1]
    monkeypatch.setattr(preprocess, "preprocessor", remember)
    return made


@pytest.fixture(scope="module")
def gappy(tmp_path_factory):
    """A data set in TPM with gaps and one gene that held-out patients alone have; its copy, in which every sample of
    these but the first test sample has other values and other gaps; and which samples that are."""
    folder = tmp_path_factory.mktemp("gappy")
    original, rng = toy(n_samples=240, n_genes=80, samples_per_patient=2, seed=3), np.random.default_rng(5)
    patients, split = original.obs["patient"].to_numpy(), make_split(original.obs["label"], original.obs["patient"])
    rows = np.isin(patients, patients[np.concatenate([split.validation, split.test])])
    original.uns["units"] = "TPM"
    original.X = (original.X + rng.random(original.shape)).astype(np.float32)   # no ties
    original.X[rng.random(original.shape) < 0.15] = np.nan
    original.X[:, 7] = np.where(rows, np.arange(len(rows)), np.nan)
    rows[split.test[0]] = False
    changed = original.copy()
    changed.X[rows] = rng.gamma(0.5, 900, changed.X[rows].shape)
    changed.X[np.ix_(rows, np.arange(0, 80, 3))] = np.nan
    for name, adata in (("original", original), ("changed", changed)): adata.write_h5ad(folder/f"{name}.h5ad")
    return folder/"original.h5ad", folder/"changed.h5ad", rows


def learned(pipeline):
    "Everything that its steps have learned, by step and name."
    return {f"{name}.{key}": value for name, step in pipeline.steps for key, value in vars(step).items()
            if key.endswith("_") and isinstance(value, np.ndarray)}


def test_other_values_and_gaps_in_held_out_patients_move_nothing_that_both_steps_learn(gappy, steps):
    assert moved(gappy[:2], quantile=True, max_missing=1.0) == set()
    before, after = map(learned, steps)
    assert {"quantile.reference_", "fill.mean_", "scale.mean_", "scale.scale_", "genes.kept_", "top.kept_"} <= {*before}
    for name, value in before.items(): np.testing.assert_array_equal(value, after[name], err_msg=name)


def test_with_both_steps_a_row_changes_only_where_its_own_values_do(gappy):
    "Also a test row, among test rows that are all rewritten."
    original, changed, rows = gappy
    before, after = (prepare(str(path), **BOTH_STEPS) for path in (original, changed))
    test = before.split.test
    assert not rows[test[0]] and rows[test[1:]].all()
    np.testing.assert_array_equal((before.X != after.X).any(1).numpy(), rows)
    assert before.genes == after.genes and "gene-0007" not in before.genes   # no training row has it


def test_the_test_catches_both_steps_fitted_on_everything(gappy, steps):
    for path in gappy[:2]: prepare(str(path), **BOTH_STEPS, shortcuts=["fit-on-everything"])
    before, after = map(learned, steps)
    assert all(before[name].shape != after[name].shape or not np.allclose(before[name], after[name], equal_nan=True)
               for name in ("quantile.reference_", "fill.mean_", "scale.mean_", "scale.scale_"))


def test_test_rows_with_both_steps_are_worked_out_each_from_itself_and_the_training_rows(gappy):
    "Gaps become training means, ranks become values of the mean training sample, then clipped z-scores, all by hand."
    data = prepare(str(gappy[0]), **BOTH_STEPS)
    logs = np.log2(read_h5ad(gappy[0]).X.astype(float) + 1)
    training, test = logs[fitting_rows(data.split)], logs[data.split.test]
    measured = ~np.isnan(training).all(0)
    means = np.nanmean(training[:, measured], 0)
    training, test = (np.where(np.isnan(rows[:, measured]), means, rows[:, measured]) for rows in (training, test))
    reference = np.sort(training, 1).mean(0)
    training, test = (reference[rows.argsort(1).argsort(1)] for rows in (training, test))
    top = np.sort(np.argsort(-training.var(0))[:50])
    training, test = training[:, top], test[:, top]
    clipped = np.clip(test, training.min(0), training.max(0))
    assert (clipped != test).any() and np.isnan(logs[data.split.test]).any()
    np.testing.assert_allclose(data.X[data.split.test], (clipped - training.mean(0))/training.std(0), atol=1e-4)
