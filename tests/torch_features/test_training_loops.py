"""Autocast, accumulated and clipped gradients, averaged models, optimisers."""

import pytest
import torch
from torch import nn

import masktorch
from masktorch import (
    Bernoulli,
)
from tools.estimators import each_elementwise
from tools.models import (
    SIX_ROWS,
    Block,
    assert_equal,
    assert_learns,
    gradients,
    random_masks,
)


@each_elementwise
def test_autocast(estimator):
    model = random_masks(Block(), estimator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.up(SIX_ROWS).dtype == torch.bfloat16
        model(SIX_ROWS).square().mean().backward()
    for s in masktorch.mask_parameters(model):
        assert s.grad.dtype == torch.float32
        assert torch.count_nonzero(s.grad)
    model.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        out = model(SIX_ROWS)
        assert torch.equal(masktorch.unwrap(model)(SIX_ROWS), out)


@each_elementwise
def test_gradients_accumulate(estimator):
    model = random_masks(Block(), estimator)
    parts = []
    for x in SIX_ROWS.split(2):
        model.zero_grad()
        torch.manual_seed(5)
        model(x).square().sum().backward()
        parts.append(gradients(model))
    model.zero_grad()
    for x in SIX_ROWS.split(2):
        torch.manual_seed(5)
        model(x).square().sum().backward()
    for name, grad in gradients(model).items():
        assert_equal(grad, sum(part[name] for part in parts), rtol=1e-5, atol=1e-6)


def test_gradients_are_clipped():
    model = random_masks(Block())
    (100 * model(SIX_ROWS).square().sum()).backward()
    norm = torch.nn.utils.clip_grad_norm_(masktorch.mask_parameters(model), 1.0)
    assert norm > 1
    clipped = torch.nn.utils.get_total_norm(
        [s.grad for s in masktorch.mask_parameters(model)]
    )
    assert_equal(clipped, torch.tensor(1.0), rtol=1e-4, atol=1e-4)


def test_an_average_of_scores():
    model = masktorch.wrap(Block())
    average = torch.optim.swa_utils.AveragedModel(model)
    seen = []
    for _ in range(4):
        with torch.no_grad():
            for s in masktorch.mask_parameters(model):
                s.normal_()
        seen.append([s.detach().clone() for s in masktorch.mask_parameters(model)])
        average.update_parameters(model)
    for i, s in enumerate(masktorch.mask_parameters(average.module)):
        assert_equal(s, sum(scores[i] for scores in seen) / 4, rtol=1e-5, atol=1e-6)
    assert next(iter(masktorch.masks(average))) == "module.up.weight"
    out = average.eval()(SIX_ROWS)
    assert torch.equal(masktorch.unwrap(average.module)(SIX_ROWS), out)
    assert_learns(model)


def test_given_masks_are_not_averaged_but_copied():
    def given(keep):
        return masktorch.set_masks(nn.Linear(2, 1), {"weight": torch.tensor([keep])})

    for buffers in (True, False):
        average = torch.optim.swa_utils.AveragedModel(
            given([True, False]), use_buffers=buffers
        )
        average.update_parameters(given([True, False]))
        if buffers:
            with pytest.raises(RuntimeError, match="bool"):
                average.update_parameters(given([False, True]))
        else:
            average.update_parameters(given([False, True]))
            assert masktorch.masks(average)["module.weight"].tolist() == [[False, True]]


def test_exponential_average_of_scores_under_a_stochastic_mask():
    model = masktorch.wrap(Block(), Bernoulli(), init=0.0)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    )
    average.update_parameters(model)  # the first one copies
    with torch.no_grad():
        for s in masktorch.mask_parameters(model):
            s.fill_(2.0)
    average.update_parameters(model)
    for s in masktorch.mask_parameters(average):
        assert_equal(s, torch.ones_like(s))


@pytest.mark.parametrize("foreach", [False, True])
def test_optimisers_reach_scores(foreach):
    for make in (
        torch.optim.SGD,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.RMSprop,
    ):
        model = masktorch.wrap(Block())
        opt = make(masktorch.mask_parameters(model), lr=0.1, foreach=foreach)
        model(SIX_ROWS).sum().backward()
        opt.step()
        for s in masktorch.mask_parameters(model):
            assert (s != 1).any()
