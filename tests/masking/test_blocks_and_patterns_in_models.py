"""Blocks and ConcreteNOfM: densities that count blocks, checkpoints, reports."""

import copy
import re

import pytest
import torch
from torch import nn

import masktorch
from masktorch import Bernoulli, Blocks, ConcreteNOfM, TopK, budget


def plain():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8, 4))


ESTIMATORS = [
    Blocks(TopK(0.25), (1, None)),
    Blocks(TopK(0.5, absolute=False), (2, 2)),
    Blocks(Bernoulli(0.3), (None, None)),
    ConcreteNOfM(1, 2, temperature=0.5, scale=3.0),
    ConcreteNOfM(2, 4, hard=True),
]


def train(model, optimiser, steps=3):
    for step in range(steps):
        torch.manual_seed(step)
        optimiser.zero_grad()
        model(torch.randn(8, 4, 3, 3)).square().sum().backward()
        optimiser.step()


def mix(model):
    return masktorch.freeze_weights(masktorch.freeze_mask(model), False)


@pytest.mark.parametrize("phase", [lambda model: model, mix])
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
@pytest.mark.parametrize("make", [plain, lambda: masktorch.wrap(plain())])
def test_training_resumes_to_the_bit(estimator, rescale, phase, make):
    model = phase(masktorch.wrap(plain(), estimator, rescale=rescale))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    train(model, optimiser)
    state = copy.deepcopy(model.state_dict())
    optimiser_state = copy.deepcopy(optimiser.state_dict())
    resumed = masktorch.match_checkpoint(make(), state)
    resumed.load_state_dict(state)
    assert resumed[0].parametrizations.weight.estimator == estimator
    again = torch.optim.Adam(resumed.parameters(), lr=0.05)
    again.load_state_dict(optimiser_state)
    train(model, optimiser)
    train(resumed, again)
    assert repr(resumed) == repr(model)
    for name, value in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_density_counts_blocks():
    model = masktorch.wrap(plain(), Blocks(TopK(0.5), (1, None)))
    masktorch.set_density(model, 0.25)
    assert [row.kept for row in masktorch.report(model).rows] == [2 * 36, 1 * 8]
    masktorch.set_density(model, {"0.weight": 0.6, "2.weight": 1.0})
    assert [row.kept for row in masktorch.report(model).rows] == [5 * 36, 4 * 8]
    assert model[0].parametrizations.weight.estimator == Blocks(TopK(0.6), (1, None))
    assert masktorch.expected_density(model).item() == pytest.approx(212 / 320)


@pytest.mark.parametrize("allocate", [budget.overall, budget.erk])
@pytest.mark.parametrize("block", [(1, None), (1, 1), (None, None)])
def test_budgets_refuse_blocks(allocate, block):
    model = masktorch.wrap(
        plain(), {"0.weight": TopK(), "2.weight": Blocks(TopK(), block)}
    )
    with pytest.raises(ValueError, match=re.escape("has blocks in '2.weight'")):
        allocate(model, 0.5)


@pytest.mark.parametrize(
    "estimator",
    [TopK(), Blocks(TopK(), (None, 1)), ConcreteNOfM(2, 4), ConcreteNOfM(1, 4)],
)
def test_scores_of_another_shape_are_refused_by_name(estimator):
    present = Blocks(TopK(0.5), (1, None))
    model = masktorch.wrap(plain(), present)
    message = f"set_estimator() can't put {estimator!r} on '0.weight'"
    with pytest.raises(ValueError, match=re.escape(message)):
        masktorch.set_estimator(model, estimator)
    assert model[0].parametrizations.weight.estimator == present


def test_an_estimator_that_does_not_fit_is_refused_by_name():
    model = masktorch.wrap(plain(), Blocks(TopK(0.5), (1, None)))
    with pytest.raises(ValueError, match=r"can't mask '0.weight': .*3"):
        masktorch.set_estimator(model, Blocks(TopK(0.5), (3, None)))


def test_a_temperature_that_falls():
    model = masktorch.wrap(plain(), ConcreteNOfM(2, 4, temperature=4.0))
    random = torch.get_rng_state()
    for temperature in (4.0, 1.0, 0.05):
        masktorch.set_estimator(model, ConcreteNOfM(2, 4, temperature=temperature))
    assert torch.equal(torch.get_rng_state(), random)  # though its own start is drawn
