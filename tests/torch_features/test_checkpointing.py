"""Activation checkpointing recomputes with the mask of the forward."""

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import masktorch
from masktorch import (
    Bernoulli,
    Threshold,
)
from tools.estimators import each_elementwise
from tools.models import (
    SIX_ROWS,
    Checkpointed,
    assert_equal,
    random_masks,
    seeded_step,
    what_is_held,
)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    ("estimator", "frozen"),
    [(Threshold(), False), (Threshold(), True), (Bernoulli(), True)],
)
def test_checkpointing_inside_a_forward_of_a_deterministic_mask(
    estimator, frozen, reentrant
):
    def gradients(checkpointed):
        class Two(nn.Linear):
            def segment(self, x):
                return F.linear(x, self.weight).tanh()

            def forward(self, x):
                for _ in range(2):
                    call = functools.partial(
                        checkpoint, self.segment, use_reentrant=reentrant
                    )
                    x = call(x) if checkpointed else self.segment(x)
                return x

        torch.manual_seed(0)
        layer = masktorch.wrap(Two(4, 4, bias=False), estimator, init=torch.clone)
        masktorch.freeze_weights(masktorch.freeze_mask(layer, frozen), False)
        layer(torch.randn(3, 4, requires_grad=True)).sum().backward()
        return [p.grad for p in layer.parameters()]

    for found, expected in zip(gradients(True), gradients(False), strict=True):
        assert found is expected is None or torch.equal(found, expected)


@pytest.mark.parametrize("reentrant", [True, False])
@each_elementwise
def test_checkpointing_recomputes_with_the_same_mask(estimator, reentrant):
    model = random_masks(Checkpointed(None), estimator)
    x = SIX_ROWS.clone().requires_grad_()
    expected = seeded_step(model, x)
    model.reentrant = reentrant
    assert_equal(seeded_step(model, x), expected)
    assert not what_is_held(model)
    assert parametrize._cache == {}
    masktorch.freeze_weights(masktorch.freeze_mask(model), False)
    model.reentrant = None
    expected = seeded_step(model, x)
    model.reentrant = reentrant
    assert_equal(seeded_step(model, x), expected)


@pytest.mark.xfail(
    strict=True, reason="a held weight is drawn again in the recomputation"
)
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_weight_read_before_and_inside_a_checkpoint(reentrant):
    class Partly(nn.Linear):
        reentrant = None

        def forward(self, x):
            x = F.linear(x, self.weight)
            if self.reentrant is None:
                return self.again(x)
            return checkpoint(self.again, x, use_reentrant=self.reentrant)

        def again(self, x):
            return F.linear(x, self.weight).relu()

    layer = masktorch.wrap(Partly(4, 4), Bernoulli())
    expected = seeded_step(layer)
    layer.reentrant = reentrant
    assert_equal(seeded_step(layer), expected)
