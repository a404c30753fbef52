"""The expected density, its gradient and penalties made of it."""

import numpy as np
import pytest
import torch
from torch import nn

import masktorch
from masktorch import (
    Bernoulli,
    Concrete,
    HardConcrete,
    IntermediateSampling,
    NOfM,
    Piggyback,
    Threshold,
    TopK,
)
from tools.by_hand import sigma


def two_layers(estimator, **options):
    return masktorch.wrap(
        nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), estimator, **options
    )


def given():
    ones = torch.ones(4, 6, dtype=torch.bool)
    return masktorch.set_masks(nn.Sequential(nn.Linear(6, 4)), {"0.weight": ones})


EXPECTED = [
    # estimator, the probability that an entry with score s is kept, its derivative by s
    (Threshold(), lambda s: s > 0, lambda s: sigma(s) * sigma(-s)),
    (Threshold(0.7), lambda s: sigma(s) > 0.7, lambda s: sigma(s) * sigma(-s)),
    (Bernoulli(), sigma, lambda s: sigma(s) * sigma(-s)),
    (IntermediateSampling(), sigma, lambda s: sigma(s) * sigma(-s)),
    (Piggyback(0.1), lambda s: s > 0.1, np.ones_like),
    (Concrete(), sigma, lambda s: sigma(s) * sigma(-s)),
    (Concrete(2.0, hard=False), sigma, lambda s: sigma(s) * sigma(-s)),
    (
        HardConcrete(0.5, -0.2, 1.3),
        lambda s: sigma(s - 0.5 * np.log(0.2 / 1.3)),
        lambda s: (
            sigma(s - 0.5 * np.log(0.2 / 1.3)) * sigma(0.5 * np.log(0.2 / 1.3) - s)
        ),
    ),
]


@pytest.mark.parametrize(
    ("estimator", "probability", "slope"),
    EXPECTED,
    ids=[repr(case[0]) for case in EXPECTED],
)
def test_the_expected_density_and_its_gradient(estimator, probability, slope):
    rng = np.random.default_rng(0)
    s = {"0.weight": rng.normal(size=(4, 6)), "1.weight": rng.normal(size=(3, 4))}
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)).double()
    masktorch.wrap(model, estimator)
    for name, scores in masktorch.named_mask_parameters(model):
        scores.data = torch.tensor(s[name])
    density = masktorch.expected_density(model)
    assert density.shape == ()
    np.testing.assert_allclose(
        density.item(), sum(probability(a).sum() for a in s.values()) / 36, rtol=1e-12
    )
    density.backward()
    for name, scores in masktorch.named_mask_parameters(model):
        np.testing.assert_allclose(scores.grad, slope(s[name]) / 36, rtol=1e-10)


@pytest.mark.parametrize(
    "estimator", [TopK(0.25), TopK(0.25, absolute=False), NOfM(1, 2)]
)
def test_the_expected_density_of_ranked_estimators_is_a_constant(estimator):
    model = two_layers(estimator)
    density = masktorch.expected_density(model)
    assert not density.requires_grad
    assert density.item() == pytest.approx(masktorch.report(model).density)


@pytest.mark.parametrize(
    "make", [lambda: masktorch.freeze_mask(two_layers(Bernoulli())), given]
)
def test_the_expected_density_of_frozen_and_fixed_masks_is_their_density(make):
    density = masktorch.expected_density(make())
    assert not density.requires_grad
    assert density == 1.0


def test_the_expected_density_of_bfloat16_is_computed_in_float32():
    layer = masktorch.wrap(nn.Linear(100, 100).bfloat16(), Bernoulli(), init=0.0)
    density = masktorch.expected_density(layer)
    assert density.dtype is torch.float32
    assert density == 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_density_of_a_frozen_mask_is_not_rounded_to_the_default_dtype(dtype):
    layer = masktorch.freeze_mask(masktorch.wrap(nn.Linear(600, 600), TopK(0.5011)))
    torch.set_default_dtype(dtype)
    try:
        density = masktorch.expected_density(layer)
    finally:
        torch.set_default_dtype(torch.float32)
    assert density.item() == pytest.approx(masktorch.report(layer).density)


def test_a_penalty_reaches_its_target():
    """((expected - target) / 0.05) ** 2 is a line of the user's."""
    model = two_layers(Bernoulli(), init=0.0)
    optimiser = torch.optim.Adam(masktorch.mask_parameters(model), lr=0.1)
    for _ in range(100):
        optimiser.zero_grad()
        (((masktorch.expected_density(model) - 0.2) / 0.05) ** 2).backward()
        optimiser.step()
    assert masktorch.expected_density(model).item() == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "estimator", [Bernoulli(), HardConcrete(), Concrete()], ids=repr
)
def test_a_penalty_reaches_confident_scores_in_half_precision(estimator, dtype):
    layer = masktorch.wrap(nn.Linear(2, 2, bias=False).to(dtype), estimator, init=7.0)
    masktorch.expected_density(layer).backward()
    (scores,) = masktorch.mask_parameters(layer)
    shift = 2 / 3 * np.log(0.1 / 1.1) if isinstance(estimator, HardConcrete) else 0
    slope = sigma(7 - shift) * sigma(shift - 7) / 4
    np.testing.assert_allclose(scores.grad.double(), np.full((2, 2), slope), rtol=0.02)
