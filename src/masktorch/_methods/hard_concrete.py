"""Hard concrete gates: relaxed Bernoulli draws, stretched beyond [0, 1] and clipped.

Source: Louizos et al., "Learning Sparse Neural Networks through L0 Regularization"
(arXiv 1712.01312).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.nn.functional import hardtanh
from typing_extensions import override

from masktorch._methods.built_in import times
from masktorch._methods.concrete import noisy_logits
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
        gamma, zeta: the interval that `y` is stretched to, `gamma < 0 < 1 < zeta`.
        generator: where random numbers come from; PyTorch's own by default.
        weight: return `weight * z` in its dtype, instead of `z` in the scores'.

    Source: Louizos et al. (arXiv 1712.01312).

    Examples:
        >>> hard_concrete(torch.tensor([-50.0, 50.0]))
        tensor([0., 1.])
    """
    y = torch.sigmoid(noisy_logits(scores, generator) / beta)
    mask = hardtanh(y * (zeta - gamma) + gamma, 0.0, 1.0).to(scores.dtype)
    return times(weight, mask)


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
        return hard_concrete(scores, self.beta, self.gamma, self.zeta, weight=weight)

    def expected(self, scores: Tensor) -> Tensor:
        return torch.sigmoid(scores - self.beta * math.log(-self.gamma / self.zeta))
