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
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["bernoulli", "intermediate", "keeps", "logit", "select", "threshold"]

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


def keeps(scores: Tensor, tau: float = 0.5) -> Tensor:
    """The deterministic mask, `m = 1[sigma(s) > tau]`, as a bool tensor shaped like `scores`.

    A score exactly at the threshold is masked.

    Examples:
        >>> keeps(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([False, False,  True])
    """
    at = logit(tau)  # not rounded to the scores' half precision, as it is not in the forward
    return scores.to(torch.promote_types(scores.dtype, torch.float32)) > at


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
    return _masked(weight, scores, scores, logit(tau), _logistic_rule)


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
    return _masked(weight, scores, _draw(scores, generator), 0.0, _logistic_rule)


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

    def rule(scores: Tensor, margin: Tensor, g: Tensor) -> Tensor:
        dtype = torch.promote_types(g.dtype, torch.float32)  # alpha overflows half precision
        g, p, m = g.to(dtype), torch.sigmoid(scores.to(dtype)), (margin > 0).to(dtype)
        rms = torch.linalg.vector_norm(g) / math.sqrt(max(g.numel(), 1))
        alpha = step_size / rms.clamp(min=torch.finfo(dtype).tiny)
        x = (alpha * g).clamp(-MAX_STEP, MAX_STEP)
        # Both cases of p - q in one: m - q = x / (1 + x) where m = 1 and x / (1 - x) where m = 0.
        return torch.addcdiv(p - m, x, torch.addcmul(1 - x, m, x, value=2)).to(scores.dtype)

    return _masked(weight, scores, _draw(scores, generator), 0.0, rule)


def select(weight: Tensor, mask: Tensor) -> Tensor:
    """`weight` where the bool `mask` is True, elsewhere exactly 0, whatever stands there.

    Examples:
        >>> select(torch.tensor([1.0, float("nan")]), torch.tensor([True, False]))
        tensor([1., 0.])
    """
    return _select(weight, mask.to(weight.dtype), 0.0)


def _select(weight: Tensor, margin: Tensor, at: float) -> Tensor:
    """`weight` where `margin > at`, else 0; PyTorch has it, and many times faster than `where` on a
    CPU, as the derivative of its threshold function."""
    return cast(Tensor, torch.ops.aten.threshold_backward(weight, margin, at))


def _draw(scores: Tensor, generator: torch.Generator | None) -> Tensor:
    """`p - u` for a uniform `u`: positive with probability `p`. (Comparing draws faster than
    `torch.bernoulli`; float32 at least, so that half precision rounds no small `p` away.)"""
    dtype = torch.promote_types(scores.dtype, torch.float32)
    uniform = torch.empty_like(scores, dtype=dtype).uniform_(generator=generator)
    return (torch.sigmoid(scores.to(dtype)) - uniform).to(scores.dtype)


Rule = Callable[[Tensor, Tensor, Tensor], Tensor]  # (scores, margin, g) -> dL/dscores


def _logistic_rule(scores: Tensor, margin: Tensor, g: Tensor) -> Tensor:
    """`g * sigma(s) * (1 - sigma(s))`."""
    return cast(Tensor, torch.ops.aten.sigmoid_backward(g, torch.sigmoid(scores)))


class _Masked(torch.autograd.Function):
    """`weight * m`, `m = 1[margin > at]`; backward the rule for the scores, and for the weight its
    gradient under the mask."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, scores: Tensor, margin: Tensor, at: float, rule: Rule) -> Tensor:
        return _select(weight, margin, at)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, scores, margin, ctx.at, ctx.rule = inputs
        ctx.save_for_backward(weight, scores, margin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, scores, margin = ctx.saved_tensors
        for_weight, for_scores = ctx.needs_input_grad[:2]
        return (
            _select(grad, margin, ctx.at) if for_weight else None,
            ctx.rule(scores, margin, grad * weight) if for_scores else None,
            None,
            None,
            None,
        )


def _masked(weight: Tensor | None, scores: Tensor, margin: Tensor, at: float, rule: Rule) -> Tensor:
    """The mask alone is the product with a weight of one."""
    factor = scores.new_ones(()) if weight is None else weight
    product = _Masked.apply(factor, scores, margin.detach(), at, rule)  # type: ignore[no-untyped-call]
    return cast(Tensor, product)
