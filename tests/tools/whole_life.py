"""Lead a model through everything that masks are for."""

import copy
import pickle

import torch

import masktorch
from tools.models import plain_with, random_masks, same_output, tensors_of


def lead_whole_life(model, call, targets, estimator, pickles=True):
    """Wrap, train, copy, pickle, freeze and unwrap `model`.

    Args:
        model: the plain model; `call(model)` is its output.
        call: see above.
        targets: full tensor names; exactly these are masked.
        estimator: for all of them.
        pickles: whether torch can pickle the plain model.
    """
    kinds = [type(module) for module in model.modules()]
    before = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    random_masks(model, estimator, targets=targets)
    masks = masktorch.masks(model)
    assert sorted(masks) == sorted(targets)
    expected = call(plain_with(before, masks).eval())
    assert same_output(call(model.eval()), expected)
    assert not same_output(call(before.eval()), expected)

    for _ in range(2):  # a second backward must work too
        scores = list(masktorch.mask_parameters(model))
        opt = torch.optim.SGD(scores, lr=1.0)
        opt.zero_grad()
        loss_of(call(model.train())).backward()
        assert all(s.grad is not None and s.grad.isfinite().all() for s in scores)
        assert any(torch.count_nonzero(s.grad) for s in scores)
        assert all(parameters[name].grad is None for name in targets)
        opt.step()
    masktorch.set_masks(model, masks)

    twin = copy.deepcopy(model)
    assert same_output(call(twin.eval()), expected)
    if pickles:
        reloaded = pickle.loads(pickle.dumps(model.train()))
        assert same_output(call(reloaded.eval()), expected)
        assert same_output(call(masktorch.unwrap(reloaded)), expected)
    assert same_output(call(masktorch.unwrap(twin).eval()), expected)
    assert same_output(call(model.eval()), expected)

    masktorch.freeze_weights(masktorch.freeze_mask(model), False)
    for p in parameters.values():
        p.grad = None
    loss_of(call(model.train())).backward()
    for name, mask in masks.items():
        assert torch.count_nonzero(parameters[name].grad[~mask]) == 0
    assert any(torch.count_nonzero(parameters[name].grad) for name in targets)

    assert same_output(call(masktorch.unwrap(model).eval()), expected)
    assert [type(module) for module in model.modules()] == kinds
    assert dict(model.named_parameters()).keys() == parameters.keys()
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
    return model


def loss_of(out):
    return sum(t.float().square().mean() for t in tensors_of(out))
