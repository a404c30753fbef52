"""Alternatives to masktorch, each written from its formula.

Three functions from scores to a mask, used in `torch.nn.utils.parametrize`, and
`torch.nn.utils.prune` with a fixed mask.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from benchmarks.experiment.networks import kernel_layers


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Return `hard` with the gradient of `soft`, by the textbook's formula."""
    return hard.to(soft.dtype) + (soft - soft.detach())


def threshold(scores: Tensor) -> Tensor:
    """Return `1[sigma(s) > 0.5]` with the gradient of `sigma(s)`."""
    p = torch.sigmoid(scores)
    return straight_through(p > 0.5, p)


def bernoulli(scores: Tensor) -> Tensor:
    """Return a draw from Bernoulli(sigma(s)) with the gradient of `sigma(s)`."""
    p = torch.sigmoid(scores)
    return straight_through(torch.bernoulli(p.detach()), p)


def edge_popup(scores: Tensor) -> Tensor:
    """Return 1 for the larger half of `|s|`, with the gradient of `|s|`; it sorts.

    Ramanujan et al., arXiv 1911.13299, at density 0.5.
    """
    magnitude = scores.abs()
    ranked = torch.sort(magnitude.detach().flatten()).values
    return straight_through(magnitude >= ranked[len(ranked) // 2], magnitude)


class Product(nn.Module):
    """The parametrization `weight * mask_of(scores)`."""

    def __init__(self, mask_of: Callable[[Tensor], Tensor], scores: Tensor) -> None:
        super().__init__()
        self.mask_of = mask_of
        self.scores = nn.Parameter(scores)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask_of(self.scores)


def parametrized(model: nn.Module, mask_of: Callable[[Tensor], Tensor]) -> nn.Module:
    """Mask each weight that `masktorch.wrap` would mask; only the scores train."""
    for layer in list(kernel_layers(model)):
        layer.weight.requires_grad_(False)
        mask = Product(mask_of, torch.randn_like(layer.weight))
        parametrize.register_parametrization(layer, "weight", mask)
    return model


def pruned(model: nn.Module) -> nn.Module:
    """Mask a fixed random half of each weight by torch's prune; the weights train."""
    for layer in kernel_layers(model):
        mask = torch.rand_like(layer.weight) < 0.5
        prune.custom_from_mask(layer, "weight", mask)  # type: ignore[no-untyped-call]
    return model
