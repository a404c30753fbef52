"""functional_call, vmap, grad, jvp and double backward."""

import copy

import pytest
import torch
from torch import nn

import masktorch
from masktorch import (
    Bernoulli,
    IntermediateSampling,
    Threshold,
)
from tools.estimators import each_elementwise
from tools.models import SIX_ROWS, Block, assert_equal, random_masks, seeded_step

pytestmark = [
    # torch.func.jvp's first call
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated"),
]


def split(model):
    """The scores of a model, and everything else, for `functional_call`."""
    scores = {
        n: p.detach() for n, p in model.named_parameters() if n.endswith("scores")
    }
    others = {n: p.detach() for n, p in model.named_parameters() if n not in scores}
    return scores, others


def loss(scores, others, model):
    return (
        torch.func.functional_call(model, {**scores, **others}, (SIX_ROWS,))
        .square()
        .mean()
    )


@each_elementwise
def test_functional_call_and_grad(estimator):
    model = random_masks(Block(), estimator)
    out, by_name = seeded_step(model)
    scores, others = split(model)
    torch.manual_seed(5)
    assert_equal(
        torch.func.functional_call(model, {**scores, **others}, (SIX_ROWS,)), out
    )
    torch.manual_seed(5)
    found = torch.func.grad(loss)(scores, others, model)
    expected = {n: g for n, g in by_name.items() if n in scores}
    # not bit for bit: where autograd follows, the order of operations may differ
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-7)
    negative = {n: torch.full_like(s, -1e3) for n, s in scores.items()}
    out = torch.func.functional_call(model.eval(), negative, (SIX_ROWS,))
    assert_equal(out, SIX_ROWS + model.down.bias.expand(6, 4))
    assert masktorch.report(model).masked_fraction < 1
    assert_equal(torch.func.functional_call(model, {}, (SIX_ROWS,)), model(SIX_ROWS))


@each_elementwise
@pytest.mark.parametrize("training", [False, True])
def test_an_ensemble_of_masks_in_one_call(estimator, training):
    model = random_masks(Block(), estimator).train(training)
    scores, others = split(model)
    stacked = {n: torch.randn(5, *s.shape) * 3 for n, s in scores.items()}

    def call(scores):
        return torch.func.functional_call(model, {**scores, **others}, (SIX_ROWS,))

    one = lambda i: {n: s[i] for n, s in stacked.items()}  # noqa: E731
    if training and estimator.draws:
        out = torch.vmap(call, randomness="different")(stacked)
        again = torch.vmap(call, randomness="different")(stacked)
        assert out.shape == again.shape == (5, 6, 4)
        assert not torch.equal(out, again)
        certain = {n: torch.where(s > 0, 200.0, -200.0) for n, s in stacked.items()}
        out = torch.vmap(call, randomness="different")(certain)
        stacked = certain
    else:
        out = torch.vmap(call)(stacked)
    assert_equal(
        out, torch.stack([call(one(i)) for i in range(5)]), rtol=1e-5, atol=1e-6
    )


@each_elementwise
def test_gradients_of_an_ensemble_in_one_call(estimator):
    model = random_masks(Block(), estimator)
    scores, others = split(model)
    stacked = {n: torch.randn(5, *s.shape) for n, s in scores.items()}
    if estimator.draws:
        stacked = {
            n: s.sign() * 200 for n, s in stacked.items()
        }  # no chance in the draw
    grad = torch.func.grad(loss)
    found = torch.vmap(grad, in_dims=(0, None, None), randomness="different")(
        stacked, others, model
    )
    looped = [
        grad({n: s[i] for n, s in stacked.items()}, others, model) for i in range(5)
    ]
    for name in stacked:
        expected = torch.stack([g[name] for g in looped])
        assert_equal(found[name], expected, rtol=1e-4, atol=1e-6)


def test_gradients_per_sample():
    model = random_masks(Block())
    scores, others = split(model)

    def of_one(scores, x):
        return (
            torch.func.functional_call(model, {**scores, **others}, (x,))
            .square()
            .mean()
        )

    found = torch.vmap(torch.func.grad(of_one), in_dims=(None, 0))(scores, SIX_ROWS)
    for name, mean in torch.func.grad(of_one)(scores, SIX_ROWS).items():
        assert_equal(found[name].mean(0), mean, rtol=1e-4, atol=1e-6)


def test_forward_mode_through_a_frozen_mask():
    model = masktorch.freeze_mask(random_masks(Block())).eval()
    plain = masktorch.unwrap(copy.deepcopy(model))
    tangent = torch.randn_like(SIX_ROWS)
    assert_equal(
        torch.func.jvp(model, (SIX_ROWS,), (tangent,)),
        torch.func.jvp(plain, (SIX_ROWS,), (tangent,)),
    )
    _, others = split(model)
    moved = {n: torch.ones_like(p) for n, p in others.items()}
    call = lambda m: lambda p: torch.func.functional_call(m, p, (SIX_ROWS,))  # noqa: E731
    _, found = torch.func.jvp(call(model), (others,), (moved,))
    masked = {n: torch.where(masktorch.masks(model).get(n, torch.tensor(True)), t, 0)
              for n, t in moved.items()}  # fmt: skip
    _, expected = torch.func.jvp(
        call(plain), (dict(plain.named_parameters()),), (masked,)
    )
    assert_equal(found, expected)


@pytest.mark.parametrize("size", [8, 600])
def test_forward_mode_by_dual_weights_of_any_size(size):
    layer = masktorch.set_masks(
        nn.Linear(size, size), {"weight": torch.eye(size).bool()}
    )
    weight, x = torch.randn(size, size), torch.ones(1, size)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(weight, torch.full_like(weight, 3.0))
        out = torch.func.functional_call(layer, {"weight": dual}, (x,))
        tangent = torch.autograd.forward_ad.unpack_dual(out).tangent
    assert torch.equal(tangent, torch.full_like(x, 3.0))


@each_elementwise
def test_forward_mode_by_the_input_of_a_learning_model(estimator):
    model = random_masks(Block(), estimator)
    _, tangent = torch.func.jvp(model, (SIX_ROWS,), (torch.ones_like(SIX_ROWS),))
    assert tangent.shape == SIX_ROWS.shape


@each_elementwise
def test_double_backward(estimator):
    model = random_masks(Block(), estimator)
    x = SIX_ROWS.clone().requires_grad_()
    (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    grad.square().sum().backward()
    assert all(s.grad.isfinite().all() for s in masktorch.mask_parameters(model))
    scores = list(masktorch.mask_parameters(model))
    first = torch.autograd.grad(model(x).square().sum(), scores, create_graph=True)
    second = torch.autograd.grad(
        sum(g.square().sum() for g in first), scores, allow_unused=True
    )
    assert all(g is None or g.isfinite().all() for g in second)


@pytest.mark.parametrize(
    "estimator", [Threshold(), Bernoulli(), IntermediateSampling()], ids=repr
)
def test_forward_mode_by_scores_is_an_error_not_a_wrong_number(estimator):
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(estimator, (torch.zeros(3),), (torch.ones(3),))


@pytest.mark.parametrize("method", ["bernoulli", "concrete", "hard_concrete"])
def test_vmap_may_share_one_draw_among_all_rows(method):
    function = getattr(masktorch.functional, method)
    row = torch.linspace(-1, 1, 8)
    rows = row.expand(3, 8).contiguous()
    found = torch.vmap(function, randomness="same")(rows)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
