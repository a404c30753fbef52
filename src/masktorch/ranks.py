"""Keeping exactly so many: the largest scores of a tensor, of its blocks, or of every group.

The mask follows from the order of the scores alone; the gradient passes straight through to their
magnitudes. Conventions as in `masktorch.functional`, where these formulas are public.
"""

from typing import cast

import torch
from torch import Tensor

from masktorch import blocks
from masktorch.blocks import blockwise
from masktorch.checks import Block, check_block, check_density, check_n_of_m
from masktorch.rules import Rule, masked
from masktorch.selection import (
    as_number,
    beyond,
    count,
    cut,
    is_cut,
    largest,
    select,
    select_above,
    whole,
)


def topk(
    scores: Tensor,
    density: float | Tensor,
    *,
    absolute: bool = True,
    block: Block | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """The largest scores.

    Forward `m = 1` at the `k = max(1, floor(density * n + 1/2))` largest `|s|` of the `n` entries,
    or the largest `s` with `absolute=False`; backward `dL/ds = g * sign(s)` with `sign(0) = 1`, or
    `g`. Among equal scores the lower row-major index stays, -0.0 equals 0.0, and one that is not a
    number counts as the largest.

    `block=(rows, columns)` tiles the first two dimensions, all positions of a kernel go together,
    and None is the whole dimension: whole blocks are kept, those of the largest mean `|s|` (or
    `s`), `n` counts blocks, and the gradient is `sign(s)` times the mean of `g` over the block.

    Shapes and dtypes as in `threshold`; `density` lies in (0, 1] (a 0-d tensor is taken as it is).
    Raises `ValueError` where blocks do not divide the shape. Sources: edge-popup, Ramanujan et al.
    (arXiv 1911.13299); with `absolute=False` movement pruning, Sanh et al. (arXiv 2005.07683).

    Examples:
        >>> scores = torch.tensor([-3.0, 1.0, 2.0, 0.0], requires_grad=True)
        >>> topk(scores, 0.5).sum().backward()
        >>> topk(scores, 0.5), scores.grad
        (tensor([1., 0., 1., 0.], grad_fn=<_MaskedBackward>), tensor([-1.,  1.,  1.,  1.]))
    """
    if not isinstance(density, Tensor):
        check_density(density, "topk")
    rule, n = straight_rule(absolute, block if scores.numel() else None), scores.numel()
    if block is None and is_cut(scores) and (k := count(float(density), n)) < n:
        read = scores.detach()
        at, ties = cut([read], k, absolute)
        if not ties:
            product = blockwise(lambda s, w: select_above(w, s.abs() if absolute else s, at))
            return masked(scores, weight, read, product, rule)
        (kept,) = beyond([read], at, ties, absolute)
    else:
        kept = keeps_largest(scores, density, absolute=absolute, block=block)
    return masked(scores, weight, kept, select, rule)


def keeps_largest(
    scores: Tensor, density: float | Tensor, *, absolute: bool = True, block: Block | None = None
) -> Tensor:
    """The mask of `topk`, as a bool tensor shaped like `scores`."""
    if block is not None:
        check_block(block, tuple(scores.shape))

    def kept(scores: Tensor) -> Tensor:
        if block is None or not scores.numel():
            return _largest(scores, density, absolute)
        tiles = tiled(scores, block)
        inner = tuple(range(2, tiles.dim()))
        sizes = (tiles.abs() if absolute else tiles).mean(inner, dtype=torch.float64)
        return _spread(_largest(sizes, density, False), tiles, scores)

    return whole(kept, scores.detach())


def _largest(values: Tensor, density: float | Tensor, absolute: bool) -> Tensor:
    """To code that is compiled one operation, which takes the density as a tensor: another one is
    another input, not another graph."""
    if torch.compiler.is_compiling():
        number = density * torch.ones((), dtype=torch.float64, device="cpu")
        return cast(Tensor, _operation(values, number, absolute))
    return largest(values, count(float(density), values.numel()), absolute=absolute)


@torch.library.custom_op("masktorch::largest", mutates_args=())
def _operation(values: Tensor, density: Tensor, absolute: bool) -> Tensor:
    return torch.empty_like(values, dtype=torch.bool).copy_(_largest(values, density, absolute))


@_operation.register_fake
def _(values: Tensor, density: Tensor, absolute: bool) -> Tensor:
    return torch.empty_like(values, dtype=torch.bool)


def tiled(tensor: Tensor, block: Block) -> Tensor:
    """A view by blocks: (blocks down, blocks across, rows, columns, kernel positions)."""
    rows, columns = (length or size for length, size in zip(block, tensor.shape, strict=False))
    down, across = tensor.shape[0] // rows, tensor.shape[1] // columns
    return tensor.view(down, rows, across, columns, *tensor.shape[2:]).transpose(1, 2)


def _spread(per_block: Tensor, tiles: Tensor, like: Tensor) -> Tensor:
    """A number per block on the entries of the tensor `like`, of which `tiles` is the view."""
    per_entry = per_block.view(*per_block.shape, *(1,) * (tiles.dim() - 2)).expand(tiles.shape)
    return per_entry.transpose(1, 2).reshape(like.shape)


def n_of_m(
    scores: Tensor, n: int = 2, m: int = 4, *, absolute: bool = True, weight: Tensor | None = None
) -> Tensor:
    """The largest scores of every group.

    Forward `m = 1` at the `n` largest `|s|` (or `s` with `absolute=False`) of every `m`
    consecutive entries along dimension 1, for each position of a kernel apart; backward as in
    `topk`, `dL/ds = g * sign(s)` or `g`. Ties, what is not a number, shapes and dtypes as there.

    Raises `ValueError` where `m` does not divide dimension 1. Source: the 2:4 pattern of Mishra et
    al., "Accelerating Sparse Deep Neural Networks" (arXiv 2104.08378), with `topk`'s gradient.

    Examples:
        >>> n_of_m(torch.tensor([[-3.0, 1.0, 2.0, 0.0]]), 1, 2)
        tensor([[1., 0., 1., 0.]])
    """
    kept = keeps_n_of_m(scores, n, m, absolute=absolute)
    return masked(scores, weight, kept, select, straight_rule(absolute))


def keeps_n_of_m(scores: Tensor, n: int = 2, m: int = 4, *, absolute: bool = True) -> Tensor:
    """The mask of `n_of_m`, as a bool tensor shaped like `scores`."""
    check_n_of_m(n, m)
    if scores.dim() < 2 or scores.shape[1] % m:
        raise ValueError(
            f"{n} of every {m} along dimension 1 expected (rows, columns, ...) with columns a "
            f"multiple of {m}, found {tuple(scores.shape)}: choose another m or leave it out."
        )

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
        if torch.compiler.is_compiling():
            return of_rows(scores)
        rows = max(1, blocks.BLOCK * len(scores) // max(1, scores.numel()))
        return torch.cat([of_rows(part) for part in torch.split(scores, rows)])

    return whole(mask, scores.detach())


def straight_rule(absolute: bool, block: Block | None = None) -> Rule:
    """`g`, or `g * sign(s)` with `sign(0) = 1`; by blocks with the mean of `g`."""

    @blockwise
    def rule(scores: Tensor, weight: Tensor, read: Tensor, grad: Tensor) -> Tensor:
        g = grad * weight
        if absolute:
            g.mul_(1 - select_above(scores.new_full((), 2.0), -scores, 0.0))  # sign(s)
        return g.to(scores.dtype)

    def by_blocks(scores: Tensor, weight: Tensor, read: Tensor, grad: Tensor) -> Tensor:
        dtype = torch.promote_types(grad.dtype, torch.float32)
        tiles = tiled(grad.to(dtype) * weight, cast(Block, block))
        mean = _spread(tiles.mean(tuple(range(2, tiles.dim()))), tiles, scores)
        return rule(scores, scores.new_ones(()), read, mean.to(scores.dtype))

    return rule if block is None else by_blocks
