"""The estimators that keep a fixed number: as many as a density says, or n of every m."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from masktorch.blocks import is_plain
from masktorch.checks import Block, check_block, check_density, check_flag, check_n_of_m
from masktorch.estimators import Method
from masktorch.ranks import keeps_largest, keeps_n_of_m, n_of_m, tiled, topk
from masktorch.selection import select, whole


class _Ranked(Method):
    """Of so many rivals a fixed number is kept, the largest."""

    draws: ClassVar[bool] = False
    absolute: bool
    _rivals: Callable[[Tensor], Tensor]  # as (groups, rivals, entries that go together)

    def init(self, weight: Tensor) -> Tensor:
        bound = 1 / math.sqrt(max(math.prod(weight.shape[1:] or weight.shape), 1))
        return torch.empty_like(weight, requires_grad=False).uniform_(-bound, bound)

    def mode_product(self, scores: Tensor, weight: Tensor) -> Tensor:
        if is_plain(scores):
            return self.product(scores.detach(), weight)
        return select(self.mode(scores), weight)  # which forward mode can differentiate too

    def expected(self, scores: Tensor) -> Tensor:
        return self(scores.detach())  # how many it keeps does not depend on them

    def scores_for(self, scores: Tensor, mask: Tensor) -> Tensor:
        """The scores, exchanged between those on the wrong sides; of equal ones then on both sides,
        those kept are raised by a rounding step. A mask of another count stays unmet."""
        return whole(self._exchanged, scores, mask)

    def _exchanged(self, scores: Tensor, mask: Tensor) -> Tensor:
        kept, now = (self._rivals(m).any(-1) for m in (mask, self.mode(scores)))
        rising, falling = kept & ~now, now & ~kept
        if not rising.any() or rising.sum() != falling.sum():
            return scores
        values = self._rivals(scores).clone()
        values[rising], values[falling] = values[falling], values[rising]
        sizes = (values.abs() if self.absolute else values).mean(-1, dtype=torch.float64)
        tied = kept & (sizes <= sizes.masked_fill(kept, -math.inf).amax(1, keepdim=True))
        low, limits = values[tied], torch.finfo(scores.dtype)
        step = (low.abs() * limits.eps).clamp(min=limits.tiny)
        values[tied] = torch.where((low < 0) & self.absolute, low - step, low + step)
        index = torch.arange(scores.numel(), device=scores.device).view(scores.shape)
        flat = scores.new_empty(scores.numel())
        flat[self._rivals(index).flatten()] = values.flatten()  # put_ is not deterministic
        return torch.empty_like(scores).copy_(flat.view(scores.shape))


@dataclass(frozen=True)
class TopK(_Ranked):
    """The largest scores, exactly as many as the density says: `masktorch.functional.topk`.

    `block=(1, None)` keeps output channels, `(None, 1)` input channels. Scores start
    Kaiming-uniform (a = sqrt(5), from torch's random stream). Usual training: SGD, learning rate
    0.1, momentum 0.9, cosine schedule, on weights from `masktorch.init.signed_constant_`.
    `ValueError` for a density outside (0, 1] or block lengths below 1, `TypeError` for no numbers.

    Examples:
        >>> TopK(0.5).mode(torch.tensor([-3.0, 1.0, 2.0, 0.0]))
        tensor([ True, False,  True, False])
    """

    density: float = 0.5
    absolute: bool = field(default=True, kw_only=True)
    block: Block | None = field(default=None, kw_only=True)
    _number: ClassVar[Tensor]

    def __post_init__(self) -> None:
        check_density(self.density, "TopK")
        check_flag("TopK", "absolute", self.absolute)
        if self.block is not None:
            check_block(self.block)
        object.__setattr__(self, "density", float(self.density))
        # an input of compiled code, so that another density is not another graph
        number = torch.tensor(self.density, dtype=torch.float64, device="cpu")
        object.__setattr__(self, "_number", number)

    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return topk(scores, self._number, absolute=self.absolute, block=self.block, weight=weight)

    def mode(self, scores: Tensor) -> Tensor:
        return keeps_largest(scores, self._number, absolute=self.absolute, block=self.block)

    def _rivals(self, tensor: Tensor) -> Tensor:
        if self.block is None:
            return tensor.reshape(1, -1, 1)
        return tiled(tensor, self.block).flatten(2).flatten(0, 1)[None]


@dataclass(frozen=True)
class NOfM(_Ranked):
    """The `n` largest scores of every `m` along dimension 1: `masktorch.functional.n_of_m`. Start
    and training as for `TopK`. `ValueError` unless `1 <= n <= m`, `TypeError` for no numbers.

    Examples:
        >>> NOfM(1, 2).mode(torch.tensor([[-3.0, 1.0, 2.0, 0.0]]))
        tensor([[ True, False,  True, False]])
    """

    n: int = 2
    m: int = 4
    absolute: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        check_n_of_m(self.n, self.m)
        check_flag("NOfM", "absolute", self.absolute)

    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return n_of_m(scores, self.n, self.m, absolute=self.absolute, weight=weight)

    def mode(self, scores: Tensor) -> Tensor:
        return keeps_n_of_m(scores, self.n, self.m, absolute=self.absolute)

    def _rivals(self, tensor: Tensor) -> Tensor:
        return torch.unflatten(tensor, 1, (-1, self.m)).movedim(2, -1).reshape(-1, self.m, 1)
