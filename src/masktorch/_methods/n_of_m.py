"""N:M sparsity: keep the n largest scores of every m consecutive inputs.

Source: Mishra et al., "Accelerating Sparse Deep Neural Networks" (arXiv 2104.08378).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from typing_extensions import override

from masktorch._checks import check_flag, check_n_of_m
from masktorch._kernels import chunked
from masktorch._kernels.autograd import masked
from masktorch._kernels.selecting import select
from masktorch._kernels.top_k_rows import largest_of_groups
from masktorch._methods.ranked import Ranked
from masktorch._methods.rules import straight_rule
from masktorch._sharding import whole


def n_of_m(
    scores: Tensor,
    n: int = 2,
    m: int | None = 4,
    *,
    absolute: bool = True,
    weight: Tensor | None = None,
) -> Tensor:
    """Keep the largest scores of every group.

    A group is `m` consecutive entries along dimension 1, at one position of a
    convolution's kernel; with `m=None` all of them. Forward `m = 1` at the `n` largest
    `|s|` of each group; backward `dL/ds = g * sign(s)` with `sign(0) = 1`. With
    `absolute=False` the `n` largest `s`, and `dL/ds = g`. Ties go to the lower index;
    -0.0 equals 0.0; NaN ranks largest.

    Args:
        scores: floating point, two dimensions or more; `m` divides `scores.shape[1]`.
        n: how many entries of a group to keep.
        m: the length of a group.
        absolute: compare magnitudes.
        weight: return `weight * m` in its dtype, instead of `m` in the scores'.

    Raises:
        ValueError: unless `1 <= n <= m`, and `m` divides dimension 1.
        TypeError: if `n` or `m` is not an int, or `absolute` not a bool.

    Source: Mishra et al. (arXiv 2104.08378).

    Examples:
        >>> n_of_m(torch.tensor([[-3.0, 1.0, 2.0, 0.0]]), 1, 2)
        tensor([[1., 0., 1., 0.]])
        >>> n_of_m(torch.tensor([[-3.0, 1.0, 2.0, 0.0]]), 3, None)
        tensor([[1., 1., 1., 0.]])
    """
    check_flag("n_of_m()", "absolute", absolute)
    kept = n_of_m_mask(scores, n, m, absolute=absolute)
    return masked(scores, weight, kept, select, straight_rule(absolute))


def n_of_m_mask(
    scores: Tensor, n: int = 2, m: int | None = 4, *, absolute: bool = True
) -> Tensor:
    """Return the mask of `n_of_m`, bool, of the scores' shape."""
    check_n_of_m("n_of_m()", n, m)
    length = group_length(tuple(scores.shape), n, m)

    def kept(scores: Tensor) -> Tensor:
        sizes = scores.abs() if absolute else scores
        return largest_of_groups(grouped(sizes, length), n, dim=2).flatten(1, 2)

    def kept_in_chunks(scores: Tensor) -> Tensor:
        """Take as many rows at a time as fit into the cache."""
        entries_per_row = max(1, scores.numel() // max(1, len(scores)))
        rows = max(1, chunked.CHUNK // entries_per_row)
        if torch.compiler.is_compiling() or rows >= len(scores):
            return kept(scores)
        return torch.cat([kept(part) for part in torch.split(scores, rows)])

    return whole(kept_in_chunks, scores.detach())


def group_length(shape: tuple[int, ...], n: int, m: int | None) -> int:
    """Return how many entries of dimension 1 form a group, for tensors of this shape.

    Raises:
        ValueError: if dimension 1 does not consist of such groups.
    """
    leave_out = (
        "Leave such tensors out: name the others in targets=[...] or in a mapping "
        "{name: estimator}."
    )
    if len(shape) < 2:
        raise ValueError(
            f"shape {shape} has no dimension 1 to form groups. {leave_out}"
        )
    if m is None:
        if n > shape[1]:
            raise ValueError(
                f"dimension 1 of shape {shape} has fewer than {n} entries. {leave_out}"
            )
        return shape[1]
    if shape[1] % m:
        raise ValueError(
            f"dimension 1 of shape {shape} is no multiple of {m}. {leave_out}"
        )
    return m


def grouped(tensor: Tensor, length: int) -> Tensor:
    """View dimension 1 as (groups, entries): the entries of a group are dimension 2."""
    return torch.unflatten(tensor, 1, (tensor.shape[1] // length, length))


@dataclass(frozen=True)
class NOfM(Ranked):
    """Keep the `n` largest scores of every `m` consecutive inputs, such as 2:4.

    The formula is `masktorch.functional.n_of_m`. Groups lie along dimension 1, at each
    position of a convolution's kernel; `m=None` makes the whole dimension a group, so
    that each row keeps `n` entries. Start and training as for `TopK`.

    Raises:
        ValueError: unless `1 <= n <= m`.
        TypeError: if `n` or `m` is not an int, or `absolute` not a bool.

    Examples:
        >>> import torch
        >>> NOfM(1, 2).mode(torch.tensor([[-3.0, 1.0, 2.0, 0.0]]))
        tensor([[ True, False,  True, False]])
    """

    n: int = 2
    m: int | None = 4
    absolute: bool = field(default=True, kw_only=True)

    @override
    def __post_init__(self) -> None:
        check_n_of_m("NOfM", self.n, self.m)
        check_flag("NOfM", "absolute", self.absolute)

    @override
    def init(self, weight: Tensor) -> Tensor:
        group_length(tuple(weight.shape), self.n, self.m)
        return super().init(weight)

    @override
    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return n_of_m(scores, self.n, self.m, absolute=self.absolute, weight=weight)

    @override
    def mode(self, scores: Tensor) -> Tensor:
        return n_of_m_mask(scores, self.n, self.m, absolute=self.absolute)

    @override
    def _groups(self, tensor: Tensor) -> Tensor:
        length = group_length(tuple(tensor.shape), self.n, self.m)
        return grouped(tensor, length).movedim(2, -1).reshape(-1, length)
