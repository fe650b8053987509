"""Fine-tuning: compiled heads against a plain loop, early stopping, label budgets, randomness, and leakage."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ssl_expr import finetune as module
from ssl_expr.finetune import (
    FineTuning,
    batch_sizes,
    check_labels,
    finetune,
    fresh_encoder,
    new_head,
    plan_runs,
    train_head,
    train_whole,
    with_ones,
)
from ssl_expr.nets import Encoder, embed, seeded
from ssl_expr.splits import Split

N, G, C = 130, 30, 3
FRACTIONS = [0.1, 0.45, 1.0]
FAST = FineTuning(learning_rate=3e-3, epochs=6, patience=2)


@pytest.fixture(scope="module")
def problem():
    """Classes of 70, 18 and 12 %; a fifth of the pretraining rows has no label."""
    rng = np.random.default_rng(0)
    y = rng.choice(C, N, p=[0.7, 0.18, 0.12])
    X = rng.normal(size=(N, G)).astype("float32")
    X[:, :5] += y[:, None]
    rows = rng.permutation(N)
    split = Split(rows[:85], rows[15:85], rows[85:105], rows[105:])
    y[rows[:15]] = -1
    return X, y, split


def encoder(seed=0):
    with seeded(seed):
        return Encoder(G, width=16, depth=2)


def one_by_one(Z, y, run, settings):
    """A head as anybody would train it: torch's own optimiser, one small step after the other."""
    head = new_head(Z.shape[1], C, run.seed).to(Z.dtype)
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.SGD
    optimizer = kind(head.parameters(), lr=settings.learning_rate)
    train, validation = torch.tensor(run.train), torch.tensor(run.validation)
    order = torch.Generator().manual_seed(run.seed)
    best_score, best, kept = float("inf"), None, 0
    for epoch in range(1, settings.epochs + 1):
        shuffled = train[torch.randperm(len(train), generator=order)]
        for rows in torch.split(shuffled, batch_sizes(len(train), settings.batch_size)):
            optimizer.zero_grad()
            cross_entropy(head(Z[rows]), y[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            logits = head(Z[validation])
        wrong = 1 - (logits.argmax(1) == y[validation]).double().mean()
        score = cross_entropy(logits, y[validation]) if settings.monitor == "loss" else wrong
        if score < best_score:
            best_score, best, kept = score, torch.cat([head.weight, head.bias[:, None]], 1).detach().clone(), epoch
        if epoch - kept >= settings.patience:
            break
    return best, kept


@pytest.mark.parametrize("monitor", ["loss", "accuracy"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("batch_size", [2, 8])
def test_heads_trained_in_compiled_steps_equal_heads_trained_by_torch(problem, monitor, optimizer, batch_size):
    X, y, split = problem
    Z = embed(encoder(), torch.as_tensor(X)).double()
    settings = FineTuning(learning_rate=0.02, epochs=25, patience=3, monitor=monitor, optimizer=optimizer,
                          batch_size=batch_size)
    runs = plan_runs(y, split, [0.04, 0.1, 0.45, 1.0], repeats=3)
    compiled = [train_head(with_ones(Z), torch.as_tensor(y), run, C, settings) for run in runs]
    plain = [one_by_one(Z, torch.as_tensor(y), run, settings) for run in runs]
    assert [epoch for _, epoch in compiled] == [epoch for _, epoch in plain]
    assert len({epoch for _, epoch in plain}) > 1, "the runs should stop at different epochs, or stopping is not tested"
    for (head, _), (other, _) in zip(compiled, plain, strict=True): assert (head - other).abs().max() < 1e-9


@pytest.mark.parametrize("mode", ["frozen", "unfrozen"])
def test_a_run_gives_the_same_bits_in_any_company(problem, mode):
    X, y, split = problem
    def sweep(fractions, repeats): return finetune(encoder(), X, y, split, fractions, repeats, mode, settings=FAST)
    whole = sweep(FRACTIONS, 3)
    for fractions, repeats in ([[0.45], 1], [[1.0, 0.1], 2], [FRACTIONS, 3]):
        part = whole[whole["fraction"].isin(fractions) & (whole["repeat"] < repeats)]
        keys = ["fraction", "repeat", "sample"]
        again = sweep(fractions, repeats).sort_values(keys, ignore_index=True)
        assert again.equals(part.sort_values(keys, ignore_index=True))


@pytest.mark.parametrize("mode", ["frozen", "unfrozen"])
def test_another_seed_is_another_sweep_and_the_global_state_is_left_alone(problem, mode):
    X, y, split = problem
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b = (finetune(encoder(), X, y, split, [0.45], 1, mode, seed, FAST) for seed in (0, 1))
    assert not np.allclose(a["p0"], b["p0"])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("mode", ["frozen", "unfrozen"])
@pytest.mark.parametrize("monitor", ["loss", "accuracy"])
def test_choosing_the_epoch_on_the_test_is_watching_the_test_rows_and_nothing_else(problem, mode, monitor):
    "Exactly the honest run of a split whose validation rows are the test rows; only the count of labels is not moved."
    X, y, split = problem
    settings = FineTuning(learning_rate=0.1, epochs=25, patience=5, monitor=monitor)
    def sweep(split, select_on):
        return finetune(encoder(), X, y, split, [1.0], 3, mode, settings=replace(settings, select_on=select_on))
    honest, cheating = sweep(split, "validation"), sweep(split, "test")
    same = sweep(replace(split, validation=split.test), "validation")
    assert cheating.drop(columns="n_labels").equals(same.drop(columns="n_labels"))
    assert (cheating["n_labels"] == honest["n_labels"]).all() and not cheating["epochs"].equals(honest["epochs"])


@pytest.mark.parametrize("mode", ["frozen", "unfrozen"])
def test_choosing_the_epoch_on_the_test_never_changes_the_training_rows_or_seeds(problem, mode, monkeypatch):
    X, y, split = problem
    name, place = {"frozen": ("train_head", 2), "unfrozen": ("train_whole", 3)}[mode]     # place of the run
    original = getattr(module, name)
    def sweep(select_on):
        seen = []
        def watched(*arguments):
            seen.append(arguments[place])
            return original(*arguments)
        monkeypatch.setattr(module, name, watched)
        finetune(encoder(), X, y, split, FRACTIONS, 2, mode, settings=replace(FAST, select_on=select_on))
        return seen
    pairs = list(zip(sweep("validation"), sweep("test"), strict=True))
    assert len(pairs) == 6
    for honest, cheating in pairs:
        for rows in ("train", "validation"):
            np.testing.assert_array_equal(getattr(honest, rows), getattr(cheating, rows))
        assert (honest.seed, honest.n_labels) == (cheating.seed, cheating.n_labels)
        np.testing.assert_array_equal(honest.watched, honest.validation)
        np.testing.assert_array_equal(cheating.watched, split.test)


@pytest.mark.parametrize("mode", ["frozen", "unfrozen"])
def test_choosing_the_epoch_on_the_test_never_lowers_its_score(problem, mode):
    X, y, split = problem
    settings = FineTuning(learning_rate=0.01, epochs=10, patience=10, monitor="accuracy")
    def accuracy(select_on):
        frame = finetune(encoder(), X, y, split, FRACTIONS, 3, mode, settings=replace(settings, select_on=select_on))
        right = frame[["p0", "p1", "p2"]].to_numpy().argmax(1) == frame["truth"]
        return right.groupby([frame["fraction"], frame["repeat"]]).mean()
    honest, cheating = accuracy("validation"), accuracy("test")
    assert (cheating >= honest).all() and (cheating > honest).any()


def test_training_and_validation_labels_are_both_counted_and_nested(problem):
    _, y, split = problem
    runs = plan_runs(y, split, FRACTIONS, repeats=2)
    assert [len(r.validation) for r in runs if r.fraction == 0.1] == [4, 4] # not all 20: the fraction applies here too
    for run in runs:
        assert run.n_labels == len(run.train) + len(run.validation)
        assert set(run.train) <= set(split.train) and set(run.validation) <= set(split.validation)
        assert set(y[run.train]) == {0, 1, 2}
    for small, large in zip(runs, runs[2:], strict=False):
        assert set(small.train) <= set(large.train) and set(small.validation) <= set(large.validation)


def test_the_papers_repeats_share_their_subset_and_differ_in_initialisation_only(problem):
    _, y, split = problem
    ours, paper = (plan_runs(y, split, [0.45], 2, vary_subset=vary) for vary in (True, False))
    assert set(ours[0].train) != set(ours[1].train)
    assert np.array_equal(paper[0].train, paper[1].train) and paper[0].seed != paper[1].seed


def test_the_weights_of_the_best_epoch_are_restored(problem):
    X, y, split = problem
    X, y, run = torch.as_tensor(X), torch.as_tensor(y), plan_runs(y, split, [0.45], 1)[0]
    settings = FineTuning(learning_rate=0.01, epochs=30, patience=4)
    stopped, kept = train_whole(encoder(), X, y, run, C, settings)
    assert 1 <= kept < 26, "this run should stop early"
    exactly, _ = train_whole(encoder(), X, y, run, C, replace(settings, epochs=kept))
    for name, value in exactly.state_dict().items():
        assert torch.equal(value, stopped.state_dict()[name]), name
    Z = with_ones(embed(encoder(), X))
    stopped, kept = train_head(Z, y, run, C, replace(settings, learning_rate=0.3))
    exactly, _ = train_head(Z, y, run, C, replace(settings, learning_rate=0.3, epochs=kept))
    assert kept < 30 and torch.equal(stopped, exactly)


@pytest.mark.parametrize("mode", ["frozen", "unfrozen"])
def test_the_callers_encoder_is_not_changed(problem, mode):
    X, y, split = problem
    mine = encoder().requires_grad_(False)
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    result = finetune(mine, X, y, split, [1.0], 1, mode, settings=FAST)
    assert all(torch.equal(value, before[name]) for name, value in mine.state_dict().items())
    other = finetune(encoder(), X, y, split, [1.0], 1, mode, settings=FAST)
    assert result.equals(other), "an encoder without gradients is trained all the same"


def test_arms_differ_in_initial_weights_and_in_nothing_else(problem):
    X, y, split = problem
    start = fresh_encoder(G, width=16, depth=2, seed=4)
    pair = [start(0), start(1)]
    scratch = finetune(start, X, y, split, [0.45], 2, "unfrozen", settings=FAST)
    pretrained = finetune(lambda repeat: pair[repeat], X, y, split, [0.45], 2, "unfrozen", settings=FAST)
    assert scratch.equals(pretrained)
    weights = [start(repeat).state_dict()["blocks.0.0.weight"] for repeat in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def moves_with_test_rows(predict, X, y, split):
    """Rewrite half of the test samples with noise: does anything move but the predictions of these samples?"""
    rewritten, untouched = split.test[::2], split.test[1::2]
    noisy = X.copy()
    noisy[rewritten] = 30*np.random.default_rng(1).normal(size=(len(rewritten), X.shape[1]))
    before, after = predict(X), predict(noisy)
    probabilities = [name for name in before if name[0] == "p"]
    touched = before["sample"].isin(rewritten)
    assert not np.allclose(before.loc[touched, probabilities], after.loc[touched, probabilities]), "no effect"
    kept = before["sample"].isin(untouched)
    return not before[kept].equals(after[kept])


@pytest.mark.parametrize("mode, standardise", [("frozen", False), ("frozen", True), ("unfrozen", False),
                                               ("unfrozen", True)])
def test_noise_in_test_samples_moves_nothing_but_their_own_predictions(problem, mode, standardise):
    X, y, split = problem
    settings = replace(FAST, **{"standardise" if mode == "frozen" else "unit_size": standardise})
    def predict(X): return finetune(encoder(), X, y, split, [0.1, 1.0], 2, mode, settings=settings)
    assert not moves_with_test_rows(predict, X, y, split)


def test_at_unit_size_the_scale_of_an_encoder_decides_nothing(problem):
    X, y, split = problem
    def predict(factor, **how):
        network = encoder()
        for weights in network.blocks[-1][1].parameters(): weights.data *= factor
        table = finetune(network, X, y, split, [0.45], 1, "unfrozen", settings=replace(FAST, **how))
        return table[["p0", "p1", "p2"]].to_numpy()
    np.testing.assert_allclose(predict(1, unit_size=True), predict(1/16, unit_size=True), atol=1e-4)
    assert np.abs(predict(1) - predict(1/16)).max() > 0.05


@pytest.mark.parametrize("cheat", ["standardised on all rows", "stopped on test rows"])
def test_the_scramble_catches_a_deliberate_cheat(problem, cheat):
    X, y, split = problem
    everything = np.concatenate([split.pretrain, split.validation, split.test])
    if cheat == "standardised on all rows":
        cheating, mode = replace(split, pretrain=everything), "frozen"
    else:
        cheating, mode = replace(split, validation=split.test), "unfrozen"
    settings = FineTuning(learning_rate=0.03, epochs=15, patience=15, standardise=mode == "frozen")
    def predict(X): return finetune(encoder(), X, y, cheating, [1.0], 1, mode, settings=settings)
    assert moves_with_test_rows(predict, X, y, split)


def test_labels_of_test_samples_change_the_truth_column_only(problem):
    X, y, split = problem
    other = y.copy()
    other[split.test] = (y[split.test] + 1) % C
    for mode in ("frozen", "unfrozen"):
        a, b = (finetune(encoder(), X, labels, split, [0.45], 1, mode, settings=FAST) for labels in (y, other))
        assert a.drop(columns="truth").equals(b.drop(columns="truth")) and not a["truth"].equals(b["truth"])


def test_the_table_has_one_row_per_run_and_test_sample(problem):
    X, y, split = problem
    table = finetune(encoder(), torch.as_tensor(X), y, split, FRACTIONS, 2, settings=FAST)
    assert list(table) == ["fraction", "repeat", "n_labels", "epochs", "sample", "truth", "p0", "p1", "p2"]
    assert len(table) == 3*2*len(split.test) and (table["truth"] == y[table["sample"]]).all()
    np.testing.assert_allclose(table[["p0", "p1", "p2"]].sum(axis=1), 1, atol=1e-5)
    assert table["p0"].dtype == np.float32


def test_fine_tuning_learns(problem):
    X, y, split = problem
    for mode in ("frozen", "unfrozen"):
        settings = FineTuning(learning_rate=0.01, epochs=40, patience=20)
        table = finetune(encoder(), X, y, split, [1.0], 1, mode, settings=settings)
        right = (table[["p0", "p1", "p2"]].to_numpy().argmax(1) == table["truth"]).mean()
        assert right > np.bincount(y[split.test]).max()/len(split.test) + 0.05


@pytest.mark.parametrize("n_samples", range(2, 40))
@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_no_batch_holds_a_single_sample(n_samples, batch_size):
    sizes = batch_sizes(n_samples, batch_size)
    assert sum(sizes) == n_samples and min(sizes) >= 2
    assert max(sizes) - min(sizes) <= 1 and max(sizes) <= max(3, batch_size)


@pytest.mark.parametrize("setting, value, message", [
    ("learning_rate", 0, "must be a number above 0"), ("learning_rate", "1e-4", "must be a number"),
    ("batch_size", 1, "must be a whole number of at least 2"), ("epochs", 2.5, "must be a whole number"),
    ("patience", True, "must be a whole number"), ("monitor", "los", "must be one of 'loss', 'accuracy'"),
    ("optimizer", "Adam", "must be one of"), ("select_on", "train", "must be one of 'validation', 'test'"),
    ("standardise", 1, "must be one of"), ("unit_size", None, "must be one of")])
def test_a_setting_of_the_wrong_type_or_range_is_refused(setting, value, message):
    with pytest.raises(ValueError, match=f"{setting} {message}"):
        FineTuning(**{setting: value})


def broken(problem, what):
    """Arguments of `finetune` with one mistake."""
    X, y, split = problem
    X, y, more = X.copy(), y.copy(), {}
    if what == "NaN":
        X[7, 3] = np.nan
    elif what == "one class":
        y[y > 0] = 0
    elif what == "class absent":
        split = replace(split, train=split.train[y[split.train] != 2])
    elif what == "no validation":
        split = replace(split, validation=split.validation[:0])
    elif what == "unlabelled test":
        y[split.test[0]] = -1
    elif what == "labels as text":
        y = y.astype(str)
    elif what == "fewer labels":
        y = y[:-1]
    elif what == "unit size frozen":
        more = dict(mode="frozen", settings=FineTuning(unit_size=True))
    elif what == "standardised unfrozen":
        more = dict(mode="unfrozen", settings=FineTuning(standardise=True))
    else:
        more = what
    arguments = dict(encoder=encoder(), X=X, y=y, split=split, fractions=[0.5], repeats=1)
    return arguments | more


@pytest.mark.parametrize("what, message", [
    ("NaN", "X has a missing value"), ("one class", "at least two are needed"), ("class absent", r"\[2\] are absent"),
    ("no validation", "split.validation is empty"), ("unlabelled test", "split.test contains unlabelled rows"),
    ("labels as text", "integer class codes"), ("fewer labels", "one label per sample"),
    ("standardised unfrozen", "use mode='frozen'"), ("unit size frozen", "use mode='unfrozen'"),
    (dict(mode="thawed"), "mode must be one of"),
    (dict(fractions=[0.0]), "fractions must be"), (dict(fractions=[]), "fractions must be"),
    (dict(fractions=[0.5, 0.5]), "fractions must be"), (dict(repeats=0), "repeats must be"),
    (dict(settings=FineTuning(learning_rate=1e30), mode="unfrozen"), "lower the learning rate")])
def test_a_mistake_gives_one_clear_sentence(problem, what, message):
    with pytest.raises(ValueError, match=message) as error:
        finetune(**broken(problem, what))
    assert "\n" not in str(error.value)


def test_check_labels_counts_the_classes(problem):
    _, y, split = problem
    assert check_labels(y, split, N) == 3


def test_the_unfrozen_network_is_an_encoder_and_a_linear_head(problem):
    X, y, split = problem
    run = plan_runs(y, split, [0.45], 1)[0]
    model, _ = train_whole(encoder(), torch.as_tensor(X), torch.as_tensor(y), run, C, FAST)
    assert isinstance(model[0], Encoder) and isinstance(model[1], nn.Linear)
    assert not torch.equal(model[0].blocks[0][0].weight, encoder().blocks[0][0].weight)
