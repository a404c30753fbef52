"""set_masks: exactly the mask given, fixed masks on plain models, refusals."""

import copy
import re

import numpy as np
import pytest
import torch
from torch import nn

import masktorch
from masktorch import (
    Bernoulli,
    IntermediateSampling,
    Threshold,
)
from tools.estimators import ELEMENTWISE, HalfKept
from tools.two_layers import MASKS, ONE_ROW, YES, by_hand, two_fixed_masks


def test_set_masks_gives_exactly_the_mask_and_moves_only_what_it_must():
    for estimator in [
        *ELEMENTWISE,
        Threshold(0.9),
        Bernoulli(0.01),
        IntermediateSampling(1.0, 0.3),
    ]:
        for dtype in [torch.float32, torch.bfloat16, torch.float16, torch.float64]:
            layer = masktorch.wrap(
                nn.Linear(50, 40, dtype=dtype), estimator, init=torch.randn_like
            )
            scores = layer.parametrizations.weight.scores
            before, wanted = scores.detach().clone(), torch.rand(40, 50) < 0.5
            apart = (before - getattr(estimator, "at", 0.0)).abs() > 1e-2
            agreed = (masktorch.masks(layer)["weight"] == wanted) & apart
            masktorch.set_masks(layer, {"weight": wanted})
            assert torch.equal(masktorch.masks(layer)["weight"], wanted)
            assert torch.equal(scores[agreed], before[agreed])


def test_set_masks_moves_scores_off_the_threshold():
    layer = masktorch.wrap(nn.Linear(2, 1), Bernoulli(), init=0.0)
    masktorch.set_masks(layer, {"weight": torch.tensor([[True, False]])})
    assert layer.parametrizations.weight.scores.tolist() == [[1.0, -1.0]]


def test_masks_are_copies():
    layer = masktorch.wrap(nn.Linear(2, 3))
    masktorch.masks(layer)["weight"][:] = False
    assert masktorch.report(layer).masked == 0


def test_set_masks_puts_fixed_masks_on_a_plain_model():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    given = YES.clone()
    assert masktorch.set_masks(model, {"1.weight": given}) is model
    given[:] = False  # a copy was taken
    assert list(masktorch.masks(model)) == ["1.weight"]
    assert torch.equal(masktorch.masks(model)["1.weight"], YES)
    with pytest.raises(ValueError, match="only fixed ones, which have no scores"):
        masktorch.mask_parameters(model)
    assert model[1]._parameters["weight"].requires_grad  # trains as before
    np.testing.assert_array_equal((model[1].weight != 0).numpy(), YES.numpy())


def test_a_fixed_mask_can_be_replaced():
    model = two_fixed_masks()
    for masks in (MASKS, {name: ~mask for name, mask in MASKS.items()}):
        masktorch.set_masks(model, masks)
        np.testing.assert_allclose(
            model(ONE_ROW).detach(), by_hand(model, masks), rtol=1e-6
        )


PLAIN = [
    ({"3.weight": YES}, ValueError, "set_masks() found no parameter '3.weight'"),
    (
        {"0.weight": YES[:1]},
        ValueError,
        "for '0.weight' of shape (2, 2), found (1, 2).",
    ),
    (
        {"0.weight": YES.int()},
        TypeError,
        "bool tensor for '0.weight', found torch.int32",
    ),
    ({}, ValueError, "set_masks() expected a wrapped model: nothing is masked"),
]


@pytest.mark.parametrize(("masks", "exception", "message"), PLAIN)
def test_bad_masks_leave_a_plain_model_plain(masks, exception, message):
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(exception, match=re.escape(message)):
        masktorch.set_masks(model, masks)
    assert type(model[0]) is nn.Linear


def test_a_sparse_mask_is_refused_before_anything_changes():
    layer = nn.Linear(2, 2)
    with pytest.raises(
        TypeError, match=r"a dense bool tensor for 'weight', found Tensor"
    ):
        masktorch.set_masks(layer, {"weight": YES.to_sparse()})
    assert type(layer) is nn.Linear


ALL_KEPT = torch.ones(2, 2, dtype=torch.bool)


SET_MASKS = [
    (
        {},
        ValueError,
        "one mask for each masked tensor, by name. Missing: 0.weight, 1.weight. "
        "Not masked in this model: none. masktorch.masks(model) shows the names.",
    ),
    (
        {"0.weight": ALL_KEPT, "1.weight": ALL_KEPT, "2.weight": ALL_KEPT},
        ValueError,
        "Missing: none. Not masked "
        "in this model: 2.weight. masktorch.masks(model) shows the names.",
    ),
    (
        {"0.weight": ALL_KEPT, "1.weight": ALL_KEPT[:1]},
        ValueError,
        "expected a dense bool tensor for '1.weight' of shape (2, 2), found (1, 2).",
    ),
    (
        {"0.weight": ALL_KEPT, "1.weight": ALL_KEPT.float()},
        TypeError,
        "expected a dense bool tensor for '1.weight', found torch.float32.",
    ),
    ({"0.weight": ALL_KEPT, "1.weight": [[True] * 2] * 2}, TypeError, "found list."),
]


@pytest.mark.parametrize(("given", "exception", "message"), SET_MASKS)
def test_set_masks_refuses_wrong_names_shapes_and_dtypes(given, exception, message):
    model = masktorch.wrap(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), init=-1.0)
    with pytest.raises(exception, match=re.escape(message)):
        masktorch.set_masks(model, given)
    assert not any(mask.any() for mask in masktorch.masks(model).values())


def test_set_masks_refuses_a_list():
    with pytest.raises(
        TypeError, match=r"expected a dict from tensor names to masks.*found list"
    ):
        masktorch.set_masks(masktorch.wrap(nn.Linear(2, 2)), [ALL_KEPT])


def test_a_mask_the_estimator_cannot_express():
    layer = masktorch.wrap(nn.Linear(2, 2), HalfKept(), init=lambda w: w)
    half = torch.tensor([[True, False], [False, True]])
    assert torch.equal(
        masktorch.masks(masktorch.set_masks(layer, {"weight": half}))["weight"], half
    )
    message = "cannot give 'weight' this mask: HalfKept() cannot express it"
    with pytest.raises(ValueError, match=re.escape(message)):
        masktorch.set_masks(layer, {"weight": ALL_KEPT})
    assert torch.equal(masktorch.masks(layer)["weight"], half)


NOTHING = {"weight": torch.zeros(2, 3, dtype=torch.bool)}


@pytest.mark.parametrize("wrapped", [True, False])
def test_setting_a_mask_that_keeps_nothing_blames_the_caller(wrapped):
    model = nn.Linear(3, 2)
    if wrapped:
        masktorch.wrap(model)
    with pytest.warns(UserWarning, match="keeps nothing") as caught:
        masktorch.set_masks(model, NOTHING)
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.filterwarnings("ignore:The mask of 'weight' keeps nothing")
def test_loading_a_mask_that_keeps_nothing_blames_the_caller(wrapped, tmp_path):
    model, path = nn.Linear(3, 2), tmp_path / "masks.npz"
    masktorch.save_masks(masktorch.set_masks(copy.deepcopy(model), NOTHING), path)
    if wrapped:
        masktorch.wrap(model)
    with pytest.warns(UserWarning, match="keeps nothing") as caught:
        masktorch.load_masks(model, path)
    assert [warning.filename for warning in caught] == [__file__]
