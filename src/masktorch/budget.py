"""How dense: which entries a density keeps, what density each tensor gets, and when."""

import math
import numbers
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from masktorch.checks import check_density
from masktorch.density import has_density
from masktorch.mask import Mask
from masktorch.model import masked_tensors
from masktorch.selection import count, gathered, largest, largest_of, parted, whole


def keep_largest(
    scores: Mapping[str, Tensor], density: float | Mapping[str, float]
) -> dict[str, Tensor]:
    """The masks that keep the largest scores: bool, shaped as the scores, by the same names.

    With a number one cut for all keeps `k = max(1, floor(density * n + 1/2))` of their `n` entries;
    a mapping gives each tensor its own. Among equal scores the earlier tensor stays, then the lower
    row-major index; what is no number counts as the largest. Give magnitudes where these count.
    Raises `ValueError` for a density outside (0, 1] or names that differ, `TypeError` for other
    than numbers and floating-point tensors (none of one byte).

    Examples:
        >>> scores = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0, 4.0])}
        >>> keep_largest(scores, 0.5)
        {'a': tensor([ True, False]), 'b': tensor([False,  True])}
        >>> keep_largest(scores, {"a": 1.0, "b": 0.5})
        {'a': tensor([True, True]), 'b': tensor([False,  True])}
    """
    if not isinstance(scores, Mapping):
        kind = type(scores).__name__
        raise TypeError(
            f"keep_largest() expected a dict from tensor names to scores, found {kind}."
        )
    for name, tensor in scores.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.itemsize < 2:
            kind = getattr(tensor, "dtype", type(tensor).__name__)
            raise TypeError(
                f"keep_largest() expected floating-point scores for {name!r}, found {kind}."
            )
    if not isinstance(density, Mapping):
        check_density(density, "keep_largest()")
        tensors = [gathered(tensor) for tensor in scores.values()]
        masks = largest_of(tensors, count(density, sum(tensor.numel() for tensor in tensors)))
        return {name: parted(m, scores[name]) for name, m in zip(scores, masks, strict=True)}
    missing, unknown = scores.keys() - density.keys(), density.keys() - scores.keys()
    if missing or unknown:
        raise ValueError(
            "keep_largest() expected one density for each tensor, by name."
            + f" Missing: {', '.join(sorted(missing))}." * bool(missing)
            + f" Without scores: {', '.join(sorted(unknown))}." * bool(unknown)
        )
    for name, number in density.items():
        check_density(number, f"keep_largest() for {name!r}")
    return {
        name: whole(lambda s, d=density[name]: largest(s, count(d, s.numel())), tensor)
        for name, tensor in scores.items()
    }


def overall(model: nn.Module, density: float) -> dict[str, float]:
    """The densities of the tensors under one cut for all of them, by name.

    Of all `N` entries under masks whose estimator has a density, `floor(density * N + 1/2)` have
    the largest scores (magnitudes, unless it says `absolute=False`), and these the tensors keep, at
    least one each: the counts at these densities add up to exactly that number.
    Raises `ValueError` for a density outside (0, 1] or too small for that many tensors, where no
    mask has a density, and for an estimator that keeps blocks.

    Examples:
        >>> from masktorch import TopK, wrap
        >>> model = wrap(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 1)), TopK(), init=abs)
        >>> _ = model[1].parametrizations.weight.scores.data.add_(1)
        >>> overall(model, 0.3)
        {'0.weight': 0.125, '1.weight': 1.0}
    """
    found, sizes, total = _budget(model, density, "budget.overall")
    magnitudes = [getattr(mask.estimator, "absolute", True) for mask in found.values()]
    ranked = [gathered(mask.scores.detach()) for mask in found.values()]
    if not (absolute := all(magnitudes)):
        ranked = [s.abs() if size else s for s, size in zip(ranked, magnitudes, strict=True)]
    kept, left = 0, total
    while kept != left:  # each tensor that has none of the largest takes one place of the others
        kept, masks = left, largest_of(ranked, left, absolute=absolute)
        counts = [int(torch.count_nonzero(mask)) for mask in masks]
        left = total - counts.count(0)
    # of n entries the density c / n keeps exactly c: its rounding is far below 1/2
    return {name: max(1, c) / n for name, c, n in zip(found, counts, sizes, strict=True)}


def erk(model: nn.Module, density: float) -> dict[str, float]:
    """The densities of the Erdos-Renyi-kernel allocation, by name: small tensors denser.

    A tensor's density is in proportion to `sum(shape) / prod(shape)`, kernel sizes included; where
    that is more than 1 the tensor is dense and the others share the rest. The counts, rounded by
    the largest remainder and at least 1, add up as those of `overall`. Raises as `overall`.
    Source: Evci et al., "Rigging the Lottery" (arXiv 1911.11134).

    Examples:
        >>> from masktorch import TopK, wrap
        >>> model = wrap(nn.Sequential(nn.Linear(20, 10), nn.Linear(10, 2)), TopK())
        >>> erk(model, 0.5)
        {'0.weight': 0.45, '1.weight': 1.0}
    """
    found, sizes, total = _budget(model, density, "budget.erk")
    sums = [sum(mask.scores.shape) for mask in found.values()]
    left, shares = total, sum(sums)
    for part, size in sorted(zip(sums, sizes, strict=True), key=lambda t: -t[0] / t[1]):
        if left * part <= size * shares:
            break
        left, shares = left - size, shares - part  # it is dense
    wanted = [min(n, left / max(shares, 1) * s) for n, s in zip(sizes, sums, strict=True)]
    counts = [max(1, math.floor(number)) for number in wanted]
    while missing := total - sum(counts):
        step = 1 if missing > 0 else -1
        free = [i for i, size in enumerate(sizes) if 1 <= counts[i] + step <= size]
        counts[max(free, key=lambda i: step * (wanted[i] - counts[i]))] += step
    return {name: c / n for name, c, n in zip(found, counts, sizes, strict=True)}


def cubic(start: float, end: float, progress: float) -> float:
    """The density at `progress` in [0, 1], fast at first: `end + (start - end) (1 - progress)^3`.

    Raises `ValueError` for a progress outside [0, 1] or densities outside (0, 1].
    Source: Zhu and Gupta, "To Prune, or Not to Prune" (arXiv 1710.01878).

    Examples:
        >>> [cubic(1.0, 0.5, t) for t in (0, 0.5, 1)]
        [1.0, 0.5625, 0.5]
    """
    _check_schedule("budget.cubic()", start, end, progress)
    return end + (start - end) * (1 - progress) ** 3


def geometric(start: float, end: float, progress: float) -> float:
    """The density at `progress` in [0, 1], by the same factor in equal times:
    `start^(1 - progress) * end^progress`.

    Raises as `cubic`. Source: the rounds of Frankle and Carbin, "The Lottery Ticket Hypothesis"
    (arXiv 1803.03635).

    Examples:
        >>> [geometric(1.0, 0.25, t) for t in (0, 0.5, 1)]
        [1.0, 0.5, 0.25]
    """
    _check_schedule("budget.geometric()", start, end, progress)
    return float(start ** (1 - progress) * end**progress)


def _check_schedule(caller: str, start: float, end: float, progress: float) -> None:
    check_density(start, caller)
    check_density(end, caller)
    if not isinstance(progress, numbers.Real) or not 0 <= progress <= 1:
        raise ValueError(
            f"{caller} expected progress in [0, 1], found {progress!r}. Give step / steps."
        )


def _budget(
    model: nn.Module, density: float, caller: str
) -> tuple[dict[str, Mask], list[int], int]:
    """The masks that have a density, by name; their entries; how many of these to keep in all."""
    masked = masked_tensors(model, caller)
    found = {place.name: mask for mask, (place, *_) in masked if has_density(mask)}
    if not found:
        raise ValueError(
            f"{caller}() found no mask whose estimator has a density: wrap with masktorch.TopK()."
        )
    for name, mask in found.items():
        if not mask.scores.numel():
            raise ValueError(f"{caller}() found no entries in {name!r}. Leave it out of targets.")
        if getattr(mask.estimator, "block", None) is not None:
            raise ValueError(
                f"{caller}() can't count the entries of {name!r}: {mask.estimator!r} keeps whole "
                "blocks. Give each tensor its density by hand."
            )
    check_density(density, f"{caller}()")
    sizes = [mask.scores.numel() for mask in found.values()]
    entries, total = sum(sizes), count(density, sum(sizes))
    if total < len(found):
        raise ValueError(
            f"{caller}() expected a density that leaves none of {len(found)} tensors empty, found "
            f"{density!r}, which keeps {total} of {entries} entries. Take at least "
            f"{len(found) / entries:.2g}."
        )
    return found, sizes, total
