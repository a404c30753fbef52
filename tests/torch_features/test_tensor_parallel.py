"""`parallelize_module`: it comes before the masks; after them it is refused."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

import masktorch
from masktorch import Threshold, TopK

pytestmark = pytest.mark.filterwarnings("ignore:DTensor random operators")

PLAN = {"0": ColwiseParallel(), "2": RowwiseParallel()}
X = torch.linspace(-1, 1, 8).view(2, 4)


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.LayerNorm(4))


@pytest.mark.parametrize("estimator", [Threshold(), TopK(0.5)], ids=repr)
def test_masks_on_a_parallel_model(mesh, estimator):
    if estimator == TopK(0.5) and torch.__version__.startswith("2.6."):
        pytest.skip("torch 2.6 cannot shard an operation of its gradient")
    plain = masktorch.wrap(network(), estimator, init=torch.abs)
    model = masktorch.wrap(
        parallelize_module(network(), mesh, PLAN), estimator, init=torch.abs
    )
    for one in (plain, model):
        one(X).square().sum().backward()
    for expected, scores in zip(
        masktorch.mask_parameters(plain), masktorch.mask_parameters(model), strict=True
    ):
        assert isinstance(scores, DTensor)
        torch.testing.assert_close(scores.grad.full_tensor(), expected.grad)
    masks = {name: mask.full_tensor() for name, mask in masktorch.masks(model).items()}
    assert masks.keys() == masktorch.masks(plain).keys()
    out = model.eval()(X)
    masktorch.unwrap(model)
    assert torch.equal(model(X), out)
    assert torch.equal(model[0].weight.full_tensor() != 0, masks["0.weight"])


@pytest.mark.parametrize(
    ("masked", "plan", "name"),
    [
        (["0.weight", "2.weight"], PLAN, "weight"),
        (["0.bias", "2.bias"], PLAN, "weight"),
        (["3.bias"], {"3": SequenceParallel()}, "weight"),
    ],
)
@pytest.mark.parametrize("fixed", [False, True])
def test_a_masked_model_is_not_made_parallel(mesh, masked, plan, name, fixed):
    model = masktorch.wrap(network(), targets=masked)
    if fixed:
        masks = masktorch.masks(model)
        model = masktorch.set_masks(masktorch.unwrap(model), masks)
    out = model.eval()(X)
    before = {n: id(p) for n, p in model.named_parameters()}
    message = (
        f"cannot shard '{name}' of a .* with masks. Call parallelize_module before"
    )
    with pytest.raises(ValueError, match=message):
        parallelize_module(model, mesh, plan)
    assert {n: id(p) for n, p in model.named_parameters()} == before
    assert torch.equal(model(X), out)
    parallel = parallelize_module(masktorch.unwrap(model), mesh, plan)(X)
    whole = parallel.full_tensor() if isinstance(parallel, DTensor) else parallel
    torch.testing.assert_close(whole, out)
