"""One cut through many tensors: the largest entries of all of them, without concatenating."""

import functools
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from masktorch.blocks import blocks, blockwise
from masktorch.selection import keep_first

Ranked = tuple[Tensor, bool]
"""A tensor, and whether its magnitudes count."""


def largest_of(tensors: Sequence[Ranked], k: int) -> list[Tensor]:
    """The masks of the `k` largest entries of all the tensors together, of equal ones those of the
    earlier tensor. Nothing is concatenated."""
    dtype = _common(tensors)
    cut, _, ties = _division(tensors, k, dtype)
    masks = []
    for (values, absolute), number in zip(tensors, ties, strict=True):

        def compared(values: Tensor, absolute: bool = absolute) -> tuple[Tensor, Tensor]:
            keys = _keys(values, absolute, dtype)
            return keys > cut, keys == cut

        mask, equal = blockwise(compared, values.detach())
        keep_first(equal := equal.flatten(), number)
        masks.append(mask.logical_or_(equal.view(mask.shape)))
    return masks


def counts_of_largest(tensors: Sequence[Ranked], k: int) -> list[int]:
    """How many entries of each tensor are among the `k` largest of all, where the largest entry of
    every tensor comes before any other."""
    dtype = _common(tensors)
    first = [max(int(keys.max()) for keys in _keys_of(r, dtype)) for r in tensors]
    _, beyond, ties = _division(tensors, k - len(first), dtype, first)
    return [1 + sum(numbers) for numbers in zip(beyond, ties, strict=True)]


def _division(
    tensors: Sequence[Ranked], k: int, dtype: torch.dtype, without: Sequence[int] = ()
) -> tuple[int, list[int], list[int]]:
    """The key of the `k`-th largest entry of all tensors; how many of each tensor are beyond it,
    and how many of those equal to it are needed. `without` is a key of each that does not count."""
    cut = _kth_key(tensors, k, dtype, without)
    beyond, equal = [], []
    for number, ranked in enumerate(tensors):
        left_out = without[number : number + 1]
        beyond.append(-sum(key > cut for key in left_out))
        equal.append(-sum(key == cut for key in left_out))
        for keys in _keys_of(ranked, dtype):
            beyond[-1] += int(torch.count_nonzero(keys > cut))
            equal[-1] += int(torch.count_nonzero(keys == cut))
    missing = k - sum(beyond)
    ends = [min(end, missing) for end in itertools.accumulate(equal, initial=0)]
    return cut, beyond, [end - start for start, end in itertools.pairwise(ends)]


def _kth_key(tensors: Sequence[Ranked], k: int, dtype: torch.dtype, without: Sequence[int]) -> int:
    """Found 16 bits at a time, from counts of the entries by them: the counts of tensors add up."""
    found, width = 0, 8 * dtype.itemsize
    for shift in range(width - 16, -1, -16):

        def counts(keys: Tensor, shift: int = shift, found: int = found) -> Tensor:
            if shift == width - 16:  # the uppermost, with the sign
                digits = (keys.flatten() >> shift).long() + 2**15
            else:
                digits = (keys[keys >> (shift + 16) == found] >> shift).long() & 0xFFFF
            return torch.bincount(digits, minlength=2**16).cpu()

        total = -counts(torch.tensor(without, dtype=torch.int64, device="cpu"))
        for ranked in tensors:
            for keys in _keys_of(ranked, dtype):
                total += counts(keys)
        reached = total.flip(0).cumsum(0)
        place = int(torch.count_nonzero(reached < k))
        k -= int(reached[place - 1]) if place else 0
        digit = 2**16 - 1 - place
        found = digit - 2**15 if shift == width - 16 else (found << 16) + digit
    return found


def _common(tensors: Sequence[Ranked]) -> torch.dtype:
    return functools.reduce(torch.promote_types, (values.dtype for values, _ in tensors))


def _keys_of(ranked: Ranked, dtype: torch.dtype) -> Iterator[Tensor]:
    for (block,) in blocks(ranked[0].detach()):
        yield _keys(block, ranked[1], dtype)


def _keys(values: Tensor, absolute: bool, dtype: torch.dtype) -> Tensor:
    """Integers in the order of the values: their bits, the lower ones flipped where negative."""
    values = (values.abs() if absolute else values).to(dtype)
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    most = torch.iinfo(integers).max
    bits = (values + 0.0).view(integers)
    ordered = bits ^ (bits >> (8 * dtype.itemsize - 1) & most)
    return torch.where(values == values, ordered, most)
