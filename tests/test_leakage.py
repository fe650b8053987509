"""The scramble test: rewrite every held-out row with noise; nothing that was fitted may move."""
import numpy as np
import pytest
import torch

from ssl_expr.baselines import fit_baseline
from ssl_expr.data import toy
from ssl_expr.finetune import FineTuning, finetune
from ssl_expr.nets import embed, seeded
from ssl_expr.objective import build
from ssl_expr.prepare import prepare
from ssl_expr.pretrain import pretrain


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "A data set with two samples of each patient, and its copy in which the held-out patients' values are noise."
    folder = tmp_path_factory.mktemp("scramble")
    original = toy(n_samples=240, n_genes=80, samples_per_patient=2, seed=3)
    original.write_h5ad(folder/"original.h5ad")
    split = prepare(str(folder/"original.h5ad")).split
    held_out = np.concatenate([split.validation, split.test])
    patients = original.obs["patient"].to_numpy()
    rows = np.isin(patients, patients[held_out])
    scrambled = original.copy()
    scrambled.X[rows] = np.random.default_rng(0).poisson(40, scrambled.X[rows].shape)
    scrambled.write_h5ad(folder/"scrambled.h5ad")
    return folder/"original.h5ad", folder/"scrambled.h5ad"


def fitted(path, protocol, method="scarf"):
    "Everything that a run fits: genes, scaling (seen through the training rows), weights, training embeddings."
    data = prepare(str(path), protocol=protocol, genes=50)
    with seeded(0): objective = build(method, len(data.genes), width=16, depth=2)
    history = pretrain(objective, data.X[data.split.pretrain], epochs=2, batch_size=32, seed=0, progress=False)
    training_rows = torch.from_numpy(data.split.pretrain)
    return dict(genes=data.genes, matrix=data.X[training_rows], history=history.to_numpy(),
                weights=torch.cat([value.flatten().double() for value in objective.state_dict().values()]),
                embedding=embed(objective.encoder, data.X[training_rows])), data, objective


def equal(a, b): return a == b if isinstance(a, list) else np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True)


@pytest.mark.parametrize("method", ["scarf", "vime", "byol"])
def test_noise_in_held_out_patients_moves_nothing_that_was_fitted(files, method):
    original, scrambled = (fitted(path, "strict", method)[0] for path in files)
    for name in original: assert equal(original[name], scrambled[name]), name


def test_the_test_catches_statistics_fitted_on_all_samples(files):
    original, scrambled = (fitted(path, "paper")[0] for path in files)
    assert not equal(original["matrix"], scrambled["matrix"])
    assert not equal(original["weights"], scrambled["weights"])


def test_the_test_catches_a_pretraining_that_saw_the_test_patients(files):
    def cheat(path):
        data = prepare(str(path), genes=50)
        with seeded(0): objective = build("scarf", len(data.genes), width=16, depth=2)
        pretrain(objective, data.X, epochs=2, batch_size=32, seed=0, progress=False)
        return torch.cat([value.flatten().double() for value in objective.state_dict().values()])
    assert not equal(*map(cheat, files))


def test_noise_in_test_rows_moves_no_prediction_of_another_sample(files):
    "Fine-tuned nets and baselines: only the rewritten row's own prediction may change."
    _, data, objective = fitted(files[0], "strict")
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
