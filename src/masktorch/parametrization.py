"""The class that makes a module use its masks.

The invariant: a masked parameter stays where it was, under its own name, the same object. Only
*reading* `module.weight` changes: the class of the module is swapped for a subclass on which
`weight` is a property that returns the parameter under its mask. Optimisers, `state_dict` keys
of the weights, hooks and initialisers that go through `named_parameters` see what they saw.

The mask itself is `module.parametrizations.weight`, where `torch.nn.utils.parametrize` looks: its
`is_parametrized` and `cached` work on it, and `remove_parametrizations` takes it off (baked, in the
mode the module is in).
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.weak import WeakIdKeyDictionary

from masktorch.blocks import is_plain
from masktorch.mask import Mask, Masks, is_sharded


def attached(module: nn.Module) -> dict[str, Mask]:
    """The masks on the parameters of `module` itself, by parameter name."""
    home = module._modules.get("parametrizations")
    return home.own() if isinstance(home, Masks) else {}


def attach(module: nn.Module, masks: dict[str, Mask]) -> None:
    """Puts masks on parameters of `module`, by their names."""
    home: Any = module._modules.get("parametrizations") or {}
    module._modules["parametrizations"] = Masks({**dict(home.items()), **masks}, module._parameters)
    made = masked_class(original_class(module), frozenset(attached(module)))
    object.__setattr__(module, "__class__", made)  # past a __setattr__ of the module's own
    _hold(module, None)


def detach(module: nn.Module) -> None:
    """Takes the masks off a module and gives its original class back."""
    home = cast(Masks, module._modules.pop("parametrizations"))
    others = {name: other for name, other in home.items() if not isinstance(other, Mask)}
    home.clear()
    if others:
        module._modules["parametrizations"] = nn.ModuleDict(others)
    module.__dict__.pop("_held", None)
    object.__setattr__(module, "__class__", original_class(module))


def original_class(module: nn.Module) -> Any:
    """The class of a module as it was before it had masks."""
    return type(module).__dict__.get("_original_class", type(module))


def _masked_tensor(name: str) -> property:
    def read(module: Any) -> Any:
        if name not in module._parameters:
            raise AttributeError(f"{type(module).__name__!r} object has no attribute {name!r}")
        weight, training = module._parameters[name], module.training
        masks = module._modules.get("parametrizations")
        mask = None if masks is None else masks._modules.get(name)
        if mask is None:  # a new module of this class, or torch's remove_parametrizations was here
            return weight
        held: Any = module._held
        if held is None and is_sharded(weight):
            return weight  # FSDP2 asks for the parameter itself; a forward sees it gathered
        if held and name in held:
            return held[name]
        key: Any = name
        if parametrize._cache_enabled:  # the user holds what is read for longer than a forward
            held = parametrize._cache
            key = mask, weight, mask.scores, mask.used, mask.frozen, id(mask.estimator), training
            if key in held:
                return held[key]
        elif held is None or not mask.draws(training):
            return _apply(mask, weight, training)
        with torch.enable_grad():  # a later read may want the gradient that the first does not
            held[key] = _apply(mask, weight, training)
        return held[key]

    return property(read)


def _hold(module: nn.Module, tensors: dict[str, Tensor] | None) -> None:
    object.__setattr__(module, "_held", tensors)


@contextlib.contextmanager
def _holding(module: Any, names: Any) -> Iterator[None]:
    """Within it these names read as the parameters themselves."""
    before = module._held
    _hold(module, {name: module._parameters[name] for name in names})
    try:
        yield
    finally:
        _hold(module, before)


_computed = WeakIdKeyDictionary()
"""From what a masked module has computed, while somebody keeps it, to the mask and the tensor."""


def _apply(mask: Mask, weight: Tensor, training: bool) -> Tensor:
    try:
        computed = cast(Tensor, mask(weight, training))
    except AttributeError as error:
        # From a property, nn.Module would take it for "no such attribute" and go on to look in its
        # parameters, where it finds the weight without its mask.
        raise RuntimeError(f"{mask.estimator!r} failed: {error}") from error
    if is_plain(computed):
        _computed[computed] = mask, weight
    return computed


def _assigned(name: str, mask: Mask, parameter: Tensor, value: Any) -> Any:
    """What `layer.weight = value` puts under the mask; raises where that would go wrong."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        found = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
        raise ValueError(
            f"{name!r} has a mask: expected a tensor of shape {tuple(parameter.shape)}, found "
            f"{found}. masktorch.unwrap(model) first to set anything else."
        )
    if value in _computed:  # read from a masked module: stands for the parameter, as without masks
        computed_by, value = _computed[value]
        if computed_by is not mask:
            raise ValueError(
                f"{name!r} has a mask of its own, and the tensor assigned has been through another "
                "one: it is what a masked layer computes. To tie the two, assign the parameter, "
                "`layer.parametrizations.weight.original`, or tie them before masktorch.wrap."
            )
    if value.requires_grad and not isinstance(value, nn.Parameter):
        raise TypeError(
            f"{name!r} expected values or an nn.Parameter, found a tensor that requires a "
            "gradient, which would be cut off. For its values, assign tensor.detach()."
        )
    tensors = mask.scores, parameter, value
    if mask.rescale and not any(tensor.is_meta or is_sharded(tensor) for tensor in tensors):
        masked = ~mask.mode()
        before, after = (tensor.to(masked.device)[masked] for tensor in (parameter, value))
        if before.any() and not after.any():
            raise ValueError(
                f"{name!r} expected the tensor under its mask, found one that is 0 wherever the "
                "mask masks: what a masked layer computes, which rescale=True would scale once "
                "more. masktorch.unwrap(model) first."
            )
    return value


def masked_class(original: Any, names: frozenset[str]) -> type[nn.Module]:
    """The subclass of `original` whose parameters `names` are read under their masks: one for all
    modules of that type, so that a compiled block is compiled once for all."""
    for made in type.__subclasses__(original):
        if made.__dict__.get("_original_class") is original and made._masked_names == names:
            return made

    class Shared(type(original)):  # type: ignore[misc]
        def __delattr__(cls, name: str) -> None:
            """torch's remove_parametrizations deletes the property, which other modules need."""

    class Masked(original, metaclass=Shared):  # type: ignore[misc]
        _original_class, _masked_names = original, names
        _held: dict[str, Tensor] | None = None  # what was read in the forward under way

        @functools.wraps(original.forward)
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            """However often a forward reads its weight, it draws one mask."""
            if not isinstance(self, Masked) or self._held is not None:
                # kept by somebody beyond unwrap, or within a forward of this module already
                return original.forward(self, *args, **kwargs)
            _hold(self, {})
            try:
                return original.forward(self, *args, **kwargs)
            finally:
                _hold(self, None)

        def __setattr__(self, name: str, value: Any) -> None:
            """`layer.weight = tensor` assigns the tensor under the mask."""
            mask = attached(self).get(name) if name in names else None
            if mask is None or name not in self._parameters:
                original.__setattr__(self, name, value)
                return
            parameter = self._parameters[name]
            value = _assigned(name, mask, parameter, value)
            if value is parameter:
                return
            (self._held or {}).pop(name, None)
            cache: Any = parametrize._cache
            for key in [key for key in cache if key[0] is mask]:
                del cache[key]
            if type(value) is Tensor:
                with torch.no_grad():
                    parameter.copy_(value)
                return
            # nn.Module first asks hasattr(self, name): let it find the parameter, not draw a
            # mask, nor compute one while FSDP2 swaps weight and scores one after the other.
            with _holding(self, [name]):
                original.__setattr__(self, name, value)

        def __delattr__(self, name: str) -> None:
            """torch's register_parametrization begins so, and would go on to change this class."""
            if name in self._parameters:
                raise TypeError(
                    f"{name!r} can't be taken from a layer with masks. Register parametrizations "
                    "before masktorch.wrap, or masktorch.unwrap(model) first."
                )
            original.__delattr__(self, name)

        def __reduce_ex__(self, protocol: Any) -> Any:
            """The class is made at run time, so a copy or a pickle names how to make it."""
            if original.__reduce__ is not object.__reduce__:
                raise TypeError(
                    f"a masked {original.__name__} can't be copied or pickled: the class has a "
                    "__reduce__ of its own. masktorch.unwrap(model) first."
                )
            # An RNN reads its weights into its state: let it find the parameters themselves.
            with _holding(self, attached(self)):
                state: Any = object.__reduce_ex__(self, 2)[2]
            return _empty, (original, names), {**state, "_held": None}

        def __copy__(self) -> Any:
            """A module of its own, with the same tensors under the same masks."""
            if hasattr(original, "__copy__"):
                return original.__copy__(self)
            make, arguments, state = self.__reduce_ex__(2)
            made = make(*arguments)
            made.__setstate__(state)
            own = {shared: state[shared].copy() for shared in ("_parameters", "_modules")}
            made.__dict__.update(own)
            attach(made, attached(self))
            return made

    for name in names:
        type.__setattr__(Masked, name, _masked_tensor(name))
    Masked.__name__ = Masked.__qualname__ = f"Masked{original.__name__}"
    Masked.__module__ = original.__module__
    Masked.__doc__ = original.__doc__
    return Masked


def _empty(original: Any, names: frozenset[str]) -> nn.Module:
    cls = masked_class(original, names)
    return cls.__new__(cls)
