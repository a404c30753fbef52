"""Piggyback: a threshold on the score itself.

Source: Mallya et al., "Piggyback: Adapting a Single Network to Multiple Tasks by
Learning to Mask Weights" (arXiv 1801.06519).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from masktorch._checks import check_number
from masktorch._methods.rules import identity_rule
from masktorch._methods.score_threshold import Thresholded, masked_above

LARGEST = torch.finfo(torch.float32).max


def piggyback(
    scores: Tensor, threshold: float = 5e-3, *, weight: Tensor | None = None
) -> Tensor:
    """Keep the entries with `s > threshold`.

    Forward `m = 1[s > threshold]`; backward `dL/ds = g`.

    Args:
        scores: floating point, any shape.
        threshold: the score above which an entry is kept.
        weight: return `weight * m` in its dtype, instead of `m` in the scores'.

    Raises:
        ValueError: if `threshold` is not a finite float32 number.

    Source: Mallya et al. (arXiv 1801.06519).

    Examples:
        >>> import torch
        >>> piggyback(torch.tensor([-1.0, 0.01]))
        tensor([0., 1.])
    """
    check_number("piggyback()", "threshold", threshold, -LARGEST, LARGEST)
    return masked_above(threshold, scores, weight, identity_rule)


@dataclass(frozen=True)
class Piggyback(Thresholded):
    """Keep the entries with `s > threshold`.

    The formula is `masktorch.functional.piggyback`. Scores start 5e-3 above the
    threshold, or 1 % of it if that is more. Usual training: pretrained weights, Adam,
    learning rate 1e-4.

    Raises:
        ValueError: if `threshold` is not a finite float32 number.

    Examples:
        >>> import torch
        >>> Piggyback().mode(torch.tensor([0.0, 1e-2]))
        tensor([False,  True])
    """

    threshold: float = 5e-3
    draws: ClassVar[bool] = False
    start: ClassVar[float] = 5e-3

    @override
    def __post_init__(self) -> None:
        self._check_number("threshold", -LARGEST, LARGEST)

    @property
    @override
    def at(self) -> float:
        return self.threshold

    @override
    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return masked_above(self.threshold, scores, weight, identity_rule)
