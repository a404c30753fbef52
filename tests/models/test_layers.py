"""Every kind of layer: what the mask does to its output, and what wrap reaches."""

import pytest
import torch
from torch import nn

import masktorch
from masktorch import Bernoulli, Piggyback


class MyConv(nn.Conv2d):
    pass


LAYERS = [
    (nn.Conv1d(2, 4, 3), (1, 2, 9)),
    (nn.Conv2d(2, 4, 3, groups=2), (1, 2, 9, 9)),
    (nn.Conv3d(2, 4, 3, padding=1, padding_mode="circular"), (1, 2, 5, 5, 5)),
    (nn.ConvTranspose1d(2, 4, 3), (1, 2, 9)),
    (nn.ConvTranspose2d(2, 4, 3, stride=2), (1, 2, 9, 9)),
    (nn.ConvTranspose3d(2, 4, 3), (1, 2, 5, 5, 5)),
    (nn.Linear(6, 4), (3, 6)),
    (MyConv(2, 4, 1), (1, 2, 5, 5)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda value: str(value))
@pytest.mark.parametrize("bias", [False, True])
def test_a_wrapped_layer_computes_with_the_masked_tensors(layer, shape, bias):
    original, x = type(layer), torch.randn(shape)
    state = {name: p.detach().clone() for name, p in layer.named_parameters()}
    masktorch.wrap(layer, bias=bias)
    masks = {
        name: torch.rand(p.shape) < 0.5
        for name, p in state.items()
        if name != "bias" or bias
    }
    masktorch.set_masks(layer, masks)
    assert isinstance(layer, original)
    masked = {
        name: p * masks[name] if name in masks else p for name, p in state.items()
    }
    outputs = [layer(x), masktorch.freeze_mask(layer)(x), masktorch.unwrap(layer)(x)]
    assert type(layer) is original
    layer.load_state_dict(masked)
    for out in outputs:
        assert torch.equal(out, layer(x))


def everything():
    return nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(4, 2),
            "embedding": nn.Embedding(5, 4),
            "norm": nn.LayerNorm(4),
            "linear": nn.Linear(4, 4),
            "free": nn.ParameterList([torch.ones(3)]),
        }
    )


TARGETS = [
    ({}, ["attention.out_proj.weight", "linear.weight"]),
    (
        {"bias": True},
        [
            "attention.out_proj.weight",
            "attention.out_proj.bias",
            "linear.weight",
            "linear.bias",
        ],
    ),
    ({"targets": ["linear.bias"]}, ["linear.bias"]),
    ({"targets": ["embedding.weight"], "bias": True}, ["embedding.weight"]),
    (
        {"targets": ("free.0", "attention.in_proj_weight", "embedding.weight")},
        ["attention.in_proj_weight", "embedding.weight", "free.0"],
    ),
    ({"targets": (name for name in ["linear.weight"])}, ["linear.weight"]),
    (
        {"targets": lambda name, module: ["weight"] if name.endswith("norm") else []},
        ["norm.weight"],
    ),
]


@pytest.mark.parametrize(("arguments", "names"), TARGETS, ids=range(len(TARGETS)))
def test_targets(arguments, names):
    assert list(masktorch.masks(masktorch.wrap(everything(), **arguments))) == names


def test_scores_start_where_init_says():
    def scores(**arguments):
        layer = masktorch.wrap(nn.Linear(3, 2, dtype=torch.bfloat16), **arguments)
        return layer.parametrizations.weight.scores

    assert scores().dtype == torch.bfloat16
    assert scores().unique().tolist() == [1.0]
    assert scores(estimator=Bernoulli()).unique().tolist() == [3.0]
    assert scores(estimator=Piggyback()).unique().item() == pytest.approx(
        0.01, rel=1e-2
    )
    for threshold in (1.0, -1.0, 100.0):
        assert (scores(estimator=Piggyback(threshold)) > threshold).all()
    assert scores(init=3).unique().tolist() == [3.0]
    layer = nn.Linear(3, 2)
    weight = layer.weight.detach().clone()
    masktorch.wrap(layer, init=torch.abs)
    assert torch.equal(layer.parametrizations.weight.scores, weight.abs())


def test_scores_take_the_memory_format_of_the_weight():
    conv = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    masktorch.wrap(conv)
    assert conv.parametrizations.weight.scores.is_contiguous(
        memory_format=torch.channels_last
    )
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_wrapped_model_moves_and_saves_like_any_other(small):
    keys = set(small.state_dict())
    masktorch.wrap(small)
    added = set(small.state_dict()) - keys
    assert added == {
        "features.0.parametrizations.weight.scores",
        "features.0.parametrizations.weight._extra_state",
        "head.parametrizations.weight.scores",
        "head.parametrizations.weight._extra_state",
    }
    assert keys < set(small.state_dict())
    small.double()
    assert small(torch.randn(1, 3, 6, 6, dtype=torch.float64)).dtype == torch.float64


def test_layers_of_no_entries():
    with pytest.warns(UserWarning, match="Initializing zero-element tensors"):
        layer = nn.Linear(0, 3)
    masktorch.freeze_mask(masktorch.wrap(layer))
    assert masktorch.report(layer).masked_fraction == 0.0
    assert torch.equal(layer(torch.ones(2, 0)), layer.bias.expand(2, 3))
