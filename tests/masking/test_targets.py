"""Which tensors wrap masks, and with which estimator."""

import re

import pytest
import torch
from torch import nn

import masktorch
from masktorch import (
    Bernoulli,
    Blocks,
    NOfM,
    Threshold,
    TopK,
)
from tools.models import kept_counts


def test_two_estimators_in_one_module():
    layer = masktorch.wrap(nn.Linear(4, 4), Bernoulli(), targets=["weight"])
    masktorch.wrap(layer, Threshold(), targets=["bias"])
    assert list(masktorch.masks(layer)) == ["weight", "bias"]
    assert torch.equal(layer.bias, layer.bias)
    assert not torch.equal(layer.weight, layer.weight)
    masktorch.unwrap(layer)
    assert type(layer) is nn.Linear


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
def test_targets_select_tensors(arguments, names):
    assert list(masktorch.masks(masktorch.wrap(everything(), **arguments))) == names


def test_a_mapping_gives_each_tensor_its_estimator_and_names_the_targets():
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3), nn.Linear(3, 2))
    masktorch.wrap(model, {"2.bias": Threshold(), "0.weight": TopK(0.25)})
    assert kept_counts(model) == {"0.weight": 6, "2.bias": 2}
    assert model[0].parametrizations.weight.estimator == TopK(0.25)
    assert type(model[1]) is nn.Linear


REFUSED_MAPPINGS = [
    (({"0.weight": TopK()},), {"bias": True}, ValueError, "Missing: 0.bias."),
    (({"0.weight": TopK()},), {"targets": ["0.bias"]}, ValueError, "Missing: 0.bias."),
    (
        ({"0.wieght": TopK()},),
        {},
        ValueError,
        "no parameter '0.wieght' in the model. Did you",
    ),
    (
        ({"0.weight": TopK},),
        {},
        TypeError,
        "an estimator such as masktorch.Threshold()",
    ),
    (({"0.weight": 0.5},), {}, TypeError, "Found 0.5"),
    (({},), {}, ValueError, "found nothing to mask"),
    ((Blocks(TopK(), (4, 4)),), {}, ValueError, "'0.weight'"),
    ((NOfM(2, 4),), {}, ValueError, "'0.weight'"),
]


@pytest.mark.parametrize(
    ("arguments", "options", "exception", "message"), REFUSED_MAPPINGS
)
def test_wrap_refuses_bad_mappings_and_shapes_before_anything_changes(
    arguments, options, exception, message
):
    model = nn.Sequential(nn.Linear(6, 4))
    with pytest.raises(exception, match=re.escape(message)):
        masktorch.wrap(model, *arguments, **options)
    assert type(model[0]) is nn.Linear


def test_the_biases_of_recurrent_layers_and_attention():
    """Each is named as its weight is."""
    lstm = masktorch.wrap(
        nn.LSTM(2, 3, bidirectional=True), targets=["weight_*"], bias=True
    )
    assert set(masktorch.masks(lstm)) == {
        f"{kind}_{half}_l0{direction}"
        for kind in ("weight", "bias")
        for half in ("ih", "hh")
        for direction in ("", "_reverse")
    }
    attention = masktorch.wrap(
        nn.MultiheadAttention(4, 2),
        targets=["in_proj_weight", "out_proj.weight"],
        bias=True,
    )
    assert set(masktorch.masks(attention)) == {
        "in_proj_weight",
        "in_proj_bias",
        "out_proj.weight",
        "out_proj.bias",
    }
