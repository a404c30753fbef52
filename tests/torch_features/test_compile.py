"""Compiled models: few graphs, the numbers of eager mode, one draw per call."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import masktorch
from masktorch import (
    Bernoulli,
    functional,
)
from tools.estimators import each_elementwise
from tools.models import (
    SIX_ROWS,
    Block,
    Checkpointed,
    ReadsTwice,
    assert_equal,
    gradients,
    random_masks,
    seeded_step,
    what_is_held,
)

pytestmark = [
    # torch.compile makes an instance of an autograd function while it traces one
    pytest.mark.filterwarnings("ignore:.*should not be instantiated"),
    # what inductor imports
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated"),
]


def frames(blocks):
    """How often a counting backend compiles blocks that are compiled one by one."""
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("eager")
    for block in blocks:
        block.compile(backend=counter, fullgraph=True)
    for _ in range(3):
        for block in blocks:
            block(SIX_ROWS).sum().backward()
    return counter.frame_count


@each_elementwise
@pytest.mark.parametrize("mode", ["train", "eval", "frozen"])
def test_twelve_wrapped_blocks_compile_as_often_as_twelve_plain_ones(
    dynamo, estimator, mode
):
    plain = frames([Block() for _ in range(12)])
    torch._dynamo.reset()
    blocks = [masktorch.wrap(Block(), estimator, init=1.0) for _ in range(12)]
    for block in blocks:
        block.train(mode != "eval")
        if mode == "frozen":
            masktorch.freeze_weights(masktorch.freeze_mask(block), False)
    assert frames(blocks) == plain == 1


def test_blocks_that_ran_before_they_are_compiled_compile_once(dynamo):
    blocks = [masktorch.wrap(Block(), Bernoulli()) for _ in range(12)]
    for block in blocks[:6]:
        block(SIX_ROWS)
    assert frames(blocks) <= 2


def compiles(model, backend):
    expected, by_name = seeded_step(model)
    for _ in range(2):
        torch.manual_seed(5)
        model.zero_grad()
        compiled = torch.compile(model, fullgraph=True, backend=backend)
        out = compiled(SIX_ROWS)
        out.square().mean().backward()
        tolerance = dict(rtol=1e-5, atol=1e-6)
        assert_equal(out.detach(), expected, **tolerance)
        assert_equal(gradients(model), by_name, **tolerance)
    assert not what_is_held(model)


BACKENDS = ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


@pytest.mark.parametrize("backend", BACKENDS)
@each_elementwise
def test_a_compiled_model_gives_what_eager_gives(dynamo, estimator, backend):
    with torch._inductor.config.patch(fallback_random=True):
        model = random_masks(Block(), estimator)
        compiles(model, backend)
        masktorch.freeze_weights(masktorch.freeze_mask(model), False)
        compiles(model, backend)
        compiles(model.eval(), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_model_with_bias_rescale_and_init(dynamo, backend):
    with torch._inductor.config.patch(fallback_random=True):
        model = nn.Sequential(
            nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 4)
        )
        compiles(nn.Sequential(nn.Unflatten(1, (1, 4)), random_masks(
            model, Bernoulli(), bias=True, rescale=True, init=torch.clone
        )), backend)  # fmt: skip


@pytest.mark.slow
def test_a_compiled_model_trains_as_eager_does(dynamo):
    model = masktorch.wrap(Block(), init=lambda w: w * 3)
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, fullgraph=True)
    opts = [torch.optim.SGD(m.parameters(), lr=1.0) for m in (model, twin)]
    for _ in range(5):
        for run, opt in zip((model, compiled), opts, strict=True):
            opt.zero_grad()
            run(SIX_ROWS).square().mean().backward()
            opt.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert_equal(p, q, rtol=1e-4, atol=1e-5)


def test_a_compiled_transform_does_not_lose_the_gradient(dynamo):
    """torch.compile alone would return zeros; it raises or goes on in eager."""

    def gradient(scores):
        return torch.func.grad(lambda s: functional.threshold(s).sum())(scores)

    with pytest.raises(torch._dynamo.exc.TorchDynamoException):
        torch.compile(gradient, backend="aot_eager", fullgraph=True)(torch.zeros(3))
    found = torch.compile(gradient, backend="aot_eager")(torch.zeros(3))
    assert_equal(found, torch.full((3,), 0.25))


def test_compiled_draws_differ_from_call_to_call(dynamo):
    model = masktorch.wrap(Block(), Bernoulli())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert not torch.equal(compiled(SIX_ROWS), compiled(SIX_ROWS))


def test_a_weight_read_twice_in_a_compiled_forward_is_drawn_once(dynamo):
    layer = masktorch.wrap(ReadsTwice(30, 30, bias=False), Bernoulli())
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 30)
    for _ in range(2):
        assert torch.count_nonzero(compiled(x)) == 0


def test_scores_can_be_read_in_compiled_code(dynamo):
    """For example by a user's penalty; also of tied layers that came untied."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    masktorch.wrap(model)
    model[1].weight = nn.Parameter(torch.randn(4, 4))

    def penalised(x):
        return model(x).square().mean() + model[1].parametrizations.weight.scores.sum()

    compiled = torch.compile(penalised, backend="aot_eager", fullgraph=True)
    assert_equal(compiled(SIX_ROWS), penalised(SIX_ROWS), rtol=1e-5, atol=1e-6)


@each_elementwise
def test_one_draw_held_over_compiled_calls(dynamo, estimator):
    layer = random_masks(nn.Linear(4, 4), estimator)
    compiled = torch.compile(layer, backend="aot_eager")
    with parametrize.cached():
        assert_equal(compiled(SIX_ROWS), layer(SIX_ROWS), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(torch.__version__ < "2.7", reason="Dynamo of torch 2.6 refuses it")
@each_elementwise
def test_checkpointing_in_compiled_code(dynamo, estimator):
    model = random_masks(Checkpointed(False), estimator)
    compiles(model, "aot_eager")
