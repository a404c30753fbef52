"""What the estimators that keep a fixed number share."""

import math
from collections.abc import Callable
from typing import ClassVar, cast

import torch
from torch import Tensor

from masktorch._checks import Block
from masktorch._kernels.autograd import Rule
from masktorch._kernels.chunked import Out, chunkwise, is_plain
from masktorch._kernels.selecting import select
from masktorch._methods.built_in import BuiltIn, wide, widened
from masktorch._sharding import whole


class Ranked(BuiltIn):
    """Of so many rivals a fixed number is kept, the largest."""

    draws: ClassVar[bool] = False
    absolute: bool
    _rivals: Callable[[Tensor], Tensor]  # as (groups, rivals, entries that go together)

    def init(self, weight: Tensor) -> Tensor:
        bound = 1 / math.sqrt(max(math.prod(weight.shape[1:] or weight.shape), 1))
        scores = torch.empty_like(
            weight, dtype=widened(weight.dtype), requires_grad=False
        )
        return scores.uniform_(-bound, bound)

    def mode_product(self, scores: Tensor, weight: Tensor) -> Tensor:
        if is_plain(scores):
            return self.product(scores.detach(), weight)
        return select(
            self.mode(scores), weight
        )  # which forward mode can differentiate too

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
        sizes = (values.abs() if self.absolute else values).mean(
            -1, dtype=torch.float64
        )
        tied = kept & (
            sizes <= sizes.masked_fill(kept, -math.inf).amax(1, keepdim=True)
        )
        low, limits = values[tied], torch.finfo(scores.dtype)
        step = (low.abs() * limits.eps).clamp(min=limits.tiny)
        values[tied] = torch.where((low < 0) & self.absolute, low - step, low + step)
        index = torch.arange(scores.numel(), device=scores.device).view(scores.shape)
        flat = scores.new_empty(scores.numel())
        flat[self._rivals(index).flatten()] = (
            values.flatten()
        )  # put_ is not deterministic
        return torch.empty_like(scores).copy_(flat.view(scores.shape))


def straight_rule(absolute: bool, block: Block | None = None) -> Rule:
    """`g`, or `g * sign(s)` with `sign(0) = 1`; by blocks with the mean of `g`."""

    @chunkwise
    def rule(
        scores: Tensor, weight: Tensor, read: Tensor, grad: Tensor, out: Out
    ) -> Tensor:
        g = torch.mul(wide(grad, scores), weight, out=out)
        if absolute:
            g.mul_(scores.detach().sign().add_(0.5).sign_())
        return g.to(scores.dtype)

    def by_blocks(scores: Tensor, weight: Tensor, read: Tensor, grad: Tensor) -> Tensor:
        g = wide(grad, scores) * weight
        mean = by_means(g, cast(Block, block), lambda means: means.to(scores.dtype))
        return rule(scores, scores.new_ones(()), read, mean)

    return rule if block is None else by_blocks


def tiled(tensor: Tensor, block: Block) -> Tensor:
    """A view by blocks: (blocks down, blocks across, rows, columns, kernel positions)."""
    rows, columns = (
        length or size or 1 for length, size in zip(block, tensor.shape, strict=False)
    )
    down, across = tensor.shape[0] // rows, tensor.shape[1] // columns
    return tensor.view(down, rows, across, columns, *tensor.shape[2:]).transpose(1, 2)


def by_means(
    tensor: Tensor, block: Block, function: Callable[[Tensor], Tensor]
) -> Tensor:
    """A function of the means of blocks, on all entries of each."""
    tiles = tiled(tensor, block)
    means = tiles.mean(tuple(range(2, tiles.dim())), keepdim=True)
    return (
        function(means)
        .expand(tiles.shape)
        .transpose(1, 2)
        .reshape(tensor.shape)
        .contiguous()
    )
