"""What the estimators with the deterministic mask `1[s > at]` share."""

import math
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from masktorch._checks import check_number
from masktorch._kernels.autograd import Rule, masked
from masktorch._kernels.chunked import Out, chunkwise
from masktorch._kernels.dtypes import at_least_float32
from masktorch._kernels.selecting import apply_test, rounded_down, select_above
from masktorch._methods.built_in import BuiltIn


class Thresholded(BuiltIn):
    """Base class of the estimators whose deterministic mask is `1[s > at]`.

    Scores start `start` above `at`, so that a fresh model evaluates as the plain one.
    """

    start: ClassVar[float] = 1.0

    @property
    def at(self) -> float:
        return 0.0

    @override
    def init(self, weight: Tensor) -> Tensor:
        dtype = at_least_float32(weight.dtype)
        start = min(self.at + self._distance(self.start), torch.finfo(dtype).max)
        return torch.full_like(weight, start, dtype=dtype)

    @override
    def mode(self, scores: Tensor) -> Tensor:
        return is_above(self.at, scores)

    @override
    def mode_product(self, scores: Tensor, weight: Tensor) -> Tensor:
        return weight_where_above(self.at, scores, weight)

    @override
    def scores_for(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Move the scores at the threshold, or on its wrong side, to beyond it."""
        limits, distance = torch.finfo(scores.dtype), self._distance(1.0)
        if_kept = min(self.at + distance, limits.max)
        if_masked = max(self.at - distance, limits.min)
        moved = mask.to(scores.dtype).mul_(if_kept - if_masked).add_(if_masked)
        decided = (self.mode(scores) == mask) & (scores != self.at)
        return torch.where(decided, scores, moved)

    def _distance(self, least: float) -> float:
        """Return how far beyond `at` to put a score: `least`, or 1 % of `at` if that is
        more, because half precision would round a smaller step away."""
        return max(least, abs(self.at) / 100)


class ProbabilityEstimator(Thresholded):
    """Base class of the estimators that keep an entry with probability `sigma(s)`.

    Their deterministic mask is `1[sigma(s) > tau]`.
    """

    tau: float

    @override
    def __post_init__(self) -> None:
        self._check_number("tau", 0, 1)

    @property
    @override
    def at(self) -> float:
        return math.log(self.tau / (1 - self.tau))


def logit(tau: float, caller: str = "threshold()") -> float:
    """Return the score `s` at which `sigma(s) = tau`, for `tau` in (0, 1)."""
    check_number(caller, "tau", tau, 0, 1)
    return math.log(tau / (1 - tau))


def is_above(at: float, scores: Tensor) -> Tensor:
    """Return `1[s > at]` as bools; NaN is kept."""
    at = rounded_down(at, scores.dtype)

    @chunkwise
    def above(scores: Tensor, out: Out) -> Tensor:
        # not `>`: NaN is kept
        return apply_test(lambda values: ~(values <= at), scores, out)

    return above(scores.detach())


def weight_where_above(at: float, scores: Tensor, weight: Tensor) -> Tensor:
    """Return `weight * 1[s > at]`, differentiable by the weight.

    No tensor is made for the mask.
    """
    return select_above(scores.detach(), weight, rounded_down(at, scores.dtype))


def masked_above(
    at: float, scores: Tensor, weight: Tensor | None, rule: Rule
) -> Tensor:
    """Return `weight * 1[s > at]`, or that mask; the scores get the rule's gradient."""
    at = rounded_down(at, scores.dtype) if at else at
    return masked(scores, weight, None, lambda s, w: select_above(s, w, at), rule)
