"""Subclasses and wrappers of estimators: a layer computes with the mask it shows."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import masktorch
from masktorch._methods import protocol
from tools.estimators import each_estimator


class KeepsLowScores(masktorch.Threshold):
    def mode(self, scores):
        return scores <= 0

    def __call__(self, scores):
        return 1 - super().__call__(scores)


class InvertedBernoulli(masktorch.Bernoulli):
    def mode(self, scores):
        return scores <= 0

    def __call__(self, scores):
        return 1 - super().__call__(scores)


@dataclass(frozen=True)
class Inverted:
    """Passes on all that it does not define, as wrappers do."""

    inner: masktorch.Estimator

    def __getattr__(self, name):
        return getattr(self.__dict__["inner"], name)

    def __call__(self, scores):
        return 1 - self.inner(scores)

    def mode(self, scores):
        return ~self.inner.mode(scores)


INVERTED = [
    KeepsLowScores(),
    InvertedBernoulli(),
    Inverted(masktorch.Threshold()),
    Inverted(masktorch.Bernoulli()),
    masktorch.Blocks(KeepsLowScores(), (1, 2)),
]


@pytest.mark.parametrize("estimator", INVERTED, ids=repr)
@pytest.mark.parametrize("score", [-50.0, 50.0])
def test_overridden_masks_are_those_of_the_layer(estimator, score):
    """Scores this far from 0 decide every draw."""
    layer = masktorch.wrap(nn.Linear(4, 1, bias=False), estimator, init=score)
    keeps = score < 0
    for training in (True, False):
        layer.train(training)
        assert (layer.weight != 0).all().item() is keeps
        assert (layer.weight == 0).all().item() is not keeps
    assert masktorch.masks(layer)["weight"].all().item() is keeps
    assert masktorch.sample_masks(layer)["weight"].all().item() is keeps
    assert masktorch.expected_density(layer).item() == float(keeps)
    masktorch.unwrap(layer)
    assert (layer.weight != 0).all().item() is keeps


def test_set_estimator_takes_the_members_of_the_new_one():
    layer = masktorch.wrap(nn.Linear(4, 1, bias=False), init=1.0)
    masktorch.set_estimator(layer, KeepsLowScores())
    assert (layer.weight == 0).all()
    masktorch.set_estimator(layer, masktorch.Threshold())
    assert (layer.weight != 0).all()


@each_estimator
def test_the_built_in_estimators_keep_their_products(estimator):
    assert protocol.offers(estimator, "product")


def test_a_subclass_keeps_what_it_does_not_contradict():
    class SeldomLearns(masktorch.Bernoulli):
        def mode(self, scores):
            return scores > 1

    estimator = SeldomLearns()
    assert not protocol.offers(estimator, "mode_product")
    for name in ("product", "expected"):
        assert protocol.offers(estimator, name)


class NoisyTopK(masktorch.TopK):
    def __call__(self, scores):
        return super().__call__(scores + torch.randn_like(scores))


@pytest.mark.parametrize(
    "estimator", [NoisyTopK(0.5), masktorch.Blocks(NoisyTopK(0.5), (1, 2))], ids=repr
)
def test_an_overridden_training_mask_may_draw(estimator):
    """It does not inherit that it is deterministic."""

    class ReadsTwice(nn.Linear):
        def forward(self, x):
            return self.weight, self.weight

    layer = masktorch.wrap(ReadsTwice(16, 16), estimator)
    first, second = layer(None)
    assert torch.equal(first, second)
    draws = [masktorch.sample_masks(layer)["weight"] for _ in range(2)]
    assert not torch.equal(*draws)
    masktorch.set_estimator(layer, _same_kind(estimator))
    assert torch.equal(layer.weight, layer.weight)


def _same_kind(estimator):
    """A deterministic estimator with scores of the same shape."""
    plain = masktorch.TopK(0.5)
    is_blocks = isinstance(estimator, masktorch.Blocks)
    return masktorch.Blocks(plain, estimator.block) if is_blocks else plain
