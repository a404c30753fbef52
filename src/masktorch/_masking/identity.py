"""A tensor's identity is its memory, not its Python object.

Two `nn.Parameter` objects over one memory are one tensor: what is written through one
of them is read through the other. So they must be one tensor to a mask as well. This
file decides which tensors are equal views of one memory and which overlap in another
way, and knows where masks are.

Addresses are read at the call and never kept, because they change when a model moves.
"""

import threading
import weakref
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

# Whether two strided views overlap can take exponential time to decide. The views that
# occur in models take a few steps; a pair that takes more than this counts as
# overlapping.
MAX_WORK = 10**6


# -- which tensors are one -------------------------------------------------------------


def identity(tensor: Tensor) -> Hashable:
    """Return a key that is equal for equal views of one memory, and only for them.

    A tensor without memory of its own keeps the identity of its Python object.
    """
    if not has_memory(tensor):
        return id(tensor)
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    strides = tuple(step if size > 1 else 0 for size, step in steps)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, strides


def has_memory(tensor: Tensor) -> bool:
    """Whether a tensor is dense values at an address of its own.

    Meta, fake, sharded, lazy and other wrapped tensors, those within a `torch.func`
    transform, empty ones and those whose storage has been freed are not.
    """
    return (
        not is_lazy(tensor)
        and holds_its_values(type(tensor))
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and not tensor.is_meta
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and tensor.numel() > 0
        and _address(tensor) != 0
    )


def _address(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # a device whose tensors have no addresses
        return 0


def holds_its_values(kind: type[Tensor]) -> bool:
    """Whether tensors of a class hold their values; a DTensor wraps another tensor."""
    return kind.__torch_dispatch__ is Tensor.__torch_dispatch__


# -- which tensors overlap -------------------------------------------------------------


class _Span(NamedTuple):
    """The addresses from the first byte of a tensor to its last."""

    device: str
    start: int
    end: int
    group: int  # 0 for `tensors`, 1 for `others`
    position: int  # in its group
    entries: Any  # a numpy array of the same addresses, whose values must not be read


def sharing_memory(
    tensors: Sequence[Tensor], others: Sequence[Tensor]
) -> Iterator[tuple[int, int]]:
    """Yield the positions of every pair that has a byte in common: (tensor, other).

    A tensor without memory has itself in common with itself.
    """
    yield from _same_objects(tensors, others)
    spans = [
        _span(tensor, group, position)
        for group, members in enumerate((tensors, others))
        for position, tensor in enumerate(members)
        if has_memory(tensor)
    ]
    passed: tuple[list[_Span], list[_Span]] = ([], [])  # that may reach the next span
    for span in sorted(spans, key=lambda span: (span.device, span.start)):
        across = 1 - span.group
        passed[across][:] = [
            before
            for before in passed[across]
            if before.device == span.device and before.end > span.start
        ]
        for before in passed[across]:
            if _share_a_byte(before, span):
                tensor, other = sorted((before, span), key=lambda both: both.group)
                yield tensor.position, other.position
        passed[span.group].append(span)


def _same_objects(
    tensors: Sequence[Tensor], others: Sequence[Tensor]
) -> Iterator[tuple[int, int]]:
    """Yield the pairs of tensors without memory that are one Python object."""
    positions = {id(other): position for position, other in enumerate(others)}
    for position, tensor in enumerate(tensors):
        if id(tensor) in positions and not has_memory(tensor):
            yield position, positions[id(tensor)]


def _span(tensor: Tensor, group: int, position: int) -> _Span:
    steps = list(zip(tensor.shape, tensor.stride(), strict=True))
    entries = 1 + sum((size - 1) * step for size, step in steps)
    start, itemsize = tensor.data_ptr(), tensor.element_size()
    end = start + entries * itemsize
    array = np.asarray(_Addresses(tensor))
    return _Span(str(tensor.device), start, end, group, position, array)


class _Addresses:
    """What numpy needs to know to make an array at the addresses of a tensor."""

    def __init__(self, tensor: Tensor):
        itemsize = tensor.element_size()
        self.__array_interface__ = {
            "version": 3,
            "data": (tensor.data_ptr(), True),  # read-only
            "typestr": f"|V{itemsize}",  # bytes, of no type
            "shape": tuple(tensor.shape),
            "strides": tuple(step * itemsize for step in tensor.stride()),
        }


def _share_a_byte(one: _Span, other: _Span) -> bool:
    try:
        return np.shares_memory(one.entries, other.entries, MAX_WORK)  # type: ignore[arg-type]
    except RuntimeError:  # numpy's TooHardError
        return True


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether several entries of a tensor have one address, as after `expand`."""
    steps = sorted(
        (step, size)
        for size, step in zip(tensor.shape, tensor.stride(), strict=True)
        if size != 1
    )
    if not tensor.numel():
        return False
    reach = 0  # of the dimensions so far, from their first entry to their last
    for step, size in steps:
        if step <= reach or step == 0:
            return _has_equal_offsets(steps)
        reach += (size - 1) * step
    return False


def _has_equal_offsets(steps: Sequence[tuple[int, int]]) -> bool:
    offsets = np.zeros((), dtype=np.int64)
    for step, size in steps:
        if step == 0:
            return True
        offsets = np.add.outer(offsets, step * np.arange(size))
    return np.unique(offsets).size < offsets.size


# -- where masks are -------------------------------------------------------------------

# The containers of all masks in this process, by which a call on one model finds masks
# on the same memory in another. Only the containers are known here; what they hold is
# read when it is asked for, so that it cannot be stale.
_containers: "weakref.WeakSet[Any]" = weakref.WeakSet()
_lock = threading.Lock()  # a set cannot be listed while another thread adds to it


def register(container: Any) -> None:
    """Remember the masks of a module for as long as they live."""
    with _lock:
        _containers.add(container)


def forget(container: Any) -> None:
    """Forget masks that were taken off their module, even if somebody keeps them."""
    with _lock:
        _containers.discard(container)


def living_containers() -> list[Any]:
    """Return the masks of every module in this process that has some."""
    with _lock:
        return list(_containers)
