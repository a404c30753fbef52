"""The masks of a model: where they are, and what every change to them has to heed."""

import sys
import warnings
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from masktorch.parametrization import Mask, attached, total
from masktorch.targets import Place, describe, join, plain_name

Model = TypeVar("Model", bound=nn.Module)


def masked_tensors(model: nn.Module, caller: str) -> list[tuple[Mask, list[Place]]]:
    """Every mask with the places of its tensor, in the order of the model."""
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
    if not found:
        raise ValueError(
            f"{caller}() expected a wrapped model: nothing is masked in {describe(model)}. Call "
            "masktorch.wrap(model) first."
        )
    return list(found.items())


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
