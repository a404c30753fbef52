"""Multiplying by Python numbers.

PyTorch makes a tensor of a number that is an operand, which takes longer than the
arithmetic of a small tensor. It takes the number `alpha` as it is. To a compiler an
`alpha` is a constant, so that another number would be another graph; an operand is not.
"""

import torch
from torch import Tensor

from masktorch._kernels.chunked import Out


def scaled(tensor: Tensor, factor: float, out: Out = None) -> Tensor:
    """Return `tensor * factor`."""
    if torch.compiler.is_compiling():
        return tensor * factor
    if factor <= 1:
        # The sum below would round a small factor away and make NaN of infinity.
        return torch.mul(tensor, factor, out=out)
    return torch.add(tensor, tensor, alpha=factor - 1, out=out)


def affine(tensor: Tensor, factor: float, offset: float) -> Tensor:
    """Return `tensor * factor + offset`."""
    if torch.compiler.is_compiling():
        return tensor * factor + offset
    return torch.rsub(tensor, offset, alpha=-factor)
