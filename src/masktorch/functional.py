"""From scores to masks, each method with the gradient it gives the scores.

A mask `m` in {0, 1} has no useful derivative. A method is therefore two formulas: how `m` is
chosen from the scores `s`, and a *rule* for `dL/ds` given `g = dL/dm`; `sigma` is the logistic
function. Each returns the mask, or given a `weight` the product `weight * m`, in fewer passes with
the same gradients: with `G` that of the result, `G * weight` reaches the rule, `G * m` the weight.
"""

import math

import torch
from torch import Generator, Tensor
from torch.nn.functional import hardtanh

from masktorch.blocks import Out, blocks, blockwise
from masktorch.checks import check_flag, check_number
from masktorch.draws import drawn_mask, uniform_like
from masktorch.ranks import n_of_m, straight_rule, topk
from masktorch.rules import Rule, masked
from masktorch.selection import as_number, compared, select, select_above

__all__ = [
    "bernoulli", "concrete", "hard_concrete", "intermediate", "n_of_m", "piggyback", "threshold",
    "topk",
]  # fmt: skip


def logit(tau: float, caller: str = "threshold()") -> float:
    """The score `s` at which `sigma(s) = tau`. Raises unless `tau` lies in (0, 1)."""
    check_number(caller, "tau", tau, 0, 1)
    return math.log(tau / (1 - tau))


def _at_most(at: float, dtype: torch.dtype) -> float:
    """`at`, rounded down to the dtype: devices that would round it find nothing to round."""
    limits = torch.finfo(dtype)
    step = limits.eps * max(2.0 ** (math.frexp(at)[1] - 1), limits.tiny)
    return math.floor(at / step) * step


def keeps(scores: Tensor, at: float = 0.0) -> Tensor:
    """The deterministic mask `m = 1[s > at]`, bool; a score that is not a number is kept."""
    at = _at_most(at, scores.dtype)
    return blockwise(lambda s, out: compared(lambda v: ~(v <= at), s, out))(scores.detach())


def mode_product(scores: Tensor, weight: Tensor, at: float = 0.0) -> Tensor:
    """`weight` under that mask, without a tensor for the mask; differentiable by the weight."""
    return select_above(weight, scores.detach(), _at_most(at, scores.dtype))


def _above(at: float, scores: Tensor, weight: Tensor | None, rule: Rule) -> Tensor:
    """That mask or the weight under it, with a rule for the gradient."""
    at, read = _at_most(at, scores.dtype), scores.detach()  # Dynamo takes no tensor twice
    return masked(scores, weight, read, lambda s, w: select_above(w, s, at), rule)


@blockwise
def _logistic_rule(scores: Tensor, weight: Tensor, read: Tensor, grad: Tensor, out: Out) -> Tensor:
    """`g * sigma(s) * (1 - sigma(s))`."""
    wide = torch.promote_types(scores.dtype, torch.float32)  # 1 - p is 0 in half precision
    p = torch.sigmoid(scores.to(wide))
    slope = torch.ops.aten.sigmoid_backward(grad.to(wide), p)
    product = slope.mul_(weight) if out is None else torch.mul(slope, weight, out=out)
    return product.to(scores.dtype)


def threshold(scores: Tensor, tau: float = 0.5, *, weight: Tensor | None = None) -> Tensor:
    """Straight-through threshold.

    Forward `m = 1[sigma(s) > tau]`; backward `dL/ds = g * sigma(s) * (1 - sigma(s))`. `scores` are
    floating point of any shape, `weight` and mask the same, as for all methods. `ValueError` unless
    `tau` lies in (0, 1). Source: "Super-Masks: Are They Good Initializations?" (2019), its code.

    Examples:
        >>> threshold(torch.tensor([-2.0, 0.0, 2.0]))
        tensor([0., 0., 1.])
    """
    return _above(logit(tau), scores, weight, _logistic_rule)


def bernoulli(
    scores: Tensor, generator: Generator | None = None, *, weight: Tensor | None = None
) -> Tensor:
    """A Bernoulli sample with the gradient of its expectation.

    Forward `m ~ Bernoulli(sigma(s))`, drawn from `generator` (PyTorch's own if left out); backward
    as in `threshold`. Source: Zhou et al., "Deconstructing Lottery Tickets" (arXiv 1905.01067).

    Examples:
        >>> bernoulli(torch.tensor([-50.0, 50.0]))
        tensor([0., 1.])
    """
    return masked(scores, weight, drawn_mask(scores, generator), select, _logistic_rule)


def intermediate(
    scores: Tensor,
    step_size: float = 0.1,
    generator: Generator | None = None,
    *,
    weight: Tensor | None = None,
) -> Tensor:
    """Intermediate sampling: one gradient step on the draw, then the KL divergence to it.

    Forward `m ~ Bernoulli(p)`, `p = sigma(s)`. Backward `dL/ds = p - q`, the exact derivative of
    `KL((1-q, q) || (1-p, p))`, with `q = 1 / (1 + x)` where `m = 1` and `q = -x / (1 - x)` where
    `m = 0`. `x = alpha * g` is bounded by 1/2 and `alpha = step_size / rms(g)`, in proportion to
    the tensor's own gradient (or `p - m` drowns it): `dL/ds` does not scale with the loss.
    `ValueError` unless `step_size` is positive. Source: Intermediate Loss Sampling (2019-10-14),
    whose code returns the derivative by `p`, `-q / p`.

    Examples:
        >>> intermediate(torch.tensor([-50.0, 50.0]))
        tensor([0., 1.])
    """
    check_number("intermediate()", "step_size", step_size, 0)

    def rule(scores: Tensor, weight: Tensor, drawn: Tensor, grad: Tensor) -> Tensor:
        wide = torch.promote_types(grad.dtype, torch.float32)  # alpha overflows half precision
        products = (g.to(wide) * w for g, w in blocks(grad, weight))
        norms = [torch.linalg.vector_norm(x, dtype=torch.float64) for x in products]  # no overflow
        rms = torch.linalg.vector_norm(torch.stack(norms)) / math.sqrt(max(grad.numel(), 1))
        alpha = (rms.to(wide) / step_size).clamp(min=torch.finfo(wide).tiny).reciprocal()
        return _step(scores, weight, drawn, grad, alpha)

    return masked(scores, weight, drawn_mask(scores, generator), select, rule)


@blockwise
def _step(
    scores: Tensor, weight: Tensor, drawn: Tensor, grad: Tensor, alpha: Tensor, out: Out
) -> Tensor:
    """`p - q`, both cases in one: `m - q = x / (1 + x)` where m = 1, `x / (1 - x)` where m = 0."""
    x = (grad.to(alpha.dtype) * weight).mul_(alpha).clamp(-0.5, 0.5)  # 1 +- x > 0
    m = as_number(drawn, alpha.dtype)
    divisor = torch.addcmul(1 - x, m, x, value=2)
    noise = torch.sigmoid(scores.to(alpha.dtype)) - m
    return torch.addcdiv(noise, x, divisor, out=out).to(scores.dtype)


def piggyback(scores: Tensor, threshold: float = 5e-3, *, weight: Tensor | None = None) -> Tensor:
    """Threshold on the score itself, with the identity for a gradient.

    Forward `m = 1[s > threshold]`; backward `dL/ds = g`. Source: Mallya et al. (arXiv 1801.06519).

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

    Forward `z = min(1, max(0, y * (zeta - gamma) + gamma))`, `y = sigma((logit(u) + s) / beta)`,
    `u` uniform on (0, 1); backward `dL/ds = g * (zeta - gamma) * y * (1 - y) / beta` where
    `0 < z < 1`, else 0. Source: Louizos et al. (arXiv 1712.01312).

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

    Forward `m = 1[s + logit(u) > 0]` if `hard`, else `y = sigma((s + logit(u)) / T)`, `u` uniform
    on (0, 1); backward both `dL/ds = g * y * (1 - y) / T`. Sources: arXiv 1611.00712, 1611.01144.

    Examples:
        >>> concrete(torch.tensor([-50.0, 50.0]))
        tensor([0., 1.])
    """
    check_flag("concrete", "hard", hard)
    noisy = _noisy(scores, generator)
    mask = torch.sigmoid(noisy / temperature)
    if hard:
        mask = (noisy > 0).to(mask.dtype) + (mask - mask.detach())  # the value of the former
    mask = mask.to(scores.dtype)
    return mask if weight is None else weight * mask


def _noisy(scores: Tensor, generator: Generator | None) -> Tensor:
    """`s + logit(u)`, positive with probability `sigma(s)`; float32 for half precision."""
    return scores + uniform_like(scores, generator).logit_()
