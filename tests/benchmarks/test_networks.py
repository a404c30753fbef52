"""The networks, against the published sizes and a computation written out here."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import benchmarks
import masktorch
from benchmarks import BenchmarkError
from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.networks import (
    Block,
    build,
    conv,
    lenet_300_100,
    wide_resnet,
)
from benchmarks.experiment.results import utilisation

REFERENCE = json.loads(
    (Path(benchmarks.__file__).parent / "pages" / "reference.json").read_text()
)
SHAPES = {"cifar10": (3, 32, 32), "mnist": (1, 28, 28)}


@pytest.mark.parametrize("dataset", ["cifar10", "mnist"])
def test_the_blogs_layers(dataset):
    network = masktorch.wrap(
        wide_resnet(SHAPES[dataset][0], depth=28, width=8), bias=True
    )
    layers = [(layer.layer, layer.parameters) for layer in utilisation(network)]
    published = REFERENCE["datasets"][dataset]["utilization"]
    assert layers == [(layer["layer"], layer["parameters"]) for layer in published]
    assert len(layers) == 29
    masked = sum(p.numel() for p in masktorch.mask_parameters(network))
    assert masked == {"cifar10": 23_348_554, "mnist": 23_348_266}[dataset]


def test_shapes_on_the_way():
    with torch.device("meta"):
        network = wide_resnet(3, depth=28, width=8)
        x = torch.empty(2, 3, 32, 32)
    shapes = {}
    for name, part in network.named_children():
        x = part(x)
        shapes[name] = tuple(x.shape[1:])
    assert shapes == {
        "stem": (16, 32, 32),
        "stem_norm": (16, 32, 32),
        "stem_relu": (16, 32, 32),
        "group1": (128, 32, 32),
        "pool1": (128, 16, 16),
        "group2": (256, 16, 16),
        "pool2": (256, 8, 8),
        "group3": (512, 8, 8),
        "average": (512, 1, 1),
        "flatten": (512,),
        "classifier": (10,),
    }
    assert all(
        m.stride == (1, 1) for m in network.modules() if isinstance(m, nn.Conv2d)
    )
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 25
    assert {(m.eps, m.momentum, m.affine) for m in norms} == {(1e-3, 0.01, True)}


@pytest.mark.parametrize(
    "size",
    [dict(depth=16, width=2), dict(network="lenet-300-100"), dict(network="conv-6")],
)
def test_start_as_keras(size):
    network = build(Configuration("cifar10", **size), (3, 8, 8))
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer in layers:
        outputs, inputs, *kernel = layer.weight.shape
        area = kernel[0] * kernel[1] if kernel else 1
        limit = (6 / (area * (inputs + outputs))) ** 0.5  # Keras's glorot_uniform
        largest = layer.weight.abs().max().item()
        assert largest <= limit * (1 + 1e-6)  # in float32
        assert largest > 0.95 * limit
        n = layer.weight.numel()
        assert layer.weight.var().item() == pytest.approx(limit**2 / 3, rel=6 / n**0.5)
        assert layer.bias.abs().max() == 0


def norm(x, layer):
    """Batch norm by the formula, on the batch's own statistics."""
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
    shape = (1, -1, 1, 1)
    return (x - mean) / (variance + 1e-3).sqrt() * layer.weight.view(
        shape
    ) + layer.bias.view(shape)


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 5), (4, 4)])
def test_block(inputs, outputs):
    block = Block(inputs, outputs).double()
    for p in block.parameters():
        nn.init.normal_(p)
    x = torch.randn(6, inputs, 5, 5, dtype=torch.float64)
    state = dict(block.named_parameters())
    y = F.conv2d(x, state["conv1.weight"], state["conv1.bias"], padding=1)
    y = norm(y, block.norm1).clamp_min(0)
    y = F.conv2d(y, state["conv2.weight"], state["conv2.bias"], padding=1)
    y = norm(y, block.norm2).clamp_min(0)
    if inputs == outputs:
        assert "shortcut.weight" not in state
        expected = y + x
    else:
        kernel = state["shortcut.weight"]
        assert kernel.shape == (outputs, inputs, 1, 1)
        channels = torch.einsum("oi,nihw->nohw", kernel[:, :, 0, 0], x)
        expected = y + channels + state["shortcut.bias"].view(1, -1, 1, 1)
    torch.testing.assert_close(block(x), expected)
    assert (expected < 0).any()  # or a ReLU after the sum could not be told from none


def test_running_averages_move_as_keras_moves_them():
    block = Block(2, 2)
    x = torch.randn(4, 2, 3, 3)
    mean = block.conv1(x).mean((0, 2, 3))
    block(x)
    torch.testing.assert_close(
        block.norm1.running_mean, 0.01 * mean
    )  # 0.99 * 0 + 0.01 * mean


def test_lenet_300_100():
    network = lenet_300_100((1, 28, 28))
    sizes = [
        (m.in_features, m.out_features) for m in network if isinstance(m, nn.Linear)
    ]
    assert sizes == [(784, 300), (300, 100), (100, 10)]
    assert sum(p.numel() for p in network.parameters()) == 266_610
    x = torch.randn(5, 1, 28, 28)
    y = x.reshape(5, 784)
    for i, layer in enumerate([network.hidden1, network.hidden2, network.classifier]):
        y = y @ layer.weight.T + layer.bias
        y = y.clamp_min(0) if i < 2 else y
    torch.testing.assert_close(network(x), y)


# Weights without biases, as https://github.com/kosnil/signed_supermasks counts them.
CONV_WEIGHTS = {2: 4_300_992, 4: 2_425_024, 6: 2_261_184}


@pytest.mark.parametrize("layers", CONV_WEIGHTS)
def test_conv(layers):
    network = conv((3, 32, 32), layers)
    parameters = dict(network.named_parameters())
    weights = [p for name, p in parameters.items() if name.endswith("weight")]
    assert sum(p.numel() for p in weights) == CONV_WEIGHTS[layers]
    assert len(weights) == layers + 3
    assert len(parameters) == 2 * len(weights)  # biases, and no batch norm
    for p in parameters.values():
        nn.init.normal_(p, std=0.05)
    x = y = torch.randn(2, 3, 32, 32)
    tensors = iter(parameters.values())
    for number in range(layers):
        y = F.conv2d(y, next(tensors), next(tensors), padding=1).clamp_min(0)
        if number % 2:
            y = y.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
    y = y.flatten(1)
    for number in range(3):
        y = y @ next(tensors).T + next(tensors)
        y = y.clamp_min(0) if number < 2 else y
    torch.testing.assert_close(network(x), y)


def test_signed_constant():
    glorot = Configuration("cifar10", network="conv-2")
    before = dict(build(glorot, (3, 8, 8)).named_parameters())
    network = build(replace(glorot, weights="signed-constant"), (3, 8, 8))
    for name, p in network.named_parameters():
        if name.endswith("bias"):
            assert torch.equal(p, before[name])
        else:
            assert torch.equal(p.sign(), before[name].sign())
            deviation = (before[name] - before[name].mean()).square().sum() / (
                p.numel() - 1
            )
            torch.testing.assert_close(p.abs(), deviation.sqrt().expand_as(p))
            assert p.std() > 0


@pytest.mark.parametrize("depth", [-2, 4, 9, 11, 27, 29])
def test_bad_depth(depth):
    message = (
        "The depth of a wide residual network is 6n + 4 (10, 16, 22, 28, ...); "
        f"found {depth}."
    )
    with pytest.raises(BenchmarkError, match=re.escape(message)):
        wide_resnet(3, depth, 1)
