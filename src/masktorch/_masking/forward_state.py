"""What each thread knows of the forwards under way in it.

A stochastic mask is drawn once per forward of its layer, however often the forward reads
the weight. The draws of a forward therefore live as long as the forward, and belong to the
thread that runs it:

    outside a forward                 every read computes the weight
        | enter: `forwards[module]` is an empty dict
        v
    inside a forward                  the first read is recorded by name; a later read of a
        | leave: the entry goes       stochastic mask returns the record if nothing that
        v                             decides the mask has changed since
    outside a forward

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

from torch import Tensor, nn


class Read(NamedTuple):
    """A masked weight that has been read."""

    tensor: Tensor
    version: int  # of the tensor when it was read: writing into it raises the version
    decided_by: tuple[Any, ...]  # all that the mask followed from, compared by identity


Reads = dict[str, Read]  # by the name of the parameter


class _Thread(threading.local):
    def __init__(self) -> None:
        self.forwards: dict[nn.Module, Reads] = {}
        self.reading_parameters: set[nn.Module] = set()


thread = _Thread()


@contextlib.contextmanager
def reading_parameters(module: nn.Module) -> Iterator[None]:
    """Let this thread read the parameters of a module without their masks."""
    if module in thread.reading_parameters:
        yield
        return
    try:
        thread.reading_parameters.add(module)
        yield
    finally:
        thread.reading_parameters.discard(module)


def resumable(module: nn.Module, reads: Reads, result: Any) -> Any:
    """Reopen the forward whenever the generator or coroutine that it returned runs."""
    if isinstance(result, GeneratorType | CoroutineType):
        return _resume(module, reads, result)
    if isinstance(result, AsyncGeneratorType):
        return _resume_async(module, reads, result)
    return result


@coroutine  # so that what it returns can be awaited as well as iterated
def _resume(module: nn.Module, reads: Reads, body: Any) -> Generator[Any, Any, Any]:
    """`yield from body`, with the forward open only while `body` runs."""
    step = _sending(body, None)
    try:
        while True:
            try:
                with _reopened(module, reads):
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
        with _reopened(module, reads):
            body.close()


def _sending(body: Any, value: Any) -> Callable[[], Any]:
    return lambda: body.send(value)


def _throwing(body: Any, error: BaseException) -> Callable[[], Any]:
    return lambda: body.throw(error)


async def _resume_async(
    module: nn.Module, reads: Reads, body: AsyncGenerator[Any, Any]
) -> AsyncGenerator[Any, Any]:
    """The same for an asynchronous generator, each step of which is awaited."""
    step: Any = body.asend(None)
    try:
        while True:
            try:
                yielded = await _awaiting(module, reads, step)
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
        await _awaiting(module, reads, body.aclose())


async def _awaiting(module: nn.Module, reads: Reads, step: Any) -> Any:
    async def run() -> Any:
        return await step

    return await _resume(module, reads, run())


@contextlib.contextmanager
def _reopened(module: nn.Module, reads: Reads) -> Iterator[None]:
    """Continue a forward; another forward of the module may be under way around it."""
    forwards = thread.forwards
    around = forwards.get(module)
    try:
        forwards[module] = reads
        yield
    finally:
        if around is None:
            forwards.pop(module, None)
        else:
            forwards[module] = around
