"Spread, spectrum and effective rank on embeddings with a known answer."
import math

import numpy as np
import pytest
import torch

from ssl_expr.collapse import effective_rank, embedding_spread, singular_spectrum


def cloud(n_samples, width, seed=0):
    return torch.randn(n_samples, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_spread_is_one_for_an_even_cloud_and_zero_for_one_direction():
    assert embedding_spread(cloud(5000, 32)) == pytest.approx(1, abs=0.01)
    assert embedding_spread(torch.rand(50, 1) * torch.ones(50, 16) + 0.1) == pytest.approx(0, abs=1e-6)


def test_spread_ignores_lengths():
    Z = cloud(100, 8)
    assert embedding_spread(Z * torch.rand(100, 1).double().add(0.1)) == pytest.approx(embedding_spread(Z), abs=1e-12)


def test_spread_equals_the_definition_written_as_loops():
    Z = cloud(30, 5).numpy()
    rows = [row / math.sqrt(sum(v * v for v in row)) for row in Z]
    deviations = []
    for column in zip(*rows, strict=True):
        mean = sum(column) / len(column)
        deviations.append(math.sqrt(sum((v - mean) ** 2 for v in column) / len(column)))
    assert embedding_spread(Z) == pytest.approx(sum(deviations) / 5 * math.sqrt(5), abs=1e-12)


@pytest.mark.parametrize("used", [1, 3, 16])
def test_equal_directions_are_counted_exactly(used):
    axes = torch.cat([torch.eye(16)[:used], -torch.eye(16)[:used]]) + 2.0
    assert effective_rank(axes) == pytest.approx(used, abs=1e-6)


def test_effective_rank_equals_the_entropy_of_the_singular_values():
    Z = cloud(40, 6) * torch.arange(1, 7)
    values = np.linalg.svd((Z - Z.mean(0)).numpy(), compute_uv=False)
    share = values / values.sum()
    assert effective_rank(Z) == pytest.approx(math.exp(-(share * np.log(share)).sum()), abs=1e-10)


def test_effective_rank_ignores_a_common_shift_and_a_rotation():
    Z = cloud(60, 8) * torch.arange(1, 9)
    rotation = torch.linalg.qr(cloud(8, 8, seed=1)).Q
    assert effective_rank(Z @ rotation + 7) == pytest.approx(effective_rank(Z), abs=1e-9)


def test_an_embedding_that_does_not_vary_has_rank_zero():
    assert effective_rank(torch.full((20, 8), 0.3)) == 0
    assert effective_rank(torch.zeros(20, 8)) == 0
    assert effective_rank(5 + 1e-10 * cloud(20, 8)) == 0


def test_the_spectrum_is_that_of_the_covariance_matrix():
    Z = cloud(50, 7)
    want = torch.linalg.eigvalsh(torch.cov(Z.T)).flip(0)
    torch.testing.assert_close(singular_spectrum(Z), want, rtol=1e-9, atol=1e-12)


def test_unused_directions_are_exactly_zero_even_with_few_samples():
    flat = cloud(100, 3) @ cloud(3, 20, seed=1)
    assert (singular_spectrum(flat.float()) > 0).sum() == 3
    assert singular_spectrum(cloud(5, 20)).shape == (20,) and (singular_spectrum(cloud(5, 20)) > 0).sum() == 4


@pytest.mark.parametrize("measure", [embedding_spread, effective_rank, singular_spectrum])
def test_one_sample_is_refused(measure):
    with pytest.raises(ValueError, match="at least 2 samples"):
        measure(torch.ones(1, 5))
