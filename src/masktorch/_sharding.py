"""Tensors of which each process holds a part (DTensor, FSDP2)."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn


def gathered(tensor: Any) -> Tensor:
    """Return the full tensor; a no-op unless `tensor` is a DTensor."""
    if hasattr(tensor, "full_tensor"):
        return cast(Tensor, tensor.full_tensor())
    return cast(Tensor, tensor)


def parted(tensor: Tensor, like: Any) -> Tensor:
    """Return this process's part of `tensor`, sharded as `like` is.

    A no-op unless `like` is a DTensor.
    """
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements)


def whole(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Apply `function` to gathered tensors and shard the result like the first."""
    if torch.compiler.is_compiling():
        return function(*tensors)
    return parted(function(*map(gathered, tensors)), tensors[0])


def is_sharded(tensor: Tensor) -> bool:
    """Whether the tensor is a DTensor, of which each process holds a part."""
    # A DTensor made a parameter keeps its own type, so a plain `nn.Parameter` never is
    # one. Every read of a weight asks, and this saves it a `hasattr` that fails.
    return type(tensor) is not nn.Parameter and hasattr(tensor, "full_tensor")
