"""The class that makes a module use its masks.

The invariant: a masked parameter stays where it was, under its own name, the same
object, for optimisers, `state_dict` and hooks. Only *reading* `module.weight` changes:
the class of the module is swapped for a subclass with a property that returns the
parameter under its mask. That mask is `module.parametrizations.weight`, where torch's
`is_parametrized` and its kin find it.

All modules of one class share one subclass, so that compiled blocks are compiled once.
The subclass therefore keeps no state; `forward_state` keeps what belongs to a forward.
"""

import contextlib
import copyreg
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from masktorch._masking.assigning import assign, check_fits, version_of
from masktorch._masking.forward_state import Reads, reading_parameters, resumable
from masktorch._masking.identity import forget
from masktorch._masking.mask import Mask, Masks, attached, forward_state_of
from masktorch._masking.reading import masked_property
from masktorch._sharding import is_sharded


def attach(module: nn.Module, masks: dict[str, Mask]) -> None:
    """Put masks on parameters of `module`, by their names."""
    before: Any = module._modules.get("parametrizations") or {}
    if before:
        forget(before)
    found = {**before, **masks}
    # In the order of the parameters and not of the calls, because the state of an
    # optimiser is saved by position.
    names = [*(name for name in module._parameters if name in found), *found]
    ordered = {name: found[name] for name in names}
    module._modules["parametrizations"] = Masks(ordered, module)
    made = masked_class(original_class(module), frozenset(attached(module)))
    _set_class(module, made)


def detach(module: nn.Module) -> None:
    """Take the masks off a module and give its original class back."""
    container: Any = module._modules.pop("parametrizations")
    forget(container)
    others = {
        name: other for name, other in container.items() if not isinstance(other, Mask)
    }
    if others:
        module._modules["parametrizations"] = nn.ModuleDict(others)
    _set_class(module, original_class(module))


def _set_class(module: nn.Module, kind: type) -> None:
    # Bypass any `__setattr__` that the module defines.
    object.__setattr__(module, "__class__", kind)


def original_class(module: nn.Module) -> Any:
    """The class of a module as it was before it had masks."""
    return type(module).__dict__.get("_original_class", type(module))


def masked_class(original: Any, names: frozenset[str]) -> type[nn.Module]:
    """Return the subclass of `original` that reads `names` under masks.

    All modules of the class `original` with masks of these names share it.
    """
    for made in type.__subclasses__(original):
        is_masked = made.__dict__.get("_original_class") is original
        if is_masked and made._masked_names == names:
            return made
    made = _new_masked_class(original, names)
    for name in names:
        type.__setattr__(made, name, masked_property(name))
    for method in ("reset_parameters", "_reset_parameters"):
        if hasattr(original, method):
            type.__setattr__(made, method, _under_the_masks(original, method))
    for method, replacement in _container_methods(original).items():
        type.__setattr__(made, method, replacement)
    made.__name__ = made.__qualname__ = f"Masked{original.__name__}"
    return made


def _new_masked_class(original: Any, names: frozenset[str]) -> type[nn.Module]:
    """Make a subclass of `original` with the methods that know of masks on `names`."""

    class KeepsItsProperties(type(original)):  # type: ignore[misc]
        def __delattr__(cls, name: str) -> None:
            """Keep a mask's property, which torch's remove_parametrizations deletes:
            other modules of this class need it. Any other name is the property of a
            parametrization, in the class `original`, which torch made for this module
            alone."""
            if name not in names:
                delattr(original, name)

    class Masked(original, metaclass=KeepsItsProperties):  # type: ignore[misc]
        _original_class = original
        _masked_names = names
        __module__ = original.__module__

        @functools.wraps(original.forward)
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            """Draw each stochastic mask once, however often the forward reads it."""
            state = forward_state_of(self)
            if state is None or state.reads is not None:
                # Re-entered, or kept by somebody after unwrap: not a new forward.
                return original.forward(self, *args, **kwargs)
            reads: Reads = {}
            try:
                try:
                    state.reads = reads
                    result = original.forward(self, *args, **kwargs)
                finally:
                    state.reads = None
            finally:
                # An interrupt may land inside the first `finally`.
                state.reads = None
            if isinstance(result, Tensor) or torch.compiler.is_compiling():
                return result
            return resumable(state, reads, result)

        def __setattr__(self, name: str, value: Any) -> None:
            """`layer.weight = tensor` assigns the tensor under the mask."""
            if name in names and name in attached(self):
                assign(self, name, value)
            elif is_sharded(value) and name in self._parameters:
                # fully_shard puts its shards here. `original.__setattr__` would call
                # the `register_parameter` below, which refuses them.
                original.register_parameter(self, name, value)
            else:
                original.__setattr__(self, name, value)

        def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
            """Save the parameters, also where a class reads them by their names."""
            with _reading_parameters_of(self):
                original._save_to_state_dict(self, *args, **kwargs)

        def register_parameter(self, name: str, param: Any) -> None:
            """Refuse `parallelize_module` before it changes the first parameter: it
            would go on to the scores and fail there."""
            if is_sharded(param) and attached(self):
                raise ValueError(
                    f"cannot shard {name!r} of a {original.__name__} with masks. Call "
                    "parallelize_module before masktorch.wrap, or after "
                    "masktorch.unwrap."
                )
            if name in attached(self) and name in self._parameters:
                check_fits(self, name, param)
            original.register_parameter(self, name, param)

        def __delattr__(self, name: str) -> None:
            """Refuse what torch's register_parametrization begins with: it would go on
            to change this class, which other modules share."""
            is_container = issubclass(original, nn.ParameterList | nn.ParameterDict)
            if name in attached(self) or (
                not is_container and (name in self._parameters or name in self._buffers)
            ):
                raise TypeError(
                    f"cannot take {name!r} from a {original.__name__} with masks. Do "
                    "that (register_parametrization, weight_norm, ...) before "
                    "masktorch.wrap, or after masktorch.unwrap."
                )
            original.__delattr__(self, name)

        def __reduce_ex__(self, protocol: Any) -> Any:
            """Say how to make the class again, which a copy or a pickle cannot name."""
            # An RNN reads its weights into its state.
            with _reading_parameters_of(self):
                return _reduced(self, original, names, protocol)

    return Masked


def _reading_parameters_of(
    module: nn.Module,
) -> contextlib.AbstractContextManager[None]:
    """Let this thread read the parameters of a module without their masks."""
    state = forward_state_of(module)
    return contextlib.nullcontext() if state is None else reading_parameters(state)


def _under_the_masks(original: Any, method: str) -> Any:
    """A method such as `reset_parameters`, on the module as it is without masks."""

    @functools.wraps(getattr(original, method))
    def without_masks(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Take the module's own masks away for the call, with their scores: an LSTM
        # re-initialises all its parameters. torch's parametrizations and the masks of
        # children stay, because the method may compute with them.
        container = self._modules.get("parametrizations")
        if container is None:  # kept by somebody after unwrap
            return getattr(original, method)(self, *args, **kwargs)
        everything = dict(container._modules)
        for name in attached(self):
            del container._modules[name]
        try:
            with _keeping_scores_in(self):
                return getattr(original, method)(self, *args, **kwargs)
        finally:
            container._modules.clear()
            container._modules.update(everything)

    return without_masks


@contextlib.contextmanager
def _keeping_scores_in(module: nn.Module) -> Iterator[None]:
    """Undo what is written into scores within a module: its `reset_parameters` may
    initialise all parameters of its children."""
    masks = [mask for mask in module.modules() if isinstance(mask, Mask)]
    before = [
        (mask.scores, mask.scores.detach().clone(), version_of(mask.scores))
        for mask in masks
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for scores, values, version in before:
                # Inference mode counts no writes: restore in any case.
                if version_of(scores) != version or torch.is_inference_mode_enabled():
                    scores.copy_(values)


def _container_methods(original: Any) -> dict[str, Any]:
    """Replace methods of torch's parameter containers that return a new container.

    A container holds parameters, so it would cut the gradient of a weight under a mask:
    these return a plain list or dict.
    """
    if issubclass(original, nn.ParameterList):

        def item_or_list(self: Any, index: Any) -> Any:
            if isinstance(index, slice):
                return [self[i] for i in range(len(self))[index]]
            return original.__getitem__(self, index)

        return {
            "__getitem__": item_or_list,
            "__setitem__": _item_setter(original, original._get_abs_string_index),
        }
    if issubclass(original, nn.ParameterDict):

        def delete_unmasked(self: Any, key: str) -> None:
            name = self._key_to_attr(key)
            if name in attached(self):
                delattr(self, name)  # raises, before torch forgets the key
            original.__delitem__(self, key)

        return {
            "__delitem__": delete_unmasked,
            "__setitem__": _item_setter(original, original._key_to_attr),
            "copy": lambda self: dict(self.items()),
            "__or__": lambda self, other: {**dict(self.items()), **dict(other.items())},
            "__ror__": lambda self, other: {
                **dict(other.items()),
                **dict(self.items()),
            },
        }
    return {}


def _item_setter(
    original: Any, attribute_of: Callable[[Any, Any], str]
) -> Callable[[Any, Any, Any], None]:
    """Make a `__setitem__` that assigns under a mask.

    torch's would first make a parameter of a value that a mask has computed.

    Args:
        original: the class of the container without masks.
        attribute_of: its method that turns an index or key into an attribute's name.
    """

    def set_item(self: Any, key: Any, value: Any) -> None:
        name = attribute_of(self, key)
        if name in attached(self):
            setattr(self, name, value)
        else:
            original.__setitem__(self, key, value)

    return set_item


# -- copying: pickles of masked modules name `empty_module` and `remade_module` --------


def _reduced(module: Any, original: Any, names: frozenset[str], protocol: Any) -> Any:
    """How to copy or pickle a masked module, as its own class would be."""
    if "_original_class" not in vars(type(module)):
        # Its class was derived from the masked one later, to patch the module.
        return object.__reduce_ex__(module, protocol)
    has_own_way = (
        original.__reduce_ex__ is not object.__reduce_ex__
        or original.__reduce__ is not object.__reduce__
    )
    if not has_own_way:
        return empty_module, (original, names), module.__getstate__()
    made_by, arguments, *rest = original.__reduce_ex__(module, protocol)
    if made_by in (copyreg.__newobj__, copyreg._reconstructor):  # type: ignore[attr-defined]
        return empty_module, (original, names), *rest  # its state brings the masks
    plain = tuple(
        original if argument is type(module) else argument for argument in arguments
    )
    made_by = original if made_by is type(module) else made_by
    return remade_module, (made_by, plain, attached(module)), *rest


def empty_module(original: Any, names: frozenset[str]) -> nn.Module:
    """Make an instance of a masked class without state. Pickles name this function."""
    return nn.Module.__new__(masked_class(original, names))


def remade_module(
    made_by: Any, arguments: tuple[Any, ...], masks: dict[str, Mask]
) -> Any:
    """Make a module as its class says, with its masks. Pickles name this function."""
    module = made_by(*arguments)
    attach(module, masks)
    return module
