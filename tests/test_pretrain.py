"The loop: reproducible, resumable, and clear about what it refuses."
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ssl_expr import pretrain as module
from ssl_expr import wide
from ssl_expr.nets import Encoder, embed, seeded
from ssl_expr.objective import build
from ssl_expr.pretrain import (
    batches,
    collapsed,
    hold_out,
    load_encoder,
    pretrain,
    save_encoder,
    train_encoder,
    training_settings,
)
from ssl_expr.storage import load_tensors, save_tensors, tensor_digest

torch.set_num_threads(1) # two threads on a busy machine are many times slower
SMALL = {"width": 8, "depth": 2}
ARMS = [("scarf", {}), ("scarf", {"replacement": "marginal", "symmetric": True}), ("vime", {}),
        ("vime", {"redraw": False}), ("byol", {"hidden": 16, "projection": 8, "head_dropout": 0.2}),
        ("unmixing", {}), ("mixing", {}), ("vicreg", {"projection": 8})]
X = np.random.default_rng(0).normal(size=(53, 17)).astype("float32")


def fresh(name="scarf", n_genes=17, **settings):
    with seeded(3): return build(name, n_genes, **SMALL | settings)


def brief(objective, X=X, **settings):
    return pretrain(objective, X, **{"epochs": 4, "batch_size": 16, "progress": False} | settings)


def in_blocks_of_five(monkeypatch):
    "Let the layers of these small networks count as wide: 17 genes are three blocks of five and one of two."
    monkeypatch.setattr(wide, "LEAST_GENES", 10)
    monkeypatch.setattr(wide, "BLOCK", 5)


def digest(objective) -> str: return tensor_digest(objective.state_dict())


# ---------------------------------------------------------------------------------------------- the loop itself

def cycle(done):
    "The rate of one cycle by hand, as a share of its highest value."
    if done < 0.3: return 0.52 - 0.48*math.cos(math.pi*done/0.3)
    return 0.5 + 0.5*math.cos(math.pi*(done - 0.3)/0.7)


def plain_loop(objective, X, settings):
    "A slow second version of the loop: plain loops, optimisers without fused or foreach kernels."
    torch.manual_seed(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    train, _ = hold_out(len(X), settings.held_out, generator)
    objective.fit_corruption(X[train])
    parameters = [p for p in objective.parameters() if p.requires_grad]
    rate, momentum = settings.learning_rate, settings.momentum
    optimizer = {"adam": lambda: torch.optim.Adam(parameters, rate, foreach=False, fused=False),
                 "adamw": lambda: torch.optim.AdamW(parameters, rate, foreach=False, fused=False),
                 "sgd": lambda: torch.optim.SGD(parameters, rate, momentum, foreach=False, fused=False),
                 "rmsprop": lambda: torch.optim.RMSprop(parameters, rate, 0.9, 1e-7, momentum=momentum, foreach=False),
                 }[settings.optimizer]()
    losses = []
    for epoch in range(settings.epochs):
        objective.train()
        sums = 0.0
        parts = batches(len(train), settings.batch_size, generator)
        for number, part in enumerate(parts):
            if settings.schedule == "one-cycle":
                optimizer.param_groups[0]["lr"] = rate*cycle((epoch + number/len(parts))/settings.epochs)
            optimizer.zero_grad()
            loss = objective.loss(X[train[part]], generator, train[part])
            loss.backward()
            for p in parameters: p.grad = p.grad.contiguous() if p.grad is not None else None
            optimizer.step()
            objective.after_step()
            sums += loss.item()*len(part)
        losses.append(sums/len(train))
    return losses


@pytest.mark.parametrize("name, settings", ARMS)
@pytest.mark.parametrize("blocked", [False, True])
@pytest.mark.parametrize("optimizer, momentum", [
    ("adam", 0.), ("adamw", 0.), ("sgd", 0.9), ("rmsprop", 0.), ("rmsprop", 0.9)])
def test_the_fast_loop_equals_a_plain_one_in_double_precision(
        monkeypatch, name, settings, blocked, optimizer, momentum):
    data, choice = torch.from_numpy(X).double(), {"optimizer": optimizer, "momentum": momentum, "learning_rate": 1e-3}
    fast, slow = fresh(name, **settings).double(), fresh(name, **settings).double()
    if blocked: in_blocks_of_five(monkeypatch)
    history = brief(fast, data, seed=5, **choice)
    with torch.random.fork_rng(devices=[]):
        losses = plain_loop(slow, data, training_settings(slow, seed=5, epochs=4, batch_size=16, **choice))
    np.testing.assert_allclose(history.loss, losses, rtol=1e-10)
    for a, b in zip(fast.state_dict().values(), slow.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("extra", [
    {}, dict(momentum=0.9), dict(weight_decay=0.1), dict(centered=True), dict(maximize=True)])
def test_rmsprop_in_one_pass_is_torchs(extra):
    start = [torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in ((3, 5), (4,), (2, 1))]
    ours, theirs = ([torch.nn.Parameter(each.double()) for each in start] for _ in range(2))
    settings = dict(lr=0.01, alpha=0.9, eps=1e-7, **extra)
    mine, torchs = module.RMSprop(ours, **settings), torch.optim.RMSprop(theirs, **settings, foreach=False)
    for step in range(5):
        for parameters, optimizer in ((ours, mine), (theirs, torchs)):
            optimizer.zero_grad()
            for place, parameter in enumerate(parameters[:2 if step < 2 else 3]):   # the last has no gradient at first
                parameter.grad = (parameter*(place + 1)).sin().detach()
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True): torch.testing.assert_close(a, b, rtol=1e-13, atol=0)
    assert [*mine.state_dict()["state"][0]] == [*torchs.state_dict()["state"][0]]


@pytest.mark.parametrize("name, settings", ARMS)
def test_every_gradient_lies_in_memory_like_its_parameter(name, settings):
    "The fused kernels read raw memory: a gradient with transposed strides would give wrong updates in silence."
    objective = fresh(name, **settings)
    brief(objective, epochs=1)
    rows = torch.arange(16)
    objective.train().loss(torch.from_numpy(X[:16]), torch.Generator(), rows).backward()
    for p in objective.parameters(): assert p.grad is None or p.grad.stride() == p.stride()


# ------------------------------------------------------------------------------------- where the matrix lies, and how

def on_disk(folder, X):
    np.save(folder/"X.npy", X)
    return np.load(folder/"X.npy", mmap_mode="r")


@pytest.mark.parametrize("name, settings", ARMS)
def test_a_matrix_on_disk_or_of_half_precision_trains_as_in_memory(tmp_path, name, settings):
    half = X.astype("float16")
    for kind, given in {"memory": half, "disk": on_disk(tmp_path, half), "tensor": torch.from_numpy(half)}.items():
        whole, part = fresh(name, **settings), fresh(name, **settings)
        want = brief(whole, half.astype("float32"))
        pd.testing.assert_frame_equal(brief(part, given), want, check_exact=True, obj=kind)
        assert digest(part) == digest(whole)


@pytest.mark.parametrize("name", ["vime", "unmixing", "mixing"])
@pytest.mark.parametrize("kind", ["array", "tensor", "disk", "half"])
def test_the_matrix_is_not_copied(tmp_path, monkeypatch, kind, name):
    given = {"array": X, "tensor": torch.from_numpy(X), "disk": on_disk(tmp_path, X), "half": X.astype("float16")}[kind]
    seen = []
    monkeypatch.setattr(module, "_train_epoch", lambda run, X, *rest: seen.append((X, run.objective.corruption)) or 0.)
    brief(fresh(name), given, epochs=1)
    (matrix, corruption), = seen
    here = given.data_ptr() if kind == "tensor" else given.__array_interface__["data"][0]
    assert matrix.data_ptr() == here
    assert kind == "disk" or corruption.pool.data_ptr() == here


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is an accelerator")
def test_without_an_accelerator_auto_is_the_cpu():
    one, two = fresh(), fresh()
    brief(one), brief(two, device="auto")
    assert digest(one) == digest(two)


@pytest.mark.parametrize("name, settings", ARMS)
def test_half_as_precise_products_change_the_loss_a_little_only(name, settings):
    both = ("float32", "bfloat16")
    losses = [brief(fresh(name, **settings), epochs=1, precision=precision).loss[0] for precision in both]
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.03)


@pytest.mark.parametrize("name, settings", ARMS)
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(name, settings):
    one, two, other = (fresh(name, **settings) for _ in range(3))
    first = brief(one, seed=1)
    torch.rand(5) # the caller's random state must not matter
    pd.testing.assert_frame_equal(first, brief(two, seed=1), check_exact=True)
    assert digest(one) == digest(two)
    brief(other, seed=2)
    assert digest(one) != digest(other)


def test_the_callers_random_state_and_data_are_left_alone():
    state, data = torch.get_rng_state(), X.copy()
    brief(fresh(), data)
    assert torch.equal(state, torch.get_rng_state()) and np.array_equal(data, X)


@pytest.mark.parametrize("n_samples, batch_size",
                         [(2, 2), (3, 2), (5, 2), (7, 3), (101, 25), (33, 32), (450, 256), (9, 1000)])
def test_every_row_is_visited_once_and_no_batch_is_a_single_row(n_samples, batch_size):
    parts = batches(n_samples, batch_size, torch.Generator().manual_seed(0))
    assert sorted(torch.cat(parts).tolist()) == list(range(n_samples))
    sizes = [len(part) for part in parts]
    assert min(sizes) >= 2 and max(sizes) - min(sizes) <= 1 and max(sizes) <= max(batch_size, 3)


def test_the_order_of_rows_changes_from_epoch_to_epoch():
    generator = torch.Generator().manual_seed(0)
    assert not torch.equal(torch.cat(batches(50, 10, generator)), torch.cat(batches(50, 10, generator)))


@pytest.mark.parametrize("share, want", [(0, 0), (0.01, 2), (0.1, 10), (0.5, 50)])
def test_the_held_out_rows_are_a_share_that_the_seed_chooses(share, want):
    train, held_out = hold_out(100, share, torch.Generator().manual_seed(0))
    assert len(held_out) == want and sorted([*train.tolist(), *held_out.tolist()]) == list(range(100))
    if want: assert not torch.equal(held_out, hold_out(100, share, torch.Generator().manual_seed(1))[1])


@pytest.mark.parametrize("name, settings", ARMS)
def test_no_weight_depends_on_held_out_rows(name, settings):
    _, held_out = hold_out(len(X), 0.1, torch.Generator().manual_seed(0))
    noise = X.copy()
    noise[held_out] = 1e3*np.random.default_rng(1).normal(size=(len(held_out), 17))
    clean, scrambled = fresh(name, **settings), fresh(name, **settings)
    histories = brief(clean), brief(scrambled, noise)
    assert digest(clean) == digest(scrambled)
    assert list(histories[0].loss) == list(histories[1].loss)
    assert list(histories[0].held_out_loss) != list(histories[1].held_out_loss)


def test_without_held_out_rows_all_are_trained_on():
    history = brief(fresh(), held_out=0)
    assert history.held_out_loss.isna().all() and history.loss.notna().all()


@pytest.mark.parametrize("name, settings", [
    ("denoising", {}), ("donor-swap", {}), ("unmixing", {}), ("mixing", {}), ("barlow-twins", {"projection": 16}),
    ("vicreg", {"projection": 16})])
def test_the_recipe_learns_how_genes_depend_on_each_other_and_no_noise(name, settings):
    "On rows that it has not seen; in the second matrix every gene has the same values, in an order of its own."
    generator = torch.Generator().manual_seed(0)
    programs = torch.randn(240, 3, generator=generator).repeat_interleave(12, 1)
    ordered = programs + 0.5*torch.randn(240, 36, generator=generator)
    shuffled = torch.stack([gene[torch.randperm(240, generator=generator)] for gene in ordered.T], dim=1)
    losses = []
    for data in (ordered, shuffled):
        objective = fresh(name, 36, **settings | {"width": 32})
        losses.append(pretrain(objective, data/data.std(0), epochs=30, progress=False).held_out_loss.to_numpy())
    assert losses[0][-1] < 0.8*losses[0][0] and losses[0][-1] < 0.8*losses[1][-1]


def test_history_is_that_of_the_encoder_as_it_is():
    objective = fresh()
    history = brief(objective)
    train, held_out = hold_out(len(X), 0.1, torch.Generator().manual_seed(0))
    Z = embed(objective.encoder, X[torch.cat([held_out, train])])
    assert list(history.columns) == ["epoch", "loss", "held_out_loss", "spread", "effective_rank"]
    assert list(history.epoch) == [1, 2, 3, 4]
    assert history.spread.iloc[-1] == module.embedding_spread(Z)
    assert history.effective_rank.iloc[-1] == module.effective_rank(Z)


# ---------------------------------------------------------------------------------------------- the rate

def rates_of(objective, **settings):
    "The rates that the parts of the optimiser have at every step."
    seen: dict[int, list[float]] = {}
    def look(optimizer, *_): seen.setdefault(id(optimizer), []).extend(group["lr"] for group in optimizer.param_groups)
    hook = register_optimizer_step_pre_hook(look)
    try: brief(objective, **settings)
    finally: hook.remove()
    return list(seen.values())


@pytest.mark.parametrize("epochs, batch_size, optimizer", [(5, 16, "adam"), (100, 16, "adamw"), (60, 30, "rmsprop")])
def test_one_cycle_is_torchs_up_to_where_a_step_is_counted(epochs, batch_size, optimizer):
    "torch comes to the ends of both phases one step earlier: they differ by less than what five steps of n change."
    seen, = rates_of(fresh(), epochs=epochs, batch_size=batch_size, optimizer=optimizer, learning_rate=0.01,
                     schedule="one-cycle")
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    schedule, n = torch.optim.lr_scheduler.OneCycleLR(theirs, 0.01, total_steps=len(seen)), len(seen)
    want = []
    for _ in range(n):
        want.append(theirs.param_groups[0]["lr"])
        theirs.step(); schedule.step()
    assert n == epochs*len(batches(48, batch_size, torch.Generator()))
    assert np.abs(np.subtract(seen, want)).max() < 0.01*5.1/n
    assert seen == pytest.approx([0.01*cycle(step/n) for step in range(n)], rel=1e-12)
    assert seen[0] == pytest.approx(0.01/25) and max(seen) == pytest.approx(0.01, rel=0.02) and seen[-1] < 0.001


def test_every_part_of_an_optimiser_follows_the_cycle(monkeypatch):
    in_blocks_of_five(monkeypatch)
    first, *others = rates_of(fresh(), schedule="one-cycle")
    assert len(others) == 4 and len(set(first)) == len(first) and all(other == first for other in others)


def test_a_constant_rate_is_never_touched(monkeypatch):
    monkeypatch.setattr(module, "set_rate", None)
    assert rates_of(fresh(), learning_rate=0.003) == [[0.003]*12]
    given, usual = fresh(), fresh()
    brief(given, schedule="constant"), brief(usual)
    assert digest(given) == digest(usual)


@pytest.mark.parametrize("optimizer, blocked", [("adam", False), ("sgd", True), ("rmsprop", False)])
@pytest.mark.parametrize("n_steps", [4, 8, 20])   # of 21: on the way up, on the way down, in the last epoch
def test_a_cycle_cut_anywhere_goes_on_at_its_rate(tmp_path, monkeypatch, optimizer, blocked, n_steps):
    if blocked: in_blocks_of_five(monkeypatch)
    choice = dict(epochs=7, optimizer=optimizer, learning_rate=1e-3, schedule="one-cycle", checkpoint_every=1)
    whole, again = fresh(), fresh()
    want, *_ = rates_of(whole, **choice)
    choice["checkpoint"] = tmp_path/"c.safetensors"
    with pytest.raises(PowerCut): brief(fail_after(fresh(), n_steps), **choice)
    rest, *_ = rates_of(again, **choice)
    assert 0 < len(rest) < 21 and rest == want[-len(rest):]
    assert digest(again) == digest(whole)


# ---------------------------------------------------------------------------------------------- donors

TAKERS = [("unmixing", {}), ("mixing", {}), ("vime", {}), ("scarf", {"replacement": "donor"})]
takers = pytest.mark.parametrize("name, settings", TAKERS)
SOME = np.arange(len(X)) % 4 == 0


@takers
def test_only_donors_that_are_trained_on_give_values(name, settings):
    objective, everybody, usual = (fresh(name, **settings) for _ in range(3))
    brief(objective, donors=SOME), brief(everybody, donors=np.ones(len(X), bool)), brief(usual)
    train, held_out = hold_out(len(X), 0.1, torch.Generator().manual_seed(0))
    assert objective.corruption.rows.tolist() == [row for row in train.tolist() if SOME[row]]
    assert SOME[held_out].any()
    assert digest(everybody) == digest(usual) != digest(objective)


@pytest.mark.parametrize("given", [
    SOME.tolist(), torch.from_numpy(SOME), pd.Series(SOME), np.flatnonzero(SOME), np.flatnonzero(SOME)[::-1].tolist(),
    torch.arange(0, len(X), 4), range(0, len(X), 4)], ids=lambda given: type(given).__name__)
def test_donors_are_a_mask_or_row_numbers_of_any_kind(given):
    one, two = fresh("mixing"), fresh("mixing")
    brief(one, donors=given), brief(two, donors=SOME)
    assert digest(one) == digest(two)


@takers
def test_noise_in_rows_that_are_held_out_moves_nothing_even_if_they_are_called_donors(name, settings):
    train, held_out = hold_out(len(X), 0.1, torch.Generator().manual_seed(0))
    noise = X.copy()
    noise[held_out] = 1e3*np.random.default_rng(1).normal(size=(len(held_out), 17))
    clean, scrambled = fresh(name, **settings), fresh(name, **settings)
    for objective, data in ((clean, X), (scrambled, noise)): brief(objective, data, donors=[*held_out, *train[:9]])
    assert digest(clean) == digest(scrambled)


@takers
def test_donors_of_a_matrix_on_disk_are_those_in_memory(tmp_path, name, settings):
    one, two = fresh(name, **settings), fresh(name, **settings)
    brief(one, donors=SOME), brief(two, on_disk(tmp_path, X), donors=SOME)
    assert digest(one) == digest(two)


def test_a_uniform_range_does_not_care_who_is_a_donor():
    one, two = fresh(), fresh()
    brief(one, donors=SOME), brief(two)
    assert digest(one) == digest(two)


@pytest.mark.parametrize("given, message", [
    (hold_out(len(X), 0.1, torch.Generator().manual_seed(0))[1], "donors name none of the 48 rows that are trained on"),
    (np.zeros(len(X), bool), "donors name none of the 48 rows"), (SOME[:-1], "donors must be 53 times True or False"),
    ([53], "row numbers from 0 to 52, got .53."), ([-1], "got .-1."), ([0.5], "row numbers"),
    (["normal"], "row numbers"), ({"tumour": ["normal"]}, "row numbers"), ([[1, 2]], "row numbers"), (3, "row numbers"),
    ([], "donors")])
def test_donors_that_are_no_rows_are_refused_in_one_sentence(given, message):
    with pytest.raises(ValueError, match=message) as caught: brief(fresh("mixing"), donors=given)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_belongs_to_its_donors(tmp_path):
    path, one, two = tmp_path/"c.safetensors", fresh("mixing"), fresh("mixing")
    brief(one, checkpoint=path, donors=SOME)
    for other in (None, ~SOME, np.ones(len(X), bool)):
        with pytest.raises(ValueError, match=r"another pretraining \(other donors\)"):
            brief(fresh("mixing"), checkpoint=path, donors=other)
    brief(two, checkpoint=path, donors=np.flatnonzero(SOME))
    assert digest(one) == digest(two)


def test_training_by_name_takes_donors():
    one, two = by_name("mixing", donors=SOME)[0], by_name("mixing")[0]
    assert one.corruption.rows.tolist() != two.corruption.rows.tolist() and digest(one) != digest(two)


# ---------------------------------------------------------------------------------------------- settings and data

@pytest.mark.parametrize("name", sorted(module.objectives()))
def test_published_settings_are_the_default(name):
    objective = fresh(name)
    settings = training_settings(objective)
    for field in ("epochs", "batch_size", "optimizer", "learning_rate", "momentum", "schedule"):
        assert getattr(settings, field) == getattr(objective.paper_training, field)


def test_the_published_momentum_does_not_follow_to_another_optimiser():
    assert training_settings(fresh("byol")).momentum == 0.9
    assert training_settings(fresh("byol"), optimizer="adam").momentum == 0


@pytest.mark.parametrize("setting, value", [
    ("epochs", "ten"), ("epochs", 0), ("epochs", 2.5), ("epochs", True), ("batch_size", 1), ("batch_size", "x"),
    ("learning_rate", 0), ("learning_rate", -1), ("learning_rate", math.nan), ("learning_rate", "1e-3"),
    ("optimizer", "lion"), ("optimizer", 3), ("momentum", 1), ("momentum", 0.9), ("held_out", 0.9), ("held_out", -0.1),
    ("seed", -1), ("seed", "a"), ("checkpoint_every", 0), ("device", "abacus"), ("device", 1.5),
    ("precision", "half"), ("schedule", "cosine"), ("schedule", 1)])
def test_a_setting_that_cannot_be_right_is_refused_by_name(setting, value):
    with pytest.raises(ValueError, match=setting) as caught: brief(fresh(), **{setting: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data, message", [
    (np.where(np.arange(X.size).reshape(X.shape) == 20, np.nan, X), r"missing value in row 1, \w+ 3"),
    (np.where(np.arange(X.size).reshape(X.shape) == 20, np.inf, X), r"infinite value in row 1, \w+ 3"),
    (X[:7], "at least 8 samples, got 7"), (X[:, :5], "shape"), (X[0], "shape"), (X[:0], "shape"),
    (X.astype(str), "numbers"), ([["a"]*17]*9, "numbers"), ([[1.], [1., 2.]], "inhomogeneous"), (None, "X")])
def test_data_that_cannot_be_trained_on_are_refused_in_one_sentence(data, message):
    with pytest.raises(ValueError, match=message) as caught: brief(fresh(), data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("convert", [torch.from_numpy, pd.DataFrame, np.asfortranarray, np.float64, list])
def test_arrays_frames_and_tensors_give_the_same_bits(convert):
    one, two = fresh(), fresh()
    brief(one)
    brief(two, convert(X.copy()))
    assert digest(one) == digest(two)


def test_a_read_only_array_is_no_trouble():
    data = X.copy()
    data.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        brief(fresh(), data)


def test_a_loss_that_is_no_number_stops_and_names_the_epoch():
    objective = fresh()
    steps = []
    def poison():
        steps.append(1)
        if len(steps) == 4: torch.nn.init.constant_(next(objective.head.parameters()), math.nan)
    objective.after_step = poison
    with pytest.raises(ValueError, match="nan in epoch 2: use a smaller learning_rate"): brief(objective)


# ---------------------------------------------------------------------------------------------- by name, in one call

def by_name(method="scarf", X=X, **settings):
    brief = {"width": 8, "depth": 2, "epochs": 3, "batch_size": 16, "progress": False}
    return train_encoder(method, X, **brief | settings)


@pytest.mark.parametrize("name, settings", ARMS)
@pytest.mark.parametrize("seed", [0, 4])
def test_training_by_name_equals_building_and_pretraining(name, settings, seed):
    objective, history = by_name(name, settings=settings, dropout=0.1, seed=seed, learning_rate=1e-3, momentum=None)
    with seeded(seed): want = build(name, 17, width=8, depth=2, dropout=0.1, **settings)
    expected = pretrain(want, X, epochs=3, batch_size=16, learning_rate=1e-3, seed=seed, progress=False)
    pd.testing.assert_frame_equal(history, expected, check_exact=True)
    assert digest(objective) == digest(want) and objective.settings() == want.settings()


def settings_used(monkeypatch, method, **settings):
    "Objective settings and training settings of a call, without the training."
    seen = {}
    def instead(objective, *rest): seen.update(vars(rest[1])); return module._Run(objective, None, None)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_epochs", instead)
        objective, _ = train_encoder(method, X, width=8, depth=2, **settings)
    return objective.settings(), seen


@pytest.mark.parametrize("method", ["scarf", "vime", "byol"])
def test_a_variant_fills_in_what_the_paper_or_the_released_code_says(monkeypatch, method):
    kind = module.objectives()[method]
    text, code = (settings_used(monkeypatch, method, variant=variant) for variant in ("text", "code"))
    assert text[0] == kind(17, width=8, depth=2).settings()
    assert code[0] == kind(17, width=8, depth=2, **kind.code_settings).settings() != text[0]
    for (_, used), published in ((text, kind.paper_training), (code, kind.code_training)):
        assert {name: used[name] for name in module.TRAINING} == vars(published)


def test_what_is_asked_for_wins_over_the_variant_and_none_does_not(monkeypatch):
    objective, used = settings_used(monkeypatch, "byol", variant="code", epochs=7, batch_size=None, learning_rate=0.5,
                                    settings={"symmetric": False, "head_dropout": None})
    assert (objective["symmetric"], objective["head_dropout"]) == (False, 0.2)
    assert (used["epochs"], used["batch_size"], used["optimizer"], used["learning_rate"]) == (7, 32, "adam", 0.5)
    assert settings_used(monkeypatch, "byol", variant="code", optimizer="sgd")[1]["momentum"] == 0
    assert settings_used(monkeypatch, "byol", variant="text", optimizer="sgd")[1]["momentum"] == 0.9


def test_training_by_name_continues_from_a_checkpoint(tmp_path):
    choice = {"checkpoint": tmp_path/"c.safetensors", "checkpoint_every": 2, "variant": "code"}
    want, history = by_name(**choice)
    again, repeated = by_name(**choice)
    pd.testing.assert_frame_equal(repeated, history, check_exact=True)
    assert digest(again) == digest(want)
    with pytest.raises(ValueError, match="other symmetric"): by_name(**choice | {"variant": "text"})


@pytest.mark.parametrize("change, message", [
    ({"epoch": 3}, "unknown training setting 'epoch': known are epochs, batch_size, optimizer, learning_rate"),
    ({"temperature": 1.}, "unknown training setting 'temperature'"), ({"held_out": 0.}, "unknown training setting"),
    ({"variant": "blog"}, "variant must be one of 'text', 'code', got 'blog'"), ({"variant": None}, "variant"),
    ({"method": "scraf"}, "unknown method 'scraf'"), ({"method": "scraf", "variant": "code"}, "unknown method 'scraf'"),
    ({"settings": {"temprature": 1.}}, "unknown setting 'temprature'"), ({"epochs": "ten"}, "epochs"),
    ({"X": X[0]}, "shape"), ({"X": None}, "shape"), ({"seed": "a"}, "seed")])
def test_training_by_name_refuses_what_it_does_not_know(change, message):
    with pytest.raises(ValueError, match=message) as caught: by_name(**change)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------- checkpoints

class PowerCut(Exception): pass


def fail_after(objective, n_steps: int):
    "Let the n-th optimiser step end in a power cut."
    done, after_step = [], objective.after_step
    def after():
        after_step()
        done.append(1)
        if len(done) == n_steps: raise PowerCut
    objective.after_step = after
    return objective


@pytest.mark.parametrize("name, settings", ARMS)
@pytest.mark.parametrize("optimizer, blocked", [("adam", False), ("adam", True), ("sgd", False), ("rmsprop", True)])
def test_a_run_cut_twice_ends_at_the_same_bits(tmp_path, monkeypatch, name, settings, optimizer, blocked):
    if blocked: in_blocks_of_five(monkeypatch)
    choice = {"epochs": 7, "checkpoint": tmp_path/"c.safetensors", "checkpoint_every": 2, "optimizer": optimizer,
              "learning_rate": 1e-3}
    whole = fresh(name, **settings)
    history = brief(whole, **choice | {"checkpoint": None})
    for n_steps in (8, 10):
        with pytest.raises(PowerCut): brief(fail_after(fresh(name, **settings), n_steps), **choice)
    again = fresh(name, **settings)
    torch.rand(7)
    pd.testing.assert_frame_equal(brief(again, **choice), history, check_exact=True)
    assert digest(again) == digest(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


def test_a_checkpoint_with_other_blocks_is_refused(tmp_path, monkeypatch):
    "Its averages would be read into the wrong genes."
    whole, parts = tmp_path/"whole.safetensors", tmp_path/"parts.safetensors"
    brief(fresh(), checkpoint=whole)
    with monkeypatch.context() as patch:
        in_blocks_of_five(patch)
        with pytest.raises(ValueError, match="other genes at a time"): brief(fresh(), checkpoint=whole)
        brief(fresh(), checkpoint=parts)
    with pytest.raises(ValueError, match="other genes at a time"): brief(fresh(), checkpoint=parts)


def test_a_finished_run_returns_at_once(tmp_path):
    path = tmp_path/"c.safetensors"
    one, two = fresh(), fresh()
    history = brief(one, checkpoint=path)
    before = path.stat().st_mtime_ns
    two.after_step = None # a single step would fail
    pd.testing.assert_frame_equal(brief(two, checkpoint=path), history, check_exact=True)
    assert digest(one) == digest(two) and path.stat().st_mtime_ns == before


@pytest.mark.parametrize("what, objective, data, settings", [
    ("data", {}, X + 1e-3, {}), ("temperature", {"temperature": 0.5}, X, {}),
    ("learning_rate", {}, X, {"learning_rate": 1e-2}),
    ("schedule", {}, X, {"schedule": "one-cycle"}),
    ("epochs", {}, X, {"epochs": 5}), ("seed", {}, X, {"seed": 1}), ("objective", {"name": "vime"}, X, {}),
    ("width", {"width": 16}, X, {})])
def test_a_checkpoint_of_another_run_is_refused_and_kept(tmp_path, what, objective, data, settings):
    path = tmp_path/"c.safetensors"
    brief(fresh(), checkpoint=path)
    content = path.read_bytes()
    with pytest.raises(ValueError, match=rf"another pretraining \(other .*{what}.*delete it or use another path"):
        brief(fresh(**objective), data, checkpoint=path, **settings)
    assert path.read_bytes() == content


def test_a_run_of_constant_rate_without_donors_is_described_as_in_earlier_versions(tmp_path):
    "So its checkpoints, and those of earlier versions, go on."
    def described(**settings):
        brief(fresh(), checkpoint=tmp_path/"c", **settings)
        (_, metadata), _ = load_tensors(tmp_path/"c"), (tmp_path/"c").unlink()
        return set(metadata["pretraining"])
    usual = {"objective", "width", "depth", "dropout", "corruption_rate", "temperature", "symmetric", "replacement",
             "epochs", "batch_size", "optimizer", "learning_rate", "momentum", "held_out", "seed", "data",
             "initial weights"}
    assert described() == described(schedule="constant") == usual
    assert described(schedule="one-cycle", donors=SOME) == usual | {"schedule", "donors"}


def test_a_checkpoint_of_other_initial_weights_is_refused(tmp_path):
    path, other = tmp_path/"c.safetensors", fresh()
    brief(fresh(), checkpoint=path)
    with torch.no_grad(): next(other.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match="other initial weights"): brief(other, checkpoint=path)


@pytest.mark.parametrize("damage", [
    lambda whole: whole[:len(whole)//2], lambda whole: whole[:-1] + bytes([whole[-1] ^ 1]), lambda whole: b""])
def test_a_damaged_checkpoint_is_refused(tmp_path, damage):
    path = tmp_path/"c.safetensors"
    brief(fresh(), checkpoint=path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="c.safetensors is damaged"): brief(fresh(), checkpoint=path)


def test_an_encoder_is_no_checkpoint(tmp_path):
    save_encoder(tmp_path/"e", Encoder(17, **SMALL))
    with pytest.raises(ValueError, match="another pretraining"): brief(fresh(), checkpoint=tmp_path/"e")


def test_a_full_disk_keeps_the_last_checkpoint_from_which_the_run_goes_on(tmp_path, monkeypatch):
    path = tmp_path/"c.safetensors"
    choice = {"epochs": 6, "checkpoint": path, "checkpoint_every": 2}
    whole = fresh()
    history = brief(whole, epochs=6)
    saves = []
    def full_at_the_second(*arguments):
        saves.append(1)
        if len(saves) == 2: raise OSError(28, "No space left on device")
        return save_file(*arguments)
    from ssl_expr import storage
    save_file = storage.save_file
    with monkeypatch.context() as patch:
        patch.setattr(storage, "save_file", lambda tensors, path, metadata: full_at_the_second(tensors, path, metadata))
        with pytest.raises(OSError, match="The disk is full"): brief(fresh(), **choice)
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and len(load_tensors(path)[0]["history"]) == 2
    again = fresh()
    pd.testing.assert_frame_equal(brief(again, **choice), history, check_exact=True)
    assert digest(again) == digest(whole)


PRETRAIN_SLOWLY = """
import sys, time, numpy as np
from ssl_expr.nets import seeded
from ssl_expr.objective import build
from ssl_expr.pretrain import pretrain
from ssl_expr.storage import tensor_digest
folder, pause = sys.argv[1], float(sys.argv[2])
X = np.random.default_rng(0).normal(size=(53, 17)).astype("float32")
with seeded(3): objective = build("scarf", 17, width=8, depth=2)
step = objective.after_step
def after_step(): time.sleep(pause); step()
objective.after_step = after_step
history = pretrain(objective, X, 40, 16, checkpoint=folder + "/c.safetensors", checkpoint_every=3)
print("END", tensor_digest(objective.state_dict()), history.to_json(double_precision=15))
"""


def test_killed_with_signal_9_in_the_middle_the_same_command_ends_at_the_same_bits(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    def command(folder: Path, pause: float) -> list[str]:
        folder.mkdir(exist_ok=True)
        return [sys.executable, "-c", PRETRAIN_SLOWLY, str(folder), str(pause)]
    def run(folder: Path) -> str:
        done = subprocess.run(command(folder, 0), capture_output=True, text=True, env=environment, check=True)
        return done.stdout.split("END")[1]

    cut = tmp_path/"cut"
    process = subprocess.Popen(command(cut, 0.02), env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (cut/"c.safetensors").exists() and time.monotonic() < deadline: time.sleep(0.01)
    time.sleep(0.1) # into the epochs after the save
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < len(load_tensors(cut/"c.safetensors")[0]["history"]) < 40
    (cut/".partial-01234567-c.safetensors").write_bytes(b"what a kill during a save leaves behind")
    assert run(cut) == run(tmp_path/"whole")
    assert [path.name for path in cut.iterdir()] == ["c.safetensors"]


# ---------------------------------------------------------------------------------------------- what is shown

def test_a_log_gets_about_ten_lines_with_loss_spread_and_rank(capsys):
    brief(fresh(), epochs=57, progress=True)
    lines = capsys.readouterr().out.splitlines()
    assert 8 <= len(lines) <= 12 and lines[0].startswith("scarf epoch 1/57: loss") and "epoch 57/57" in lines[-1]
    assert all("spread" in line and "effective rank" in line and "held out" in line for line in lines)


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(module, "someone_watches", lambda: True)
    brief(fresh(), progress=True)
    shown = capsys.readouterr()
    assert "4/4" in shown.err and "spread" in shown.err and not shown.out


def test_silence_on_request(capsys):
    brief(fresh())
    assert "".join(capsys.readouterr()) == ""


@pytest.mark.parametrize("spread, rank, want", [(0.05, 20., True), (0.5, 1.5, True), (0.5, 20., False)])
def test_a_collapse_is_evident_after_five_epochs_in_a_row(spread, rank, want):
    sick, well = [1, 0.1, 0.1, spread, rank], [1, 0.1, 0.1, 0.9, 30.]
    assert collapsed([well, *[sick]*5]) is want
    assert not collapsed([sick]*4) and not collapsed([*[sick]*4, well])


def test_a_collapsing_run_warns_once_and_a_healthy_one_never():
    objective, steps = fresh(), []
    def silence_from_epoch_3():
        steps.append(1)
        last = objective.encoder.blocks[-1][1]
        if len(steps) > 6: # three steps per epoch
            with torch.no_grad(): last.weight.zero_(); last.bias.fill_(1.)
    objective.after_step = silence_from_epoch_3
    with pytest.warns(UserWarning, match="have collapsed .epoch 7: spread 0.000, effective rank 0.0") as caught:
        brief(objective, epochs=12)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        brief(fresh(), epochs=12)


# ---------------------------------------------------------------------------------------------- encoders on disk

def test_an_encoder_comes_back_with_its_metadata(tmp_path):
    encoder = Encoder(17, 8, 3, 0.5)
    state = torch.get_rng_state()
    save_encoder(tmp_path/"e", encoder, {"genes": list("abc"), "objective": "scarf"})
    again, about = load_encoder(tmp_path/"e")
    assert about == {"genes": list("abc"), "objective": "scarf"} and not again.training
    assert (again.n_genes, again.width, again.depth, again.dropout) == (17, 8, 3, 0.5)
    assert torch.equal(embed(again, X), embed(encoder, X)) and torch.equal(state, torch.get_rng_state())


def test_a_file_that_holds_no_encoder_is_refused(tmp_path):
    for metadata in ({}, {"encoder": {"n_genes": 3}}, {"encoder": {"n_genes": "x"}}, {"encoder": 1}):
        save_tensors(tmp_path/"e", {"weight": torch.ones(2)}, metadata)
        with pytest.raises(ValueError, match="holds no encoder"): load_encoder(tmp_path/"e")


NAMES = [f"gene-{number}" for number in range(17)]


@pytest.mark.parametrize("genes, message", [
    (NAMES[::-1], "reads 17 genes and the data have 17, of which 17 are shared and 1 are in the same place"),
    (NAMES[:12], "reads 17 genes and the data have 12, of which 12 are shared"),
    ([*NAMES, "gene-17"], "reads 17 genes and the data have 18, of which 17 are shared"),
    ([*NAMES[:16], "other"], "of which 16 are shared and 16 are in the same place"), ([], "the data have 0")])
def test_an_encoder_of_other_genes_is_refused_before_torch_sees_them(tmp_path, genes, message):
    save_encoder(tmp_path/"e", Encoder(17, **SMALL), {"genes": NAMES})
    with pytest.raises(ValueError, match=rf"encoder {tmp_path}/e .*{message}.*: prepare the data with") as caught:
        load_encoder(tmp_path/"e", genes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [list, tuple, np.array, pd.Index])
def test_an_encoder_of_the_same_genes_is_read(tmp_path, kind):
    save_encoder(tmp_path/"e", Encoder(17, **SMALL), {"genes": NAMES})
    assert load_encoder(tmp_path/"e", kind(NAMES))[0].n_genes == load_encoder(tmp_path/"e")[0].n_genes == 17


def test_without_stored_names_the_number_of_genes_must_fit(tmp_path):
    save_encoder(tmp_path/"e", Encoder(17, **SMALL))
    assert load_encoder(tmp_path/"e", NAMES)[0].n_genes == 17
    with pytest.raises(ValueError, match="reads 17 genes and the data have 16: prepare"):
        load_encoder(tmp_path/"e", NAMES[:16])
    save_encoder(tmp_path/"wrong", Encoder(17, **SMALL), {"genes": NAMES[:3]})
    with pytest.raises(ValueError, match="reads 17 genes and the data have 3"):
        load_encoder(tmp_path/"wrong", NAMES[:3])


# ---------------------------------------------------------------------------------- averages that shrink to nothing

def test_averages_too_small_to_matter_are_forgotten_and_no_weight_notices(tmp_path, monkeypatch):
    def trained(tiny):
        monkeypatch.setattr(module, "TINY", tiny)
        objective, path = fresh("vime"), tmp_path/f"{tiny}.safetensors"
        brief(objective, epochs=250, learning_rate=0.03, optimizer="rmsprop", checkpoint=path, checkpoint_every=250)
        averages = torch.cat([v.flatten() for k, v in load_tensors(path)[0].items() if k.endswith("square_avg")])
        return digest(objective), int(((averages > 0) & (averages < 1e-30)).sum())
    (kept, without), (plain, left) = trained(1e-30), trained(0.0)
    assert left > 20 and without == 0, "no weight stopped learning, so nothing was tested"
    assert kept == plain
