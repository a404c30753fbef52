"""Straight-through threshold: keep what has a probability above `tau`.

Source: "Super-Masks: Are They Good Initializations?" (2019). The post writes the
threshold on the raw score; its author's code applies it to `sigma(score)`, as here.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from masktorch._methods.rules import logistic_rule
from masktorch._methods.score_threshold import ProbabilityEstimator, logit, masked_above


def threshold(
    scores: Tensor, tau: float = 0.5, *, weight: Tensor | None = None
) -> Tensor:
    """Keep the entries with `sigma(s) > tau`, straight-through.

    Forward `m = 1[sigma(s) > tau]`; backward `dL/ds = g * sigma(s) * (1 - sigma(s))`.
    A score exactly at the threshold is masked; NaN is kept.

    Args:
        scores: floating point, any shape.
        tau: the probability above which an entry is kept.
        weight: return `weight * m` in its dtype, instead of `m` in the scores'.

    Raises:
        ValueError: if `tau` is not in (0, 1).

    Source: "Super-Masks: Are They Good Initializations?" (2019), its code.

    Examples:
        >>> import torch
        >>> threshold(torch.tensor([-2.0, 0.0, 2.0]))
        tensor([0., 0., 1.])
    """
    return masked_above(logit(tau), scores, weight, logistic_rule)


@dataclass(frozen=True)
class Threshold(ProbabilityEstimator):
    """Keep the entries with `sigma(s) > tau`, straight-through.

    The formula is `masktorch.functional.threshold`. Scores start 1 above the threshold.
    Usual training: Adam, learning rate 1e-2.

    Raises:
        ValueError: if `tau` is not in (0, 1).

    Examples:
        >>> import torch
        >>> Threshold().mode(torch.tensor([-1.0, 1.0]))
        tensor([False,  True])
    """

    tau: float = 0.5
    draws: ClassVar[bool] = False

    @override
    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return masked_above(self.at, scores, weight, logistic_rule)
