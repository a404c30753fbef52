"""One draw per forward: changes within it, several threads, interruptions."""

import asyncio
import copy
import inspect
import pickle
import sys
import threading

import pytest
import torch
from torch import nn

import masktorch

ROW = torch.ones(1, 8)
WAYS_TO_COPY = [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]


def under(layer):
    return layer.parametrizations.weight.original


def even(size=8):
    """A layer that keeps each weight with probability one half."""
    return masktorch.wrap(nn.Linear(size, size), masktorch.Bernoulli(), init=0.0)


class Reads(nn.Linear):
    """A forward made of reads of its weight, with changes in between."""

    changes = ()

    def forward(self, x):
        reads = [self.weight.detach().clone()]
        for change in self.changes:
            change(self)
            reads.append(self.weight.detach().clone())
        return reads


def reads_of(*changes):
    layer = masktorch.wrap(Reads(8, 8), masktorch.Bernoulli(), init=0.1)
    layer.changes = changes
    return layer, layer(ROW)


def test_a_draw_ends_with_using_and_comes_back_after_it():
    def enter(layer):
        layer.block = masktorch.using(layer, None)
        layer.block.__enter__()

    def leave(layer):
        layer.block.__exit__(None, None, None)

    layer, (drawn, unmasked, again) = reads_of(enter, leave)
    assert torch.equal(unmasked, under(layer))
    assert torch.equal(again, drawn)
    assert not torch.equal(drawn, unmasked)


@pytest.mark.parametrize(
    "change", [lambda m: m.eval(), lambda m: masktorch.freeze_mask(m)]
)
def test_a_draw_does_not_outlive_training(change):
    layer, (_, after) = reads_of(change)
    assert torch.equal(after, layer.eval().weight)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: masktorch.set_estimator(m, masktorch.Bernoulli(tau=0.4)),
        lambda m: m.parametrizations.weight.__setattr__(
            "scores", nn.Parameter(torch.full((8, 8), 50.0))
        ),
    ],
    ids=["estimator", "scores"],
)
def test_a_draw_is_made_again_when_what_it_follows_from_changes(change):
    _, (before, after) = reads_of(change)
    assert not torch.equal(before, after)


def test_a_forward_that_yields_or_awaits_draws_once():
    class Yields(nn.Linear):
        def forward(self, x):
            sent = yield self.weight.clone()
            yield self.weight.clone(), sent
            return "returned"

    class Awaits(nn.Linear):
        async def forward(self, x):
            first = self.weight.clone()
            await asyncio.sleep(0)
            return first, self.weight.clone()

    class AwaitsAndYields(nn.Linear):
        async def forward(self, x):
            yield self.weight.clone()
            await asyncio.sleep(0)
            yield self.weight.clone()

    yields, awaits, both = (
        masktorch.wrap(kind(8, 8), masktorch.Bernoulli(), init=0.0)
        for kind in (Yields, Awaits, AwaitsAndYields)
    )
    running = yields(ROW)
    first = next(running)
    assert not torch.equal(yields.weight, yields.weight)  # outside, each read draws
    other = next(yields(ROW))
    second, sent = running.send("sent")
    assert torch.equal(first, second)
    assert sent == "sent"
    assert not torch.equal(first, other)
    with pytest.raises(StopIteration, match="returned"):
        next(running)

    async def both_layers():
        draws = await awaits(ROW)
        return draws, [draw async for draw in both(ROW)]

    draws, more = asyncio.run(both_layers())
    assert torch.equal(*draws)
    assert torch.equal(*more)


def test_errors_reach_a_forward_that_yields_and_it_can_be_closed():
    events = []

    class Yields(nn.Linear):
        def forward(self, x):
            try:
                yield self.weight
            except KeyError:
                events.append("thrown")
                yield self.weight
            finally:
                events.append("closed")

    layer = masktorch.wrap(Yields(8, 8), masktorch.Bernoulli(), init=0.0)
    running = layer(ROW)
    first = next(running)
    assert running.throw(KeyError()) is first
    running.close()
    assert events == ["thrown", "closed"]
    assert not torch.equal(layer.weight, layer.weight)


def lines_of_forward(layer):
    """The numbers of the lines of code in the forward of a masked layer."""
    return sorted(
        {line for *_, line in type(layer).forward.__code__.co_lines() if line}
    )


@pytest.mark.parametrize("index", range(len(lines_of_forward(even()))))
def test_an_interrupt_at_any_line_leaves_nothing_behind(index):
    layer = even()
    code, line = type(layer).forward.__code__, lines_of_forward(layer)[index]

    def interrupt(frame, event, _):
        if frame.f_code is code and event == "line" and frame.f_lineno == line:
            sys.settrace(None)
            raise KeyboardInterrupt
        return interrupt

    before = sys.gettrace()
    sys.settrace(interrupt)
    try:
        layer(ROW)
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    assert not torch.equal(layer.weight, layer.weight)
    assert not torch.equal(layer(ROW), layer(ROW))


def test_copies_from_another_thread_do_not_show_the_bare_weight():
    layer = masktorch.wrap(nn.Linear(64, 64, bias=False), init=-1.0)
    stop, interval = threading.Event(), sys.getswitchinterval()

    def copy_again_and_again():
        while not stop.is_set():
            layer.__reduce_ex__(4)

    thread = threading.Thread(target=copy_again_and_again)
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        seen = [layer(torch.ones(1, 64)).any().item() for _ in range(300)]
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert not any(seen)


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
@pytest.mark.parametrize("kind", ["LSTM", "MultiheadAttention"])
def test_modules_that_read_weights_into_their_state_are_copied(how, kind):
    if kind == "LSTM":
        module = nn.LSTM(4, 3)
        masktorch.wrap(module, targets=["weight_ih_l0", "weight_hh_l0"])
    else:
        module = masktorch.wrap(nn.MultiheadAttention(4, 2), targets=["in_proj_weight"])
    twin = how(module)
    for own, other in zip(module.parameters(), twin.parameters(), strict=True):
        assert own is not other
        assert torch.equal(own, other)
    assert masktorch.masks(twin).keys() == masktorch.masks(module).keys()


class Log:
    """Something that cannot be pickled or copied."""

    def __deepcopy__(self, memo):
        raise TypeError("no copies")

    def __reduce__(self):
        raise TypeError("no pickles")


class StateIsATuple(nn.Linear):
    def __getstate__(self):
        return 1, self.__dict__.copy()

    def __setstate__(self, state):
        super().__setstate__(state[1])


class RebuildsItself(nn.Linear):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.log = Log()

    def __reduce__(self):
        state = {k: v for k, v in self.__dict__.items() if k != "log"}
        return type(self), (self.in_features, self.out_features), state


class RebuildsItselfEmpty(nn.Linear):
    def __reduce_ex__(self, protocol):
        return RebuildsItselfEmpty, (self.in_features, self.out_features)


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
@pytest.mark.parametrize("kind", [StateIsATuple, RebuildsItself, RebuildsItselfEmpty])
def test_a_class_that_says_how_it_is_copied_is_asked(how, kind):
    layer = masktorch.wrap(kind(2, 2))
    masktorch.set_masks(layer, {"weight": torch.eye(2, dtype=torch.bool)})
    twin = how(layer)
    assert torch.equal(masktorch.masks(twin)["weight"], torch.eye(2, dtype=torch.bool))
    assert twin.parametrizations.weight is not layer.parametrizations.weight
    if (
        kind is not RebuildsItselfEmpty
    ):  # which does not copy its weights, masked or not
        assert torch.equal(twin.eval()(torch.eye(2)), layer.eval()(torch.eye(2)))
    assert type(masktorch.unwrap(twin)) is kind


class CallsSuper(nn.Linear):
    def __reduce_ex__(self, protocol):
        return super().__reduce_ex__(protocol)


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_a_class_that_only_looks_on_is_copied(how):
    layer = masktorch.wrap(CallsSuper(2, 2))
    twin = how(layer)
    assert twin.parametrizations.weight is not layer.parametrizations.weight
    assert torch.equal(twin(torch.eye(2)), layer(torch.eye(2)))
    assert type(masktorch.unwrap(twin)) is CallsSuper


def test_a_first_read_in_inference_mode_leaves_the_gradient_to_the_second():
    class Logged(nn.Linear):
        def forward(self, x):
            with torch.inference_mode():
                self.norm = self.weight.norm().item()
            return nn.functional.linear(x, self.weight, self.bias)

    layer = masktorch.wrap(Logged(8, 8), masktorch.Bernoulli(), init=0.1)
    torch.manual_seed(0)
    layer(ROW).sum().backward()
    assert layer.parametrizations.weight.scores.grad.any()
    torch.manual_seed(0)
    assert layer.norm == pytest.approx(layer.weight.norm().item())


def test_the_forward_of_an_async_layer_is_a_coroutine():
    """asyncio makes tasks of coroutines only."""

    class Asynchronous(nn.Linear):
        async def forward(self, x):
            first = self.weight
            await asyncio.sleep(0)
            return first, self.weight

    layer = masktorch.wrap(Asynchronous(50, 50), masktorch.Bernoulli(), init=0.0)

    async def run():
        pending = layer(None)
        assert inspect.iscoroutine(pending)
        return await asyncio.create_task(pending)

    first, second = asyncio.run(run())
    assert torch.equal(first, second)
