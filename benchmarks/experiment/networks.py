"""The blog's wide residual network, and those of the literature on learned supermasks.

Kernels start Glorot-uniform and biases at zero, as Keras has it.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

import masktorch
from benchmarks import BenchmarkError
from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.data import CLASSES


def build(configuration: Configuration, image_shape: tuple[int, int, int]) -> nn.Module:
    """The network with its random initialisation W0, the same for every arm of a seed."""
    torch.manual_seed(configuration.seed)
    depth, width = configuration.depth, configuration.width
    if depth is None or width is None:
        network = OF_ONE_SIZE[configuration.network](image_shape, CLASSES)
    else:
        network = wide_resnet(image_shape, CLASSES, depth, width)
    if configuration.weights == "signed-constant":
        make_signed_constant(network)
    elif configuration.weights == "signed-kaiming":
        make_signed_kaiming(network, configuration.density or 1.0)
    return network


def wide_resnet(
    image_shape: tuple[int, int, int], classes: int, depth: int, width: int
) -> nn.Module:
    """WRN-depth-width as keras-contrib writes it: depth = 6n + 4, n blocks in each of 3 groups."""
    if depth < 10 or (depth - 4) % 6:
        raise BenchmarkError(
            f"The depth of a wide residual network is 6n + 4 (10, 16, 22, 28, ...); found {depth}."
        )
    if width < 1:
        raise BenchmarkError(f"The width of a network must be at least 1; found {width}.")
    blocks = (depth - 4) // 6
    network = nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(image_shape[0], 16, 3, padding=1),
            stem_norm=_batch_norm(16),
            stem_relu=nn.ReLU(),
            group1=_group(16, 16 * width, blocks),
            pool1=nn.MaxPool2d(2),
            group2=_group(16 * width, 32 * width, blocks),
            pool2=nn.MaxPool2d(2),
            group3=_group(32 * width, 64 * width, blocks),
            average=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Linear(64 * width, classes),
        )
    )
    return _start_as_keras(network)


def lenet_300_100(image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Fully connected, 300 and 100 hidden units, ReLU (LeCun et al. 1998)."""
    channels, height, width = image_shape
    network = nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            hidden1=nn.Linear(channels * height * width, 300),
            relu1=nn.ReLU(),
            hidden2=nn.Linear(300, 100),
            relu2=nn.ReLU(),
            classifier=nn.Linear(100, classes),
        )
    )
    return _start_as_keras(network)


def conv(image_shape: tuple[int, int, int], classes: int, layers: int) -> nn.Module:
    """Conv-2, Conv-4 or Conv-6 (Frankle & Carbin 2019, Zhou et al. 2019): pairs of 3x3 convolutions
    with 64, 128, 256 channels, a 2x2 max-pool after each, then dense 256-256; ReLU."""
    channels, height, width = image_shape
    network = nn.Sequential()
    for number in range(1, layers // 2 + 1):
        outputs = 32 * 2**number
        network.append(nn.Conv2d(channels, outputs, 3, padding=1)).append(nn.ReLU())
        network.append(nn.Conv2d(outputs, outputs, 3, padding=1)).append(nn.ReLU())
        network.append(nn.MaxPool2d(2))
        channels, height, width = outputs, height // 2, width // 2
    network.append(nn.Flatten())
    network.append(nn.Linear(channels * height * width, 256)).append(nn.ReLU())
    network.append(nn.Linear(256, 256)).append(nn.ReLU())
    network.append(nn.Linear(256, classes))
    return _start_as_keras(network)


def make_signed_constant(network: nn.Module) -> None:
    """W becomes sign(W) * std(W) of its tensor (Zhou et al. 2019), on every kernel."""
    with torch.no_grad():
        for weight in kernels(network):
            weight.copy_(weight.sign() * weight.std())


def make_signed_kaiming(network: nn.Module, density: float) -> None:
    """W becomes sign(W) * sqrt(2 / (fan_in * density)) (Ramanujan et al. 2020), on every kernel."""
    for weight in kernels(network):
        masktorch.init.signed_constant_(weight, density)


def kernels(network: nn.Module) -> Iterator[Tensor]:
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            yield layer.weight


class Block(nn.Module):
    """Two convolutions, each with batch norm and ReLU, plus the input; nothing after the sum."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm1 = _batch_norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm2 = _batch_norm(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.relu(self.norm2(self.conv2(y)))
        out: Tensor = y + self.shortcut(x)
        return out


def _group(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            (f"block{number}", Block(inputs if number == 1 else outputs, outputs))
            for number in range(1, blocks + 1)
        )
    )


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    """Keras's defaults; its momentum 0.99 is the share kept, PyTorch's 0.01 the share replaced."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _start_as_keras(network: nn.Module) -> nn.Module:
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network


OF_ONE_SIZE: dict[str, Callable[[tuple[int, int, int], int], nn.Module]] = {
    "lenet-300-100": lenet_300_100,
    "conv-2": partial(conv, layers=2),
    "conv-4": partial(conv, layers=4),
    "conv-6": partial(conv, layers=6),
}
