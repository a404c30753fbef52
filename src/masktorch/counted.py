"""The estimators that keep a fixed number: as many as a density says, or n of every m."""

import math
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from torch import Tensor

from masktorch import ranks
from masktorch.selection import Block, count, select, select_largest, tiled, whole


class _Ranked:
    """What the two share: the number kept is fixed, and the largest scores are."""

    draws: ClassVar[bool] = False
    absolute: bool

    def _masked(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        raise NotImplementedError

    def mode(self, scores: Tensor) -> Tensor:
        """The mask, bool."""
        raise NotImplementedError

    def _rivals(self, tensor: Tensor) -> tuple[Tensor, int, tuple[int, ...]]:
        """A view in which the first dimensions number what is kept or masked as one; how many they
        are; and along which of them one competes with another."""
        raise NotImplementedError

    def _places(self, scores: Tensor) -> tuple[int, int]:
        """How many are kept, of how many that compete."""
        raise NotImplementedError

    def __call__(self, scores: Tensor) -> Tensor:
        """The mask, floating point and differentiable."""
        return self._masked(scores, None)

    def product(self, scores: Tensor, weight: Tensor) -> Tensor:
        """`weight` times the mask."""
        return self._masked(scores, weight)

    def init(self, weight: Tensor) -> Tensor:
        """Uniform in `+-1 / sqrt(fan_in)` (Kaiming-uniform, a = sqrt(5)), from torch's stream."""
        fan_in = weight[0].numel() if weight.dim() > 1 else weight.numel()
        bound = 1 / math.sqrt(max(fan_in, 1))
        return torch.empty_like(weight, requires_grad=False).uniform_(-bound, bound)

    def scores_for(self, scores: Tensor, mask: Tensor) -> Tensor:
        """The scores, exchanged between those on the wrong sides; where equal ones are on both
        sides then, those kept are raised by a rounding step.

        Raises `ValueError` for a mask of the wrong count, or that keeps a part of a block.
        """
        return whole(self._exchanged, scores, mask)

    def _exchanged(self, scores: Tensor, mask: Tensor) -> Tensor:
        scores = scores.clone(memory_format=torch.contiguous_format)
        rivals, first, compete = self._rivals(scores)

        def content(tensor: Tensor) -> Tensor:
            view, *_ = self._rivals(tensor)
            return view.reshape(*view.shape[:first], -1)

        kept = content(mask)[..., 0]
        if not torch.equal(content(mask), kept.unsqueeze(-1).expand_as(content(mask))):
            raise ValueError(f"{self!r} keeps whole blocks, found one that is kept in part.")
        (places, among), found = self._places(scores), torch.count_nonzero(kept, dim=compete)
        if other := found[found != places].tolist():
            raise ValueError(
                f"{self!r} keeps {places} of {among}, found {other[0]} kept. Give it a mask of "
                "that count, or the mask an estimator that keeps as many."
            )
        now = content(self.mode(scores))[..., 0]
        rising, falling = kept & ~now, now & ~kept
        rivals[rising], rivals[falling] = rivals[falling], rivals[rising]
        sizes = content(scores.abs() if self.absolute else scores).mean(-1, dtype=torch.float64)
        tied = kept & (sizes <= sizes.masked_fill(kept, -math.inf).amax(compete, keepdim=True))
        low, limits = rivals[tied], torch.finfo(scores.dtype)
        step = (low.abs() * limits.eps).clamp(min=limits.tiny)
        rivals[tied] = torch.where((low < 0) & self.absolute, low - step, low + step)
        return scores


@final
@dataclass(frozen=True)
class TopK(_Ranked):
    """The largest scores, exactly as many as the density says: `masktorch.functional.topk`.

    `TopK(density)` is edge-popup (arXiv 1911.13299), `absolute=False` movement pruning
    (2005.07683), `block=(rows, columns)` keeps whole blocks: `(1, None)` output channels,
    `(None, 1)` input channels. Scores start Kaiming-uniform (a = sqrt(5), from torch's random
    stream). Usual training: SGD, learning rate 0.1, momentum 0.9, cosine schedule, on weights from
    `masktorch.init.signed_constant_`. Another density is another value:
    `dataclasses.replace(estimator, density=0.1)`. Raises `ValueError` or `TypeError` for a density
    outside (0, 1] or a block of anything but positive whole numbers and at most one None.

    Examples:
        >>> TopK(0.5).mode(torch.tensor([-3.0, 1.0, 2.0, 0.0]))
        tensor([ True, False,  True, False])
    """

    density: float = 0.5
    absolute: bool = field(default=True, kw_only=True)
    block: Block | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        ranks.check_density(self.density, "TopK")
        ranks.check_absolute(self.absolute)
        if self.block is not None:
            ranks.check_lengths(self.block)
        object.__setattr__(self, "density", float(self.density))
        # what compiled code takes as an input, so that another density is not another graph
        number = torch.tensor(self.density, dtype=torch.float64, device="cpu")
        object.__setattr__(self, "_number", number)

    @property
    def _share(self) -> float | Tensor:
        return self._number if torch.compiler.is_compiling() else self.density  # type: ignore[attr-defined]

    def _masked(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return ranks.topk(
            scores, self._share, absolute=self.absolute, block=self.block, weight=weight
        )

    def mode(self, scores: Tensor) -> Tensor:
        """The mask, bool."""
        return ranks.keeps_largest(scores, self._share, absolute=self.absolute, block=self.block)

    def mode_product(self, scores: Tensor, weight: Tensor) -> Tensor:
        """`weight` times the mask."""
        if self.block is not None or torch.compiler.is_compiling():
            return select(weight, self.mode(scores))
        k = count(self.density, scores.numel())
        return select_largest(weight, scores, k, absolute=self.absolute)

    def expected(self, scores: Tensor) -> Tensor:
        """The share that is kept, at every entry: it does not depend on the scores."""
        places, among = self._places(scores)
        return torch.full_like(scores, places / max(among, 1))

    def _rivals(self, tensor: Tensor) -> tuple[Tensor, int, tuple[int, ...]]:
        if self.block is None:
            return tensor.unsqueeze(0), tensor.dim() + 1, tuple(range(tensor.dim() + 1))
        return tiled(tensor, self.block), 2, (0, 1)

    def _places(self, scores: Tensor) -> tuple[int, int]:
        view, first, _ = self._rivals(torch.empty(scores.shape, device="meta"))
        among = math.prod(view.shape[:first])
        return count(self.density, among), among


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
        ranks.check_n_of_m(self.n, self.m)
        ranks.check_absolute(self.absolute)

    def _masked(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return ranks.n_of_m(scores, self.n, self.m, absolute=self.absolute, weight=weight)

    def mode(self, scores: Tensor) -> Tensor:
        """The mask, bool."""
        return ranks.keeps_n_of_m(scores, self.n, self.m, absolute=self.absolute)

    def expected(self, scores: Tensor) -> Tensor:
        """`n / m` at every entry: it does not depend on the scores."""
        return torch.full_like(scores, self.n / self.m)

    def _rivals(self, tensor: Tensor) -> tuple[Tensor, int, tuple[int, ...]]:
        view = torch.unflatten(tensor, 1, (-1, self.m)).movedim(2, -1)
        return view, view.dim(), (-1,)

    def _places(self, scores: Tensor) -> tuple[int, int]:
        return self.n, self.m
