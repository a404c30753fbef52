"""The estimators that keep a fixed number: as many as a density says, or n of every m."""

import math
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from torch import Tensor

from masktorch import ranks
from masktorch.blocks import is_plain
from masktorch.checks import Block, check_block, check_density, check_n_of_m, check_switch
from masktorch.estimators import Method
from masktorch.selection import select, whole


class _Ranked(Method):
    """What the two share: of so many rivals a fixed number is kept, the largest."""

    draws: ClassVar[bool] = False
    absolute: bool

    def _rivals(self, tensor: Tensor) -> Tensor:
        """As (groups, rivals within the group, entries that are kept or masked as one)."""
        raise NotImplementedError

    def init(self, weight: Tensor) -> Tensor:
        """Uniform in `+-1 / sqrt(fan_in)` (Kaiming-uniform, a = sqrt(5)), from torch's stream."""
        fan_in = math.prod(weight.shape[1:]) if weight.dim() > 1 else weight.numel()
        bound = 1 / math.sqrt(max(fan_in, 1))
        return torch.empty_like(weight, requires_grad=False).uniform_(-bound, bound)

    def mode_product(self, scores: Tensor, weight: Tensor) -> Tensor:
        if is_plain(scores):
            return self.product(scores.detach(), weight)
        return select(self.mode(scores), weight)  # which forward mode can differentiate too

    def expected(self, scores: Tensor) -> Tensor:
        """The mask, without a gradient: how many it keeps does not depend on the scores."""
        return self(scores.detach())

    def scores_for(self, scores: Tensor, mask: Tensor) -> Tensor:
        """The scores, exchanged between those on the wrong sides; where equal ones are on both
        sides then, those kept are raised by a rounding step.

        Raises `ValueError` for a mask of the wrong count, or that keeps a part of a block.
        """
        return whole(self._exchanged, scores, mask)

    def _exchanged(self, scores: Tensor, mask: Tensor) -> Tensor:
        entries, now = self._rivals(mask), self._rivals(self.mode(scores)).any(-1)
        kept, found, places = entries.any(-1), entries.any(-1).sum(1), now.sum(1)
        if not torch.equal(kept, entries.all(-1)):
            raise ValueError(f"{self!r} keeps whole blocks, found one that is kept in part.")
        if other := found[found != places].tolist():
            raise ValueError(
                f"{self!r} keeps {places[0]} of {kept.shape[1]}, found {other[0]} kept: give it a "
                "mask of that count."
            )
        values = self._rivals(scores).clone()
        rising, falling = kept & ~now, now & ~kept
        values[rising], values[falling] = values[falling], values[rising]
        sizes = (values.abs() if self.absolute else values).mean(-1, dtype=torch.float64)
        tied = kept & (sizes <= sizes.masked_fill(kept, -math.inf).amax(1, keepdim=True))
        low, limits = values[tied], torch.finfo(scores.dtype)
        step = (low.abs() * limits.eps).clamp(min=limits.tiny)
        values[tied] = torch.where((low < 0) & self.absolute, low - step, low + step)
        index = torch.arange(scores.numel(), device=scores.device).view(scores.shape)
        return torch.empty_like(scores).put_(self._rivals(index), values)


@final
@dataclass(frozen=True)
class TopK(_Ranked):
    """The largest scores, exactly as many as the density says: `masktorch.functional.topk`.

    `TopK(density)` is edge-popup (arXiv 1911.13299), `absolute=False` movement pruning
    (2005.07683), `block=(rows, columns)` keeps whole blocks: `(1, None)` output channels,
    `(None, 1)` input channels. Scores start Kaiming-uniform (a = sqrt(5), from torch's random
    stream). Usual training: SGD, learning rate 0.1, momentum 0.9, cosine schedule, on weights from
    `masktorch.init.signed_constant_`. Raises `ValueError` or `TypeError` for a density outside
    (0, 1] or a block of anything but positive whole numbers and at most one None.

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
        check_switch("TopK", "absolute", self.absolute)
        if self.block is not None:
            check_block(self.block)
        object.__setattr__(self, "density", float(self.density))
        # what compiled code takes as an input, so that another density is not another graph
        number = torch.tensor(self.density, dtype=torch.float64, device="cpu")
        object.__setattr__(self, "_number", number)

    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return ranks.topk(
            scores, self._number, absolute=self.absolute, block=self.block, weight=weight
        )

    def mode(self, scores: Tensor) -> Tensor:
        return ranks.keeps_largest(scores, self._number, absolute=self.absolute, block=self.block)

    def _rivals(self, tensor: Tensor) -> Tensor:
        if self.block is None:
            return tensor.reshape(1, -1, 1)
        tiles = ranks.tiled(tensor.contiguous(), self.block)
        return tiles.reshape(1, math.prod(tiles.shape[:2]), -1)


@final
@dataclass(frozen=True)
class NOfM(_Ranked):
    """The `n` largest scores of every `m` along dimension 1: `masktorch.functional.n_of_m`.

    The 2:4 pattern (arXiv 2104.08378) and its kin, learned as edge-popup is: start and training as
    for `TopK`. Raises `ValueError` or `TypeError` unless `1 <= n <= m`, both whole numbers.

    Examples:
        >>> NOfM(1, 2).mode(torch.tensor([[-3.0, 1.0, 2.0, 0.0]]))
        tensor([[ True, False,  True, False]])
    """

    n: int = 2
    m: int = 4
    absolute: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        check_n_of_m(self.n, self.m)
        check_switch("NOfM", "absolute", self.absolute)

    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return ranks.n_of_m(scores, self.n, self.m, absolute=self.absolute, weight=weight)

    def mode(self, scores: Tensor) -> Tensor:
        return ranks.keeps_n_of_m(scores, self.n, self.m, absolute=self.absolute)

    def _rivals(self, tensor: Tensor) -> Tensor:
        return torch.unflatten(tensor, 1, (-1, self.m)).movedim(2, -1).reshape(-1, self.m, 1)
