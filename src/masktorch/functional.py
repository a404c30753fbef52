"""From scores to masks, each method with the gradient it gives the scores.

A mask `m` in {0, 1} has no useful derivative. A method is therefore two formulas: how `m` is
chosen from the scores `s`, and a *rule* for `dL/ds` given `g = dL/dm`. Throughout,
`sigma` is the logistic function and `p = sigma(s)`.

Each method returns the mask, in the dtype of the scores. Given a `weight` it returns
`weight * m` instead, in fewer passes over memory than masking and multiplying, with the same
gradients: `g = G * weight` reaches the rule and `G * m` the weight, where `G` is the
gradient of the result.
"""

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from masktorch.blocks import blocks, blockwise
from masktorch.rules import masked, overwriting
from masktorch.selection import (
    Block,
    as_number,
    exceeds,
    largest_of_every,
    largest_share,
    select,
    select_above,
    spread,
    tiled,
)

__all__ = [
    "bernoulli",
    "intermediate",
    "keeps",
    "keeps_largest",
    "keeps_n_of_m",
    "logit",
    "mode_product",
    "n_of_m",
    "select",
    "threshold",
    "topk",
]

STEP_SIZE = 0.1
"""Default of `intermediate`."""
MAX_STEP = 0.5
"""Bound on `|alpha * g|` in `intermediate`; below 1, `1 +- alpha * g` stays positive."""


def logit(tau: float) -> float:
    """The score `s` at which `sigma(s) = tau`. Raises `ValueError` for a `tau` outside (0, 1).

    Examples:
        >>> logit(0.5)
        0.0
    """
    if not 0 < tau < 1:
        raise ValueError(
            f"expected tau in (0, 1), found {tau!r}. It is the value of sigma(score) above which a "
            "weight is kept; 0.5 is the usual choice."
        )
    return math.log(tau / (1 - tau))


def _boundary(tau: float, dtype: torch.dtype) -> float:
    """The largest number of the dtype that is at most `logit(tau)`: a score above one is above the
    other, and devices that would round `logit(tau)` to the dtype find nothing to round."""
    at, limits = logit(tau), torch.finfo(dtype)
    step = limits.eps * max(2.0 ** (math.frexp(at)[1] - 1), limits.tiny)
    return math.floor(at / step) * step


def keeps(scores: Tensor, tau: float = 0.5) -> Tensor:
    """The deterministic mask, `m = 1[sigma(s) > tau]`, as a bool tensor shaped like `scores`.

    A score exactly at the threshold is masked; one that is not a number is not.

    Examples:
        >>> keeps(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([False, False,  True])
    """
    at = _boundary(tau, scores.dtype)
    return blockwise(lambda s: (exceeds(s, at),), scores.detach())[0]


def threshold(scores: Tensor, tau: float = 0.5, *, weight: Tensor | None = None) -> Tensor:
    """Straight-through threshold.

    Forward `m = 1[sigma(s) > tau]`; backward `dL/ds = g * sigma(s) * (1 - sigma(s))`.

    `scores` is floating point of any shape, `tau` lies in (0, 1), `weight` has the shape and dtype
    of `scores`. Returns the mask (or `weight * m`) in that shape and dtype.
    Source: the code of "Super-Masks: Are They Good Initializations?" (2019), which applies the
    threshold to `sigma(s)`.

    Examples:
        >>> scores = torch.tensor([-2.0, 0.0, 2.0], requires_grad=True)
        >>> threshold(scores)
        tensor([0., 0., 1.], grad_fn=<_MaskedBackward>)
        >>> threshold(scores).sum().backward()
        >>> scores.grad
        tensor([0.1050, 0.2500, 0.1050])
    """
    return masked(weight, scores, _logistic_rule, at=_boundary(tau, scores.dtype))


def bernoulli(
    scores: Tensor, generator: torch.Generator | None = None, *, weight: Tensor | None = None
) -> Tensor:
    """A Bernoulli sample with the gradient of its expectation.

    Forward `m ~ Bernoulli(sigma(s))`, drawn afresh from `generator` (PyTorch's own if left
    out); backward `dL/ds = g * sigma(s) * (1 - sigma(s))`.

    Shapes and dtypes as in `threshold`. Source: Zhou et al., "Deconstructing Lottery
    Tickets" (arXiv 1905.01067).

    Examples:
        >>> scores = torch.tensor([-50.0, 50.0], requires_grad=True)
        >>> bernoulli(scores)
        tensor([0., 1.], grad_fn=<_MaskedBackward>)
    """
    return masked(weight, scores, _logistic_rule, generator=generator)


def intermediate(
    scores: Tensor,
    step_size: float = STEP_SIZE,
    generator: torch.Generator | None = None,
    *,
    weight: Tensor | None = None,
) -> Tensor:
    """Intermediate sampling: one gradient step on the draw, then the KL divergence to it.

    Forward `m ~ Bernoulli(p)`, `p = sigma(s)`. Backward, with `x = alpha * g`:

        q = 1 / (1 + x)  where m = 1,    q = -x / (1 - x)  where m = 0
        dL/ds = p - q,   the derivative of KL((1-q, q) || (1-p, p)) by s

    `alpha = step_size / rms(g)` makes the step relative to the tensor's own gradient (an absolute
    one is drowned by `p - m`), and `|x|` is bounded by `MAX_STEP` while `q` stays
    unclipped (clipping it biases the rule). So the gradient does not scale with the loss.

    Shapes and dtypes as in `threshold`; `step_size` is positive. Source: Intermediate Loss
    Sampling (2019-10-14); its code returns the derivative by the *probabilities*, `-q / p`, here
    it is the exact one by the scores.

    Examples:
        >>> scores = torch.full((3,), 50.0, requires_grad=True)
        >>> (intermediate(scores) * torch.tensor([-1.0, 0.0, 1.0])).sum().backward()
        >>> scores.grad  # x / (1 + x) for x = 0.1 * g / rms(g), as p = m = 1
        tensor([-0.1396,  0.0000,  0.1091])
    """

    def rule(scores: Tensor, weight: Tensor, kept: Any, grad: Tensor) -> Tensor:
        dtype = torch.promote_types(grad.dtype, torch.float32)  # alpha overflows half precision
        norms = [torch.linalg.vector_norm(g.to(dtype) * w) for g, w in blocks(grad, weight)]
        rms = torch.linalg.vector_norm(torch.stack(norms)) / math.sqrt(max(grad.numel(), 1))
        limits = torch.finfo(dtype)
        alpha = (step_size / rms.clamp(min=limits.tiny)).clamp(max=limits.max)

        into = overwriting(grad)

        def difference(scores: Tensor, weight: Tensor, kept: Tensor, grad: Tensor) -> Any:
            x = grad.to(dtype) * weight
            x = torch.mul(x, alpha, out=into(x))
            x = torch.clamp(x, -MAX_STEP, MAX_STEP, out=into(x))
            m = as_number(kept, dtype)
            # Both cases of p - q in one: m - q = x / (1 + x) where m = 1, x / (1 - x) where m = 0.
            divisor = 1 - x
            divisor = torch.addcmul(divisor, m, x, value=2, out=into(divisor))
            p = torch.sigmoid(scores.to(dtype))
            noise = torch.sub(p, m, out=into(p))
            return (torch.addcdiv(noise, x, divisor, out=into(noise)).to(scores.dtype),)

        return blockwise(difference, scores, weight, kept, grad)[0]

    return masked(weight, scores, rule, generator=generator, keep=True)


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
        mean = spread(tiles.flatten(2).mean(2), tiles, scores).to(scores.dtype)
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


def mode_product(scores: Tensor, weight: Tensor, tau: float = 0.5) -> Tensor:
    """`weight` under the deterministic mask of `keeps`, without a tensor for the mask.

    Differentiable by the weight. Shapes and dtypes as in `threshold`.

    Examples:
        >>> mode_product(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([2.0, 2.0, 2.0]))
        tensor([0., 0., 2.])
    """
    return select_above(weight, scores.detach(), _boundary(tau, scores.dtype))


def _logistic_rule(scores: Tensor, weight: Tensor, kept: Tensor | None, grad: Tensor) -> Tensor:
    """`g * sigma(s) * (1 - sigma(s))`."""
    into = overwriting(grad)
    dtype = torch.promote_types(scores.dtype, torch.float32)  # 1 - p is 0 in half precision

    def product(scores: Tensor, weight: Tensor, grad: Tensor) -> Any:
        p, grad = torch.sigmoid(scores.to(dtype)), grad.to(dtype)
        slope: Tensor
        if (out := into(p)) is None:
            slope = torch.ops.aten.sigmoid_backward.default(grad, p)
        else:
            slope = torch.ops.aten.sigmoid_backward.grad_input(grad, p, grad_input=out)
        return (torch.mul(slope, weight, out=into(slope)).to(scores.dtype),)

    return blockwise(product, scores, weight, grad)[0]


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
