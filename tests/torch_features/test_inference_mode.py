"""Models wrapped, or given masks, in inference mode."""

import pytest
import torch

import masktorch
from tools.estimators import each_elementwise
from tools.models import SMALL_NAMES, adamw, train


@each_elementwise
@pytest.mark.parametrize("init", [None, torch.clone])
def test_a_model_wrapped_in_inference_mode_learns(small, batch, estimator, init):
    with torch.inference_mode():
        masktorch.wrap(small, estimator, init=init)
        small.eval()(batch[0])
    before = [s.detach().clone() for s in masktorch.mask_parameters(small)]
    train(small, batch, adamw(small))
    for now, then in zip(masktorch.mask_parameters(small), before, strict=True):
        assert not torch.equal(now, then)


def test_masks_given_in_inference_mode_can_be_changed_outside(small, batch):
    with torch.inference_mode():
        keep = {name: torch.rand(p.shape) < 0.5 for name, p in small.named_parameters()
                if name in SMALL_NAMES}  # fmt: skip
        masktorch.set_masks(small, keep)
    masktorch.set_masks(small, {name: ~mask for name, mask in keep.items()})
    small.load_state_dict(small.state_dict())
    train(small, batch, adamw(small))
    assert torch.equal(masktorch.masks(small)["head.weight"], ~keep["head.weight"])
