"""The weight under its mask: dtypes and shapes that differ, and second derivatives.

Gradients are compared with closed forms in float64, and second derivatives with the
straight-through formula: `m + slope(s) - slope(s).detach()` in place of the mask.
"""

import numpy as np
import pytest
import torch
from torch import nn

import masktorch
from masktorch import functional


def sigma(s):
    return 1 / (1 + np.exp(-s))


def sign(s):
    return np.where(s < 0, -1.0, 1.0)


def slope(s):
    return sigma(s) * (1 - sigma(s))


def stepped(s, m, g):
    """The rule of intermediate sampling, `p - q`."""
    x = np.clip(0.1 * g / np.sqrt(np.mean(g**2)), -0.5, 0.5)
    return sigma(s) - np.where(m, 1 / (1 + x), -x / (1 - x))


def n_of_m(s, **options):
    return functional.n_of_m(s, 1, 2, **options)


def topk(s, **options):
    return functional.topk(s, 0.4, **options)


def signed_topk(s, **options):
    return functional.topk(s, 0.4, absolute=False, **options)


# each method's rule, in numpy: (scores, mask, g = dL/dm) -> dL/ds
RULES = {
    functional.threshold: lambda s, m, g: g * slope(s),
    functional.bernoulli: lambda s, m, g: g * slope(s),
    functional.intermediate: stepped,
    functional.piggyback: lambda s, m, g: g,
    topk: lambda s, m, g: g * sign(s),
    signed_topk: lambda s, m, g: g,
    n_of_m: lambda s, m, g: g * sign(s),
}
each_method = pytest.mark.parametrize("method", RULES, ids=lambda f: f.__name__)


def numbers(*shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.usefixtures("size")
@each_method
@pytest.mark.parametrize(
    ("scores_dtype", "weight_dtype"),
    [
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.float64, torch.float32),
        (torch.float32, torch.float64),
        (torch.float64, torch.bfloat16),
    ],
)
def test_scores_of_another_dtype_than_the_weight(method, scores_dtype, weight_dtype):
    s = numbers(4, 10).to(scores_dtype).requires_grad_()
    w = numbers(4, 10, seed=1).to(weight_dtype).requires_grad_()
    grad = numbers(4, 10, seed=2).to(weight_dtype)
    out = method(s, weight=w)
    assert out.dtype is weight_dtype
    for_scores, for_weight = torch.autograd.grad(out, (s, w), grad)
    assert for_scores.dtype is scores_dtype
    assert for_weight.dtype is weight_dtype
    m = out != 0
    assert torch.equal(out, w * m)
    assert torch.equal(for_weight, grad * m)
    g = (grad.double() * w.detach().double()).numpy()
    by_hand = RULES[method](s.detach().double().numpy(), m.numpy(), g)
    tolerance = 4e-6 if scores_dtype is torch.float32 else 1e-12
    np.testing.assert_allclose(for_scores, by_hand, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("estimator", [masktorch.Concrete, masktorch.HardConcrete])
def test_relaxed_masks_keep_the_dtype_of_the_weight(estimator):
    s = torch.randn(4, 10, requires_grad=True)
    w = torch.randn(4, 10, dtype=torch.bfloat16, requires_grad=True)
    out = estimator().product(s, w)
    assert out.dtype is torch.bfloat16
    for_scores, for_weight = torch.autograd.grad(out.sum(), (s, w))
    assert for_scores.dtype is torch.float32
    assert for_weight.dtype is torch.bfloat16


SHAPES = [  # of the scores and of the weight
    ((4, 10), (10,)),
    ((4, 10), (1, 10)),
    ((4, 10), (4, 1)),
    ((4, 1), (4, 10)),
    ((1, 10), (4, 10)),
    ((4, 2, 1, 1), (4, 2, 3, 3)),
    ((4, 1), (1, 10)),
    ((4, 10), ()),
    ((1, 4), (3, 5, 4)),
]


@pytest.mark.usefixtures("size")
@each_method
@pytest.mark.parametrize(("scores_shape", "weight_shape"), SHAPES, ids=str)
def test_scores_of_another_shape_than_the_weight(method, scores_shape, weight_shape):
    if method is n_of_m and scores_shape[1] == 1:
        pytest.skip("compares entries along dimension 1")
    s = numbers(*scores_shape).requires_grad_()
    w = numbers(*weight_shape, seed=1).requires_grad_()
    out = method(s, weight=w)
    shape = np.broadcast_shapes(scores_shape, weight_shape)
    assert out.shape == shape
    grad = numbers(*shape, seed=2)
    for_scores, for_weight = torch.autograd.grad(out, (s, w), grad)
    kept = out != 0
    assert torch.equal(out, w * kept)
    torch.testing.assert_close(for_weight, (grad * kept).sum_to_size(weight_shape))
    g = (grad * w.detach()).sum_to_size(scores_shape)
    count = kept.numel() // s.numel()
    m = (kept.double().sum_to_size(scores_shape) / count).numpy()
    assert set(m.flat) <= {0.0, 1.0}
    by_hand = RULES[method](s.detach().numpy(), m == 1, g.numpy())
    np.testing.assert_allclose(for_scores, by_hand, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("weight_shape", [(512,), (1, 512), (1024, 1)])
def test_a_weight_that_broadcasts_to_a_large_tensor(weight_shape):
    s = torch.randn(1024, 512, requires_grad=True)
    w = torch.randn(weight_shape, requires_grad=True)
    out = functional.threshold(s, weight=w)
    assert torch.equal(out, w * (s > 0))
    out.sum().backward()
    torch.testing.assert_close(w.grad, (s > 0).float().sum_to_size(weight_shape))
    slopes = torch.sigmoid(s.detach()) * torch.sigmoid(-s.detach())
    torch.testing.assert_close(s.grad, w.detach() * slopes)


def test_a_broadcast_mask_hides_what_is_not_finite():
    w = torch.tensor([[torch.nan, 1.0], [torch.inf, 2.0]])
    s = torch.tensor([[-1.0, 1.0]], requires_grad=True)
    assert functional.threshold(s, weight=w).tolist() == [[0, 1], [0, 2]]


@each_method
def test_the_weights_gradient_has_the_rule_as_its_derivative_by_the_scores(method):
    s, w = numbers(4, 10).requires_grad_(), numbers(4, 10, seed=1).requires_grad_()
    grad = numbers(4, 10, seed=2).requires_grad_()
    v = numbers(4, 10, seed=3)
    out = method(s, weight=w)
    m = out != 0
    (for_weight,) = torch.autograd.grad(out, w, grad, create_graph=True)
    for_scores, for_grad = torch.autograd.grad(for_weight, (s, grad), v)
    by_hand = RULES[method](s.detach().numpy(), m.numpy(), (v * grad.detach()).numpy())
    np.testing.assert_allclose(for_scores, by_hand, rtol=1e-12, atol=1e-14)
    assert torch.equal(for_grad, v * m)


@each_method
def test_the_same_under_transforms(method):
    s, w = numbers(4, 10), numbers(4, 10, seed=1)
    grad, v = numbers(4, 10, seed=2), numbers(4, 10, seed=3)
    mask = None

    def product(s, w):
        nonlocal mask
        torch.manual_seed(0)
        out = method(s, weight=w)
        mask = out.detach() != 0
        return (out * grad).sum(), mask

    def inner(s):
        for_weight, mask = torch.func.grad(product, argnums=1, has_aux=True)(s, w)
        return (for_weight * v).sum(), mask

    found, mask = torch.func.grad(inner, has_aux=True)(s)
    by_hand = RULES[method](s.numpy(), mask.numpy(), (v * grad).numpy())
    np.testing.assert_allclose(found, by_hand, rtol=1e-12, atol=1e-14)


ESTIMATORS = {  # and the function whose derivative is their rule
    masktorch.Threshold(): torch.sigmoid,
    masktorch.Bernoulli(): torch.sigmoid,
    masktorch.Piggyback(0.0): lambda s: s,
    masktorch.TopK(0.5): lambda s: s.abs(),
    masktorch.TopK(0.5, absolute=False): lambda s: s,
    masktorch.NOfM(1, 2): lambda s: s.abs(),
}


@pytest.mark.parametrize("rescale", [False, True], ids=["plain", "rescaled"])
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_a_loss_after_a_step_on_the_weights(estimator, rescale):
    """MAML: the second derivative of a layer is that of the straight-through formula,
    both orders of it: d/ds of dL/dW and of dL/ds."""
    x = numbers(5, 8)
    layer = nn.Linear(8, 6, bias=False).double()
    masktorch.wrap(layer, estimator, init=torch.randn_like, rescale=rescale)
    masktorch.freeze_weights(layer, False)
    mask = layer.parametrizations.weight
    w, s = mask.original, mask.scores
    masked = layer.weight
    m = (masked != 0).double()
    through = ESTIMATORS[estimator](s)
    m = m + through - through.detach()
    by_hand = w * m * (m.numel() / m.sum() if rescale else 1)
    for inner in (w, s):
        found = []
        for weight in (masked, by_hand):
            loss = (x @ weight.T).pow(2).sum()
            (g,) = torch.autograd.grad(loss, inner, create_graph=True)
            second = torch.autograd.grad(g.pow(2).sum(), (s, w), retain_graph=True)
            found.append(second)
        torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)
