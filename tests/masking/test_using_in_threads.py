"""`using` in threads and async tasks: each sees and removes its own masks."""

import asyncio
import contextvars
import copy
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import masktorch

KEPT = torch.ones(4, 4, dtype=torch.bool)
ALL, LOWER, DIAGONAL = KEPT, KEPT.tril(), torch.eye(4, dtype=torch.bool)


@pytest.fixture
def layer():
    layer = masktorch.set_masks(nn.Linear(4, 4, bias=False), {"weight": KEPT.triu()})
    nn.init.ones_(layer.parametrizations.weight.original)
    return layer


def kept(layer):
    """How many weights the layer computes with."""
    return int(layer(torch.eye(4)).sum())


def use(layer, mask):
    return masktorch.using(layer, {"weight": mask})


def in_thread(function):
    result = []
    thread = threading.Thread(target=lambda: result.append(function()))
    thread.start()
    thread.join()
    return result[0]


def test_a_new_thread_starts_without(layer):
    with use(layer, DIAGONAL):
        assert kept(layer) == 4
        assert in_thread(lambda: kept(layer)) == 10
        assert in_thread(lambda: masktorch.report(layer).kept) == 10


@pytest.mark.parametrize("compiled", [False, True])
def test_threads_see_their_own_masks_at_the_same_time(layer, compiled):
    compute = (
        torch.compile(layer, backend="eager", fullgraph=True) if compiled else layer
    )
    assert kept(compute) == 10
    both_inside = threading.Barrier(2, timeout=60)
    seen = {}

    def serve(name, mask):
        with use(layer, mask):
            both_inside.wait()
            seen[name] = kept(compute)
            both_inside.wait()

    threads = [
        threading.Thread(target=serve, args=arguments)
        for arguments in (("all", ALL), ("diagonal", DIAGONAL))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"all": 16, "diagonal": 4}
    assert kept(compute) == 10


def test_tasks_leave_in_any_order(layer):
    async def serve(mask, delay):
        with use(layer, mask):
            await asyncio.sleep(delay)
            return kept(layer)

    async def serve_all():
        return await asyncio.gather(
            serve(ALL, 0.02), serve(DIAGONAL, 0.01), serve(LOWER, 0.03)
        )

    assert asyncio.run(serve_all()) == [16, 4, 10]
    assert kept(layer) == 10
    masktorch.set_masks(layer, {"weight": ALL})
    assert kept(layer) == 16


def test_a_task_inherits_the_masks_in_use_where_it_was_created(layer):
    async def outlive():
        before = kept(layer)
        await asyncio.sleep(0.01)
        return before, kept(layer)

    async def create():
        with use(layer, DIAGONAL):
            task = asyncio.create_task(outlive())
            await asyncio.sleep(0)
        assert kept(layer) == 10
        return await task

    assert asyncio.run(create()) == (4, 4)


def test_blocks_nest_and_may_be_left_out_of_order(layer):
    outer, inner = use(layer, DIAGONAL), use(layer, ALL)
    outer.__enter__()
    inner.__enter__()
    assert kept(layer) == 16
    outer.__exit__(None, None, None)
    assert kept(layer) == 16
    inner.__exit__(None, None, None)
    assert kept(layer) == 10


def test_a_block_left_in_another_thread_is_over_everywhere(layer):
    block = use(layer, DIAGONAL)
    block.__enter__()
    in_thread(lambda: block.__exit__(None, None, None))
    assert kept(layer) == 10


def test_a_block_keeps_no_model_alive():
    model = masktorch.wrap(nn.Linear(4, 4))
    with masktorch.using(model, None):
        model(torch.ones(1, 4))
    alive = weakref.ref(model)
    del model
    assert alive() is None  # without a garbage collection


def test_copies_made_within_a_block_do_not_keep_its_masks(layer):
    with use(layer, DIAGONAL):
        twin = copy.deepcopy(layer)
        assert kept(twin) == 10


def test_checkpointing_within_a_block_sees_its_masks(layer):
    x = torch.eye(4, requires_grad=True)
    with use(layer, DIAGONAL):
        checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert torch.equal(x.grad, torch.ones(4, 4))  # one weight per input and row


def test_a_block_closed_in_a_copied_context_is_over_in_the_original(layer):
    def block():
        with use(layer, DIAGONAL):
            yield kept(layer)

    running = block()
    assert next(running) == 4
    contextvars.copy_context().run(running.close)
    assert kept(layer) == 10


def test_a_block_closed_by_a_task_of_its_own_is_over(layer):
    async def block():
        with use(layer, DIAGONAL):
            yield

    async def main():
        running = block()
        await anext(running)
        await asyncio.create_task(running.aclose())
        return kept(layer)

    assert asyncio.run(main()) == 10


def test_threads_may_share_a_decorated_function(layer):
    """Each call has a block of its own, however the calls overlap."""
    both_inside = threading.Barrier(2)
    first_left = threading.Event()

    @masktorch.using(layer, {"weight": torch.zeros(4, 4, dtype=torch.bool)})
    def inside(waits):
        both_inside.wait(10)
        if waits:
            first_left.wait(10)
        return kept(layer)

    found = {}

    def run(waits):
        found["inside", waits] = inside(waits)
        first_left.set()
        found["after", waits] = kept(layer)

    threads = [threading.Thread(target=run, args=(waits,)) for waits in (False, True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outside = kept(layer)
    assert outside > 0
    for waits in (False, True):
        assert found["inside", waits] == 0
        assert found["after", waits] == outside


def test_one_block_is_not_entered_twice(layer):
    block = masktorch.using(layer, {"weight": torch.zeros(4, 4, dtype=torch.bool)})
    before = kept(layer)
    with block:
        with pytest.raises(RuntimeError, match="can be entered once"), block:
            pass
        assert kept(layer) == 0
    assert kept(layer) == before
    with pytest.raises(RuntimeError, match="can be entered once"), block:
        pass
