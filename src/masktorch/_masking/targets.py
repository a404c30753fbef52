"""Which tensors are masked, and everything that is checked before the model changes."""

import difflib
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import ParametrizationList

Targets = Callable[[str, nn.Module], Iterable[str]] | Iterable[str]

_UNFIT = (
    nn.Sequential,
    nn.ModuleList,
    nn.ModuleDict,
    torch.jit.ScriptModule,
    torch.fx.GraphModule,
)


def conv_and_linear(module_name: str, module: nn.Module) -> list[str]:
    """The default targets: the `weight` of Conv1d-3d, ConvTranspose1d-3d, Linear and subclasses,
    and of transformers' Conv1D, known by its name; `wrap` asks for none of what peft adds."""
    kinds = {
        (kind.__module__.partition(".")[0], kind.__name__)
        for kind in type(module).__mro__
    }
    known = (
        isinstance(module, _ConvNd | nn.Linear) or ("transformers", "Conv1D") in kinds
    )
    return ["weight"] if known else []


def _without_adapters(modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The modules that were there before peft, whose layers say what they add."""
    added: list[str] = []
    for name, module in modules.items():
        prompts = (
            ["prompt_encoder"]
            if hasattr(module, "get_prompt_embedding_to_save")
            else []
        )
        names = getattr(module, "adapter_layer_names", prompts)
        added += [join(name, attribute) + "." for attribute in names]
    inside = {n: m for n, m in modules.items() if not hasattr(m, "adapter_layer_names")}
    return {n: m for n, m in inside.items() if not f"{n}.".startswith(tuple(added))}


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
    """The parameters to mask, in the order of the model, with every place that holds them."""
    chosen = _chosen(model, targets, caller)
    if not chosen:
        children = ", ".join([type(child).__name__ for child in model.children()][:5])
        why = (
            "it has no Linear or Conv layer"
            if targets is conv_and_linear
            else "targets is empty"
        )
        raise ValueError(
            f"{caller}() found nothing to mask in {type(model).__name__}({children}): {why}. "
            "Name tensors with targets=[...]."
        )
    parameters = {place.name: place.parameter for place in places_of(model)}
    if bias:
        chosen += parameters.keys() & {
            join(name.rpartition(".")[0], "bias") for name in chosen
        }
    for name in chosen:
        if name not in parameters:
            near = difflib.get_close_matches(name, parameters, n=3)
            hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise ValueError(
                f"{caller}() found no parameter {name!r} in the model.{hint}"
            )
    wanted = {parameters[name] for name in chosen}
    planned: dict[nn.Parameter, list[Place]] = {}
    for place in places_of(model):
        if place.parameter in wanted:  # a tied tensor is masked wherever it lives
            _check(caller, place)
            planned.setdefault(place.parameter, []).append(place)
    return list(planned.items())


def _chosen(model: nn.Module, targets: Targets, caller: str) -> list[str]:
    """The full names that `targets` gives, without those of tensors that are computed."""
    modules = {plain_name(name): module for name, module in model.named_modules()}
    if callable(targets) and not isinstance(targets, type):
        asked = _without_adapters(modules) if targets is conv_and_linear else modules
        chosen = [
            join(name, attribute)
            for name, module in asked.items()
            for attribute in _listed(targets(name, module), caller)
        ]
    else:
        chosen = _listed(targets, caller)
    computed = []
    for name in chosen:
        owner, _, attribute = name.rpartition(".")
        module = modules.get(owner, model)
        there = parametrize.is_parametrized(module, attribute) or attribute in vars(
            module
        )
        if there and attribute not in module._parameters:
            computed.append(name)
    if computed:
        what = (
            f"{', '.join(computed)}: not a parameter, computed by weight_norm, torch.nn.utils.prune"
            " or the like. Name what it is computed from, or remove that first: docs/wrapping.md."
        )
        if not callable(targets):
            raise ValueError(f"{caller}() can't mask {what}")
        warnings.warn(f"{caller}() leaves out {what}", stacklevel=4)
    return [name for name in chosen if name not in computed]


def _listed(names: Any, caller: str) -> list[str]:
    """What `targets` is or returns, if that is names."""
    listed = isinstance(names, Iterable) and not isinstance(names, str)
    found = list(names) if listed else []
    if not listed or not all(isinstance(name, str) for name in found):
        raise TypeError(
            f"{caller}() expected a list of full tensor names, or targets(module_name, module) to "
            f"return a list such as ['weight'], found {names!r:.80}."
        )
    return found


def _check(caller: str, place: Place) -> None:
    """Raises where a parameter can't have a mask."""
    name, module, attribute, parameter = place
    kind, original = (
        type(module).__name__,
        vars(type(module)).get("_original_class", type(module)),
    )
    if not parameter.is_floating_point() or parameter.dtype.itemsize < 2:
        raise TypeError(
            f"{caller}() expected floating-point tensors of 16 bits or more, found {name!r} of "
            f"{parameter.dtype}. Leave it out of targets."
        )
    if parametrize.is_parametrized(module, attribute):
        why = "it has a mask already. Call masktorch.unwrap(model) first, or leave the tensor out"
    elif is_lazy(parameter):
        why = "it has no shape yet (a lazy module). Run one batch through the model, then wrap it"
    elif _overlaps(parameter):
        why = "several of its entries share one place in memory (expanded). Use its .clone()"
    elif isinstance(module, _UNFIT) and not isinstance(module, ParametrizationList):
        why = f"a {kind} can't hold masks. Move it into a module of its own, before any tracing"
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
        why = f"sparse gradients do not pass a mask. Make the {kind} with sparse=False"
    elif not isinstance(
        getattr(module, "parametrizations", nn.ModuleDict()), nn.ModuleDict
    ):
        why = "its module has 'parametrizations' of its own, where masks belong. Rename them"
    elif hasattr(original, attribute) or hasattr(nn.ModuleDict, attribute):
        why = f"{kind}, or the ModuleDict of masks, has a {attribute!r} of its own. Rename it"
    else:
        return
    raise ValueError(f"{caller}() can't mask {name!r}: {why}.")


def _overlaps(tensor: Tensor) -> bool:
    """Whether entries share their place: expanded, or more of them than places in its span."""
    steps = [
        (n, step)
        for n, step in zip(tensor.shape, tensor.stride(), strict=True)
        if n > 1
    ]
    return (
        any(not s for _, s in steps)
        or 1 + sum((n - 1) * s for n, s in steps) < tensor.numel()
    )


def plain_name(name: str) -> str:
    """A name without what torch.compile adds to it: a compiled model has the names of its own."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def join(module_name: str, attribute: str) -> str:
    """The full name of a tensor."""
    return f"{module_name}.{attribute}" if module_name else attribute
