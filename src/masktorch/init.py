"""Initial weights that masks learn well on."""

import math

import torch
from torch import Tensor

from masktorch._checks import check_density
from masktorch._masking.assigning import was_computed

__all__ = ["signed_constant_"]


def signed_constant_(tensor: Tensor, density: float = 1.0) -> Tensor:
    """Replace each weight by its sign times one constant, in place.

    `W <- sign(W) * sqrt(2 / (fan_in * density))` with `sign(0) = 1`, where `fan_in` is
    the number of entries of `tensor[0]`: under a mask of that density the variance is
    that of Kaiming's initial weights. Sources: Ramanujan et al. (arXiv 1911.13299),
    Zhou et al. (arXiv 1905.01067).

    Args:
        tensor: a floating-point parameter of two or more dimensions. Of a masked layer
            give `layer.parametrizations.weight.original`.
        density: the share of the entries that the mask will keep.

    Returns:
        The same tensor.

    Raises:
        ValueError: the tensor has fewer than two dimensions or was computed from
            another, or the density lies outside (0, 1].
        TypeError: the tensor is not floating point, or the density is not a number.

    Examples:
        >>> signed_constant_(torch.tensor([[0.3, -0.1]]))
        tensor([[ 1., -1.]])
    """
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        raise TypeError(
            f"signed_constant_() expected a floating-point tensor, found {tensor!r}."
        )
    if tensor.grad_fn is not None or was_computed(tensor):
        raise ValueError(
            "signed_constant_() expected a parameter, found a computed tensor, to "
            "which a write would be lost. Of a masked layer give "
            "layer.parametrizations.weight.original."
        )
    if tensor.dim() < 2:
        raise ValueError(
            "signed_constant_() expected a tensor of two or more dimensions, which has "
            f"a fan-in, found shape {tuple(tensor.shape)}."
        )
    check_density(density, "signed_constant_()")
    fan_in = max(math.prod(tensor.shape[1:]), 1)
    constant = math.sqrt(2 / (fan_in * density))
    with torch.no_grad():
        signs = torch.where(tensor < 0, -1.0, 1.0)
        return tensor.copy_(signs).mul_(constant)
