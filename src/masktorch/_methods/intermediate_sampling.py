"""Intermediate sampling: move a draw by one gradient step, then follow it.

Source: the post "Intermediate Loss Sampling" (2019-10-14). Its code returns `-q / p`,
the derivative by the probability, as if it were that by the score; here it is exact.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from typing_extensions import override

from masktorch._checks import check_number
from masktorch._kernels.autograd import masked
from masktorch._kernels.chunked import Out, chunks, chunkwise
from masktorch._kernels.random import drawn_mask
from masktorch._kernels.selecting import as_number, select
from masktorch._methods.built_in import wide
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

    def rule(scores: Tensor, weight: Tensor, drawn: Tensor, grad: Tensor) -> Tensor:
        scale = wide(_root_mean_square(scores, weight, grad), scores) / step_size
        alpha = scale.clamp(min=torch.finfo(scale.dtype).tiny).reciprocal()
        return _step(scores, weight, drawn, grad, alpha)

    return masked(scores, weight, drawn_mask(scores, generator), select, rule)


def _root_mean_square(scores: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    """Return the root mean square of `g = grad * weight`, in float64."""
    products = (wide(g, scores) * w for g, w in chunks(grad, weight))
    # The sum of squares may overflow float32.
    norms = [torch.linalg.vector_norm(x, dtype=torch.float64) for x in products]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return norm / math.sqrt(max(grad.numel(), 1))


@chunkwise
def _step(
    scores: Tensor, weight: Tensor, drawn: Tensor, grad: Tensor, alpha: Tensor, out: Out
) -> Tensor:
    """`p - q = (p - m) + (m - q)`, both cases in one formula.

    `m - q` is `x / (1 + x)` if `m = 1`, `x / (1 - x)` if `m = 0`.
    """
    # Within these bounds, 1 + x and 1 - x are positive.
    x = (grad.to(alpha.dtype) * weight).mul_(alpha).clamp(-0.5, 0.5)
    m = as_number(drawn, alpha.dtype)
    divisor = torch.addcmul(1 - x, m, x, value=2)
    noise = torch.sigmoid(scores.to(alpha.dtype)) - m
    return torch.addcdiv(noise, x, divisor, out=out).to(scores.dtype)


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
        return intermediate(scores, self.step_size, weight=weight)

    def expected(self, scores: Tensor) -> Tensor:
        return torch.sigmoid(scores)
