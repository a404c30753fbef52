"""Two linear layers under known masks, computed by hand."""

import torch
from torch import nn

import masktorch
from masktorch import Bernoulli, Threshold

YES = torch.tensor([[True, False], [False, True]])


def two_layers(estimator=Threshold(), **options):
    return masktorch.wrap(
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), estimator, **options
    )


def two_fixed_masks():
    return masktorch.set_masks(
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
        {"0.weight": ~YES, "1.weight": ~YES},
    )


MASKS = {"0.weight": YES, "1.weight": ~YES}
ONE_ROW = torch.tensor([[1.0, 2.0]])


def by_hand(model, masks, factor=1.0):
    """What the two layers compute under the masks, in numpy."""
    out = ONE_ROW.numpy()
    for i, layer in enumerate(model):
        weight = (
            layer._parameters["weight"].detach().numpy() * masks[f"{i}.weight"].numpy()
        )
        out = out @ (weight * factor).T + layer.bias.detach().numpy()
    return out


def state(model):
    """All that a visit of `using` must leave as it was."""
    return (
        [
            (name, p.detach().clone(), p.requires_grad)
            for name, p in model.named_parameters()
        ],
        list(model.state_dict()),
        [repr(module) for module in model.modules()],
        {name: mask.clone() for name, mask in masktorch.masks(model).items()},
        torch.get_rng_state(),
    )


def assert_same(before, after):
    for (name, a, trains), (other, b, trained) in zip(before[0], after[0], strict=True):
        assert (name, trains) == (other, trained)
        assert torch.equal(a, b)
    assert before[1:3] == after[1:3]
    assert all(torch.equal(before[3][name], after[3][name]) for name in before[3])
    assert torch.equal(before[4], after[4])


MODELS = {
    "threshold": two_layers,
    "bernoulli": lambda: two_layers(Bernoulli()),
    "frozen": lambda: masktorch.freeze_mask(two_layers()),
    "given": two_fixed_masks,
}
