"""Comparing and selecting, in the forms that a CPU does fast; exactly the largest, without a sort.

Of equal values the one of the lower row-major index counts as the larger, whatever the layout; a
value that is not a number counts as the largest of all, and -0.0 equals 0.0.
"""

import functools
import math
import sys
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from masktorch import blocks
from masktorch.blocks import blockwise, is_plain

Block = tuple[int | None, int | None]
"""Rows and columns of the blocks that a tensor is selected by; None is the whole dimension."""


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


def largest_share(
    scores: Tensor, density: float | Tensor, *, absolute: bool, block: Block | None
) -> Tensor:
    """The mask of the share `density` of the entries, or of the blocks, that have the largest
    (absolute) scores. To code that is compiled it is one operation, `torch.ops.masktorch.largest`,
    which takes the density as a tensor: another one is another input, not another graph."""
    scores = scores.detach()
    if torch.compiler.is_compiling():
        if not isinstance(density, Tensor):
            density = torch.ones((), dtype=torch.float64, device="cpu") * density
        return cast(
            Tensor, torch.ops.masktorch.largest(scores, density, absolute, *(block or (None, None)))
        )
    if block is None or not scores.numel():
        k = count(float(density), scores.numel())
        return whole(functools.partial(largest, k=k, absolute=absolute), scores)

    def by_blocks(scores: Tensor) -> Tensor:
        tiles = tiled(scores, block)
        inner = tuple(range(2, tiles.dim()))
        sizes = (tiles.abs() if absolute else tiles).mean(inner, dtype=torch.float64)
        return spread(largest(sizes, count(float(density), sizes.numel())), tiles, scores)

    return whole(by_blocks, scores)


def tiled(tensor: Tensor, block: Block) -> Tensor:
    """A view by blocks: (blocks down, blocks across, rows, columns, kernel positions)."""
    rows, columns = (
        size if length is None else length
        for length, size in zip(block, tensor.shape[:2], strict=True)
    )
    down, across = tensor.shape[0] // rows, tensor.shape[1] // columns
    return tensor.view(down, rows, across, columns, *tensor.shape[2:]).transpose(1, 2)


def spread(per_block: Tensor, tiles: Tensor, like: Tensor) -> Tensor:
    """A number per block on the entries of the tensor `like`, of which `tiles` is the view."""
    per_entry = per_block.view(*per_block.shape, *(1,) * (tiles.dim() - 2)).expand(tiles.shape)
    return per_entry.transpose(1, 2).reshape(like.shape)


def largest_of_every(scores: Tensor, n: int, m: int, *, absolute: bool) -> Tensor:
    """The mask of the `n` largest of every `m` consecutive entries along dimension 1; to code that
    is compiled one operation, `torch.ops.masktorch.largest_of_every`."""
    if torch.compiler.is_compiling():
        scores = scores.detach()
        return cast(Tensor, torch.ops.masktorch.largest_of_every(scores, n, m, absolute))

    def of_rows(scores: Tensor) -> Tensor:
        groups = torch.unflatten(scores.abs() if absolute else scores, 1, (-1, m))
        groups = groups.movedim(2, 0).contiguous()
        number = groups == groups
        lost = torch.zeros_like(groups, dtype=torch.uint8 if m < 2**8 else torch.int32)
        for apart in range(1, m):  # each pair in a group: one of them loses
            wins = (groups[apart:] <= groups[:-apart]).logical_not_()
            wins = as_number(wins.logical_and_(number[:-apart]), lost.dtype)
            lost[:-apart] += wins
            lost[apart:] += 1 - wins
        return (lost < n).movedim(0, 2).flatten(1, 2)

    def mask(scores: Tensor) -> Tensor:
        rows = max(1, blocks.BLOCK * len(scores) // max(1, scores.numel()))
        return torch.cat([of_rows(part) for part in torch.split(scores, rows)])

    return whole(mask, scores.detach())


_Key = tuple[int, torch.dtype, int, int, bool]
_outside: dict[_Key, float] = {}
"""The largest value that stayed outside, of the last selections by `largest`: guesses."""
_OUTSIDE = 1024  # of them at most


def largest(values: Tensor, k: int, *, absolute: bool = False) -> Tensor:
    """The mask of the `k` largest entries, or the `k` of the largest magnitudes.

    Whatever value stayed outside last time: if exactly `k` entries exceed it now, they are the `k`
    largest. So where nothing changed one pass finds the mask and proves it.
    """
    values = values.detach()
    if k >= values.numel():
        return torch.ones_like(values, dtype=torch.bool)
    if values.device.type != "cpu" or not is_plain(values):
        return _largest_by_order(values, k, absolute)
    key = _key(values, k, absolute)
    at = _outside.get(key)
    mask = None if at is None else _largest_beyond(at, values, k, absolute)
    if mask is None:
        at = _next_largest(values, k, absolute)
        mask = cast(Tensor, _largest_beyond(at, values, k, absolute))
        if len(_outside) >= _OUTSIDE:
            _outside.clear()
        _outside[key] = at
    return mask


def select_largest(weight: Tensor, values: Tensor, k: int, *, absolute: bool) -> Tensor:
    """`weight` under the mask of `largest`, in one pass if what stayed outside last time proves to
    be outside still."""
    values = values.detach()
    if is_plain(values) and (at := _outside.get(_key(values, k, absolute))) is not None:
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


def _key(values: Tensor, k: int, absolute: bool) -> _Key:
    return values.data_ptr(), values.dtype, values.numel(), k, absolute


def _next_largest(values: Tensor, k: int, absolute: bool) -> float:
    """The largest of the values that are not the `k` largest."""
    dtype = torch.promote_types(values.dtype, torch.float32)  # numpy has no bfloat16
    copy = torch.empty(values.shape, dtype=dtype, device="cpu").copy_(values).numpy().reshape(-1)
    if absolute:
        np.abs(copy, out=copy)
    place = copy.size - k - 1
    copy.partition(place)
    return float(copy[place])


def _largest_beyond(at: float, values: Tensor, k: int, absolute: bool) -> Tensor | None:
    """The mask of the `k` largest if they are those beyond `at` and the first equal to it."""

    def beyond(values: Tensor) -> tuple[Tensor]:
        return (exceeds(values.abs() if absolute else values, at),)

    def equal(values: Tensor) -> tuple[Tensor]:
        return (
            values != values if math.isnan(at) else (values.abs() if absolute else values) == at,
        )

    if math.isnan(at):  # nothing is beyond
        mask = torch.zeros_like(values, dtype=torch.bool)
    else:
        (mask,) = blockwise(beyond, values)
    missing = k - int(torch.count_nonzero(mask))
    if missing > 0:
        (equals,) = blockwise(equal, values)
        missing -= keep_first(equals := equals.flatten(), missing)
        mask.logical_or_(equals.view(mask.shape))
    return mask if missing == 0 else None


def keep_first(mask: Tensor, number: int) -> int:
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


def _largest(
    scores: Tensor, density: Tensor, absolute: bool, rows: int | None, columns: int | None
) -> Tensor:
    block = None if rows is columns is None else (rows, columns)
    mask = largest_share(scores, density, absolute=absolute, block=block)
    return torch.empty_like(scores, dtype=torch.bool).copy_(mask)


def _largest_of_every(scores: Tensor, n: int, m: int, absolute: bool) -> Tensor:
    mask = largest_of_every(scores, n, m, absolute=absolute)
    return torch.empty_like(scores, dtype=torch.bool).copy_(mask)


def _like_a_mask(scores: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


if not hasattr(torch.ops.masktorch, "largest"):  # else this module is imported once more
    for name, arguments, function in (
        ("largest", "Tensor density, bool absolute, int? rows, int? columns", _largest),
        ("largest_of_every", "int n, int m, bool absolute", _largest_of_every),
    ):
        torch.library.define(
            f"masktorch::{name}",
            f"(Tensor scores, {arguments}) -> Tensor",
            tags=(torch.Tag.pt2_compliant_tag,),
        )
        torch.library.impl(f"masktorch::{name}", "default", function)
        torch.library.register_fake(f"masktorch::{name}", _like_a_mask)
