"""Tensors of which each process holds a part (DTensor, FSDP2)."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn


def gathered(tensor: Any) -> Tensor:
    """All of a tensor, where each process holds a part of it (FSDP2)."""
    return cast(
        Tensor, tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    )


def parted(tensor: Tensor, like: Any) -> Tensor:
    """Of a tensor that is whole the part that this process holds of another."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements)


def whole(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`function(*tensors)` of all their parts, where each process holds one."""
    if torch.compiler.is_compiling():
        return function(*tensors)
    return parted(function(*map(gathered, tensors)), tensors[0])


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor, of which each process holds a part."""
    return type(tensor) is not nn.Parameter and hasattr(tensor, "full_tensor")
