"The encoder, its seeds and its embeddings."
import numpy as np
import pytest
import torch

from ssl_expr.checks import check_choice, check_number
from ssl_expr.nets import Encoder, embed, mlp, seeded


@pytest.mark.parametrize("width, depth", [(256, 4), (16, 1), (8, 10)])
def test_the_encoder_has_the_asked_number_of_blocks_and_units(width, depth):
    encoder = Encoder(30, width=width, depth=depth)
    kinds = [[type(layer).__name__ for layer in block] for block in encoder.blocks]
    assert kinds == [["WideLinear", "BatchNorm1d", "ReLU", "Dropout"]] * depth
    assert encoder(torch.randn(4, 30)).shape == (4, width)


def test_the_default_encoder_is_the_one_of_table_s3():
    encoder = Encoder(10)
    assert (encoder.n_genes, encoder.width, encoder.depth, encoder.dropout) == (10, 256, 4, 0.2)
    assert encoder.blocks[2][3].p == 0.2


@pytest.mark.parametrize("setting", [dict(width=0), dict(width=2.5), dict(depth="4"), dict(dropout=-0.1),
                                     dict(width=True)])
def test_an_impossible_architecture_is_refused_by_name(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        Encoder(10, **setting)


def test_initial_weights_depend_on_the_seed_alone_and_leave_the_global_state_alone():
    def weights(seed):
        with seeded(seed): return Encoder(10, 4, 2).state_dict()["blocks.1.0.weight"]
    first = weights(3)
    torch.rand(7)
    state = torch.get_rng_state()
    assert torch.equal(weights(3), first) and not torch.equal(weights(4), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_global_state_is_restored_after_an_error():
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError), seeded(0):
        torch.rand(3)
        raise RuntimeError
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("training", [True, False])
def test_an_embedding_depends_on_the_sample_alone_and_the_mode_is_kept(training):
    encoder = Encoder(20, 8, 2).double()
    for _ in range(5): encoder(torch.randn(30, 20).double())
    encoder.train(training)
    X = torch.randn(11, 20).double()
    together, alone = embed(encoder, X), embed(encoder, X.numpy(), batch_size=1)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    assert encoder.training is training and not together.requires_grad


def test_embed_takes_any_float_matrix_and_returns_single_precision():
    assert embed(Encoder(6, 4, 1), np.ones((3, 6))).dtype == torch.float32


def test_a_head_ends_in_a_bare_linear_layer():
    head = mlp([5, 7, 7, 2], batch_norm=True, dropout=0.1)
    assert [type(layer).__name__ for layer in head] == ["Linear", "BatchNorm1d", "ReLU", "Dropout"] * 2 + ["WideLinear"]
    assert [type(layer).__name__ for layer in mlp([5, 7, 2], final_activation=torch.nn.Sigmoid())][-1] == "Sigmoid"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", None, True, -0.1, 1.1])
def test_a_number_out_of_range_or_of_the_wrong_kind_is_refused(value):
    with pytest.raises(ValueError, match="rate must be a number between 0 and 1"):
        check_number("rate", value, 0, 1)


def test_a_choice_must_match_in_type_as_well():
    check_choice("symmetric", False, (False, True))
    with pytest.raises(ValueError, match="one of False, True, got 0"):
        check_choice("symmetric", 0, (False, True))
