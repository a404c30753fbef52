"""How dense: of one estimator or another, read as an expectation, allocated, and when."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from masktorch.checks import check_density, check_number
from masktorch.estimators import Estimator
from masktorch.mask import Mask
from masktorch.model import Masked, Model, by_name, check_estimator, masked_tensors
from masktorch.selection import count, gathered, largest_of, parted


def set_estimator(model: Model, estimator: Estimator | Mapping[str, Estimator]) -> Model:
    """Puts another estimator on the masks of a model: another density, temperature or method.

    It is one for all masks, or a mapping by the name of every masked tensor. Scores, gradients,
    frozen masks and an optimiser's state stay. On an error nothing changes: `ValueError` if nothing
    is masked, a name is missing or unknown, a mask was given, or an estimator can't be used on a
    tensor; `TypeError` for what is none.

    Examples:
        >>> from masktorch import TopK, masks, wrap
        >>> masks(set_estimator(wrap(nn.Linear(10, 1), TopK(0.5)), TopK(0.2)))["weight"].sum()
        tensor(2)
    """
    found = masked_tensors(model, "set_estimator")
    chosen = by_name("set_estimator", "estimator for each masked tensor", found, estimator)
    return _put(model, "set_estimator", found, chosen)


def set_density(model: Model, density: float | Mapping[str, float]) -> Model:
    """Sets how dense the masks are, where their estimator has a density: the others stay.

    One number for all these masks, or a mapping by their tensors' names, as `masktorch.budget`
    returns: `set_estimator` with `dataclasses.replace(estimator, density=density)`. On an error
    nothing changes: `ValueError` where no estimator has a density, a name is missing or unknown, or
    a density lies outside (0, 1]; `TypeError` for other than numbers.

    Examples:
        >>> from masktorch import TopK, wrap
        >>> print(set_density(wrap(nn.Linear(10, 1), TopK(0.5)), 0.3).parametrizations.weight)
        Mask(TopK(density=0.3, absolute=True, block=None), learning)
    """
    found = _with_density(model, "set_density")
    what = "density for each tensor whose estimator has one"
    chosen = by_name("set_density", what, found, density, others="Not among them")
    for mask, (place, *_) in found:
        check_density(chosen[place.name], f"set_density() for {place.name!r}")
        estimator: Any = mask.estimator
        chosen[place.name] = dataclasses.replace(estimator, density=chosen[place.name])
    return _put(model, "set_density", found, chosen)


def _with_density(model: nn.Module, caller: str) -> Masked:
    every = masked_tensors(model, caller)
    found = [o for o in every if "density" in getattr(o[0].estimator, "__dataclass_fields__", ())]
    if not found:
        other = "set_estimator(model, TopK(d, absolute=False)) keeps any mask's highest scores."
        raise ValueError(
            f"{caller}() found no estimator with a density but {every[0][0].estimator!r}: "
            + (other if any(mask.learns for mask, _ in every) else "wrap the model.")
        )
    return found


def _put(model: Model, caller: str, found: Masked, chosen: Mapping[str, Estimator]) -> Model:
    """Checks every estimator on the scores of its tensor, then puts them all."""
    for mask, (place, *_) in found:
        if not mask.learns:
            raise ValueError(f"{caller}() found a given mask at {place.name!r}: wrap the model.")
        check_estimator(caller, place.name, chosen[place.name], mask.scores)
    for mask, (place, *_) in found:
        mask.estimator = chosen[place.name]
    return model


def expected_density(model: nn.Module) -> Tensor:
    """The mean over all masked entries of the probability that each is kept, differentiable.

    A scalar, to make a penalty of: of `sigma(s)` where masks are drawn by it, of the mask with the
    estimator's gradient where nothing is drawn, and constant where the count is fixed (`TopK`,
    `NOfM`) or the mask frozen or given. `ValueError` if nothing is masked.

    Examples:
        >>> from masktorch import Bernoulli, wrap
        >>> expected_density(wrap(nn.Linear(4, 3), Bernoulli(), init=0.0))
        tensor(0.5000, grad_fn=<DivBackward0>)
    """
    masked = masked_tensors(model, "expected_density")
    kept = [gathered(mask.expected().sum()) for mask, _ in masked]
    entries = sum(mask.scores.numel() for mask, _ in masked)
    return torch.stack([number.to(kept[0].device) for number in kept]).sum() / max(entries, 1)


def keep_largest(
    scores: Mapping[str, Tensor], density: float | Mapping[str, float]
) -> dict[str, Tensor]:
    """The masks that keep the largest scores: bool, shaped as the scores, by the same names.

    With a number one cut for all keeps `k = max(1, floor(density * n + 1/2))` of their `n` entries;
    a mapping gives each tensor its own. Among equal scores the earlier tensor stays, then the lower
    row-major index; what is no number counts as the largest. Give magnitudes where these count.
    `ValueError` for a density outside (0, 1] or names that differ, `TypeError` for wrong kinds.

    Examples:
        >>> keep_largest({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0, 4.0])}, 0.5)
        {'a': tensor([ True, False]), 'b': tensor([False,  True])}
    """
    if not isinstance(scores, Mapping):
        raise TypeError(f"keep_largest() expected a dict by tensor names, found {type(scores)}.")
    for name, tensor in scores.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise TypeError(f"keep_largest() expected floating-point scores for {name!r}.")
    if isinstance(density, Mapping):
        if names := sorted(scores.keys() ^ density.keys()):
            raise ValueError(f"keep_largest() expected scores and a density for each of {names}.")
        return {name: keep_largest({name: s}, density[name])[name] for name, s in scores.items()}
    check_density(density, "keep_largest()")
    tensors = [gathered(tensor) for tensor in scores.values()]
    masks = largest_of(tensors, count(density, sum(tensor.numel() for tensor in tensors)))
    return {name: parted(mask, scores[name]) for name, mask in zip(scores, masks, strict=True)}


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
    wanted = [min(n, left / max(shares, 1) * s) for n, s in zip(sizes, sums, strict=True)]
    counts = [max(1, math.floor(number)) for number in wanted]
    while missing := total - sum(counts):
        step = 1 if missing > 0 else -1
        free = [i for i, size in enumerate(sizes) if 1 <= counts[i] + step <= size]
        counts[max(free, key=lambda i: step * (wanted[i] - counts[i]))] += step
    return {name: c / n for name, c, n in zip(found, counts, sizes, strict=True)}


def _found(model: nn.Module, density: float, caller: str) -> tuple[dict[str, Mask], list[int], int]:
    """The masks that have a density, by name; their entries; how many of these to keep in all."""
    check_density(density, f"{caller}()")
    found = {place.name: mask for mask, (place, *_) in _with_density(model, caller)}
    sizes = [mask.scores.numel() for mask in found.values()]
    for name, mask in found.items():
        if getattr(mask.estimator, "block", None) or not mask.scores.numel():
            raise ValueError(f"{caller}() counts entries, found blocks, or nothing, in {name!r}.")
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
