"""What is saved comes back, onto plain and wrapped models, in any order."""

import copy
import os
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import masktorch
from masktorch import (
    Bernoulli,
    load_masks,
    save_masks,
)
from tools.estimators import each_elementwise
from tools.maskfile_mutants import (
    Net,
    plain,
    same,
    trained,
    wrapped,
)

pytestmark = pytest.mark.filterwarnings("ignore:The mask of .* keeps nothing")


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16]
)
@each_elementwise
@pytest.mark.parametrize("frozen", [False, True])
def test_saved_masks_load_onto_plain_and_wrapped_models(path, estimator, dtype, frozen):
    model = wrapped(Net().to(dtype), estimator, kept=0.3)
    masktorch.freeze_mask(model, frozen)
    masks = masktorch.masks(model)
    save_masks(model, path)
    assert os.listdir(os.path.dirname(path)) == [
        "some masks"
    ]  # nothing is appended to the path

    loaded = plain(model)
    trains = [(n, p.requires_grad) for n, p in loaded.named_parameters()]
    assert load_masks(loaded, path) is loaded
    assert same(masktorch.masks(loaded), masks)
    assert [(n, p.requires_grad) for n, p in loaded.named_parameters()] == trains
    with pytest.raises(ValueError, match="only fixed ones, which have no scores"):
        masktorch.mask_parameters(loaded)
    assert torch.equal(loaded.conv.weight, model.eval().conv.weight)
    assert (
        loaded.head.weight.data_ptr() != loaded.embed.weight.data_ptr()
    )  # computed, from
    assert torch.equal(
        loaded.head.weight, loaded.embed.weight
    )  # one tensor under one mask

    other = wrapped(plain(model), estimator, kept=0.9)
    masktorch.freeze_mask(other, frozen)
    assert not same(masktorch.masks(other), masks)
    assert load_masks(other, path) is other
    assert same(masktorch.masks(other), masks)
    assert all(s.requires_grad != frozen for s in masktorch.mask_parameters(other))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("assign", [True, False])
def test_scores_are_not_loaded_as_a_mask_nor_a_mask_as_scores(path, strict, assign):
    """Cast to bool, every score but zero would be kept."""
    learning = wrapped(Net(), kept=0.3)
    save_masks(learning, path)
    given = load_masks(plain(learning), path)
    for onto, state, words in (
        (given, learning.state_dict(), "expected a mask, found scores (torch.float32)"),
        (learning, given.state_dict(), "expected scores, found a mask (torch.bool)"),
    ):
        masks = masktorch.masks(onto)
        with pytest.raises(RuntimeError, match=re.escape(words)):
            onto.load_state_dict(state, strict=strict, assign=assign)
        assert same(masktorch.masks(onto), masks)
        rest = {
            name: tensor
            for name, tensor in state.items()
            if not name.endswith("scores")
        }
        onto.load_state_dict(rest, strict=False)
    fresh = load_masks(Net(), path, any_weights=True)
    fresh.load_state_dict(given.state_dict())  # of one kind
    assert same(fresh.state_dict(), given.state_dict())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.* is deprecated")
@pytest.mark.parametrize("inside", [False, True])
def test_a_compiled_model_saves_and_loads_under_plain_names(path, inside):
    def compiled(model):
        if inside:
            model.conv = torch.compile(model.conv)
            return model
        return torch.compile(model)

    model = wrapped(Net(), kept=0.3)
    masks, handle = masktorch.masks(model), compiled(model)
    assert same(masktorch.masks(handle), masks)
    save_masks(handle, path)
    loaded = load_masks(Net(), path, any_weights=True)
    assert same(masktorch.masks(loaded), masks)
    for again in (
        compiled(Net()),
        masktorch.wrap(compiled(Net()), targets=list(masks)),
    ):
        assert same(masktorch.masks(load_masks(again, path, any_weights=True)), masks)


def test_saving_and_loading_in_any_order(tmp_path):
    first, second, third = (str(tmp_path / f"{i}.npz") for i in range(3))
    model = wrapped()
    masks = masktorch.masks(model)
    save_masks(model, first)  # learning
    masktorch.freeze_mask(model)
    save_masks(model, second)  # frozen
    assert (
        Path(first).read_bytes() == Path(second).read_bytes()
    )  # nothing but what they say
    given_masks = load_masks(plain(model), second)
    save_masks(given_masks, third)  # given
    assert same(masktorch.masks(load_masks(plain(model), third)), masks)

    others = wrapped(plain(model), Bernoulli())  # another estimator: a mask is a mask
    save_masks(others, first)
    load_masks(given_masks, first)  # given masks are switched by loading
    assert same(masktorch.masks(given_masks), masktorch.masks(others))
    load_masks(given_masks, second)
    assert same(masktorch.masks(given_masks), masks)
    assert same(masktorch.masks(load_masks(others, third)), masks)


def test_learning_continues_from_a_loaded_mask(path, small, batch):
    start = copy.deepcopy(small)
    save_masks(wrapped(small, targets=["head.weight"]), path)
    model = masktorch.wrap(start, targets=["head.weight"])
    (scores,) = masktorch.mask_parameters(load_masks(model, path))
    optimiser = torch.optim.Adam([scores], lr=5.0)
    model(batch[0]).sum().backward()
    optimiser.step()
    assert not same(masktorch.masks(model), masktorch.masks(small))


def test_a_file_restores_rescale_and_the_subset_of_masked_tensors(path):
    model = wrapped(targets=["conv.weight", "head.bias"], rescale=True)
    save_masks(model, path)
    loaded = load_masks(plain(model), path)
    assert list(masktorch.masks(loaded)) == ["conv.weight", "head.bias"]
    assert loaded.conv.parametrizations.weight.rescale
    assert torch.equal(loaded.conv.weight, model.eval().conv.weight)


def test_the_memory_format_does_not_matter(path):
    model = wrapped()
    save_masks(model, path)
    masks = masktorch.masks(model)
    last = plain(model).to(memory_format=torch.channels_last)
    last.head.bias = nn.Parameter(torch.stack([last.head.bias.detach()] * 2, 1)[:, 0])
    last.embed.weight = nn.Parameter(last.embed.weight.detach().t().contiguous().t())
    last.head.weight = last.embed.weight
    assert not any(
        t.is_contiguous() for t in (last.conv.weight, last.head.bias, last.embed.weight)
    )
    assert same(masktorch.masks(load_masks(copy.deepcopy(last), path)), masks)
    relaid = wrapped(last)
    load_masks(relaid, path)
    assert same(masktorch.masks(relaid), masks)
    before = Path(path).read_bytes()
    save_masks(relaid, path)
    assert Path(path).read_bytes() == before


def test_any_weights_accepts_other_weights(path):
    model = wrapped()
    save_masks(model, path)
    masks = masktorch.masks(model)
    other = load_masks(trained(plain(model)), path, any_weights=True)
    assert same(masktorch.masks(other), masks)
    other = load_masks(wrapped(trained(plain(model)).double()), path, any_weights=True)
    assert same(masktorch.masks(other), masks)

    weights_trained = trained(masktorch.freeze_mask(model))
    with pytest.raises(
        ValueError, match=r"expected fingerprint .* for 'embed.weight', found"
    ):
        load_masks(weights_trained, path)
    save_masks(weights_trained, path)
    load_masks(weights_trained, path)
