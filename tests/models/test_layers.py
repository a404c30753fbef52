"""Each kind of layer computes with its masked tensors."""

import pytest
import torch
from torch import nn

import masktorch


class MyConv(nn.Conv2d):
    pass


LAYERS = [
    (nn.Conv1d(2, 4, 3), (1, 2, 9)),
    (nn.Conv2d(2, 4, 3, groups=2), (1, 2, 9, 9)),
    (nn.Conv3d(2, 4, 3, padding=1, padding_mode="circular"), (1, 2, 5, 5, 5)),
    (nn.ConvTranspose1d(2, 4, 3), (1, 2, 9)),
    (nn.ConvTranspose2d(2, 4, 3, stride=2), (1, 2, 9, 9)),
    (nn.ConvTranspose3d(2, 4, 3), (1, 2, 5, 5, 5)),
    (nn.Linear(6, 4), (3, 6)),
    (MyConv(2, 4, 1), (1, 2, 5, 5)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda value: str(value))
@pytest.mark.parametrize("bias", [False, True])
def test_a_wrapped_layer_computes_with_the_masked_tensors(layer, shape, bias):
    original, x = type(layer), torch.randn(shape)
    state = {name: p.detach().clone() for name, p in layer.named_parameters()}
    masktorch.wrap(layer, bias=bias)
    masks = {
        name: torch.rand(p.shape) < 0.5
        for name, p in state.items()
        if name != "bias" or bias
    }
    masktorch.set_masks(layer, masks)
    assert isinstance(layer, original)
    masked = {
        name: p * masks[name] if name in masks else p for name, p in state.items()
    }
    outputs = [layer(x), masktorch.freeze_mask(layer)(x), masktorch.unwrap(layer)(x)]
    assert type(layer) is original
    layer.load_state_dict(masked)
    for out in outputs:
        assert torch.equal(out, layer(x))
