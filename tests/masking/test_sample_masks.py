"""Masks sampled by their probabilities."""

import numpy as np
import pytest
import torch
from torch import nn

import masktorch
from masktorch import Bernoulli, Concrete, HardConcrete, IntermediateSampling
from tools.two_layers import MODELS, assert_same, state, two_layers


@pytest.mark.parametrize(
    ("estimator", "p"),
    [
        (Bernoulli(), 0.75),
        (IntermediateSampling(), 0.75),
        (Concrete(hard=True), 0.75),
        (Concrete(hard=False), 0.75),
        # P(z > 0) = sigma(s - beta * log(-gamma / zeta))
        (HardConcrete(), 1 / (1 + (0.1 / 1.1) ** (2 / 3) / 3)),
    ],
    ids=repr,
)
def test_masks_are_sampled_by_their_probability(estimator, p):
    n = 40_000
    model = masktorch.wrap(nn.Linear(n, 1), estimator, init=float(np.log(3)))
    before = torch.get_rng_state()
    first = masktorch.sample_masks(model, torch.Generator().manual_seed(1))["weight"]
    again = masktorch.sample_masks(model, torch.Generator().manual_seed(1))["weight"]
    assert torch.equal(
        before, torch.get_rng_state()
    )  # the generator's draws are its own
    other = masktorch.sample_masks(model)["weight"]
    assert first.dtype is torch.bool
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    for mask in (first, other):
        assert abs(mask.double().mean() - p) < 5 * np.sqrt(p * (1 - p) / n)
    assert masktorch.expected_density(model).item() == pytest.approx(p, rel=1e-5)


@pytest.mark.parametrize("kind", ["threshold", "frozen", "given"])
def test_deterministic_masks_are_sampled_unchanged(kind):
    model = MODELS[kind]()
    sampled = masktorch.sample_masks(model)
    for name, mask in masktorch.masks(model).items():
        assert torch.equal(sampled[name], mask)
        sampled[name].fill_(False)  # a copy
    assert_same(state(model), state(model))


def test_scores_can_be_set_to_the_average_of_samples():
    """Federated masks: clients send draws, the server sends scores of their average."""
    server = masktorch.wrap(nn.Linear(50, 40), Bernoulli(), init=0.0)
    clients = [
        masktorch.sample_masks(server, torch.Generator().manual_seed(i))["weight"]
        for i in range(10)
    ]
    mean = torch.stack(clients).float().mean(0).clamp(0.01, 0.99)
    for name, scores in masktorch.named_mask_parameters(server):
        assert name == "weight"
        scores.data.copy_(torch.logit(mean))
    torch.testing.assert_close(masktorch.expected_density(server), mean.mean())


def test_sampling_by_a_generator_seeds_no_other_stream(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", calls.append)
    masktorch.sample_masks(two_layers(Bernoulli()), torch.Generator().manual_seed(1))
    assert calls == []
    with pytest.raises(
        TypeError, match=r"expected a torch.Generator, found .*Generator"
    ):
        masktorch.sample_masks(two_layers(Bernoulli()), np.random.default_rng(0))
