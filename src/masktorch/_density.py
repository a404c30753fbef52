"""How dense the masks are: estimators and densities set, read as an expectation, chosen."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from masktorch._checks import check_density
from masktorch._kernels.top_k import count, largest_of
from masktorch._masking.lookup import (
    Masked,
    Model,
    by_name,
    check_estimator,
    masked_tensors,
)
from masktorch._methods.protocol import Estimator
from masktorch._sharding import gathered, parted


def set_estimator(
    model: Model, estimator: Estimator | Mapping[str, Estimator]
) -> Model:
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
    chosen = by_name(
        "set_estimator", "estimator for each masked tensor", found, estimator
    )
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
    found = with_density(model, "set_density")
    what = "density for each tensor whose estimator has one"
    chosen = by_name("set_density", what, found, density, others="Not among them")
    for mask, (place, *_) in found:
        check_density(chosen[place.name], f"set_density() for {place.name!r}")
        estimator: Any = mask.estimator
        chosen[place.name] = dataclasses.replace(estimator, density=chosen[place.name])
    return _put(model, "set_density", found, chosen)


def with_density(model: nn.Module, caller: str) -> Masked:
    every = masked_tensors(model, caller)
    found = [
        o
        for o in every
        if "density" in getattr(o[0].estimator, "__dataclass_fields__", ())
    ]
    if not found:
        other = "set_estimator(model, TopK(d, absolute=False)) keeps any mask's highest scores."
        raise ValueError(
            f"{caller}() found no estimator with a density but {every[0][0].estimator!r}: "
            + (other if any(mask.learns for mask, _ in every) else "wrap the model.")
        )
    return found


def _put(
    model: Model, caller: str, found: Masked, chosen: Mapping[str, Estimator]
) -> Model:
    """Checks every estimator on the scores of its tensor, then puts them all."""
    for mask, (place, *_) in found:
        if not mask.learns:
            raise ValueError(
                f"{caller}() found a given mask at {place.name!r}: wrap the model."
            )
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
    return torch.stack([number.to(kept[0].device) for number in kept]).sum() / max(
        entries, 1
    )


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
        raise TypeError(
            f"keep_largest() expected a dict by tensor names, found {type(scores)}."
        )
    for name, tensor in scores.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise TypeError(
                f"keep_largest() expected floating-point scores for {name!r}."
            )
    if isinstance(density, Mapping):
        if names := sorted(scores.keys() ^ density.keys()):
            raise ValueError(
                f"keep_largest() expected scores and a density for each of {names}."
            )
        return {
            name: keep_largest({name: s}, density[name])[name]
            for name, s in scores.items()
        }
    check_density(density, "keep_largest()")
    tensors = [gathered(tensor) for tensor in scores.values()]
    masks = largest_of(
        tensors, count(density, sum(tensor.numel() for tensor in tensors))
    )
    return {
        name: parted(mask, scores[name])
        for name, mask in zip(scores, masks, strict=True)
    }
