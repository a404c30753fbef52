"""A mask file takes about the entropy of its masks."""

import copy
import math
import os

import pytest
import torch
from torch import nn

import masktorch
from masktorch import (
    load_masks,
    save_masks,
)
from tools.maskfile_mutants import (
    plain,
    same,
    wrapped,
)

pytestmark = pytest.mark.filterwarnings("ignore:The mask of .* keeps nothing")


# The 29 convolutions and linear layers of the WRN-28-8 of the blog post: their entries.
GROUPS = [(16, 128), (128, 256), (256, 512)]
WRN = [448, 5130]
for before, after in GROUPS:
    WRN += [
        before * after * 9 + after,
        *[after * after * 9 + after] * 7,
        before * after + after,
    ]


def entropy(masks):
    """Bytes: the sum over tensors of n * H(masked fraction) / 8."""
    total = 0.0
    for mask in masks.values():
        n, kept = mask.numel(), int(mask.sum())
        for k in (kept, n - kept):
            total -= k * math.log2(k / n) / 8 if k else 0
    return total


@pytest.mark.parametrize(
    "sizes", [[sum(WRN) // 8], [n // 8 for n in WRN]], ids=["one", "wrn"]
)
def test_size_is_about_the_entropy(path, sizes):
    model = nn.ParameterDict(
        {f"block{i}/conv": torch.randn(n) for i, n in enumerate(sizes)}
    )
    masktorch.wrap(model, targets=list(model))
    for masked in [0, 0.0003, 0.001, 0.02, 0.1, 0.16, 0.5, 0.84, 0.98, 1]:
        masks = {
            n: torch.rand(p.shape) >= masked for n, p in masktorch.masks(model).items()
        }
        save_masks(masktorch.set_masks(model, masks), path)
        assert os.path.getsize(path) <= 1.05 * entropy(masks) + 4096, masked


def test_the_masks_of_a_wide_residual_network(path):
    """23 million entries in 29 tensors."""
    assert (len(WRN), sum(WRN)) == (29, 23_348_554)
    model = nn.ParameterDict(
        {f"group/block/{i}": torch.randn(n) for i, n in enumerate(WRN)}
    )
    load_onto = copy.deepcopy(model)
    masktorch.wrap(model, targets=list(load_onto))
    masks = {n: torch.rand(p.shape) >= 0.16 for n, p in masktorch.masks(model).items()}
    save_masks(masktorch.set_masks(model, masks), path)
    assert os.path.getsize(path) <= 1.05 * entropy(masks) + 4096
    assert same(masktorch.masks(load_masks(load_onto, path)), masks)


def test_a_model_of_empty_tensors_only(path):
    model = wrapped(nn.ParameterDict({"a": torch.empty(0), "b": torch.empty(2, 0)}),
                    targets=["a", "b"])  # fmt: skip
    save_masks(model, path)
    assert os.path.getsize(path) <= 4096
    assert same(masktorch.masks(load_masks(plain(model), path)), masktorch.masks(model))
