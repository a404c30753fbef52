"""The largest scores of a tensor (edge-popup, movement pruning)."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from masktorch._checks import Block, check_block, check_density, check_flag
from masktorch._kernels import top_k
from masktorch._kernels.autograd import masked
from masktorch._kernels.selecting import select
from masktorch._kernels.top_k import count
from masktorch._methods.ranked import Ranked, by_means, straight_rule, tiled
from masktorch._sharding import whole


def topk(
    scores: Tensor,
    density: float | Tensor,
    *,
    absolute: bool = True,
    block: Block | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """The largest scores.

    Forward `m = 1` at the `k = max(1, floor(density * n + 1/2))` largest `|s|` of the `n` entries,
    or the largest `s` with `absolute=False`; backward `dL/ds = g * sign(s)` with `sign(0) = 1`, or
    `g`. Among equal scores the lower row-major index stays, -0.0 equals 0.0, and one that is not a
    number counts as the largest. `block=(rows, columns)` tiles the first two dimensions, kernel
    positions go together, None is the whole dimension: the `k` of the `n` blocks with the largest
    mean `|s|` (or `s`) are kept, and `g` becomes its mean over the block.

    `ValueError` unless `density` lies in (0, 1] (a 0-d tensor is taken as it is) and blocks divide
    the shape. Sources: edge-popup, Ramanujan et al. (arXiv 1911.13299); with `absolute=False`
    movement pruning, Sanh et al. (arXiv 2005.07683).

    Examples:
        >>> topk(torch.tensor([-3.0, 1.0, 2.0, 0.0]), 0.5)
        tensor([1., 0., 1., 0.])
    """
    check_flag("topk()", "absolute", absolute)
    if not isinstance(density, Tensor):
        check_density(density, "topk()")
    kept = keeps_largest(scores, density, absolute=absolute, block=block)
    return masked(scores, weight, kept, select, straight_rule(absolute, block))


def keeps_largest(
    scores: Tensor,
    density: float | Tensor,
    *,
    absolute: bool = True,
    block: Block | None = None,
) -> Tensor:
    """The mask of `topk`, as a bool tensor shaped like `scores`."""
    if block is not None:
        check_block(block, tuple(scores.shape))

    def kept(scores: Tensor) -> Tensor:
        if block is None:
            return _largest(scores, density, absolute)
        sizes = scores.abs() if absolute else scores
        return by_means(
            sizes.double(), block, lambda means: _largest(means, density, False)
        )

    return whole(kept, scores.detach())


def _largest(values: Tensor, density: float | Tensor, absolute: bool) -> Tensor:
    """To compiled code one operation on a tensor: another density is no other graph."""
    if torch.compiler.is_compiling():
        number = density * torch.ones((), dtype=torch.float64, device="cpu")
        return cast(Tensor, _operation(values, number, absolute))
    k = count(float(density), values.numel())
    return top_k.largest_of([values], k, absolute=absolute)[0]


@torch.library.custom_op("masktorch::largest", mutates_args=())
def _operation(values: Tensor, density: Tensor, absolute: bool) -> Tensor:
    return torch.empty_like(values, dtype=torch.bool).copy_(
        _largest(values, density, absolute)
    )


@_operation.register_fake
def _(values: Tensor, density: Tensor, absolute: bool) -> Tensor:
    return torch.empty_like(values, dtype=torch.bool)


@dataclass(frozen=True)
class TopK(Ranked):
    """The largest scores, exactly as many as the density says: `masktorch.functional.topk`.

    `block=(1, None)` keeps output channels, `(None, 1)` input channels. Scores start
    Kaiming-uniform (a = sqrt(5), from torch's random stream). Usual training: SGD, learning rate
    0.1, momentum 0.9, cosine schedule, on weights from `masktorch.init.signed_constant_`.
    `ValueError` for a density outside (0, 1] or block lengths below 1, `TypeError` for no numbers.

    Examples:
        >>> import torch
        >>> TopK(0.5).mode(torch.tensor([-3.0, 1.0, 2.0, 0.0]))
        tensor([ True, False,  True, False])
    """

    __module__ = "masktorch"

    density: float = 0.5
    absolute: bool = field(default=True, kw_only=True)
    block: Block | None = field(default=None, kw_only=True)
    # The density as an input of compiled code; derived, so no part of the value.
    _number: ClassVar[Tensor]

    def __post_init__(self) -> None:
        check_density(self.density, "TopK")
        check_flag("TopK", "absolute", self.absolute)
        if self.block is not None:
            check_block(self.block)
        object.__setattr__(self, "density", float(self.density))
        number = torch.tensor(self.density, dtype=torch.float64, device="cpu")
        object.__setattr__(self, "_number", number)

    def __getstate__(self) -> dict[str, Any]:
        return {k: value for k, value in self.__dict__.items() if k != "_number"}

    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return topk(
            scores,
            self._number,
            absolute=self.absolute,
            block=self.block,
            weight=weight,
        )

    def mode(self, scores: Tensor) -> Tensor:
        return keeps_largest(
            scores, self._number, absolute=self.absolute, block=self.block
        )

    def _rivals(self, tensor: Tensor) -> Tensor:
        if self.block is None:
            return tensor.reshape(1, -1, 1)
        return tiled(tensor, self.block).flatten(2).flatten(0, 1)[None]
