"""Which tensors are masked, and everything that is checked before the model changes."""

import difflib
import gc
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import ParametrizationList

from masktorch._checks import check_takes
from masktorch._masking.identity import (
    holds_its_values,
    identity,
    living_containers,
    overlaps_itself,
    sharing_memory,
)
from masktorch._masking.mask import Mask, Masks, attached, masks_in
from masktorch._masking.module_class import original_class
from masktorch._masking.names import enumerated, is_pattern, join, matching
from masktorch._masking.places import (
    Place,
    modules_before_peft,
    modules_of,
    places_of,
)
from masktorch._sharding import is_sharded

Targets = Callable[[str, nn.Module], Iterable[str]] | Iterable[str]


class PlannedTensor(NamedTuple):
    """A tensor to mask, and all places that hold its memory."""

    parameter: nn.Parameter
    places: list[Place]

    @property
    def place(self) -> Place:
        """The first place, whose name and parameter represent the tensor."""
        return self.places[0]

    @property
    def name(self) -> str:
        """The first name of the tensor, by which it is known to the user."""
        return self.place.name


Planned = list[PlannedTensor]


def conv_and_linear(module_name: str, module: nn.Module) -> list[str]:
    """Name the default targets of `masktorch.wrap` in a module.

    They are the `weight` of Conv1d-3d, ConvTranspose1d-3d, Linear and their subclasses,
    and of transformers' Conv1D. `wrap` does not ask for modules that peft has added.
    """
    if isinstance(module, _ConvNd | nn.Linear) or _is_transformers_conv1d(module):
        return ["weight"]
    return []


def _is_transformers_conv1d(module: nn.Module) -> bool:
    """Known by its name, so that transformers need not be installed."""
    return ("transformers", "Conv1D") in {
        (kind.__module__.partition(".")[0], kind.__name__)
        for kind in type(module).__mro__
    }


def plan(
    model: nn.Module,
    targets: Targets,
    *,
    bias: bool = False,
    patterns: bool = True,
    caller: str,
) -> Planned:
    """Find the tensors to mask, in the model's order, and check that they can be.

    Args:
        model: any module.
        targets: as for `masktorch.wrap`.
        bias: whether to add the biases of the modules whose tensors are chosen.
        patterns: whether names may be shell patterns.
        caller: the public function, for messages.

    Returns:
        The tensors, each with all places that hold its memory.
    """
    places = list(places_of(model))
    names = _chosen_names(model, places, targets, patterns, caller)
    if bias:
        names |= {_name_of_bias(name) for name in names}
    chosen = {identity(place.parameter) for place in places if place.name in names}
    planned: dict[Hashable, list[Place]] = {}
    for place in places:
        key = identity(place.parameter)
        if key in chosen:
            _check(caller, place)
            planned.setdefault(key, []).append(place)
    for same in planned.values():
        _check_train_alike(caller, same)
    _refuse_overlaps(caller, list(planned.values()), places)
    refuse_learnable_masks_elsewhere(caller, model, list(planned.values()))
    return [PlannedTensor(same[0].parameter, same) for same in planned.values()]


# -- names -----------------------------------------------------------------------------


def _chosen_names(
    model: nn.Module,
    places: Sequence[Place],
    targets: Targets,
    patterns: bool,
    caller: str,
) -> set[str]:
    """Resolve `targets` to the full names of parameters; raise if nothing is left."""
    by_name = {place.name: place for place in places}
    chosen, computed = set[str](), list[str]()
    for name in _requested_names(model, targets, caller):
        if name in by_name:
            chosen.add(name)
        elif patterns and is_pattern(name):
            chosen |= _matched_names(name, places, caller)
        elif _is_computed(model, name):
            computed.append(name)
        else:
            raise ValueError(_unknown(name, by_name, caller))
    if computed:
        _report_computed(computed, targets, caller)
    unfit = list[str]()
    if targets is conv_and_linear:
        unfit = [
            name
            for name, place in by_name.items()
            if name in chosen and _unfit_values(place.parameter)
        ]
        _warn_of_unfit(unfit, by_name, caller)
        chosen.difference_update(unfit)
    if not chosen:
        raise ValueError(_nothing_to_mask(model, targets, computed + unfit, caller))
    return chosen


def _name_of_bias(name: str) -> str:
    """Name the bias that belongs to a tensor, whether it exists or not.

    `fc.weight` has `fc.bias`, an LSTM's `weight_ih_l0` has `bias_ih_l0`, and
    `in_proj_weight` of attention has `in_proj_bias`.
    """
    owner, _, attribute = name.rpartition(".")
    if "weight" not in attribute:
        return join(owner, "bias")
    return join(owner, attribute.replace("weight", "bias"))


def _requested_names(model: nn.Module, targets: Any, caller: str) -> list[str]:
    """Return the names in `targets`, or those that it returns for a model's modules."""
    if not callable(targets) or isinstance(targets, type):
        return _listed(targets, caller)
    expected = f"{caller}() expected a function targets(module_name, module)"
    check_takes(expected, targets, 2)
    is_default = targets is conv_and_linear
    modules = modules_before_peft(model) if is_default else modules_of(model)
    return [
        join(name, attribute)
        for name, module in modules.items()
        for attribute in _listed(targets(name, module), caller)
    ]


def _listed(names: Any, caller: str) -> list[str]:
    """Return what `targets` is or returns as a list, if it consists of names."""
    if isinstance(names, Iterable) and not isinstance(names, str):
        found = list(names)
        if all(isinstance(name, str) for name in found):
            return found
        names = found
    raise TypeError(
        f"{caller}() expected a list of full tensor names, or targets(module_name, "
        f"module) to return a list such as ['weight'], found {names!r:.80}."
    )


def _matched_names(pattern: str, places: Sequence[Place], caller: str) -> set[str]:
    names = (place.name for place in places if place.fits_patterns)
    matched = matching(pattern, names)
    if not matched:
        raise ValueError(
            f"{caller}() found no parameter that matches the pattern {pattern!r}. "
            "Patterns match full names such as 'layer1.0.weight', but no scores of "
            "masks and nothing that peft adds. model.named_parameters() shows the "
            "names."
        )
    return set(matched)


def _is_computed(model: nn.Module, name: str) -> bool:
    """Whether a tensor of this name is computed from parameters, as by weight_norm."""
    owner, _, attribute = name.rpartition(".")
    module = modules_of(model).get(owner)
    if module is None:
        return False
    return parametrize.is_parametrized(module, attribute) or attribute in vars(module)


def _unknown(name: str, names: Iterable[str], caller: str) -> str:
    near = difflib.get_close_matches(name, names, n=3)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"{caller}() found no parameter {name!r} in the model.{hint}"


# The stacklevel of warnings. The frames: the function that warns, `_chosen_names`,
# `plan`, `wrap` (no other caller of `plan` has targets to warn about), and its caller.
_CALLER_OF_WRAP = 5


def _warn_of_unfit(
    names: Sequence[str], places: Mapping[str, Place], caller: str
) -> None:
    """Warn once about the layers that the default targets leave out."""
    if names:
        held = _unfit_values(places[names[0]].parameter)
        warnings.warn(
            f"{caller}() leaves out {enumerated(names)}: expected floating-point "
            f"tensors of 16 bits or more, found {names[0]!r} {held}. Quantised weights "
            "cannot be masked: mask them before they are quantised.",
            stacklevel=_CALLER_OF_WRAP,
        )


def _report_computed(names: Sequence[str], targets: Targets, caller: str) -> None:
    """Raise for names in a list; warn for what a function returned."""
    why = (
        f"{', '.join(names)}: not a parameter, computed by weight_norm, "
        "torch.nn.utils.prune or the like. Name what it is computed from, or remove "
        "that first: docs/wrapping.md."
    )
    if not callable(targets):
        raise ValueError(f"{caller}() can't mask {why}")
    warnings.warn(f"{caller}() leaves out {why}", stacklevel=_CALLER_OF_WRAP)


def _nothing_to_mask(
    model: nn.Module, targets: Targets, left_out: Sequence[str], caller: str
) -> str:
    children = ", ".join([type(child).__name__ for child in model.children()][:5])
    if left_out:
        why = f"it left out {enumerated(left_out)}"
    elif targets is conv_and_linear:
        why = "it has no Linear or Conv layer"
    else:
        why = "targets is empty"
    return (
        f"{caller}() found nothing to mask in {type(model).__name__}({children}): "
        f"{why}. Name tensors with targets=[...]."
    )


# -- one tensor ------------------------------------------------------------------------


def _check(caller: str, place: Place) -> None:
    """Raise if the parameter in this place cannot have a mask."""
    held = _unfit_values(place.parameter)
    if held is not None:
        raise TypeError(
            f"{caller}() expected floating-point tensors of 16 bits or more, found "
            f"{place.name!r} {held}. Leave it out of targets."
        )
    reason = _reason_against(place)
    if reason is not None:
        raise ValueError(f"{caller}() can't mask {place.name!r}: {reason}.")


def _unfit_values(parameter: Tensor) -> str | None:
    """Describe what a parameter holds, if it cannot be multiplied by a mask."""
    kind, dtype = type(parameter), parameter.dtype
    is_wrapper = not (holds_its_values(kind) or is_sharded(parameter) or _is_fake(kind))
    if is_wrapper or kind.__module__.partition(".")[0] == "bitsandbytes":
        return f"of {kind.__name__} (a tensor subclass, {dtype})"
    if parameter.is_nested:
        return "of nested tensors"
    if parameter.layout is not torch.strided:
        return f"of layout {parameter.layout}"
    if not dtype.is_floating_point or dtype.itemsize < 2:
        return f"of {dtype}"
    return None


def _is_fake(kind: type[Tensor]) -> bool:
    """Whether tensors of a class have no values, as while exporting."""
    return issubclass(kind, torch._subclasses.FakeTensor)


# Modules that compute with their parameters in code of their own.
_UNFIT_MODULES = (
    nn.Sequential,
    nn.ModuleList,
    nn.ModuleDict,
    torch.jit.ScriptModule,
    torch.fx.GraphModule,
)


# Attributes of the container of a module's masks, where each mask is an attribute, too,
# named as its parameter.
_TAKEN_BY_CONTAINERS = frozenset(dir(Masks({}, nn.Module())))


def _reason_against(place: Place) -> str | None:
    """Say why the parameter cannot have a mask, and what to do; None if it can."""
    module, attribute, parameter = place.module, place.attribute, place.parameter
    kind = type(module).__name__
    if isinstance(module, Mask):
        return "it is the scores of a mask. Name the tensor under the mask"
    is_unfit = isinstance(module, _UNFIT_MODULES)
    if is_unfit and not isinstance(module, ParametrizationList):
        return (
            f"a {kind} can't hold masks. Move it into a module of its own, before any "
            "tracing"
        )
    if parametrize.is_parametrized(module, attribute):
        return (
            "it has a mask already. Call masktorch.unwrap(model) first, or leave the "
            "tensor out"
        )
    if is_lazy(parameter):
        return (
            "it has no shape yet (a lazy module). Run one batch through the model, "
            "then wrap it"
        )
    if place.parameter.is_meta and "_hf_hook" in vars(place.module):
        return "accelerate has offloaded it. Wrap the model first, then offload it"
    if not parameter.is_leaf:
        return (
            "it is not a leaf tensor: other code computed it and put it in place of "
            "the parameter. Call masktorch.wrap before that code runs"
        )
    if overlaps_itself(parameter):
        return (
            "several of its entries share one place in memory (expanded). Use its "
            ".clone()"
        )
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
        return f"sparse gradients do not pass a mask. Make the {kind} with sparse=False"
    container = getattr(module, "parametrizations", nn.ModuleDict())
    if not isinstance(container, nn.ModuleDict):
        return (
            "its module has 'parametrizations' of its own, where masks belong. Rename "
            "them"
        )
    if hasattr(original_class(module), attribute) or attribute in _TAKEN_BY_CONTAINERS:
        return (
            f"{kind}, or the ModuleDict of masks, has a {attribute!r} of its own. "
            "Rename it"
        )
    return None


# -- one memory ------------------------------------------------------------------------


def _check_train_alike(caller: str, same: Sequence[Place]) -> None:
    """Raise if several parameters over one memory differ in whether they train.

    One mask remembers one answer, which `unwrap` restores.
    """
    first = same[0]
    for place in same[1:]:
        if place.parameter.requires_grad != first.parameter.requires_grad:
            raise ValueError(
                f"{caller}() can't mask {first.name!r}: it is one memory with "
                f"{place.name!r}, but only one of the two has requires_grad=True. Set "
                "both to the same first."
            )


def _refuse_overlaps(
    caller: str, planned: Sequence[Sequence[Place]], places: Sequence[Place]
) -> None:
    """Raise if a tensor to mask overlaps another parameter without being equal."""
    chosen = [same[0] for same in planned]
    distinct: dict[Hashable, Place] = {}
    for place in places:
        distinct.setdefault(identity(place.parameter), place)
    others = list(distinct.values())
    overlapping = [
        (one, other)
        for one, other in sharing_memory(
            [place.parameter for place in chosen], [place.parameter for place in others]
        )
        if identity(chosen[one].parameter) != identity(others[other].parameter)
    ]
    if overlapping:
        one, other = min(overlapping)
        raise ValueError(
            f"{caller}() can't mask {chosen[one].name!r}: it overlaps "
            f"{others[other].name!r} in memory, but is another view of it (transposed, "
            "shifted or of another shape). Make both the same view, or give one a "
            "copy: nn.Parameter(tensor.detach().clone())."
        )


def refuse_learnable_masks_elsewhere(
    caller: str, model: nn.Module, planned: Sequence[Sequence[Place]]
) -> None:
    """Raise if a learnable mask in another model lies on the same memory."""
    names = [same[0].name for same in planned]
    tensors = [same[0].parameter for same in planned]

    def masked_elsewhere() -> list[str]:
        others = [tensor for mask, tensor in masked_outside(model) if mask.has_scores]
        return [names[position] for position, _ in sharing_memory(tensors, others)]

    found = masked_elsewhere()
    if found:
        gc.collect()  # a model that nobody uses any more may still be waiting for this
        found = masked_elsewhere()
    if found:
        raise ValueError(
            f"{caller}() can't mask {found[0]!r}: a learnable mask lies on the same "
            "memory in another model or module (tied weights, for instance). Wrap both "
            "in one call, as parts of one model, or give this one a copy of the weight."
        )


def masked_outside(model: nn.Module) -> list[tuple[Mask, nn.Parameter]]:
    """Return every mask in this process but those of a model, with its tensor."""
    inside = {
        module._modules["parametrizations"]
        for module in model.modules()
        if attached(module)
    }
    return [
        (mask, tensor)
        for container in living_containers()
        if container not in inside
        for name, mask in masks_in(container).items()
        if (tensor := container.parameter(name)) is not None
    ]
