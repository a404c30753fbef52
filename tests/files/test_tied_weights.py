"""Mask files of tied weights, loaded where they are tied or not."""

import copy
import re

import pytest
import torch
from torch import nn

import masktorch
from masktorch import (
    load_masks,
    save_masks,
)
from tools.maskfile_mutants import (
    Net,
    plain,
    same,
    snapshot,
    unchanged,
    wrapped,
)

pytestmark = pytest.mark.filterwarnings("ignore:The mask of .* keeps nothing")


def test_a_tied_tensor_saved_under_its_second_name_is_refused(path):
    untied = Net()
    untied.head.weight = nn.Parameter(untied.head.weight.detach().clone())
    save_masks(wrapped(untied, targets=["head.weight"]), path)
    tied = plain(untied)
    tied.embed.weight = tied.head.weight  # so its name is that of the first place
    message = (
        "expected one mask for ['embed.weight', 'head.weight'], the same tensor in "
        "this model (tied weights), found none for 1 of them. Untie them, as when the "
        "masks were saved."
    )
    before = snapshot(tied)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_masks(tied, path)
    assert unchanged(tied, before)


class Two(nn.Module):
    """Two layers, or one in two places, or two with one weight."""

    def __init__(self, tie):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.load_state_dict(self.first.state_dict())
        if tie == "weight":
            self.second.weight = self.first.weight
        if tie == "layer":
            self.second = self.first


@pytest.mark.parametrize("saved", ["weight", "layer"])
@pytest.mark.parametrize("present", ["weight", "layer", None])
@pytest.mark.parametrize(
    "onto", [lambda model: model, masktorch.wrap], ids=["plain", "wrapped"]
)
def test_a_tied_tensor_is_masked_at_every_place(path, saved, present, onto):
    model = wrapped(Two(saved), targets=["first.weight"])
    save_masks(model, path)
    masks = masktorch.masks(model)
    assert same(masktorch.read_masks(path), masks)
    loaded = Two(present)
    loaded.load_state_dict(plain(model).state_dict())
    load_masks(onto(loaded), path).eval()
    assert not masks["first.weight"].all()
    for layer in (loaded.first, loaded.second):
        assert torch.equal(layer.weight, model.eval().first.weight)


@pytest.mark.parametrize(
    "onto", [lambda model: model, masktorch.wrap], ids=["plain", "wrapped"]
)
def test_two_different_masks_on_one_tied_tensor_are_refused(path, onto):
    model = wrapped(Two(None), targets=["first.weight", "second.weight"])
    save_masks(model, path)
    tied = onto(Two("weight"))
    tied.load_state_dict(plain(model).state_dict(), strict=False)
    before = snapshot(tied)
    message = (
        "expected one mask for ['first.weight', 'second.weight'], the same tensor in "
        "this model (tied weights), found different ones. Untie them, as when"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        load_masks(tied, path)
    assert unchanged(tied, before)
    alike = masktorch.set_masks(
        model, dict.fromkeys(masktorch.masks(model), torch.eye(4) > 0)
    )
    masktorch.set_masks(
        alike, {"first.weight": torch.eye(4) > 0, "second.weight": torch.eye(4) > 0}
    )
    save_masks(alike, path)  # two that are the same
    load_masks(tied, path)
    assert same(masktorch.masks(tied), {"first.weight": torch.eye(4) > 0})


def test_a_tie_broken_under_its_mask_is_saved_and_loaded(path):
    model = wrapped(Two("weight"), targets=["first.weight"])
    weight = model.first.parametrizations.weight.original.detach() + 1
    model.second.weight = nn.Parameter(weight, requires_grad=False)
    masks = masktorch.masks(model)
    save_masks(model, path)
    fits = masktorch.unwrap(copy.deepcopy(model), bake=False)
    assert not torch.equal(fits.first.weight, fits.second.weight)
    load_masks(fits, path)  # each place with weights of its own
    assert torch.equal(fits.second.weight, model.eval().second.weight)
    masktorch.set_masks(model, {"first.weight": ~masks["first.weight"]})
    assert same(masktorch.masks(load_masks(model, path)), masks)


def test_a_missing_place_of_a_tied_tensor_is_refused(path):
    save_masks(wrapped(Two("weight"), targets=["first.weight"]), path)
    model = Two("weight")
    del model.second
    with pytest.raises(
        ValueError, match=r"found 1 in the file only \['second.weight'\]"
    ):
        load_masks(model, path, any_weights=True)
