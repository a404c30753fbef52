"""Straight-through threshold."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from masktorch._methods.built_in import (
    ProbabilityEstimator,
    above,
    logistic_rule,
    logit,
)


def threshold(
    scores: Tensor, tau: float = 0.5, *, weight: Tensor | None = None
) -> Tensor:
    """Straight-through threshold.

    Forward `m = 1[sigma(s) > tau]`; backward `dL/ds = g * sigma(s) * (1 - sigma(s))`. `scores` are
    floating point of any shape, `weight` and mask the same, as for all methods. `ValueError` unless
    `tau` lies in (0, 1). Source: "Super-Masks: Are They Good Initializations?" (2019), its code.

    Examples:
        >>> import torch
        >>> threshold(torch.tensor([-2.0, 0.0, 2.0]))
        tensor([0., 0., 1.])
    """
    return above(logit(tau), scores, weight, logistic_rule)


@dataclass(frozen=True)
class Threshold(ProbabilityEstimator):
    """Straight-through: `masktorch.functional.threshold`. Scores start 1 above the threshold. Usual
    training: Adam, learning rate 1e-2. `ValueError` for a `tau` outside (0, 1).

    Examples:
        >>> import torch
        >>> Threshold().mode(torch.tensor([-1.0, 1.0]))
        tensor([False,  True])
    """

    tau: float = 0.5
    draws: ClassVar[bool] = False

    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return threshold(scores, self.tau, weight=weight)
