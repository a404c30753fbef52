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

from masktorch import blocks
from masktorch.blocks import Out, blockwise, by_numpy, is_unseen


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
    return (mask.view(torch.uint8) if is_unseen(mask) else mask).to(dtype)


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


_last: dict[Any, tuple[float, float, bool]] = {}  # cuts, how far they had moved, and if tied
_LAST = 1024  # of them at most
_SAMPLE = 2**16  # entries by which the others are passed over


def largest_of(tensors: Sequence[Tensor], k: int, *, absolute: bool = False) -> list[Tensor]:
    """The masks of the `k` entries of all tensors together that are largest (in magnitude)."""
    tensors = [values.detach() for values in tensors]
    sizes = [values.numel() for values in tensors]
    if k >= sum(sizes):
        return [torch.ones_like(values, dtype=torch.bool) for values in tensors]
    if all(map(is_unseen, tensors)) and (len(tensors) > 1 or tensors[0].device.type == "cpu"):
        mask = torch.from_numpy(_beyond_cut(tensors, k, absolute))
    else:  # by a stable sort, which accelerators and transforms do
        flat = torch.cat([(values.abs() if absolute else values).flatten() for values in tensors])
        flat = torch.where(flat == flat, flat + 0.0, torch.nan)  # one zero, one that is no number
        order = flat.argsort(descending=True, stable=True)
        mask = torch.zeros_like(flat, dtype=torch.bool).scatter(0, order[:k], 1)
    if len(tensors) == 1 and tensors[0].is_contiguous():
        return [mask.view(tensors[0].shape)]
    parts = zip(torch.split(mask, sizes), tensors, strict=True)
    return [torch.empty_like(v, dtype=torch.bool).copy_(part.view(v.shape)) for part, v in parts]


def _beyond_cut(tensors: Sequence[Tensor], k: int, absolute: bool) -> Any:
    """The cut is the largest value that is not among the `k` largest, of which equals may be."""
    key = k, absolute, *((v.data_ptr(), v.dtype, v.numel()) for v in tensors)
    last, moved, tied = _last.get(key, (math.nan, math.nan, True))
    kept = np.empty(sum(values.numel() for values in tensors), dtype=bool)
    if moved == 0 and not tied:  # where it stands still, a count proves it
        for start, part in _parts(tensors, absolute):
            np.less_equal(part, last, out=kept[start : start + part.size])
        if np.count_nonzero(np.logical_not(kept, out=kept)) == k:
            return kept
    for low, high in _brackets(tensors, k, absolute, last, moved):
        below, near, places = _between(tensors, absolute, low, high, kept)
        rank = kept.size - k - 1 - below  # of the cut in `near`
        if 0 <= rank < near.size:
            ordered = np.partition(near, rank)
            at, above = float(ordered[rank]), ordered[rank + 1 :]
            if at == at or math.isnan(high):  # else what is above the bounds comes before a NaN
                break
    kept[places] = ~(near <= at) if at == at else False
    equal, ties = (near == at, above == at) if at == at else (near != near, above != above)
    kept[places[equal][: np.count_nonzero(ties)]] = True
    if len(_last) >= _LAST:
        _last.clear()
    _last[key] = at, 0.0 if at == last else max(abs(at - last), moved / 2), bool(ties.any())
    return kept


@np.errstate(over="ignore")  # of bounds, by float32
def _between(tensors: Sequence[Tensor], absolute: bool, low: float, high: float, kept: Any) -> Any:
    """How many values are below two bounds; those that are neither below nor above, as what is not
    a number is, with their places. `kept` shows what is above."""
    below, near, places = 0, [np.empty(0, np.float32)], [np.empty(0, np.int64)]
    for start, part in _parts(tensors, absolute):
        under, over = part < low, np.greater(part, high, out=kept[start : start + part.size])
        count = int(np.count_nonzero(under))
        if count + np.count_nonzero(over) < part.size:
            found = np.flatnonzero(under == over)
            near.append(part[found])
            places.append(found + start)
        below += count
    return below, np.concatenate(near), np.concatenate(places)


def _brackets(tensors: Sequence[Tensor], k: int, absolute: bool, last: float, moved: float) -> Any:
    """Where the next cut lies, likeliest first: around the last one, that of a sample, anywhere."""
    if math.isfinite(moved):
        yield last - 4 * moved, last + 4 * moved
    entries = sum(values.numel() for values in tensors)
    if entries > _SAMPLE:
        stride = (entries - 1) // _SAMPLE + 1
        parts = [np.copy(part) for _, part in _parts(tensors, absolute, stride)]
        sample, margin = np.sort(np.concatenate(parts)), 4 * math.isqrt(_SAMPLE)
        at = int((1 - (k + 1) / entries) * sample.size)
        low = sample[at - margin] if at >= margin else -math.inf
        yield low, sample[at + margin] if at + margin < sample.size else math.nan
    yield -math.inf, math.nan


def _parts(tensors: Sequence[Tensor], absolute: bool, stride: int = 1) -> Iterator[tuple[int, Any]]:
    """Every `stride`-th entry, or until the next its magnitude, in one dtype, with its place."""
    dtype = functools.reduce(torch.promote_types, (v.dtype for v in tensors), torch.float32)
    place = np.empty(min(blocks.BLOCK, max(v.numel() for v in tensors)), str(dtype)[6:])
    first = 0
    for flat in (values.contiguous().view(-1) for values in tensors):
        # numpy() would forbid FSDP2 to free the storage
        array = np.from_dlpack(flat) if flat.dtype is dtype and flat.device.type == "cpu" else None
        for start in range(0, flat.numel(), blocks.BLOCK):
            block = slice(start, start + blocks.BLOCK, stride)
            part = np.from_dlpack(flat[block].to("cpu", dtype)) if array is None else array[block]
            yield first + start, np.abs(part, out=place[: part.size]) if absolute else part
        first += flat.numel()
