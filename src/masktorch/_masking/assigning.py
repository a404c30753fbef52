"""Assigning to a masked weight: `layer.weight = tensor` assigns the tensor under the mask.

A value that was read from the mask stands for that tensor, so that `layer.weight =
layer.weight` changes nothing, as without masks.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from masktorch._kernels.chunked import is_plain
from masktorch._masking.mask import Mask, attached, forward_state_of
from masktorch._sharding import is_sharded

# What was read outside a forward, while somebody keeps it: its mask, tensor and version.
_remembered: Any = WeakIdKeyDictionary()


def remember(computed: Tensor, mask: Mask, weight: Tensor) -> None:
    if is_plain(computed):
        _remembered[computed] = mask, weight, version_of(computed)


def version_of(tensor: Tensor) -> int:
    """How often the tensor has been written into, where PyTorch counts and tells it."""
    if torch.compiler.is_compiling() or tensor.is_inference():
        return 0
    return tensor._version


def was_computed(tensor: Tensor) -> bool:
    """Whether a tensor was read from under a mask, so that what is written to it is lost."""
    return tensor in _remembered


def assign(module: Any, name: str, value: Any) -> None:
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
    state = forward_state_of(module)
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
    state = forward_state_of(module)
    reads = state.reads if state is not None and state.reads is not None else {}
    for read in (reads.get((name, True)), reads.get((name, False))):
        if read is not None and read.tensor is value:
            return parameter if read.version == version_of(value) else value
    remembered = _remembered.get(value)
    if remembered is None:
        return value
    read_from, tensor, version = remembered
    if read_from is not mask:
        return None
    return cast(Tensor, tensor) if version == version_of(value) else value


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
