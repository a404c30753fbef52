"""Initial weights that masks learn well on."""

import re

import numpy as np
import pytest
import torch
from torch import nn

import masktorch
from masktorch.init import signed_constant_


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (nn.Linear(6, 4), 6),
        (nn.Conv2d(6, 4, 3, groups=2), 27),
        (nn.Conv1d(2, 4, 5), 10),
        (
            nn.ConvTranspose2d(6, 4, 3, groups=2),
            18,
        ),  # two channels out of a group, 3 x 3
    ],
    ids=repr,
)
def test_the_result_is_the_sign_times_one_constant(layer, fan_in, dtype):
    layer = layer.to(dtype)
    for density in (1.0, 0.3):
        before = layer.weight.detach().double().numpy().copy()
        assert signed_constant_(layer.weight, density) is layer.weight
        found = layer.weight.detach().double().numpy()
        expected = np.where(before < 0, -1, 1) * np.sqrt(2 / (fan_in * density))
        np.testing.assert_allclose(found, expected, rtol=torch.finfo(dtype).eps)
        assert len(np.unique(np.abs(found))) == 1
        assert layer.weight.requires_grad
        assert layer.weight.is_leaf
    fan, _ = nn.init._calculate_fan_in_and_fan_out(layer.weight)
    assert fan == fan_in


def test_zeros_are_positive_and_layouts_stay():
    weight = torch.tensor([[0.0, -0.0], [-1.0, 1.0]]).t()
    signed_constant_(weight, 1.0)
    assert weight.tolist() == [[1, -1], [1, 1]]
    assert weight.stride() == (1, 2)


def test_the_random_stream_is_left_alone():
    state = torch.get_rng_state()
    signed_constant_(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("arguments", "exception", "message"),
    [
        ((torch.ones(3),), ValueError, "found shape (3,)"),
        (
            (torch.ones(2, 2), 0.0),
            ValueError,
            "expected a density in (0, 1], found 0.0",
        ),
        ((torch.ones(2, 2), True), TypeError, "found True"),
        ((torch.ones(2, 2, dtype=torch.int64),), TypeError, "found tensor([[1, 1]"),
        (([[1.0]],), TypeError, "found [[1.0]]"),
    ],
)
def test_arguments_that_are_refused(arguments, exception, message):
    with pytest.raises(exception, match=re.escape(message)):
        signed_constant_(*arguments)


@pytest.mark.parametrize("mode", ["train", "eval", "frozen", "without gradients"])
def test_the_computed_weight_of_a_masked_layer_is_refused(mode):
    """A write into it would be lost, whether it has a gradient or not."""
    layer = masktorch.wrap(torch.nn.Linear(4, 4)).train(mode != "eval")
    if mode == "frozen":
        masktorch.freeze_mask(layer)
    with (
        torch.set_grad_enabled(mode != "without gradients"),
        pytest.raises(ValueError, match=r"found a computed tensor.*weight.original"),
    ):
        masktorch.init.signed_constant_(layer.weight)
    masktorch.init.signed_constant_(layer.parametrizations.weight.original)
    assert len(layer.weight.detach().abs().unique()) == 1
