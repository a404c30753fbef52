"""Elementwise arithmetic on large CPU tensors, chunk by chunk.

A *chunk* is a run of entries that lie next to each other in memory. An operation of
several steps takes one chunk through all steps before the next one, so that what lies
between the steps stays in the cache.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

# Entries of a chunk: 512 kB in float32, so that a second-level cache of 1 to 2 MB holds
# a chunk of two operands and of the result.
CHUNK = 2**17
# Where a chunk's result goes; None leaves that to the operation.
Out = Tensor | None


def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the tensors in chunks if `can_be_chunked`, else once as they are.

    Tensors of no dimensions are yielded with every chunk.
    """
    if not can_be_chunked(tensors):
        yield tensors
        return
    for start in range(0, tensors[0].numel(), CHUNK):
        yield _chunk_of_each(tensors, start)


def chunkwise(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Turn an elementwise `function(*tensors, out)` into one that works by chunks.

    The last step of `function` writes into `out` unless it is None.
    """

    def by_chunks(*tensors: Tensor) -> Tensor:
        # Check the size first, because small tensors can't afford a call.
        if tensors[0].numel() <= 2 * CHUNK or not can_be_chunked(tensors):
            return function(*tensors, out=None)
        # the first result tells the dtype
        first = function(*_chunk_of_each(tensors, 0), out=None)
        whole = torch.empty_like(tensors[0], dtype=first.dtype)
        _chunk(whole, 0).copy_(first)
        for start in range(CHUNK, whole.numel(), CHUNK):
            function(*_chunk_of_each(tensors, start), out=_chunk(whole, start))
        return whole

    return by_chunks


def can_be_chunked(tensors: Sequence[Tensor]) -> bool:
    """Whether chunks pay, and compute the same.

    They do for large, dense CPU tensors of one layout, where neither gradients nor a
    transform follow each operation.
    """
    first = tensors[0]
    # Two chunks cost more calls than they save.
    return (
        first.numel() > 2 * CHUNK
        and all(
            by_numpy(tensor) and (tensor.dim() == 0 or _have_one_layout(tensor, first))
            for tensor in tensors
        )
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
        and _is_dense(first)
    )


def _have_one_layout(tensor: Tensor, other: Tensor) -> bool:
    return tensor.shape == other.shape and tensor.stride() == other.stride()


def _is_dense(tensor: Tensor) -> bool:
    """Whether its entries fill its memory, in whichever order of dimensions."""
    return torch.empty_like(tensor).stride() == tensor.stride()


def _chunk_of_each(tensors: Sequence[Tensor], start: int) -> tuple[Tensor, ...]:
    return tuple(t if t.dim() == 0 else _chunk(t, start) for t in tensors)


def _chunk(tensor: Tensor, start: int) -> Tensor:
    """A view of a chunk of a dense tensor, in the order of memory."""
    count = min(CHUNK, tensor.numel() - start)
    return tensor.as_strided((count,), (1,), tensor.storage_offset() + start)


def by_numpy(tensor: Tensor) -> bool:
    """Whether numpy can read it where it lies: `is_unseen` and on the CPU."""
    return is_unseen(tensor) and tensor.is_cpu


def is_unseen(tensor: Tensor) -> bool:
    """Whether its memory holds its values, and no tracer or mode follows operations."""
    return is_plain(tensor) and not (
        tensor.is_neg()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or _is_included(_PRE_DISPATCH)
    )


def is_plain(tensor: Tensor) -> bool:
    """Whether it is an ordinary tensor in eager code: no subclass, no transform."""
    return is_eager() and type(tensor) in PLAIN_TYPES and not _is_of_old_vmap(tensor)


def is_eager() -> bool:
    """Whether no compiler, transform or forward mode follows operations."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


PLAIN_TYPES = (Tensor, nn.Parameter)
# whether torch.export is handed each operation; other modes are on a stack
_is_included = torch._C._dispatch_tls_is_dispatch_key_included
_PRE_DISPATCH = torch._C.DispatchKey.PreDispatch
# what `torch.autograd.grad(is_grads_batched=True)` hands to a backward
_is_of_old_vmap = torch._C._functorch.is_legacy_batchedtensor
