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

    A number is the share of all entries of all tensors together: one cut for all keeps
    `k = max(1, floor(density * n + 1/2))` of their `n` entries. A mapping gives each tensor its own
    density and cut. Among equal scores the earlier tensor stays, then the lower row-major index;
    one that is not a number counts as the largest.

    The scores are floating point, of any shapes and dtypes; give magnitudes where these count.
    Raises `ValueError` for a density outside (0, 1] or names that differ, `TypeError` for anything
    but floating-point tensors (none of one byte) and numbers.

    Examples:
        >>> import torch
        >>> scores = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0, 4.0])}
        >>> keep_largest(scores, 0.5)
        {'a': tensor([ True, False]), 'b': tensor([False,  True])}
        >>> keep_largest(scores, {"a": 1.0, "b": 0.5})
        {'a': tensor([True, True]), 'b': tensor([False,  True])}
    """
    if not isinstance(scores, Mapping):
        raise TypeError(
            "keep_largest() expected a dict from tensor names to scores, found "
            f"{type(scores).__name__}."
        )
    for name, tensor in scores.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.itemsize < 2:
            found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(
                f"keep_largest() expected floating-point scores for {name!r}, found {found}."
            )
    if not isinstance(density, Mapping):
        check_density(density, "keep_largest()")
        tensors = [gathered(tensor) for tensor in scores.values()]
        k = count(density, sum(tensor.numel() for tensor in tensors))
        masks = largest_of(tensors, k)
        return {name: parted(m, scores[name]) for name, m in zip(scores, masks, strict=True)}
    missing, unknown = scores.keys() - density.keys(), density.keys() - scores.keys()
    if missing or unknown:
        raise ValueError(
            "keep_largest() expected one density for each tensor, by name."
            + (f" Missing: {', '.join(sorted(missing))}." if missing else "")
            + (f" Without scores: {', '.join(sorted(unknown))}." if unknown else "")
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
    the largest scores (magnitudes, unless the estimator says `absolute=False`); each tensor gets
    the share of its own that are among them, and at least its largest. The counts of
    `masktorch.TopK` at these densities add up to exactly that number.

    Raises `ValueError` for a density outside (0, 1] or too small for that many tensors, where no
    mask has a density, and for an estimator that keeps blocks.

    Examples:
        >>> from masktorch import TopK, wrap
        >>> model = wrap(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 1)), TopK(), init=abs)
        >>> _ = model[1].parametrizations.weight.scores.data.add_(1)
        >>> overall(model, 0.3)
        {'0.weight': 0.125, '1.weight': 1.0}
    """
    found, total = _budget(model, density, "budget.overall")
    magnitudes = [getattr(mask.estimator, "absolute", True) for mask in found.values()]
    ranked = [gathered(mask.scores.detach()) for mask in found.values()]
    if mixed := len(set(magnitudes)) > 1:
        ranked = [s.abs() if size else s for s, size in zip(ranked, magnitudes, strict=True)]
    kept = total
    while True:  # each tensor that has none of the largest takes one place of the others
        masks = largest_of(ranked, kept, absolute=magnitudes[0] and not mixed)
        counts = [int(torch.count_nonzero(mask)) for mask in masks]
        if kept + counts.count(0) == total:
            return _densities(found, [max(1, count) for count in counts])
        kept = total - counts.count(0)


def erk(model: nn.Module, density: float) -> dict[str, float]:
    """The densities of the Erdos-Renyi-kernel allocation, by name: small tensors denser.

    A tensor's density is in proportion to `sum(shape) / prod(shape)`, kernel sizes included, and at
    most 1; where it would be more the tensor is dense and the others share the rest. The counts of
    `masktorch.TopK` at these densities, rounded by the largest remainder, add up to exactly
    `floor(density * N + 1/2)` of all `N` entries under masks whose estimator has a density, and no
    tensor is empty. Raises as `overall`.
    Source: Evci et al., "Rigging the Lottery" (arXiv 1911.11134).

    Examples:
        >>> from masktorch import TopK, wrap
        >>> model = wrap(nn.Sequential(nn.Linear(20, 10), nn.Linear(10, 2)), TopK())
        >>> erk(model, 0.5)
        {'0.weight': 0.45, '1.weight': 1.0}
    """
    found, total = _budget(model, density, "budget.erk")
    shapes = [mask.scores.shape for mask in found.values()]
    sizes = [shape.numel() for shape in shapes]
    raw = [sum(shape) / size for shape, size in zip(shapes, sizes, strict=True)]
    shares: list[float] = [0.0] * len(sizes)
    dense = [False] * len(sizes)
    while not all(dense):
        free = total - sum(size for size, full in zip(sizes, dense, strict=True) if full)
        rest = [i for i, full in enumerate(dense) if not full]
        scale = free / sum(raw[i] * sizes[i] for i in rest)
        most = max(raw[i] for i in rest)
        if scale * most <= 1:
            shares = [scale * r for r in raw]
            break
        dense = [full or r == most for full, r in zip(dense, raw, strict=True)]
    wanted = [n if full else s * n for n, full, s in zip(sizes, dense, shares, strict=True)]
    return _densities(found, _rounded(wanted, sizes, total))


def _rounded(wanted: list[float], sizes: list[int], total: int) -> list[int]:
    """Whole numbers near those wanted, at least 1 and at most their size, that add up to `total`:
    the largest remainders are rounded up."""
    counts = [min(max(1, math.floor(w)), size) for w, size in zip(wanted, sizes, strict=True)]

    def short(i: int) -> float:
        return wanted[i] - counts[i]

    while (missing := total - sum(counts)) > 0:
        counts[max((i for i, n in enumerate(sizes) if counts[i] < n), key=short)] += 1
    for _ in range(-missing):
        counts[min((i for i, c in enumerate(counts) if c > 1), key=short)] -= 1
    return counts


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
    (arXiv 1803.03635), which keep 0.8 each time.

    Examples:
        >>> [geometric(1.0, 0.25, t) for t in (0, 0.5, 1)]
        [1.0, 0.5, 0.25]
    """
    _check_schedule("budget.geometric()", start, end, progress)
    return float(start ** (1 - progress) * end**progress)


def _check_schedule(caller: str, start: float, end: float, progress: float) -> None:
    for density in (start, end):
        check_density(density, caller)
    if not isinstance(progress, numbers.Real) or not 0 <= progress <= 1:
        raise ValueError(
            f"{caller} expected progress in [0, 1], found {progress!r}. Give step / steps."
        )


def _budget(model: nn.Module, density: float, caller: str) -> tuple[dict[str, Mask], int]:
    """The masks that have a density, by name; how many entries to keep of all of them."""
    found = {
        places[0].name: mask for mask, places in masked_tensors(model, caller) if has_density(mask)
    }
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
    entries = sum(mask.scores.numel() for mask in found.values())
    total = count(density, entries)
    if total < len(found):
        raise ValueError(
            f"{caller}() expected a density that leaves none of {len(found)} tensors empty, found "
            f"{density!r}, which keeps {total} of {entries} entries. Take at least "
            f"{len(found) / entries:.2g}."
        )
    return found, total


def _densities(found: Mapping[str, Mask], counts: list[int]) -> dict[str, float]:
    """At `c / n` of `n` entries exactly `c` are kept: the rounding of `c / n` is far below 1/2."""
    sizes = [mask.scores.numel() for mask in found.values()]
    return {name: c / n for name, c, n in zip(found, counts, sizes, strict=True)}
