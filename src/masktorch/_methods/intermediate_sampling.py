"""Intermediate sampling."""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from masktorch._checks import check_number
from masktorch._kernels.autograd import masked
from masktorch._kernels.chunked import Out, chunks, chunkwise
from masktorch._kernels.random import drawn_mask
from masktorch._kernels.selecting import as_number, select
from masktorch._methods.built_in import ProbabilityEstimator, wide


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
        # alpha would overflow half precision
        products = (wide(g, scores) * w for g, w in chunks(grad, weight))
        norms = [
            torch.linalg.vector_norm(x, dtype=torch.float64) for x in products
        ]  # no overflow
        rms = torch.linalg.vector_norm(torch.stack(norms)) / math.sqrt(
            max(grad.numel(), 1)
        )
        scale = wide(rms, scores) / step_size
        alpha = scale.clamp(min=torch.finfo(scale.dtype).tiny).reciprocal()
        return _step(scores, weight, drawn, grad, alpha)

    return masked(scores, weight, drawn_mask(scores, generator), select, rule)


@chunkwise
def _step(
    scores: Tensor, weight: Tensor, drawn: Tensor, grad: Tensor, alpha: Tensor, out: Out
) -> Tensor:
    """`p - q`, both cases in one: `m - q = x / (1 + x)` where m = 1, `x / (1 - x)` where m = 0."""
    x = (grad.to(alpha.dtype) * weight).mul_(alpha).clamp(-0.5, 0.5)  # 1 +- x > 0
    m = as_number(drawn, alpha.dtype)
    divisor = torch.addcmul(1 - x, m, x, value=2)
    noise = torch.sigmoid(scores.to(alpha.dtype)) - m
    return torch.addcdiv(noise, x, divisor, out=out).to(scores.dtype)


@dataclass(frozen=True)
class IntermediateSampling(ProbabilityEstimator):
    """Intermediate sampling: `masktorch.functional.intermediate`. Start, training and `tau` as for
    `Threshold`, which raises the same; `ValueError` too for a `step_size` that is not positive.

    The gradient does not grow with the loss: give back to each `scores.grad` what the `unscale_` of
    a `torch.amp.GradScaler` divides it by, `scores.grad.mul_(scaler.get_scale())`.

    Examples:
        >>> IntermediateSampling(step_size=0.2)
        IntermediateSampling(step_size=0.2, tau=0.5)
    """

    step_size: float = 0.1
    tau: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("IntermediateSampling", "step_size", self.step_size, 0)

    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return intermediate(scores, self.step_size, weight=weight)
