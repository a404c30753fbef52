"""The masks of a model: where they are, and what every change to them has to check."""

import inspect
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from masktorch._masking.mask import Mask, attached, deterministic, total
from masktorch._masking.names import enumerated, is_pattern, join, matching
from masktorch._masking.places import Place, modules_of, places_of
from masktorch._masking.targets import PlannedTensor
from masktorch._methods.protocol import Estimator, wrong_members
from masktorch._sharding import is_sharded, parted

Model = TypeVar("Model", bound=nn.Module)


class MaskedTensor(NamedTuple):
    """A mask, and the places of the tensor under it."""

    mask: Mask
    places: list[Place]

    @property
    def place(self) -> Place:
        """The first place, whose name and parameter represent the tensor."""
        return self.places[0]

    @property
    def name(self) -> str:
        """The first name of the tensor, by which it is known to the user."""
        return self.place.name


Masked = list[MaskedTensor]
Tensors = Sequence[MaskedTensor] | Sequence[PlannedTensor]


# -- finding masks ---------------------------------------------------------------------


def masked_tensors(model: nn.Module, caller: str) -> Masked:
    """Return every mask with the places of its tensor, in the order of the model.

    Raises:
        ValueError: if nothing is masked.
    """
    found = find_masks(model, caller)
    if not found:
        raise ValueError(
            f"{caller}() expected a wrapped model: nothing is masked in "
            f"{type(model).__name__}. Call masktorch.wrap(model) or "
            "masktorch.set_masks(model, masks) first."
        )
    return found


def find_masks(model: nn.Module, caller: str) -> Masked:
    """Return every mask with the places of its tensor.

    Return an empty list if nothing is masked.

    Raises:
        ValueError: if a tensor has been taken away from under its mask.
    """
    _discard_gathered_copies(model, caller)
    _refuse_unused_masks(model, caller)
    found: dict[Mask, list[Place]] = {}
    for place in places_of(model):
        if mask := attached(place.module).get(place.attribute):
            found.setdefault(mask, []).append(place)
    return [MaskedTensor(mask, places) for mask, places in found.items()]


def _refuse_unused_masks(model: nn.Module, caller: str) -> None:
    """Raise if other code has removed a parameter under a mask, or the masked class."""
    for owner, module in modules_of(model).items():
        for name in attached(module):
            if module._parameters.get(name) is None:
                raise ValueError(
                    f"{caller}() expected a tensor under every mask, found none under "
                    f"that of {join(owner, name)!r}: prune.remove, remove_weight_norm "
                    "or the like has taken it away. Call masktorch.unwrap before them. "
                    "To go on without this mask, delete it: "
                    f"del module.parametrizations[{name!r}]."
                )
            if not isinstance(getattr(type(module), name, None), property):
                raise ValueError(
                    f"{caller}() found a mask of {join(owner, name)!r} that its module "
                    f"does not use: the class has become {type(module).__name__}. "
                    "Assign `__class__` before masktorch.wrap."
                )


def _discard_gathered_copies(model: nn.Module, caller: str) -> None:
    """Let FSDP2 free what it has gathered: changes to these copies would be lost."""
    for module in _distributed(model, caller):
        if not isinstance(module, DistributedDataParallel):
            module.reshard()


def _distributed(model: nn.Module, caller: str) -> list[Any]:
    """Return the modules that DDP or FSDP2 has taken."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{caller}() expected a torch.nn.Module, found {type(model).__name__}."
        )
    fsdp = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())
    kinds = (DistributedDataParallel, fsdp)
    return [module for module in model.modules() if isinstance(module, kinds)]


# -- values by tensor name -------------------------------------------------------------


def by_name(
    caller: str,
    noun: str,
    found: Tensors,
    values: Any,
    *,
    unknown_label: str = "Not masked in this model",
    patterns: bool = False,
) -> dict[str, Any]:
    """Return one value per tensor, keyed by the tensor's first name.

    Args:
        caller: the public function, for messages.
        noun: what a value is, for messages: "estimator".
        found: the tensors.
        values: one value for all tensors, or a mapping by any of a tensor's names.
        unknown_label: what a message says of names of other tensors.
        patterns: whether keys of the mapping may be shell patterns. The exact name of a
            tensor wins over a pattern.

    Raises:
        ValueError: if a tensor has no value or two different ones, if a name is
            unknown, or if a pattern matches nothing.
    """
    if not isinstance(values, Mapping):
        return {tensor.name: values for tensor in found}
    matched = _matched(caller, found, values) if patterns else {}
    chosen: dict[str, Any] = {}
    for tensor in found:
        names = [place.name for place in tensor.places if place.name in values]
        matches = [key for key, firsts in matched.items() if tensor.name in firsts]
        if names:
            _check_tied_agree(caller, noun, names, values)
            chosen[tensor.name] = values[names[0]]
        elif matches:
            _check_patterns_agree(caller, noun, tensor.name, matches, values)
            chosen[tensor.name] = values[matches[0]]
    known = _all_names(found)
    missing = [tensor.name for tensor in found if tensor.name not in chosen]
    unknown = [str(key) for key in values if key not in known and key not in matched]
    if missing or unknown:
        raise ValueError(
            f"{caller}() expected one {noun}, by name. Missing: "
            f"{', '.join(missing) or 'none'}. {unknown_label}: "
            f"{', '.join(unknown) or 'none'}. masktorch.masks(model) shows the names."
        )
    return chosen


def _all_names(found: Tensors) -> set[str]:
    return {place.name for tensor in found for place in tensor.places}


def _matched(
    caller: str, found: Tensors, values: Mapping[Any, Any]
) -> dict[str, set[str]]:
    """Return the first names of the tensors that each pattern in the keys matches."""
    names = _all_names(found)
    matched: dict[str, set[str]] = {}
    for key in values:
        if not isinstance(key, str) or key in names or not is_pattern(key):
            continue
        matched[key] = {
            tensor.name
            for tensor in found
            if matching(key, [p.name for p in tensor.places if p.fits_patterns])
        }
        if not matched[key]:
            raise ValueError(
                f"{caller}() found no tensor that matches the pattern {key!r} among "
                f"{enumerated(sorted(names))}."
            )
    return matched


def _check_tied_agree(
    caller: str, noun: str, names: Sequence[str], values: Mapping[str, Any]
) -> None:
    for name in names[1:]:
        if not _equal(values[names[0]], values[name]):
            raise ValueError(
                f"{caller}() expected one {noun}, found two for {names[0]!r}, tied to "
                f"{name!r}."
            )


def _check_patterns_agree(
    caller: str, noun: str, name: str, matches: Sequence[str], values: Mapping[str, Any]
) -> None:
    for pattern in matches[1:]:
        if not _equal(values[matches[0]], values[pattern]):
            raise ValueError(
                f"{caller}() expected one {noun}, found two for {name!r}, which the "
                f"patterns {matches[0]!r} and {pattern!r} both match. Name it exactly: "
                "names win."
            )


def _equal(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return torch.equal(one, two)
    return one is two or bool(one == two)


# -- checks before a change ------------------------------------------------------------


def check_estimator(
    caller: str, name: str, estimator: Estimator, scores: Tensor, shape: torch.Size
) -> None:
    """Raise if a value is not an estimator, or cannot be used on a tensor.

    Args:
        caller: the public function, for messages.
        name: the full name of the tensor, for messages.
        estimator: what to check.
        scores: the scores that it would get.
        shape: that of the tensor.
    """
    check_is_estimator(caller, estimator)
    try:
        deterministic(estimator, scores, shape)
    except ValueError as error:
        raise ValueError(f"{caller}() can't mask {name!r}: {error}") from error


def check_is_estimator(caller: str, estimator: Any) -> None:
    """Raise a `TypeError` unless a value has the methods of an estimator."""
    if isinstance(estimator, type):
        found = f"the class {estimator.__name__}. Did you mean {_call_of(estimator)}?"
    elif isinstance(estimator, nn.Module) or not isinstance(estimator, Estimator):
        found = f"{estimator!r}."
    elif wrong := wrong_members(estimator):
        found = f"{estimator!r}, whose {wrong[0]!r} is not a method. Rename this field."
    else:
        return
    raise TypeError(
        f"{caller}() expected an estimator such as masktorch.Threshold(), with "
        f"__call__(scores) and mode(scores). Found {found}"
    )


def _call_of(kind: type) -> str:
    """How to make a value of a class, for a message."""
    try:
        inspect.signature(kind).bind()
    except (TypeError, ValueError):
        return f"{kind.__name__}(...)"
    return f"{kind.__name__}()"


def checked_masks(
    caller: str, found: Tensors, masks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return one mask per tensor by first name, on its device and sharded as it is.

    Raises:
        TypeError: if they are not dense bool tensors in a mapping.
        ValueError: if a name is missing or unknown, or a shape is not that of the
            tensor.
    """
    if not isinstance(masks, Mapping):
        raise TypeError(
            f"{caller}() expected a dict from tensor names to masks, found "
            f"{type(masks).__name__}."
        )
    wanted = by_name(caller, "mask for each masked tensor", found, masks)
    return {
        tensor.name: _checked_mask(caller, tensor.place, wanted[tensor.name])
        for tensor in found
    }


def _checked_mask(caller: str, place: Place, mask: Any) -> Tensor:
    expected = f"{caller}() expected a dense bool tensor for {place.name!r}"
    if not isinstance(mask, Tensor) or mask.layout is not torch.strided:
        raise TypeError(f"{expected}, found {type(mask).__name__}.")
    if mask.dtype is not torch.bool:
        raise TypeError(f"{expected}, found {mask.dtype}.")
    if mask.shape != place.parameter.shape:
        raise ValueError(
            f"{expected} of shape {tuple(place.parameter.shape)}, found "
            f"{tuple(mask.shape)}."
        )
    mask = mask.to(place.parameter.device)
    return mask if is_sharded(mask) else parted(mask, place.parameter)


def check_not_distributed(model: nn.Module, caller: str, instead: str) -> None:
    """Raise if DDP or FSDP2 has taken a part of the model.

    Args:
        model: any module.
        caller: the public function, for messages.
        instead: what to do in place of the call.
    """
    for module in _distributed(model, caller):
        raise ValueError(
            f"{caller}() can't change a model that is distributed already: it found a "
            f"{type(module).__name__}, which has fixed what the parameters are. "
            f"{instead}"
        )


def check_can_change(caller: str, places: Iterable[Place]) -> None:
    """Raise if PyTorch would refuse to write into a parameter or to let it train."""
    if torch.is_inference_mode_enabled():
        return
    for place in places:
        if place.parameter.is_inference():
            raise ValueError(
                f"{caller}() can't change {place.name!r}, which was created in "
                "inference mode. Call it within torch.inference_mode(), or load the "
                "weights outside."
            )


def check_scores_can_learn(caller: str, found: Masked) -> None:
    """Raise if PyTorch would refuse to let scores train."""
    for tensor in found:
        if tensor.mask.scores.is_inference() and not torch.is_inference_mode_enabled():
            raise ValueError(
                f"{caller}() can't let the scores of {tensor.name!r} learn: they were "
                "created in inference mode. Make or copy the model outside."
            )


# -- changes ---------------------------------------------------------------------------


def set_trains(parameter: Tensor, trains: bool) -> None:
    """Let a tensor train, or stop it."""
    parameter.requires_grad_(trains)
    if not trains:
        parameter.grad = None  # an optimiser steps on any gradient that it finds


def warn_if_empty(name: str, mask: Tensor, stacklevel: int) -> None:
    """Warn if a mask keeps nothing.

    Args:
        name: the full name of the tensor.
        mask: its mask.
        stacklevel: that of the code to blame: this function is 1, its caller 2.
    """
    if mask.numel() and not mask.is_meta and not total(mask):
        warnings.warn(
            f"The mask of {name!r} keeps nothing, its layer computes zeros. Start "
            "scores higher.",
            stacklevel=stacklevel,
        )
