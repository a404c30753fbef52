"""accelerate's offloading of masked models."""

import pytest
import torch
from torch import nn

import masktorch

accelerate = pytest.importorskip("accelerate")

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))

MASKS = {
    "learnable": lambda m: masktorch.wrap(m),
    "rescaled": lambda m: masktorch.wrap(m, rescale=True),
    "stochastic": lambda m: masktorch.wrap(m, masktorch.Bernoulli()).eval(),
    "frozen": lambda m: masktorch.freeze_mask(masktorch.wrap(m, masktorch.TopK(0.5))),
    "fixed": lambda m: masktorch.set_masks(
        m,
        {
            "0.weight": torch.eye(8, dtype=torch.bool),
            "2.weight": torch.ones(4, 8, dtype=torch.bool).tril(),
        },
    ),
}
OFFLOADS = {
    "cpu_offload": lambda m, folder: accelerate.cpu_offload(m, "cpu"),
    "with buffers": lambda m, folder: accelerate.cpu_offload(
        m, "cpu", offload_buffers=True
    ),
    "disk_offload": lambda m, folder: accelerate.disk_offload(m, folder, "cpu"),
    "dispatch_model": lambda m, folder: accelerate.dispatch_model(
        m, {"0": "cpu", "1": "cpu", "2": "disk"}, "cpu", offload_dir=folder
    ),
    "dispatch_model to one device": lambda m, folder: accelerate.dispatch_model(
        m, {"0": "cpu", "1": "cpu", "2": "cpu"}, "cpu", force_hooks=True
    ),
}


@pytest.mark.parametrize("offload", OFFLOADS.values(), ids=OFFLOADS)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_an_offloaded_model_computes_what_it_did(mask, offload, tmp_path):
    model = mask(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)))
    expected = model(X)
    offloaded = offload(model, str(tmp_path))
    assert torch.equal(offloaded(X), expected)
    assert torch.equal(offloaded(X), expected)


EYE = {"0.weight": torch.eye(8, dtype=torch.bool)}


@pytest.mark.parametrize(
    "mask", [masktorch.wrap, lambda m: masktorch.set_masks(m, EYE)], ids=["wrap", "set"]
)
def test_masks_of_a_model_that_is_offloaded_are_refused(mask):
    model = nn.Sequential(nn.Linear(8, 8))
    accelerate.cpu_offload(model, "cpu")
    with pytest.raises(ValueError, match=r"'0\.weight'.*Wrap the model first"):
        mask(model)
    assert type(model[0]) is nn.Linear
