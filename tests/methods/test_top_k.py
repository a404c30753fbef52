"""TopK and NOfM: masks by a stable argsort, gradients by closed forms in numpy."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import masktorch
from masktorch import TopK, functional
from masktorch._kernels import chunked
from tools.by_hand import kept_count, n_of_m_by_hand, topk_by_hand

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


SHAPES = [(6, 8), (6, 8, 3), (6, 8, 2, 2)]


FUSED = pytest.mark.parametrize("fused", [False, True], ids=["mask", "product"])


ABSOLUTE = pytest.mark.parametrize(
    "absolute", [True, False], ids=["absolute", "signed"]
)


def tensors(shape, seed=0):
    """Scores with ties and zeros of both signs, weight, incoming gradient: float64."""
    rng = np.random.default_rng(seed)
    s = np.where(
        rng.random(shape) < 0.3,
        np.round(rng.normal(size=shape)),
        rng.normal(size=shape),
    )
    s.flat[:4] = [0.0, -0.0, 1.0, -1.0]
    return s, rng.normal(size=shape), rng.normal(size=shape)


def sign(s):
    return np.where(s < 0, -1.0, 1.0)


def run(function, scores, weight, grad, fused):
    s, w = (torch.tensor(a, requires_grad=True) for a in (scores, weight))
    out = function(s, weight=w) if fused else w * function(s)
    out.backward(torch.tensor(grad))
    return out.detach().numpy(), s.grad.numpy(), w.grad.numpy()


@FUSED
@ABSOLUTE
@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("shape", [(1,), (17,), *SHAPES])
@pytest.mark.parametrize("density", [1e-9, 0.1, 0.5, 0.77, 1.0])
def test_topk(fused, absolute, shape, density):
    s, w, grad = tensors(shape) if shape != (1,) else (np.array([-2.0]),) * 3
    out, for_scores, for_weight = run(
        lambda s, **kw: functional.topk(s, density, absolute=absolute, **kw),
        s,
        w,
        grad,
        fused,
    )
    m = topk_by_hand(s, density, absolute)
    assert m.sum() == kept_count(density, s.size)
    np.testing.assert_array_equal(out, w * m)
    np.testing.assert_array_equal(for_scores, grad * w * (sign(s) if absolute else 1))
    np.testing.assert_array_equal(for_weight, grad * m)


@FUSED
@ABSOLUTE
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 4), (1, 1), (3, 8), (1, 2)])
def test_n_of_m(fused, absolute, shape, n, m):
    s, w, grad = tensors(shape)
    out, for_scores, for_weight = run(
        lambda s, **kw: functional.n_of_m(s, n, m, absolute=absolute, **kw),
        s,
        w,
        grad,
        fused,
    )
    mask = n_of_m_by_hand(s, n, m, absolute)
    np.testing.assert_array_equal(out, w * mask)
    np.testing.assert_array_equal(for_scores, grad * w * (sign(s) if absolute else 1))
    np.testing.assert_array_equal(for_weight, grad * mask)


@ABSOLUTE
def test_nan_ranks_largest(absolute):
    scores = torch.tensor(
        [[1.0, math.inf, -math.nan, 3.0], [math.nan] * 3 + [math.inf]]
    )
    for n in (1, 2, 3):
        masks = functional.n_of_m(scores, n, 4, absolute=absolute)
        assert masks.tolist() == [
            [[0, 0, 1, 0], [0, 1, 1, 0], [0, 1, 1, 1]][n - 1],
            [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]][n - 1],
        ]
    mask = functional.topk(scores, 4 / 8, absolute=absolute)
    assert mask.tolist() == [[0, 0, 1, 0], [1, 1, 1, 0]]
    layer = masktorch.wrap(
        nn.Linear(2, 2), TopK(0.5), init=lambda w: torch.full_like(w, math.nan)
    )
    assert masktorch.masks(layer)["weight"].tolist() == [[True, True], [False, False]]


def test_counts_that_other_libraries_get_wrong():
    """hidden-networks drops int((1 - 0.9) * 10) = 0; others keep all ties."""
    assert functional.topk(torch.arange(10.0), 0.9).sum() == 9
    assert functional.topk(torch.ones(10), 0.3).tolist() == [
        1,
        1,
        1,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    ]
    for d in range(1, 101):
        for n in (7, 10, 33, 1000):
            kept = functional.topk(torch.zeros(n), d / 100).sum()
            assert kept == kept_count(d / 100, n)


LAYOUTS = {
    "contiguous": lambda: torch.randn(4, 8, 5, 3),
    "channels last": lambda: torch.randn(4, 8, 5, 3).to(
        memory_format=torch.channels_last
    ),
    "transposed": lambda: torch.randn(8, 6).t(),
    "gaps": lambda: torch.randn(4, 16)[:, ::2],
    "expanded": lambda: torch.randn(4, 1).expand(4, 8),
}


METHODS = {
    "topk": lambda s, **kw: functional.topk(s, 0.3, **kw),
    "signed": lambda s, **kw: functional.topk(s, 0.3, absolute=False, **kw),
    "n of m": functional.n_of_m,
}


each_method = pytest.mark.parametrize("method", METHODS)


@each_method
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_and_dtypes_match_contiguous_doubles(
    method, layout, dtype, monkeypatch
):
    scores, weight, grad = (LAYOUTS[layout]().to(dtype) for _ in range(3))

    def both(scores, weight, grad):
        s, w = (t.detach().requires_grad_() for t in (scores, weight))
        out = METHODS[method](s, weight=w)
        return out.detach(), *torch.autograd.grad(out, (s, w), grad)

    expected = both(*(t.double().contiguous() for t in (scores, weight, grad)))
    for chunk in (2**18, 8):
        monkeypatch.setattr(chunked, "CHUNK", chunk)
        for found, exact in zip(both(scores, weight, grad), expected, strict=True):
            assert found.dtype == dtype
            tolerance = 2 * torch.finfo(dtype).eps
            torch.testing.assert_close(
                found.double(), exact, rtol=tolerance, atol=tolerance
            )


@each_method
def test_second_derivatives_match_the_closed_form(method):
    s, w, grad = (torch.tensor(a, requires_grad=True) for a in tensors((4, 8)))
    out = METHODS[method](s, weight=w)
    first = torch.autograd.grad(out, s, grad, create_graph=True)[0]
    (second,) = torch.autograd.grad(first.square().sum(), grad)
    g = grad.detach() * w.detach()
    torch.testing.assert_close(second, 2 * g * w.detach())


@each_method
@pytest.mark.parametrize("fused", [False, True], ids=["mask", "product"])
def test_batched_gradients_equal_a_loop(method, fused):
    s, w = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8)
    out = METHODS[method](s, weight=w) if fused else METHODS[method](s)
    grads = torch.randn(5, 4, 8)
    (batch,) = torch.autograd.grad(
        out, s, grads, is_grads_batched=True, retain_graph=True
    )
    each = [torch.autograd.grad(out, s, grad, retain_graph=True)[0] for grad in grads]
    torch.testing.assert_close(batch, torch.stack(each))


@each_method
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_vmap_over_any_dimension(method, dim):
    scores = torch.tensor(np.round(np.random.default_rng(0).normal(size=(4, 8, 4)), 1))
    mapped = torch.func.vmap(METHODS[method], in_dims=dim, out_dims=dim)
    if scores.unbind(dim)[0].shape[1] % 4 == 0:
        for mask, one in zip(
            mapped(scores).unbind(dim), scores.unbind(dim), strict=True
        ):
            assert torch.equal(mask, METHODS[method](one))


@each_method
def test_gradients_under_transforms(method):
    s, w, grad = (torch.tensor(a) for a in tensors((4, 8)))
    found = torch.func.grad(lambda s: (METHODS[method](s, weight=w) * grad).sum())(s)
    leaf = s.clone().requires_grad_()
    (METHODS[method](leaf, weight=w) * grad).sum().backward()
    torch.testing.assert_close(found, leaf.grad)
