"""`rescale=True` multiplies by numel / sum(mask)."""

import numpy as np
import torch
from torch import nn

import masktorch
from masktorch import (
    Concrete,
)
from tools.by_hand import sigma
from tools.estimators import each_elementwise
from tools.models import half, parameter_under


@each_elementwise
def test_rescale_bakes_what_the_layer_used(small, batch, estimator):
    masktorch.wrap(small, estimator, rescale=True)
    masktorch.set_masks(small, half(small))
    small.eval()
    weight, mask = small.head.weight.clone(), masktorch.masks(small)["head.weight"]
    expected = (
        parameter_under(small, "head.weight") * mask * (mask.numel() / mask.sum())
    )
    torch.testing.assert_close(weight, expected)
    masktorch.unwrap(small)
    assert torch.equal(small.head.weight, weight)


def test_rescale_in_half_precision_and_of_an_empty_mask():
    layer = nn.Linear(400, 400, dtype=torch.float16)
    masktorch.wrap(layer, rescale=True, init=-1.0)
    assert torch.count_nonzero(layer.weight) == 0
    one = torch.zeros(400, 400, dtype=torch.bool)
    one[0, 0] = True
    with torch.no_grad():
        parameter_under(layer, "weight").fill_(0.25)
    masktorch.set_masks(layer, {"weight": one})
    for training in (True, False):
        weight = layer.train(training).weight
        assert weight[0, 0] == 0.25 * 400 * 400
        assert torch.count_nonzero(weight) == 1


def test_an_empty_mask_gives_scores_the_gradient_that_they_have_without_rescale():
    def gradient(rescale):
        torch.manual_seed(0)
        layer = nn.Linear(10, 10, bias=False)
        masktorch.wrap(layer, init=-0.01, rescale=rescale)
        layer(torch.ones(1, 10)).sum().backward()
        (scores,) = masktorch.mask_parameters(layer)
        return scores.grad

    assert gradient(rescale=True).any()
    torch.testing.assert_close(gradient(rescale=True), gradient(rescale=False))


def test_soft_masks_are_rescaled_by_their_sum(monkeypatch):
    u = torch.full((1, 2), 0.5)
    monkeypatch.setattr(
        "masktorch._kernels.random._uniform", lambda scores, dtype, generator: u.clone()
    )
    layer = nn.Linear(2, 1, bias=False)
    masktorch.wrap(layer, Concrete(hard=False), init=-3.0, rescale=True)
    m = sigma(np.full(2, -3.0) / (2 / 3))
    expected = layer._parameters["weight"].detach().numpy() * m * 2 / m.sum()
    np.testing.assert_allclose(layer.weight.detach().numpy(), expected, rtol=1e-5)
