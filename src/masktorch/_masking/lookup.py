"""The masks of a model: where they are, and what every change to them has to heed."""

import sys
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from masktorch._masking.mask import Mask, deterministic, total
from masktorch._masking.module_class import attached
from masktorch._masking.targets import Place, places_of
from masktorch._methods.protocol import Estimator
from masktorch._sharding import is_sharded, parted

Model = TypeVar("Model", bound=nn.Module)
Masked = list[tuple[Mask, list[Place]]]
Found = list[tuple[Any, list[Place]]]


def masked_tensors(model: nn.Module, caller: str) -> Masked:
    """Every mask with the places of its tensor, in the order of the model; raises without one."""
    found = find_masks(model, caller)
    if not found:
        raise ValueError(
            f"{caller}() expected a wrapped model: nothing is masked in {type(model).__name__}. "
            "Call masktorch.wrap(model) or masktorch.set_masks(model, masks) first."
        )
    return found


def find_masks(model: nn.Module, caller: str) -> Masked:
    """The same, empty where nothing is masked."""
    for module in _distributed(model, caller):
        if not isinstance(module, DistributedDataParallel):
            module.reshard()  # what FSDP2 has gathered is a copy: changes to it would be lost
    found: dict[Mask, list[Place]] = {}
    for place in places_of(model):
        if mask := attached(place.module).get(place.attribute):
            found.setdefault(mask, []).append(place)
    return list(found.items())


def by_name(
    caller: str,
    what: str,
    found: Found,
    values: Any,
    *,
    others: str = "Not masked in this model",
) -> dict[str, Any]:
    """The values of tensors by their first names: one for all, or a mapping's, by any name."""
    if not isinstance(values, Mapping):
        return {places[0].name: values for _, places in found}
    chosen: dict[str, Any] = {}
    for _, places in found:
        names = [place.name for place in places if place.name in values]
        for name in names:
            one, two = values[names[0]], values[name]
            same = one is two or (
                torch.equal(one, two) if isinstance(two, Tensor) else one == two
            )
            if not same:
                raise ValueError(
                    f"{caller}() expected one {what}, found two for {names[0]!r}, tied to {name!r}."
                )
            chosen[places[0].name] = two
    known = {place.name for _, places in found for place in places}
    missing = [places[0].name for _, places in found if places[0].name not in chosen]
    unknown = [str(name) for name in values if name not in known]
    if missing or unknown:
        raise ValueError(
            f"{caller}() expected one {what}, by name. Missing: {', '.join(missing) or 'none'}. "
            f"{others}: {', '.join(unknown) or 'none'}. masktorch.masks(model) shows the names."
        )
    return chosen


def check_estimator(
    caller: str, name: str, estimator: Estimator, scores: Tensor
) -> None:
    """Raises where an estimator is none, or can't be used on these scores."""
    if isinstance(estimator, type | nn.Module) or not isinstance(estimator, Estimator):
        raise TypeError(
            f"{caller}() expected an estimator such as masktorch.Threshold(), with "
            f"__call__(scores) and mode(scores). Found {estimator!r}."
        )
    try:
        deterministic(estimator, scores, scores.shape)
    except ValueError as error:
        raise ValueError(f"{caller}() can't mask {name!r}: {error}") from error


def checked_masks(
    caller: str, found: Found, masks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The masks by the first names of their tensors, on their devices and in their shards."""
    if not isinstance(masks, Mapping):
        raise TypeError(
            f"{caller}() expected a dict from tensor names to masks, found {type(masks).__name__}."
        )
    wanted = by_name(caller, "mask for each masked tensor", found, masks)
    for _, (place, *_) in found:
        mask, own = wanted[place.name], place.parameter
        expected = f"{caller}() expected a dense bool tensor for {place.name!r}"
        dense = isinstance(mask, Tensor) and mask.layout is torch.strided
        if not dense or mask.dtype is not torch.bool:
            raise TypeError(
                f"{expected}, found {mask.dtype if dense else type(mask).__name__}."
            )
        if mask.shape != own.shape:
            raise ValueError(
                f"{expected} of shape {tuple(own.shape)}, found {tuple(mask.shape)}."
            )
        mask = mask.to(own.device)
        wanted[place.name] = mask if is_sharded(mask) else parted(mask, own)
    return wanted


def check_flag(caller: str, name: str, value: bool) -> None:
    if value not in (True, False):
        raise TypeError(
            f"{caller}() expected {name} to be True or False, found {value!r}."
        )


def _distributed(model: nn.Module, caller: str) -> list[Any]:
    """The modules that DDP or FSDP2 has taken."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{caller}() expected a torch.nn.Module, found {type(model).__name__}."
        )
    fsdp = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())
    return [
        m for m in model.modules() if isinstance(m, (DistributedDataParallel, fsdp))
    ]


def check_not_distributed(model: nn.Module, caller: str, instead: str) -> None:
    for module in _distributed(model, caller):
        raise ValueError(
            f"{caller}() can't change a model that is distributed already: it found a "
            f"{type(module).__name__}, which has fixed what the parameters are. {instead}"
        )


def set_trains(parameter: Tensor, trains: bool) -> None:
    parameter.requires_grad_(trains)
    if not trains:
        parameter.grad = None  # an optimiser steps on whatever gradient it finds


def warn_if_empty(name: str, mask: Tensor) -> None:
    if mask.numel() and not mask.is_meta and not total(mask):
        warnings.warn(
            f"The mask of {name!r} keeps nothing, its layer computes zeros. Start scores higher.",
            stacklevel=3,
        )
