"""Hard concrete gates (L0 regularisation)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.nn.functional import hardtanh

from masktorch._checks import check_number
from masktorch._methods.built_in import BuiltIn, logit
from masktorch._methods.concrete import noisy_logits


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
    y = torch.sigmoid(noisy_logits(scores, generator) / beta)
    mask = hardtanh(y * (zeta - gamma) + gamma, 0.0, 1.0).to(scores.dtype)
    return mask if weight is None else (weight * mask).to(weight.dtype)


@dataclass(frozen=True)
class HardConcrete(BuiltIn):
    """The gates of L0 regularisation: `masktorch.functional.hard_concrete`. The deterministic mask
    is `1[s > 0]`, where the paper evaluates with gates that may lie between 0 and 1. Scores start
    at `logit(0.9)`. Usual training: Adam, with a penalty on `masktorch.expected_density`, of
    `sigma(s - beta * log(-gamma / zeta))`. `ValueError` unless `gamma < 0 < 1 < zeta`, `beta > 0`.

    Examples:
        >>> HardConcrete().mode(torch.tensor([-1.0, 1.0]))
        tensor([False,  True])
    """

    beta: float = 2 / 3
    gamma: float = -0.1
    zeta: float = 1.1
    start: ClassVar[float] = logit(0.9)

    def __post_init__(self) -> None:
        check_number("HardConcrete", "beta", self.beta, 0)
        check_number("HardConcrete", "gamma", self.gamma, high=0)
        check_number("HardConcrete", "zeta", self.zeta, 1)

    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return hard_concrete(scores, self.beta, self.gamma, self.zeta, weight=weight)

    def expected(self, scores: Tensor) -> Tensor:
        return torch.sigmoid(scores - self.beta * math.log(-self.gamma / self.zeta))
