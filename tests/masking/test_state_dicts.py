"""State dicts of plain and wrapped models, and of their optimisers."""

import io

import torch
from torch import nn

import masktorch
from tools.models import ROWS, plain_with, random_masks


def test_state_dicts_of_plain_and_wrapped_models_load_into_one_another():
    def make():
        return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))

    plain, wrapped = make(), random_masks(make())
    masks = masktorch.masks(wrapped)
    missing, unexpected = wrapped.load_state_dict(plain.state_dict(), strict=False)
    assert missing == [f"{i}.parametrizations.weight.scores" for i in (0, 2)]
    assert not unexpected
    assert torch.equal(wrapped.eval()(ROWS), plain_with(plain, masks)(ROWS))

    again = make()
    missing, unexpected = again.load_state_dict(wrapped.state_dict(), strict=False)
    masks_of = [f"{i}.parametrizations.weight." for i in (0, 2)]
    assert unexpected == [
        name + key for name in masks_of for key in ("scores", "_extra_state")
    ]
    assert not missing
    assert torch.equal(again(ROWS), plain(ROWS))

    other = masktorch.wrap(make()).eval()
    other.load_state_dict(wrapped.state_dict())
    assert torch.equal(other(ROWS), wrapped(ROWS))


def test_training_continues_from_a_saved_optimiser_state():
    def make():
        torch.manual_seed(3)
        model = masktorch.wrap(nn.Linear(4, 4))
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    def step(model, opt):
        opt.zero_grad()
        model(ROWS).square().sum().backward()
        opt.step()

    (model, opt), (other, other_opt) = make(), make()
    for _ in range(3):
        step(model, opt)
    file = io.BytesIO()
    torch.save((model.state_dict(), opt.state_dict()), file)
    file.seek(0)
    state, opt_state = torch.load(file)
    other.load_state_dict(state)
    other_opt.load_state_dict(opt_state)
    for m in (model, other):
        masktorch.freeze_weights(masktorch.freeze_mask(m), False)
    for pair in ((model, opt), (other, other_opt)):
        for _ in range(3):
            step(*pair)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_wrapping_adds_two_entries_per_mask_to_the_state_dict(small):
    keys = set(small.state_dict())
    masktorch.wrap(small)
    added = set(small.state_dict()) - keys
    assert added == {
        "features.0.parametrizations.weight.scores",
        "features.0.parametrizations.weight._extra_state",
        "head.parametrizations.weight.scores",
        "head.parametrizations.weight._extra_state",
    }
    assert keys < set(small.state_dict())
    small.double()
    assert small(torch.randn(1, 3, 6, 6, dtype=torch.float64)).dtype == torch.float64
