"""Initial weights that masks learn well on."""

import math

import torch
from torch import Tensor

from masktorch.checks import check_density


def signed_constant_(tensor: Tensor, density: float = 1.0) -> Tensor:
    """Leaves of each weight its sign, times one number for all: in place, returns the tensor.

    `W <- sign(W) * sqrt(2 / (fan_in * density))` with `sign(0) = 1`, `fan_in` the entries of
    `tensor[0]`: the variance of Kaiming's initial weights under a mask of that density.
    Raises `ValueError` for a tensor of fewer than two dimensions and a density outside (0, 1],
    `TypeError` for anything but a floating-point tensor.
    Source: Ramanujan et al., "What's Hidden in a Randomly Weighted Neural Network?"
    (arXiv 1911.13299), and Zhou et al. (1905.01067).

    Examples:
        >>> signed_constant_(torch.tensor([[0.3, -0.1], [0.0, -2.0]]))
        tensor([[ 1., -1.],
                [ 1., -1.]])
    """
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        kind = getattr(tensor, "dtype", type(tensor).__name__)
        raise TypeError(f"signed_constant_() expected a floating-point tensor, found {kind}.")
    if tensor.grad_fn is not None:
        raise ValueError(
            "signed_constant_() expected a parameter, found a computed tensor, where its values "
            "are lost. Call it before wrap, or on layer.parametrizations.weight.original."
        )
    if tensor.dim() < 2:
        raise ValueError(
            "signed_constant_() expected a weight of two dimensions or more, found shape "
            f"{tuple(tensor.shape)}: its fan_in is unknown. Leave biases and norms as they are."
        )
    check_density(density, "signed_constant_()")
    constant = math.sqrt(2 / (max(tensor[0].numel(), 1) * density))
    with torch.no_grad():
        return tensor.copy_(torch.where(tensor < 0, -1.0, 1.0)).mul_(constant)
