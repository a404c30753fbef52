"""Masks of float16, bfloat16 and float64 models, and of models that are converted."""

import math

import pytest
import torch
from torch import nn

import masktorch
from masktorch import (
    Threshold,
)
from tools.estimators import each_elementwise
from tools.models import ROWS, random_masks
from tools.whole_life import lead_whole_life


def on(x):
    return lambda model: model(x)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str
)
@each_elementwise
def test_models_of_every_precision(dtype, estimator):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)).to(dtype)
    lead_whole_life(model, on(ROWS.to(dtype)), ["0.weight", "2.weight"], estimator)


@pytest.mark.parametrize(
    "convert", [nn.Module.half, nn.Module.bfloat16, nn.Module.double]
)
def test_converting_a_wrapped_model(convert):
    model = random_masks(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)), rescale=True
    )
    masks = masktorch.masks(model)
    convert(model).eval()
    dtype = model[0].bias.dtype
    assert model[0].weight.dtype == dtype
    scores_dtype = torch.promote_types(dtype, torch.float32)
    assert {s.dtype for s in masktorch.mask_parameters(model)} == {scores_dtype}
    assert all(
        torch.equal(m, masks[name]) for name, m in masktorch.masks(model).items()
    )
    out = model(ROWS.to(dtype))
    assert torch.equal(masktorch.unwrap(model)(ROWS.to(dtype)), out)


@pytest.mark.parametrize("tau", [0.2, 0.6, 0.7, 0.9])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str
)
def test_training_and_evaluation_agree_next_to_the_threshold(dtype, tau):
    at = torch.tensor(math.log(tau / (1 - tau)), dtype=dtype)
    near = torch.stack([at * (1 + k * torch.finfo(dtype).eps) for k in range(-4, 5)])
    estimator = Threshold(tau)
    assert torch.equal(estimator(near).bool(), estimator.mode(near))
