"""The class that makes a module use its masks.

The invariant: a masked parameter stays where it was, under its own name, the same object, for
optimisers, `state_dict` and hooks. Only *reading* `module.weight` changes: the class of the module
is swapped for a subclass with a property that returns the parameter under its mask. That mask is
`module.parametrizations.weight`, where torch's `is_parametrized` and its kin find it.
"""

import functools
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.weak import WeakIdKeyDictionary

from masktorch._kernels.chunked import is_plain
from masktorch._masking.mask import Mask, Masks
from masktorch._sharding import is_sharded


def attached(module: nn.Module) -> dict[str, Mask]:
    """The masks on the parameters of `module` itself, by parameter name."""
    home = module._modules.get("parametrizations")
    return home.own() if isinstance(home, Masks) else {}


def attach(module: nn.Module, masks: dict[str, Mask]) -> None:
    """Puts masks on parameters of `module`, by their names."""
    home: Any = module._modules.get("parametrizations") or {}
    module._modules["parametrizations"] = Masks({**home, **masks}, module._parameters)
    made = masked_class(original_class(module), frozenset(attached(module)))
    object.__setattr__(
        module, "__class__", made
    )  # past a __setattr__ of the module's own
    object.__setattr__(module, "_held", None)


def detach(module: nn.Module) -> None:
    """Takes the masks off a module and gives its original class back."""
    home: Any = module._modules.pop("parametrizations")
    others = {
        name: other for name, other in home.items() if not isinstance(other, Mask)
    }
    if others:
        module._modules["parametrizations"] = nn.ModuleDict(others)
    module.__dict__.pop("_held", None)
    object.__setattr__(module, "__class__", original_class(module))


def original_class(module: nn.Module) -> Any:
    """The class of a module as it was before it had masks."""
    return type(module).__dict__.get("_original_class", type(module))


def _masked_tensor(name: str) -> property:
    def read(module: Any) -> Any:
        masks = module._modules.get("parametrizations")
        mask = None if masks is None else masks._modules.get(name)
        if (
            mask is None
        ):  # a new module of this class, or torch's remove_parametrizations was here
            return nn.Module.__getattr__(module, name)
        weight, training, held = module._parameters[name], module.training, module._held
        if held is None and is_sharded(weight):
            return weight  # FSDP2 asks for the parameter itself; a forward sees it gathered
        if held and name in held:
            return held[name]
        key: Any = name
        if (
            parametrize._cache_enabled
        ):  # the user holds what is read for longer than a forward
            held = parametrize._cache
            key = (
                mask,
                weight,
                mask.scores,
                mask.used,
                mask.frozen,
                mask.estimator.mode,
                training,
            )
            if key in held:
                return held[key]
        elif held is None or not mask.draws(training):
            return _apply(mask, weight, training)
        with (
            torch.enable_grad()
        ):  # a later read may want the gradient that the first does not
            held[key] = _apply(mask, weight, training)
        return held[key]

    return property(read)


_computed: Any = (
    WeakIdKeyDictionary()
)  # what was read, while kept: its mask, tensor and version


def _apply(mask: Mask, weight: Tensor, training: bool) -> Tensor:
    try:
        computed = cast(Tensor, mask(weight, training))
    except (
        AttributeError
    ) as error:  # of a property: nn.Module would go on to find the parameter
        raise RuntimeError(f"{mask.estimator!r} failed: {error}") from error
    if is_plain(computed) and not computed.is_inference():
        _computed[computed] = mask, weight, computed._version
    return computed


def _assign(module: Any, name: str, value: Any) -> None:
    """`layer.weight = value` under a mask: what was read from it stands for the parameter."""
    mask, parameter = attached(module)[name], module._parameters[name]
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        raise ValueError(
            f"{name!r} has a mask: expected a tensor of shape {tuple(parameter.shape)}, found "
            f"{getattr(value, 'shape', value)}. masktorch.unwrap(model) first to set anything else."
        )
    computed_by, tensor, version = _computed.get(value, (mask, value, None))
    if version is None or value._version == version:  # else it has been written into
        value = tensor
    if computed_by is not mask or (
        value.requires_grad and not isinstance(value, nn.Parameter)
    ):
        raise ValueError(
            f"{name!r} expected values or an nn.Parameter, found one with a gradient or another "
            "mask. Assign tensor.detach(), or tie the two before masktorch.wrap."
        )
    (module._held or {}).pop(name, None)
    if isinstance(value, nn.Parameter):
        module._parameters[name] = value
    else:
        with torch.no_grad():
            parameter.copy_(value)


def masked_class(original: Any, names: frozenset[str]) -> type[nn.Module]:
    """The subclass of `original` that reads `names` under masks: one for all, compiled once."""
    for made in type.__subclasses__(original):
        if (
            made.__dict__.get("_original_class") is original
            and made._masked_names == names
        ):
            return made

    class Shared(type(original)):  # type: ignore[misc]
        def __delattr__(cls, name: str) -> None:
            """torch's remove_parametrizations deletes the property, which other modules need."""

    class Masked(original, metaclass=Shared):  # type: ignore[misc]
        _original_class, _masked_names, __module__ = (
            original,
            names,
            original.__module__,
        )
        _held: dict[str, Tensor] | None = None  # what was read in the forward under way

        @functools.wraps(original.forward)
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            """One draw, however often it reads its weight; plain where kept beyond unwrap."""
            if not isinstance(self, Masked) or self._held is not None:
                return original.forward(self, *args, **kwargs)
            object.__setattr__(self, "_held", {})
            try:
                return original.forward(self, *args, **kwargs)
            finally:
                object.__setattr__(self, "_held", None)

        def __setattr__(self, name: str, value: Any) -> None:
            """`layer.weight = tensor` assigns the tensor under the mask."""
            if name in names and name in attached(self):
                _assign(self, name, value)
            else:
                original.__setattr__(self, name, value)

        def __delattr__(self, name: str) -> None:
            """torch's register_parametrization begins so, and would go on to change this class."""
            if name in self._parameters:
                raise TypeError(
                    f"can't take {name!r} from a layer with masks: unwrap it first."
                )
            original.__delattr__(self, name)

        def __reduce_ex__(self, protocol: Any) -> Any:
            """The class is made at run time, so a copy or a pickle names how to make it."""
            before = self._held
            object.__setattr__(
                self, "_held", self._parameters
            )  # an RNN reads them into its state
            try:
                state = getattr(self, "__getstate__", lambda: self.__dict__)()
            finally:
                object.__setattr__(self, "_held", before)
            return _empty, (original, names), {**state, "_held": None}

    for name in names:
        type.__setattr__(Masked, name, _masked_tensor(name))
    Masked.__name__ = Masked.__qualname__ = f"Masked{original.__name__}"
    return Masked


def _empty(original: Any, names: frozenset[str]) -> nn.Module:
    return nn.Module.__new__(masked_class(original, names))
