"""How dense the masks of a model are: set by another estimator, read as an expectation."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from masktorch.estimators import Estimator
from masktorch.mask import Mask
from masktorch.model import Masked, Model, by_name, check_estimator, masked_tensors
from masktorch.selection import gathered


def set_estimator(model: Model, estimator: Estimator | Mapping[str, Estimator]) -> Model:
    """Puts another estimator on the masks of a model: another density, temperature or method.

    It is one for all masks, or a mapping from the name of each masked tensor to its own. Scores,
    their gradients, frozen masks and an optimiser's state stay: a schedule is a call a step. On an
    error nothing changes. Raises `ValueError` if nothing is masked, a name is missing or unknown, a
    mask was given, or an estimator can't be used on a tensor; `TypeError` for what is none.

    Examples:
        >>> from masktorch import TopK, masks, wrap
        >>> model = wrap(nn.Linear(10, 1), TopK(0.5))
        >>> masks(set_estimator(model, TopK(0.2)))["weight"].sum()
        tensor(2)
    """
    found = masked_tensors(model, "set_estimator")
    chosen = by_name("set_estimator", "estimator for each masked tensor", found, estimator)
    _put(found, chosen, "set_estimator")
    return model


def set_density(model: Model, density: float | Mapping[str, float]) -> Model:
    """Sets how dense the masks are, where their estimator has a density: the others stay.

    The same as `set_estimator` with `dataclasses.replace(estimator, density=density)`. A density
    is a number in (0, 1], of `n` entries a mask then keeps `max(1, floor(density * n + 1/2))`; it
    is one for all these masks, or a mapping by their tensors' names, as `masktorch.budget` returns.
    On an error nothing changes. Raises `ValueError` where no estimator has a density, a name is
    missing or unknown, or a density lies outside (0, 1]; `TypeError` for other than numbers.

    Examples:
        >>> from masktorch import TopK, wrap
        >>> print(set_density(wrap(nn.Linear(10, 1), TopK(0.5)), 0.3).parametrizations.weight)
        Mask(TopK(density=0.3, absolute=True, block=None), learning)
    """
    masked = masked_tensors(model, "set_density")
    found = [(mask, places) for mask, places in masked if has_density(mask)]
    if not found:
        raise ValueError(
            "set_density() found no estimator with a density: the masks have "
            f"{masked[0][0].estimator!r}. masktorch.set_estimator(model, "
            "masktorch.TopK(d, absolute=False)) keeps the share d of the highest scores of any "
            "mask that learns. Given masks take masktorch.set_masks(model, keep_largest(...))."
        )
    what = "density for each tensor whose estimator has one"
    chosen = by_name("set_density", what, found, density, others="Not among them")
    estimators = {}
    for mask, (place, *_) in found:
        estimator: Any = mask.estimator
        try:
            changed = dataclasses.replace(estimator, density=chosen[place.name])
        except (TypeError, ValueError) as error:
            raise type(error)(f"set_density() can't set {place.name!r}: {error}") from error
        estimators[place.name] = changed
    _put(found, estimators, "set_density")
    return model


def expected_density(model: nn.Module) -> Tensor:
    """The expected density of all masks, differentiable: what a penalty on density is made of.

    The mean over all masked entries of the probability that each is kept, a scalar in float32 or
    wider: `sigma(s)` where it is drawn by it, the mask itself with the estimator's gradient where
    nothing is drawn, a constant where the count is fixed (`TopK`, `NOfM`) or the mask frozen or
    given. Raises `ValueError` if nothing is masked.

    Examples:
        >>> from masktorch import Bernoulli, wrap
        >>> model = wrap(nn.Linear(4, 3), Bernoulli(), init=0.0)
        >>> expected_density(model)
        tensor(0.5000, grad_fn=<DivBackward0>)
    """
    kept: list[Tensor] = []
    entries = 0
    for mask, _ in masked_tensors(model, "expected_density"):
        probability = mask.expected()
        wide = torch.promote_types(probability.dtype, torch.float32)
        kept.append(gathered(probability.sum(dtype=wide)))
        entries += probability.numel()
    return torch.stack([total.to(kept[0].device) for total in kept]).sum() / max(entries, 1)


def has_density(mask: Mask) -> bool:
    """Whether the density of a mask can be set: its estimator is a dataclass with that field."""
    return "density" in getattr(mask.estimator, "__dataclass_fields__", {})


def _put(found: Masked, chosen: Mapping[str, Estimator], caller: str) -> None:
    """Checks every estimator on the scores of its tensor, then puts them all."""
    for mask, (place, *_) in found:
        if not mask.learns:
            raise ValueError(
                f"{caller}() can't change {place.name!r}: its mask was given and has no scores. "
                "Wrap the model first, then load or set the masks."
            )
        check_estimator(caller, place.name, chosen[place.name], mask.scores)
    for mask, (place, *_) in found:
        mask.estimator = chosen[place.name]
