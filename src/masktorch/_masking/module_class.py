"""The class that makes a module use its masks.

The invariant: a masked parameter stays where it was, under its own name, the same object,
for optimisers, `state_dict` and hooks. Only *reading* `module.weight` changes: the class of
the module is swapped for a subclass with a property that returns the parameter under its
mask. That mask is `module.parametrizations.weight`, where torch's `is_parametrized` and its
kin find it.

All modules of one class share one subclass, so that compiled blocks are compiled once. The
subclass therefore keeps no state; `forward_state` keeps what belongs to a forward.
"""

import contextlib
import functools
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.weak import WeakIdKeyDictionary

from masktorch._kernels.chunked import is_plain
from masktorch._masking.forward_state import (
    ForwardState,
    Read,
    Reads,
    reading_parameters,
    resumable,
)
from masktorch._masking.identity import forget
from masktorch._masking.mask import Mask, Masks, masks_in
from masktorch._masking.overrides import override_of
from masktorch._sharding import is_sharded


def attached(module: nn.Module) -> dict[str, Mask]:
    """The masks on the parameters of `module` itself, by parameter name."""
    if "parametrizations" not in module._modules:  # a scripted module has no .get
        return {}
    container = module._modules["parametrizations"]
    return masks_in(container) if isinstance(container, Masks) else {}


def attach(module: nn.Module, masks: dict[str, Mask]) -> None:
    """Put masks on parameters of `module`, by their names."""
    before: Any = module._modules.get("parametrizations") or {}
    if before:
        forget(before)
    module._modules["parametrizations"] = Masks({**before, **masks}, module)
    made = masked_class(original_class(module), frozenset(attached(module)))
    object.__setattr__(
        module, "__class__", made
    )  # past a __setattr__ of the module's own


def detach(module: nn.Module) -> None:
    """Take the masks off a module and give its original class back."""
    container: Any = module._modules.pop("parametrizations")
    forget(container)
    others = {
        name: other for name, other in container.items() if not isinstance(other, Mask)
    }
    if others:
        module._modules["parametrizations"] = nn.ModuleDict(others)
    object.__setattr__(module, "__class__", original_class(module))


def original_class(module: nn.Module) -> Any:
    """The class of a module as it was before it had masks."""
    return type(module).__dict__.get("_original_class", type(module))


def masked_class(original: Any, names: frozenset[str]) -> type[nn.Module]:
    """The subclass of `original` that reads `names` under masks: one for all modules."""
    for made in type.__subclasses__(original):
        if (
            made.__dict__.get("_original_class") is original
            and made._masked_names == names
        ):
            return made

    class Shared(type(original)):  # type: ignore[misc]
        def __delattr__(cls, name: str) -> None:
            """Keep the property, which torch's remove_parametrizations deletes: other
            modules of this class need it."""

    class Masked(original, metaclass=Shared):  # type: ignore[misc]
        _original_class, _masked_names, __module__ = (
            original,
            names,
            original.__module__,
        )

        @functools.wraps(original.forward)
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            """Draw each stochastic mask once, however often the forward reads its weight."""
            state = _forward_state(self)
            if state is None or state.reads is not None:
                # kept by somebody beyond unwrap, or called by itself: the same forward
                return original.forward(self, *args, **kwargs)
            reads: Reads = {}
            try:
                try:
                    state.reads = reads
                    result = original.forward(self, *args, **kwargs)
                finally:
                    state.reads = None
            finally:  # again, in case Ctrl-C interrupted the line above
                state.reads = None
            if torch.compiler.is_compiling():
                return result
            return resumable(state, reads, result)

        def __setattr__(self, name: str, value: Any) -> None:
            """`layer.weight = tensor` assigns the tensor under the mask."""
            if name in names and name in attached(self):
                _assign(self, name, value)
            elif is_sharded(value) and name in self._parameters:  # by fully_shard
                original.register_parameter(self, name, value)
            else:
                original.__setattr__(self, name, value)

        def register_parameter(self, name: str, param: Any) -> None:
            """Refuse `parallelize_module` before it changes the first parameter: it would
            go on to the scores and fail there."""
            if is_sharded(param) and attached(self):
                raise ValueError(
                    f"cannot shard {name!r} of a {original.__name__} with masks. Call "
                    "parallelize_module before masktorch.wrap, or after masktorch.unwrap."
                )
            original.register_parameter(self, name, param)

        def __delattr__(self, name: str) -> None:
            """Refuse what torch's register_parametrization begins with: it would go on to
            change this class, which other modules share."""
            if name in self._parameters or name in self._buffers:
                raise TypeError(
                    f"cannot take {name!r} from a {original.__name__} with masks. Do that "
                    "(register_parametrization, weight_norm, ...) before masktorch.wrap, or "
                    "after masktorch.unwrap."
                )
            original.__delattr__(self, name)

        def __reduce_ex__(self, protocol: Any) -> Any:
            """Say how to make the class again, which a copy or a pickle cannot name."""
            state = _forward_state(self)
            if state is None:
                return _reduced(self, original, names, protocol)
            with reading_parameters(state):  # an RNN reads its weights into its state
                return _reduced(self, original, names, protocol)

    for name in names:
        type.__setattr__(Masked, name, _masked_property(name))
    for method in ("reset_parameters", "_reset_parameters"):
        if hasattr(original, method):
            type.__setattr__(Masked, method, _under_the_masks(original, method))
    for method, replacement in _container_methods(original).items():
        type.__setattr__(Masked, method, replacement)
    Masked.__name__ = Masked.__qualname__ = f"Masked{original.__name__}"
    return Masked


def _forward_state(module: nn.Module) -> ForwardState | None:
    """The state of a module with masks; None after they have been taken off."""
    container = module._modules.get("parametrizations")
    return container.forward_state if isinstance(container, Masks) else None


# -- reading -------------------------------------------------------------------------------


def _masked_property(name: str) -> property:
    def read(module: Any) -> Any:
        container = module._modules.get("parametrizations")
        mask = None if container is None else container._modules.get(name)
        if (
            mask is None
        ):  # a new module of this class, or one that remove_parametrizations left
            return nn.Module.__getattr__(module, name)
        weight = module._parameters[name]
        state = container.forward_state
        if state.reads_parameters:
            return weight
        reads = state.reads
        if reads is None and (is_sharded(weight) or weight.is_meta):
            # FSDP2 and offloading ask for the parameter itself; a forward sees it in place
            return weight
        return _read(module, name, mask, weight, reads)

    return property(read)


def _read(
    module: nn.Module, name: str, mask: Mask, weight: Tensor, reads: Reads | None
) -> Tensor:
    """The weight under its mask, or what an earlier read has found where that must hold."""
    _refuse_tracers_without_masks(module, name)
    if parametrize._cache_enabled:
        return _read_cached(mask, weight, module.training)
    if reads is None:
        computed = _computed(mask, weight, module.training)
        _remember(computed, mask, weight)
        return computed
    if mask.is_stochastic(module.training):
        return _read_drawn_once(reads, name, mask, weight)
    computed = _computed(mask, weight, module.training)
    if not torch.compiler.is_compiling():
        reads[name, False] = Read(computed, _version(computed), ())
    return computed


def _read_drawn_once(reads: Reads, name: str, mask: Mask, weight: Tensor) -> Tensor:
    """A stochastic mask in a forward: one draw, unless what it follows from has changed."""
    decided_by = weight, mask.scores, mask.estimator
    read = reads.get((name, True))
    if read is None or not _same(read.decided_by, decided_by):
        with _grad_for_later_reads():
            computed = _computed(mask, weight, training=True)
        read = reads[name, True] = Read(computed, _version(computed), decided_by)
    return read.tensor


def _read_cached(mask: Mask, weight: Tensor, training: bool) -> Tensor:
    """Within torch's `parametrize.cached()` a read holds beyond its forward."""
    cache: Any = parametrize._cache
    key = (
        mask,
        weight,
        mask.scores,
        override_of(mask),
        mask.frozen,
        mask.estimator.mode,  # hashes by the identity of the estimator, and keeps it alive
        training,
    )
    if key not in cache:
        with _grad_for_later_reads():
            cache[key] = _computed(mask, weight, training)
        _remember(cache[key], mask, weight)
    return cast(Tensor, cache[key])


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return all(a is b for a, b in zip(one, other, strict=True))


def _computed(mask: Mask, weight: Tensor, training: bool) -> Tensor:
    try:
        return cast(Tensor, mask(weight, training))
    except AttributeError as error:
        # From a property, nn.Module would take it for "no such attribute" and go on to look
        # in its parameters, where it finds the weight without its mask.
        raise RuntimeError(f"{mask.estimator!r} failed: {error}") from error


def _refuse_tracers_without_masks(module: nn.Module, name: str) -> None:
    """Raise for tracers that would store this moment's mask as a constant, or fail later."""
    if torch.compiler.is_compiling():
        return
    what = f"how {type(module).__name__} computes {name!r} under its mask"
    if torch._C._get_tracing_state() is not None and torch.onnx.is_in_onnx_export():
        raise RuntimeError(
            f"torch.onnx.export(dynamo=False) cannot trace {what}. Call masktorch.unwrap on "
            "a copy of the model first."
        )
    if (
        torch.fx._symbolic_trace._is_fx_tracing_flag
        and torch.fx.experimental.proxy_tensor.get_proxy_mode() is None  # not make_fx
    ):
        raise RuntimeError(
            f"torch.fx.symbolic_trace cannot trace {what}: the mask would become a constant. "
            "Call masktorch.unwrap on a copy first, trace with torch.export or torch.compile, "
            "or make the layer a leaf module of a torch.fx.Tracer."
        )


def _version(tensor: Tensor) -> int:
    """How often the tensor has been written into, where PyTorch counts and tells it."""
    if torch.compiler.is_compiling() or tensor.is_inference():
        return 0
    return tensor._version


def _grad_for_later_reads() -> Any:
    """A later read of a draw may want the gradient that the first does not."""
    if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
        return contextlib.nullcontext()
    return torch.enable_grad()


# -- assigning -----------------------------------------------------------------------------

# What was read outside a forward, while somebody keeps it: its mask, tensor and version.
_remembered: Any = WeakIdKeyDictionary()


def _remember(computed: Tensor, mask: Mask, weight: Tensor) -> None:
    if is_plain(computed):
        _remembered[computed] = mask, weight, _version(computed)


def was_computed(tensor: Tensor) -> bool:
    """Whether a tensor was read from under a mask, so that what is written to it is lost."""
    return tensor in _remembered


def _assign(module: Any, name: str, value: Any) -> None:
    """Assign the tensor under a mask; what was read from the mask stands for that tensor."""
    mask, parameter = attached(module)[name], module._parameters[name]
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        found = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
        raise ValueError(
            f"{name!r} has a mask: expected a tensor of shape {tuple(parameter.shape)}, "
            f"found {found}. masktorch.unwrap(model) first to set anything else."
        )
    value = _tensor_behind(module, name, value)
    if value is None:
        raise ValueError(
            f"{name!r} has a mask of its own, and the tensor assigned has been computed under "
            "another one. To tie the two, tie them before masktorch.wrap."
        )
    if value.requires_grad and not isinstance(value, nn.Parameter):
        raise ValueError(
            f"{name!r} expected values or an nn.Parameter, found a tensor with a gradient, "
            "which would be cut off. Assign tensor.detach()."
        )
    _refuse_masked_values(mask, name, parameter, value)
    state = _forward_state(module)
    if state is not None and state.reads is not None:
        state.reads.pop((name, True), None)
        state.reads.pop((name, False), None)
    if isinstance(value, nn.Parameter):
        module._parameters[name] = value
    else:
        with torch.no_grad():
            parameter.copy_(value)


def _tensor_behind(module: nn.Module, name: str, value: Tensor) -> Tensor | None:
    """The tensor that an assigned value stands for, or None if it belongs to another mask.

    A value that was read from this mask and not written into since stands for the parameter;
    any other value for itself.
    """
    mask, parameter = attached(module)[name], module._parameters[name]
    state = _forward_state(module)
    reads = state.reads if state is not None and state.reads is not None else {}
    for read in (reads.get((name, True)), reads.get((name, False))):
        if read is not None and read.tensor is value:
            return parameter if read.version == _version(value) else value
    remembered = _remembered.get(value)
    if remembered is None:
        return value
    read_from, tensor, version = remembered
    if read_from is not mask:
        return None
    return cast(Tensor, tensor) if version == _version(value) else value


def _refuse_masked_values(
    mask: Mask, name: str, parameter: Tensor, value: Tensor
) -> None:
    """Raise where a rescaled weight would be rescaled again, as fusing batch norm does."""
    tensors = mask.scores, parameter, value
    if not mask.rescale or any(t.is_meta or is_sharded(t) for t in tensors):
        return
    masked = ~mask.mode()
    before, after = (t.detach().to(masked.device)[masked] for t in (parameter, value))
    if before.any() and not after.any():
        raise ValueError(
            f"{name!r} expected the tensor under its mask, found one that is 0 wherever the "
            "mask masks: what the layer computes, which rescale=True would scale once more. "
            "Call masktorch.unwrap(model) first (to fuse batch norm, for instance)."
        )


# -- re-initialising, copying, containers --------------------------------------------------


def _under_the_masks(original: Any, method: str) -> Any:
    """A method such as `reset_parameters`, on the module as it is without masks."""

    @functools.wraps(getattr(original, method))
    def without_masks(self: Any, *args: Any, **kwargs: Any) -> Any:
        modules = self._modules
        # without the scores, too: an LSTM re-initialises all its parameters
        self.__dict__["_modules"] = {
            name: child for name, child in modules.items() if name != "parametrizations"
        }
        try:
            return getattr(original, method)(self, *args, **kwargs)
        finally:
            self.__dict__["_modules"] = modules

    return without_masks


def _reduced(module: Any, original: Any, names: frozenset[str], protocol: Any) -> Any:
    """How to copy or pickle a masked module, as its own class would be."""
    has_own_way = (
        original.__reduce_ex__ is not object.__reduce_ex__
        or original.__reduce__ is not object.__reduce__
    )
    if not has_own_way:
        return _empty, (original, names), module.__getstate__()
    made_by, arguments, *rest = original.__reduce_ex__(module, protocol)
    plain = tuple(
        original if argument is type(module) else argument for argument in arguments
    )
    made_by = original if made_by is type(module) else made_by
    return _remade, (made_by, plain, attached(module)), *rest


def _empty(original: Any, names: frozenset[str]) -> nn.Module:
    """An instance of a masked class, before its state is set. Pickles name this function."""
    return nn.Module.__new__(masked_class(original, names))


def _remade(made_by: Any, arguments: tuple[Any, ...], masks: dict[str, Mask]) -> Any:
    """A module made as its class says, with its masks. Pickles name this function."""
    module = made_by(*arguments)
    attach(module, masks)
    return module


def _container_methods(original: Any) -> dict[str, Any]:
    """Methods of torch's parameter containers that make a new container of what they read.

    A container holds parameters, so it would cut the gradient of a weight under a mask:
    these return a plain list or dict.
    """
    if issubclass(original, nn.ParameterList):

        def item_or_list(self: Any, index: Any) -> Any:
            if isinstance(index, slice):
                return [self[i] for i in range(len(self))[index]]
            return original.__getitem__(self, index)

        return {"__getitem__": item_or_list}
    if issubclass(original, nn.ParameterDict):
        return {
            "copy": lambda self: dict(self.items()),
            "__or__": lambda self, other: {**dict(self.items()), **dict(other.items())},
            "__ror__": lambda self, other: {
                **dict(other.items()),
                **dict(self.items()),
            },
        }
    return {}
