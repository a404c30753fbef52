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
from typing import Any

import torch
from torch import Tensor

from masktorch.blocks import blocks, blockwise
from masktorch.draws import uniform_like
from masktorch.ranks import n_of_m, topk
from masktorch.rules import masked, overwriting
from masktorch.selection import as_number, exceeds, select_above

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


def logit(tau: float) -> float:
    """The score `s` at which `sigma(s) = tau`. Raises `ValueError` for a `tau` outside (0, 1)."""
    if not 0 < tau < 1:
        raise ValueError(
            f"expected tau in (0, 1), found {tau!r}. It is the value of sigma(score) above which a "
            "weight is kept; 0.5 is the usual choice."
        )
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
    return blockwise(lambda s: (exceeds(s, at),), scores.detach())[0]


def mode_product(scores: Tensor, weight: Tensor, at: float = 0.0) -> Tensor:
    """`weight` under that mask, without a tensor for the mask; differentiable by the weight."""
    return select_above(weight, scores.detach(), _at_most(at, scores.dtype))


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
    return masked(weight, scores, _logistic_rule, at=_at_most(logit(tau), scores.dtype))


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
    unclipped (clipping it biases the rule). So the gradient does not scale with the loss, which
    `torch.amp.GradScaler` takes for granted: see `masktorch.IntermediateSampling`.

    Shapes and dtypes as in `threshold`; `step_size` is positive. Source: Intermediate Loss
    Sampling (2019-10-14); its code returns the derivative by the *probabilities*, `-q / p`, here
    it is the exact one by the scores.

    Examples:
        >>> scores = torch.full((3,), 50.0, requires_grad=True)
        >>> (intermediate(scores) * torch.tensor([-1.0, 0.0, 1.0])).sum().backward()
        >>> scores.grad  # x / (1 + x) for x = 0.1 * g / rms(g), as p = m = 1
        tensor([-0.1396,  0.0000,  0.1091])
    """

    if not step_size > 0:
        raise ValueError(f"intermediate() expected a positive step_size, found {step_size!r}.")

    def rule(scores: Tensor, weight: Tensor, kept: Any, grad: Tensor) -> Tensor:
        dtype = torch.promote_types(grad.dtype, torch.float32)  # alpha overflows half precision
        tiny = torch.finfo(dtype).tiny
        alpha = (_rms(grad, weight, dtype) / step_size).clamp(min=tiny).reciprocal()
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


def _rms(grad: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The root mean square of `grad * weight`. Squared are the shares of the largest entry: the
    squares of small or large entries would under- or overflow."""
    into, tiny = overwriting(grad), torch.finfo(dtype).tiny
    if not grad.numel():
        return grad.new_ones((), dtype=dtype)
    tops, norms = [], []
    for g, w in blocks(grad, weight):
        g = g.to(dtype) * w
        g = torch.abs(g, out=into(g))
        tops.append(g.amax().clamp(min=tiny))
        norms.append(torch.linalg.vector_norm(torch.div(g, tops[-1], out=into(g))))
    top = torch.stack(tops).amax()
    norm = torch.linalg.vector_norm(torch.stack(norms) * (torch.stack(tops) / top))
    rms: Tensor = top * (norm / math.sqrt(grad.numel()))
    return rms


def piggyback(scores: Tensor, threshold: float = 5e-3, *, weight: Tensor | None = None) -> Tensor:
    """Threshold on the score itself, with the identity for a gradient.

    Forward `m = 1[s > threshold]`; backward `dL/ds = g`.

    Shapes and dtypes as in `masktorch.functional.threshold`. Source: Mallya et al., "Piggyback"
    (arXiv 1801.06519).

    Examples:
        >>> scores = torch.tensor([-1.0, 0.01], requires_grad=True)
        >>> piggyback(scores).backward(torch.tensor([2.0, 3.0]))
        >>> scores.grad
        tensor([2., 3.])
    """
    return masked(weight, scores, _identity_rule, at=_at_most(threshold, scores.dtype))


def hard_concrete(
    scores: Tensor,
    beta: float = 2 / 3,
    gamma: float = -0.1,
    zeta: float = 1.1,
    generator: torch.Generator | None = None,
    *,
    weight: Tensor | None = None,
) -> Tensor:
    """A hard concrete sample: a relaxed Bernoulli, stretched beyond [0, 1] and clipped to it.

    Forward `y = sigma((logit(u) + s) / beta)`, `z = min(1, max(0, y * (zeta - gamma) + gamma))`,
    `u` uniform on (0, 1), drawn afresh; the mask `z` lies in [0, 1], with mass on both ends.
    Backward exact: `dL/ds = g * (zeta - gamma) * y * (1 - y) / beta` where `0 < z < 1`, else 0.

    Shapes and dtypes as in `threshold`. Source: Louizos et al.,
    "Learning Sparse Neural Networks through L0 Regularization" (arXiv 1712.01312).

    Examples:
        >>> hard_concrete(torch.tensor([-50.0, 50.0]))
        tensor([0., 1.])
    """
    y = torch.sigmoid(_logistic_noise(scores, generator) / beta)
    mask = torch.nn.functional.hardtanh(y * (zeta - gamma) + gamma, 0.0, 1.0).to(scores.dtype)
    return mask if weight is None else weight * mask


def concrete(
    scores: Tensor,
    temperature: float = 2 / 3,
    hard: bool = True,
    generator: torch.Generator | None = None,
    *,
    weight: Tensor | None = None,
) -> Tensor:
    """A binary concrete sample, or Gumbel-sigmoid: a Bernoulli draw relaxed by a temperature `T`.

    Forward, with `l = logit(u)`, `u` uniform on (0, 1), drawn afresh: `m = 1[s + l > 0]` if
    `hard`, else `m = sigma((s + l) / T)`. Backward both as the soft one at that draw:
    `dL/ds = g * y * (1 - y) / T`, `y = sigma((s + l) / T)`.

    Shapes and dtypes as in `threshold`. Sources: Maddison et
    al., "The Concrete Distribution" (arXiv 1611.00712); Jang et al. (arXiv 1611.01144).

    Examples:
        >>> concrete(torch.tensor([-50.0, 50.0]))
        tensor([0., 1.])
    """
    noisy = _logistic_noise(scores, generator)
    soft = torch.sigmoid(noisy / temperature)
    if hard:
        soft = (noisy > 0).to(soft.dtype) + (soft - soft.detach())  # the value of the former
    mask = soft.to(scores.dtype)
    return mask if weight is None else weight * mask


def _logistic_noise(scores: Tensor, generator: torch.Generator | None) -> Tensor:
    """`s + logit(u)`, positive with probability `sigma(s)`; float32 for half precision."""
    u = uniform_like(scores, generator)
    return scores.to(u.dtype) + torch.log(u) - torch.log1p(-u)


def _identity_rule(scores: Tensor, weight: Tensor, kept: Tensor | None, grad: Tensor) -> Tensor:
    """`g`, where `dL/ds := dL/dm`."""
    return blockwise(lambda w, g: ((g * w).to(scores.dtype),), weight, grad)[0]


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
