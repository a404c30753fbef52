"""Allocations of a density over the tensors of a model, and schedules of a density."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from masktorch._checks import check_density, check_number
from masktorch._density import masks_with_density, with_density
from masktorch._kernels.top_k import count, largest_of
from masktorch._masking.mask import Mask, total
from masktorch._methods.top_k import TopK
from masktorch._sharding import gathered

__all__ = ["cubic", "erk", "geometric", "overall"]


def overall(model: nn.Module, density: float) -> dict[str, float]:
    """Return the densities that one cut through the scores of all tensors gives them.

    The `floor(density * N + 1/2)` largest of all `N` scores (in magnitude, unless the
    estimator says `absolute=False`) are counted in each tensor; a tensor without any
    keeps 1. The counts add up to exactly that number. Only masks whose estimator has
    a density take part.

    Returns:
        densities by tensor name, for `masktorch.set_density`.

    Raises:
        ValueError: the density lies outside (0, 1] or keeps fewer entries than there
            are tensors; no mask has a density; or an estimator's density is not the
            share of the whole tensor that it keeps, as under blocks.
        TypeError: the density is not a number.

    Examples:
        >>> from masktorch import TopK, wrap
        >>> model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 1))
        >>> overall(wrap(model, TopK(), init=torch.zeros_like), 0.3)
        {'0.weight': 0.25, '1.weight': 0.5}
    """
    caller = "budget.overall"
    request = _requested(model, density, caller)
    for name, mask in request.masks.items():
        if mask.scores.is_meta:
            raise ValueError(
                f"{caller}() ranks scores, and those of {name!r} are on the meta "
                "device, without values. Load or initialise the model first."
            )
    magnitudes = [_by_magnitude(mask.estimator) for mask in request.masks.values()]
    ranked = [gathered(mask.scores.detach()) for mask in request.masks.values()]
    if all(magnitudes):
        counts = _counts_under_one_cut(ranked, request.total, absolute=True)
    else:
        ranked = [
            scores.abs() if by_magnitude else scores
            for scores, by_magnitude in zip(ranked, magnitudes, strict=True)
        ]
        counts = _counts_under_one_cut(ranked, request.total, absolute=False)
    return _densities(request, counts, caller)


def _by_magnitude(estimator: Any) -> bool:
    """Whether the estimator that has the density compares magnitudes."""
    if "density" not in estimator.__dataclass_fields__:
        return _by_magnitude(estimator.estimator)
    return bool(getattr(estimator, "absolute", True))


def erk(model: nn.Module, density: float) -> dict[str, float]:
    """Return the densities of the Erdos-Renyi-kernel allocation: small tensors denser.

    A tensor's density is proportional to `sum(shape) / prod(shape)`. Where that
    exceeds 1 the tensor is dense and the others share the rest. The counts are rounded
    by largest remainder, are at least 1, and add up to `floor(density * N + 1/2)`.
    Source: Evci et al. (arXiv 1911.11134).

    Returns:
        densities by tensor name, for `masktorch.set_density`.

    Raises:
        ValueError: as `overall`.
        TypeError: the density is not a number.

    Examples:
        >>> from masktorch import TopK, wrap
        >>> erk(wrap(nn.Sequential(nn.Linear(20, 10), nn.Linear(10, 2)), TopK()), 0.5)
        {'0.weight': 0.45, '1.weight': 1.0}
    """
    request = _requested(model, density, "budget.erk")
    # The shape of a 0-d tensor has no sizes to add: its one entry counts as one.
    shares = [sum(mask.scores.shape) or 1 for mask in request.masks.values()]
    wanted = _in_proportion(shares, request.sizes, request.total)
    counts = _round_to_total(wanted, request.sizes, request.total)
    return _densities(request, counts, "budget.erk")


def cubic(start: float, end: float, progress: float) -> float:
    """Return the density at `progress`, which changes fast at first.

    `end + (start - end) * (1 - progress)^3`. Source: Zhu and Gupta (arXiv 1710.01878).

    Raises:
        ValueError: `progress` lies outside [0, 1] or a density outside (0, 1].
        TypeError: one of them is not a number.

    Examples:
        >>> [cubic(1.0, 0.5, t) for t in (0, 0.5, 1)]
        [1.0, 0.5625, 0.5]
    """
    _check_schedule("budget.cubic()", start, end, progress)
    return end + (start - end) * (1 - progress) ** 3


def geometric(start: float, end: float, progress: float) -> float:
    """Return the density at `progress`, which changes by equal factors.

    `start^(1 - progress) * end^progress`. Source: the rounds of "The Lottery Ticket
    Hypothesis", Frankle and Carbin (arXiv 1803.03635).

    Raises:
        ValueError: `progress` lies outside [0, 1] or a density outside (0, 1].
        TypeError: one of them is not a number.

    Examples:
        >>> [geometric(1.0, 0.25, t) for t in (0, 0.5, 1)]
        [1.0, 0.5, 0.25]
    """
    _check_schedule("budget.geometric()", start, end, progress)
    return float(start ** (1 - progress) * end**progress)


def _check_schedule(caller: str, start: float, end: float, progress: float) -> None:
    check_density(start, caller)
    check_density(end, caller)
    check_number(caller, "progress", progress, 0, 1, closed_low=True, closed_high=True)


class _Request(NamedTuple):
    """What is to be allocated: `total` entries over the tensors under `masks`."""

    masks: dict[str, Mask]
    sizes: list[int]  # entries of each tensor
    total: int


def _requested(model: nn.Module, density: float, caller: str) -> _Request:
    check_density(density, f"{caller}()")
    masks = {}
    for tensor in masks_with_density(model, caller):
        mask, shape = tensor.mask, tensor.place.parameter.shape
        has_blocks = (
            getattr(mask.estimator, "block", None) is not None
            or mask.scores.shape != shape
        )
        if has_blocks or not mask.scores.numel():
            unfit = "blocks" if has_blocks else "no entries"
            raise ValueError(
                f"{caller}() counts single entries, but {mask.estimator!r} has {unfit} "
                f"in {tensor.name!r} of shape {tuple(shape)}. Give such a tensor a "
                "density with set_density, and the others a budget of their own."
            )
        masks[tensor.name] = mask
    sizes = [mask.scores.numel() for mask in masks.values()]
    kept = count(density, sum(sizes))
    if kept < len(masks):
        raise ValueError(
            f"{caller}() keeps at least one entry of each tensor: {density!r} keeps "
            f"{kept} of {sum(sizes)} entries, in {len(masks)} tensors. Give a density "
            f"of at least {len(masks) / sum(sizes):.2g}."
        )
    return _Request(masks, sizes, kept)


def _counts_under_one_cut(
    ranked: list[Tensor], total: int, *, absolute: bool
) -> list[int]:
    """Count each tensor's share of the largest values, at least 1, `total` in all.

    A tensor without any of the largest takes one place from the others. They then keep
    one less, which may empty another tensor; so this repeats until nothing changes.
    """
    empty = 0
    while True:
        masks = largest_of(ranked, total - empty, absolute=absolute)
        counts = [int(torch.count_nonzero(mask)) for mask in masks]
        if counts.count(0) == empty:
            return [max(1, kept) for kept in counts]
        empty = counts.count(0)


def _in_proportion(shares: list[int], sizes: list[int], total: int) -> list[float]:
    """Divide `total` in proportion to `shares`, no part above its size."""
    wanted = [float(size) for size in sizes]
    sparse = sorted(range(len(sizes)), key=lambda i: shares[i] / sizes[i])
    left, left_shares = total, sum(shares)
    # The largest share per entry becomes dense first, which leaves more for the others.
    while sparse:
        densest = sparse[-1]
        # Its part, `left / left_shares * share`, would exceed its size.
        must_be_dense = left * shares[densest] > sizes[densest] * left_shares
        if not must_be_dense:
            break
        sparse.pop()
        left -= sizes[densest]
        left_shares -= shares[densest]
    for index in sparse:
        wanted[index] = left / left_shares * shares[index]
    return wanted


def _round_to_total(wanted: list[float], sizes: list[int], total: int) -> list[int]:
    """Round by largest remainder to counts from 1 to each size that add to `total`."""
    counts = [max(1, math.floor(number)) for number in wanted]
    while missing := total - sum(counts):
        step = 1 if missing > 0 else -1
        movable = [i for i, size in enumerate(sizes) if 1 <= counts[i] + step <= size]
        furthest = max(movable, key=lambda i: step * (wanted[i] - counts[i]))
        counts[furthest] += step
    return counts


def _densities(request: _Request, counts: list[int], caller: str) -> dict[str, float]:
    """Turn counts into densities, by name, if the estimators keep just that many.

    Of n entries the density c / n keeps exactly c: it rounds by far less than 1/2.
    """
    densities = {}
    for (name, mask), kept, size in zip(
        request.masks.items(), counts, request.sizes, strict=True
    ):
        if type(mask.estimator) is not TopK:
            # An estimator with a density per row keeps at least one entry in each row,
            # so asking for 1 exposes it.
            _check_that_it_keeps(1, mask, name, caller)
            _check_that_it_keeps(kept, mask, name, caller)
        densities[name] = kept / size
    return densities


def _check_that_it_keeps(kept: int, mask: Mask, name: str, caller: str) -> None:
    """Raise unless the density `kept / size` of the estimator keeps `kept` entries."""
    scores = gathered(mask.scores.detach())
    if scores.is_meta:
        scores = torch.arange(scores.numel(), dtype=scores.dtype).view(scores.shape)
    estimator = with_density(mask.estimator, kept / scores.numel())
    found = total(estimator.mode(scores))
    if found != kept:
        raise ValueError(
            f"{caller}() expected estimators whose density is the share of the whole "
            f"tensor that they keep, as TopK's: {estimator!r} keeps {found} entries of "
            f"{name!r}, not {kept}. Give that tensor a density with set_density, and "
            "the others a budget of their own."
        )
