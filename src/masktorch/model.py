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
from masktorch.targets import Place, describe, join, plain_name

Model = TypeVar("Model", bound=nn.Module)
T = TypeVar("T")
Masked = list[tuple[Mask, list[Place]]]


def masked_tensors(model: nn.Module, caller: str) -> Masked:
    """Every mask with the places of its tensor, in the order of the model; raises without one."""
    found = find_masks(model, caller)
    if not found:
        raise ValueError(
            f"{caller}() expected a wrapped model: nothing is masked in {describe(model)}. Call "
            "masktorch.wrap(model) first."
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
    for module_name, module in model.named_modules():
        for attribute, mask in attached(module).items():
            place = Place(join(plain_name(module_name), attribute), module, attribute)
            found.setdefault(mask, []).append(place)
    return list(found.items())


def by_name(
    caller: str,
    what: str,
    found: Masked,
    values: Mapping[str, T],
    *,
    others: str = "Not masked in this model",
) -> dict[str, T]:
    """The values of the masks by their first names, if there is one for each, under any of the
    names of its tensor; `others` says what other names are."""
    chosen, unknown, missing = {}, dict.fromkeys(values), []
    for _, places in found:
        names = [place.name for place in places if place.name in values]
        for name in names:
            unknown.pop(name, None)
        if not names:
            missing.append(places[0].name)
        elif any(not _same(values[name], values[names[0]]) for name in names):
            raise ValueError(
                f"{caller}() expected one {what}, found two for {names[0]!r}, which is the same "
                f"tensor as {names[1]!r} (tied weights)."
            )
        else:
            chosen[places[0].name] = values[names[0]]
    if missing or unknown:
        raise ValueError(
            f"{caller}() expected one {what}, by name. "
            + (f"Missing: {', '.join(missing)}. " if missing else "")
            + (f"{others}: {', '.join(map(str, unknown))}. " if unknown else "")
            + "masktorch.masks(model) shows the names."
        )
    return chosen


def _same(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return one is other or one == other


def check_estimator(caller: str, name: str, estimator: Estimator, scores: Tensor) -> None:
    """Raises where an estimator is none, or can't be used on these scores."""
    if isinstance(estimator, type | nn.Module) or not isinstance(estimator, Estimator):
        hint = ""
        if isinstance(estimator, type):
            hint = f" Write {estimator.__name__}(), a value."
        elif isinstance(estimator, float):
            hint = f" For that density write masktorch.TopK({estimator!r})."
        raise TypeError(
            f"{caller}() expected an estimator such as masktorch.Threshold(): a value with "
            f"__call__(scores) and mode(scores). Found {estimator!r}.{hint}"
        )
    try:
        deterministic(estimator, scores)
    except ValueError as error:
        raise ValueError(f"{caller}() can't mask {name!r}: {error}") from error


def checked_mask(caller: str, name: str, mask: object, shape: torch.Size) -> Tensor:
    """The mask, if it is a bool tensor of that shape."""
    if not isinstance(mask, Tensor) or (mask.dtype, mask.layout) != (torch.bool, torch.strided):
        found = str(mask.dtype) if isinstance(mask, Tensor) else type(mask).__name__
        if isinstance(mask, Tensor) and mask.layout is not torch.strided:
            found = str(mask.layout)
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


def parameters(places: list[Place]) -> list[nn.Parameter]:
    """The masked parameter, once; several if something has untied what was tied."""
    return list(dict.fromkeys(place.parameter for place in places))


def set_trains(parameter: Tensor, trains: bool) -> None:
    parameter.requires_grad_(trains)
    if not trains:
        parameter.grad = None  # an optimiser steps on whatever gradient it finds


def warn_if_empty(name: str, mask: Tensor) -> None:
    if mask.numel() and not mask.is_meta and not total(mask):
        warnings.warn(
            f"The mask of {name!r} keeps nothing: its layer computes with zeros. Start the scores "
            "higher (init=...), lower tau, or leave the tensor out of targets.",
            stacklevel=3,
        )
