"""Keeping the largest scores of a tensor, its blocks or every group; public in `functional`."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from masktorch import blocks, selection
from masktorch.blocks import Out, blockwise
from masktorch.checks import Block, check_block, check_density, check_flag, check_n_of_m
from masktorch.rules import Rule, masked
from masktorch.selection import count, select, whole


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
    number counts as the largest. `block=(rows, columns)` tiles the first two dimensions, kernel
    positions go together, None is the whole dimension: the `k` of the `n` blocks with the largest
    mean `|s|` (or `s`) are kept, and `g` becomes its mean over the block.

    `ValueError` unless `density` lies in (0, 1] (a 0-d tensor is taken as it is) and blocks divide
    the shape. Sources: edge-popup, Ramanujan et al. (arXiv 1911.13299); with `absolute=False`
    movement pruning, Sanh et al. (arXiv 2005.07683).

    Examples:
        >>> topk(torch.tensor([-3.0, 1.0, 2.0, 0.0]), 0.5)
        tensor([1., 0., 1., 0.])
    """
    check_flag("topk", "absolute", absolute)
    if not isinstance(density, Tensor):
        check_density(density, "topk")
    kept = keeps_largest(scores, density, absolute=absolute, block=block)
    return masked(scores, weight, kept, select, straight_rule(absolute, block))


def keeps_largest(
    scores: Tensor, density: float | Tensor, *, absolute: bool = True, block: Block | None = None
) -> Tensor:
    """The mask of `topk`, as a bool tensor shaped like `scores`."""
    if block is not None:
        check_block(block, tuple(scores.shape))

    def kept(scores: Tensor) -> Tensor:
        if block is None:
            return _largest(scores, density, absolute)
        sizes = scores.abs() if absolute else scores
        return _by_means(sizes.double(), block, lambda means: _largest(means, density, False))

    return whole(kept, scores.detach())


def _largest(values: Tensor, density: float | Tensor, absolute: bool) -> Tensor:
    """To compiled code one operation on a tensor: another density is no other graph."""
    if torch.compiler.is_compiling():
        number = density * torch.ones((), dtype=torch.float64, device="cpu")
        return cast(Tensor, _operation(values, number, absolute))
    k = count(float(density), values.numel())
    return selection.largest_of([values], k, absolute=absolute)[0]


@torch.library.custom_op("masktorch::largest", mutates_args=())
def _operation(values: Tensor, density: Tensor, absolute: bool) -> Tensor:
    return torch.empty_like(values, dtype=torch.bool).copy_(_largest(values, density, absolute))


@_operation.register_fake
def _(values: Tensor, density: Tensor, absolute: bool) -> Tensor:
    return torch.empty_like(values, dtype=torch.bool)


def tiled(tensor: Tensor, block: Block) -> Tensor:
    """A view by blocks: (blocks down, blocks across, rows, columns, kernel positions)."""
    rows, columns = (length or size or 1 for length, size in zip(block, tensor.shape, strict=False))
    down, across = tensor.shape[0] // rows, tensor.shape[1] // columns
    return tensor.view(down, rows, across, columns, *tensor.shape[2:]).transpose(1, 2)


def _by_means(tensor: Tensor, block: Block, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of the means of blocks, on all entries of each."""
    tiles = tiled(tensor, block)
    means = tiles.mean(tuple(range(2, tiles.dim())), keepdim=True)
    return function(means).expand(tiles.shape).transpose(1, 2).reshape(tensor.shape).contiguous()


def n_of_m(
    scores: Tensor, n: int = 2, m: int = 4, *, absolute: bool = True, weight: Tensor | None = None
) -> Tensor:
    """The largest scores of every group.

    Forward `m = 1` at the `n` largest `|s|` (or `s` with `absolute=False`) of every `m`
    consecutive entries along dimension 1, for each position of a kernel apart; all else as in
    `topk`. `ValueError` where `m` does not divide that. Source: Mishra et al. (arXiv 2104.08378).

    Examples:
        >>> n_of_m(torch.tensor([[-3.0, 1.0, 2.0, 0.0]]), 1, 2)
        tensor([[1., 0., 1., 0.]])
    """
    check_flag("n_of_m", "absolute", absolute)
    kept = keeps_n_of_m(scores, n, m, absolute=absolute)
    return masked(scores, weight, kept, select, straight_rule(absolute))


def keeps_n_of_m(scores: Tensor, n: int = 2, m: int = 4, *, absolute: bool = True) -> Tensor:
    """The mask of `n_of_m`, as a bool tensor shaped like `scores`."""
    check_n_of_m(n, m)
    if scores.dim() < 2 or scores.shape[1] % m:
        raise ValueError(f"dimension 1 of shape {tuple(scores.shape)} is no multiple of {m}.")

    def kept(scores: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            rows = max(1, blocks.BLOCK * len(scores) // max(1, scores.numel()))
            if rows < len(scores):
                return torch.cat([kept(part) for part in torch.split(scores, rows)])
        groups = torch.unflatten(scores.abs() if absolute else scores, 1, (-1, m))
        groups = groups.movedim(2, 0).contiguous()
        number = groups == groups
        lost = torch.zeros_like(groups, dtype=torch.uint8 if m < 2**8 else torch.int32)
        for apart in range(1, m):  # each pair in a group: one of them loses
            wins = (groups[apart:] <= groups[:-apart]).logical_not_()
            wins = selection.as_number(wins.logical_and_(number[:-apart]), lost.dtype)
            lost[:-apart] += wins
            lost[apart:] += 1 - wins
        return (lost < n).movedim(0, 2).flatten(1, 2)

    return whole(kept, scores.detach())


def straight_rule(absolute: bool, block: Block | None = None) -> Rule:
    """`g`, or `g * sign(s)` with `sign(0) = 1`; by blocks with the mean of `g`."""

    @blockwise
    def rule(scores: Tensor, weight: Tensor, read: Tensor, grad: Tensor, out: Out) -> Tensor:
        g = torch.mul(grad, weight, out=out)
        return (g.mul_(scores.sign().add_(0.5).sign_()) if absolute else g).to(scores.dtype)

    def by_blocks(scores: Tensor, weight: Tensor, read: Tensor, grad: Tensor) -> Tensor:
        g = grad.to(torch.promote_types(grad.dtype, torch.float32)) * weight
        mean = _by_means(g, cast(Block, block), lambda means: means.to(scores.dtype))
        return rule(scores, scores.new_ones(()), read, mean)

    return rule if block is None else by_blocks
