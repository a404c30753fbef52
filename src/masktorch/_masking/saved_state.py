"""What a checkpoint knows of a mask: its estimator, `rescale` and phase.

It is one small tensor per mask, the extra state of `Mask`: JSON as bytes, padded to a
multiple of 512. Bytes in a tensor survive every way to save a state dict, and a padded
size seldom changes, so that distributed checkpoints can load it in place.

An estimator is stored as data, and read without evaluating anything:

    {"class": "masktorch.TopK", "fields": {"density": 0.5, "absolute": true}}

One that is not data is stored as its repr, which can be compared but not restored. So
did the first versions of masktorch for every estimator.
"""

import dataclasses
import enum
import inspect
import json
import numbers
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from masktorch._masking.names import plain_name
from masktorch._methods.built_in import BuiltIn
from masktorch._methods.protocol import Estimator

STEP = 512  # the size of an extra state is a multiple of it
MAX_DEPTH = 20  # of estimators within estimators: what is deeper is hostile
MOST_TEXT = 200  # characters of the repr of an estimator that is not data
_ADDRESS = r" at 0x[0-9a-fA-F]+"


class MaskState(NamedTuple):
    """What a checkpoint knows of one mask, except for its scores."""

    rescale: bool
    mask_frozen: bool
    weights_frozen: bool
    estimator: Any  # data, or a repr
    scores_train: bool  # False without `mask_frozen`: stopped by requires_grad_(False)


def packed(state: MaskState) -> Tensor:
    """Turn what is known of a mask into its extra state."""
    known = state._asdict()
    if state.scores_train == (not state.mask_frozen):  # `unpacked` assumes this
        del known["scores_train"]
    code = json.dumps(known, separators=(",", ":")).encode()
    code = code.ljust(-(-len(code) // STEP) * STEP)
    return torch.tensor(list(code), dtype=torch.uint8, device="cpu")


def unpacked(extra_state: Any) -> MaskState | None:
    """Read an extra state; None if there is none, or if it cannot be read."""
    if not is_bytes(extra_state):
        return None
    try:
        known = json.loads(bytes(extra_state.tolist()))
        known.setdefault("scores_train", not known["mask_frozen"])
        state = MaskState(**{field: known[field] for field in MaskState._fields})
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return None
    flags = state.rescale, state.mask_frozen, state.weights_frozen, state.scores_train
    if not all(isinstance(flag, bool) for flag in flags):
        return None
    is_estimator = isinstance(state.estimator, str) or (
        isinstance(state.estimator, dict)
        and "class" in state.estimator
        and _is_data(state.estimator)
    )
    return state if is_estimator else None


def is_bytes(extra_state: Any) -> bool:
    """Whether it is bytes with values. State dicts that were averaged hold floats."""
    return (
        isinstance(extra_state, Tensor)
        and extra_state.dtype is torch.uint8
        and not extra_state.is_meta
    )


# -- estimators as data ----------------------------------------------------------------


def encoded(estimator: Estimator) -> Any:
    """Turn an estimator into data, or into its repr if it is not made of data."""
    try:
        return _encoded(estimator)
    except TypeError:
        return described(estimator)


def described(estimator: Estimator) -> str:
    """An estimator's repr in ASCII, cut, without the address that some contain."""
    return re.sub(_ADDRESS, "", ascii(estimator))[:MOST_TEXT]


def has_complete_repr(estimator: Estimator) -> bool:
    """Whether `described` leaves nothing out, so that equal texts mean equal values."""
    text = ascii(estimator)
    return (
        len(text) <= MOST_TEXT and "..." not in text and not re.search(_ADDRESS, text)
    )


def _encoded(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        raise TypeError(f"{value!r} is not data: JSON would make it a plain value")
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return _exact_float(value)
    if type(value) is list:
        return [_encoded(item) for item in value]
    if type(value) is tuple:
        return {"tuple": [_encoded(item) for item in value]}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": {key: _encoded(item) for key, item in value.items()}}
    if isinstance(value, Estimator) and not isinstance(value, type):
        fields = {name: _encoded(item) for name, item in _fields(value).items()}
        return {"class": class_name(type(value)), "fields": fields}
    raise TypeError(f"{value!r} is not data")


def _is_data(value: Any, depth: int = 0) -> bool:
    """Whether a value has the form that `encoded` returns."""
    if depth > MAX_DEPTH:
        return False
    if isinstance(value, list):
        return all(_is_data(item, depth + 1) for item in value)
    if not isinstance(value, dict):
        return True
    if value.keys() == {"tuple"}:
        return isinstance(value["tuple"], list) and _is_data(value["tuple"], depth + 1)
    if value.keys() == {"dict"}:
        items = value["dict"]
    elif value.keys() == {"class", "fields"} and isinstance(value["class"], str):
        items = value["fields"]
    else:
        return False
    return isinstance(items, dict) and _is_data(list(items.values()), depth + 1)


def _exact_float(number: Any) -> float:
    value = float(number)
    if value != number and value == value:
        raise TypeError(f"{number!r} is not a float")
    return value


def _fields(estimator: Estimator) -> dict[str, Any]:
    """The arguments that make an equal estimator; `TypeError` if they are unknown."""
    if isinstance(estimator, tuple | list | dict | set | frozenset | str | int | float):
        raise TypeError(f"{estimator!r} holds values that are not fields")
    if dataclasses.is_dataclass(estimator):
        fields = dataclasses.fields(estimator)
        arguments = {f.name: getattr(estimator, f.name) for f in fields if f.init}
        if not _state_of(estimator) <= {field.name for field in fields}:
            raise TypeError(f"{estimator!r} has attributes that are not fields")
        derived = [field.name for field in fields if not field.init]
        again = type(estimator)(**arguments) if derived else estimator
        if any(getattr(again, name) != getattr(estimator, name) for name in derived):
            raise TypeError(f"{estimator!r} has fields that its arguments do not give")
        return arguments
    has_slots = any(getattr(kind, "__slots__", ()) for kind in type(estimator).__mro__)
    if vars(estimator) or has_slots:
        raise TypeError(f"{estimator!r} has attributes that are not dataclass fields")
    return {}


def _state_of(estimator: Estimator) -> set[str]:
    """The names of the attributes that a copy of an estimator would have."""
    if "__getstate__" in dir(type(estimator)):
        state = estimator.__getstate__()
        if isinstance(state, dict):
            return set(state)
    return set(getattr(estimator, "__dict__", {}))


def class_name(kind: type) -> str:
    """The name of an estimator's class in checkpoints; those of masktorch say so."""
    return f"masktorch.{kind.__name__}" if _is_built_in(kind) else kind.__name__


def _is_built_in(kind: type) -> bool:
    return kind.__module__ == "masktorch"


def restored(data: Any, classes: Mapping[str, type]) -> Estimator:
    """Make the estimator that `encoded` turned into data.

    Args:
        data: what `encoded` returned.
        classes: the user's own classes, by `class_name`.

    Raises:
        ValueError: a class is unknown or does not take these fields, or `data` is a
            repr.
    """
    if isinstance(data, str):
        raise ValueError(
            f"the checkpoint has no data of {data}, only this text. Its class is "
            "neither a dataclass whose fields are data nor without attributes, or "
            "masktorch was older. Call masktorch.wrap with that estimator first"
        )
    estimator: Estimator = _decoded(data, classes)
    return estimator


def _decoded(data: Any, classes: Mapping[str, type]) -> Any:
    if isinstance(data, list):
        return [_decoded(item, classes) for item in data]
    if not isinstance(data, dict):
        return data
    if "tuple" in data:
        return tuple(_decoded(item, classes) for item in data["tuple"])
    if "dict" in data:
        return {key: _decoded(item, classes) for key, item in data["dict"].items()}
    fields = {key: _decoded(item, classes) for key, item in data["fields"].items()}
    kind = _class_named(data["class"], classes)
    try:
        return kind(**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{data['class']} does not take {fields}: {error}") from error


def _class_named(name: str, classes: Mapping[str, type]) -> type:
    known = {class_name(kind): kind for kind in _built_in_classes()} | dict(classes)
    if name not in known:
        raise ValueError(
            f"masktorch has no estimator {name!r}. Give its class in "
            f"estimators=({name},)"
        )
    return known[name]


def _built_in_classes(kind: type = BuiltIn) -> Iterator[type]:
    subclass: type
    for subclass in kind.__subclasses__():
        if _is_built_in(subclass):
            yield subclass
        yield from _built_in_classes(subclass)


def shown(estimator: Any) -> str:
    """Print what `encoded` returned as the estimator prints itself."""
    if isinstance(estimator, list):
        return "[" + ", ".join(map(shown, estimator)) + "]"
    if not isinstance(estimator, dict):
        return repr(estimator)
    if "tuple" in estimator:
        items = ", ".join(map(shown, estimator["tuple"]))
        return f"({items},)" if len(estimator["tuple"]) == 1 else f"({items})"
    if "dict" in estimator:
        pairs = (f"{key!r}: {shown(item)}" for key, item in estimator["dict"].items())
        return "{" + ", ".join(pairs) + "}"
    fields = (f"{name}={shown(item)}" for name, item in estimator["fields"].items())
    return f"{estimator['class'].removeprefix('masktorch.')}({', '.join(fields)})"


# -- comparing a checkpoint with a model -----------------------------------------------


class Load(NamedTuple):
    """A call of `load_state_dict` that is running."""

    root: nn.Module
    state_dict: Mapping[str, Any]
    stacklevel: int  # its caller's, from a function called where `running_load` is


def running_load() -> Load | None:
    """Find the call of `load_state_dict` that is running, or None.

    torch loads a model module by module, and tells no module which call it is part of.
    To warn once per call, all masks must be compared at once, so their root must be
    known: the frame of `load_state_dict` has it.
    """
    stacklevel = 0
    frame = inspect.currentframe()
    while frame is not None:
        stacklevel += 1
        if frame.f_code.co_name == "load_state_dict":
            root, state_dict = map(frame.f_locals.get, ("self", "state_dict"))
            if isinstance(root, nn.Module) and isinstance(state_dict, Mapping):
                return Load(root, state_dict, stacklevel + 1)
        frame = frame.f_back
    return None


def warn_of_differences(
    here: Mapping[str, MaskState], state_dict: Mapping[str, Any], stacklevel: int
) -> None:
    """Warn once if masks of a model are not what a checkpoint knows of them.

    Args:
        here: the model's masks, by their names in the state dict.
        state_dict: what is being loaded.
        stacklevel: that of the code to blame.
    """
    differing: dict[str, str] = {}
    unreadable: list[str] = []
    for name, state in here.items():
        extra_state = state_dict.get(f"{name}._extra_state")
        if not is_bytes(extra_state):
            continue
        saved = unpacked(extra_state)
        if saved is None:
            unreadable.append(tensor_name(name))
        elif saved != state and (difference := _difference(saved, state)):
            differing[tensor_name(name)] = difference
    sentences = []
    if unreadable:
        sentences.append(
            f"The {_masks_of(unreadable)} saved in a state that can't be read "
            "(averaging breaks it), so estimator, rescale and phase were not compared."
        )
    if differing:
        first = next(iter(differing))
        sentences.append(
            f"The {_masks_of(list(differing))} saved in another state. {first!r} had "
            f"{differing[first]}. Loading changes scores and weights only. Before it, "
            "to make them agree: masktorch.match_checkpoint(model, state_dict)."
        )
    if sentences:
        message = "load_state_dict(): " + " ".join(sentences)
        warnings.warn(message, stacklevel=stacklevel)


def _masks_of(names: list[str]) -> str:
    """The subject of a sentence, with its verb."""
    first, others = names[0], len(names) - 1
    if not others:
        return f"mask of {first!r} was"
    return f"masks of {first!r} and {others} more tensor{'s' * (others > 1)} were"


def _difference(saved: MaskState, here: MaskState) -> str:
    """What was saved and what is here instead, or nothing."""
    was, has = (
        {**state._asdict(), "estimator": _as_text(state.estimator)}
        for state in (saved, here)
    )
    fields = [field for field in MaskState._fields if was[field] != has[field]]
    if "scores_train" in fields:
        # Changes nothing that is computed: `model.requires_grad_(False)` for inference.
        fields.remove("scores_train")
    return ", ".join(f"{field}={was[field]} (here {has[field]})" for field in fields)


def _as_text(estimator: Any) -> str:
    """Data or a repr, to compare and to print."""
    return estimator if isinstance(estimator, str) else shown(estimator)


def tensor_name(mask_name: str) -> str:
    """Turn the name of a mask in a state dict into that of the tensor under it."""
    return plain_name(re.sub(r"\bparametrizations\.([^.]+)$", r"\1", mask_name))
