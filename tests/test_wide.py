"Wide layers: block by block is the same training."
import copy

import numpy as np
import pytest
import torch
from torch import nn

from ssl_expr import wide
from ssl_expr.finetune import FineTuning, batch_sizes, new_head, plan_runs, train_whole
from ssl_expr.nets import Encoder, seeded
from ssl_expr.splits import Split
from ssl_expr.wide import WideLinear, in_blocks

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(wide, "LEAST_GENES", 20)
    monkeypatch.setattr(wide, "BLOCK", 8)


def network(n_genes, seed=0, dtype=torch.float64):
    "Genes to genes, past few units."
    with seeded(seed): return nn.Sequential(WideLinear(n_genes, 6), nn.Tanh(), WideLinear(6, n_genes)).to(dtype)


def adam(weights): return torch.optim.Adam(weights, 1e-2, fused=True)


def train(net, optimizer, x, steps=5):
    for _ in range(steps):
        optimizer.zero_grad()
        (net(x) - x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("n_genes", [20, 24, 31, 33])
@pytest.mark.parametrize("batch, seed", [(1, 0), (2, 1), (7, 2)])
def test_training_in_blocks_equals_training_in_one_piece(n_genes, batch, seed):
    one, other = network(n_genes, seed), network(n_genes, seed)
    x = torch.randn(batch, n_genes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    train(one, torch.optim.Adam(one.parameters(), 1e-2, foreach=False), x)
    with in_blocks(other, adam) as optimizer:
        assert len(optimizer.blocks) == 2*-(-n_genes//8)
        train(other, optimizer, x)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_a_layer_used_several_times_gets_the_sum_of_its_gradients():
    one, other = network(30), network(30)
    views = torch.randn(3, 4, 30, dtype=torch.float64)
    def loss(net): return sum(weight*net(view).square().sum() for weight, view in zip((1, 2, -1), views, strict=True))
    plain = torch.optim.SGD(one.parameters(), 1e-3)
    loss(one).backward(); plain.step()
    with in_blocks(other, lambda weights: torch.optim.SGD(weights, 1e-3)) as optimizer:
        loss(other).backward(); optimizer.step()
    for a, b in zip(one.parameters(), other.parameters(), strict=True): torch.testing.assert_close(a, b)


def test_the_input_of_a_wide_layer_gets_its_gradient_too():
    layer = network(30)[0]
    x = torch.randn(4, 30, dtype=torch.float64, requires_grad=True)
    plain, = torch.autograd.grad(layer(x).square().sum(), x)
    with in_blocks(layer, adam):
        blocked, = torch.autograd.grad(layer(x).square().sum(), x)
    torch.testing.assert_close(blocked, plain)


def test_a_penalty_on_the_weights_themselves_counts():
    one, other = network(30), network(30)
    x = torch.randn(4, 30, dtype=torch.float64)
    def loss(net): return net(x).square().mean() + 0.1*net[0].weight.square().sum() + net[2].weight.abs().sum()
    plain = torch.optim.SGD(one.parameters(), 1e-2)
    with in_blocks(other, lambda weights: torch.optim.SGD(weights, 1e-2)) as blocked:
        for net, optimizer in ((one, plain), (other, blocked)):
            for _ in range(3): optimizer.zero_grad(); loss(net).backward(); optimizer.step()
    for a, b in zip(one.parameters(), other.parameters(), strict=True): torch.testing.assert_close(a, b)


def test_a_copy_made_while_training_is_an_ordinary_network():
    net, x = network(30), torch.randn(4, 30, dtype=torch.float64)
    with in_blocks(net, adam) as optimizer:
        train(net, optimizer, x)
        twin = copy.deepcopy(net)
    before = twin[0].weight.clone()
    train(twin, adam(twin.parameters()), x)
    assert twin[0].factors is None and not torch.equal(twin[0].weight, before)


def test_a_layer_without_a_bias_trains_too():
    net, x = WideLinear(30, 4, bias=False), torch.randn(5, 30)
    before = net.weight.clone()
    with in_blocks(nn.Sequential(net, nn.Linear(4, 30)), adam) as optimizer:
        net(x).square().sum().backward()
        optimizer.step()
    assert not torch.equal(net.weight, before)


def test_what_zero_grad_forgets_moves_nothing():
    net, x = network(30), torch.randn(4, 30, dtype=torch.float64)
    before = copy.deepcopy(net.state_dict())
    with in_blocks(net, adam) as optimizer:
        net(x).sum().backward()
        optimizer.zero_grad()
        optimizer.step()
    for name, weight in net.state_dict().items(): assert torch.equal(weight, before[name])


def test_a_layer_that_stands_still_is_left_as_it_is():
    net, x = network(30), torch.randn(4, 30, dtype=torch.float64)
    net[0].requires_grad_(False)
    before = net[0].weight.clone()
    with in_blocks(net, adam) as optimizer: train(net, optimizer, x)
    assert torch.equal(net[0].weight, before) and net[0].factors is None


@pytest.mark.parametrize("fails", [False, True])
def test_afterwards_the_layers_are_as_torch_makes_them(fails):
    net, x = network(30), torch.randn(4, 30, dtype=torch.float64)
    try:
        with in_blocks(net, adam) as optimizer:
            train(net, optimizer, x)
            if fails: raise KeyboardInterrupt
    except KeyboardInterrupt: pass
    for layer in (net[0], net[2]): assert layer.weight.is_contiguous() and layer.factors is None
    net(x).sum().backward()
    assert all(weight.grad is not None for weight in net.parameters())


def test_narrow_layers_are_left_to_the_optimiser_alone(monkeypatch):
    monkeypatch.setattr(wide, "LEAST_GENES", 31)
    with in_blocks(network(30), adam) as optimizer: assert not optimizer.blocks and len(optimizer.optimizers) == 1


def by_hand(encoder, X, y, run, settings):
    "Unfrozen fine-tuning as anybody would write it."
    model = nn.Sequential(copy.deepcopy(encoder), new_head(encoder.width, 2, run.seed).double())
    optimizer = torch.optim.Adam(model.parameters(), settings.learning_rate, foreach=False)
    order, train = torch.Generator().manual_seed(run.seed), torch.tensor(run.train)
    with seeded(run.seed):
        for _ in range(settings.epochs):
            model.train()
            for rows in train[torch.randperm(len(train), generator=order)].split(batch_sizes(len(train), 4)):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(X[rows]), y[rows]).backward()
                optimizer.step()
    return model


@pytest.mark.parametrize("n_genes, seed", [(20, 0), (37, 1), (64, 2)])
def test_a_whole_network_fine_tuned_in_blocks_equals_one_fine_tuned_by_hand(monkeypatch, n_genes, seed):
    rng = np.random.default_rng(seed)
    X, y = torch.from_numpy(rng.normal(size=(40, n_genes))), rng.integers(2, size=40)
    X[:, 0] += 2*torch.from_numpy(y)
    split = Split(np.arange(30), np.arange(22), np.arange(22, 30), np.arange(30, 40))
    run, = plan_runs(y, split, [1.0], repeats=1, seed=seed)
    with seeded(seed): encoder = Encoder(n_genes, width=6, depth=2, dropout=0.2).double()
    settings = FineTuning(learning_rate=1e-3, batch_size=4, epochs=4)
    monkeypatch.setattr("ssl_expr.finetune.new_head", lambda *given: new_head(*given).double())
    # a score that improves at every epoch keeps the last weights
    scores = iter([4., 3., 2., 1.])
    monkeypatch.setattr("ssl_expr.finetune.validation_score", lambda *_: next(scores))
    ours, kept = train_whole(encoder, X, torch.from_numpy(y), run, 2, settings)
    assert kept == 4
    plain = by_hand(encoder, X, torch.from_numpy(y), run, settings).state_dict()
    # a bias before batch normalisation has no gradient but rounding, of which Adam makes steps of 1e-11
    for name, weight in ours.state_dict().items():
        torch.testing.assert_close(weight, plain[name], rtol=1e-9, atol=1e-10)
