"""Comparing and selecting, in the forms that a CPU does fast.

A mask is computed from a *source*: scores, the margins of a draw, bools or bytes. An
entry is kept unless its source is at most a threshold, so that NaN is kept.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from masktorch._kernels.chunked import Out, by_numpy, chunkwise, is_unseen
from masktorch._kernels.dtypes import at_least_float32, converted

# The backward of `threshold` selects by a comparison in one vectorized pass. `where`
# takes a pass more for its condition and is many times slower on a CPU.
_threshold_backward: Callable[[Tensor, Tensor, float], Tensor]
_threshold_backward_out: Callable[..., Tensor]
_threshold_backward = torch.ops.aten.threshold_backward.default
_threshold_backward_out = torch.ops.aten.threshold_backward.grad_input


def select_above(source: Tensor, weight: Tensor, at: float, out: Out = None) -> Tensor:
    """Return 0 where `source <= at`, else `weight`, in the weight's dtype.

    A masked entry is exactly 0, not `0 * NaN`.
    """
    if out is not None:
        return _threshold_backward_out(weight, source, at, grad_input=out)
    # the result has the wider dtype of the two
    return converted(_threshold_backward(weight, source, at), weight.dtype)


def select(source: Tensor, weight: Tensor) -> Tensor:
    """Return `weight` where the mask keeps it, elsewhere exactly 0.

    The source is bools, bytes or margins: an entry is kept unless `source <= 0`.
    """
    if source.dtype.is_floating_point:
        return select_above(source, weight, 0)
    return _select_by_bytes(source, weight)


@chunkwise
def _select_by_bytes(mask: Tensor, weight: Tensor, out: Out) -> Tensor:
    return select_above(as_number(mask, weight.dtype), weight, 0, out)


def as_number(source: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mask of bools, bytes or margins as 0 and 1."""
    if source.dtype.is_floating_point:
        return converted(source.sign().relu_(), dtype)
    # a CPU converts bytes eight times faster than bools
    return (source.view(torch.uint8) if is_unseen(source) else source).to(dtype)


def apply_test(test: Callable[[Any], Any], values: Tensor, out: Out = None) -> Tensor:
    """Apply an elementwise test, on a CPU by numpy: it compares many times faster."""
    if not by_numpy(values):
        return cast(Tensor, test(values))
    wide = values.to(at_least_float32(values.dtype))
    # `numpy()` would forbid FSDP2 to free the storage
    found = torch.from_numpy(np.asarray(test(np.from_dlpack(wide))))
    result = torch.empty_like(values, dtype=torch.bool) if out is None else out
    return result.copy_(found)


def rounded_down(at: float, dtype: torch.dtype) -> float:
    """Round a threshold down to a dtype.

    `s > at` then means the same on devices that would round `at` to the nearest value.
    """
    if at == 0:
        return at
    limits = torch.finfo(dtype)
    binade = 2.0 ** (math.frexp(at)[1] - 1)
    step = limits.eps * max(binade, limits.tiny)
    return math.floor(at / step) * step
