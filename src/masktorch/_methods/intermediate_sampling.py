"""Intermediate sampling: move a draw by one gradient step, then follow it.

Source: the post "Intermediate Loss Sampling" (2019-10-14). Its code returns `-q / p`,
the derivative by the probability, as if it were that by the score; here it is exact.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from typing_extensions import override

from masktorch._checks import check_number
from masktorch._kernels.autograd import masked
from masktorch._kernels.chunked import Out, by_numpy, can_be_chunked, chunks, chunkwise
from masktorch._kernels.dtypes import at_least_float32, converted, wide
from masktorch._kernels.random import drawn_mask
from masktorch._kernels.scaling import affine
from masktorch._kernels.selecting import as_number, select
from masktorch._methods.score_threshold import ProbabilityEstimator


def intermediate(
    scores: Tensor,
    step_size: float = 0.1,
    generator: Generator | None = None,
    *,
    weight: Tensor | None = None,
) -> Tensor:
    """Keep each entry with probability `p = sigma(s)`; learn from a step on the draw.

    Forward `m ~ Bernoulli(p)`. Backward `dL/ds = p - q`, the exact derivative of
    `KL((1-q, q) || (1-p, p))`, where `q` is the draw after one gradient step `x`:
    `q = 1 / (1 + x)` if `m = 1`, `q = -x / (1 - x)` if `m = 0`.

    `x = alpha * g`, bounded by 1/2, with `alpha = step_size / rms(g)`. The step is
    relative to the tensor's own gradient, because `p - m` would drown an absolute one.
    So `dL/ds` does not scale with the loss.

    Args:
        scores: floating point, any shape.
        step_size: the step on an entry whose gradient is the tensor's root mean square.
        generator: where random numbers come from; PyTorch's own by default.
        weight: return `weight * m` in its dtype, instead of `m` in the scores'.

    Raises:
        ValueError: if `step_size` is not positive and finite.

    Source: "Intermediate Loss Sampling" (2019-10-14).

    Examples:
        >>> intermediate(torch.tensor([-50.0, 50.0]))
        tensor([0., 1.])
    """
    check_number("intermediate()", "step_size", step_size, 0)
    return _intermediate(scores, step_size, generator, weight)


def _intermediate(
    scores: Tensor, step_size: float, generator: Generator | None, weight: Tensor | None
) -> Tensor:
    # x = g / scale, where the scale is norm(g) times this. It is computed out here:
    # Dynamo can't compute a number within a rule.
    per_norm = 1 / (step_size * math.sqrt(max(scores.numel(), 1)))

    def rule(scores: Tensor, weight: Tensor, drawn: Tensor, grad: Tensor) -> Tensor:
        if can_be_chunked((scores, weight, drawn, grad)):
            return _rule_by_chunks(scores, weight, drawn, grad, per_norm)
        return _rule_of_whole(scores, weight, drawn, grad, per_norm)

    return masked(scores, weight, drawn_mask(scores, generator), select, rule)


def _rule_by_chunks(
    scores: Tensor, weight: Tensor, drawn: Tensor, grad: Tensor, per_norm: float
) -> Tensor:
    norms = [_norm(wide(g, scores) * w).item() for g, w in chunks(grad, weight)]
    scale = _scale(math.hypot(*norms), per_norm, scores)

    @chunkwise
    def rule(
        scores: Tensor, weight: Tensor, drawn: Tensor, grad: Tensor, out: Out
    ) -> Tensor:
        g = wide(grad, scores) * weight
        return _divergence_slope(scores, drawn, g, *scale, out)

    return rule(scores, weight, drawn, grad)


def _rule_of_whole(
    scores: Tensor, weight: Tensor, drawn: Tensor, grad: Tensor, per_norm: float
) -> Tensor:
    g = wide(grad, scores) * weight
    norm = _norm(g)
    if by_numpy(norm) and not torch.is_grad_enabled():
        scale = _scale(norm.item(), per_norm, scores)
        return _divergence_slope(scores, drawn, g, *scale)
    # The host does not wait for an accelerator, and autograd follows the norm.
    x = g / affine(norm, per_norm, _least_scale(scores))
    return _divergence_slope(scores, drawn, x, bound=0.5, scale=1.0)


def _norm(g: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(g, dtype=torch.float64)  # squares overflow
    return norm


class _Scale(NamedTuple):
    bound: float  # of g, so that x is at most 1/2
    # A tensor, because PyTorch takes longer to make one of a number that is an operand.
    scale: Tensor


def _scale(norm: float, per_norm: float, scores: Tensor) -> _Scale:
    """Return by what `g` is divided on a CPU, from the norm of `g`."""
    scale = max(norm * per_norm, _least_scale(scores))
    dtype = at_least_float32(scores.dtype)
    return _Scale(0.5 * scale, torch.scalar_tensor(scale, dtype=dtype, device="cpu"))


def _least_scale(scores: Tensor) -> float:
    """The least number that can divide a `g` of zeros."""
    return torch.finfo(at_least_float32(scores.dtype)).tiny


def _divergence_slope(
    scores: Tensor,
    drawn: Tensor,
    g: Tensor,
    bound: float,
    scale: Tensor | float,
    out: Out = None,
) -> Tensor:
    """`dL/ds = p - q = (p - m) + (m - q)`, with `x = g / scale` bounded by 1/2.

    `m - q` is `x / (1 + x)` if `m = 1` and `x / (1 - x)` if `m = 0`, in one formula
    `g / (scale - g + 2 m g)`.
    """
    # Within these bounds, scale + g and scale - g are positive.
    g = g.clamp(-bound, bound)
    m = as_number(drawn, g.dtype)
    divisor = torch.addcmul(scale - g, m, g, value=2)
    noise = torch.sigmoid(wide(scores, scores)) - m
    slope = torch.addcdiv(noise, g, divisor, out=out)
    return converted(slope, scores.dtype)


@dataclass(frozen=True)
class IntermediateSampling(ProbabilityEstimator):
    """Keep each entry with probability `sigma(s)`; learn from a step on the draw.

    The formula is `masktorch.functional.intermediate`. `tau` is the threshold of the
    deterministic mask only. Scores start 1 above it. Usual training: Adam, learning
    rate 1e-2.

    The gradient does not grow with the loss, so the `unscale_` of a
    `torch.amp.GradScaler` makes it too small. Call
    `scores.grad.mul_(scaler.get_scale())` on each `scores` after it.

    Raises:
        ValueError: if `step_size` is not positive and finite, or `tau` not in (0, 1).

    Examples:
        >>> IntermediateSampling(step_size=0.2)
        IntermediateSampling(step_size=0.2, tau=0.5)
    """

    step_size: float = 0.1
    tau: float = 0.5

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("step_size", 0)

    @override
    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return _intermediate(scores, self.step_size, None, weight)

    def expected(self, scores: Tensor) -> Tensor:
        return torch.sigmoid(scores)
