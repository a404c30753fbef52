"""One optimiser for both phases: its state never changes a frozen mask."""

import inspect

import pytest
import torch
from torch import nn

import masktorch

OPTIMIZERS = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind)
    and issubclass(kind, torch.optim.Optimizer)
    and kind is not torch.optim.Optimizer
)
OPTIONS = {
    "SGD": {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
    "Adafactor": {"lr": 0.1},
    "SparseAdam": None,  # takes sparse gradients only, which do not pass a mask
    "LBFGS": None,  # below
}


def closure_of(model, x, y, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    return closure


def frozen_after_learning(make_optimizer):
    """Learn a mask, freeze it, train the weights with the same optimiser.

    Returns the scores when they were frozen, and those at the end.
    """
    torch.manual_seed(0)
    model = masktorch.wrap(nn.Linear(8, 4, bias=False), masktorch.TopK(0.5))
    x, y = torch.randn(16, 8), torch.randn(16, 4)
    optimizer = make_optimizer(model)
    closure = closure_of(model, x, y, optimizer)
    for _ in range(3):
        optimizer.step(closure)
    masktorch.freeze_weights(masktorch.freeze_mask(model), False)
    (frozen,) = (s.detach().clone() for s in masktorch.mask_parameters(model))
    weights = model.parametrizations.weight.original.detach().clone()
    for _ in range(3):
        optimizer.step(closure)
    assert not torch.equal(model.parametrizations.weight.original, weights)
    (scores,) = masktorch.mask_parameters(model)
    return frozen, scores.detach()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimizer_moves_frozen_scores(name):
    options = OPTIONS.get(name, {"lr": 0.1})
    if options is None:
        pytest.skip("see OPTIONS")
    kind = getattr(torch.optim, name)

    def make(model):
        parameters = list(model.parameters())
        if name == "Muon":  # for matrices, of which there are only some
            parameters = [p for p in parameters if p.dim() == 2]
        return kind(parameters, **options)

    frozen, scores = frozen_after_learning(make)
    assert torch.equal(scores, frozen)


def test_lbfgs_moves_any_frozen_parameter_and_a_new_one_does_not():
    """A limitation of LBFGS: its history covers all parameters, frozen or not."""
    frozen, scores = frozen_after_learning(
        lambda model: torch.optim.LBFGS(model.parameters(), 0.1, max_iter=5)
    )
    assert not torch.equal(scores, frozen)

    plain = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    x, y = torch.randn(16, 8), torch.randn(16, 4)
    optimizer = torch.optim.LBFGS(plain.parameters(), 0.1, max_iter=5)
    closure = closure_of(plain, x, y, optimizer)
    optimizer.step(closure)
    plain[0].weight.requires_grad_(False).grad = None
    before = plain[0].weight.clone()
    optimizer.step(closure)
    assert not torch.equal(plain[0].weight, before)
