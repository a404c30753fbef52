"""Assign to a masked weight: `layer.weight = tensor` assigns the tensor under the mask.

A value that was read from the mask is treated as that tensor, so that `layer.weight =
layer.weight` changes nothing, as without masks.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from masktorch._kernels.chunked import is_plain
from masktorch._masking.mask import Mask, attached, forward_state_of
from masktorch._sharding import is_sharded

# What was read outside a forward, while it lives: its mask, tensor and state.
_remembered: Any = WeakIdKeyDictionary()


def remember(computed: Tensor, mask: Mask, weight: Tensor) -> None:
    """Remember that a value was computed from `weight` under `mask`, while it lives."""
    if is_plain(computed):
        _remembered[computed] = mask, weight, _state_of(computed)


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written into; 0 where PyTorch keeps no version counter."""
    if torch.compiler.is_compiling() or tensor.is_inference():
        return 0
    return tensor._version


def was_computed(tensor: Tensor) -> bool:
    """Whether a tensor was computed by a mask, so that a write to it would be lost."""
    return tensor in _remembered


def assign(module: Any, name: str, value: Any) -> None:
    """Assign the tensor under a mask.

    A value that was read from the mask is treated as the parameter.
    """
    mask, parameter = attached(module)[name], module._parameters[name]
    check_fits(module, name, value)
    value = _tensor_behind(module, name, value)
    if value is None:
        raise ValueError(
            f"{name!r} has a mask of its own, and the tensor assigned has been "
            "computed under another one. To tie the two, tie them before "
            "masktorch.wrap."
        )
    if value.requires_grad and not isinstance(value, nn.Parameter):
        raise ValueError(
            f"{name!r} expected values or an nn.Parameter, found a tensor with a "
            "gradient, which would be cut off. Assign tensor.detach()."
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


def check_fits(module: Any, name: str, value: Any) -> None:
    """Raise unless a value is a tensor of the shape of the one under the mask."""
    shape = module._parameters[name].shape
    if not isinstance(value, Tensor) or value.shape != shape:
        found = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
        raise ValueError(
            f"{name!r} has a mask: expected a tensor of shape {tuple(shape)}, found "
            f"{found}. masktorch.unwrap(model) first to set anything else."
        )


def _tensor_behind(module: nn.Module, name: str, value: Tensor) -> Tensor | None:
    """Return the tensor to assign for a value, or None if it belongs to another mask.

    A value that was read from this mask and not written into since is treated as the
    parameter; any other value as itself.
    """
    mask, parameter = attached(module)[name], module._parameters[name]
    state = forward_state_of(module)
    if state is not None and state.reads is not None:
        for was_drawn in (True, False):
            read = state.reads.get((name, was_drawn))
            if read is not None and read.tensor is value:
                when_read: int | Tensor = read.version
                if value.is_inference() and not was_drawn:
                    # Computed again here, so that no forward pays for a copy.
                    when_read = mask(parameter, module.training)
                return parameter if _is_still(value, when_read) else value
    remembered = _remembered.get(value)
    if remembered is None:
        return value
    read_from, tensor, state_when_read = remembered
    if read_from is not mask:
        return None
    return cast(Tensor, tensor) if _is_still(value, state_when_read) else value


def _state_of(tensor: Tensor) -> int | Tensor:
    """Return what tells later whether a tensor has been written into.

    PyTorch does not count the writes into a tensor of inference mode: keep a copy.
    """
    return tensor.clone() if tensor.is_inference() else version_of(tensor)


def _is_still(tensor: Tensor, state: int | Tensor) -> bool:
    """Whether a tensor has not been written into since it had this state."""
    if not isinstance(state, Tensor):
        return state == version_of(tensor)
    if tensor.is_meta:
        return True
    same = (tensor == state) | (tensor.isnan() & state.isnan())
    return bool(same.all())


def _refuse_masked_values(
    mask: Mask, name: str, parameter: Tensor, value: Tensor
) -> None:
    """Raise if a rescaled weight would be rescaled again, as by fusing batch norm."""
    tensors = mask.scores, parameter, value
    if not mask.rescale or any(t.is_meta or is_sharded(t) for t in tensors):
        return
    masked = ~mask.mode()
    before, after = (t.detach().to(masked.device)[masked] for t in (parameter, value))
    if before.any() and not after.any():
        raise ValueError(
            f"{name!r} expected the tensor under its mask, found one that is 0 "
            "wherever the mask masks: what the layer computes, which rescale=True "
            "would scale once more. Call masktorch.unwrap(model) first (to fuse batch "
            "norm, for instance)."
        )
