"""Elementwise arithmetic on large CPU tensors, a cacheful of entries at a time."""

from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn

BLOCK = 2**17  # entries that `blocks` takes at a time
Out = Tensor | None  # where a block's result goes; None leaves that to the operation


def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors, if they are large and on the CPU in blocks, which stay in the cache, else as
    they are: also where gradients or a transform must see what happens, or layouts differ."""
    first = tensors[0]
    if (
        first.numel() <= 2 * BLOCK  # two would cost more calls than they save
        or not all(
            by_numpy(t)
            and (
                (t.shape == first.shape and t.stride() == first.stride())
                or t.dim() == 0
            )
            for t in tensors
        )
        or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
        or torch.empty_like(first).stride() != first.stride()  # not dense
    ):
        yield tensors
        return
    for start in range(0, first.numel(), BLOCK):
        yield tuple(
            _part(tensor, start) if tensor.dim() else tensor for tensor in tensors
        )


def blockwise(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same elementwise function by `blocks`, whose last step writes into `out`, if given."""

    def by_blocks(*tensors: Tensor) -> Tensor:
        whole: Tensor | None = None
        for number, block in enumerate(blocks(*tensors)):
            out = None if whole is None else _part(whole, number * BLOCK)
            part = function(*block, out=out)
            if block[0] is tensors[0]:
                return part
            if whole is None:
                whole = torch.empty_like(tensors[0], dtype=part.dtype)
                _part(whole, 0).copy_(part)
        return cast(Tensor, whole)

    return by_blocks


def _part(tensor: Tensor, start: int) -> Tensor:
    """A block of a dense tensor, its entries in the order in which they lie in memory."""
    count = min(BLOCK, tensor.numel() - start)
    return tensor.as_strided((count,), (1,), tensor.storage_offset() + start)


def by_numpy(tensor: Tensor) -> bool:
    """Whether numpy can read it where it lies: plain, on the CPU."""
    return tensor.device.type == "cpu" and is_unseen(tensor)


def is_unseen(tensor: Tensor) -> bool:
    """Whether it is plain, its values as they lie in memory, and no tracer or mode looks on."""
    return is_plain(tensor) and not (
        tensor.is_neg()
        or torch._C._get_tracing_state() is not None
        or torch._C._dispatch_tls_is_dispatch_key_included(torch._C.DispatchKey.Python)
        or torch._C._dispatch_tls_is_dispatch_key_included(
            torch._C.DispatchKey.PreDispatch
        )
    )


def is_plain(tensor: Tensor) -> bool:
    """Whether it is what it seems: not compiled, no subclass, under no transform or vmap."""
    return (
        not torch.compiler.is_compiling()
        and type(tensor) in (Tensor, nn.Parameter)
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._functorch.is_legacy_batchedtensor(tensor)
        and torch.autograd.forward_ad._current_level < 0
    )
