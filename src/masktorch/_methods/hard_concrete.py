"""Hard concrete gates: relaxed Bernoulli draws, stretched beyond [0, 1] and clipped.

Source: Louizos et al., "Learning Sparse Neural Networks through L0 Regularization"
(arXiv 1712.01312).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor
from typing_extensions import override

from masktorch._checks import check_number
from masktorch._kernels.autograd import masked
from masktorch._kernels.chunked import Out, chunkwise
from masktorch._kernels.dtypes import converted, wide
from masktorch._kernels.scaling import affine, scaled
from masktorch._methods.built_in import straight_through
from masktorch._methods.concrete import following, is_differentiated, noisy_logits
from masktorch._methods.rules import sigmoid_backward
from masktorch._methods.score_threshold import Thresholded, logit


def hard_concrete(
    scores: Tensor,
    beta: float = 2 / 3,
    gamma: float = -0.1,
    zeta: float = 1.1,
    generator: Generator | None = None,
    *,
    weight: Tensor | None = None,
) -> Tensor:
    """Draw a hard concrete mask: exactly 0, exactly 1, or between them.

    With `u` uniform on (0, 1) and `y = sigma((logit(u) + s) / beta)`: forward
    `z = min(1, max(0, y * (zeta - gamma) + gamma))`; backward
    `dL/ds = g * (zeta - gamma) * y * (1 - y) / beta` where `0 < z < 1`, else 0.

    Args:
        scores: floating point, any shape.
        beta: the temperature, positive.
        gamma: the lower end of the interval that `y` is stretched to, below 0.
        zeta: its upper end, above 1.
        generator: where random numbers come from; PyTorch's own by default.
        weight: return `weight * z` in its dtype, instead of `z` in the scores'.

    Raises:
        ValueError: unless `gamma < 0`, `zeta > 1` and `beta > 0`.

    Source: Louizos et al. (arXiv 1712.01312).

    Examples:
        >>> hard_concrete(torch.tensor([-50.0, 50.0]))
        tensor([0., 1.])
    """
    caller = "hard_concrete()"
    check_number(caller, "beta", beta, 0)
    check_number(caller, "gamma", gamma, high=0)
    check_number(caller, "zeta", zeta, 1)
    return _hard_concrete(scores, beta, gamma, zeta, generator, weight)


def _hard_concrete(
    scores: Tensor,
    beta: float,
    gamma: float,
    zeta: float,
    generator: Generator | None,
    weight: Tensor | None,
) -> Tensor:
    # Numbers are computed out here: Dynamo can't compute any within a rule.
    width, sharpness = zeta - gamma, 1 / beta
    steepness = width * sharpness
    # where the stretched y is 0 and 1
    low, high = -gamma / width, (1 - gamma) / width

    @chunkwise
    def product(y: Tensor, weight: Tensor, out: Out) -> Tensor:
        z = affine(y, width, gamma).clamp(0, 1)
        return converted(torch.mul(weight, z, out=out), weight.dtype)

    @chunkwise
    def rule(
        scores: Tensor, weight: Tensor, y: Tensor, grad: Tensor, out: Out
    ) -> Tensor:
        """`dL/ds = g * width * y * (1 - y) / beta` where `0 < z < 1`, else 0."""
        if is_differentiated(scores):
            logits = following(torch.logit(y), scores, sharpness)
            y = straight_through(y, torch.sigmoid(logits))
        g = wide(grad, scores) * weight
        g = hardtanh_backward(g, y, low, high)
        slope = scaled(sigmoid_backward(g, y), steepness, out)
        return converted(slope, scores.dtype)

    y = scaled(noisy_logits(scores.detach(), generator), sharpness).sigmoid_()
    return masked(scores, weight, y, product, rule)


hardtanh_backward: Callable[[Tensor, Tensor, float, float], Tensor]
hardtanh_backward = torch.ops.aten.hardtanh_backward.default


@dataclass(frozen=True)
class HardConcrete(Thresholded):
    """Draw the hard concrete gates of L0 regularisation.

    The formula is `masktorch.functional.hard_concrete`. The deterministic mask is
    `1[s > 0]`, where the paper evaluates with gates that may lie between 0 and 1.
    Scores start at `logit(0.9)`. Usual training: Adam, with a penalty on
    `masktorch.expected_density`, the mean of `sigma(s - beta * log(-gamma / zeta))`.

    Raises:
        ValueError: unless `gamma < 0`, `zeta > 1` and `beta > 0`.

    Examples:
        >>> import torch
        >>> HardConcrete().mode(torch.tensor([-1.0, 1.0]))
        tensor([False,  True])
    """

    beta: float = 2 / 3
    gamma: float = -0.1
    zeta: float = 1.1
    start: ClassVar[float] = logit(0.9)

    @override
    def __post_init__(self) -> None:
        self._check_number("beta", 0)
        self._check_number("gamma", high=0)
        self._check_number("zeta", 1)

    @override
    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return _hard_concrete(scores, self.beta, self.gamma, self.zeta, None, weight)

    def expected(self, scores: Tensor) -> Tensor:
        return torch.sigmoid(scores - self.beta * math.log(-self.gamma / self.zeta))
