"""Fusing a masked convolution with batch norm."""

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import masktorch


@pytest.mark.parametrize("rescale", [False, True])
def test_fusing_with_batch_norm(rescale):
    conv = masktorch.wrap(nn.Conv2d(2, 3, 3), rescale=rescale)
    masktorch.set_masks(conv, {"weight": torch.rand(3, 2, 3, 3) < 0.5}).eval()
    norm = nn.BatchNorm2d(3).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    images = torch.randn(2, 2, 5, 5)
    expected = norm(conv(images))
    if rescale:  # what is fused would be rescaled once more
        masktorch.unwrap(conv)
    fused = fuse_conv_bn_eval(conv, norm)
    torch.testing.assert_close(fused(images), expected)
