"""Binary concrete masks, or Gumbel-sigmoid: Bernoulli draws relaxed by a temperature.

Sources: Maddison et al., "The Concrete Distribution" (arXiv 1611.00712); Jang et al.,
"Categorical Reparameterization with Gumbel-Softmax" (arXiv 1611.01144).
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from typing_extensions import override

from masktorch._checks import check_flag, check_number
from masktorch._kernels.autograd import masked
from masktorch._kernels.chunked import Out, chunkwise, is_eager
from masktorch._kernels.dtypes import converted, wide
from masktorch._kernels.random import logistic_like
from masktorch._kernels.scaling import scaled
from masktorch._kernels.selecting import select
from masktorch._methods.rules import sigmoid_backward
from masktorch._methods.score_threshold import Thresholded


def concrete(
    scores: Tensor,
    temperature: float = 2 / 3,
    hard: bool = True,
    generator: Generator | None = None,
    *,
    weight: Tensor | None = None,
) -> Tensor:
    """Draw a Bernoulli mask relaxed by a temperature, or with the gradient of one.

    With `u` uniform on (0, 1), `T` the temperature and
    `y = sigma((s + logit(u)) / T)`: forward `m = 1[s + logit(u) > 0]` if `hard`, else
    `m = y`; backward `dL/ds = g * y * (1 - y) / T` in both cases.

    Args:
        scores: floating point, any shape.
        temperature: positive; towards 0 the relaxed draw becomes binary.
        hard: return a binary mask.
        generator: where random numbers come from; PyTorch's own by default.
        weight: return `weight * m` in its dtype, instead of `m` in the scores'.

    Raises:
        ValueError: if `temperature` is not positive and finite.
        TypeError: if `hard` is not a bool.

    Sources: arXiv 1611.00712, 1611.01144.

    Examples:
        >>> concrete(torch.tensor([-50.0, 50.0]))
        tensor([0., 1.])
    """
    check_number("concrete()", "temperature", temperature, 0)
    check_flag("concrete()", "hard", hard)
    return _concrete(scores, temperature, hard, generator, weight)


def _concrete(
    scores: Tensor,
    temperature: float,
    hard: bool,
    generator: Generator | None,
    weight: Tensor | None,
) -> Tensor:
    # Computed out here: Dynamo can't compute a number within a rule.
    sharpness = 1 / temperature

    @chunkwise
    def soft_product(noisy: Tensor, weight: Tensor, out: Out) -> Tensor:
        y = scaled(noisy, sharpness).sigmoid_()
        return converted(torch.mul(weight, y, out=out), weight.dtype)

    @chunkwise
    def rule(
        scores: Tensor, weight: Tensor, noisy: Tensor, grad: Tensor, out: Out
    ) -> Tensor:
        """`dL/ds = g * y * (1 - y) / T`, with `g = grad * weight`."""
        if is_differentiated(scores):
            noisy = following(noisy, scores)
        y = torch.sigmoid(scaled(noisy, sharpness))
        slope = sigmoid_backward(wide(grad, scores), y).mul_(weight)
        return converted(scaled(slope, sharpness, out), scores.dtype)

    noisy = noisy_logits(scores.detach(), generator)
    return masked(scores, weight, noisy, select if hard else soft_product, rule)


def noisy_logits(scores: Tensor, generator: Generator | None) -> Tensor:
    """Return `s + logit(u)`, positive with probability `sigma(s)`; at least float32."""
    logits = logistic_like(scores, generator)
    if is_eager():
        return logits.add_(scores)
    return logits + scores  # vmap may share one draw among all rows


def is_differentiated(scores: Tensor) -> bool:
    """Whether a rule is applied under `create_graph`."""
    return torch.is_grad_enabled() and scores.requires_grad


def following(value: Tensor, scores: Tensor, slope: float = 1.0) -> Tensor:
    """Return a value that has no gradient, with one of `slope` by the scores."""
    return value + slope * (scores - scores.detach())


@dataclass(frozen=True)
class Concrete(Thresholded):
    """Draw a Bernoulli mask with the gradient of a relaxed one (Gumbel-sigmoid).

    The formula is `masktorch.functional.concrete`; with `hard=False` the mask of
    training is the relaxed one. The deterministic mask is `1[s > 0]`. Scores start at
    1. Usual training: Adam, learning rate 0.1, with a penalty on
    `masktorch.expected_density`. For a falling temperature call
    `masktorch.set_estimator` with another value.

    Raises:
        ValueError: if `temperature` is not positive and finite.
        TypeError: if `hard` is not a bool.

    Examples:
        >>> Concrete(temperature=0.5)
        Concrete(temperature=0.5, hard=True)
    """

    temperature: float = 2 / 3
    hard: bool = True

    @override
    def __post_init__(self) -> None:
        self._check_number("temperature", 0)
        check_flag("Concrete", "hard", self.hard)

    @override
    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return _concrete(scores, self.temperature, self.hard, None, weight)

    def expected(self, scores: Tensor) -> Tensor:
        return torch.sigmoid(scores)

    def sample(self, scores: Tensor) -> Tensor:
        return noisy_logits(scores, None) > 0
