"""Comparing and selecting, in the forms that a CPU does fast; exactly the largest, without a sort.

Of equal values that of the earlier tensor, then of the lower row-major index counts as the larger;
what is not a number counts as the largest of all, and -0.0 equals 0.0.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from masktorch.blocks import Out, blocks, blockwise, is_plain


def select_above(weight: Tensor, margin: Tensor, at: float, out: Out = None) -> Tensor:
    """0 where `margin <= at`, else `weight`: on a CPU many times faster than `where`."""
    operation = torch.ops.aten.threshold_backward
    if out is None:
        return cast(Tensor, operation(weight, margin, at))
    return cast(Tensor, operation.grad_input(weight, margin, at, grad_input=out))


def compared(test: Callable[[Any], Any], values: Tensor, out: Out = None) -> Tensor:
    """An elementwise test of a tensor: on a CPU by numpy, which compares many times faster."""
    if not by_numpy(values):
        return cast(Tensor, test(values))
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    found = torch.from_numpy(np.asarray(test(np.from_dlpack(wide))))  # dlpack: see `_parts`
    return (torch.empty_like(values, dtype=torch.bool) if out is None else out).copy_(found)


def as_number(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as 0 and 1; a CPU converts bytes eight times faster than it does bools."""
    return (mask.view(torch.uint8) if is_plain(mask) else mask).to(dtype)


def select(mask: Tensor, weight: Tensor) -> Tensor:
    """`weight` where the mask, bools or bytes, is True, elsewhere exactly 0, not 0 * NaN."""
    return blockwise(lambda m, w, out: select_above(w, as_number(m, w.dtype), 0, out))(mask, weight)


def count(density: float, entries: int) -> int:
    """The number of entries that a density keeps, computed in Python's floats."""
    return max(1, math.floor(density * entries + 0.5))


def gathered(tensor: Any) -> Tensor:
    """All of a tensor, where each process holds a part of it (FSDP2)."""
    return cast(Tensor, tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor)


def parted(tensor: Tensor, like: Any) -> Tensor:
    """Of a tensor that is whole the part that this process holds of another."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements)


def whole(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`function(*tensors)` of all their parts, where each process holds one."""
    if torch.compiler.is_compiling():
        return function(*tensors)
    return parted(function(*map(gathered, tensors)), tensors[0])


_last: dict[tuple[Any, ...], tuple[float, int, float]] = {}  # cuts, ties, how far they had moved
_LAST = 1024  # of them at most
_SAMPLE = 2**16  # entries by which the others are passed over


def largest_of(tensors: Sequence[Tensor], k: int, *, absolute: bool = False) -> list[Tensor]:
    """The masks of the `k` entries of all tensors together that are largest (in magnitude)."""
    tensors = [values.detach() for values in tensors]
    if k >= sum(values.numel() for values in tensors):
        return [torch.ones_like(values, dtype=torch.bool) for values in tensors]
    if len(tensors) > 1 or by_numpy(tensors[0]):
        return beyond(tensors, *cut(tensors, k, absolute), absolute)
    # by a stable sort, which accelerators and transforms do
    flat = (tensors[0].abs() if absolute else tensors[0]).flatten()
    flat = torch.where(flat == flat, flat + 0.0, torch.nan)  # one zero, one that is not a number
    order = flat.argsort(descending=True, stable=True)
    mask = torch.zeros_like(flat, dtype=torch.bool).scatter(0, order[:k], True)
    return [mask.view(tensors[0].shape)]


def by_numpy(values: Tensor) -> bool:
    """Whether numpy can read it: plain, and on the CPU."""
    return values.device.type == "cpu" and is_plain(values)


def cut(tensors: Sequence[Tensor], k: int, absolute: bool) -> tuple[float, int]:
    """The largest value that is not among the `k` largest, and how many of those are equal to it.
    Values between two bounds are copied, the rest is counted, which shows whether it lies there."""
    key = k, absolute, *((v.data_ptr(), v.dtype, v.numel()) for v in tensors)
    last, ties, moved = _last.get(key, (math.nan, 0, math.nan))
    entries = sum(values.numel() for values in tensors)

    def number(test: Callable[[Any], Any]) -> int:
        return sum(int(np.count_nonzero(test(part))) for part in _parts(tensors, absolute))

    proved = moved == 0 and number(lambda part: part <= last) + k - ties == entries
    if proved and (not ties or number(lambda part: part == last) > ties):
        return last, ties
    place = entries - k - 1  # from below, what is not a number at the top
    for low, high in _brackets(tensors, place / entries, absolute, last, moved):
        below, between = 0, []
        for part in _parts(tensors, absolute):
            under = part < low
            below += int(np.count_nonzero(under))
            inside = ~under if math.isnan(high) else under != (part <= high)
            between.append(part[np.flatnonzero(inside)])
        near = np.concatenate(between)
        if 0 <= place - below < near.size:
            break
    near.partition(place - below)
    at, above = float(near[place - below]), near[place - below + 1 :]
    ties = int(np.count_nonzero(above != above if math.isnan(at) else above == at))
    if len(_last) >= _LAST:
        _last.clear()
    _last[key] = at, ties, 0.0 if at == last else max(abs(at - last), moved / 2)
    return at, ties


def _brackets(
    tensors: Sequence[Tensor], share: float, absolute: bool, last: float, moved: float
) -> Iterator[tuple[float, float]]:
    """Where the next cut lies, likeliest first: around the last one, that of a sample, anywhere."""
    if math.isfinite(moved):
        yield last - 4 * moved, last + 4 * moved
    entries = sum(values.numel() for values in tensors)
    if entries > _SAMPLE:
        stride = (entries - 1) // _SAMPLE + 1
        sample = np.sort(np.concatenate([np.copy(p) for p in _parts(tensors, absolute, stride)]))
        at, margin = int(share * sample.size), 4 * math.isqrt(_SAMPLE)
        low = sample[at - margin] if at >= margin else -math.inf
        yield low, sample[at + margin] if at + margin < sample.size else math.nan
    yield -math.inf, math.nan


def _parts(tensors: Sequence[Tensor], absolute: bool, stride: int = 1) -> Iterator[Any]:
    """Every `stride`-th entry, or until the next its magnitude, by blocks, in a dtype of all."""
    dtype = functools.reduce(torch.promote_types, (v.dtype for v in tensors), torch.float32)
    place = np.empty(0)
    for (block,) in (block for values in tensors for block in blocks(values)):
        # numpy() would forbid FSDP2 to free the storage
        part = np.from_dlpack(block.reshape(-1)[::stride].to("cpu", dtype))
        if absolute:
            place = place if place.size >= part.size else np.empty_like(part)
            part = np.abs(part, out=place[: part.size])
        yield part


def beyond(tensors: Sequence[Tensor], at: float, ties: int, absolute: bool) -> list[Tensor]:
    """The masks of what is beyond a cut, and of so many that are equal to it, the first."""
    dtype = functools.reduce(torch.promote_types, (values.dtype for values in tensors))

    def where(test: Callable[[Any], Any], values: Tensor) -> Tensor:
        return blockwise(
            lambda v, out: compared(test, (v.abs() if absolute else v).to(dtype), out)
        )(values)

    masks = []
    for values in tensors:
        # a NaN is beyond all but a NaN, and equal to no other
        mask = where(lambda v: ~(v <= at) if at == at else v < v, values)
        if ties:
            equal = where(lambda v: v == at if at == at else v != v, values)
            first = np.flatnonzero(equal.cpu().numpy())[:ties]
            mask.put_(torch.from_numpy(first).to(mask.device), mask.new_ones(len(first)))
            ties -= len(first)
        masks.append(mask)
    return masks
