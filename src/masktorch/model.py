"""The masks of a model: where they are, and what every change to them has to heed."""

import sys
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from masktorch.estimators import Estimator
from masktorch.mask import Mask, deterministic, total
from masktorch.parametrization import attached
from masktorch.targets import Place, describe, places_of

Model = TypeVar("Model", bound=nn.Module)
Masked = list[tuple[Mask, list[Place]]]
Found = list[tuple[Any, list[Place]]]


def masked_tensors(model: nn.Module, caller: str) -> Masked:
    """Every mask with the places of its tensor, in the order of the model; raises without one."""
    found = find_masks(model, caller)
    if not found:
        raise ValueError(
            f"{caller}() expected a wrapped model: nothing is masked in {describe(model)}. Call "
            "masktorch.wrap(model) or masktorch.set_masks(model, masks) first."
        )
    return found


def find_masks(model: nn.Module, caller: str) -> Masked:
    """The same, empty where nothing is masked."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller}() expected a torch.nn.Module, found {type(model).__name__}.")
    for module in _distributed(model):
        if not isinstance(module, DistributedDataParallel):
            module.reshard()  # what FSDP2 has gathered is a copy: changes to it would be lost
    found: dict[Mask, list[Place]] = {}
    for place in places_of(model):
        if mask := attached(place.module).get(place.attribute):
            found.setdefault(mask, []).append(place)
    return list(found.items())


def by_name(
    caller: str, what: str, found: Found, values: Any, *, others: str = "Not masked in this model"
) -> dict[str, Any]:
    """The values of tensors by their first names: one for all, or from a mapping, if there is one
    for each, under any of its names; `others` says what other names are."""
    if not isinstance(values, Mapping):
        return {places[0].name: values for _, places in found}
    chosen: dict[str, Any] = {}
    unknown = dict.fromkeys(values)
    for _, places in found:
        first = places[0].name
        for name in (place.name for place in places if place.name in values):
            unknown.pop(name, None)
            if not _same(chosen.setdefault(first, values[name]), values[name]):
                raise ValueError(
                    f"{caller}() expected one {what.split()[0]} for {first!r}, found two for "
                    f"{first!r}, which is the same tensor as {name!r} (tied weights)."
                )
    missing = [places[0].name for _, places in found if places[0].name not in chosen]
    if missing or unknown:
        raise ValueError(
            f"{caller}() expected one {what}, by name. "
            + (f"Missing: {', '.join(missing)}. " if missing else "")
            + (f"{others}: {', '.join(map(str, unknown))}. " if unknown else "")
            + "masktorch.masks(model) shows the names."
            + (" To mask others, masktorch.unwrap(model, bake=False) first." if unknown else "")
        )
    return chosen


def _same(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or torch.equal(one, other)
    return one is other or one == other


def check_estimator(caller: str, name: str, estimator: Estimator, scores: Tensor) -> None:
    """Raises where an estimator is none, or can't be used on these scores."""
    if isinstance(estimator, type | nn.Module) or not isinstance(estimator, Estimator):
        raise TypeError(
            f"{caller}() expected an estimator such as masktorch.Threshold(): a value with "
            f"__call__(scores) and mode(scores). Found {estimator!r}. Call a class, Threshold(); "
            "for a density write masktorch.TopK(density)."
        )
    try:
        deterministic(estimator, scores)
    except ValueError as error:
        raise ValueError(f"{caller}() can't mask {name!r}: {error}") from error


def checked_mask(caller: str, name: str, mask: object, shape: torch.Size) -> Tensor:
    """The mask, if it is a bool tensor of that shape."""
    if not isinstance(mask, Tensor) or (mask.dtype, mask.layout) != (torch.bool, torch.strided):
        found: object = type(mask).__name__
        if isinstance(mask, Tensor):
            found = mask.layout if mask.dtype is torch.bool else mask.dtype
        raise TypeError(f"{caller}() expected a bool tensor for {name!r}, found {found}.")
    if mask.shape != shape:
        raise ValueError(
            f"{caller}() expected a mask of shape {tuple(shape)} for {name!r}, found "
            f"{tuple(mask.shape)}."
        )
    return mask


def check_flag(caller: str, name: str, value: bool) -> None:
    if value not in (True, False):
        raise TypeError(f"{caller}() expected {name} to be True or False, found {value!r}.")


def _distributed(model: nn.Module) -> list[Any]:
    """The modules that DDP or FSDP2 has taken."""
    fsdp = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())
    return [m for m in model.modules() if isinstance(m, (DistributedDataParallel, fsdp))]


def check_not_distributed(model: nn.Module, caller: str, instead: str) -> None:
    if isinstance(model, nn.Module) and (taken := _distributed(model)):
        raise ValueError(
            f"{caller}() can't change a model that is distributed already: it found a "
            f"{type(taken[0]).__name__}, which has fixed what the parameters are. {instead}"
        )


def set_trains(parameter: Tensor, trains: bool) -> None:
    parameter.requires_grad_(trains)
    if not trains:
        parameter.grad = None  # an optimiser steps on whatever gradient it finds


def warn_if_empty(name: str, mask: Tensor) -> None:
    if mask.numel() and not mask.is_meta and not total(mask):
        warnings.warn(
            f"The mask of {name!r} keeps nothing: its layer computes with zeros. Start the scores "
            "higher (init=...), lower tau, or leave the tensor out of targets. For given masks, "
            "keep_largest with a mapping gives each tensor its own density.",
            stacklevel=3,
        )
