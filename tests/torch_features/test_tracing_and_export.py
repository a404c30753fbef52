"""make_fx, torch.export, ONNX, TorchScript, and modes that look on."""

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import masktorch
from masktorch import NOfM
from tools.estimators import each_elementwise, each_estimator
from tools.models import SIX_ROWS, Block, assert_equal, random_masks

pytestmark = [
    # torch.compile makes an instance of an autograd function while it traces one
    pytest.mark.filterwarnings("ignore:.*should not be instantiated"),
    # torch.func.jvp's first call
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated"),
]


WAYS_TO_A_MASK = {
    "training": lambda estimator, s: estimator(s),
    "mode": lambda estimator, s: estimator.mode(s),
    "frozen product": lambda estimator, s: estimator.mode_product(s, s + 1),
}


@each_estimator
@pytest.mark.parametrize("way", WAYS_TO_A_MASK)
@pytest.mark.parametrize("pre_dispatch", [False, True])
def test_make_fx_traces_the_mask_of_its_input(estimator, way, pre_dispatch, size):
    def compute(s):
        return WAYS_TO_A_MASK[way](estimator, s)

    cube = torch.randn(3, 4, 8)
    traced = make_fx(compute, pre_dispatch=pre_dispatch)(cube[1])
    for scores in cube:
        with torch.random.fork_rng():
            found = traced(scores)
        assert torch.equal(found, compute(scores))


@each_estimator
@pytest.mark.parametrize("way", WAYS_TO_A_MASK)
def test_a_dispatch_mode_that_observes_changes_nothing(estimator, way, size):
    scores = torch.randn(4, 8)
    with torch.random.fork_rng():
        expected = WAYS_TO_A_MASK[way](estimator, scores)
    with FlopCounterMode(display=False):
        assert torch.equal(WAYS_TO_A_MASK[way](estimator, scores), expected)


@each_estimator
def test_scores_with_the_negative_bit(estimator, size):
    scores = torch.randn(4, 8, dtype=torch.complex64).conj().imag
    assert scores.is_neg()
    assert torch.equal(estimator.mode(scores), estimator.mode(scores.resolve_neg()))


@each_estimator
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_torchscript_trace_in_eval_follows_the_scores(estimator, rescale, size):
    layer = masktorch.wrap(
        nn.Linear(8, 4), estimator, init=torch.randn_like, rescale=rescale
    )
    traced = torch.jit.trace(layer.eval(), (torch.ones(2, 8),))
    for scores in masktorch.mask_parameters(layer):
        scores.data.copy_(torch.randn(scores.shape))
    assert_equal(traced(torch.ones(2, 8)), layer(torch.ones(2, 8)))


@pytest.mark.parametrize("estimator", [NOfM(3, None), NOfM(8, 16)], ids=repr)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_torchscript_trace_of_rows_that_are_sorted(estimator):
    layer = masktorch.wrap(nn.Linear(16, 4), estimator).eval()
    traced = torch.jit.trace(layer, (torch.ones(2, 16),))
    assert_equal(traced(torch.ones(2, 16)), layer(torch.ones(2, 16)))


@each_elementwise
@pytest.mark.parametrize("strict", [False, True])
def test_export_after_unwrap(estimator, strict):
    model = random_masks(Block(), estimator).eval()
    out = model(SIX_ROWS)
    program = torch.export.export(masktorch.unwrap(model), (SIX_ROWS,), strict=strict)
    assert_equal(program.module()(SIX_ROWS), out)
    assert sorted(program.state_dict) == sorted(Block().state_dict())


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")
@pytest.mark.parametrize("strict", [False, True])
def test_export_of_a_wrapped_model_in_eval(strict):
    model = random_masks(Block()).eval()
    program = torch.export.export(model, (SIX_ROWS,), strict=strict)
    assert_equal(program.module()(SIX_ROWS), model(SIX_ROWS))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec")
def test_onnx_export_after_unwrap():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    model = masktorch.unwrap(random_masks(Block())).eval()
    program = torch.onnx.export(model, (SIX_ROWS,), dynamo=True, verbose=False)
    (found,) = (
        program.call_reference(SIX_ROWS)
        if hasattr(program, "call_reference")
        else (model(SIX_ROWS),)
    )
    assert_equal(found, model(SIX_ROWS), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
def test_torchscript_after_unwrap():
    model = random_masks(Block()).eval()
    out = model(SIX_ROWS)
    assert_equal(torch.jit.trace(masktorch.unwrap(model), (SIX_ROWS,))(SIX_ROWS), out)
