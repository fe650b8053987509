"Losses against slow versions and closed forms; what trains and what must not."
import json
import math

import pytest
import torch
from torch import nn

import ssl_expr.pretrain  # noqa: F401 registers the objectives
from ssl_expr import objective as contract
from ssl_expr.byol import BYOL, byol_loss
from ssl_expr.denoising import Denoising
from ssl_expr.nets import seeded
from ssl_expr.objective import Objective, TrainingSettings, build, known_settings, objectives, register
from ssl_expr.redundancy import RECIPE, barlow_loss, vicreg_loss
from ssl_expr.scarf import SCARF, nt_xent_loss
from ssl_expr.vime import VIME, vime_loss

G = 24
SMALL = dict(
    scarf=dict(width=8, depth=2, dropout=0.0),
    vime=dict(width=8, depth=2, dropout=0.0),
    byol=dict(width=8, depth=2, dropout=0.0, hidden=16, projection=4),
    vicreg=dict(width=8, depth=2, projection=6),
    **{"barlow-twins": dict(width=8, depth=2, projection=6)},
    **dict.fromkeys(["denoising", "donor-swap", "unmixing", "mixing"], dict(width=8, depth=2)),
)
OURS = {"barlow-twins", "vicreg", "denoising", "donor-swap", "unmixing", "mixing"}
every_objective = pytest.mark.parametrize("name", SMALL)


def seed(number): return torch.Generator().manual_seed(number)
def normal(*shape, number=0): return torch.randn(*shape, generator=seed(number), dtype=torch.float64)


@pytest.fixture
def X(): return normal(64, 3).repeat_interleave(8, 1) + 0.3 * normal(64, G, number=1)


def small(name, X=None, **settings):
    with seeded(0): objective = build(name, G, **SMALL[name] | settings).double()
    if X is not None: objective.fit_corruption(X)
    return objective


def trainable(objective): return [p for p in objective.parameters() if p.requires_grad]


# ---- NT-Xent

def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def slow_nt_xent(z1, z2, temperature, symmetric):
    z1, z2 = z1.tolist(), z2.tolist()
    B, total = len(z1), 0.0
    if not symmetric:
        for i in range(B):
            total -= math.log(math.exp(cosine(z1[i], z2[i]) / temperature)
                              / sum(math.exp(cosine(z1[i], z2[k]) / temperature) for k in range(B)))
        return total / B
    views = z1 + z2
    for i in range(2 * B):
        others = sum(math.exp(cosine(views[i], views[k]) / temperature) for k in range(2 * B) if k != i)
        total -= math.log(math.exp(cosine(views[i], views[(i + B) % (2 * B)]) / temperature) / others)
    return total / (2 * B)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("B", [2, 7])
def test_nt_xent_equals_the_slow_version(B, temperature, symmetric):
    z1, z2 = normal(B, 5), normal(B, 5, number=1)
    want = slow_nt_xent(z1, z2, temperature, symmetric)
    assert nt_xent_loss(z1, z2, temperature, symmetric).item() == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0, 10.0])
@pytest.mark.parametrize("B", [2, 6])
def test_nt_xent_of_orthonormal_vectors_has_its_closed_form(B, temperature):
    z = torch.eye(B, 8, dtype=torch.float64)
    one, both = (nt_xent_loss(z, 3 * z, temperature, symmetric).item() for symmetric in (False, True))
    assert one == pytest.approx(math.log1p((B - 1) * math.exp(-1 / temperature)), abs=1e-12)
    assert both == pytest.approx(math.log1p((2 * B - 2) * math.exp(-1 / temperature)), abs=1e-12)


def test_nt_xent_of_opposite_pairs_has_its_closed_form():
    z = torch.tensor([[1., 0], [-1., 0]], dtype=torch.float64)
    assert nt_xent_loss(z, z).item() == pytest.approx(math.log1p(math.exp(-2)), abs=1e-12)
    assert nt_xent_loss(z, -z).item() == pytest.approx(math.log1p(math.exp(2)), abs=1e-12)


def test_nt_xent_of_collapsed_vectors_is_the_log_of_the_candidates():
    same = torch.ones(5, 3, dtype=torch.float64)
    assert nt_xent_loss(same, same).item() == pytest.approx(math.log(5), abs=1e-12)
    assert nt_xent_loss(same, same, symmetric=True).item() == pytest.approx(math.log(9), abs=1e-12)


def test_only_the_symmetric_form_treats_both_views_alike():
    z1, z2 = normal(6, 4), normal(6, 4, number=1)
    assert nt_xent_loss(z1, z2, symmetric=True) == pytest.approx(nt_xent_loss(z2, z1, symmetric=True).item(), abs=1e-12)
    assert abs(nt_xent_loss(z1, z2) - nt_xent_loss(z2, z1)) > 1e-3


@pytest.mark.parametrize("z1, z2, temperature, word", [
    ((1, 4), (1, 4), 1.0, "at least 2"), ((3, 4), (2, 4), 1.0, "one shape"), ((3, 4), (3, 4), 0, "temperature")])
def test_nt_xent_refuses_what_it_cannot_compare(z1, z2, temperature, word):
    with pytest.raises(ValueError, match=word):
        nt_xent_loss(torch.ones(z1), torch.ones(z2), temperature)


# ---- VIME

@pytest.mark.parametrize("alpha", [0.0, 2.0])
@pytest.mark.parametrize("feature_target", ["corrupted", "all"])
def test_vime_loss_equals_the_slow_version(feature_target, alpha):
    logits, features, x = normal(5, 7), normal(5, 7, number=1), normal(5, 7, number=2)
    changed = normal(5, 7, number=3) > 0.5
    which, squares, counted = 0.0, 0.0, 0
    for i in range(5):
        for g in range(7):
            probability = 1 / (1 + math.exp(-logits[i, g]))
            which -= math.log(probability if changed[i, g] else 1 - probability)
            if changed[i, g] or feature_target == "all":
                squares += (features[i, g] - x[i, g]).item() ** 2
                counted += 1
    want = which / 35 + alpha * squares / counted
    assert vime_loss(logits, features, changed, x, alpha, feature_target).item() == pytest.approx(want, abs=1e-12)


def test_vime_marks_only_entries_that_changed(X, monkeypatch):
    sparse = X * (X > 0.8)  # most values are exactly 0 and are often replaced by 0
    vime, seen = small("vime", sparse), {}
    def spy(logits, features, changed, x, *_):
        seen.update(changed=changed, x=x)
        return logits.sum()
    monkeypatch.setitem(VIME.loss.__globals__, "vime_loss", spy)
    vime.loss(sparse, seed(4))
    corrupted, drawn = vime.corruption(sparse, seed(4))
    assert torch.equal(seen["changed"], corrupted != sparse) and torch.equal(seen["x"], sparse)
    assert not (seen["changed"] & ~drawn).any()
    assert seen["changed"].sum() < 0.7 * drawn.sum()


def test_vime_without_changes_has_no_feature_term(X):
    vime = small("vime", X, corruption_rate=0.0)
    with torch.no_grad(): logits = vime.mask_decoder(vime.encoder(X))
    assert vime.loss(X, seed(0)).item() == pytest.approx(torch.nn.functional.softplus(logits).mean().item(), abs=1e-12)


@pytest.mark.parametrize("output, reach", [("sigmoid", False), ("linear", True)])
def test_only_a_linear_output_reaches_negative_values(X, output, reach, monkeypatch):
    vime, seen = small("vime", X, feature_output=output), {}
    with torch.no_grad(): vime.feature_decoder[-1].bias.fill_(-3)
    monkeypatch.setitem(VIME.loss.__globals__, "vime_loss", lambda a, features, *_: seen.update(f=features) or a.sum())
    vime.loss(X, seed(0))
    assert (seen["f"].min() < 0).item() is reach


def test_vime_drawn_once_gives_every_row_its_own_damage_in_any_batch_order(X):
    vime = small("vime", X, redraw=False)
    rows = torch.arange(20)
    first = vime.corrupt(X[rows], seed(1), rows)
    order = torch.randperm(20, generator=seed(2))
    assert torch.equal(vime.corrupt(X[order], seed(9), order), first[order])
    assert not torch.equal(first[0] != X[0], first[1] != X[1])
    restored = small("vime", X, redraw=False)
    restored.load_state_dict(vime.state_dict())
    assert torch.equal(restored.corrupt(X[rows], seed(77), rows), first)
    other = small("vime", X, redraw=False)
    assert not torch.equal(other.corrupt(X[rows], seed(77), rows), first)


def test_vime_drawn_once_needs_rows_in_training_and_none_when_judged(X):
    vime = small("vime", X, redraw=False)
    with pytest.raises(ValueError, match="needs `rows`"): vime.loss(X, seed(0))
    with pytest.raises(ValueError, match="needs `rows`"): vime.loss(X, seed(0), torch.arange(3))
    assert vime.eval().loss(X, seed(0)).item() == vime.loss(X, seed(0)).item()


def test_vime_redraws_by_default(X):
    vime, generator, rows = small("vime", X), seed(0), torch.arange(64)
    assert not torch.equal(vime.corrupt(X, generator, rows), vime.corrupt(X, generator, rows))


# ---- BYOL

@pytest.mark.parametrize("target, want", [([2., 0.], 0), ([0., 3.], 2), ([-5., 0.], 4), ([1., 1.], 2 - math.sqrt(2))])
def test_byol_loss_has_its_closed_values(target, want):
    p = torch.tensor([[1., 0.]], dtype=torch.float64)
    assert byol_loss(p, torch.tensor([target], dtype=torch.float64)).item() == pytest.approx(want, abs=1e-12)


def test_byol_loss_is_the_squared_distance_of_unit_vectors():
    p, t = normal(9, 5), normal(9, 5, number=1)
    want = sum(2 - 2 * cosine(a, b) for a, b in zip(p.tolist(), t.tolist(), strict=True)) / 9
    assert byol_loss(p, t).item() == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_the_target_is_the_exact_moving_average_after_several_steps(X, decay):
    byol = small("byol", ema_decay=decay)
    def online(): return {**{f"0.{k}": v for k, v in byol.encoder.named_parameters()},
                          **{f"1.{k}": v for k, v in byol.projector.named_parameters()}}
    want = {key: value.detach().clone() for key, value in online().items()}
    start = {key: value.clone() for key, value in want.items()}
    optimizer, generator = torch.optim.SGD(trainable(byol), 0.5), seed(0)
    for _ in range(5):
        optimizer.zero_grad(); byol.loss(X, generator).backward(); optimizer.step(); byol.after_step()
        want = {key: decay * value + (1 - decay) * online()[key].detach() for key, value in want.items()}
    target = dict(byol.target.named_parameters())
    assert target.keys() == want.keys()
    for key in want: torch.testing.assert_close(target[key], want[key], rtol=0, atol=1e-14)
    assert all(torch.equal(value, start[key]) for key, value in target.items()) is (decay == 1.0)


def test_no_gradient_reaches_the_target_and_all_of_the_online_network_gets_one(X):
    byol = small("byol", symmetric=True)
    byol.loss(X, seed(0)).backward()
    assert all(p.grad is None and not p.requires_grad for p in byol.target.parameters())
    online = [p for part in (byol.encoder, byol.projector, byol.predictor) for p in part.parameters()]
    assert len(online) == len(trainable(byol)) and all(p.grad is not None for p in online)


def test_byol_loss_stops_the_gradient_of_its_target():
    p, t = normal(3, 4).requires_grad_(), normal(3, 4, number=1).requires_grad_()
    byol_loss(p, t).backward()
    assert p.grad is not None and t.grad is None


def test_byol_reads_the_clean_view_online_and_the_other_in_the_target(X):
    byol = small("byol").eval()
    corrupted, _ = byol.corruption(X, seed(5))
    def direction(seen, other):
        return byol_loss(byol.predictor(byol.projector(byol.encoder(seen))), byol.target(other)).item()
    assert byol.loss(X, seed(5)).item() == pytest.approx(direction(X, corrupted), abs=1e-12)
    both = small("byol", symmetric=True).eval()
    assert both.loss(X, seed(5)).item() == pytest.approx(direction(X, corrupted) + direction(corrupted, X), abs=1e-12)


def test_the_target_starts_as_a_copy_that_shares_no_memory():
    byol = small("byol")
    pairs = list(zip([*byol.encoder.parameters(), *byol.projector.parameters()], byol.target.parameters(), strict=True))
    assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in pairs)


# ---- Barlow Twins and VICReg

def columns(z): return [list(column) for column in zip(*z.tolist(), strict=True)]
def mean(values): return sum(values) / len(values)
def product(a, b): return sum(x * y for x, y in zip(a, b, strict=True))
def centred(column): return [value - mean(column) for value in column]


def slow_barlow(z1, z2, off_diagonal):
    def standard(column):
        column = centred(column)
        return [value / math.sqrt(product(column, column) / len(column) + 1e-5) for value in column]
    one, two = ([standard(column) for column in columns(z)] for z in (z1, z2))
    total = 0.0
    for j in range(len(one)):
        for k in range(len(two)):
            correlation = product(one[j], two[k]) / len(z1)
            total += (1 - correlation)**2 if j == k else off_diagonal * correlation**2
    return total


def slow_vicreg(z1, z2, invariance, variance, covariance):
    B, H = z1.shape
    total = invariance * mean([(a - b)**2 for a, b in zip(z1.flatten().tolist(), z2.flatten().tolist(), strict=True)])
    for units in (columns(z1), columns(z2)):
        shared = [[product(centred(a), centred(b)) / (B - 1) for b in units] for a in units]
        total += variance * mean([max(0.0, 1 - math.sqrt(shared[j][j] + 1e-4)) for j in range(H)])
        total += covariance * sum(shared[j][k]**2 for j in range(H) for k in range(H) if j != k) / H
    return total


@pytest.mark.parametrize("B, H", [(2, 3), (9, 5)])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_losses_of_units_equal_the_slow_versions(B, H, scale):
    z1, z2 = scale * normal(B, H) + 3, scale * normal(B, H, number=1) - 1
    for weight in (0.0, 5e-3, 2.0):
        assert barlow_loss(z1, z2, weight).item() == pytest.approx(slow_barlow(z1, z2, weight), rel=1e-11)
    for weights in ((25., 25., 1.), (1., 0., 0.), (0., 2., 0.), (0., 0., 3.)):
        assert vicreg_loss(z1, z2, *weights).item() == pytest.approx(slow_vicreg(z1, z2, *weights), rel=1e-11)


APART = torch.tensor([[1., 1., 1.], [1., -1., -1.], [-1., 1., -1.], [-1., -1., 1.]], dtype=torch.float64)


@pytest.mark.parametrize("size", [0.1, 1.0, 50.0])
def test_barlow_loss_has_its_closed_forms(size):
    z, weight = size * APART, 0.3
    c = size**2 / (size**2 + 1e-5)    # of a unit with itself
    def loss(one, two): return barlow_loss(one, two, weight).item()
    assert loss(z, z + 7) == pytest.approx(3 * (1 - c)**2, abs=1e-12)
    assert loss(z, z * torch.tensor([1, -1, 1])) == pytest.approx(2 * (1 - c)**2 + (1 + c)**2, abs=1e-12)
    assert loss(z, z[:, [1, 2, 0]]) == pytest.approx(3 + weight * 3 * c**2, abs=1e-12)
    assert loss(z[:, [0, 0, 0]], z[:, [0, 0, 0]]) == pytest.approx(3 * (1 - c)**2 + weight * 6 * c**2, abs=1e-12)
    assert loss(torch.ones_like(z), z) == 3


@pytest.mark.parametrize("size", [0.1, 0.5, 2.0])
def test_vicreg_loss_has_its_closed_forms(size):
    z, variance = size * APART, size**2 * 4 / 3
    lacking = max(0.0, 1 - math.sqrt(variance + 1e-4))
    assert vicreg_loss(z, z, 25, 25, 1).item() == pytest.approx(25 * 2 * lacking, abs=1e-12)
    assert vicreg_loss(z, z + 0.3, 25, 0, 1).item() == pytest.approx(25 * 0.09, abs=1e-12)
    copies = z[:, [0, 0, 0]]
    assert vicreg_loss(copies, copies, 25, 0, 1).item() == pytest.approx(2 * 2 * variance**2, abs=1e-12)
    constant = torch.ones_like(z)
    assert vicreg_loss(constant, constant).item() == pytest.approx(25 * 2 * (1 - 0.01), abs=1e-12)


@pytest.mark.parametrize("loss", [barlow_loss, vicreg_loss])
def test_losses_of_units_treat_both_views_and_every_order_alike(loss):
    z1, z2 = normal(8, 4), normal(8, 4, number=1)
    want = loss(z1, z2).item()
    samples, units = torch.randperm(8, generator=seed(2)), torch.randperm(4, generator=seed(3))
    for one, two in ((z2, z1), (z1[samples], z2[samples]), (z1[:, units], z2[:, units])):
        assert loss(one, two).item() == pytest.approx(want, rel=1e-12)
    assert loss(z1, z2[samples]).item() != pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize("loss", [barlow_loss, vicreg_loss])
def test_a_unit_that_does_not_move_has_a_finite_gradient(loss):
    z = normal(6, 3)
    z[:, 1] = 2.0
    z.requires_grad_()
    loss(z, z * 1.1).backward()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("loss", [barlow_loss, vicreg_loss])
@pytest.mark.parametrize("one, two", [((1, 3), (1, 3)), ((4, 3), (4, 2)), ((4, 3), (3, 3)), ((4,), (4,))])
def test_losses_of_units_refuse_what_they_cannot_compare(loss, one, two):
    with pytest.raises(ValueError, match="two views must be .B, H. matrices of one shape with B of at least 2"):
        loss(torch.ones(one), torch.ones(two))


@pytest.mark.parametrize("name, compare", [
    ("barlow-twins", lambda a, b: barlow_loss(a, b) / 6), ("vicreg", vicreg_loss)])
def test_two_views_of_the_same_batch_are_compared_after_the_head(X, name, compare):
    task, generator = small(name, X).eval(), seed(5)
    views = [task.corruption(X, generator)[0] for _ in range(2)]
    assert not torch.equal(*views)
    want = compare(*(task.head(task.encoder(view)) for view in views))
    assert task.loss(X, seed(5)).item() == pytest.approx(want.item(), rel=1e-12)


# ---- denoising, donor swap, un-mixing, mixing

def rebuilt(task, damaged): return task.decoder(task.encoder(damaged))


@pytest.mark.parametrize("name, settings", [
    ("denoising", {}), ("donor-swap", {}), ("mixing", {}), ("unmixing", dict(agreement=0.0))])
def test_the_whole_clean_profile_is_asked_of_every_damaged_view(X, name, settings):
    task, generator = small(name, X, **settings).eval(), seed(5)
    views = [task.corruption(X, generator)[0] for _ in range(task.n_views)]
    assert len(views) == (2 if name == "unmixing" else 1)
    assert all((view != X).any(1).double().mean() > 0.9 for view in views)   # a sample may be its own donor
    want = sum((rebuilt(task, view) - X).square().mean() for view in views) / len(views)
    assert task.loss(X, seed(5)).item() == pytest.approx(want.item(), rel=1e-12)


def test_undamaged_the_question_is_that_of_an_autoencoder(X):
    task = small("denoising", X, corruption_rate=0.0).eval()
    assert task.loss(X, seed(5)).item() == pytest.approx((rebuilt(task, X) - X).square().mean().item(), rel=1e-12)


def test_donor_swap_is_denoising_with_one_donor_for_all_replaced_genes(X):
    one, other = small("donor-swap", X), small("denoising", X, replacement="donor")
    assert one.loss(X, seed(3)).item() == other.loss(X, seed(3)).item() != small("denoising", X).loss(X, seed(3)).item()
    assert isinstance(one, Denoising)


@pytest.mark.parametrize("term, apart", [("barlow", lambda a, b: barlow_loss(a, b) / 8), ("vicreg", vicreg_loss)])
def test_unmixing_adds_what_two_embeddings_lack_to_saying_the_same(X, term, apart):
    task, generator = small("unmixing", X, agreement=0.7, term=term).eval(), seed(5)
    z1, z2 = (task.encoder(task.corruption(X, generator)[0]) for _ in range(2))
    alone = small("unmixing", X, agreement=0.0, term=term).eval().loss(X, seed(5))
    assert task.loss(X, seed(5)).item() == pytest.approx((alone + 0.7 * apart(z1, z2)).item(), rel=1e-12)


def test_what_agreement_asks_reaches_the_encoder_and_not_the_decoder(X):
    tasks = [small("unmixing", X, agreement=agreement) for agreement in (0.0, 0.2)]
    for task in tasks: task.loss(X, seed(5)).backward()
    (_, one), (_, other) = ([list(part.parameters()) for part in (task.encoder, task.decoder)] for task in tasks)
    assert all(torch.allclose(a.grad, b.grad, rtol=1e-9) for a, b in zip(one, other, strict=True))
    first = [next(task.encoder.parameters()).grad for task in tasks]
    assert not torch.allclose(*first, rtol=1e-3)


def test_mixing_carries_no_corruption_that_it_does_not_use(X):
    task = small("mixing", X, largest_share=0.2)
    assert [type(part).__name__ for part in task.children()] == ["Encoder", "Mixture", "Sequential"]
    assert task.corruption(X, seed(1))[1].max() < 0.2 and task.settings()["largest_share"] == 0.2


# ---- all objectives

def test_every_registered_objective_keeps_the_contract_below(): assert SMALL.keys() == objectives().keys()


def test_the_papers_objectives_are_registered_and_ours_say_that_they_are_ours():
    assert {"scarf": SCARF, "vime": VIME, "byol": BYOL}.items() <= objectives().items()
    assert {name for name, kind in objectives().items() if kind.ours} == OURS


def test_ours_share_one_recipe():
    assert RECIPE == TrainingSettings("adamw", 1e-3, 64, 80, schedule="one-cycle")
    for kind in (objectives()[name] for name in OURS):
        assert kind.paper_training == kind.code_training == RECIPE and not kind.code_settings
        assert {"width": 512, "depth": 3, "dropout": 0.0}.items() <= known_settings(kind).items()


@every_objective
def test_the_loss_falls_on_toy_data(X, name):
    objective, generator = small(name, X), seed(0)
    optimizer = torch.optim.Adam(trainable(objective), 3e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad(); loss = objective.loss(X, generator, torch.arange(len(X)))
        loss.backward(); optimizer.step(); objective.after_step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.97 * sum(losses[:5])


@every_objective
def test_gradients_reach_every_layer_of_the_encoder(X, name):
    objective = small(name, X)
    objective.loss(X, seed(0)).backward()
    gradients = {key: p.grad for key, p in objective.encoder.named_parameters()}
    assert all(gradients[f"blocks.{block}.0.weight"].abs().sum() > 0 for block in range(2))


@pytest.mark.parametrize("name, settings", [("mixing", {})] + [
    (name, dict(replacement=replacement)) for name in SMALL if name != "mixing"
    for replacement in ("uniform", "marginal", "batch", "donor")])
def test_a_checkpoint_never_holds_samples(X, name, settings):
    objective = small(name, X, **settings)
    rows = {tuple(row) for row in X.tolist()} | {tuple(column) for column in X.T.tolist()}
    for key, value in objective.state_dict().items():
        assert not key.endswith("pool")
        assert value.ndim < 2 or not any(tuple(row) in rows for row in value.tolist())


@every_objective
def test_no_two_tensors_of_a_checkpoint_share_memory(X, name):
    tensors = [t for t in small(name, X).state_dict().values() if t.numel()]
    assert len({t.data_ptr() for t in tensors}) == len(tensors)


@every_objective
def test_the_same_seeds_give_the_same_loss(X, name):
    def value(number): return small(name, X, dropout=0.0).loss(X, seed(number)).item()
    assert value(1) == value(1) != value(2)


@every_objective
def test_dropout_uses_the_global_state_and_corruption_the_generator(X, name):
    objective = small(name, X, dropout=0.5)
    generator = seed(1)
    torch.manual_seed(0); first = objective.loss(X, generator).item()
    after = generator.get_state()
    torch.manual_seed(0); same = objective.loss(X, seed(1)).item()
    torch.manual_seed(1); other_generator = seed(1); other = objective.loss(X, other_generator).item()
    assert first == same != other
    assert torch.equal(after, other_generator.get_state())


@every_objective
def test_the_input_of_a_loss_stays_untouched(X, name):
    before = X.clone()
    small(name, X).loss(X, seed(0)).backward()
    assert torch.equal(X, before)


@every_objective
def test_settings_rebuild_the_objective_through_json(name):
    objective = build(name, G, **SMALL[name] | objectives()[name].code_settings)
    again = build(name, G, **json.loads(json.dumps(objective.settings())))
    assert again.settings() == objective.settings() and str(again) == str(objective)
    assert set(objective.settings()) == set(known_settings(type(objective)))


@every_objective
@pytest.mark.parametrize("B", [0, 1])
def test_a_batch_of_fewer_than_two_samples_is_refused_with_advice(X, name, B):
    with pytest.raises(ValueError, match=f"{name} needs at least 2 samples in a batch, got {B}: choose a batch size"):
        small(name, X).loss(X[:B], seed(0))


@every_objective
def test_a_batch_of_another_width_is_refused(X, name):
    with pytest.raises(ValueError, match=f"{name} was built for {G} genes"):
        small(name, X).loss(X[:, :5], seed(0))


@pytest.mark.parametrize("name, setting", [
    ("scarf", dict(temperature=0)), ("scarf", dict(temperature="hot")), ("scarf", dict(corruption_rate=1.2)),
    ("scarf", dict(replacement="zeros")), ("scarf", dict(symmetric="no")), ("scarf", dict(width=-1)),
    ("vime", dict(alpha=-1)), ("vime", dict(feature_target="some")), ("vime", dict(feature_output="tanh")),
    ("vime", dict(redraw=1)), ("vime", dict(corruption_rate=None)), ("byol", dict(ema_decay=1.01)),
    ("byol", dict(ema_decay=-0.1)), ("byol", dict(hidden=0)), ("byol", dict(projection=2.0)),
    ("byol", dict(head_dropout=2)), ("byol", dict(symmetric=None)), ("byol", dict(depth=0)),
    ("barlow-twins", dict(projection=0)), ("vicreg", dict(replacement="zeros")), ("denoising", dict(width=1.5)),
    ("donor-swap", dict(corruption_rate=2)), ("unmixing", dict(agreement=-1)), ("unmixing", dict(term="cosine")),
    ("unmixing", dict(replacement=None)), ("mixing", dict(largest_share=0.5)), ("mixing", dict(largest_share=True)),
])
def test_a_setting_that_makes_no_sense_is_refused_by_name(name, setting):
    with pytest.raises(ValueError, match=next(iter(setting)).replace("_", "[_ ]")):
        build(name, G, **setting)


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown method 'skarf': known are .*byol.*scarf.*vime"):
        build("skarf", G)
    with pytest.raises(ValueError, match="unknown setting 'tau' for scarf: known are .*temperature"):
        build("scarf", G, tau=1)


def test_an_objective_without_a_name_cannot_be_registered():
    class Nameless(Objective): pass
    with pytest.raises(ValueError, match="Nameless needs a class attribute `name`"): register(Nameless)
    assert "" not in contract._registered


def test_defaults_are_table_s3_and_the_code_variants_are_named():
    assert SCARF.paper_training == TrainingSettings("adam", 1e-4, 256, 1000)
    assert VIME.paper_training == TrainingSettings("rmsprop", 1e-3, 32, 500)
    assert BYOL.paper_training == TrainingSettings("sgd", 1e-4, 32, 50, momentum=0.9)
    assert BYOL.code_training == TrainingSettings("adam", 1e-4, 32, 200)
    assert {kind.name: kind.code_settings for kind in (SCARF, VIME, BYOL)} == {
        "scarf": {"symmetric": True}, "vime": {"feature_target": "all", "redraw": False},
        "byol": {"head_dropout": 0.2, "symmetric": True}}
    for kind in (SCARF, VIME, BYOL):
        text = known_settings(kind)
        assert text["corruption_rate"] == 0.3 and all(text[key] != value for key, value in kind.code_settings.items())


def test_heads_have_the_layers_of_the_paper():
    def shape(head): return [(m.in_features, m.out_features) for m in head if isinstance(m, nn.Linear)]
    assert shape(SCARF(G).head) == [(256, 256)] * 2
    assert shape(VIME(G).mask_decoder) == shape(VIME(G).feature_decoder) == [(256, 256)] * 4 + [(256, G)]
    assert shape(BYOL(G).projector) == shape(BYOL(G).predictor) == [(256, 4096), (4096, 256)]
    masks = {kind.name: (kind(G).corruption.mask, kind(G).corruption.replacement) for kind in (SCARF, VIME, BYOL)}
    assert masks == {"scarf": ("fixed_count", "uniform"), "vime": ("bernoulli", "marginal"),
                     "byol": ("bernoulli", "batch")}
