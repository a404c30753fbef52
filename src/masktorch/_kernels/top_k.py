"""Exactly the largest entries, without a sort.

Of equal values that of the earlier tensor, then of the lower row-major index counts as the larger;
what is not a number counts as the largest of all, and -0.0 equals 0.0.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from masktorch._kernels import chunked
from masktorch._kernels.chunked import is_unseen

_last: dict[
    Any, tuple[float, float, bool]
] = {}  # cuts, how far they had moved, and if tied
_LAST = 1024  # of them at most
_SAMPLE = 2**16  # entries by which the others are passed over


def count(density: float, entries: int) -> int:
    """The number of entries that a density keeps, computed in Python's floats."""
    return max(1, math.floor(density * entries + 0.5))


def largest_of(
    tensors: Sequence[Tensor], k: int, *, absolute: bool = False
) -> list[Tensor]:
    """The masks of the `k` entries of all tensors together that are largest (in magnitude)."""
    tensors = [values.detach() for values in tensors]
    sizes = [values.numel() for values in tensors]
    if k >= sum(sizes):
        return [torch.ones_like(values, dtype=torch.bool) for values in tensors]
    if all(map(is_unseen, tensors)) and (
        len(tensors) > 1 or tensors[0].device.type == "cpu"
    ):
        mask = torch.from_numpy(_beyond_cut(tensors, k, absolute))
    else:  # by a stable sort, which accelerators and transforms do
        flat = torch.cat(
            [(values.abs() if absolute else values).flatten() for values in tensors]
        )
        flat = torch.where(
            flat == flat, flat + 0.0, torch.nan
        )  # one zero, one that is no number
        order = flat.argsort(descending=True, stable=True)
        mask = torch.zeros_like(flat, dtype=torch.bool).scatter(0, order[:k], 1)
    if len(tensors) == 1 and tensors[0].is_contiguous():
        return [mask.view(tensors[0].shape)]
    parts = zip(torch.split(mask, sizes), tensors, strict=True)
    return [
        torch.empty_like(v, dtype=torch.bool).copy_(part.view(v.shape))
        for part, v in parts
    ]


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
            if at == at or math.isnan(
                high
            ):  # else what is above the bounds comes before a NaN
                break
    kept[places] = ~(near <= at) if at == at else False
    equal, ties = (
        (near == at, above == at) if at == at else (near != near, above != above)
    )
    kept[places[equal][: np.count_nonzero(ties)]] = True
    if len(_last) >= _LAST:
        _last.clear()
    _last[key] = (
        at,
        0.0 if at == last else max(abs(at - last), moved / 2),
        bool(ties.any()),
    )
    return kept


@np.errstate(over="ignore")  # of bounds, by float32
def _between(
    tensors: Sequence[Tensor], absolute: bool, low: float, high: float, kept: Any
) -> Any:
    """How many values are below two bounds; those that are neither below nor above, as what is not
    a number is, with their places. `kept` shows what is above."""
    below, near, places = 0, [np.empty(0, np.float32)], [np.empty(0, np.int64)]
    for start, part in _parts(tensors, absolute):
        under, over = (
            part < low,
            np.greater(part, high, out=kept[start : start + part.size]),
        )
        count = int(np.count_nonzero(under))
        if count + np.count_nonzero(over) < part.size:
            found = np.flatnonzero(under == over)
            near.append(part[found])
            places.append(found + start)
        below += count
    return below, np.concatenate(near), np.concatenate(places)


def _brackets(
    tensors: Sequence[Tensor], k: int, absolute: bool, last: float, moved: float
) -> Any:
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


def _parts(
    tensors: Sequence[Tensor], absolute: bool, stride: int = 1
) -> Iterator[tuple[int, Any]]:
    """Every `stride`-th entry, or until the next its magnitude, in one dtype, with its place."""
    dtype = functools.reduce(
        torch.promote_types, (v.dtype for v in tensors), torch.float32
    )
    place = np.empty(
        min(chunked.CHUNK, max(v.numel() for v in tensors)), str(dtype)[6:]
    )
    first = 0
    for flat in (values.contiguous().view(-1) for values in tensors):
        # numpy() would forbid FSDP2 to free the storage
        array = (
            np.from_dlpack(flat)
            if flat.dtype is dtype and flat.device.type == "cpu"
            else None
        )
        for start in range(0, flat.numel(), chunked.CHUNK):
            block = slice(start, start + chunked.CHUNK, stride)
            part = (
                np.from_dlpack(flat[block].to("cpu", dtype))
                if array is None
                else array[block]
            )
            yield (
                first + start,
                np.abs(part, out=place[: part.size]) if absolute else part,
            )
        first += flat.numel()
