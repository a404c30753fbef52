"""From scores to masks, each method with the gradient it gives the scores.

A mask `m` in {0, 1} has no useful derivative. A method is therefore two formulas: how `m` is
chosen from the scores `s`, and a *rule* for `dL/ds` given `g = dL/dm`. Throughout,
`sigma` is the logistic function and `p = sigma(s)`.

Each method returns the mask, in the shape and dtype of the scores. Given a `weight` of these it
returns `weight * m` instead, in fewer passes over memory than masking and multiplying, with the
same gradients: `g = G * weight` reaches the rule and `G * m` the weight, where `G` is the gradient
of the result.
"""

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Generator, Tensor
from torch.nn.functional import hardtanh

from masktorch.blocks import blocks, blockwise
from masktorch.checks import check_number
from masktorch.draws import drawn_mask, uniform_like
from masktorch.ranks import n_of_m, straight_rule, topk
from masktorch.rules import Rule, masked
from masktorch.selection import as_number, select, select_above

__all__ = [
    "bernoulli",
    "concrete",
    "hard_concrete",
    "intermediate",
    "n_of_m",
    "piggyback",
    "threshold",
    "topk",
]

STEP_SIZE = 0.1
"""Default of `intermediate`."""
MAX_STEP = 0.5
"""Bound on `|alpha * g|` in `intermediate`; below 1, `1 +- alpha * g` stays positive."""


def logit(tau: float, caller: str = "threshold()") -> float:
    """The score `s` at which `sigma(s) = tau`. Raises unless `tau` lies in (0, 1)."""
    check_number(caller, "tau", tau, above=0, below=1, hint="It is compared with sigma(score).")
    return math.log(tau / (1 - tau))


def _at_most(at: float, dtype: torch.dtype) -> float:
    """The largest number of the dtype that is at most `at`: a score above one is above the other,
    and devices that would round `at` to the dtype find nothing to round."""
    limits = torch.finfo(dtype)
    step = limits.eps * max(2.0 ** (math.frexp(at)[1] - 1), limits.tiny)
    return math.floor(at / step) * step


def keeps(scores: Tensor, at: float = 0.0) -> Tensor:
    """The deterministic mask `m = 1[s > at]`, bool; a score that is not a number is kept."""
    at = _at_most(at, scores.dtype)
    return blockwise(lambda s: ~(s <= at))(scores.detach())


def mode_product(scores: Tensor, weight: Tensor, at: float = 0.0) -> Tensor:
    """`weight` under that mask, without a tensor for the mask; differentiable by the weight."""
    return select_above(weight, scores.detach(), _at_most(at, scores.dtype))


def _above(at: float, scores: Tensor, weight: Tensor | None, rule: Rule) -> Tensor:
    """That mask or the weight under it, with a rule for the gradient."""
    at, read = _at_most(at, scores.dtype), scores.detach()  # Dynamo takes no tensor twice
    return masked(scores, weight, read, lambda s, w: select_above(w, s, at), rule)


@blockwise
def _logistic_rule(scores: Tensor, weight: Tensor, read: Tensor, grad: Tensor) -> Tensor:
    """`g * sigma(s) * (1 - sigma(s))`."""
    wide = torch.promote_types(scores.dtype, torch.float32)  # 1 - p is 0 in half precision
    p = torch.sigmoid(scores.to(wide))
    slope = torch.ops.aten.sigmoid_backward(grad.to(wide), p)
    return cast(Tensor, slope.mul_(weight).to(scores.dtype))


def threshold(scores: Tensor, tau: float = 0.5, *, weight: Tensor | None = None) -> Tensor:
    """Straight-through threshold.

    Forward `m = 1[sigma(s) > tau]`; backward `dL/ds = g * sigma(s) * (1 - sigma(s))`.

    `scores` is floating point of any shape, `weight` too, of the same; `tau` lies in (0, 1), or
    `ValueError` is raised. Source: the code of "Super-Masks: Are They Good Initializations?"
    (2019), which applies the threshold to `sigma(s)`.

    Examples:
        >>> scores = torch.tensor([-2.0, 0.0, 2.0], requires_grad=True)
        >>> threshold(scores).sum().backward()
        >>> threshold(scores), scores.grad
        (tensor([0., 0., 1.], grad_fn=<_MaskedBackward>), tensor([0.1050, 0.2500, 0.1050]))
    """
    return _above(logit(tau), scores, weight, _logistic_rule)


def bernoulli(
    scores: Tensor, generator: Generator | None = None, *, weight: Tensor | None = None
) -> Tensor:
    """A Bernoulli sample with the gradient of its expectation.

    Forward `m ~ Bernoulli(sigma(s))`, drawn afresh from `generator` (PyTorch's own if left
    out); backward `dL/ds = g * sigma(s) * (1 - sigma(s))`. Shapes and dtypes as in `threshold`.
    Source: Zhou et al., "Deconstructing Lottery Tickets" (arXiv 1905.01067).

    Examples:
        >>> bernoulli(torch.tensor([-50.0, 50.0]))
        tensor([0., 1.])
    """
    return masked(scores, weight, drawn_mask(scores, generator), select, _logistic_rule)


def intermediate(
    scores: Tensor,
    step_size: float = STEP_SIZE,
    generator: Generator | None = None,
    *,
    weight: Tensor | None = None,
) -> Tensor:
    """Intermediate sampling: one gradient step on the draw, then the KL divergence to it.

    Forward `m ~ Bernoulli(p)`, `p = sigma(s)`. Backward, with `x = alpha * g`:

        q = 1 / (1 + x)  where m = 1,    q = -x / (1 - x)  where m = 0
        dL/ds = p - q,   the derivative of KL((1-q, q) || (1-p, p)) by s

    `alpha = step_size / rms(g)` makes the step relative to the tensor's own gradient (an absolute
    one is drowned by `p - m`), and `|x|` is bounded by `MAX_STEP` while `q` stays unclipped
    (clipping it biases the rule). So the gradient does not scale with the loss: see
    `masktorch.IntermediateSampling`. Shapes and dtypes as in `threshold`; `ValueError` is raised
    unless `step_size` is positive. Source: Intermediate Loss Sampling (2019-10-14); its code
    returns the derivative by the *probabilities*, `-q / p`, here it is the exact one by the scores.

    Examples:
        >>> scores = torch.full((3,), 50.0, requires_grad=True)
        >>> (intermediate(scores) * torch.tensor([-1.0, 0.0, 1.0])).sum().backward()
        >>> scores.grad  # x / (1 + x) for x = 0.1 * g / rms(g), as p = m = 1
        tensor([-0.1396,  0.0000,  0.1091])
    """
    check_number("intermediate()", "step_size", step_size, above=0)

    def rule(scores: Tensor, weight: Tensor, drawn: Tensor, grad: Tensor) -> Tensor:
        rms = _rms(grad, weight) / step_size
        alpha = rms.clamp(min=torch.finfo(rms.dtype).tiny).reciprocal()
        return _step_rule(scores, weight, drawn, grad, alpha)

    return masked(scores, weight, drawn_mask(scores, generator), select, rule)


@blockwise
def _step_rule(
    scores: Tensor, weight: Tensor, drawn: Tensor, grad: Tensor, alpha: Tensor
) -> Tensor:
    """`p - q`, both cases in one: `m - q = x / (1 + x)` where m = 1, `x / (1 - x)` where m = 0."""
    x = (grad.to(alpha.dtype) * weight).mul_(alpha).clamp(-MAX_STEP, MAX_STEP)
    m = as_number(drawn, alpha.dtype)
    divisor = torch.addcmul(1 - x, m, x, value=2)
    noise = torch.sigmoid(scores.to(alpha.dtype)) - m
    return torch.addcdiv(noise, x, divisor).to(scores.dtype)


def _rms(grad: Tensor, weight: Tensor) -> Tensor:
    """The root mean square of `grad * weight`. Squared are the shares of the largest entry: the
    squares of small or large entries would under- or overflow."""
    dtype = torch.promote_types(grad.dtype, torch.float32)  # its inverse overflows half precision

    def of_blocks(number: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.stack([number(g.to(dtype) * w) for g, w in blocks(grad, weight)])

    if not grad.numel():
        return grad.new_ones((), dtype=dtype)
    top = of_blocks(lambda x: x.abs().amax()).amax().clamp(min=torch.finfo(dtype).tiny)
    norm = torch.linalg.vector_norm(of_blocks(lambda x: torch.linalg.vector_norm(x / top)))
    return cast(Tensor, top * (norm / math.sqrt(grad.numel())))


def piggyback(scores: Tensor, threshold: float = 5e-3, *, weight: Tensor | None = None) -> Tensor:
    """Threshold on the score itself, with the identity for a gradient.

    Forward `m = 1[s > threshold]`; backward `dL/ds = g`. Shapes and dtypes as in
    `masktorch.functional.threshold`. Source: Mallya et al., "Piggyback" (arXiv 1801.06519).

    Examples:
        >>> piggyback(torch.tensor([-1.0, 0.01]))
        tensor([0., 1.])
    """
    return _above(threshold, scores, weight, straight_rule(False))


def hard_concrete(
    scores: Tensor,
    beta: float = 2 / 3,
    gamma: float = -0.1,
    zeta: float = 1.1,
    generator: Generator | None = None,
    *,
    weight: Tensor | None = None,
) -> Tensor:
    """A hard concrete sample: a relaxed Bernoulli, stretched beyond [0, 1] and clipped to it.

    Forward `y = sigma((logit(u) + s) / beta)`, `z = min(1, max(0, y * (zeta - gamma) + gamma))`,
    `u` uniform on (0, 1), drawn afresh; the mask `z` lies in [0, 1], with mass on both ends.
    Backward exact: `dL/ds = g * (zeta - gamma) * y * (1 - y) / beta` where `0 < z < 1`, else 0.
    Shapes and dtypes as in `threshold`. Source: Louizos et al., "Learning Sparse Neural Networks
    through L0 Regularization" (arXiv 1712.01312).

    Examples:
        >>> hard_concrete(torch.tensor([-50.0, 50.0]))
        tensor([0., 1.])
    """
    y = torch.sigmoid(_noisy(scores, generator) / beta)
    mask = hardtanh(y * (zeta - gamma) + gamma, 0.0, 1.0).to(scores.dtype)
    return mask if weight is None else weight * mask


def concrete(
    scores: Tensor,
    temperature: float = 2 / 3,
    hard: bool = True,
    generator: Generator | None = None,
    *,
    weight: Tensor | None = None,
) -> Tensor:
    """A binary concrete sample, or Gumbel-sigmoid: a Bernoulli draw relaxed by a temperature `T`.

    Forward, with `l = logit(u)`, `u` uniform on (0, 1), drawn afresh: `m = 1[s + l > 0]` if
    `hard`, else `m = sigma((s + l) / T)`. Backward both as the soft one at that draw:
    `dL/ds = g * y * (1 - y) / T`, `y = sigma((s + l) / T)`. Shapes and dtypes as in `threshold`.
    Sources: Maddison et al., "The Concrete Distribution" (arXiv 1611.00712); Jang et al.
    (arXiv 1611.01144).

    Examples:
        >>> concrete(torch.tensor([-50.0, 50.0]))
        tensor([0., 1.])
    """
    noisy = _noisy(scores, generator)
    mask = torch.sigmoid(noisy / temperature)
    if hard:
        mask = (noisy > 0).to(mask.dtype) + (mask - mask.detach())  # the value of the former
    mask = mask.to(scores.dtype)
    return mask if weight is None else weight * mask


def _noisy(scores: Tensor, generator: Generator | None) -> Tensor:
    """`s + logit(u)`, positive with probability `sigma(s)`; float32 for half precision."""
    return scores + uniform_like(scores, generator).logit_()
