"Compiled steps: what they calculate equals torch, whatever the shape."
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ssl_expr import kernels
from ssl_expr.finetune import FineTuning, Run, train_head, with_ones


@pytest.mark.parametrize("batch, outputs, inputs", [(1, 1, 1), (2, 3, 5), (4, 4, 256), (7, 5, 257), (9, 2, 1030)])
@pytest.mark.parametrize("seed", [0, 1])
def test_steps_equal_those_of_torch_whatever_the_shape(batch, outputs, inputs, seed):
    rng = np.random.default_rng(seed)
    start = rng.normal(size=(outputs, inputs))
    adam, sgd, averages = start.copy(), start.copy(), [np.zeros_like(start), np.zeros_like(start)]
    parameters = [nn.Parameter(torch.tensor(start)) for _ in range(2)]
    optimizers = [torch.optim.Adam([parameters[0]], 0.02), torch.optim.SGD([parameters[1]], 0.02)]
    for step in range(1, 5):
        slopes, x = rng.normal(size=(batch, outputs)), rng.normal(size=(batch, inputs))
        kernels.adam_step(adam, *averages, slopes, x, step, 0.02)
        kernels.sgd_step(sgd, slopes, x, 0.02)
        for parameter, optimizer in zip(parameters, optimizers, strict=True):
            parameter.grad = torch.from_numpy(slopes.T @ x)
            optimizer.step()
    for ours, theirs in zip((adam, sgd), parameters, strict=True):
        np.testing.assert_allclose(ours, theirs.detach(), rtol=1e-9, atol=1e-11)


def test_single_precision_errs_no_more_than_torchs_own():
    rng = np.random.default_rng(0)
    start = rng.normal(size=(6, 259)).astype(np.float32)
    ours, averages = start.copy(), [np.zeros_like(start), np.zeros_like(start)]
    exact, single = (nn.Parameter(torch.tensor(start, dtype=kind)) for kind in (torch.float64, torch.float32))
    optimizers = [torch.optim.Adam([each], 0.02) for each in (exact, single)]
    for step in range(1, 41):
        slopes, x = (rng.normal(size=(8, n)).astype(np.float32) for n in start.shape)
        kernels.adam_step(ours, *averages, slopes, x, step, 0.02)
        exact.grad = torch.from_numpy(slopes.T.astype(float) @ x.astype(float))
        single.grad = torch.from_numpy(slopes.T @ x)
        for optimizer in optimizers: optimizer.step()
    mine, torchs = (np.abs(each - exact.detach().numpy()).mean() for each in (ours, single.detach().numpy()))
    assert mine < 2*torchs


@pytest.mark.parametrize("batch, width, classes", [(1, 1, 2), (3, 8, 4), (8, 257, 19), (5, 31, 7)])
@pytest.mark.parametrize("size", [1, 1000])
def test_slopes_equal_those_of_autograd_even_for_enormous_logits(batch, width, classes, size):
    rng = np.random.default_rng(0)
    Z, head = rng.normal(size=(batch, width)), size*rng.normal(size=(classes, width))
    codes, ours = rng.integers(classes, size=batch), np.empty((batch, classes))
    logits = torch.tensor(Z @ head.T, requires_grad=True)
    cross_entropy(logits, torch.from_numpy(codes)).backward()
    kernels.logits_of(Z, head, ours)
    np.testing.assert_allclose(ours, logits.detach(), rtol=1e-11, atol=1e-9)
    kernels.to_slopes(ours, codes)
    np.testing.assert_allclose(ours, logits.grad, atol=1e-9)


def test_an_epoch_takes_its_batches_in_the_given_order_and_counts_its_steps():
    rng = np.random.default_rng(0)
    Z, codes, order, sizes = rng.normal(size=(30, 5)), rng.integers(3, size=30), rng.permutation(30)[:11], [4, 4, 3]
    def trained(order):
        head, first, second = (np.zeros((3, 5)) for _ in range(3))
        steps = kernels.head_epoch(Z, codes, order, np.array(sizes), head, first, second, 6, 0.1, True)
        assert steps == 9
        return head
    assert np.array_equal(trained(order), trained(order))
    within, across = order.copy(), order.copy()
    within[[0, 3]], across[[0, 4]] = order[[3, 0]], order[[4, 0]]
    np.testing.assert_allclose(trained(within), trained(order), rtol=1e-9)
    assert np.abs(trained(across) - trained(order)).max() > 1e-3


def test_what_the_warm_process_loads_serves_the_first_head():
    code = """if True:
        import numpy as np, torch
        from ssl_expr.warm import _load
        _load()
        from ssl_expr import kernels
        from ssl_expr.finetune import FineTuning, Run, train_head, with_ones
        print(len(kernels.head_epoch.signatures))
        run = Run(1.0, 0, np.arange(50), np.arange(50, 60), seed=1)
        train_head(with_ones(torch.randn(60, 5)), torch.arange(60) % 3, run, 3, FineTuning(epochs=2))
        print(len(kernels.head_epoch.signatures))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "1\n1\n", done.stderr


@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_head_refuses_labels_that_are_no_codes(wrong):
    y = torch.arange(60) % 3
    y[7] = wrong
    run = Run(1.0, 0, np.arange(50), np.arange(50, 60), seed=1)
    with pytest.raises(ValueError, match="codes from 0 to 2"):
        train_head(with_ones(torch.randn(60, 5)), y, run, 3, FineTuning(epochs=2))


def test_the_package_works_where_nothing_can_be_written(tmp_path):
    "As in a container with a read-only package and no home."
    (tmp_path/"ssl_expr").mkdir()
    for name in ("__init__.py", "kernels.py"):
        (tmp_path/"ssl_expr"/name).write_text((Path(kernels.__file__).parent/name).read_text())
    code = ("import numba.core.caching as caching\n"
            "for kind in caching.CacheImpl._locator_classes: kind.from_function = classmethod(lambda *given: None)\n"
            "import numpy as np\nfrom ssl_expr.kernels import sgd_step\n"
            "weights = np.zeros((1, 2))\nsgd_step(weights, np.ones((1, 1)), np.ones((1, 2)), 0.5)\nprint(weights)")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "[[-0.5 -0.5]]\n", done.stderr


def test_the_process_that_compiles_and_one_that_reads_what_was_kept_give_the_same_bits(tmp_path):
    program = """
import hashlib
import numpy as np
from ssl_expr.kernels import head_epoch
draw, bits = np.random.default_rng(0), hashlib.sha256()
for n, width, classes, batch in ((40, 17, 3, 8), (83, 257, 19, 8), (30, 9, 5, 3)):
    Z, codes = draw.normal(size=(n, width)).astype(np.float32), draw.integers(0, classes, n)
    head = np.zeros((classes, width), np.float32)
    first, second, step = np.zeros_like(head), np.zeros_like(head), 0
    sizes = np.array([len(part) for part in np.array_split(np.arange(n), n//batch)])
    for adam in (True, False):
        for _ in range(30):
            order = draw.permutation(n)
            step = head_epoch(Z, codes, order, sizes, head, first, second, step, 0.001, adam)
        bits.update(head.tobytes())
print(bits.hexdigest())
"""
    def run():
        return subprocess.run([sys.executable, "-c", program], env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
                              capture_output=True, text=True, check=True).stdout
    compiled, kept = run(), run()
    assert list(tmp_path.rglob("*.nbc")) and compiled == kept
