"""set_estimator and set_density where scores have a shape of their own."""

import dataclasses
import re

import pytest
import torch
from torch import nn

import masktorch
from masktorch import Bernoulli, Threshold, TopK


@dataclasses.dataclass(frozen=True)
class Rows:
    """A user's estimator: another one decides about whole rows, with one score each."""

    estimator: object = TopK(0.5)

    def init(self, weight):
        return weight.mean(1, keepdim=True)

    def __call__(self, scores):
        return self.estimator(scores)

    def mode(self, scores):
        return self.estimator.mode(scores)

    def expected(self, scores):
        return self.estimator.expected(scores)


class ReadsValues(Rows):
    def init(self, weight):
        return super().init(weight) * weight.sum().item()


def network(estimator):
    torch.manual_seed(0)
    return masktorch.wrap(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), estimator)


def estimators(model):
    return [layer.parametrizations.weight.estimator for layer in model]


@pytest.mark.parametrize(
    ("present", "other", "shapes"),
    [
        (Rows(), TopK(), "of shape (4, 6), and those of the model have shape (4, 1)"),
        (Rows(), Threshold(), "shape (4, 6), and those of the model have shape (4, 1)"),
        (Threshold(), Rows(), "shape (4, 1), and those of the model have shape (4, 6)"),
        (TopK(), ReadsValues(), "(4, 1), and those of the model have shape (4, 6)"),
    ],
)
def test_another_shape_is_refused_by_name(present, other, shapes):
    model = network(present)
    message = f"set_estimator() can't put {other!r} on '0.weight': it has scores of "
    for changed in (other, {"0.weight": other, "1.weight": present}):
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            masktorch.set_estimator(model, changed)
        assert shapes in str(error.value)
    with pytest.raises(ValueError, match=re.escape("on '1.weight'")):
        masktorch.set_estimator(model, {"0.weight": present, "1.weight": other})
    assert estimators(model) == [present, present]


@pytest.mark.parametrize("other", [Rows(TopK(0.25)), Rows(Bernoulli()), ReadsValues()])
def test_the_same_shape_is_taken(other):
    model = network(Rows())
    before = [scores.detach().clone() for scores in masktorch.mask_parameters(model)]
    masktorch.set_estimator(model, other)
    assert estimators(model) == [other, other]
    for scores, now in zip(before, masktorch.mask_parameters(model), strict=True):
        assert torch.equal(scores, now)


def test_nothing_is_drawn():
    """TopK's own start is random."""
    model = network(TopK(0.5))
    random = torch.get_rng_state()
    masktorch.set_estimator(model, TopK(0.25))
    masktorch.set_density(model, 0.75)
    assert torch.equal(torch.get_rng_state(), random)


def test_a_density_reaches_the_estimator_within_and_counts_blocks():
    model = network(Rows(TopK(0.5)))
    masktorch.set_density(model, {"0.*": 0.25, "1.weight": 2 / 3})
    assert estimators(model) == [Rows(TopK(0.25)), Rows(TopK(2 / 3))]
    assert [row.kept for row in masktorch.report(model).rows] == [6, 8]
    with pytest.raises(ValueError, match="found Rows"):
        masktorch.set_density(network(Rows(Threshold())), 0.5)


@pytest.mark.parametrize("allocate", [masktorch.budget.overall, masktorch.budget.erk])
def test_budgets_refuse_blocks_by_name(allocate):
    model = network({"0.weight": TopK(), "1.weight": Rows(TopK())})
    message = "has blocks in '1.weight' of shape (3, 4)"
    with pytest.raises(ValueError, match=re.escape(message)):
        allocate(model, 0.5)


def test_reports_and_the_expected_density_count_entries():
    model = network({"0.weight": Rows(Bernoulli()), "1.weight": Rows(TopK(1 / 3))})
    model[0].parametrizations.weight.scores.data.fill_(0.0)
    density = masktorch.expected_density(model)
    assert density.item() == pytest.approx((24 / 2 + 4) / 36)
    density.backward()
    grad = model[0].parametrizations.weight.scores.grad
    torch.testing.assert_close(grad, torch.full((4, 1), 0.25 * 6 / 36))
    rows = masktorch.report(model).rows
    assert [(row.shape, row.size, row.kept) for row in rows] == [
        ((4, 6), 24, 0),
        ((3, 4), 12, 4),
    ]
