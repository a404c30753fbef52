"""What the estimators that keep the largest scores of each group share."""

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from masktorch._kernels.dtypes import at_least_float32
from masktorch._methods.built_in import BuiltIn
from masktorch._sharding import whole


class Ranked(BuiltIn):
    """Base class of the estimators that keep the largest scores of each group.

    How many they keep does not depend on the scores. With `absolute`, magnitudes count.
    """

    draws: ClassVar[bool] = False
    absolute: bool

    @abstractmethod
    def _groups(self, tensor: Tensor) -> Tensor:
        """Lay a tensor out as (groups, entries that compete)."""

    @override
    def init(self, weight: Tensor) -> Tensor:
        """Start Kaiming-uniform with a = sqrt(5), from torch's random stream."""
        fan_in = max(math.prod(weight.shape[1:] or weight.shape), 1)
        bound = 1 / math.sqrt(fan_in)
        scores = torch.empty_like(
            weight, dtype=at_least_float32(weight.dtype), requires_grad=False
        )
        return scores.uniform_(-bound, bound)

    def expected(self, scores: Tensor) -> Tensor:
        # a constant: how many are kept does not depend on the scores
        return self(scores.detach())

    @override
    def scores_for(self, scores: Tensor, mask: Tensor) -> Tensor:
        return whole(self._scores_for, scores, mask)

    def _scores_for(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Swap scores between entries to keep and entries to mask, then break ties."""
        keep, now = self._groups(mask), self._groups(self.mode(scores))
        self._check_counts(keep, now)
        if torch.equal(keep, now):
            return scores
        values = self._groups(scores).clone()
        rising, falling = keep & ~now, now & ~keep
        # A bool mask indexes in row-major order, and every group has as many rising as
        # falling entries. So the i-th of each lie in one group.
        values[rising], values[falling] = values[falling], values[rising]
        self._break_ties(values, keep)
        return self._ungroup(values, scores)

    def _check_counts(self, keep: Tensor, now: Tensor) -> None:
        """Raise unless a mask keeps as many entries of each group as this estimator."""
        wanted, kept = keep.sum(1), now.sum(1)
        if torch.equal(wanted, kept):
            return
        group = int((wanted != kept).nonzero()[0])
        raise ValueError(
            f"{self!r} keeps {int(kept[group])} of {keep.shape[1]} entries, the mask "
            f"{int(wanted[group])}. Call masktorch.set_density or "
            "masktorch.set_estimator first."
        )

    def _break_ties(self, values: Tensor, keep: Tensor) -> None:
        """Raise the kept values that do not exceed every masked one, in place.

        They move by one rounding step.
        """
        sizes = values.abs() if self.absolute else values
        largest_masked = sizes.masked_fill(keep, -math.inf).amax(1, keepdim=True)
        tied = keep & (sizes <= largest_masked)
        low, limits = values[tied], torch.finfo(values.dtype)
        step = (low.abs() * limits.eps).clamp(min=limits.tiny)
        away_from_zero = torch.where(low < 0, low - step, low + step)
        values[tied] = away_from_zero if self.absolute else low + step

    def _ungroup(self, values: Tensor, like: Tensor) -> Tensor:
        """Undo `_groups`, in the layout of `like`."""
        index = torch.arange(like.numel(), device=like.device).view(like.shape)
        flat = like.new_empty(like.numel())
        flat[self._groups(index).flatten()] = values.flatten()
        return torch.empty_like(like).copy_(flat.view(like.shape))
