"""The networks, and what each contestant does to one: masktorch and its rivals."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

import masktorch
from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.estimators import MEASURED
from benchmarks.experiment.networks import CLASSES, build
from benchmarks.speed import rivals


def mlp() -> nn.Module:
    hidden = [module for _ in range(4) for module in (nn.Linear(2048, 2048), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(2048, CLASSES))


def transformer() -> nn.Module:
    """An encoder, the mean over its positions, a linear layer."""
    layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
    mean = nn.AdaptiveAvgPool2d((1, None))
    return nn.Sequential(encoder, mean, nn.Flatten(), nn.Linear(256, CLASSES))


class Network(NamedTuple):
    make: Callable[[], nn.Module]
    input_shape: tuple[int, ...]  # of one example


WRN, COLOUR_IMAGE = Configuration("cifar10"), (3, 32, 32)
LENET, GREY_IMAGE = Configuration("mnist", network="lenet-300-100"), (1, 28, 28)
NETWORKS = {
    "WRN-28-8": Network(lambda: build(WRN, COLOUR_IMAGE), COLOUR_IMAGE),
    "WRN-28-2": Network(
        lambda: build(replace(WRN, width=2), COLOUR_IMAGE), COLOUR_IMAGE
    ),
    "MLP 4x2048": Network(mlp, (2048,)),
    "LeNet-300-100": Network(lambda: build(LENET, GREY_IMAGE), GREY_IMAGE),
    "Transformer 6x256": Network(transformer, (32, 256)),
}


Preparation = Callable[[nn.Module], nn.Module]


def _wrapped(make_estimator: Callable[[], masktorch.Estimator]) -> Preparation:
    """Scores start standard normal, so that about half of the entries is masked."""
    return lambda model: masktorch.wrap(model, make_estimator(), init=torch.randn_like)


def _frozen(make_estimator: Callable[[], masktorch.Estimator]) -> Preparation:
    """The mask is frozen and the weights train."""

    def prepare(model: nn.Module) -> nn.Module:
        model = _wrapped(make_estimator)(model)
        masktorch.freeze_mask(model)
        return masktorch.freeze_weights(model, False)

    return prepare


def _unwrapped(model: nn.Module) -> nn.Module:
    return masktorch.unwrap(_frozen(masktorch.Threshold)(model))


# What each does to a network.
CONTESTANTS: dict[str, Preparation] = {
    "plain": lambda model: model,
    **{name: _wrapped(kind.make) for name, kind in MEASURED.items()},
    "frozen mask": _frozen(masktorch.Threshold),
    "frozen top-k": _frozen(masktorch.TopK),
    "unwrapped": _unwrapped,
    "textbook": partial(rivals.parametrized, mask_of=rivals.threshold),
    "textbook bernoulli": partial(rivals.parametrized, mask_of=rivals.bernoulli),
    "edge-popup": partial(rivals.parametrized, mask_of=rivals.edge_popup),
    "prune": rivals.pruned,
}
