"""Where scores start: the estimator's own value, a number, a function."""

import pytest
import torch
from torch import nn

import masktorch
from masktorch import (
    Bernoulli,
    Concrete,
    HardConcrete,
    IntermediateSampling,
    Piggyback,
    Threshold,
)
from tools.models import parameter_under


def test_scores_start_where_init_says():
    def scores(**arguments):
        layer = masktorch.wrap(nn.Linear(3, 2, dtype=torch.bfloat16), **arguments)
        return layer.parametrizations.weight.scores

    assert scores().dtype == torch.float32
    assert scores().unique().tolist() == [1.0]
    assert scores(estimator=Bernoulli()).unique().tolist() == [3.0]
    assert scores(estimator=Piggyback()).unique().item() == pytest.approx(
        0.01, rel=1e-2
    )
    for threshold in (1.0, -1.0, 100.0):
        assert (scores(estimator=Piggyback(threshold)) > threshold).all()
    assert scores(init=3).unique().tolist() == [3.0]
    layer = nn.Linear(3, 2)
    weight = layer.weight.detach().clone()
    masktorch.wrap(layer, init=torch.abs)
    assert torch.equal(layer.parametrizations.weight.scores, weight.abs())


def test_init_cannot_write_into_the_weight():
    layer = nn.Linear(4, 3)
    before = layer.weight.detach().clone()
    masktorch.wrap(layer, init=nn.init.zeros_)
    assert torch.equal(parameter_under(layer, "weight"), before)
    assert torch.count_nonzero(layer.parametrizations.weight.scores) == 0


@pytest.mark.parametrize(
    "estimator",
    [
        Threshold(),
        Threshold(0.9),
        Bernoulli(),
        Bernoulli(0.9),
        IntermediateSampling(),
        Piggyback(),
        Piggyback(0.5),
        HardConcrete(),
        Concrete(),
        Concrete(hard=False),
    ],
    ids=repr,
)
def test_a_fresh_model_evaluates_as_the_plain_one(estimator):
    torch.manual_seed(0)
    plain, x = nn.Linear(6, 4), torch.randn(3, 6)
    expected = plain(x)
    model = masktorch.wrap(plain, estimator).eval()
    assert torch.equal(model(x), expected)
    assert masktorch.report(model).masked == 0
