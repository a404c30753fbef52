"""The blog's wide residual network, and those of the literature on learned supermasks."""

from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

import masktorch
from benchmarks import BenchmarkError
from benchmarks.experiment.configuration import Configuration

CLASSES = 10  # in each of the three data sets
# Keras's defaults; its momentum 0.99 is the share kept, PyTorch's 0.01 the share replaced.
batch_norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)


def build(configuration: Configuration, image_shape: tuple[int, int, int]) -> nn.Module:
    """The network at W0, the same for every arm of a seed: kernels Glorot-uniform and biases zero,
    as Keras has it, then what `configuration.weights` makes of them."""
    torch.manual_seed(configuration.seed)
    if configuration.network == "wrn":
        network = wide_resnet(image_shape[0], configuration.depth or 0, configuration.width or 0)
    elif configuration.network == "lenet-300-100":
        network = lenet_300_100(image_shape)
    else:
        network = conv(image_shape, layers=int(configuration.network.removeprefix("conv-")))
    for layer in kernel_layers(network):
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    for weight in kernels(network):
        if configuration.weights == "signed-constant":  # Zhou et al. 2019
            weight.data = weight.data.sign() * weight.data.std()
        elif configuration.weights == "signed-kaiming":  # Ramanujan et al. 2020
            masktorch.init.signed_constant_(weight, configuration.density or 1.0)
    return network


def kernel_layers(network: nn.Module) -> Iterator[nn.Conv2d | nn.Linear]:
    return (layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear))


def kernels(network: nn.Module) -> Iterator[Tensor]:
    return (layer.weight for layer in kernel_layers(network))


def wide_resnet(channels: int, depth: int, width: int) -> nn.Module:
    """WRN-depth-width as keras-contrib writes it: depth = 6n + 4, n blocks in each of 3 groups."""
    if depth < 10 or (depth - 4) % 6:
        raise BenchmarkError(
            f"The depth of a wide residual network is 6n + 4 (10, 16, 22, 28, ...); found {depth}."
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
    """Two convolutions, each with batch norm and ReLU, plus the input; nothing after the sum."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm1 = batch_norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm2 = batch_norm(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.relu(self.norm2(self.conv2(y)))
        return torch.add(y, self.shortcut(x))


def _group(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    sizes = [inputs] + [outputs] * blocks
    named = ((f"block{n}", Block(*size)) for n, size in enumerate(pairwise(sizes), start=1))
    return nn.Sequential(OrderedDict(named))


def lenet_300_100(image_shape: tuple[int, int, int]) -> nn.Module:
    """Fully connected, 300 and 100 hidden units, ReLU (LeCun et al. 1998)."""
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


def conv(image_shape: tuple[int, int, int], layers: int) -> nn.Module:
    """Conv-2, Conv-4 or Conv-6 (Frankle & Carbin 2019, Zhou et al. 2019): pairs of 3x3 convolutions
    with 64, 128, 256 channels, a 2x2 max-pool after each, then dense 256-256; ReLU."""
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
    return nn.Sequential(*parts[:-1])
