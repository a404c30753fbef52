"""Comparing and selecting, in the forms that a CPU does fast.

What a mask is *read off* is a tensor that keeps an entry unless its value is at most a
threshold, so that NaN is kept: scores, the margins of a draw, bools or bytes.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from masktorch._kernels.chunked import Out, by_numpy, chunkwise, is_unseen

# The backward of `threshold` selects by a comparison in one vectorized pass. `where` takes
# a pass more for its condition and is many times slower on a CPU.
_threshold_backward = torch.ops.aten.threshold_backward.default
_threshold_backward_out = torch.ops.aten.threshold_backward.grad_input


def select_above(weight: Tensor, read: Tensor, at: float, out: Out = None) -> Tensor:
    """Return 0 where `read <= at`, else `weight`, in the weight's dtype.

    A masked entry is exactly 0, not `0 * NaN`."""
    if out is not None:
        return cast(Tensor, _threshold_backward_out(weight, read, at, grad_input=out))
    selected = cast(Tensor, _threshold_backward(weight, read, at))
    # it has the wider dtype of the two
    return selected if selected.dtype is weight.dtype else selected.to(weight.dtype)


def select(read: Tensor, weight: Tensor) -> Tensor:
    """Return `weight` where the mask keeps it, elsewhere exactly 0.

    The mask is read off bools, bytes or margins: an entry is kept unless `read <= 0`."""
    if read.dtype.is_floating_point:
        return select_above(weight, read, 0)
    return _select_by_bytes(read, weight)


@chunkwise
def _select_by_bytes(mask: Tensor, weight: Tensor, out: Out) -> Tensor:
    return select_above(weight, as_number(mask, weight.dtype), 0, out)


def as_number(read: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mask read off bools, bytes or margins as 0 and 1."""
    if read.dtype.is_floating_point:
        return read.sign().relu_().to(dtype)
    # a CPU converts bytes eight times faster than bools
    return (read.view(torch.uint8) if is_unseen(read) else read).to(dtype)


def compared(test: Callable[[Any], Any], values: Tensor, out: Out = None) -> Tensor:
    """Apply an elementwise test: on a CPU by numpy, which compares many times faster."""
    if not by_numpy(values):
        return cast(Tensor, test(values))
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    # `numpy()` would forbid FSDP2 to free the storage
    found = torch.from_numpy(np.asarray(test(np.from_dlpack(wide))))
    result = torch.empty_like(values, dtype=torch.bool) if out is None else out
    return result.copy_(found)


def at_most(at: float, dtype: torch.dtype) -> float:
    """Round a threshold down to a dtype, so that `s > at` means the same where the
    device would round it to nearest."""
    if at == 0:
        return at
    limits = torch.finfo(dtype)
    binade = 2.0 ** (math.frexp(at)[1] - 1)
    step = limits.eps * max(binade, limits.tiny)
    return math.floor(at / step) * step
