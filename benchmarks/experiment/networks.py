"""The blog's wide residual network, and networks of the literature on supermasks."""

from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

import masktorch
from benchmarks import BenchmarkError
from benchmarks.experiment.configuration import Configuration

ImageShape = tuple[int, int, int]  # channels, height, width

CLASSES = 10  # in each of the three data sets
# Keras's defaults. Its momentum 0.99 is the share kept, PyTorch's 0.01 the share
# replaced.
batch_norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)


def build(configuration: Configuration, image_shape: ImageShape) -> nn.Module:
    """Return the network with its initial weights, equal in every arm of a seed."""
    torch.manual_seed(configuration.seed)
    network = _uninitialised(configuration, image_shape)
    _initialise_as_keras(network)
    _change_kernels(network, configuration)
    return network


def _uninitialised(configuration: Configuration, image_shape: ImageShape) -> nn.Module:
    if configuration.network == "wrn":
        return wide_resnet(
            image_shape[0], configuration.depth or 0, configuration.width or 0
        )
    if configuration.network == "lenet-300-100":
        return lenet_300_100(image_shape)
    return conv(image_shape, layers=int(configuration.network.removeprefix("conv-")))


def _initialise_as_keras(network: nn.Module) -> None:
    """Kernels Glorot-uniform, biases zero."""
    for layer in kernel_layers(network):
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _change_kernels(network: nn.Module, configuration: Configuration) -> None:
    for weight in kernels(network):
        if configuration.weights == "signed-constant":  # Zhou et al. 2019
            weight.data = weight.data.sign() * weight.data.std()
        elif configuration.weights == "signed-kaiming":  # Ramanujan et al. 2020
            masktorch.init.signed_constant_(weight, configuration.density or 1.0)


def kernel_layers(network: nn.Module) -> Iterator[nn.Conv2d | nn.Linear]:
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            yield layer


def kernels(network: nn.Module) -> Iterator[Tensor]:
    return (layer.weight for layer in kernel_layers(network))


def wide_resnet(channels: int, depth: int, width: int) -> nn.Module:
    """WRN-depth-width as in keras-contrib: 3 groups of n blocks, depth = 6n + 4."""
    if depth < 10 or (depth - 4) % 6:
        raise BenchmarkError(
            "The depth of a wide residual network is 6n + 4 (10, 16, 22, 28, ...); "
            f"found {depth}."
        )
    blocks = (depth - 4) // 6
    layers = OrderedDict(
        stem=nn.Conv2d(channels, 16, 3, padding=1),
        stem_norm=batch_norm(16),
        stem_relu=nn.ReLU(),
        group1=_group(16, 16 * width, blocks),
        pool1=nn.MaxPool2d(2),
        group2=_group(16 * width, 32 * width, blocks),
        pool2=nn.MaxPool2d(2),
        group3=_group(32 * width, 64 * width, blocks),
        average=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        classifier=nn.Linear(64 * width, CLASSES),
    )
    return nn.Sequential(layers)


class Block(nn.Module):
    """Two convolutions, each with batch norm and ReLU, plus the input.

    There is no ReLU after the sum.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm1 = batch_norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm2 = batch_norm(outputs)
        self.shortcut = (
            nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.relu(self.norm2(self.conv2(y)))
        return torch.add(y, self.shortcut(x))


def _group(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    widths = [inputs] + [outputs] * blocks
    named = (
        (f"block{number}", Block(before, after))
        for number, (before, after) in enumerate(pairwise(widths), start=1)
    )
    return nn.Sequential(OrderedDict(named))


def lenet_300_100(image_shape: ImageShape) -> nn.Module:
    """Fully connected with 300 and 100 hidden units and ReLU (LeCun et al. 1998)."""
    channels, height, width = image_shape
    layers = OrderedDict(
        flatten=nn.Flatten(),
        hidden1=nn.Linear(channels * height * width, 300),
        relu1=nn.ReLU(),
        hidden2=nn.Linear(300, 100),
        relu2=nn.ReLU(),
        classifier=nn.Linear(100, CLASSES),
    )
    return nn.Sequential(layers)


def conv(image_shape: ImageShape, layers: int) -> nn.Module:
    """Conv-2, Conv-4 or Conv-6 (Frankle & Carbin 2019, Zhou et al. 2019).

    Pairs of 3x3 convolutions with 64, 128, 256 channels and a 2x2 max-pool after each
    pair, then dense layers with 256, 256 and 10 outputs; ReLU.
    """
    channels, height, width = image_shape
    parts: list[nn.Module] = []
    for outputs in (64, 128, 256)[: layers // 2]:
        for inputs in (channels, outputs):
            parts += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
        parts.append(nn.MaxPool2d(2))
        channels, height, width = outputs, height // 2, width // 2
    parts.append(nn.Flatten())
    for inputs, outputs in pairwise((channels * height * width, 256, 256, CLASSES)):
        parts += [nn.Linear(inputs, outputs), nn.ReLU()]
    without_last_relu = parts[:-1]
    return nn.Sequential(*without_last_relu)
