"""Reading a masked weight: what happens on `layer.weight`.

The property of the masked class asks, in this order:

1. Is the parameter itself wanted? (a copy is being made; FSDP2 or offloading asks)
2. Does an earlier read hold? (any within `parametrize.cached()`; otherwise a draw of
   the forward under way)
3. Otherwise the mask computes the weight: `Mask.forward`.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from masktorch._masking.assigning import remember, version_of
from masktorch._masking.forward_state import Read, Reads
from masktorch._masking.mask import Mask
from masktorch._masking.overrides import override_of
from masktorch._sharding import is_sharded


def masked_property(name: str) -> property:
    """Make the property by which a masked class reads the parameter `name`."""

    def read(module: Any) -> Any:
        container = module._modules.get("parametrizations")
        mask = None if container is None else container._modules.get(name)
        if mask is None:
            # A new module of this class, one that remove_parametrizations has left, or
            # one whose reset_parameters is running.
            return nn.Module.__getattr__(module, name)
        weight = module._parameters[name]
        state = container.forward_state
        if state.reads_parameters:
            return weight
        reads = state.reads
        if reads is None and (is_sharded(weight) or _is_offloaded(module, weight)):
            # FSDP2 and accelerate ask for the parameter, outside any forward.
            return weight
        return _read(module, name, mask, weight, reads)

    return property(read)


def _is_offloaded(module: nn.Module, weight: Tensor) -> bool:
    """Whether accelerate has moved the weight away until the next forward."""
    return weight.is_meta and "_hf_hook" in module.__dict__


def _read(
    module: nn.Module, name: str, mask: Mask, weight: Tensor, reads: Reads | None
) -> Tensor:
    """Return the weight under its mask, or the result of an earlier read.

    Args:
        module: where the weight lives.
        name: the name of the weight there.
        mask: the mask on it.
        weight: the parameter.
        reads: the reads of the forward under way; None outside a forward.
    """
    is_compiling = torch.compiler.is_compiling()
    if not is_compiling:
        _refuse_tracers_without_masks(module, name)
    training = module.training
    if parametrize._cache_enabled:
        return _read_cached(mask, weight, training)
    if reads is None:
        computed = _computed(mask, weight, training)
        remember(computed, mask, weight)
        return computed
    if mask.is_stochastic(training):
        return _read_drawn_once(reads, name, mask, weight)
    computed = _computed(mask, weight, training)
    if not is_compiling:
        reads[name, False] = Read(computed, version_of(computed), (), ())
    return computed


def _read_drawn_once(reads: Reads, name: str, mask: Mask, weight: Tensor) -> Tensor:
    """Return the draw of this forward, or draw if what it follows from has changed."""
    scores = mask.own_scores()
    decided_by = weight, scores, mask.estimator
    decided_at = version_of(weight), version_of(scores)
    read = reads.get((name, True))
    if (
        read is None
        or read.decided_at != decided_at
        or not _same(read.decided_by, decided_by)
    ):
        computed = _computed_for_later_reads(mask, weight, training=True)
        read = Read(computed, version_of(computed), decided_by, decided_at)
        reads[name, True] = read
    return read.tensor


def _read_cached(mask: Mask, weight: Tensor, training: bool) -> Tensor:
    """Return the cached read: in `parametrize.cached()` it holds beyond its forward."""
    cache: Any = parametrize._cache
    key = (
        mask,
        weight,
        mask.scores,
        override_of(mask),
        mask.frozen,
        mask.estimator.mode,  # a bound method compares its `self` by identity
        training,
        weight.requires_grad,
        mask.scores.requires_grad,
    )
    if key not in cache:
        cache[key] = _computed_for_later_reads(mask, weight, training)
        remember(cache[key], mask, weight)
    return cast(Tensor, cache[key])


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return all(a is b for a, b in zip(one, other, strict=True))


def _computed(mask: Mask, weight: Tensor, training: bool) -> Tensor:
    try:
        computed: Tensor = mask(weight, training)
        return computed
    except AttributeError as error:
        # From a property, nn.Module would take it for "no such attribute" and go on to
        # look in its parameters, where it finds the weight without its mask.
        raise RuntimeError(f"{mask.estimator!r} failed: {error}") from error


def _refuse_tracers_without_masks(module: nn.Module, name: str) -> None:
    """Raise for tracers that would store the mask as a constant, or fail later."""
    if torch._C._get_tracing_state() is not None and torch.onnx.is_in_onnx_export():
        raise RuntimeError(
            "torch.onnx.export(dynamo=False) cannot trace how "
            f"{type(module).__name__} computes {name!r} under its mask. Call "
            "masktorch.unwrap on a copy of the model first."
        )
    is_fx_tracing = torch.fx._symbolic_trace._is_fx_tracing_flag
    if is_fx_tracing and torch.fx.experimental.proxy_tensor.get_proxy_mode() is None:
        raise RuntimeError(
            "torch.fx.symbolic_trace cannot trace how "
            f"{type(module).__name__} computes {name!r} under its mask: the mask would "
            "become a constant. Call masktorch.unwrap on a copy first, trace with "
            "torch.export or torch.compile, or make the layer a leaf module of a "
            "torch.fx.Tracer."
        )


def _computed_for_later_reads(mask: Mask, weight: Tensor, training: bool) -> Tensor:
    """Compute with a gradient, which a later read may want if the first does not."""
    if torch.is_grad_enabled():
        return _computed(mask, weight, training)
    with _grad_for_later_reads(mask, weight):
        return _computed(mask, weight, training)


@contextlib.contextmanager
def _grad_for_later_reads(mask: Mask, weight: Tensor) -> Iterator[None]:
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        with torch.enable_grad():
            yield
    elif mask.scores.is_inference() or weight.is_inference():
        yield  # autograd takes no tensors that were made in inference mode
    else:
        with torch.inference_mode(False), torch.enable_grad():
            yield
