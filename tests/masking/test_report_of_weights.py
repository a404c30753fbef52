"""A report says whether the weights under a mask train."""

import pytest
import torch
from torch import nn

import masktorch


def phases(model):
    rows = masktorch.report(model).rows
    return [(row.trains, row.weights_train) for row in rows]


def test_weights_train_in_each_phase():
    model = masktorch.wrap(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)))
    assert phases(model) == [(True, False)] * 2
    masktorch.freeze_weights(masktorch.freeze_mask(model), False)
    assert phases(model) == [(False, True)] * 2
    masktorch.freeze_weights(model[1])
    assert phases(model) == [(False, True), (False, False)]


def test_requires_grad_on_the_model_is_visible_in_the_report():
    model = masktorch.wrap(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)))
    model[0].requires_grad_(True)
    assert phases(model) == [(True, True), (True, False)]
    lines = [line.split() for line in str(masktorch.report(model)).splitlines()]
    assert lines[0][-2:] == ["mask", "weights"]
    assert lines[1][-2:] == ["trains", "trains"]
    assert lines[2][-2:] == ["trains", "frozen"]


def test_fixed_masks_over_weights_that_train():
    model = nn.Sequential(nn.Linear(3, 2))
    masktorch.set_masks(model, {"0.weight": torch.ones(2, 3, dtype=torch.bool)})
    assert phases(model) == [(False, True)]


def test_the_meta_device_is_refused_and_the_advice_works():
    with torch.device("meta"):
        model = masktorch.wrap(nn.Sequential(nn.Linear(3, 2)))
    message = r"report\(\) can't count the mask of '0.weight': .* meta device"
    with pytest.raises(ValueError, match=message):
        masktorch.report(model)
    state = masktorch.wrap(nn.Sequential(nn.Linear(3, 2)), init=-1.0).state_dict()
    model.load_state_dict(state, assign=True)
    assert masktorch.report(model).kept == 0
