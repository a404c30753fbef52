"""The dtypes of scores and of arithmetic with them."""

import torch
from torch import Tensor


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of scores over a weight of this dtype, and of their arithmetic.

    In 16 bits `1 - p` would be 0, and a score of 1.0 could not move by 1e-3.
    """
    if dtype is torch.float32 or dtype is torch.float64:
        return dtype
    return torch.promote_types(dtype, torch.float32)


def wide(tensor: Tensor, scores: Tensor) -> Tensor:
    """Convert to the dtype in which the gradient of these scores is computed."""
    if tensor.dtype is torch.float32 and scores.dtype is torch.float32:
        return tensor  # the common case, without calls
    return converted(tensor, at_least_float32(scores.dtype))


def converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `tensor.to(dtype)`.

    `to` takes as long as an operation even if there is nothing to convert.
    """
    return tensor if tensor.dtype is dtype else tensor.to(dtype)
