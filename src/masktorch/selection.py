"""Comparing and selecting, in the forms that a CPU does fast; exactly the largest, without a sort.

Of equal values the one of the lower row-major index counts as the larger, whatever the layout; a
value that is not a number counts as the largest of all, and -0.0 equals 0.0.
"""

import functools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from masktorch import blocks
from masktorch.blocks import blockwise, is_plain


def select_above(weight: Tensor, margin: Tensor, at: float) -> Tensor:
    """0 where `margin <= at`, else `weight`; PyTorch has it as the derivative of its threshold
    function, on a CPU many times faster than `where`."""
    return cast(Tensor, torch.ops.aten.threshold_backward(weight, margin, at))


def exceeds(margin: Tensor, at: float) -> Tensor:
    """`margin > at`; a CPU compares thrice as slowly into bools as it converts numbers to them."""
    return select_above(margin.new_ones(()), margin, at).to(torch.bool)


def select(weight: Tensor, mask: Tensor) -> Tensor:
    """`weight` where the bool `mask` is True, elsewhere exactly 0, whatever stands there.

    Examples:
        >>> select(torch.tensor([1.0, float("nan")]), torch.tensor([True, False]))
        tensor([1., 0.])
    """
    return blockwise(lambda w, m: (select_above(w, as_number(m, w.dtype), 0.0),), weight, mask)[0]


def as_number(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as 0 and 1; a CPU converts bytes eight times faster than it does bools."""
    return (mask.view(torch.uint8) if is_plain(mask) else mask).to(dtype)


def count(density: float, entries: int) -> int:
    """The number of entries that a density keeps, `max(1, floor(density * entries + 1/2))`,
    computed in Python's floats.

    Examples:
        >>> count(0.1, 25), count(0.001, 25)
        (3, 1)
    """
    return max(1, math.floor(density * entries + 0.5))


def gathered(tensor: Any) -> Tensor:
    """All of a tensor, where each process holds a part of it (FSDP2)."""
    return cast(Tensor, tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor)


def parted(tensor: Tensor, like: Any) -> Tensor:
    """Of a tensor that is whole the part that this process holds of another."""
    if not hasattr(like, "full_tensor"):
        return tensor
    distributed: Any = sys.modules["torch.distributed.tensor"]
    return cast(Tensor, distributed.distribute_tensor(tensor, like.device_mesh, like.placements))


def whole(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`function(*tensors)` of all their parts, where each process holds one."""
    if torch.compiler.is_compiling() or not hasattr(tensors[0], "full_tensor"):
        return function(*tensors)
    return parted(function(*map(gathered, tensors)), tensors[0])


_Key = tuple[Any, ...]
_outside: dict[_Key, float] = {}
"""The largest value that stayed outside, of the last selections: guesses."""
_OUTSIDE = 1024  # of them at most


def largest(values: Tensor, k: int, *, absolute: bool = False) -> Tensor:
    """The mask of the `k` largest entries, or the `k` of the largest magnitudes."""
    values = values.detach()
    if k >= values.numel():
        return torch.ones_like(values, dtype=torch.bool)
    if values.device.type != "cpu" or not is_plain(values):
        return _largest_by_order(values, k, absolute)
    return largest_of([values], k, absolute=absolute)[0]


def largest_of(tensors: Sequence[Tensor], k: int, *, absolute: bool = False) -> list[Tensor]:
    """The masks of the `k` largest entries of all tensors together, of equal ones those of the
    earlier tensor.

    Whatever value stayed outside last time: if exactly `k` entries exceed it now, they are the `k`
    largest. So where nothing changed one pass finds the masks and proves them.
    """
    tensors = [values.detach() for values in tensors]
    if k >= sum(values.numel() for values in tensors):
        return [torch.ones_like(values, dtype=torch.bool) for values in tensors]
    key = _key(tensors, k, absolute)
    at = _outside.get(key)
    masks = None if at is None else _beyond(at, tensors, k, absolute)
    if masks is None:
        at = _next_largest(tensors, k, absolute)
        masks = cast(list[Tensor], _beyond(at, tensors, k, absolute))
        if len(_outside) >= _OUTSIDE:
            _outside.clear()
        _outside[key] = at
    return masks


def select_largest(weight: Tensor, values: Tensor, k: int, *, absolute: bool) -> Tensor:
    """`weight` under the mask of `largest`, in one pass if what stayed outside last time proves to
    be outside still."""
    values = values.detach()
    if is_plain(values) and (at := _outside.get(_key([values], k, absolute))) is not None:
        outside = 0

        def product(weight: Tensor, values: Tensor) -> tuple[Tensor]:
            nonlocal outside
            margin = values.abs() if absolute else values
            outside += int(torch.count_nonzero(margin <= at))
            return (select_above(weight, margin, at),)

        (found,) = blockwise(product, weight, values)
        if outside == values.numel() - k:
            return found
    return select(weight, largest(values, k, absolute=absolute))


def _key(tensors: Sequence[Tensor], k: int, absolute: bool) -> _Key:
    return k, absolute, *((v.data_ptr(), v.dtype, v.numel()) for v in tensors)


def _common(tensors: Sequence[Tensor]) -> torch.dtype:
    return functools.reduce(torch.promote_types, (values.dtype for values in tensors))


_SAMPLE = 2**16
"""Entries of a sample by which the others are passed over; all are taken where they are few."""


def _next_largest(tensors: Sequence[Tensor], k: int, absolute: bool) -> float:
    """The largest of the values that are not the `k` largest.

    A sorted sample says between which two values it most likely lies. Only what is between them is
    copied, the rest is counted, which shows whether it does.
    """
    entries = sum(values.numel() for values in tensors)
    place = entries - k - 1  # from below, what is not a number at the top
    stride = (entries - 1) // _SAMPLE + 1
    low, high = -math.inf, math.nan  # no bounds
    if stride > 1:
        sample = np.sort(np.concatenate(list(_parts(tensors, absolute, stride))))
        at, margin = place * sample.size // entries, 4 * math.isqrt(_SAMPLE)
        low = sample[at - margin] if at >= margin else low
        high = sample[at + margin] if at + margin < sample.size else high
    below, between = 0, []
    for part in _parts(tensors, absolute):
        under = part < low
        below += int(np.count_nonzero(under))
        between.append(part[~under if math.isnan(high) else ~under & (part <= high)])
    near = np.concatenate(between)
    if not 0 <= place - below < near.size:  # an unlucky sample
        near, below = np.concatenate(list(_parts(tensors, absolute))), 0
    near.partition(place - below)
    return float(near[place - below])


def _parts(
    tensors: Sequence[Tensor], absolute: bool, stride: int = 1
) -> Iterator[npt.NDArray[Any]]:
    """Every `stride`-th entry (its magnitude), by blocks, in a dtype that numpy has and all fit."""
    dtype = torch.promote_types(_common(tensors), torch.float32)
    for values in tensors:
        for (block,) in blocks.blocks(values):
            part = block.reshape(-1)[::stride].to("cpu", dtype)
            yield (part.abs() if absolute else part).numpy()


def _beyond(at: float, tensors: Sequence[Tensor], k: int, absolute: bool) -> list[Tensor] | None:
    """The masks of the `k` largest if they are those beyond `at` and the first equal to it."""
    dtype = _common(tensors)

    def compared(compare: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        def by_block(block: Tensor) -> tuple[Tensor]:
            return (compare((block.abs() if absolute else block).to(dtype)),)

        return blockwise(by_block, values)[0]

    if math.isnan(at):  # nothing is beyond
        masks = [torch.zeros_like(values, dtype=torch.bool) for values in tensors]
    else:
        masks = [compared(lambda v: exceeds(v, at), values) for values in tensors]
    missing = k - sum(int(torch.count_nonzero(mask)) for mask in masks)
    for values, mask in zip(tensors, masks, strict=True):
        if missing > 0:
            equal = compared(lambda v: v != v if math.isnan(at) else v == at, values).flatten()
            missing -= _keep_first(equal, missing)
            mask.logical_or_(equal.view(mask.shape))
    return masks if missing == 0 else None


def _keep_first(mask: Tensor, number: int) -> int:
    """Leaves of a flat mask the first `number` entries; returns how many it had of those."""
    found = 0
    for part in torch.split(mask, blocks.BLOCK):
        here = int(torch.count_nonzero(part))
        if found + here > number:
            part[part.nonzero().flatten()[number - found :]] = False
        found = min(found + here, number)
    return found


def _largest_by_order(values: Tensor, k: int, absolute: bool) -> Tensor:
    """The same by a stable sort, which accelerators and transforms do."""
    flat = (values.abs() if absolute else values).flatten()
    flat = torch.where(flat == flat, flat + 0.0, torch.nan)  # one zero, one that is not a number
    order = flat.argsort(descending=True, stable=True)
    mask = torch.zeros_like(flat, dtype=torch.bool).scatter(0, order[:k], True)
    return mask.view(values.shape)
