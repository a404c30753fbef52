"""The two networks: the blog's wide residual network and LeNet-300-100.

Kernels start Glorot-uniform and biases at zero, as Keras has it.
"""

from collections import OrderedDict

from torch import Tensor, nn

from benchmarks import BenchmarkError


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
