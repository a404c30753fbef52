"""How dense the masks of a model are: set by another estimator, read as an expectation."""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from masktorch.estimators import Estimator
from masktorch.mask import Mask, is_sharded
from masktorch.model import Masked, Model, by_name, check_estimator, masked_tensors


def set_estimator(model: Model, estimator: Estimator | Mapping[str, Estimator]) -> Model:
    """Puts another estimator on the masks of a model: another density, temperature or method.

    The scores, their gradients, frozen masks and an optimiser's state stay what they are, so that
    a schedule is a call a step.

    Args:
        model: a wrapped model. Nothing in it changes if an error is raised.
        estimator: one for all masks, or a mapping from the name of each masked tensor to its own.

    Raises `ValueError` if nothing is masked, a name is missing or unknown, a mask was given and
    has no scores, or the estimator can't be used on a tensor (a block that does not divide it);
    `TypeError` for anything but estimators.

    Examples:
        >>> from masktorch import TopK, masks, wrap
        >>> model = wrap(nn.Linear(10, 1), TopK(0.5))
        >>> masks(set_estimator(model, TopK(0.2)))["weight"].sum()
        tensor(2)
    """
    found = masked_tensors(model, "set_estimator")
    if isinstance(estimator, Mapping):
        chosen = by_name(
            "set_estimator",
            "estimator for each masked tensor",
            found,
            estimator,
        )
    else:
        chosen = {places[0].name: estimator for _, places in found}
    _put(found, chosen, "set_estimator")
    return model


def set_density(model: Model, density: float | Mapping[str, float]) -> Model:
    """Sets how dense the masks are, where their estimator has a density: the others stay.

    The same as `set_estimator` with `dataclasses.replace(estimator, density=density)`. A density
    is a number in (0, 1]; of `n` entries a mask then keeps `max(1, floor(density * n + 1/2))`.

    Args:
        model: a wrapped model. Nothing in it changes if an error is raised.
        density: one for all masks whose estimator has a density, or a mapping from the name of
            each of those tensors to its own, as `masktorch.budget` returns it.

    Raises `ValueError` if nothing is masked, no estimator has a density, a name is missing or
    unknown, or a density lies outside (0, 1]; `TypeError` for anything but numbers.

    Examples:
        >>> from masktorch import TopK, wrap
        >>> print(set_density(wrap(nn.Linear(10, 1), TopK(0.5)), 0.3).parametrizations.weight)
        Mask(TopK(density=0.3, absolute=True, block=None), learning)
    """
    found = masked_tensors(model, "set_density")
    dense = [(mask, places) for mask, places in found if has_density(mask)]
    if not dense:
        raise ValueError(
            f"set_density() found no estimator with a density: the masks have "
            f"{found[0][0].estimator!r}. masktorch.set_estimator(model, "
            "masktorch.TopK(d, absolute=False)) keeps the share d of the highest scores of any "
            "mask that learns."
        )
    if isinstance(density, Mapping):
        chosen = by_name(
            "set_density",
            "density for each tensor whose estimator has one",
            dense,
            density,
            others="Not among them",
        )
    else:
        chosen = {places[0].name: density for _, places in dense}
    values = {
        place.name: _with_density(place.name, mask.estimator, chosen[place.name])
        for mask, (place, *_) in dense
    }
    _put(dense, values, "set_density")
    return model


def expected_density(model: nn.Module) -> Tensor:
    """The expected density of all masks, differentiable: what a penalty on density is made of.

    The mean over all masked entries of the probability that each is kept, a scalar tensor in
    float32 or wider. That probability is `sigma(s)` where it is drawn by it, the mask itself with
    the estimator's gradient where nothing is drawn, and a constant where the count is fixed
    (`TopK`, `NOfM`) or the mask is frozen or given. A penalty is a line: `loss + lam *
    expected_density(model)`, or `((expected_density(model) - target) / 0.05) ** 2`.

    Raises `ValueError` if nothing is masked.

    Examples:
        >>> from masktorch import Bernoulli, wrap
        >>> model = wrap(nn.Linear(4, 3), Bernoulli(), init=0.0)
        >>> expected_density(model)
        tensor(0.5000, grad_fn=<DivBackward0>)
    """
    kept: list[Tensor] = []
    entries = 0
    for mask, _ in masked_tensors(model, "expected_density"):
        probability: Any = mask.expected()
        total = probability.sum(dtype=torch.promote_types(probability.dtype, torch.float32))
        kept.append(total.full_tensor() if is_sharded(total) else total)
        entries += probability.numel()
    return torch.stack([total.to(kept[0].device) for total in kept]).sum() / max(entries, 1)


def has_density(mask: Mask) -> bool:
    """Whether the density of a mask can be set."""
    return dataclasses.is_dataclass(mask.estimator) and any(
        field.name == "density" for field in dataclasses.fields(mask.estimator)
    )


def _with_density(name: str, estimator: Any, density: float) -> Estimator:
    try:
        return cast(Estimator, dataclasses.replace(estimator, density=density))
    except (TypeError, ValueError) as error:
        raise type(error)(f"set_density() can't set {name!r}: {error}") from error


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
