"""Scores are float32 over 16-bit weights, and nothing narrows them."""

import io

import pytest
import torch
from torch import nn

import masktorch
from masktorch import (
    Bernoulli,
    Concrete,
    HardConcrete,
    IntermediateSampling,
    NOfM,
    Piggyback,
    Threshold,
    TopK,
)

HALF = [torch.bfloat16, torch.float16]
ESTIMATORS = [
    Threshold(), Bernoulli(), IntermediateSampling(), Piggyback(), HardConcrete(),
    Concrete(), Concrete(hard=False), TopK(0.5), NOfM(2, 4),
]  # fmt: skip


def scores(layer):
    return layer.parametrizations.weight.scores


def layer_of(dtype, estimator=None, **options):
    return masktorch.wrap(
        nn.Linear(8, 4).to(dtype), estimator or Threshold(), **options
    )


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
@pytest.mark.parametrize("rescale", [False, True])
def test_products_have_the_weights_dtype_and_gradients_the_scores(
    estimator, dtype, rescale
):
    layer = layer_of(dtype, estimator, rescale=rescale)
    masktorch.freeze_weights(layer, False)
    assert scores(layer).dtype is torch.float32
    for mode in (layer.train(), layer.eval()):
        assert mode.weight.dtype is dtype
    out = layer.train()(torch.randn(3, 8, dtype=dtype))
    out.float().square().sum().backward()
    assert scores(layer).grad.dtype is torch.float32
    assert scores(layer).grad.abs().sum() > 0
    assert layer.parametrizations.weight.original.grad.dtype is dtype
    assert masktorch.masks(layer)["weight"].shape == (4, 8)


@pytest.mark.parametrize("given", [torch.float16, torch.float32, torch.float64])
def test_scores_are_no_narrower_whatever_init_returns(given):
    layer = layer_of(torch.bfloat16, init=lambda w: torch.ones_like(w, dtype=given))
    assert scores(layer).dtype is torch.float32
    wide = layer_of(torch.float64, init=lambda w: torch.ones_like(w, dtype=given))
    assert scores(wide).dtype is torch.float64


CASTS = {
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "to(dtype)": lambda m: m.to(torch.float16),
    "to(device, dtype)": lambda m: m.to("cpu", torch.bfloat16),
    "type": lambda m: m.type(torch.float16),
    "there and back": lambda m: m.half().float(),
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_casting_a_model_leaves_its_scores_and_masks(estimator, cast):
    layer = masktorch.wrap(nn.Linear(64, 64), estimator)
    at = 0.0 if isinstance(estimator, TopK | NOfM) else estimator.at
    with torch.no_grad():
        scores(layer).normal_().add_(at)
    before = scores(layer).clone()
    masks = masktorch.masks(masktorch.freeze_mask(layer))["weight"]
    cast(layer)
    assert torch.equal(scores(layer), before)
    assert torch.equal(masktorch.masks(layer)["weight"], masks)


def test_casting_can_widen():
    layer = layer_of(torch.float32).double()
    assert scores(layer).dtype is torch.float64
    assert scores(layer.float()).dtype is torch.float64
    assert layer.weight.dtype is torch.float32


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("saved", [torch.bfloat16, torch.float16])
def test_half_precision_scores_of_an_old_checkpoint_load(saved, assign):
    state = layer_of(torch.float32, init=torch.randn_like).state_dict()
    state["parametrizations.weight.scores"] = state[
        "parametrizations.weight.scores"
    ].to(saved)
    layer = layer_of(torch.bfloat16)
    layer.load_state_dict(state, assign=assign)
    assert scores(layer).dtype is torch.float32
    expected = state["parametrizations.weight.scores"].float()
    assert torch.equal(scores(layer), expected)


def test_a_frozen_mask_of_a_float32_checkpoint_is_that_of_the_half_precision_model():
    torch.manual_seed(0)
    trained = masktorch.wrap(nn.Linear(256, 256), TopK(0.1))
    file = io.BytesIO()
    torch.save(trained.state_dict(), file)
    file.seek(0)
    layer = masktorch.wrap(nn.Linear(256, 256).half(), TopK(0.1))
    layer.load_state_dict(torch.load(file))
    assert torch.equal(*(masktorch.masks(m)["weight"] for m in (trained, layer)))


def train(estimator, dtype, steps, rate):
    """Find the mask that another layer with the same weights has, from its outputs."""
    torch.manual_seed(1)
    layer = nn.Linear(64, 32, bias=False)
    planted = NOfM(2, 4).mode(torch.randn(32, 64))
    x = torch.randn(256, 64)
    y = x @ (layer.weight.detach() * planted).T
    masktorch.wrap(layer.to(dtype), estimator)
    start = scores(layer).detach().clone()
    optimizer = torch.optim.Adam(masktorch.mask_parameters(layer), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        (layer(x.to(dtype)).float() - y).square().mean().backward()
        optimizer.step()
    return masktorch.masks(layer)["weight"], (scores(layer) != start).float().mean()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "least"),
    [(Threshold(), 0.93), (TopK(0.5), 0.93), (Piggyback(), 0.93), (NOfM(2, 4), 0.80)],
)
def test_masks_learned_in_bfloat16_agree_with_those_of_float32(estimator, least):
    rate = 1e-4 if isinstance(estimator, Piggyback) else 1e-3
    expected, _ = train(estimator, torch.float32, 1000, rate)
    masks, moved = train(estimator, torch.bfloat16, 1000, rate)
    assert moved > 0.99
    assert 0.01 < expected.float().mean() < 0.99  # something was learned
    assert (masks == expected).float().mean() >= least


@pytest.mark.parametrize(
    "estimator", [Bernoulli(), IntermediateSampling(), HardConcrete(), Concrete()]
)
def test_stochastic_scores_learn_in_bfloat16(estimator):
    _, moved = train(estimator, torch.bfloat16, 30, 1e-3)
    assert moved > 0.9


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
@pytest.mark.parametrize("rescale", [False, True])
def test_a_forward_in_training_mode_under_inference_mode(estimator, rescale):
    class TwoMethods:
        """The documented protocol and nothing else."""

        def __call__(self, scores):
            return torch.sigmoid(scores)

        def mode(self, scores):
            return scores > 0

    for chosen in (estimator, TwoMethods()):
        layer = masktorch.wrap(nn.Linear(8, 4), chosen, rescale=rescale).train()
        with torch.inference_mode():
            out = layer(torch.ones(2, 8))
            assert out.shape == (2, 4)
            layer.weight = layer.weight  # what was read stands for the parameter
        assert layer(torch.ones(2, 8)).requires_grad


def test_a_frozen_mask_of_an_own_estimator_is_the_same_under_autocast():
    class LowRank:
        def init(self, weight):
            return torch.randn(2 * len(weight), 2)

        def __call__(self, scores):
            rows, columns = scores.chunk(2)
            return torch.sigmoid(rows @ columns.T)

        def mode(self, scores):
            rows, columns = scores.chunk(2)
            return rows @ columns.T > 0.01

    torch.manual_seed(0)
    layer = masktorch.wrap(nn.Linear(256, 256, bias=False), LowRank())
    masks = masktorch.masks(masktorch.freeze_mask(layer))["weight"]
    with torch.autocast("cpu", torch.bfloat16):
        used = layer.weight != 0
        assert torch.equal(masktorch.masks(layer)["weight"], masks)
    assert torch.equal(used, masks)


def test_wider_scores_of_a_checkpoint_are_not_rounded():
    """Float32 would make these scores equal, and the mask that of a tie."""
    saved = masktorch.wrap(
        nn.Linear(100, 100).double(),
        masktorch.TopK(0.5),
        init=lambda weight: 1 + 1e-9 * torch.randn_like(weight),
    )
    model = masktorch.wrap(nn.Linear(100, 100), masktorch.TopK(0.5))
    parameter = model.parametrizations.weight.scores
    model.load_state_dict(saved.state_dict())
    assert parameter is model.parametrizations.weight.scores
    assert parameter.dtype is torch.float64
    assert torch.equal(
        masktorch.masks(model)["weight"], masktorch.masks(saved)["weight"]
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_fixed_mask_stays_a_mask_when_the_model_is_cast(dtype):
    mask = torch.tensor([[True, False]])
    layer = masktorch.set_masks(nn.Linear(2, 1), {"weight": mask})
    layer.type(dtype)
    assert layer.weight.dtype is dtype
    assert torch.equal(masktorch.masks(layer)["weight"], mask)
    assert torch.equal(layer.weight != 0, mask)


def test_wider_scores_of_another_shape_change_nothing():
    layer = masktorch.wrap(nn.Linear(2, 1))
    state = layer.state_dict()
    state["parametrizations.weight.scores"] = torch.ones(3, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="size mismatch"):
        layer.load_state_dict(state)
    assert layer.parametrizations.weight.scores.dtype is torch.float32
