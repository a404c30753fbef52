"""Loading onto a model that does not fit: one error, nothing has changed."""

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
    EVERYTHING,
    Net,
    plain,
    snapshot,
    trained,
    unchanged,
    wrapped,
)

pytestmark = pytest.mark.filterwarnings("ignore:The mask of .* keeps nothing")


def reshaped(model):
    model.conv = nn.Conv2d(3, 4, 5)
    return model


def without_scale(model):
    del model.scale
    return model


def other_dtype(model):
    model.head.bias = nn.Parameter(
        model.head.bias.detach().view(torch.int32).view(torch.float32)
    )
    model.scale = nn.Parameter(model.scale.detach().double())
    return model


def lazy(model):
    model.conv = nn.LazyConv2d(4, 3)
    return model


def untied_name(model):
    model.last = model.conv
    del model.conv
    return model


UNFIT = [
    (
        trained,
        r"expected fingerprint \w{32} for 'embed.weight', found \w{32} in the file: "
        "its mask was saved over weights of other values. Load the weights that the "
        r"masks were saved over or, if these are meant, load_masks\(model, path, "
        r"any_weights=True\)\.",
    ),
    (
        other_dtype,
        "expected dtype float64 for 'scale', found float32 in the file: saved over "
        "float32, here float64. Load the weights that the masks were saved over or, if",
    ),
    (
        reshaped,
        r"expected shape \[4, 3, 5, 5\] for 'conv.weight', found \[4, 3, 3, 3\] in the "
        "file. Build the model that the masks were saved from",
    ),
    (
        without_scale,
        r"expected the names of its parameters, found 1 in the file only \['scale'\], "
        r"0 masked in the model only \[\]. Build the model that the masks were saved",
    ),
    (untied_name, r"found 2 in the file only \['conv.weight', 'conv.bias'\], 0 masked"),
    (
        lambda model: nn.Linear(2, 2),
        r"7 in the file only \['scale', 'none', 'conv.weight'\], 0 m",
    ),
    (
        lazy,
        r"needs all values of 'conv.weight', found none \(a lazy module, the meta "
        r"device\)",
    ),
    (lambda model: model.to("meta"), "needs all values of 'scale', found none"),
    (
        lambda model: wrapped(model, targets=EVERYTHING[1:]),
        "expected the names of its masked tensors, found 1 in the file only "
        r"\['conv.weight'\], 0 masked in the model only \[\]. Wrap the tensors that "
        r"were masked when the masks were saved, wrap\(model, targets=",
    ),
    (
        lambda model: wrapped(model, rescale=True),
        "expected rescale=True for 'scale', found rescale=False in the file: the layer "
        "would compute something else. Wrap the model with rescale=False.",
    ),
    (lambda model: trained(wrapped(model)), "expected fingerprint "),
]


@pytest.mark.parametrize(("onto", "message"), UNFIT, ids=range(len(UNFIT)))
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_model_that_does_not_fit_is_refused(path, onto, message):
    model = wrapped()
    save_masks(model, path)
    model = onto(plain(model))
    before = snapshot(model)
    with pytest.raises(ValueError, match=message) as raised:
        load_masks(model, path)
    assert str(raised.value).startswith(f"load_masks() can't load {path!r}: ")
    assert unchanged(model, before)
    if "any_weights" not in str(raised.value):  # then this error remains
        with pytest.raises(ValueError, match=message):
            load_masks(model, path, any_weights=True)
        assert unchanged(model, before)


def test_masks_missing_from_the_file_are_refused(path):
    model = wrapped(targets=EVERYTHING[2:])
    save_masks(model, path)
    model = wrapped(plain(model))
    before = snapshot(model)
    message = (
        "expected the names of its masked tensors, found 0 in the file only [], 2 "
        "masked in the model only ['conv.weight', 'conv.bias']. Wrap the tensors that "
        "were masked when the masks were saved, wrap(model, targets=[...]), or load"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        load_masks(model, path)
    assert unchanged(model, before)


@pytest.mark.parametrize(
    "onto", [lambda model: model, masktorch.wrap], ids=["plain", "wrapped"]
)
def test_a_model_one_level_deeper_or_higher_is_refused(path, onto):
    layers = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    save_masks(wrapped(copy.deepcopy(layers), targets=["0.weight", "1.weight"]), path)
    deeper = onto(nn.ModuleDict({"encoder": nn.ModuleDict({"layers": layers})}))
    wraps = onto is masktorch.wrap
    deeper_names = "['encoder.layers.0.weight', 'encoder.layers.1.weight']"
    extra = f"2 masked in the model only {deeper_names}" if wraps else "0 masked"
    message = f"found 2 in the file only ['0.weight', '1.weight'], {extra}"
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        load_masks(deeper, path)
    assert str(raised.value).endswith(
        ". Every name in the file lacks the prefix 'encoder.layers.': load the masks "
        "into model.get_submodule('encoder.layers')."
    )
    load_masks(deeper.get_submodule("encoder.layers"), path)
    save_masks(deeper, path)
    with pytest.raises(
        ValueError, match=r"in the file only \['encoder.layers.0.weight', "
    ):
        load_masks(
            deeper.get_submodule("encoder.layers")
            if wraps
            else masktorch.unwrap(deeper).get_submodule("encoder.layers"),
            path,
        )


@pytest.mark.parametrize("onto", [nn.Linear(6, 4), masktorch.wrap(nn.Linear(6, 4))])
def test_another_shape_with_as_many_entries_is_refused(path, onto):
    save_masks(wrapped(nn.Linear(4, 6), targets=["weight"]), path)
    message = r"expected shape \[4, 6\] for 'weight', found \[6, 4\] in the file"
    with pytest.raises(ValueError, match=message):
        load_masks(onto, path, any_weights=True)


def test_a_mask_that_the_estimator_cannot_express(path):
    class AllOrNone:
        """Keeps all entries or none."""

        def __call__(self, scores):
            return self.mode(scores).to(scores.dtype)

        def mode(self, scores):
            return (scores[0, 0] > 0).expand_as(scores)

    layer = masktorch.wrap(nn.Linear(2, 2))
    masktorch.set_masks(layer, {"weight": torch.eye(2, dtype=torch.bool)})
    save_masks(layer, path)
    model = masktorch.wrap(plain(layer), AllOrNone())
    before = snapshot(model)
    with pytest.raises(
        ValueError, match=r"can't load '.*some masks': .* cannot give 'weight'"
    ):
        load_masks(model, path)
    assert unchanged(model, before)


def test_a_missing_file_or_model_is_refused(path):
    with pytest.raises(FileNotFoundError):
        load_masks(Net(), path)
    save_masks(wrapped(), path)
    with pytest.raises(
        TypeError, match=r"load_masks\(\) expected a torch.nn.Module, found list"
    ):
        load_masks([], path)
