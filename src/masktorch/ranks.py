"""Keeping exactly so many: the largest scores of a tensor, of its blocks, or of every group.

The mask follows from the order of the scores alone; the gradient passes straight through to their
magnitudes. Conventions as in `masktorch.functional`, where these formulas are public.
"""

import functools
import numbers
from typing import Any, cast

import torch
from torch import Tensor

from masktorch import blocks
from masktorch.blocks import blockwise
from masktorch.rules import masked, overwriting
from masktorch.selection import as_number, count, largest, whole

Block = tuple[int | None, int | None]
"""Rows and columns of the blocks that a tensor is selected by; None is the whole dimension."""


def check_density(density: float, caller: str) -> None:
    """Raises `ValueError` for a density outside (0, 1], `TypeError` for what is no number."""
    number = isinstance(density, numbers.Real) and not isinstance(density, bool)
    if not number or not 0 < density <= 1:
        raise (ValueError if number else TypeError)(
            f"{caller} expected {'a density in (0, 1]' if number else 'a number as density'}, "
            f"found {density!r}. It is the share that is kept; 0.1 keeps one in ten."
        )


def keeps_largest(
    scores: Tensor,
    density: float | Tensor,
    *,
    absolute: bool = True,
    block: Block | None = None,
) -> Tensor:
    """The mask of `topk`, as a bool tensor shaped like `scores`.

    To code that is compiled it is one operation, `torch.ops.masktorch.largest`, which takes the
    density as a tensor: another one is another input, not another graph.

    Examples:
        >>> keeps_largest(torch.tensor([-3.0, 1.0, 2.0, 0.0]), 0.5)
        tensor([ True, False,  True, False])
    """
    if not isinstance(density, Tensor):
        check_density(density, "topk")
    if block is not None:
        check_block(block, tuple(scores.shape))
    scores = scores.detach()
    if torch.compiler.is_compiling():
        if not isinstance(density, Tensor):
            density = torch.ones((), dtype=torch.float64, device="cpu") * density
        rows, columns = block or (None, None)
        return cast(Tensor, torch.ops.masktorch.largest(scores, density, absolute, rows, columns))
    if block is None or not scores.numel():
        k = count(float(density), scores.numel())
        return whole(functools.partial(largest, k=k, absolute=absolute), scores)

    def by_blocks(scores: Tensor) -> Tensor:
        tiles = tiled(scores, block)
        inner = tuple(range(2, tiles.dim()))
        sizes = (tiles.abs() if absolute else tiles).mean(inner, dtype=torch.float64)
        return _spread(largest(sizes, count(float(density), sizes.numel())), tiles, scores)

    return whole(by_blocks, scores)


def tiled(tensor: Tensor, block: Block) -> Tensor:
    """A view by blocks: (blocks down, blocks across, rows, columns, kernel positions)."""
    rows, columns = (
        size if length is None else length
        for length, size in zip(block, tensor.shape[:2], strict=True)
    )
    down, across = tensor.shape[0] // rows, tensor.shape[1] // columns
    return tensor.view(down, rows, across, columns, *tensor.shape[2:]).transpose(1, 2)


def _spread(per_block: Tensor, tiles: Tensor, like: Tensor) -> Tensor:
    """A number per block on the entries of the tensor `like`, of which `tiles` is the view."""
    per_entry = per_block.view(*per_block.shape, *(1,) * (tiles.dim() - 2)).expand(tiles.shape)
    return per_entry.transpose(1, 2).reshape(like.shape)


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

    `scores` is floating point of any shape, `density` lies in (0, 1] (a 0-d tensor is taken as it
    is), `weight` has the shape and dtype of `scores`. Returns the mask (or `weight * m`) in that
    shape and dtype. Raises `ValueError` where blocks do not divide the shape.
    Sources: edge-popup, Ramanujan et al., "What's Hidden in a Randomly Weighted Neural Network?"
    (arXiv 1911.13299); with `absolute=False` movement pruning, Sanh et al. (arXiv 2005.07683).

    Examples:
        >>> scores = torch.tensor([-3.0, 1.0, 2.0, 0.0], requires_grad=True)
        >>> topk(scores, 0.5)
        tensor([1., 0., 1., 0.], grad_fn=<_MaskedBackward>)
        >>> topk(scores, 0.5).sum().backward()
        >>> scores.grad
        tensor([-1.,  1.,  1.,  1.])
    """
    kept = keeps_largest(scores, density, absolute=absolute, block=block)

    def rule(scores: Tensor, weight: Tensor, kept: Any, grad: Tensor) -> Tensor:
        if block is None or not scores.numel():
            return _rank_rule(absolute, scores, weight, grad)
        dtype = torch.promote_types(scores.dtype, torch.float32)
        tiles = tiled((grad.to(dtype) * weight).expand(scores.shape), block)
        mean = _spread(tiles.mean(tuple(range(2, tiles.dim()))), tiles, scores).to(scores.dtype)
        return _rank_rule(absolute, scores, scores.new_ones(()), mean)

    return masked(weight, scores, rule, kept=kept)


def keeps_n_of_m(scores: Tensor, n: int = 2, m: int = 4, *, absolute: bool = True) -> Tensor:
    """The mask of `n_of_m`, as a bool tensor shaped like `scores`; to code that is compiled one
    operation, `torch.ops.masktorch.largest_of_every`.

    Examples:
        >>> keeps_n_of_m(torch.tensor([[-3.0, 1.0, 2.0, 0.0]]), 1, 2)
        tensor([[ True, False,  True, False]])
    """
    check_n_of_m(n, m)
    if scores.dim() < 2 or scores.shape[1] % m:
        raise ValueError(
            f"{n} of every {m} along dimension 1 expected (rows, columns, ...) with columns a "
            f"multiple of {m}, found {tuple(scores.shape)}: choose another m or leave it out."
        )
    scores = scores.detach()
    if torch.compiler.is_compiling():
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

    return whole(mask, scores)


def n_of_m(
    scores: Tensor,
    n: int = 2,
    m: int = 4,
    *,
    absolute: bool = True,
    weight: Tensor | None = None,
) -> Tensor:
    """The largest scores of every group.

    Forward `m = 1` at the `n` largest `|s|` (or `s` with `absolute=False`) of every `m`
    consecutive entries along dimension 1, for each position of a kernel apart; backward as in
    `topk`, `dL/ds = g * sign(s)` or `g`. Ties and what is not a number as there.

    Shapes and dtypes as in `topk`, at least two dimensions. Raises `ValueError` where `m` does not
    divide dimension 1. Source: the 2:4 pattern of Mishra et al., "Accelerating Sparse Deep Neural
    Networks" (arXiv 2104.08378), with the gradient of `topk`.

    Examples:
        >>> n_of_m(torch.tensor([[-3.0, 1.0, 2.0, 0.0]]), 1, 2)
        tensor([[1., 0., 1., 0.]])
    """
    kept = keeps_n_of_m(scores, n, m, absolute=absolute)

    def rule(scores: Tensor, weight: Tensor, kept: Any, grad: Tensor) -> Tensor:
        return _rank_rule(absolute, scores, weight, grad)

    return masked(weight, scores, rule, kept=kept)


def check_n_of_m(n: int, m: int) -> None:
    for name, number in (("n", n), ("m", m)):
        if type(number) is not int:
            raise TypeError(f"n of m expected whole numbers, found {name}={number!r}.")
    if not 1 <= n <= m:
        raise ValueError(
            f"n of every m entries are kept: expected 1 <= n <= m, found n={n}, m={m}."
        )


def check_absolute(absolute: bool) -> None:
    if not isinstance(absolute, bool):
        raise TypeError(f"expected absolute to be True or False, found {absolute!r}.")


def check_block(block: Block, shape: tuple[int, ...] | None = None) -> None:
    """Raises unless `block` is (rows, columns), at most one of them None, that tile the shape."""
    if (
        not isinstance(block, tuple)
        or len(block) != 2
        or not all(length is None or type(length) is int for length in block)
    ):
        raise TypeError(
            "expected block to be a pair (rows, columns) of whole numbers or None, such as "
            f"(1, None) for output channels, found {block!r}."
        )
    if block == (None, None) or any(length is not None and length < 1 for length in block):
        raise ValueError(
            f"expected block to have positive rows and columns, at most one None, found {block!r}."
        )
    if shape is None:
        return
    if len(shape) < 2:
        raise ValueError(
            f"blocks of {block} expected two dimensions or more, found shape {shape}: leave the "
            "tensor out."
        )
    for name, length, size in zip(("rows", "columns"), block, shape[:2], strict=True):
        if length is not None and size % length:
            raise ValueError(
                f"blocks of {block} don't divide shape {shape}: {size} {name} are no multiple of "
                f"{length}. Choose {name} that divide {size}, or None for all of them."
            )


def _rank_rule(absolute: bool, scores: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    """`g * sign(s)` with `sign(0) = 1`, or `g`."""
    into = overwriting(grad)

    def product(scores: Tensor, weight: Tensor, grad: Tensor) -> Any:
        g = grad * weight
        if absolute:
            sign = torch.copysign(torch.ones_like(scores), scores + 0.0)  # -0.0 + 0.0 is 0.0
            g = torch.mul(g, sign, out=into(g))
        return (g.to(scores.dtype),)

    return blockwise(product, scores, weight, grad)[0]


def _largest(
    scores: Tensor, density: Tensor, absolute: bool, rows: int | None, columns: int | None
) -> Tensor:
    block = None if rows is columns is None else (rows, columns)
    mask = keeps_largest(scores, density, absolute=absolute, block=block)
    return torch.empty_like(scores, dtype=torch.bool).copy_(mask)


def _largest_of_every(scores: Tensor, n: int, m: int, absolute: bool) -> Tensor:
    mask = keeps_n_of_m(scores, n, m, absolute=absolute)
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
