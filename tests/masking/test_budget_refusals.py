"""Budgets count single entries: what would be misread is refused by name."""

import dataclasses
import re

import pytest
import torch
from torch import nn

import masktorch
from masktorch import Threshold, TopK, budget

BUDGETS = [budget.overall, budget.erk]


@dataclasses.dataclass(frozen=True)
class Largest:
    """A user's top-k of the whole tensor."""

    density: float = 0.5

    def __call__(self, scores):
        return self.mode(scores).to(scores.dtype) + scores - scores.detach()

    def mode(self, scores):
        return TopK(self.density).mode(scores)

    def init(self, weight):
        return weight.abs()


class LargestOfEachRow(Largest):
    def mode(self, scores):
        return torch.stack([super(LargestOfEachRow, self).mode(row) for row in scores])


class TopKOfEachRow(TopK):
    """A subclass of TopK whose density means something else."""

    def mode(self, scores):
        return torch.stack([TopK(self.density).mode(row) for row in scores])


def network(estimator, device="cpu"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(50, 30), nn.ReLU(), nn.Linear(30, 20))
    return masktorch.wrap(model.to(device), estimator)


@pytest.mark.parametrize("allocate", BUDGETS)
@pytest.mark.parametrize("density", [0.01, 0.1, 0.5, 0.75, 1.0])
def test_a_user_estimator_whose_density_is_the_share_of_the_tensor(allocate, density):
    model = network(Largest())
    masktorch.set_density(model, allocate(model, density))
    assert masktorch.report(model).kept == int(density * 2100 + 0.5)


@pytest.mark.parametrize("allocate", BUDGETS)
@pytest.mark.parametrize("estimator", [LargestOfEachRow(), TopKOfEachRow()])
@pytest.mark.parametrize("density", [0.1, 0.5, 0.735, 1.0])
def test_a_density_of_each_row_is_refused_by_name(allocate, estimator, density):
    model = network({"0.weight": TopK(), "2.weight": estimator})
    message = (
        f"budget.{allocate.__name__}() expected estimators whose density is the share "
        "of the whole tensor that they keep, as TopK's: "
    )
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        allocate(model, density)
    assert "keeps 20 entries of '2.weight', not 1." in str(error.value)
    assert model[2].parametrizations.weight.estimator == estimator


def test_on_the_meta_device():
    on_meta = network(Largest(), "meta")
    assert budget.erk(on_meta, 0.3) == budget.erk(network(Largest()), 0.3)
    with pytest.raises(ValueError, match="share of the whole tensor"):
        budget.erk(network(LargestOfEachRow(), "meta"), 0.3)
    message = "ranks scores, and those of '0.weight' are on the meta device"
    with pytest.raises(ValueError, match=message):
        budget.overall(network(TopK(), "meta"), 0.3)


def call_named_in(error):
    """What an error says to call, made with the names of this module."""
    calls = str(error.value).partition("Call ")[2]
    return re.findall(r"masktorch\.(\w+)\(", calls)


@pytest.mark.parametrize("allocate", BUDGETS)
def test_the_advice_works(allocate):
    plain = nn.Sequential(nn.Linear(50, 30))
    expected = "expected a wrapped model whose estimators have a density"
    with pytest.raises(ValueError, match=expected) as error:
        allocate(plain, 0.5)
    assert call_named_in(error) == ["wrap", "TopK"]
    assert allocate(masktorch.wrap(plain, masktorch.TopK(0.5)), 0.5)

    fixed = nn.Sequential(nn.Linear(3, 2))
    masktorch.set_masks(fixed, {"0.weight": torch.ones(2, 3, dtype=torch.bool)})
    with pytest.raises(ValueError, match=expected) as error:
        allocate(fixed, 0.5)
    assert call_named_in(error) == ["unwrap", "wrap", "TopK"]
    masktorch.wrap(masktorch.unwrap(fixed, bake=False), masktorch.TopK(0.5))
    assert allocate(fixed, 0.5) == {"0.weight": 0.5}

    learned = network(Threshold())
    with pytest.raises(ValueError, match=expected) as error:
        allocate(learned, 0.5)
    assert call_named_in(error) == ["set_estimator", "TopK"]
    masktorch.set_estimator(learned, masktorch.TopK(0.5, absolute=False))
    assert allocate(learned, 0.5)


@pytest.mark.parametrize("allocate", BUDGETS)
def test_the_smallest_density_that_is_named_works(allocate):
    model = network(TopK())
    with pytest.raises(ValueError, match="Give a density of at least") as error:
        allocate(model, 1e-6)
    named = float(str(error.value).rpartition("at least ")[2].removesuffix("."))
    assert allocate(model, named)
