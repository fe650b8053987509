"Masks and replacements: exact counts, known sources, one generator."
import itertools

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp, kstest

from ssl_expr import corruption as module
from ssl_expr.corruption import POOLED, Corruption, bernoulli_mask, fixed_count_mask, permute_columns
from ssl_expr.mixing import Mixture

MASKS, REPLACEMENTS = ("fixed_count", "bernoulli"), ("uniform", "marginal", "batch", "donor")
every_kind = pytest.mark.parametrize("mask, replacement", list(itertools.product(MASKS, REPLACEMENTS)))


def seed(number): return torch.Generator().manual_seed(number)


@pytest.fixture
def X(): return torch.randn(60, 101, generator=seed(0), dtype=torch.float64)


@pytest.mark.parametrize("n_genes, rate, want",
                         [(101, 0.0, 0), (101, 0.3, 30), (101, 1.0, 101), (100, 0.29, 29), (7, 0.1, 0), (1, 1.0, 1)])
def test_every_sample_loses_the_same_number_of_genes(n_genes, rate, want):
    mask = fixed_count_mask(50, n_genes, rate, seed(0))
    assert mask.dtype == torch.bool and mask.sum(1).tolist() == [want] * 50


def test_every_subset_of_genes_is_equally_likely():
    mask = fixed_count_mask(60_000, 5, 0.4, seed(0))
    counts = torch.bincount((mask * 2 ** torch.arange(5)).sum(1), minlength=32)
    counts = counts[counts > 0].double()
    assert len(counts) == 10
    chi_square = ((counts - 6000).square() / 6000).sum()
    assert chi_square < 27.9  # 0.999 quantile with 9 degrees of freedom


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9, 1.0])
def test_a_coin_decides_every_entry(rate):
    mask = bernoulli_mask(500, 200, rate, seed(0)).double()
    deviation = (rate * (1 - rate)) ** 0.5
    assert abs(mask.mean() - rate) <= 4 * deviation / 100_000 ** 0.5
    per_gene = (mask.mean(0) - rate).abs().max()
    assert per_gene <= 5 * deviation / 500 ** 0.5
    assert abs(mask.sum(1).var() - 200 * deviation ** 2) <= 0.3 * 200 * deviation ** 2


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan"), "0.3"])
@pytest.mark.parametrize("draw", [fixed_count_mask, bernoulli_mask])
def test_a_rate_outside_zero_to_one_is_refused(draw, rate):
    with pytest.raises(ValueError, match="rate must be a number between 0 and 1"):
        draw(2, 3, rate, None)


@every_kind
def test_the_input_stays_untouched_and_nothing_moves_outside_the_mask(X, mask, replacement):
    batch = X[:20].clone()
    corrupted, drawn = Corruption(101, 0.3, mask, replacement).double().fit(X[20:])(batch, seed(1))
    assert torch.equal(batch, X[:20])
    assert torch.equal(corrupted[~drawn], batch[~drawn])
    assert (corrupted != batch)[drawn].double().mean() > 0.9
    assert corrupted.dtype == batch.dtype


@every_kind
@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_nothing_or_everything_is_drawn_at_the_ends(X, mask, replacement, rate):
    corrupted, drawn = Corruption(101, rate, mask, replacement).double().fit(X)(X[:8], seed(1))
    assert drawn.double().mean() == rate
    assert rate == 1.0 or torch.equal(corrupted, X[:8])


@every_kind
def test_the_same_seed_gives_the_same_draws(X, mask, replacement):
    corruption = Corruption(101, 0.3, mask, replacement).fit(X)
    first, again, other = (corruption(X[:9], seed(number)) for number in (5, 5, 6))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1]) and not torch.equal(first[0], other[0])


@every_kind
def test_the_global_random_state_is_neither_used_nor_moved(X, mask, replacement):
    state = torch.get_rng_state()
    Corruption(101, 0.3, mask, replacement).fit(X)(X[:9], seed(5))
    assert torch.equal(torch.get_rng_state(), state)


def test_uniform_values_fill_the_training_range_and_stay_inside(X):
    corruption = Corruption(101, 1.0, replacement="uniform").double().fit(X)
    drawn, _ = corruption(X[:1].expand(4000, -1), seed(2))
    low, high = X.amin(0), X.amax(0)
    assert ((drawn >= low) & (drawn <= high)).all()
    share = (drawn - low) / (high - low)
    assert (share.mean(0) - 0.5).abs().max() < 5 * (1 / 12 / 4000) ** 0.5
    assert share.amin(0).max() < 0.01 and share.amax(0).min() > 0.99


def test_marginal_values_were_seen_in_that_gene_of_a_training_row(X):
    held_out = X[40:]
    drawn, _ = Corruption(101, 1.0, replacement="marginal").fit(X[:40])(held_out, seed(2))
    assert (drawn[:, None, :] == X[None, :40]).any(1).all()
    assert not (drawn[:, None, :] == held_out[None]).any()


def test_marginal_values_come_from_every_row_and_every_entry_has_its_own():
    X = torch.arange(10.)[:, None].expand(10, 200)
    drawn, _ = Corruption(200, 1.0, replacement="marginal").fit(X)(X[:100].repeat(10, 1), seed(3))
    counts = torch.bincount(drawn.long().flatten(), minlength=10)
    assert (counts - 2000).abs().max() < 5 * (20_000 * 0.1 * 0.9) ** 0.5
    assert all(len(row.unique()) > 5 for row in drawn)


def giving_rows(drawn, mask, pool):
    "For each sample, the rows of the pool that all of its drawn values may come from."
    return [{row for row in range(len(pool)) if torch.equal(pool[row][chosen], sample[chosen])}
            for sample, chosen in zip(drawn, mask, strict=True)]


@pytest.mark.parametrize("mask", MASKS)
def test_all_replaced_values_of_a_sample_come_from_one_training_row(X, mask):
    rows = torch.arange(1, 60, 3)
    drawn, chosen = Corruption(101, 0.3, mask, "donor").fit(X, rows)(X[:40], seed(2))
    assert all(len(found) == 1 and found <= set(rows.tolist()) for found in giving_rows(drawn, chosen, X))


def test_a_donor_is_drawn_for_every_sample_and_each_row_as_often():
    X = torch.arange(10.)[:, None].expand(10, 4)
    drawn, _ = Corruption(4, 1.0, replacement="donor").fit(X)(X.repeat(200, 1), seed(3))
    counts = torch.bincount(drawn[:, 0].long(), minlength=10)
    assert (drawn == drawn[:, :1]).all() and ((counts - 200).square()/200).sum() < 27.9  # 0.999 quantile, 9 degrees


@pytest.mark.parametrize("mask", MASKS)
def test_one_donor_or_many_the_same_genes_are_replaced(X, mask):
    masks = [Corruption(101, 0.3, mask, replacement).fit(X)(X[:20], seed(5))[1] for replacement in POOLED]
    assert torch.equal(*masks)


@pytest.mark.parametrize("replacement", POOLED)
def test_only_donors_give_values_and_all_of_them_do(X, replacement):
    rows, donors = torch.arange(0, 60, 2), torch.tensor([4, 10, 58])
    drawn, _ = Corruption(101, 1.0, replacement=replacement).fit(X, rows, donors)(X[1::2], seed(2))
    gave = (drawn[:, None] == X).any(-1).any(0)
    assert gave.nonzero()[:, 0].tolist() == donors.tolist()
    assert (drawn[:, None] == X[donors]).any(1).all()


def test_a_range_is_that_of_all_training_rows_whoever_the_donors_are(X):
    one, other = (Corruption(101).double().fit(X, torch.arange(40), donors) for donors in (None, torch.arange(3)))
    assert torch.equal(one.low, other.low) and torch.equal(one.high, other.high)
    assert torch.equal(one.low, X[:40].amin(0))


def test_batch_values_are_a_permutation_of_every_column_and_columns_differ(X):
    drawn, _ = Corruption(101, 1.0, replacement="batch")(X[:12], seed(4))
    assert torch.equal(drawn.sort(dim=0).values, X[:12].sort(dim=0).values)
    orders = (drawn[:, None, :] == X[None, :12]).int().argmax(1).T
    assert len(set(map(tuple, orders.tolist()))) > 90


def test_every_order_of_a_column_is_equally_likely():
    orders = permute_columns(torch.arange(3.)[:, None].expand(3, 30_000), seed(0)).T.long()
    counts = torch.bincount((orders * torch.tensor([9, 3, 1])).sum(1)).double()
    counts = counts[counts > 0]
    assert len(counts) == 6 and ((counts - 5000).square() / 5000).sum() < 20.5  # 0.999 quantile, 5 degrees of freedom


@pytest.mark.parametrize("replacement", ["uniform", *POOLED])
def test_drawing_before_fitting_is_refused(replacement):
    with pytest.raises(RuntimeError, match="call fit"):
        Corruption(4, replacement=replacement)(torch.ones(2, 4))
    with pytest.raises(RuntimeError, match="call fit"): Mixture(4)(torch.ones(2, 4))


def test_training_rows_of_another_width_are_refused():
    for damage in (Corruption(4), Mixture(4)):
        with pytest.raises(ValueError, match="4 genes"): damage.fit(torch.ones(5, 3))


def test_a_saved_corruption_holds_ranges_but_never_samples(X):
    for replacement in (*POOLED, "batch"):
        assert list(Corruption(101, replacement=replacement).fit(X).state_dict()) == []
    assert list(Mixture(101).fit(X).state_dict()) == []
    state = Corruption(101, replacement="uniform").fit(X).state_dict()
    restored = Corruption(101, replacement="uniform")
    restored.load_state_dict(state)
    assert sorted(state) == ["high", "low"]
    assert torch.equal(restored(X, seed(0))[0], Corruption(101).fit(X)(X, seed(0))[0])


@every_kind
@pytest.mark.parametrize("in_cache", [1, 250, 10**9])
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_batches_that_are_corrupted_in_parts_of_any_size_obey_the_same_rules(X, mask, replacement, in_cache, rows,
                                                                           monkeypatch):
    monkeypatch.setattr(module, "IN_CACHE", in_cache)
    corrupted, drawn = Corruption(101, 0.3, mask, replacement).double().fit(X)(X[:rows], seed(1))
    assert corrupted.shape == drawn.shape == (rows, 101)
    assert torch.equal(corrupted[~drawn], X[:rows][~drawn])
    assert mask == "bernoulli" or drawn.sum(1).tolist() == [30]*rows
    assert ((corrupted >= X.amin(0)) & (corrupted <= X.amax(0))).all()
    assert replacement != "batch" or rows == 1 or (corrupted != X[:rows]).any()


@pytest.mark.parametrize("draw", [fixed_count_mask, bernoulli_mask])
def test_rows_and_genes_fall_independently_of_each_other(draw):
    drawn = draw(20_000, 41, 0.3, seed(2)).double() - 0.3
    rows = (drawn[1:]*drawn[:-1]).mean()
    assert abs(rows) < 5*0.21/(20_000*41)**0.5
    genes = torch.corrcoef(drawn.T) - torch.eye(41)
    expected = -1/40 if draw is fixed_count_mask else 0.0   # a fixed number leaves less for the others
    off = genes[~torch.eye(41, dtype=torch.bool)]
    assert abs(off.mean() - expected) < 2e-3 and (off - expected).abs().max() < 5/20_000**0.5


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_numbers_between_zero_and_one_are_evenly_spread(kind):
    numbers = module._unit(module.draws(seed(3)), (400, 501), kind)
    assert numbers.dtype == kind and 0 <= numbers.min() and numbers.max() < 1
    counts = torch.histc(numbers.double(), 100, 0, 1)
    assert ((counts - 2004).square()/2004).sum() < 148.2   # 0.999 quantile with 99 degrees of freedom


@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_corrupted_values_are_distributed_as_in_the_plain_way(X, replacement):
    batch = X[:30].float()
    def plain(source):
        if replacement == "uniform":
            values = X.amin(0) + (X.amax(0) - X.amin(0))*torch.rand(30, 101, generator=source)
        elif replacement in POOLED:
            values = torch.stack([column[torch.randint(60, (30,), generator=source)] for column in X.T], dim=1)
        else: values = torch.stack([column[torch.randperm(30, generator=source)] for column in batch.T], dim=1)
        return values.float() - batch
    corruption, ours, theirs = Corruption(101, 0.3, "bernoulli", replacement).fit(X.float()), seed(4), seed(5)
    mine, others = [], []
    for _ in range(300):   # what changes, and by how much, where a value was drawn
        corrupted, drawn = corruption(batch, ours)
        mine.append((corrupted - batch)[:, 7][drawn[:, 7]])
        others.append(plain(theirs)[:, 7][torch.rand(30, generator=theirs) < 0.3])
    assert ks_2samp(torch.cat(mine).numpy(), torch.cat(others).numpy()).pvalue > 1e-3


def test_a_stream_with_fewer_random_bits_serves_as_a_seed_only():
    masks = [bernoulli_mask(100, 1000, 0.3, np.random.Generator(np.random.MT19937(number))) for number in (1, 1, 2)]
    assert abs(masks[0].double().mean() - 0.3) < 5*(0.21/100_000)**0.5
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("replacement", ["uniform", *POOLED])
def test_training_rows_of_a_matrix_are_as_good_as_a_matrix_of_them(X, replacement):
    rows = torch.arange(0, len(X), 3)
    def corrupt(*given): return Corruption(101, replacement=replacement).fit(*given)(X[:9], seed(1))
    for one, other in zip(corrupt(X, rows), corrupt(X[rows]), strict=True): assert torch.equal(one, other)


@pytest.mark.parametrize("damage", [Corruption(7, 1.0, replacement="marginal"), Corruption(7, 1.0, replacement="donor"),
                                    Mixture(7, 0.25)], ids=["marginal", "donor", "mixture"])
def test_of_a_matrix_on_disk_few_rows_are_read_and_only_those_that_may_give(damage, tmp_path, monkeypatch):
    monkeypatch.setattr("ssl_expr.corruption.ON_DISK", 10)
    matrix = np.memmap(tmp_path/"X", np.float32, "w+", shape=(60, 7))
    matrix[:] = np.arange(60)[:, None]
    damage.fit(matrix, torch.arange(60), torch.arange(0, 60, 2))
    drawn, share = damage(torch.zeros(500, 7), seed(2))
    values = set((drawn/share).round().unique().tolist())    # a share of 1 where the mask is True
    assert len(values) == len(damage.pool) == 10 and all(value % 2 == 0 for value in values)
    assert min(values) < 12 and max(values) > 45      # from all over the matrix


# ------------------------------------------------------------------------------------------------------ mixtures

@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_mixed_sample_lies_on_the_line_to_one_training_row_at_its_share(X, kind):
    X, rows = X.to(kind), torch.arange(1, 60, 3)
    mixed, share = Mixture(101, 0.4).fit(X, rows)(X[:40], seed(2))
    assert mixed.dtype == share.dtype == kind and share.shape == (40, 1)
    distance = (mixed[:, None] - (1 - share[:, None])*X[:40, None] - share[:, None]*X[rows]).abs().amax(-1)
    assert ((distance < 1e-6).sum(1) == 1).all()


@pytest.mark.parametrize("largest", [0.1, 0.45, 0.49])
def test_shares_of_a_mixture_are_evenly_spread_below_the_largest(largest):
    _, share = Mixture(3, largest).fit(torch.ones(5, 3))(torch.ones(4000, 3), seed(1))
    assert 0 <= share.min() and share.max() < largest
    assert kstest(share[:, 0].numpy()/largest, "uniform").pvalue > 1e-3


def test_a_mixture_leaves_its_input_and_the_global_random_state_alone_and_follows_its_seed(X):
    mixture, batch, state = Mixture(101).fit(X), X[:9].clone(), torch.get_rng_state()
    first, again, other = (mixture(batch, seed(number)) for number in (5, 5, 6))
    assert torch.equal(batch, X[:9]) and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1]) and not torch.equal(first[1], other[1])


@pytest.mark.parametrize("share", [0, -0.1, 0.5, 0.6, "0.3", float("nan")])
def test_a_donor_that_could_outweigh_its_sample_is_refused(share):
    with pytest.raises(ValueError, match="largest_share must be"): Mixture(3, share)
