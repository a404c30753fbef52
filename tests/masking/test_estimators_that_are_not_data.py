"""Estimators that a checkpoint cannot describe are refused, never restored wrongly."""

import dataclasses
import enum

import pytest
import torch
from torch import nn

import masktorch


class Side(enum.IntEnum):
    LOW = 0
    HIGH = 1


class AddsState(masktorch.TopK):
    """A subclass of a dataclass, with an attribute that is no field."""

    def __init__(self, density=0.5, absolute=True, lowest=False):
        super().__init__(density, absolute=absolute)
        object.__setattr__(self, "lowest", lowest)


@dataclasses.dataclass(frozen=True)
class HasAnEnum(masktorch.Threshold):
    side: Side = Side.LOW


@dataclasses.dataclass
class HasStateOfItsOwn:
    at: float = 0.0
    sign: float = dataclasses.field(default=1.0, init=False)

    def __call__(self, scores):
        return torch.sigmoid(self.sign * scores)

    def mode(self, scores):
        return self.sign * scores > self.at


def with_another_sign():
    estimator = HasStateOfItsOwn()
    estimator.sign = -1.0
    return estimator


@pytest.mark.parametrize(
    "estimator",
    [AddsState(lowest=True), HasAnEnum(side=Side.HIGH), with_another_sign()],
    ids=lambda estimator: type(estimator).__name__,
)
def test_an_estimator_with_state_that_is_not_data_is_refused(estimator):
    state = masktorch.wrap(nn.Linear(4, 1), estimator).state_dict()
    plain = nn.Linear(4, 1)
    with pytest.raises(ValueError, match="has no data of"):
        masktorch.match_checkpoint(plain, state, estimators=(type(estimator),))
    assert type(plain) is nn.Linear


def test_two_learnable_masks_do_not_become_the_one_of_tied_weights():
    def pair(tied):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        if tied:
            model[1].weight = model[0].weight
        return model

    apart = masktorch.wrap(pair(False))
    eye = torch.eye(2, dtype=torch.bool)
    masktorch.set_masks(apart, {"0.weight": eye, "1.weight": ~eye})
    with pytest.raises(ValueError, match="the two are tied"):
        masktorch.match_checkpoint(pair(True), apart.state_dict())
    one = masktorch.wrap(pair(True))
    masktorch.match_checkpoint(pair(True), one.state_dict())


def test_a_large_cost_does_not_overflow():
    model = masktorch.wrap(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    expected = masktorch.expected_density(
        model, cost={"0.weight": 1.0, "1.weight": 0.5}
    )
    for factor in (1e38, 1e300):
        cost = {"0.weight": factor, "1.weight": factor / 2}
        torch.testing.assert_close(
            masktorch.expected_density(model, cost=cost), expected
        )


def test_a_module_in_two_places_matches_its_own_checkpoint():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 2)
            self.b = self.a

    state = masktorch.wrap(Twice(), masktorch.TopK(0.25)).state_dict()
    twin = masktorch.match_checkpoint(Twice(), state)
    twin.load_state_dict(state)
    assert masktorch.report(twin).kept == 1
    assert [name for name, _ in masktorch.named_mask_parameters(twin)] == ["a.weight"]
