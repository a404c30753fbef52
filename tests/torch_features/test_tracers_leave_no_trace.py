"""Tracing a wrapped model leaves it as it was, also when the tracer refuses it."""

import contextlib
import copy
import io
import json

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.pipelining import SplitPoint, pipeline
from torch.fx.experimental.proxy_tensor import make_fx

import masktorch
from tools.estimators import each_estimator

X = torch.randn(2, 8)

pytestmark = pytest.mark.filterwarnings("ignore")  # the tracers' own


def under_fake_tensors(model):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model(mode.from_tensor(X))


TRACERS = {
    "export": lambda m: torch.export.export(m, (X,)),
    "strict export": lambda m: torch.export.export(m, (X,), strict=True),
    "draft_export": lambda m: torch.export.draft_export(m, (X,)),
    "jit.trace": lambda m: torch.jit.trace(m, (X,), check_trace=False),
    "jit.script": lambda m: torch.jit.script(m),
    "symbolic_trace": lambda m: torch.fx.symbolic_trace(m),
    "make_fx": lambda m: make_fx(m)(X),
    "pipeline": lambda m: pipeline(m, (X,), split_spec={"1": SplitPoint.BEGINNING}),
    "FakeTensorMode": under_fake_tensors,
    "ONNX": lambda m: torch.onnx.export(m, (X,), io.BytesIO(), verbose=False),
    "old ONNX": lambda m: torch.onnx.export(m, (X,), io.BytesIO(), dynamo=False),
}


def described(model):
    """Everything a tracer could change: values, flags, classes and ties."""
    tensors = [*model.parameters(), *model.buffers()]
    return {
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "tensors": [(id(t), type(t), t.requires_grad) for t in tensors],
        "modules": [(name, id(m), type(m)) for name, m in model.named_modules()],
        "under masks": [
            type(mask.original)
            for mask in model.modules()
            if hasattr(mask, "was_trainable")
        ],
        "hooks": [len(m._forward_hooks) for m in model.modules()],
    }


def assert_unchanged(model, before):
    after = described(model)
    values, values_before = after.pop("values"), before.pop("values")
    assert values.keys() == values_before.keys()
    assert all(torch.equal(values[name], values_before[name]) for name in values)
    assert after == before


def wrapped(estimator):
    return masktorch.wrap(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), estimator)


@each_estimator
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "tracer",
    [
        pytest.param(name, marks=pytest.mark.slow)
        if name in ("strict export", "draft_export", "ONNX", "pipeline")
        else name
        for name in TRACERS
    ],
)
def test_a_tracer_leaves_the_model_as_it_was(tracer, training, estimator):
    if "ONNX" in tracer:
        pytest.importorskip("onnxscript")
    model = wrapped(estimator).train(training)
    before = described(model)
    with contextlib.suppress(Exception):  # not every tracer can trace every mask
        TRACERS[tracer](model)
    assert_unchanged(model, before)
    twin = copy.deepcopy(model)
    torch.save(twin, io.BytesIO())
    model(X).sum().backward()
    masktorch.freeze_weights(masktorch.freeze_mask(model), False)
    known = bytes(model.state_dict()["0.parametrizations.weight._extra_state"].tolist())
    assert json.loads(known)["weights_frozen"] is False


def test_exported_programs_compute_what_the_model_does():
    for estimator in (masktorch.Threshold(), masktorch.TopK(0.5)):
        model = wrapped(estimator).eval()
        for strict in (False, True):
            if strict and torch.__version__.startswith("2.6."):
                continue  # it reads parameters past their properties: limitations.md
            program = torch.export.export(model, (X,), strict=strict)
            torch.testing.assert_close(program.module()(X), model(X))


class Own(nn.Linear):
    """No leaf to torch.fx, whose leaf modules are torch.nn's own."""

    def forward(self, x):
        return x @ self.weight.T


@pytest.mark.parametrize("fixed", [False, True])
def test_symbolic_trace_of_a_masked_layer_is_refused_with_what_to_do(fixed):
    model = nn.Sequential(Own(4, 4))
    if fixed:
        masktorch.set_masks(model, {"0.weight": torch.eye(4, dtype=torch.bool)})
    else:
        masktorch.wrap(model)
    with pytest.raises(RuntimeError, match=r"constant.*masktorch\.unwrap on a copy"):
        torch.fx.symbolic_trace(model)
    model(torch.ones(1, 4))
    graph = torch.fx.symbolic_trace(nn.Sequential(masktorch.wrap(nn.Linear(4, 4))))
    assert graph(torch.ones(1, 4)).shape == (1, 4)  # a leaf follows its mask


def test_the_old_onnx_exporter_is_refused_with_what_to_do():
    model = wrapped(masktorch.Threshold()).eval()
    with pytest.raises(RuntimeError, match=r"masktorch\.unwrap on a copy"):
        torch.onnx.export(model, (X,), io.BytesIO(), dynamo=False)
