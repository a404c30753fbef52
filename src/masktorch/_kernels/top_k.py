"""Exactly the k largest entries.

Order: NaN ranks above every number, -0.0 equals 0.0, ties go to the earlier tensor,
then to the lower row-major index. All ways to select give the same mask:

- on a CPU one pass over the values, or a partition if they are few;
- on an accelerator one `topk` of unique keys, without waiting for the device;
- under transforms, and in float64 on an accelerator, a stable sort.

The *cut* is the largest value that is not kept. An entry is kept if it is above the
cut; of the entries equal to the cut, its *ties*, the first ones are kept until there
are k.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from masktorch._kernels import chunked
from masktorch._kernels.chunked import by_numpy, is_plain, is_unseen
from masktorch._kernels.dtypes import at_least_float32, converted
from masktorch._kernels.selecting import select, select_above

Values = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]

# Up to so many entries a partition of all takes less time than the search for the cut.
FEW = 2**12

# So many entries estimate where the cut lies. Their rank misses that among all entries
# by more than 4 * sqrt(SAMPLE) with a probability below 3e-14 (Hoeffding). They are
# taken at a stride, so structured values may miss more often; then the bounds are
# widened.
SAMPLE = 2**16
SAMPLE_MARGIN = 4

# The cut of one step lies within so many recent movements of the one before. Measured:
# with 2 every tenth search of a training run fails, with 8 the search is longer.
DRIFTS = 4

# Clears the sign bit of a float32 that is read as int32.
MAGNITUDE_BITS = 0x7FFF_FFFF
# As int32, one above the bits of infinity: NaN ranks above every number.
NAN_ORDER = 0x7F80_0001

NUMPY_DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}


class PreviousCut(NamedTuple):
    """Where the cut was when values of this place, size and k were last asked for."""

    value: float
    # how many entries equal to it were kept
    ties_kept: int
    # how far it moves a call: 0 if it stood still, infinite if unknown
    drift: float


# Learned scores move slowly, so the previous cut is near the next one; under a frozen
# mask it is the next one. A previous cut is only a guess. A mask is returned only after
# counting proves that it keeps k entries (see `_try_previous_cut`), so a stale or
# foreign entry costs time and is never wrong. That covers changed values, reused
# memory, other threads (each dict access is atomic) and clearing.
_previous_cuts: dict[Any, PreviousCut] = {}
# So many cuts at most.
REMEMBERED = 1024


def count(density: float, entries: int) -> int:
    """The number of entries that a density keeps, computed in Python's floats."""
    return max(1, math.floor(density * entries + 0.5))


class Selection(NamedTuple):
    """A mask as its source, and how a weight is multiplied by it."""

    source: Tensor
    product: Callable[[Tensor, Tensor], Tensor]


def select_largest(values: Tensor, k: int, *, absolute: bool = False) -> Selection:
    """Find the `k` largest entries of one tensor.

    A few values without ties are the source of their mask: what is above the cut.
    """
    values = values.detach()
    if 0 < k < values.numel() <= FEW and by_numpy(values):
        sizes = values.abs() if absolute else values
        cut = _clear_cut(sizes, k, is_ours=absolute)
        if cut is not None:
            return Selection(sizes, lambda s, w: select_above(s, w, cut))
    return Selection(largest_of([values], k, absolute=absolute)[0], select)


def _clear_cut(sizes: Tensor, k: int, *, is_ours: bool) -> float | None:
    """Return the cut of few values, or None if a kept one ties with it or is NaN."""
    ordered = _few_values(sizes, is_ours=is_ours).copy()
    rank = ordered.size - k - 1
    ordered.partition((rank, rank + 1))  # NaN last
    cut, least_kept = ordered[rank], ordered[rank + 1]
    return float(cut) if cut < least_kept else None


def largest_of(
    tensors: Sequence[Tensor], k: int, *, absolute: bool = False
) -> list[Tensor]:
    """Return the masks of the `k` largest entries of all tensors together.

    With `absolute`, magnitudes are compared.
    """
    tensors = [values.detach() for values in tensors]
    if k >= sum(values.numel() for values in tensors):
        return [torch.ones_like(values, dtype=torch.bool) for values in tensors]
    on_cpu = all(values.device.type == "cpu" for values in tensors)
    # Several tensors go to the CPU in chunks: no device has to hold all of them twice.
    if (on_cpu or len(tensors) > 1) and all(map(is_unseen, tensors)):
        mask = torch.from_numpy(_largest_on_cpu(tensors, k, absolute))
    else:
        parts = [values.flatten() for values in tensors]
        flat = torch.cat(parts) if len(parts) > 1 else parts[0]
        largest = _largest_by_keys if _may_have_keys(flat) else _largest_by_sort
        mask = largest(flat, k, absolute)
    return _shaped_like(mask, tensors)


def _shaped_like(mask: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Split a flat mask over tensors, in the layout of each."""
    if len(tensors) == 1 and tensors[0].is_contiguous():
        return [mask.view(tensors[0].shape)]
    parts = torch.split(mask, [values.numel() for values in tensors])
    return [
        torch.empty_like(values, dtype=torch.bool).copy_(part.view(values.shape))
        for part, values in zip(parts, tensors, strict=True)
    ]


# On a CPU


def _largest_on_cpu(tensors: Sequence[Tensor], k: int, absolute: bool) -> Mask:
    if len(tensors) == 1 and tensors[0].numel() <= FEW:
        sizes = tensors[0].abs() if absolute else tensors[0]
        return _largest_of_few(_few_values(sizes, is_ours=absolute), k).mask
    key = _cache_key(tensors, k, absolute)
    previous = _previous_cuts.get(key)
    mask = np.empty(sum(values.numel() for values in tensors), dtype=bool)
    if previous is not None:
        # not moving, or seen only once
        may_stand_still = previous.drift in (0.0, math.inf)
        if may_stand_still and _try_previous_cut(tensors, k, absolute, previous, mask):
            _previous_cuts[key] = previous._replace(drift=0.0)
            return mask
    cut = _locate_cut(tensors, k, absolute, previous, mask)
    _remember(key, cut, previous)
    return mask


def _cache_key(tensors: Sequence[Tensor], k: int, absolute: bool) -> tuple[Any, ...]:
    """Return what tells one selection from another: its place in memory, size and k."""
    return (k, absolute, *((v.data_ptr(), v.dtype, v.numel()) for v in tensors))


def _remember(key: Any, cut: "MaskAtCut", previous: PreviousCut | None) -> None:
    """Store a cut as the next guess; forget all guesses if there are many."""
    if len(_previous_cuts) >= REMEMBERED:
        _previous_cuts.clear()
    drift = _drift(cut.value, previous)
    _previous_cuts[key] = PreviousCut(cut.value, cut.ties_kept, drift)


def _drift(cut: float, previous: PreviousCut | None) -> float:
    """Return how far the cut moves per call.

    A larger movement counts at once; a smaller one halves the drift at most.
    """
    if previous is None or math.isnan(previous.value) or math.isnan(cut):
        return math.inf
    if cut == previous.value:
        return 0.0
    moved = abs(cut - previous.value)
    return moved if math.isinf(previous.drift) else max(moved, previous.drift / 2)


def _try_previous_cut(
    tensors: Sequence[Tensor],
    k: int,
    absolute: bool,
    previous: PreviousCut,
    mask: Mask,
) -> bool:
    """Keep what is above a cut and the first of its ties; return whether this is right.

    Entries above any value, with the first ones equal to it, are the largest of their
    number. So the mask is right if it keeps k entries, and one pass proves it.
    """
    kept, ties_left = 0, previous.ties_kept
    for start, values in _chunks(tensors, absolute):
        chunk = mask[start : start + values.size]
        np.less_equal(values, previous.value, out=chunk)
        # not `>`: NaN ranks above the cut
        np.logical_not(chunk, out=chunk)
        if ties_left:
            ties = values == previous.value
            ties_left -= _keep_first(ties, ties_left)
            np.logical_or(chunk, ties, out=chunk)
        kept += int(np.count_nonzero(chunk))
    return kept == k


def _keep_first(mask: Mask, number: int) -> int:
    """Keep the first `number` entries of a mask, in place; return how many it has."""
    entries = int(np.count_nonzero(mask))
    if entries <= number:
        return entries
    mask[np.flatnonzero(mask)[number] :] = False
    return number


class MaskAtCut(NamedTuple):
    """The mask of the largest values, and the cut that it follows from."""

    mask: Mask
    value: float
    # how many entries equal to the cut are kept
    ties_kept: int


def _largest_of_few(values: Values, k: int) -> MaskAtCut:
    """Keep the k largest of an array, 0 <= k < values.size, by a partition."""
    rank = values.size - k - 1
    # np.partition puts NaN last.
    cut = np.partition(values, rank)[rank]
    mask = values > cut
    ties_kept = 0
    short = k - int(np.count_nonzero(mask))
    # If so, kept entries tie with the cut, or some are NaN.
    if short:
        if np.isnan(cut):
            mask, ties = np.zeros(values.size, dtype=bool), np.isnan(values)
        else:
            mask, ties = ~(values <= cut), values == cut
        ties_kept = _keep_first(ties, k - int(np.count_nonzero(mask)))
        mask |= ties
    return MaskAtCut(mask, float(cut), ties_kept)


def _locate_cut(
    tensors: Sequence[Tensor],
    k: int,
    absolute: bool,
    previous: PreviousCut | None,
    mask: Mask,
) -> MaskAtCut:
    """Find cut and mask by ranking only the entries within bounds that enclose it."""
    for bounds in _likely_bounds(tensors, k, absolute, previous):
        inside = _entries_inside(tensors, absolute, bounds, mask)
        kept_inside = k - inside.above
        if 0 <= kept_inside < inside.values.size:
            found = _largest_of_few(inside.values, kept_inside)
            # NaN ranks above everything, also above what is above the bounds
            if inside.above == 0 or not math.isnan(found.value):
                mask[inside.places] = found.mask
                return found
    raise RuntimeError("the last bounds enclose every value")


class Bounds(NamedTuple):
    low: float
    high: float


class Inside(NamedTuple):
    """The entries that are neither below nor above some bounds; NaN is neither."""

    values: Values
    places: npt.NDArray[np.int64]
    # how many others are above the bounds
    above: int


def _likely_bounds(
    tensors: Sequence[Tensor], k: int, absolute: bool, previous: PreviousCut | None
) -> Iterator[Bounds]:
    """Yield bounds of the cut, the narrowest first; the last enclose every value."""
    if previous is not None and math.isfinite(previous.drift):
        reach = DRIFTS * previous.drift
        yield Bounds(previous.value - reach, previous.value + reach)
    entries = sum(values.numel() for values in tensors)
    if entries > SAMPLE:
        yield _bounds_by_sample(tensors, k / entries, absolute)
    yield Bounds(-math.inf, math.inf)


def _bounds_by_sample(
    tensors: Sequence[Tensor], density: float, absolute: bool
) -> Bounds:
    entries = sum(values.numel() for values in tensors)
    stride = (entries - 1) // SAMPLE + 1
    parts = [np.copy(values) for _, values in _chunks(tensors, absolute, stride)]
    sample = np.sort(np.concatenate(parts))
    rank = int((1 - density) * sample.size)
    margin = SAMPLE_MARGIN * math.isqrt(SAMPLE)
    low, high = rank - margin, rank + margin
    return Bounds(
        sample[low] if low >= 0 else -math.inf,
        sample[high] if high < sample.size else math.inf,
    )


# Bounds may lie beyond what float32 holds.
@np.errstate(over="ignore")
def _entries_inside(
    tensors: Sequence[Tensor], absolute: bool, bounds: Bounds, mask: Mask
) -> Inside:
    """Collect the entries inside the bounds, and mark those above in `mask`."""
    inside, places, above = [np.empty(0, np.float32)], [np.empty(0, np.int64)], 0
    for start, values in _chunks(tensors, absolute):
        is_above = mask[start : start + values.size]
        np.greater(values, bounds.high, out=is_above)
        is_below = values < bounds.low
        above_here = int(np.count_nonzero(is_above))
        if above_here + np.count_nonzero(is_below) < values.size:
            # equal where both are False
            found = np.flatnonzero(is_below == is_above)
            inside.append(values[found])
            places.append(found + start)
        above += above_here
    return Inside(np.concatenate(inside), np.concatenate(places), above)


def _chunks(
    tensors: Sequence[Tensor], absolute: bool, stride: int = 1
) -> Iterator[tuple[int, Values]]:
    """Yield (offset, chunk) pairs of every `stride`-th entry, in a common dtype.

    With `absolute`, chunks share one buffer: valid until the next iteration.
    """
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    longest = max(tensor.numel() for tensor in tensors)
    size = min(chunked.CHUNK, longest) if absolute else 0
    buffer = np.empty(size, NUMPY_DTYPES[dtype])
    offset = 0
    for tensor in tensors:
        flat = tensor.contiguous().view(-1)
        in_place = flat.dtype is dtype and flat.device.type == "cpu"
        array = _array(flat) if in_place else None
        for start in range(0, flat.numel(), chunked.CHUNK):
            chunk = slice(start, start + chunked.CHUNK, stride)
            if array is None:
                values = _array(flat[chunk].to("cpu", dtype))
            else:
                values = array[chunk]
            if absolute:
                np.abs(values, out=buffer[: values.size])
                values = buffer[: values.size]
            yield offset + start, values
        offset += flat.numel()


def _few_values(tensor: Tensor, *, is_ours: bool) -> Values:
    """Return the values of a CPU tensor in row-major order, in a dtype that numpy has.

    `numpy()` takes a third of the time, but then FSDP2 can't free the storage: it is
    for tensors of our own.
    """
    wide = converted(tensor, at_least_float32(tensor.dtype))
    array = wide.numpy() if is_ours else _array(wide)
    return array.reshape(-1)


def _array(tensor: Tensor) -> Values:
    """The tensor's memory as an array. `numpy()` would forbid FSDP2 to free a storage
    that is not ours."""
    return cast(Values, np.from_dlpack(tensor))


# On accelerators, and under transforms


def _may_have_keys(flat: Tensor) -> bool:
    """Whether the bits of the values are at hand and fit into the half of a key."""
    return (
        is_plain(flat)
        and flat.dtype is not torch.float64
        and not flat.is_neg()
        # TorchScript has no view of bits.
        and torch._C._get_tracing_state() is None
    )


def _largest_by_keys(flat: Tensor, k: int, absolute: bool) -> Tensor:
    """Rank by unique 64-bit keys, so that the CPU never waits for the device.

    A key has the order of the value as int32 above the place counted from the end, so
    of equal values the first has the largest key. Read as an integer, the bits of a
    float rank as its magnitude does:

        sign | exponent, then fraction of |s| | place from the end
        1 bit  31 bits                          32 bits
    """
    if k == 0:
        return torch.zeros_like(flat, dtype=torch.bool)
    flat = flat if flat.dtype is torch.float32 else flat.to(torch.float32)
    if absolute:
        order = (flat.view(torch.int32) & MAGNITUDE_BITS).clamp(max=NAN_ORDER)
    else:
        # one NaN, one zero
        flat = flat.masked_fill(flat != flat, math.nan) + 0.0
        bits = flat.view(torch.int32)
        # negatives rank in reverse
        order = bits ^ ((bits >> 31) & MAGNITUDE_BITS)
    place = torch.arange(flat.numel() - 1, -1, -1, device=flat.device)
    # The int32 order goes to the high half of an int64 key, above n < 2**32 places.
    keys = torch.add(place, order, alpha=2**32)
    return keys >= keys.topk(k, sorted=False).values.amin()


def _largest_by_sort(flat: Tensor, k: int, absolute: bool) -> Tensor:
    """Rank by a stable sort, which every transform and exporter knows."""
    flat = flat.abs() if absolute else flat
    # one NaN, one zero
    flat = torch.where(flat == flat, flat + 0.0, math.nan)
    order = flat.argsort(descending=True, stable=True)
    return torch.zeros_like(flat, dtype=torch.bool).scatter(0, order[:k], 1)
