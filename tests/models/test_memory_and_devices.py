"""Meta device, shared memory, memory formats, tensors without entries."""

import copy

import pytest
import torch
from torch import nn

import masktorch
from masktorch import (
    Bernoulli,
)
from tools.models import ROWS, random_masks


def test_the_meta_device():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    masktorch.freeze_mask(masktorch.wrap(model))
    assert all(s.is_meta for s in masktorch.mask_parameters(model))
    real = random_masks(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)))
    masktorch.freeze_mask(real).eval()
    for materialise in (
        lambda m: m.load_state_dict(real.state_dict(), assign=True),
        lambda m: m.to_empty(device="cpu").load_state_dict(real.state_dict()),
    ):
        twin = copy.deepcopy(model)
        materialise(twin)
        assert torch.equal(twin.eval()(ROWS), real(ROWS))
        assert not twin[0].parametrizations.weight.scores.requires_grad
        assert not dict(twin.named_parameters())["0.weight"].requires_grad
        masktorch.unwrap(twin)
        assert torch.equal(twin(ROWS), real(ROWS))
        assert type(twin[0]) is nn.Linear
        assert twin[0].weight.requires_grad


def test_shared_memory():
    layer = masktorch.wrap(nn.Linear(4, 4)).share_memory()
    assert all(p.is_shared() for p in layer.parameters())
    layer(ROWS).sum().backward()
    assert layer.parametrizations.weight.scores.grad is not None


def test_zero_size_tensors():
    model = nn.Module()
    model.none = nn.Parameter(torch.empty(0, 3))
    model.some = nn.Parameter(torch.ones(3))
    masktorch.wrap(model, Bernoulli(), targets=["none", "some"], rescale=True)
    assert model.none.shape == (0, 3)
    (model.none.sum() + model.some.sum()).backward()
    masktorch.freeze_weights(
        masktorch.freeze_mask(
            masktorch.set_masks(
                model,
                {
                    "none": torch.empty(0, 3, dtype=torch.bool),
                    "some": torch.ones(3, dtype=torch.bool),
                },
            )
        ),
        False,
    )
    assert masktorch.report(model).size == 3
    assert masktorch.unwrap(model).none.shape == (0, 3)


def test_scores_have_the_memory_format_of_the_weight():
    conv = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    masktorch.wrap(conv)
    assert conv.parametrizations.weight.scores.is_contiguous(
        memory_format=torch.channels_last
    )
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_layer_without_entries():
    with pytest.warns(UserWarning, match="Initializing zero-element tensors"):
        layer = nn.Linear(0, 3)
    masktorch.freeze_mask(masktorch.wrap(layer))
    assert masktorch.report(layer).masked_fraction == 0.0
    assert torch.equal(layer(torch.ones(2, 0)), layer.bias.expand(2, 3))
