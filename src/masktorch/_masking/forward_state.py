"""What each thread knows of the forward of a masked module under way in it.

A stochastic mask is drawn once per forward of its layer, however often the forward
reads the weight. The draws of a forward therefore live as long as the forward, and
belong to the thread that runs it:

    outside a forward                 every read computes the weight
        | enter: `reads` is empty
        v
    inside a forward                  the first read is recorded by name; a later read
        | leave: `reads` is None      of a stochastic mask returns the record if nothing
        v                             that decides the mask has changed since
    outside a forward

Every masked module has a ForwardState of its own, because Dynamo allows a checkpointed
region to change only what it met inside that region.

A forward that is a generator or coroutine is inside only while its own code runs: what
calls it in between must not see its draws.
"""

import contextlib
import threading
from collections.abc import (
    AsyncGenerator,
    Callable,
    Generator,
    Iterator,
)
from types import AsyncGeneratorType, CoroutineType, GeneratorType, coroutine
from typing import Any, NamedTuple

from torch import Tensor


class Read(NamedTuple):
    """A masked weight that has been read."""

    tensor: Tensor
    version: int  # of the tensor when it was read: writing into it raises the version
    decided_by: tuple[Any, ...]  # all that the mask followed from, compared by identity
    decided_at: tuple[int, ...]  # the versions that its tensors had


# What one forward has read, by the parameter's name and whether the mask was drawn.
# Later reads return the same draw; the others are only kept for `assign` to know them.
Reads = dict[tuple[str, bool], Read]


class ForwardState(threading.local):
    """The state of one masked module; every thread has its own."""

    def __init__(self) -> None:
        self.reads: Reads | None = None  # None outside a forward
        self.reads_parameters = False  # whether weights are read without their masks


@contextlib.contextmanager
def reading_parameters(state: ForwardState) -> Iterator[None]:
    """Let this thread read the parameters of a module without their masks."""
    before = state.reads_parameters
    try:
        state.reads_parameters = True
        yield
    finally:
        state.reads_parameters = before


def resumable(state: ForwardState, reads: Reads, result: Any) -> Any:
    """Reopen the forward whenever the generator or coroutine that it returned runs."""
    if isinstance(result, CoroutineType):
        return _resume_coroutine(state, reads, result)
    if isinstance(result, GeneratorType):
        return _resume(state, reads, result)
    if isinstance(result, AsyncGeneratorType):
        return _resume_async(state, reads, result)
    return result


@coroutine  # so that what it returns can be awaited as well as iterated
def _resume(state: ForwardState, reads: Reads, body: Any) -> Generator[Any, Any, Any]:
    """`yield from body`, with the forward open only while `body` runs."""
    step = _sending(body, None)
    try:
        while True:
            try:
                with _reopened(state, reads):
                    yielded = step()
            except StopIteration as stop:
                return stop.value
            try:
                sent = yield yielded
            except GeneratorExit:
                raise
            except BaseException as error:
                step = _throwing(body, error)
            else:
                step = _sending(body, sent)
    finally:
        with _reopened(state, reads):
            body.close()


async def _resume_coroutine(state: ForwardState, reads: Reads, body: Any) -> Any:
    """The same as a coroutine: asyncio makes tasks of nothing else."""
    return await _resume(state, reads, body)


def _sending(body: Any, value: Any) -> Callable[[], Any]:
    return lambda: body.send(value)


def _throwing(body: Any, error: BaseException) -> Callable[[], Any]:
    return lambda: body.throw(error)


async def _resume_async(
    state: ForwardState, reads: Reads, body: AsyncGenerator[Any, Any]
) -> AsyncGenerator[Any, Any]:
    """The same for an asynchronous generator, each step of which is awaited."""
    step: Any = body.asend(None)
    try:
        while True:
            try:
                yielded = await _awaiting(state, reads, step)
            except StopAsyncIteration:
                return
            try:
                sent = yield yielded
            except GeneratorExit:
                raise
            except BaseException as error:
                step = body.athrow(error)
            else:
                step = body.asend(sent)
    finally:
        await _awaiting(state, reads, body.aclose())


async def _awaiting(state: ForwardState, reads: Reads, step: Any) -> Any:
    async def run() -> Any:
        return await step

    return await _resume(state, reads, run())


@contextlib.contextmanager
def _reopened(state: ForwardState, reads: Reads) -> Iterator[None]:
    """Continue a forward that has been left; another one may be under way around it."""
    around = state.reads
    try:
        state.reads = reads
        yield
    finally:
        state.reads = around
