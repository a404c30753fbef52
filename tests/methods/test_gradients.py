"""Each elementwise estimator against its closed form in numpy float64."""

import itertools

import numpy as np
import pytest
import torch

import masktorch
from masktorch import functional
from masktorch._kernels import chunked, random
from masktorch._methods import score_threshold
from tools.by_hand import sigma


def tensors(seed=0, shape=(5, 4)):
    """Scores, weight and the gradient that arrives, float64."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape), rng.normal(size=shape), rng.normal(size=shape)


def run(function, scores, weight, grad, fused):
    """Mask, weight * mask and the gradients of both inputs, as numpy arrays."""
    s, w = (torch.tensor(a, requires_grad=True) for a in (scores, weight))
    out = function(s, weight=w) if fused else w * function(s)
    out.backward(torch.tensor(grad))
    return out.detach().numpy(), s.grad.numpy(), w.grad.numpy()


pytestmark = pytest.mark.usefixtures("size")
FUSED = pytest.mark.parametrize("fused", [False, True], ids=["mask", "product"])


@FUSED
@pytest.mark.parametrize("tau", [0.5, 0.2, 0.9])
def test_threshold(fused, tau):
    s, w, grad = tensors()
    out, for_scores, for_weight = run(
        lambda s, **kw: functional.threshold(s, tau, **kw), s, w, grad, fused
    )
    m = (sigma(s) > tau).astype(float)
    np.testing.assert_array_equal(out, w * m)
    np.testing.assert_allclose(
        for_scores, grad * w * sigma(s) * (1 - sigma(s)), rtol=1e-12
    )
    np.testing.assert_array_equal(for_weight, grad * m)


def test_a_score_exactly_at_the_threshold_is_masked():
    s = torch.zeros(3, dtype=torch.float64)
    assert functional.threshold(s).sum() == 0
    assert masktorch.Bernoulli().mode(s).sum() == 0


@FUSED
def test_bernoulli(fused):
    s, w, grad = tensors()
    torch.manual_seed(0)
    out, for_scores, for_weight = run(functional.bernoulli, s, w, grad, fused)
    m = (out != 0).astype(float)
    assert 0 < m.mean() < 1
    np.testing.assert_array_equal(out, w * m)
    np.testing.assert_allclose(
        for_scores, grad * w * sigma(s) * (1 - sigma(s)), rtol=1e-12
    )
    np.testing.assert_array_equal(for_weight, grad * m)


def intermediate_by_hand(s, m, g, step_size):
    """p - q, one entry at a time, from the definition in the paper's terms."""
    alpha = step_size / np.sqrt(np.mean(g**2))
    out = np.empty_like(s)
    for i in np.ndindex(s.shape):
        x = min(max(alpha * g[i], -0.5), 0.5)
        # A step on z = (1 - m, m) with the Jacobian of z / sum(z), then normalised.
        z = np.array([1 - m[i], m[i]])
        dz = np.array([0.0, x])
        drawn = int(m[i])
        moved = z - (dz - dz[drawn])
        q = moved[1] / moved.sum()
        out[i] = sigma(s[i]) - q
    return out


@FUSED
@pytest.mark.parametrize("step_size", [0.01, 0.3, 5.0])
def test_intermediate(fused, step_size):
    s, w, grad = tensors()
    torch.manual_seed(0)
    out, for_scores, for_weight = run(
        lambda s, **kw: functional.intermediate(s, step_size, **kw), s, w, grad, fused
    )
    m = (out != 0).astype(float)
    assert 0 < m.mean() < 1
    np.testing.assert_array_equal(out, w * m)
    np.testing.assert_allclose(
        for_scores,
        intermediate_by_hand(s, m, grad * w, step_size),
        rtol=1e-11,
        atol=1e-13,
    )
    np.testing.assert_array_equal(for_weight, grad * m)


def test_intermediate_is_the_derivative_of_the_divergence_to_the_stepped_draw():
    """dL/ds is d KL((1-q, q) || (1-p, p)) / ds, by central differences."""
    s, _, g = tensors(seed=1)
    torch.manual_seed(0)
    scores = torch.tensor(s, requires_grad=True)
    mask = functional.intermediate(scores, 0.1)
    mask.backward(torch.tensor(g))
    m, x = mask.detach().numpy(), np.clip(0.1 * g / np.sqrt(np.mean(g**2)), -0.5, 0.5)
    q = np.where(
        m == 1, 1 / (1 + x), -x / (1 - x)
    )  # may leave [0, 1]: it is not clipped

    def divergence(s):  # the terms that depend on s
        return -(q * np.log(sigma(s)) + (1 - q) * np.log(1 - sigma(s)))

    numeric = (divergence(s + 1e-6) - divergence(s - 1e-6)) / 2e-6
    np.testing.assert_allclose(scores.grad.numpy(), numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("step_size", [0.1, 5.0])
def test_intermediate_with_zero_gradient_is_noise_alone(step_size):
    s = torch.zeros(4, requires_grad=True)
    mask = functional.intermediate(s, step_size)
    mask.backward(torch.zeros(4))
    np.testing.assert_allclose(s.grad, 0.5 - mask.detach(), atol=1e-7)


@FUSED
@pytest.mark.parametrize(
    ("dtype", "scales"),
    [
        (torch.float32, (1e-36, 1e-24, 1e-12, 1e12, 1e18, 1e36)),
        (torch.float64, (1e-150, 1e150)),
    ],
)
def test_intermediate_with_gradients_whose_squares_overflow(fused, dtype, scales):
    s, w, grad = (a.astype(np.float32) for a in tensors())
    for scale in scales:
        scores, weight = (
            torch.tensor(s).to(dtype).requires_grad_(),
            torch.tensor(w).to(dtype),
        )
        out = (
            functional.intermediate(scores, 0.3, weight=weight)
            if fused
            else functional.intermediate(scores, 0.3) * weight
        )
        out.backward(torch.tensor(grad).to(dtype) * scale)
        m = (out.detach().numpy() != 0).astype(float)
        expected = intermediate_by_hand(
            s.astype(float), m, (grad * w).astype(float), 0.3
        )
        np.testing.assert_allclose(scores.grad.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_intermediate_of_entries_of_every_size():
    """Chunks whose entries differ by orders of magnitude."""
    s, _, grad = tensors(shape=(30,))
    grad *= np.repeat([1e-30, 1e-18, 1.0, 1e-9, 1e-36], 6)
    scores = torch.tensor(s, dtype=torch.float32, requires_grad=True)
    out = functional.intermediate(scores, 0.3)
    out.backward(torch.tensor(grad, dtype=torch.float32))
    expected = intermediate_by_hand(s, out.detach().double().numpy(), grad, 0.3)
    np.testing.assert_allclose(scores.grad.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_intermediate_refuses_gradients_that_are_not_finite(value):
    s = torch.zeros(7, requires_grad=True)
    functional.intermediate(s).backward(
        torch.tensor([1.0, 2.0, value, 0.0, 1.0, 1.0, 1.0])
    )
    assert s.grad[2].isnan()


def test_intermediate_of_no_entries():
    s = torch.zeros(0, 3, requires_grad=True)
    functional.intermediate(s).sum().backward()
    assert s.grad.shape == (0, 3)


def test_intermediate_under_a_gradient_scaler():
    """Multiply by the scale first, as the class says: its gradient is normalised."""

    def scores_after(scale, given_back):
        torch.manual_seed(0)
        layer = masktorch.wrap(torch.nn.Linear(6, 5), masktorch.IntermediateSampling())
        optimizer = torch.optim.SGD(masktorch.mask_parameters(layer), lr=1.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale != 1)
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(layer(torch.ones(2, 6)).square().sum()).backward()
            scaler.unscale_(optimizer)
            for scores in masktorch.mask_parameters(layer) if given_back else ():
                scores.grad.mul_(scaler.get_scale())
            scaler.step(optimizer)
            scaler.update()
        return layer.parametrizations.weight.scores.detach()

    plain = scores_after(1, False)
    torch.testing.assert_close(scores_after(2.0**16, True), plain)
    assert (scores_after(2.0**16, False) - 1).abs().max() < 1e-3 * (
        plain - 1
    ).abs().max()


def quadratic(weight, x, y):
    """A small layer and its loss: sum((x @ w - y)^2)."""
    return ((x @ weight - y) ** 2).sum()


def layer():
    rng = np.random.default_rng(3)
    s, w = rng.normal(size=6), rng.normal(size=6)
    x, y = rng.normal(size=(4, 6)), rng.normal(size=4)
    return s, w, x, y


def every_mask(n):
    return [np.array(bits, dtype=float) for bits in itertools.product([0, 1], repeat=n)]


def probability(m, p):
    return np.prod(np.where(m == 1, p, 1 - p))


def fixed_draw(function, scores, mask, **kwargs):
    """Call a sampling function so that it draws exactly `mask`.

    Its random bits are all 0 or all 1: the smallest and the largest uniform number.
    """

    class Bits:
        def __init__(self, start):
            pass

        def random_raw(self, count):
            bits = np.zeros(
                4 * count, np.int16
            )  # an entry's 15, and the next entry's below them
            bits[: len(mask)] = 32767 * (1 - mask)
            return bits.view(np.uint64)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random, "SFC64", Bits)
        patch.setattr(random, "SMALL", 0)
        drawn = function(scores, **kwargs)
    np.testing.assert_array_equal(drawn.detach().numpy(), mask)
    return drawn


def expectation(function, s, w, x, y, **kwargs):
    """E[dL/ds] over all masks of the layer, each weighted with its probability."""
    total = np.zeros_like(s)
    for m in every_mask(len(s)):
        scores = torch.tensor(s, requires_grad=True)
        mask = fixed_draw(function, scores, m, **kwargs)
        quadratic(torch.tensor(w) * mask, torch.tensor(x), torch.tensor(y)).backward()
        total += probability(m, sigma(s)) * scores.grad.numpy()
    return total


def gradient_by_mask(m, w, x, y):
    """g = dL/dm = dL/dW_eff * W by hand: 2 x^T (x (w m) - y) * w."""
    return 2 * x.T @ (x @ (w * m) - y) * w


def test_bernoulli_in_expectation():
    s, w, x, y = layer()
    by_hand = sum(
        probability(m, sigma(s)) * gradient_by_mask(m, w, x, y)
        for m in every_mask(len(s))
    ) * (sigma(s) * (1 - sigma(s)))
    np.testing.assert_allclose(
        expectation(functional.bernoulli, s, w, x, y), by_hand, rtol=1e-10
    )


def test_intermediate_in_expectation():
    """The noise p - m has zero mean; E[dL/ds] = E[x / (1 +- x)]."""
    s, w, x, y = layer()
    by_hand = np.zeros_like(s)
    for m in every_mask(len(s)):
        g = gradient_by_mask(m, w, x, y)
        step = np.clip(0.1 * g / np.sqrt(np.mean(g**2)), -0.5, 0.5)
        by_hand += probability(m, sigma(s)) * step / (1 + (2 * m - 1) * step)
    found = expectation(functional.intermediate, s, w, x, y, step_size=0.1)
    np.testing.assert_allclose(found, by_hand, rtol=1e-9)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
@pytest.mark.parametrize(
    "function", [functional.threshold, functional.bernoulli, functional.intermediate]
)
def test_dtype_and_shape_are_those_of_the_scores(function, dtype):
    s = torch.randn(3, 2, dtype=dtype, requires_grad=True)
    mask = function(s)
    assert mask.dtype == dtype
    assert mask.shape == s.shape
    (mask * 1e-4).sum().backward()
    assert s.grad.dtype == dtype
    assert s.grad.isfinite().all()


def test_intermediate_in_half_precision_follows_double_precision():
    """The rule of intermediate sampling in float16, where alpha would overflow."""
    s, _, g = tensors()
    torch.manual_seed(0)
    half = torch.tensor(s, dtype=torch.float16, requires_grad=True)
    mask = functional.intermediate(half)
    mask.backward(torch.tensor(g * 1e-6, dtype=torch.float16))
    expected = intermediate_by_hand(
        half.detach().double().numpy(),
        mask.detach().double().numpy(),
        torch.tensor(g * 1e-6, dtype=torch.float16).double().numpy(),
        0.1,
    )
    np.testing.assert_allclose(half.grad.double().numpy(), expected, atol=2e-3)


def test_rescale_is_exact_through_the_sum_of_the_mask():
    """W_eff = W m n / sum(m); its gradient by the quotient rule, for the threshold."""
    rng = np.random.default_rng(0)
    w, s, x = rng.normal(size=(3, 5)), rng.normal(size=(3, 5)), rng.normal(size=(2, 5))
    linear = torch.nn.Linear(5, 3, bias=False).double()
    linear.weight.data = torch.tensor(w)
    masktorch.wrap(linear, init=lambda _: torch.tensor(s), rescale=True)
    out = linear(torch.tensor(x))
    m = (s > 0).astype(float)
    n, kept = m.size, m.sum()
    np.testing.assert_allclose(out.detach(), x @ (w * m * n / kept).T, rtol=1e-12)
    grad_out = rng.normal(size=out.shape)
    out.backward(torch.tensor(grad_out))
    big_g = grad_out.T @ x  # dL/dW_eff
    g = big_g * w
    for_mask = g * n / kept - np.sum(g * m) * n / kept**2
    expected = for_mask * sigma(s) * (1 - sigma(s))
    np.testing.assert_allclose(
        linear.parametrizations.weight.scores.grad, expected, rtol=1e-10
    )


FUNCTIONS = (
    functional.threshold,
    functional.bernoulli,
    functional.intermediate,
    functional.piggyback,
)
LAYOUTS = {
    "contiguous": lambda: torch.randn(4, 3, 5, 3),
    "channels last": lambda: torch.randn(4, 3, 5, 3).to(
        memory_format=torch.channels_last
    ),
    "transposed": lambda: torch.randn(5, 9).t(),
    "gaps": lambda: torch.randn(4, 20)[:, ::2],
    "expanded": lambda: torch.randn(4, 1).expand(4, 10),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_chunks_of_any_layout_are_the_whole(function, layout, dtype, monkeypatch):
    torch.manual_seed(0)
    found = []
    scores, weight, grad = (LAYOUTS[layout]().to(dtype) for _ in range(3))
    # drawn ones are certain: a chunk begins with fresh bits, so that it draws others
    drawn = function in (functional.bernoulli, functional.intermediate)
    scores = scores * 1e4 if drawn else scores
    for chunk in (2**18, 8):
        monkeypatch.setattr(chunked, "CHUNK", chunk)
        s = scores.detach().requires_grad_()
        options = {"generator": torch.Generator().manual_seed(1)} if drawn else {}
        out = function(s, weight=weight, **options)
        found.append((out.detach(), *torch.autograd.grad(out, s, grad)))
    for whole, parts in zip(*found, strict=True):
        assert parts.stride() == whole.stride()
        torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_weight_gradient_is_masked(function):
    s, w, grad = tensors(shape=(7, 5))
    out, _, for_weight = run(function, s, w, grad, True)
    np.testing.assert_array_equal(for_weight, grad * (out != 0))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_second_derivatives_match_the_closed_form(function):
    """Second derivatives: no intermediate value of the backward is overwritten."""
    s, w, grad = (torch.tensor(a, requires_grad=True) for a in tensors(shape=(7, 5)))
    out = function(s, weight=w)
    (first,) = torch.autograd.grad(out, s, grad, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), grad)
    m = (out != 0).double()
    p, g = torch.sigmoid(s.detach()), (grad * w).detach().requires_grad_()
    if function is functional.intermediate:
        x = (0.1 * g / g.square().mean().sqrt()).clamp(-0.5, 0.5)
        by_hand = p - torch.where(m == 1, 1 / (1 + x), -x / (1 - x))
    else:
        by_hand = g if function is functional.piggyback else g * p * (1 - p)
    (expected,) = torch.autograd.grad(by_hand.square().sum(), g)
    torch.testing.assert_close(first, by_hand)
    torch.testing.assert_close(second, expected * w.detach())


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("fused", [False, True], ids=["mask", "product"])
def test_batched_gradients_equal_a_loop(function, fused):
    torch.manual_seed(0)
    s, w = torch.randn(7, requires_grad=True), torch.randn(7)
    out = function(s, weight=w) if fused else function(s)
    grads = torch.eye(7)
    (batch,) = torch.autograd.grad(
        out, s, grads, is_grads_batched=True, retain_graph=True
    )
    each = [torch.autograd.grad(out, s, grad, retain_graph=True)[0] for grad in grads]
    torch.testing.assert_close(batch, torch.stack(each))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("function", [functional.threshold, functional.bernoulli])
def test_slopes_of_confident_scores_in_half_precision(function, dtype):
    s = torch.tensor([-8.0, -5.0, 5.0, 8.0], dtype=dtype, requires_grad=True)
    function(s).sum().backward()
    exact = sigma(np.array([5.0, 8.0])) * sigma(-np.array([5.0, 8.0]))
    expected = [exact[1], exact[0], exact[0], exact[1]]
    np.testing.assert_allclose(s.grad.double().numpy(), expected, rtol=1e-2)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
@pytest.mark.parametrize("tau", [0.5, 0.3, 0.9, 0.5001, 1e-6])
def test_forward_and_mode_agree_next_to_a_threshold_between_representable_values(
    dtype, tau
):
    at = torch.tensor(np.log(tau / (1 - tau)))  # float64
    around = [at.to(dtype)]
    for side in (-torch.inf, torch.inf):
        around.append(torch.nextafter(around[0], torch.tensor(side, dtype=dtype)))
    scores = torch.stack(around).requires_grad_()
    expected = scores.double() > at
    at = score_threshold.logit(tau)
    assert torch.equal(score_threshold.is_above(at, scores), expected)
    assert torch.equal(functional.threshold(scores, tau), expected.to(dtype))
    ones = torch.ones(3, dtype=dtype)
    assert torch.equal(
        score_threshold.weight_where_above(at, scores, ones), expected.to(dtype)
    )


def test_nan_scores_are_kept_by_forward_and_mode():
    nan = torch.full((3,), torch.nan)
    for draw in (
        functional.bernoulli,
        torch.vmap(functional.bernoulli, randomness="different"),
    ):
        assert torch.equal(draw(nan), torch.ones(3))
    layer = masktorch.wrap(
        torch.nn.Linear(2, 1), init=lambda w: torch.full_like(w, torch.nan)
    )
    assert torch.equal(layer.weight, layer._parameters["weight"])
    assert masktorch.masks(layer)["weight"].all()


@FUSED
@pytest.mark.parametrize("at", [5e-3, -0.3])
def test_piggyback(fused, at):
    s, w, grad = tensors()
    out, for_scores, for_weight = run(
        lambda s, **kw: functional.piggyback(s, at, **kw), s, w, grad, fused
    )
    m = (s > at).astype(float)
    np.testing.assert_array_equal(out, w * m)
    np.testing.assert_allclose(for_scores, grad * w, rtol=1e-15)
    np.testing.assert_array_equal(for_weight, grad * m)


def relaxed(function, s, grad, u, monkeypatch):
    """A relaxed mask and the gradient of its scores, from given uniform numbers."""
    monkeypatch.setattr(
        random, "_uniform", lambda scores, dtype, generator: torch.tensor(u)
    )
    scores = torch.tensor(s, requires_grad=True)
    mask = function(scores)
    mask.backward(torch.tensor(grad))
    return mask.detach().numpy(), scores.grad.numpy()


@pytest.mark.parametrize(
    ("beta", "gamma", "zeta"), [(2 / 3, -0.1, 1.1), (0.3, -0.5, 2.0)]
)
def test_hard_concrete(beta, gamma, zeta, monkeypatch):
    s, _, grad = tensors(shape=(50, 4))
    u = np.random.default_rng(1).uniform(size=s.shape)
    mask, for_scores = relaxed(
        lambda s: functional.hard_concrete(s, beta, gamma, zeta),
        s,
        grad,
        u,
        monkeypatch,
    )
    y = sigma((np.log(u / (1 - u)) + s) / beta)
    z = np.clip(y * (zeta - gamma) + gamma, 0, 1)
    assert (z == 0).any()
    assert (z == 1).any()
    between = (z > 0) & (z < 1)
    np.testing.assert_allclose(mask, z, rtol=1e-12)
    by_hand = grad * np.where(between, (zeta - gamma) * y * (1 - y) / beta, 0)
    np.testing.assert_allclose(for_scores, by_hand, rtol=1e-10)


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("temperature", [2 / 3, 0.1, 5.0])
def test_concrete(temperature, hard, monkeypatch):
    s, _, grad = tensors(shape=(50, 4))
    u = np.random.default_rng(1).uniform(size=s.shape)
    mask, for_scores = relaxed(
        lambda s: functional.concrete(s, temperature, hard), s, grad, u, monkeypatch
    )
    noisy = np.log(u / (1 - u)) + s
    y = sigma(noisy / temperature)
    if hard:
        np.testing.assert_array_equal(mask, noisy > 0)
    else:
        np.testing.assert_allclose(mask, y, rtol=1e-12)
    np.testing.assert_allclose(
        for_scores, grad * y * (1 - y) / temperature, rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("function", [functional.hard_concrete, functional.concrete])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_relaxed_masks_have_the_dtype_of_their_scores_and_follow_a_generator(
    function, dtype
):
    s = torch.linspace(-3, 3, 60_000).to(dtype).requires_grad_()
    masks = [function(s, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert masks[0].dtype is dtype
    assert torch.equal(*masks)
    assert not torch.equal(masks[0], function(s))
    masks[0].sum().backward()
    assert s.grad.dtype is dtype
    assert s.grad.isfinite().all()
    assert masks[0].detach().double().mean().item() == pytest.approx(0.5, abs=0.01)
