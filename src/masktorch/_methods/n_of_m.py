"""The largest scores of every group (N:M sparsity)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from masktorch._checks import check_flag, check_n_of_m
from masktorch._kernels import chunked, selecting
from masktorch._kernels.autograd import masked
from masktorch._kernels.selecting import select
from masktorch._methods.ranked import Ranked, straight_rule
from masktorch._sharding import whole


def n_of_m(
    scores: Tensor,
    n: int = 2,
    m: int = 4,
    *,
    absolute: bool = True,
    weight: Tensor | None = None,
) -> Tensor:
    """The largest scores of every group.

    Forward `m = 1` at the `n` largest `|s|` (or `s` with `absolute=False`) of every `m`
    consecutive entries along dimension 1, for each position of a kernel apart; all else as in
    `topk`. `ValueError` where `m` does not divide that. Source: Mishra et al. (arXiv 2104.08378).

    Examples:
        >>> n_of_m(torch.tensor([[-3.0, 1.0, 2.0, 0.0]]), 1, 2)
        tensor([[1., 0., 1., 0.]])
    """
    check_flag("n_of_m()", "absolute", absolute)
    kept = keeps_n_of_m(scores, n, m, absolute=absolute)
    return masked(scores, weight, kept, select, straight_rule(absolute))


def keeps_n_of_m(
    scores: Tensor, n: int = 2, m: int = 4, *, absolute: bool = True
) -> Tensor:
    """The mask of `n_of_m`, as a bool tensor shaped like `scores`."""
    check_n_of_m("n_of_m()", n, m)
    if scores.dim() < 2 or scores.shape[1] % m:
        raise ValueError(
            f"dimension 1 of shape {tuple(scores.shape)} is no multiple of {m}."
        )

    def kept(scores: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            rows = max(1, chunked.CHUNK * len(scores) // max(1, scores.numel()))
            if rows < len(scores):
                return torch.cat([kept(part) for part in torch.split(scores, rows)])
        groups = torch.unflatten(scores.abs() if absolute else scores, 1, (-1, m))
        groups = groups.movedim(2, 0).contiguous()
        number = groups == groups
        lost = torch.zeros_like(groups, dtype=torch.uint8 if m < 2**8 else torch.int32)
        for apart in range(1, m):  # each pair in a group: one of them loses
            wins = (groups[apart:] <= groups[:-apart]).logical_not_()
            wins = selecting.as_number(wins.logical_and_(number[:-apart]), lost.dtype)
            lost[:-apart] += wins
            lost[apart:] += 1 - wins
        return (lost < n).movedim(0, 2).flatten(1, 2)

    return whole(kept, scores.detach())


@dataclass(frozen=True)
class NOfM(Ranked):
    """The `n` largest scores of every `m` along dimension 1: `masktorch.functional.n_of_m`. Start
    and training as for `TopK`. `ValueError` unless `1 <= n <= m`, `TypeError` for no numbers.

    Examples:
        >>> import torch
        >>> NOfM(1, 2).mode(torch.tensor([[-3.0, 1.0, 2.0, 0.0]]))
        tensor([[ True, False,  True, False]])
    """

    __module__ = "masktorch"

    n: int = 2
    m: int = 4
    absolute: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        check_n_of_m("NOfM", self.n, self.m)
        check_flag("NOfM", "absolute", self.absolute)

    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return n_of_m(scores, self.n, self.m, absolute=self.absolute, weight=weight)

    def mode(self, scores: Tensor) -> Tensor:
        return keeps_n_of_m(scores, self.n, self.m, absolute=self.absolute)

    def _rivals(self, tensor: Tensor) -> Tensor:
        return (
            torch.unflatten(tensor, 1, (-1, self.m))
            .movedim(2, -1)
            .reshape(-1, self.m, 1)
        )
