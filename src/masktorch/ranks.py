"""Keeping exactly so many: the largest scores of a tensor, of its blocks, or of every group.

The mask follows from the order of the scores alone; the gradient passes straight through to their
magnitudes. Conventions as in `masktorch.functional`, where these formulas are public.
"""

import numbers
from typing import Any

import torch
from torch import Tensor

from masktorch.blocks import blockwise
from masktorch.rules import masked, overwriting
from masktorch.selection import Block, largest_of_every, largest_share, spread, tiled


def check_density(density: float, caller: str) -> None:
    """Raises `ValueError` for a density outside (0, 1], `TypeError` for what is no number."""
    if isinstance(density, bool) or not isinstance(density, numbers.Real):
        raise TypeError(
            f"{caller} expected a number as density, found {density!r}. It is the share of the "
            "entries that is kept; 0.1 keeps one in ten."
        )
    if not 0 < density <= 1:
        raise ValueError(
            f"{caller} expected a density in (0, 1], found {density!r}. It is the share of the "
            "entries that is kept; 0.1 keeps one in ten."
        )


def keeps_largest(
    scores: Tensor,
    density: float | Tensor,
    *,
    absolute: bool = True,
    block: Block | None = None,
) -> Tensor:
    """The mask of `topk`, as a bool tensor shaped like `scores`.

    Examples:
        >>> keeps_largest(torch.tensor([-3.0, 1.0, 2.0, 0.0]), 0.5)
        tensor([ True, False,  True, False])
    """
    if not isinstance(density, Tensor):
        check_density(density, "topk")
    if block is not None:
        check_lengths(block)
        _check_block(scores, block)
    return largest_share(scores, density, absolute=absolute, block=block)


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
        mean = spread(tiles.mean(tuple(range(2, tiles.dim()))), tiles, scores).to(scores.dtype)
        return _rank_rule(absolute, scores, scores.new_ones(()), mean)

    return masked(weight, scores, rule, kept=kept)


def keeps_n_of_m(scores: Tensor, n: int = 2, m: int = 4, *, absolute: bool = True) -> Tensor:
    """The mask of `n_of_m`, as a bool tensor shaped like `scores`.

    Examples:
        >>> keeps_n_of_m(torch.tensor([[-3.0, 1.0, 2.0, 0.0]]), 1, 2)
        tensor([[ True, False,  True, False]])
    """
    check_n_of_m(n, m)
    if scores.dim() < 2 or scores.shape[1] % m:
        raise ValueError(
            f"{n} of every {m} entries along dimension 1 are kept: expected a shape of (rows, "
            f"columns, ...) with columns a multiple of {m}, found {tuple(scores.shape)}. Choose an "
            "m that divides them, or leave the tensor out."
        )
    return largest_of_every(scores, n, m, absolute=absolute)


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
    """Raises `TypeError` or `ValueError` unless `1 <= n <= m`, both whole numbers."""
    for name, number in (("n", n), ("m", m)):
        if type(number) is not int:
            raise TypeError(f"n of m expected whole numbers, found {name}={number!r}.")
    if not 1 <= n <= m:
        raise ValueError(
            f"n of m expected 1 <= n <= m, found n={n}, m={m}: n of every m entries are kept."
        )


def check_absolute(absolute: bool) -> None:
    if not isinstance(absolute, bool):
        raise TypeError(f"expected absolute to be True or False, found {absolute!r}.")


def check_lengths(block: Block) -> None:
    """Raises unless `block` is (rows, columns), whole numbers of which one may be None."""
    if (
        not isinstance(block, tuple)
        or len(block) != 2
        or not all(length is None or type(length) is int for length in block)
    ):
        raise TypeError(
            "expected block to be a pair (rows, columns) of whole numbers or None, such as "
            f"(1, None) for whole output channels, found {block!r}."
        )
    if block == (None, None) or any(length is not None and length < 1 for length in block):
        raise ValueError(
            "expected block to have positive rows and columns, one of which may be None for the "
            f"whole dimension, found {block!r}."
        )


def _check_block(scores: Tensor, block: Block) -> None:
    shape = tuple(scores.shape)
    if len(shape) < 2:
        raise ValueError(
            f"blocks of {block} expected a tensor of two dimensions or more, found shape {shape}. "
            "Leave the tensor out, or use an estimator without block for it."
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
