"""Which tensors are masked, and everything that is checked before the model changes."""

import difflib
import inspect
import reprlib
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import torch
import torch.fx
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

Targets = Callable[[str, nn.Module], Iterable[str]] | Iterable[str]

_CONV_AND_LINEAR = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def conv_and_linear(module_name: str, module: nn.Module) -> list[str]:
    """The default targets: the `weight` of Conv1d-3d, ConvTranspose1d-3d, Linear and subclasses.

    So is that of transformers' Conv1D, a Linear whose weight is transposed, which is known by its
    name: transformers is not imported. `wrap` asks nothing about the layers that peft adds.

    Examples:
        >>> conv_and_linear("head", nn.Linear(2, 2)), conv_and_linear("norm", nn.LayerNorm(2))
        (['weight'], [])
    """
    return ["weight"] if isinstance(module, _CONV_AND_LINEAR) or _is_conv1d(module) else []


def _is_conv1d(module: nn.Module) -> bool:
    return any(
        (kind.__module__.partition(".")[0], kind.__name__) == ("transformers", "Conv1D")
        for kind in type(module).__mro__
    )


def _without_adapters(modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The modules that were there before peft added what it trains: LoRA's factors and kin.

    A layer of peft's says in `adapter_layer_names` what it adds to the layer inside, whose weight
    is the one to mask; what a PeftModel learns to put before the input is its `prompt_encoder`.
    """
    added = [
        join(name, attribute) + "."
        for name, module in modules.items()
        for attribute in (
            *getattr(module, "adapter_layer_names", ()),
            *(["prompt_encoder"] if hasattr(module, "get_prompt_embedding_to_save") else []),
        )
    ]
    return {
        name: module
        for name, module in modules.items()
        if not hasattr(module, "adapter_layer_names") and not f"{name}.".startswith(tuple(added))
    }


class Place(NamedTuple):
    """One place where a parameter lives."""

    name: str  # full name of the tensor: "layer1.0.conv1.weight"
    module: nn.Module
    attribute: str  # "weight"

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter itself, whether it is under a mask or not."""
        return cast(nn.Parameter, self.module._parameters[self.attribute])


class Target(NamedTuple):
    """A parameter to mask, with every place that holds it (several where weights are tied)."""

    parameter: nn.Parameter
    places: list[Place]


def plan(model: nn.Module, targets: Targets, *, bias: bool) -> list[Target]:
    """The parameters to mask, in the order of the model; raises where one of them can't be."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"wrap() expected a torch.nn.Module, found {type(model).__name__}.")
    modules = {plain_name(name): module for name, module in model.named_modules()}
    chosen = _chosen(modules, targets)
    if bias:
        owners = dict.fromkeys(name.rpartition(".")[0] for name in chosen)
        chosen += [
            join(owner, "bias")
            for owner in owners
            if owner in modules and modules[owner]._parameters.get("bias") is not None
        ]
    if not chosen:
        hint = (
            "it has no Linear or Conv layer" if targets is conv_and_linear else "targets is empty"
        )
        raise ValueError(
            f"wrap() found nothing to mask in {describe(model)}: {hint}. "
            "Name tensors with targets=[...]."
        )

    homes: dict[nn.Parameter, list[Place]] = {}
    for module_name, module in modules.items():
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                place = Place(join(module_name, attribute), module, attribute)
                homes.setdefault(parameter, []).append(place)
    parameters = {place.name: p for p, places in homes.items() for place in places}
    for name in chosen:
        _check(name, modules, parameters)
    wanted = {parameters[name] for name in chosen}
    planned = [Target(p, places) for p, places in homes.items() if p in wanted]
    for _, places in planned:
        for place in places:  # a tied tensor is masked wherever it lives
            _check(place.name, modules, parameters)
    return planned


def _chosen(modules: dict[str, nn.Module], targets: Targets) -> list[str]:
    if isinstance(targets, str | type) or not (callable(targets) or isinstance(targets, Iterable)):
        raise TypeError(
            "wrap() expected targets to be a function (module_name, module) -> tensor names, or a "
            f"list of full tensor names, found {targets!r}. For one tensor write targets=[name]."
        )
    if not callable(targets):
        names = list(targets)
        if wrong := [name for name in names if not isinstance(name, str)]:
            raise TypeError(f"wrap() expected targets to be tensor names, found {wrong[0]!r}.")
        return names
    try:
        inspect.signature(targets).bind("", nn.Module())
    except TypeError as error:
        raise TypeError(
            "wrap() expected targets to be a function of two arguments, (module_name, module) -> "
            f"tensor names, found {targets!r}: {error}."
        ) from error
    except ValueError:  # a function that does not tell
        pass
    chosen: list[str] = []
    computed: list[str] = []
    asked = _without_adapters(modules) if targets is conv_and_linear else modules
    for module_name, module in asked.items():
        attributes: Any = targets(module_name, module)
        listed = isinstance(attributes, Iterable) and not isinstance(attributes, str)
        named: list[str] = list(attributes) if listed else []
        if not listed or not all(isinstance(name, str) for name in named):
            raise TypeError(
                "wrap() expected targets(module_name, module) to return a list of tensor names, "
                f"found {reprlib.repr(attributes)} for {module_name!r}. For the weight return "
                "['weight'], for none return []."
            )
        for attribute in named:
            among = computed if _is_computed(module, attribute) else chosen
            among.append(join(module_name, attribute))
    if computed:
        warnings.warn(
            f"wrap() leaves out {', '.join(computed)}: not a parameter, a parametrization such as "
            "weight_norm computes it. Name what it is computed from in targets to mask that.",
            stacklevel=4,
        )
    return chosen


def _is_computed(module: nn.Module, attribute: str) -> bool:
    """Whether a tensor is the result of a parametrization, torch's or the older kind of hook."""
    return attribute not in module._parameters and (
        parametrize.is_parametrized(module, attribute) or attribute in vars(module)
    )


def _check(name: str, modules: dict[str, nn.Module], parameters: dict[str, nn.Parameter]) -> None:
    owner, _, attribute = name.rpartition(".")
    module = modules.get(owner)
    if module is None or attribute not in module._parameters:
        if module is not None and parametrize.is_parametrized(module, attribute):
            inside = join(owner, f"parametrizations.{attribute}.original")
            near = [n for n in parameters if n.startswith(inside)]
            raise ValueError(
                f"wrap() can't mask {name!r}: another parametrization computes it. Mask what it "
                f"is computed from, targets={near}, or remove that parametrization first."
            )
        near = difflib.get_close_matches(name, parameters, n=3)
        hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else _names(parameters)
        raise ValueError(f"wrap() found no parameter {name!r} in the model. {hint}")
    parameter = parameters.get(name)
    if parameter is None:
        raise ValueError(f"wrap() can't mask {name!r}: it is None in this model. Leave it out.")
    if is_lazy(parameter):
        raise ValueError(
            f"wrap() can't mask {name!r}: it has no shape yet (a lazy module). Run one batch "
            "through the model, then wrap it."
        )
    if not parameter.is_floating_point():
        raise TypeError(
            f"wrap() expected floating-point tensors, found {name!r} of {parameter.dtype}. "
            "Leave it out of targets."
        )
    if parameter.element_size() < 2:
        raise TypeError(
            f"wrap() can't mask {name!r}: PyTorch does not compute in {parameter.dtype}. Mask the "
            "tensor in another precision before it is quantized, or leave it out of targets."
        )
    if _overlaps(parameter):
        raise ValueError(
            f"wrap() can't mask {name!r}: several of its entries share one place in memory (an "
            "expanded tensor). Give it memory of its own with .clone() first."
        )
    if isinstance(module, torch.jit.ScriptModule | torch.fx.GraphModule):
        raise TypeError(
            f"wrap() can't mask {name!r}: its module is a {type(module).__name__}, whose code is "
            "fixed. Wrap the model before it is scripted or traced."
        )
    if isinstance(module, _CONTAINERS) and not isinstance(module, parametrize.ParametrizationList):
        raise TypeError(
            f"wrap() can't mask {name!r}: its module is a {type(module).__name__}, which would "
            "take the mask for one of its layers. Move the parameter into a module of its own."
        )
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
        raise ValueError(
            f"wrap() can't mask {name!r}: sparse gradients do not pass a mask. Make the "
            f"{type(module).__name__} with sparse=False."
        )
    if not isinstance(getattr(module, "parametrizations", nn.ModuleDict()), nn.ModuleDict):
        raise ValueError(
            f"wrap() can't mask {name!r}: its module has a 'parametrizations' of its own, where "
            "masks belong. Rename it."
        )
    if parametrize.is_parametrized(module, attribute):
        raise ValueError(
            f"wrap() found a mask on {name!r} already. Call masktorch.unwrap(model) first, or "
            "leave the tensor out of targets."
        )
    if hasattr(nn.ModuleDict(), attribute):
        raise ValueError(
            f"wrap() can't mask {name!r}: torch.nn.ModuleDict, which holds a module's masks, has "
            f"a method {attribute!r}. Rename the parameter."
        )


def _overlaps(tensor: torch.Tensor) -> bool:
    """Whether entries surely share memory: expanded, or more entries than places in its span."""
    extents = [
        (n, stride) for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if n > 1
    ]
    span = 1 + sum((n - 1) * stride for n, stride in extents)
    return any(stride == 0 for _, stride in extents) or span < tensor.numel()


def describe(model: nn.Module) -> str:
    """`Sequential(ReLU, Flatten)`: the class of a model and of its first children."""
    children = [type(child).__name__ for child in model.children()]
    shown = ", ".join(children[:5] + ["..."] * (len(children) > 5))
    return f"{type(model).__name__}({shown})"


def _names(parameters: Iterable[str]) -> str:
    names = list(parameters)
    return f"It has {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}."


def plain_name(name: str) -> str:
    """A name without what torch.compile adds to it: a compiled model has the names of its own."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def join(module_name: str, attribute: str) -> str:
    """The full name of a tensor."""
    return f"{module_name}.{attribute}" if module_name else attribute
