"""A stochastic mask is drawn once per forward, however often it is read."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import masktorch
from masktorch import (
    Bernoulli,
)
from tools.models import SIX_ROWS, ReadsTwice, assert_equal, weight_under, what_is_held


def test_a_stochastic_mask_is_drawn_once_per_forward():
    class Twice(nn.Linear):
        def forward(self, x):
            self.reads = self.weight, self.weight
            return F.linear(x, self.reads[0] - self.reads[1])

    layer = masktorch.wrap(Twice(30, 30), Bernoulli())
    assert torch.count_nonzero(layer(torch.randn(2, 30))) == 0
    first = layer.reads[0]
    layer(torch.randn(2, 30))
    assert not torch.equal(layer.reads[0], first)


def test_one_draw_can_be_held_over_several_calls():
    layer = masktorch.wrap(nn.Linear(30, 30), Bernoulli())
    x = torch.randn(2, 30)
    with torch.nn.utils.parametrize.cached():
        assert torch.equal(layer(x), layer(x))
    assert not torch.equal(layer(x), layer(x))


def test_two_reads_in_one_forward_see_the_same_draw():
    layer = masktorch.wrap(ReadsTwice(30, 30, bias=False), Bernoulli())
    x = torch.randn(2, 30)
    assert torch.count_nonzero(layer(x)) == 0
    assert torch.count_nonzero(layer.weight - layer.weight) > 0
    with parametrize.cached():
        assert torch.count_nonzero(layer(x)) == 0
        first = layer.weight
        assert first is layer.weight
    assert not torch.equal(first, layer.weight)
    assert parametrize._cache == {}


def test_one_held_draw_trains_like_one_draw():
    layer = masktorch.wrap(nn.Linear(4, 4, bias=False), Bernoulli())
    scores = layer.parametrizations.weight.scores
    with parametrize.cached():
        (layer(SIX_ROWS) + layer(SIX_ROWS)).sum().backward(retain_graph=True)
        held = scores.grad.clone()
        weight = layer.weight
        scores.grad = None
        (2 * F.linear(SIX_ROWS, weight)).sum().backward()
    assert_equal(scores.grad, held, rtol=1e-5, atol=1e-6)


def test_a_forward_that_raises_releases_its_draw():
    class Fails(nn.Linear):
        fails = True

        def forward(self, x):
            out = F.linear(x, self.weight)
            if self.fails:
                raise RuntimeError("out of memory, say")
            return out

    layer = masktorch.wrap(Fails(30, 30), Bernoulli())
    x = torch.randn(2, 30)
    with pytest.raises(RuntimeError, match="out of memory"):
        layer(x)
    assert not what_is_held(layer)
    assert not torch.equal(layer.weight, layer.weight)
    layer.fails = False
    assert not torch.equal(layer(x), layer(x))


def test_recursive_forwards_have_their_own_draws():
    class Recursive(nn.Linear):
        def forward(self, x, depth=2):
            before = self.weight
            x = F.linear(x, before)
            if depth:
                x = self(x, depth - 1)
            assert self.weight is before
            self.read.append(before)
            return x

    layer = masktorch.wrap(Recursive(30, 30), Bernoulli())
    layer.read = []
    layer(torch.randn(2, 30)).sum().backward()
    assert len(layer.read) == 3
    assert not what_is_held(layer)


def test_nested_masked_modules_draw_once_each():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = ReadsTwice(30, 30, bias=False)
            self.scale = nn.Parameter(torch.randn(30))

        def forward(self, x):
            return self.inner(x) + x * (self.scale - self.scale)

    model = masktorch.wrap(Outer(), Bernoulli(), targets=["inner.weight", "scale"])
    assert torch.count_nonzero(model(torch.randn(2, 30))) == 0
    assert not what_is_held(model)


def test_cached_weights_depend_on_mode_and_tensors():
    layer = masktorch.wrap(nn.Linear(30, 30, bias=False), Bernoulli(), init=1.0)
    with parametrize.cached():
        drawn, mode = layer.weight, layer.eval().weight
        assert torch.equal(mode, weight_under(layer))
        assert not torch.equal(drawn, mode)
        assert layer.train().weight is drawn
        with masktorch.using(layer, {"weight": torch.zeros(30, 30, dtype=torch.bool)}):
            assert torch.count_nonzero(layer.weight) == 0
        assert layer.weight is drawn
        x = torch.eye(30)
        for factor in (1, 2):
            weight = {"weight": torch.full((30, 30), float(factor))}
            out = torch.func.functional_call(layer.eval(), weight, (x,))
            assert torch.equal(out, torch.full((30, 30), float(factor)))
        for score in (1.0, -1.0):
            scores = {"parametrizations.weight.scores": torch.full((30, 30), score)}
            out = torch.func.functional_call(layer, scores, (x,))
            assert bool(out.any()) is (score > 0)


class ReadsAroundAWrite(nn.Linear):
    """Changes its weight, or the scores of its mask, between two reads of a forward."""

    def forward(self, x):
        first = self.weight
        with torch.no_grad():
            self.write()
        return first, self.weight

    def clamp_weight(self):
        self.parametrizations.weight.original.clamp_(-1, 1)

    def negate_scores(self):
        self.parametrizations.weight.scores.neg_()


@pytest.mark.parametrize("estimator", [masktorch.Threshold(), masktorch.Bernoulli()])
def test_a_write_within_a_forward_is_seen_by_later_reads(estimator):
    layer = ReadsAroundAWrite(2, 1, bias=False)
    layer.weight.data.fill_(5.0)
    masktorch.wrap(layer, estimator, init=50.0)
    layer.write = layer.clamp_weight
    first, second = layer(torch.ones(1, 2))
    assert (first.tolist(), second.tolist()) == ([[5.0, 5.0]], [[1.0, 1.0]])
    layer.write = layer.negate_scores
    first, second = layer(torch.ones(1, 2))
    assert (first.tolist(), second.tolist()) == ([[1.0, 1.0]], [[0.0, 0.0]])
