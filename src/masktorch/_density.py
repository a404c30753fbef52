"""How dense the masks of a model are: estimators, densities, the expected density."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from masktorch._checks import check_density, check_number
from masktorch._masking.lookup import (
    Masked,
    MaskedTensor,
    Model,
    by_name,
    check_estimator,
    check_is_estimator,
    find_masks,
    masked_tensors,
)
from masktorch._masking.scores import score_shape
from masktorch._methods import protocol
from masktorch._methods.protocol import Estimator
from masktorch._sharding import gathered


def set_estimator(
    model: Model, estimator: Estimator | Mapping[str, Estimator]
) -> Model:
    """Give the masks of a model another estimator: another density or method.

    Scores, their gradients, the phase and an optimiser's state stay; the masks, frozen
    ones included, follow from the scores and the new estimator. On an error the model
    is unchanged.

    Args:
        model: a wrapped model.
        estimator: one for all masks, or a mapping from the name of each masked tensor.
            A name may be a shell pattern such as `"*.q_proj.weight"`; exact names win.

    Returns:
        The same model.

    Raises:
        ValueError: nothing is masked, a mask is fixed, a name is missing or unknown,
            or an estimator does not fit its tensor or the shape of its scores.
        TypeError: a value is not an estimator.

    Examples:
        >>> from masktorch import TopK, masks, wrap
        >>> model = set_estimator(wrap(nn.Linear(10, 1), TopK(0.5)), TopK(0.2))
        >>> masks(model)["weight"].sum()
        tensor(2)
    """
    found = masked_tensors(model, "set_estimator")
    noun = "estimator for each masked tensor"
    chosen = by_name("set_estimator", noun, found, estimator, patterns=True)
    for tensor in found:
        _check_shape("set_estimator", tensor, chosen[tensor.name])
    _replace_estimators(found, chosen, "set_estimator")
    return model


def set_density(model: Model, density: float | Mapping[str, float]) -> Model:
    """Set the density of the masks whose estimator has one; the others stay.

    The same as `set_estimator` with `dataclasses.replace(estimator, density=density)`;
    of an estimator of blocks the inner one changes, so that the density counts blocks.
    On an error the model is unchanged.

    Args:
        model: a wrapped model.
        density: one for all these masks, or a mapping from the names of their tensors,
            as the functions of `masktorch.budget` return it. A name may be a shell
            pattern; exact names win.

    Returns:
        The same model.

    Raises:
        ValueError: no estimator has a density, a name is missing or unknown, or a
            density lies outside (0, 1].
        TypeError: a density is not a number.

    Examples:
        >>> from masktorch import TopK, report, wrap
        >>> report(set_density(wrap(nn.Linear(10, 1), TopK(0.5)), 0.3)).kept
        3
    """
    found = masks_with_density(model, "set_density")
    densities = by_name(
        "set_density",
        "density for each tensor whose estimator has one",
        found,
        density,
        unknown_label="Not among them",
        patterns=True,
    )
    chosen = {}
    for tensor in found:
        own = densities[tensor.name]
        check_density(own, f"set_density() for {tensor.name!r}")
        chosen[tensor.name] = with_density(tensor.mask.estimator, own)
    _replace_estimators(found, chosen, "set_density")
    return model


def masks_with_density(model: nn.Module, caller: str) -> Masked:
    """Find the masks whose estimator has a density; raise if no mask has one."""
    masked = find_masks(model, caller)
    found = [tensor for tensor in masked if has_density(tensor.mask.estimator)]
    if found:
        return found
    expected = f"{caller}() expected a wrapped model whose estimators have a density"
    if not masked:
        raise ValueError(
            f"{expected}: nothing is masked in {type(model).__name__}. Call "
            "masktorch.wrap(model, masktorch.TopK(density)) first."
        )
    learnable = [mask for mask, _ in masked if mask.has_scores]
    if not learnable:
        raise ValueError(
            f"{expected}, found fixed masks only. Call masktorch.unwrap(model, "
            "bake=False), then masktorch.wrap(model, masktorch.TopK(density))."
        )
    raise ValueError(
        f"{expected}, as TopK, found {learnable[0].estimator!r}. Call "
        "masktorch.set_estimator(model, masktorch.TopK(density, absolute=False)), "
        "which keeps the highest scores of any mask."
    )


def has_density(estimator: Any) -> bool:
    """Whether an estimator, or the one that it applies to blocks, has a density."""
    fields = getattr(estimator, "__dataclass_fields__", ())
    if "density" in fields:
        return True
    return "estimator" in fields and has_density(estimator.estimator)


def with_density(estimator: Any, density: float) -> Any:
    """Copy an estimator that has a density with another one."""
    if "density" in estimator.__dataclass_fields__:
        return dataclasses.replace(estimator, density=density)
    inner = with_density(estimator.estimator, density)
    return dataclasses.replace(estimator, estimator=inner)


def _check_shape(caller: str, tensor: MaskedTensor, estimator: Estimator) -> None:
    """Raise unless an estimator has scores of the shape that a mask has."""
    check_is_estimator(caller, estimator)
    mask, place = tensor.mask, tensor.place
    if not mask.has_scores:
        return
    shape = score_shape(caller, place.name, estimator, place.parameter)
    if shape != mask.scores.shape:
        raise ValueError(
            f"{caller}() can't put {estimator!r} on {place.name!r}: it has scores of "
            f"shape {tuple(shape)}, and those of the model have shape "
            f"{tuple(mask.scores.shape)}. Call masktorch.unwrap(model, bake=False), "
            "then masktorch.wrap with this estimator."
        )


def _replace_estimators(
    found: Masked, chosen: Mapping[str, Estimator], caller: str
) -> None:
    """Put estimators on masks, once each can be used on the scores of its tensor."""
    for tensor in found:
        name, mask = tensor.name, tensor.mask
        if not mask.has_scores:
            raise ValueError(
                f"{caller}() found a fixed mask on {name!r}, which has no scores. Call "
                "masktorch.unwrap(model, bake=False), then masktorch.wrap."
            )
        shape = tensor.place.parameter.shape
        check_estimator(caller, name, chosen[name], mask.scores, shape)
        protocol.is_stochastic(chosen[name])  # may raise: before anything changes
    for tensor in found:
        tensor.mask.use_estimator(chosen[tensor.name])


def expected_density(
    model: nn.Module, *, cost: Mapping[str, float] | None = None
) -> Tensor:
    """Return the expected density of all masks together, differentiable by the scores.

    `sum_t c_t sum_i p_ti / sum_t c_t n_t` over the tensors `t` with `n_t` entries,
    where `p_ti` is the probability that entry `i` is kept: `sigma(s)` where masks are
    sampled with it, the mask itself with its estimator's gradient where it is
    deterministic, and a constant where the count is fixed (`TopK`, `NOfM`) or the mask
    is frozen or fixed. A scalar, to make a penalty of.

    Args:
        model: a wrapped model.
        cost: `c_t`, the cost of an entry of each masked tensor, by name or shell
            pattern: the number of times that it is used, for instance. By default 1.

    Raises:
        ValueError: nothing is masked; or a cost is missing, unknown, negative or not
            finite, or all are 0.
        TypeError: `cost` is not a mapping of numbers.

    Examples:
        >>> from masktorch import Bernoulli, wrap
        >>> expected_density(wrap(nn.Linear(4, 3), Bernoulli(), init=0.0))
        tensor(0.5000, grad_fn=<DivBackward0>)
    """
    masked = masked_tensors(model, "expected_density")
    costs = _costs(masked, cost)
    largest = max(costs.values()) or 1.0  # so that a large cost overflows nothing
    kept, entries = [], 0.0
    for tensor in masked:
        size = tensor.place.parameter.numel()
        entry_cost = costs[tensor.name] / largest
        kept.append(entry_cost * gathered(tensor.mask.expected().sum()))
        entries += entry_cost * size
    if cost is not None and entries == 0:
        raise ValueError(
            "expected_density() expected a cost above 0 for a tensor with entries, "
            f"found {dict(cost)!r}."
        )
    device = kept[0].device
    return torch.stack([number.to(device) for number in kept]).sum() / (entries or 1)


def _costs(masked: Masked, cost: Mapping[str, float] | None) -> dict[str, float]:
    """The cost of an entry of each masked tensor, by its first name."""
    if cost is None:
        return {tensor.name: 1 for tensor in masked}
    if not isinstance(cost, Mapping):
        raise TypeError(
            "expected_density() expected cost to be a dict from tensor names to "
            f"numbers, found {cost!r}."
        )
    noun = "cost for each masked tensor"
    costs = by_name("expected_density", noun, masked, cost, patterns=True)
    for name, value in costs.items():
        caller = f"expected_density() for {name!r}"
        check_number(caller, "a cost", value, 0, closed_low=True)
    return costs
