"""The expected density of tensors whose entries cost differently, and of any scores."""

import re

import numpy as np
import pytest
import torch
from torch import nn

import masktorch
from masktorch import Bernoulli, Threshold, TopK, expected_density
from tools.by_hand import sigma


def wrapped(estimator):
    """Two layers in float64 with known scores."""
    rng = np.random.default_rng(0)
    scores = {"0.weight": rng.normal(size=(4, 6)), "1.weight": rng.normal(size=(3, 4))}
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)).double()
    masktorch.wrap(model, estimator)
    for name, parameter in masktorch.named_mask_parameters(model):
        parameter.data = torch.tensor(scores[name])
    return model, scores


@pytest.mark.parametrize("costs", [(3.0, 0.5), (1, 1), (0, 2), (np.float32(2), 1)])
def test_the_weighted_mean_and_its_gradient(costs):
    model, s = wrapped(Bernoulli())
    first, second = (float(cost) for cost in costs)
    density = expected_density(model, cost={"1.weight": costs[1], "0.weight": costs[0]})
    total = first * 24 + second * 12
    kept = first * sigma(s["0.weight"]).sum() + second * sigma(s["1.weight"]).sum()
    np.testing.assert_allclose(density.item(), kept / total, rtol=1e-12)
    density.backward()
    for (name, scores), cost in zip(
        masktorch.named_mask_parameters(model), (first, second), strict=True
    ):
        slope = cost * sigma(s[name]) * sigma(-s[name]) / total
        np.testing.assert_allclose(scores.grad, slope, rtol=1e-10, atol=0)


def test_patterns_and_exact_names():
    model, _ = wrapped(Bernoulli())
    by_name = expected_density(model, cost={"0.weight": 3, "1.weight": 1})
    for cost in ({"0.weight": 3, "*": 1}, {"0.*": 3, "1.*": 1}):
        assert torch.equal(expected_density(model, cost=cost), by_name)
    with pytest.raises(ValueError, match=r"no tensor that matches the pattern '2.\*'"):
        expected_density(model, cost={"*.weight": 1, "2.*": 1})


def test_equal_costs_are_no_costs():
    model, _ = wrapped(Bernoulli())
    equal = expected_density(model, cost=dict.fromkeys(masktorch.masks(model), 7))
    torch.testing.assert_close(equal, expected_density(model), rtol=1e-12, atol=0)


def test_frozen_masks_and_fixed_counts_are_constants():
    model, _ = wrapped(TopK(0.25))
    density = expected_density(model, cost={"0.weight": 2, "1.weight": 1})
    assert not density.requires_grad
    assert density.item() == pytest.approx((2 * 6 + 3) / (2 * 24 + 12))


def test_a_tied_tensor_is_counted_once_under_any_of_its_names():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].weight = model[0].weight
    masktorch.wrap(model, Bernoulli(), init=0.0)
    model[2].parametrizations.weight.scores.data.fill_(50.0)
    density = expected_density(model, cost={"1.weight": 1, "2.weight": 3})
    assert density.item() == pytest.approx((16 * 0.5 + 3 * 8) / (16 + 3 * 8))


REFUSED = [
    ({"0.weight": 1}, ValueError, "Missing: 1.weight."),
    ({"0.weight": 1, "1.weight": 1, "2.weight": 1}, ValueError, "2.weight"),
    (
        {"0.weight": 1, "1.weight": -1},
        ValueError,
        "for '1.weight' expected a cost in [",
    ),
    ({"0.weight": 1, "1.weight": float("nan")}, ValueError, "found nan"),
    ({"0.weight": 1, "1.weight": float("inf")}, ValueError, "found inf"),
    ({"0.weight": 0, "1.weight": 0}, ValueError, "expected a cost above 0"),
    ({}, ValueError, "Missing: 0.weight, 1.weight."),
    ({"0.weight": 1, "1.weight": "1"}, TypeError, "found '1'"),
    ({"0.weight": 1, "1.weight": True}, TypeError, "found True"),
    (1.0, TypeError, "expected cost to be a dict from tensor names to numbers"),
]


@pytest.mark.parametrize(("cost", "exception", "message"), REFUSED)
def test_arguments_that_are_refused(cost, exception, message):
    model, _ = wrapped(Threshold())
    with pytest.raises(exception, match=re.escape(message)):
        expected_density(model, cost=cost)
