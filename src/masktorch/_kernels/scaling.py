"""Multiplying by a Python number.

PyTorch makes a tensor of a number that is an operand, which takes longer than the
arithmetic of a small tensor. It takes the number `alpha` as it is.
"""

import torch
from torch import Tensor

from masktorch._kernels.chunked import Out


def scaled(tensor: Tensor, factor: float, out: Out = None) -> Tensor:
    """Return `tensor * factor`."""
    return torch.add(tensor, tensor, alpha=factor - 1, out=out)


def scaled_(tensor: Tensor, factor: float) -> Tensor:
    """Multiply in place."""
    return tensor.add_(tensor, alpha=factor - 1)
