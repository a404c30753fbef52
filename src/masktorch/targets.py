"""Which tensors are masked, and everything that is checked before the model changes."""

import difflib
import inspect
import reprlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.fx
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import ParametrizationList

Targets = Callable[[str, nn.Module], Iterable[str]] | Iterable[str]

_CONV = nn.Conv1d, nn.Conv2d, nn.Conv3d
_CONV_TRANSPOSE = nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
_CONTAINERS = nn.Sequential, nn.ModuleList, nn.ModuleDict


def conv_and_linear(module_name: str, module: nn.Module) -> list[str]:
    """The default targets: the `weight` of Conv1d-3d, ConvTranspose1d-3d, Linear and subclasses.

    So is that of transformers' Conv1D, a Linear whose weight is transposed, which is known by its
    name: transformers is not imported. `wrap` asks nothing about the layers that peft adds.

    Examples:
        >>> conv_and_linear("head", nn.Linear(2, 2)), conv_and_linear("norm", nn.LayerNorm(2))
        (['weight'], [])
    """
    conv1d = any(
        (kind.__module__.partition(".")[0], kind.__name__) == ("transformers", "Conv1D")
        for kind in type(module).__mro__
    )
    return ["weight"] if conv1d or isinstance(module, (*_CONV, *_CONV_TRANSPOSE, nn.Linear)) else []


def _without_adapters(modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The modules that were there before peft. Its layers say in `adapter_layer_names` what they
    add to the layer inside; what a PeftModel puts before the input is its `prompt_encoder`."""
    added = []
    for name, module in modules.items():
        added += [join(name, added) + "." for added in getattr(module, "adapter_layer_names", ())]
        if hasattr(module, "get_prompt_embedding_to_save"):
            added.append(join(name, "prompt_encoder."))
    return {
        name: module
        for name, module in modules.items()
        if not hasattr(module, "adapter_layer_names") and not f"{name}.".startswith(tuple(added))
    }


class Place(NamedTuple):
    """One place where a parameter lives, under a mask or not."""

    name: str  # full name of the tensor: "layer1.0.conv1.weight"
    module: nn.Module
    attribute: str  # "weight"
    parameter: nn.Parameter


def places_of(model: nn.Module) -> Iterator[Place]:
    """All parameters of a model, in its order, as often as they live in it (tied weights)."""
    for module_name, module in model.named_modules():
        owner = plain_name(module_name)
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                yield Place(join(owner, attribute), module, attribute, parameter)


def plan(
    model: nn.Module, targets: Targets, *, bias: bool, caller: str
) -> list[tuple[nn.Parameter, list[Place]]]:
    """The parameters to mask, in the order of the model, with every place that holds them; raises
    where one of them can't be masked."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller}() expected a torch.nn.Module, found {type(model).__name__}.")
    modules = {plain_name(name): module for name, module in model.named_modules()}
    chosen = _chosen(modules, targets)
    if not chosen:
        default = targets is conv_and_linear
        hint = "it has no Linear or Conv layer" if default else "targets is empty"
        raise ValueError(
            f"{caller}() found nothing to mask in {describe(model)}: {hint}. "
            "Name tensors with targets=[...]."
        )
    parameters = {place.name: place.parameter for place in places_of(model)}
    if bias:
        chosen += parameters.keys() & {join(name.rpartition(".")[0], "bias") for name in chosen}
    wanted = {_named(caller, name, modules, parameters) for name in chosen}
    planned: dict[nn.Parameter, list[Place]] = {}
    for place in places_of(model):
        if place.parameter in wanted:  # a tied tensor is masked wherever it lives
            _check(caller, place)
            planned.setdefault(place.parameter, []).append(place)
    return list(planned.items())


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
        found: Any = targets(module_name, module)
        listed = isinstance(found, Iterable) and not isinstance(found, str)
        named: list[Any] = list(found) if listed else [found]
        if not listed or not all(isinstance(name, str) for name in named):
            raise TypeError(
                "wrap() expected targets(module_name, module) to return a list of tensor names, "
                f"found {reprlib.repr(found)} for {module_name!r}. For the weight return "
                "['weight'], for none return []."
            )
        for attribute in named:  # by torch's parametrizations or the older kind of hook
            is_computed = attribute not in module._parameters and (
                parametrize.is_parametrized(module, attribute) or attribute in vars(module)
            )
            (computed if is_computed else chosen).append(join(module_name, attribute))
    if computed:
        warnings.warn(
            f"wrap() leaves out {', '.join(computed)}: not a parameter, a parametrization such as "
            "weight_norm or torch.nn.utils.prune computes it. Name what it is computed from in "
            "targets to mask that; of prune, prune.remove first, or docs/recipes/elsewhere.md.",
            stacklevel=4,
        )
    return chosen


def _named(
    caller: str, name: str, modules: dict[str, nn.Module], parameters: dict[str, nn.Parameter]
) -> nn.Parameter:
    """The parameter of that name; raises where there is none."""
    if name in parameters:
        return parameters[name]
    owner, _, attribute = name.rpartition(".")
    module = modules.get(owner, nn.Module())
    if attribute in module._parameters:
        raise ValueError(f"{caller}() can't mask {name!r}: it is None in this model. Leave it out.")
    if parametrize.is_parametrized(module, attribute):
        inside = join(owner, f"parametrizations.{attribute}.original")
        raise ValueError(
            f"{caller}() can't mask {name!r}: another parametrization computes it. Mask what it is "
            f"computed from, targets={[known for known in parameters if known.startswith(inside)]},"
            " or remove that parametrization first."
        )
    if f"{name}_orig" in parameters:
        raise ValueError(
            f"{caller}() can't mask {name!r}: torch.nn.utils.prune computes it. Call prune.remove "
            "first, or see docs/recipes/elsewhere.md."
        )
    near = difflib.get_close_matches(name, parameters, n=3)
    some = ", ".join([*parameters][:5] + ["..."] * (len(parameters) > 5))
    hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else f"It has {some}."
    raise ValueError(f"{caller}() found no parameter {name!r} in the model. {hint}")


def _check(caller: str, place: Place) -> None:
    """Raises where a parameter can't have a mask."""
    name, module, attribute, parameter = place
    kind, original = type(module).__name__, vars(type(module)).get("_original_class", type(module))
    if not parameter.is_floating_point():
        raise TypeError(
            f"{caller}() expected floating-point tensors, found {name!r} of {parameter.dtype}. "
            "Leave it out of targets."
        )
    if parametrize.is_parametrized(module, attribute):
        raise ValueError(
            f"{caller}() found a mask on {name!r} already. Call masktorch.unwrap(model) first, or "
            "leave the tensor out of targets."
        )
    error: type[Exception] = ValueError
    if is_lazy(parameter):
        why = "it has no shape yet (a lazy module). Run one batch through the model, then wrap it"
    elif parameter.element_size() < 2:
        error = TypeError
        why = f"PyTorch does not compute in {parameter.dtype}. Mask the tensor in another precision"
    elif _overlaps(parameter):
        why = "several of its entries share one place in memory (expanded). Use its .clone()"
    elif isinstance(module, torch.jit.ScriptModule | torch.fx.GraphModule):
        error = TypeError
        why = f"its module is a {kind}, whose code is fixed. Wrap before it is scripted or traced"
    elif any(attribute in vars(base) for base in original.__mro__):
        why = f"the class {kind} has a {attribute!r} of its own (a property, say). Rename one"
    elif isinstance(module, _CONTAINERS) and not isinstance(module, ParametrizationList):
        why = f"its {kind} would take the mask for a layer. Move it into a module of its own"
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
        why = f"sparse gradients do not pass a mask. Make the {kind} with sparse=False"
    elif not isinstance(getattr(module, "parametrizations", nn.ModuleDict()), nn.ModuleDict):
        why = "its module has a 'parametrizations' of its own, where masks belong. Rename it"
    elif hasattr(nn.ModuleDict, attribute):
        why = "torch.nn.ModuleDict, which holds the masks, has a method of that name. Rename it"
    else:
        return
    raise error(f"{caller}() can't mask {name!r}: {why}.")


def _overlaps(tensor: torch.Tensor) -> bool:
    """Whether entries surely share memory: expanded, or more entries than places in its span."""
    steps = [(n, step) for n, step in zip(tensor.shape, tensor.stride(), strict=True) if n > 1]
    span = 1 + sum((n - 1) * step for n, step in steps)
    return any(step == 0 for _, step in steps) or span < tensor.numel()


def describe(model: nn.Module) -> str:
    """`Sequential(ReLU, Flatten)`: the class of a model and of its first children."""
    children = [type(child).__name__ for child in model.children()]
    shown = ", ".join(children[:5] + ["..."] * (len(children) > 5))
    return f"{type(model).__name__}({shown})"


def plain_name(name: str) -> str:
    """A name without what torch.compile adds to it: a compiled model has the names of its own."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def join(module_name: str, attribute: str) -> str:
    """The full name of a tensor."""
    return f"{module_name}.{attribute}" if module_name else attribute
