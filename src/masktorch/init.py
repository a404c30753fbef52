"""Initial weights that masks learn well on."""

import math

import torch
from torch import Tensor

from masktorch._checks import check_density


def signed_constant_(tensor: Tensor, density: float = 1.0) -> Tensor:
    """Leaves of each weight its sign, times one number for all: in place, returns the tensor.

    `W <- sign(W) * sqrt(2 / (fan_in * density))` with `sign(0) = 1`, `fan_in` the entries of
    `tensor[0]`: the variance of Kaiming's initial weights under a mask of that density.
    `ValueError` for fewer than two dimensions, a computed tensor or a density outside (0, 1],
    `TypeError` for other than floating point. Sources: arXiv 1911.13299, 1905.01067.

    Examples:
        >>> signed_constant_(torch.tensor([[0.3, -0.1]]))
        tensor([[ 1., -1.]])
    """
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        raise TypeError(
            f"signed_constant_() expected a floating-point tensor, found {tensor!r}."
        )
    if tensor.grad_fn is not None or tensor.dim() < 2:
        found = (
            "a computed tensor" if tensor.grad_fn else f"shape {tuple(tensor.shape)}"
        )
        raise ValueError(
            "signed_constant_() expected a parameter of two dimensions or more (of a masked layer "
            f"layer.parametrizations.weight.original), found {found}."
        )
    check_density(density, "signed_constant_()")
    constant = math.sqrt(2 / (max(tensor[0].numel(), 1) * density))
    with torch.no_grad():
        return tensor.copy_(torch.where(tensor < 0, -1.0, 1.0)).mul_(constant)
