"""Modules that cannot hold a mask are refused before anything changes."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import masktorch


class Scaled(nn.Sequential):
    """A container that owns a parameter and iterates over its children."""

    def __init__(self, *layers):
        super().__init__(*layers)
        self.scale = nn.Parameter(torch.randn(4))

    def forward(self, x):
        for layer in self:
            x = layer(x)
        return x * self.scale


def traced():
    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(x @ self.weight)

    return torch.fx.symbolic_trace(Owner())


def overlapping():
    storage = torch.randn(6)
    module = nn.Module()
    module.weight = nn.Parameter(storage.as_strided((4, 3), (1, 1)))
    return module


def lazy():
    return nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 3))


def old_weight_norm():
    with pytest.warns(FutureWarning):
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(2, 2)))


class Keyed(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.ones(2)))
        self.linear = nn.Linear(2, 2)


class HasChild(nn.Linear):
    """A child of its own where the masks go."""

    def __init__(self):
        super().__init__(2, 2)
        self.parametrizations = nn.ModuleList()


class NeedsWord(nn.Linear):
    """A class whose subclasses must say something, as some registries ask."""

    def __init_subclass__(cls, *, word):
        super().__init_subclass__()


REFUSED = {
    "lazy": (lazy, ["1.weight", "0.weight"], "'0.weight': it has no shape yet"),
    "expanded": (
        lambda: nn.ParameterList(
            [torch.ones(2), nn.Parameter(torch.ones(1).expand(3))]
        ),
        ["0", "1"],
        "can't mask '1': several of its entries share",
    ),
    "overlapping": (
        overlapping,
        ["weight"],
        "can't mask 'weight': several of its entries share",
    ),
    "old weight norm": (
        old_weight_norm,
        ["0.bias", "0.weight"],
        "can't mask 0.weight: not a",
    ),
    "weight norm": (
        lambda: nn.Sequential(nn.Linear(2, 2), weight_norm(nn.Linear(2, 2))),
        ["0.weight", "1.weight"],
        "can't mask 1.weight: not a parameter, computed by weight_norm",
    ),
    "keys": (lambda: Keyed("keys"), ["linear.weight", "keys"], "can't mask 'keys'"),
    "update": (
        lambda: Keyed("update"),
        ["linear.weight", "update"],
        "can't mask 'update'",
    ),
    "a child called parametrizations": (
        lambda: nn.Sequential(nn.Linear(2, 2), HasChild()),
        None,
        "can't mask '1.weight'",
    ),
    "a container's own parameter": (
        lambda: Scaled(nn.Linear(4, 4), nn.ReLU()),
        ["0.weight", "scale"],
        "can't mask 'scale'",
    ),
    "a traced module's own parameter": (
        traced,
        ["linear.weight", "weight"],
        "can't mask 'weight'",
    ),
    "sparse gradients": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.Embedding(7, 4, sparse=True)),
        ["0.weight", "1.weight"],
        "can't mask '1.weight': sparse",
    ),
    "sparse gradients of a bag": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.EmbeddingBag(7, 4, sparse=True)),
        ["0.weight", "1.weight"],
        "can't mask '1.weight': sparse",
    ),
    "no subclass": (
        lambda: nn.Sequential(nn.Linear(2, 2), NeedsWord(2, 2)),
        None,
        "'word'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_modules_are_refused_before_anything_changes(case):
    make, targets, message = REFUSED[case]
    model = make()

    def snapshot():
        return (
            str(model),
            [type(m) for m in model.modules()],
            [(n, id(p), p.requires_grad) for n, p in model.named_parameters()],
        )

    before = snapshot()
    with pytest.raises((ValueError, TypeError), match=message):
        masktorch.wrap(model, **({} if targets is None else {"targets": targets}))
    assert snapshot() == before
