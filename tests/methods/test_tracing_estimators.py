"""Estimators under FakeTensorMode, torch.export and ONNX export."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import masktorch
from masktorch import Blocks, ConcreteNOfM, NOfM, Threshold, TopK

ESTIMATORS = [
    Threshold(),
    TopK(0.5),
    NOfM(2, 4),
    NOfM(3, None),
    ConcreteNOfM(),
    Blocks(TopK(0.5), (1, None)),
    Blocks(Threshold(), (2, 2)),
]
each = pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)


@each
def test_fake_tensors(estimator):
    with FakeTensorMode():
        layer = masktorch.wrap(nn.Linear(16, 4), estimator)
        layer(torch.randn(2, 16)).sum().backward()
        mask = estimator.mode(layer.parametrizations.weight.scores)
        out = layer.eval()(torch.randn(2, 16))
    assert out.shape == (2, 4)
    assert mask.dtype is torch.bool
    assert layer.parametrizations.weight.scores.grad is not None


@each
def test_an_estimator_made_among_fake_tensors_serves_real_ones(estimator):
    with FakeTensorMode():
        twin = copy.deepcopy(estimator)
    scores = estimator.init(torch.randn(4, 16))
    assert torch.equal(twin.mode(scores), estimator.mode(scores))


@each
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("draft", [False, True])
def test_export_in_evaluation(estimator, draft):
    layer = masktorch.wrap(nn.Linear(16, 4), estimator).eval()
    x = torch.randn(2, 16)
    if not draft:
        program = torch.export.export(layer, (x,), strict=False)
    elif hasattr(torch.export, "draft_export"):
        program = torch.export.draft_export(layer, (x,))
    else:
        pytest.skip("torch 2.6 has no draft_export")
    torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "estimator", [TopK(0.5), Blocks(TopK(0.5), (1, None))], ids=repr
)
def test_onnx_export_of_a_count_says_what_to_export_instead(estimator):
    pytest.importorskip("onnxscript")
    layer = masktorch.wrap(nn.Linear(16, 4), estimator).eval()
    with pytest.raises(Exception, match="Failed to export") as raised:
        torch.onnx.export(layer, (torch.randn(2, 16),), dynamo=True, verbose=False)
    causes, error = [], raised.value
    while error is not None:
        causes.append(str(error))
        error = error.__cause__
    assert "masktorch.unwrap(copy.deepcopy(model))" in " ".join(causes)
