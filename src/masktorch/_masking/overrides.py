"""The masks that `masktorch.using` puts in place of a model's own, per thread and task.

Eager code asks a context variable: every thread starts without overrides, an async task
inherits those of the code that created it, and what one task enters no other task sees.

Dynamo cannot trace `ContextVar.get`, but it traces and guards the attributes of a
`threading.local`. Compiled code therefore asks `Mask.in_thread`, a copy that
`overriding` keeps for the current thread. Two tasks of one thread share that copy.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from contextvars import ContextVar, Token
from typing import Any

import torch
from torch import Tensor


class Override:
    """One `using` block: the masks in use, by the Mask that they replace."""

    def __init__(self, masks: Mapping[Any, Tensor]):
        self.masks = masks
        self.is_over = False
        self.token: Token[None] | None = None


class InThread(threading.local):
    """What compiled code sees in place of one mask; every thread has its own."""

    def __init__(self) -> None:
        self.override: Tensor | None = None


class _Thread(threading.local):
    """The overrides that a thread has entered and not left, in this order."""

    def __init__(self) -> None:
        self.overrides: list[Override] = []


_entered: ContextVar[tuple[Override, ...]] = ContextVar("masktorch.using", default=())
# Set by every override only to learn, when it is left, whether that happens in the
# context in which it was entered: a token of another context cannot be reset.
_entering: ContextVar[None] = ContextVar("masktorch.entering", default=None)
_thread = _Thread()


def override_of(mask: Any) -> Tensor | None:
    """Return the mask in use in place of `mask`, or None."""
    if torch.compiler.is_compiling():
        override: Tensor | None = mask.in_thread.override
        return override
    entered = _entered.get()
    return _innermost(mask, entered) if entered else None


@contextlib.contextmanager
def overriding(masks: Mapping[Any, Tensor]) -> Iterator[None]:
    """Use `masks` (a tensor for each Mask) in this thread and task."""
    override = Override(masks)
    try:
        _enter(override)
        yield
    finally:
        _leave(override)


def _enter(override: Override) -> None:
    override.token = _entering.set(None)
    _entered.set((*_entered.get(), override))
    _thread.overrides.append(override)
    _update_compiled_view(override)


def _leave(override: Override) -> None:
    """Remove this override and no other: tasks may leave in any order."""
    entered = _entered.get()
    _entered.set(tuple(other for other in entered if other is not override))
    if not _was_entered_here(override):
        override.is_over = True  # in the context of its entry, which is out of reach
    if override in _thread.overrides:
        _thread.overrides.remove(override)
    _update_compiled_view(override)


def _was_entered_here(override: Override) -> bool:
    """Whether the current context is the one in which the override was entered.

    It is another where a generator is closed by a task of its own, for instance.
    """
    if override.token is None:
        return True
    try:
        _entering.reset(override.token)
    except ValueError:
        return False
    return True


def _update_compiled_view(changed: Override) -> None:
    for mask in changed.masks:
        mask.in_thread.override = _innermost(mask, _thread.overrides)


def _innermost(
    mask: Any, overrides: tuple[Override, ...] | list[Override]
) -> Tensor | None:
    for override in reversed(overrides):
        if mask in override.masks and not override.is_over:
            return override.masks[mask]
    return None
