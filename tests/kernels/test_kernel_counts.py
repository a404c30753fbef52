"""How many kernels a mask launches on an accelerator, counted on the meta device.

On an accelerator each operation is a launch, which is what a small layer costs. A
textbook straight-through Bernoulli mask has 7.
"""

import collections

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import masktorch
from masktorch import (
    Bernoulli,
    Concrete,
    HardConcrete,
    IntermediateSampling,
    Piggyback,
    Threshold,
    TopK,
)

NO_KERNEL = {"detach", "view", "alias", "expand", "flatten", "reshape", "t"}


class Kernels(TorchDispatchMode):
    """Counts the operations that compute something, by name."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        name = operation.overloadpacket.__name__
        if name not in NO_KERNEL:
            self.counts[name] += 1
        return operation(*arguments, **(options or {}))


def kernels_of(estimator, frozen):
    """Those of reading a masked weight once, and of the backward from it."""
    layer = masktorch.wrap(nn.Linear(64, 64, bias=False), estimator)
    if frozen:
        masktorch.freeze_weights(masktorch.freeze_mask(layer), False)
    layer.to("meta")
    weight = layer._parameters["weight"]
    mask = layer.parametrizations.weight
    grad = torch.empty(64, 64, device="meta")
    with Kernels() as kernels:
        masked = mask(weight, True)
        torch.autograd.grad(masked, weight if frozen else mask.scores, grad)
    return kernels.counts


MOST = [
    (Threshold(), False, 4),
    (Threshold(tau=0.3), False, 4),
    (Piggyback(), False, 2),
    (Bernoulli(), False, 7),
    (IntermediateSampling(), False, 16),
    (HardConcrete(), False, 14),
    (Concrete(), False, 14),
    (Concrete(hard=False), False, 14),
    (TopK(0.5), False, 15),
    (TopK(0.5, absolute=False), False, 15),
    (Threshold(), True, 2),
    (Bernoulli(), True, 2),
    (TopK(0.5), True, 12),
]


@pytest.mark.parametrize(("estimator", "frozen", "most"), MOST, ids=str)
def test_a_mask_launches_few_kernels(estimator, frozen, most):
    counts = kernels_of(estimator, frozen)
    assert counts.total() <= most, counts
    assert not any("sort" in name or "nonzero" in name for name in counts), counts
    waits = {"_local_scalar_dense", "item", "equal"}
    assert not waits & counts.keys()
