"""Allocations of a density over tensors, and schedules of it."""

import math

import torch
from torch import nn

from masktorch._checks import check_density, check_number
from masktorch._density import with_density
from masktorch._kernels.top_k import count, largest_of
from masktorch._masking.mask import Mask
from masktorch._sharding import gathered

__all__ = ["cubic", "erk", "geometric", "overall"]


def overall(model: nn.Module, density: float) -> dict[str, float]:
    """The densities of the tensors under one cut for all of them, by name.

    Of all `N` entries under masks whose estimator has a density, `floor(density * N + 1/2)` have
    the largest scores (magnitudes, unless it says `absolute=False`), and these the tensors keep, at
    least one each: the counts at these densities add up to exactly that number. `ValueError` for a
    density outside (0, 1] or too small for that many tensors, where no mask has one, or for blocks.

    Examples:
        >>> from masktorch import TopK, wrap
        >>> model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 1))
        >>> overall(wrap(model, TopK(), init=torch.zeros_like), 0.3)
        {'0.weight': 0.25, '1.weight': 0.5}
    """
    found, sizes, total = _found(model, density, "budget.overall")
    magnitudes = [getattr(mask.estimator, "absolute", True) for mask in found.values()]
    ranked = [gathered(mask.scores.detach()) for mask in found.values()]
    if not (absolute := all(magnitudes)):
        ranked = [
            s.abs() if size else s for s, size in zip(ranked, magnitudes, strict=True)
        ]
    kept, left = 0, total
    while (
        kept != left
    ):  # each tensor that has none of the largest takes one place of the others
        kept, masks = left, largest_of(ranked, left, absolute=absolute)
        counts = [int(torch.count_nonzero(mask)) for mask in masks]
        left = total - counts.count(0)
    # of n entries the density c / n keeps exactly c: its rounding is far below 1/2
    return {
        name: max(1, c) / n for name, c, n in zip(found, counts, sizes, strict=True)
    }


def erk(model: nn.Module, density: float) -> dict[str, float]:
    """The densities of the Erdos-Renyi-kernel allocation, by name: small tensors denser.

    A tensor's density is in proportion to `sum(shape) / prod(shape)`; where that is more than 1 the
    tensor is dense and the others share the rest. The counts, rounded by the largest remainder and
    at least 1, add up as those of `overall`, which raises the same. Source: arXiv 1911.11134.

    Examples:
        >>> from masktorch import TopK, wrap
        >>> erk(wrap(nn.Sequential(nn.Linear(20, 10), nn.Linear(10, 2)), TopK()), 0.5)
        {'0.weight': 0.45, '1.weight': 1.0}
    """
    found, sizes, total = _found(model, density, "budget.erk")
    sums = [sum(mask.scores.shape) for mask in found.values()]
    left, shares = total, sum(sums)
    for part, size in sorted(zip(sums, sizes, strict=True), key=lambda t: -t[0] / t[1]):
        if left * part <= size * shares:
            break
        left, shares = left - size, shares - part  # it is dense
    wanted = [
        min(n, left / max(shares, 1) * s) for n, s in zip(sizes, sums, strict=True)
    ]
    counts = [max(1, math.floor(number)) for number in wanted]
    while missing := total - sum(counts):
        step = 1 if missing > 0 else -1
        free = [i for i, size in enumerate(sizes) if 1 <= counts[i] + step <= size]
        counts[max(free, key=lambda i: step * (wanted[i] - counts[i]))] += step
    return {name: c / n for name, c, n in zip(found, counts, sizes, strict=True)}


def _found(
    model: nn.Module, density: float, caller: str
) -> tuple[dict[str, Mask], list[int], int]:
    """The masks that have a density, by name; their entries; how many of these to keep in all."""
    check_density(density, f"{caller}()")
    found = {place.name: mask for mask, (place, *_) in with_density(model, caller)}
    sizes = [mask.scores.numel() for mask in found.values()]
    for name, mask in found.items():
        if getattr(mask.estimator, "block", None) or not mask.scores.numel():
            raise ValueError(
                f"{caller}() counts entries, found blocks, or nothing, in {name!r}."
            )
    total = count(density, sum(sizes))
    if total < len(found):
        raise ValueError(
            f"{caller}() expected a density that leaves none of {len(found)} tensors empty: "
            f"{density!r} keeps {total} of {sum(sizes)} entries."
        )
    return found, sizes, total


def cubic(start: float, end: float, progress: float) -> float:
    """The density at `progress`, fast at first: `end + (start - end) * (1 - progress)^3`.

    `ValueError` unless progress lies in [0, 1], densities in (0, 1]. Source: arXiv 1710.01878.

    Examples:
        >>> [cubic(1.0, 0.5, t) for t in (0, 0.5, 1)]
        [1.0, 0.5625, 0.5]
    """
    _check_schedule("budget.cubic()", start, end, progress)
    return end + (start - end) * (1 - progress) ** 3


def geometric(start: float, end: float, progress: float) -> float:
    """The density at `progress`, by equal factors: `start^(1 - progress) * end^progress`.

    Raises as `cubic`. Source: the rounds of "The Lottery Ticket Hypothesis" (arXiv 1803.03635).

    Examples:
        >>> [geometric(1.0, 0.25, t) for t in (0, 0.5, 1)]
        [1.0, 0.5, 0.25]
    """
    _check_schedule("budget.geometric()", start, end, progress)
    return float(start ** (1 - progress) * end**progress)


def _check_schedule(caller: str, start: float, end: float, progress: float) -> None:
    check_density(start, caller)
    check_density(end, caller)
    check_number(caller, "progress", progress, 0, 1, "[]")
