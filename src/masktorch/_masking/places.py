"""Where the parameters of a model live."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from masktorch._masking.mask import Mask
from masktorch._masking.names import join, plain_name

# Children of peft's own modules that lead to the model as it was; peft adds all others.
_ADAPTED = {"base_layer", "base_model", "model", "original_module", "token_adapter"}


class Place(NamedTuple):
    """One place where a parameter lives, under a mask or not."""

    name: str  # full name of the tensor: "layer1.0.conv1.weight"
    module: nn.Module
    attribute: str  # "weight"
    parameter: nn.Parameter
    fits_patterns: bool  # False for scores and for what peft adds


def places_of(model: nn.Module) -> Iterator[Place]:
    """Yield all parameters in the order of the model, as often as they live in it."""
    before_peft = modules_before_peft(model)
    for module_name, module in model.named_modules():
        owner = plain_name(module_name)
        fits_patterns = owner in before_peft and not isinstance(module, Mask)
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                name = join(owner, attribute)
                yield Place(name, module, attribute, parameter, fits_patterns)


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a model by name."""
    return {plain_name(name): module for name, module in model.named_modules()}


def modules_before_peft(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that were there before peft added adapters, by name."""
    modules = modules_of(model)
    kinds_of_peft = {
        kind for kind in set(map(type, modules.values())) if _is_of_peft(kind)
    }
    of_peft = {
        name: module
        for name, module in modules.items()
        if type(module) in kinds_of_peft
    }
    added = tuple(
        join(name, child) + "."
        for name, module in of_peft.items()
        for child in module._modules
        if child not in _ADAPTED
    )
    return {
        name: module
        for name, module in modules.items()
        if name not in of_peft and not f"{name}.".startswith(added)
    }


def _is_of_peft(kind: type) -> bool:
    """Whether peft defines a class; peft itself need not be installed."""
    return "peft" in {base.__module__.partition(".")[0] for base in kind.__mro__}
