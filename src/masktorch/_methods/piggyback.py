"""Piggyback: a threshold on the score itself."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from masktorch._checks import check_number
from masktorch._methods.built_in import BuiltIn, above
from masktorch._methods.ranked import straight_rule


def piggyback(
    scores: Tensor, threshold: float = 5e-3, *, weight: Tensor | None = None
) -> Tensor:
    """Threshold on the score itself, with the identity for a gradient.

    Forward `m = 1[s > threshold]`; backward `dL/ds = g`. Source: Mallya et al. (arXiv 1801.06519).

    Examples:
        >>> import torch
        >>> piggyback(torch.tensor([-1.0, 0.01]))
        tensor([0., 1.])
    """
    return above(threshold, scores, weight, straight_rule(False))


@dataclass(frozen=True)
class Piggyback(BuiltIn):
    """A threshold on the score: `masktorch.functional.piggyback`. Scores start 5e-3 above it. Usual
    training: pretrained weights, Adam, learning rate 1e-4. `ValueError` unless it is finite.

    Examples:
        >>> import torch
        >>> Piggyback().mode(torch.tensor([0.0, 1e-2]))
        tensor([False,  True])
    """

    threshold: float = 5e-3
    draws: ClassVar[bool] = False
    start: ClassVar[float] = 5e-3

    def __post_init__(self) -> None:
        check_number("Piggyback", "threshold", self.threshold)

    @property
    def at(self) -> float:
        return self.threshold

    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return piggyback(scores, self.threshold, weight=weight)
