"""Concrete and hard concrete masks: products, chunks and second derivatives."""

import numpy as np
import pytest
import torch

from masktorch import functional
from masktorch._kernels import chunked, random
from tools.by_hand import sigma

BETA, GAMMA, ZETA, TEMPERATURE = 0.6, -0.2, 1.3, 0.7


def numbers(seed, shape=(6, 7)):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.fixture
def u(monkeypatch):
    """What is drawn, in chunks too."""
    u = np.random.default_rng(9).uniform(size=(6, 7))
    monkeypatch.setattr(
        random,
        "_uniform",
        lambda scores, dtype, generator: torch.tensor(u, dtype=dtype),
    )
    return u


def hard(s, **options):
    return functional.concrete(s, TEMPERATURE, **options)


def soft(s, **options):
    return functional.concrete(s, TEMPERATURE, hard=False, **options)


def gates(s, **options):
    return functional.hard_concrete(s, BETA, GAMMA, ZETA, **options)


def by_hand(method, s, u):
    """The mask, its derivative by the scores, and the second one."""
    noisy = s + np.log(u / (1 - u))
    if method is gates:
        y, width = sigma(noisy / BETA), ZETA - GAMMA
        z = np.clip(y * width + GAMMA, 0, 1)
        inside = (z > 0) & (z < 1)
        slope = inside * width * y * (1 - y) / BETA
        return z, slope, slope * (1 - 2 * y) / BETA
    y = sigma(noisy / TEMPERATURE)
    slope = y * (1 - y) / TEMPERATURE
    mask = noisy > 0 if method is hard else y
    return mask, slope, slope * (1 - 2 * y) / TEMPERATURE


each_method = pytest.mark.parametrize("method", [hard, soft, gates])


@each_method
@pytest.mark.parametrize("chunk", [2**17, 5], ids=["whole", "chunks"])
def test_product_and_gradients(method, chunk, u, monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK", chunk)
    s, w, grad = (numbers(seed) for seed in range(3))
    scores, weight = (torch.tensor(a, requires_grad=True) for a in (s, w))
    out = method(scores, weight=weight)
    out.backward(torch.tensor(grad))
    mask, slope, _ = by_hand(method, s, u)
    np.testing.assert_allclose(out.detach(), w * mask, rtol=1e-12)
    np.testing.assert_allclose(weight.grad, grad * mask, rtol=1e-12)
    np.testing.assert_allclose(scores.grad, grad * w * slope, rtol=1e-9, atol=1e-15)


@each_method
def test_the_gradient_is_differentiable_by_everything(method, u):
    s, w, grad, v = (numbers(seed) for seed in range(4))
    inputs = [torch.tensor(a, requires_grad=True) for a in (s, w, grad)]
    out = method(inputs[0], weight=inputs[1])
    (first,) = torch.autograd.grad(out, inputs[0], inputs[2], create_graph=True)
    found = torch.autograd.grad(first, inputs, torch.tensor(v))
    _, slope, second = by_hand(method, s, u)
    for one, expected in zip(
        found, (v * grad * w * second, v * grad * slope, v * w * slope), strict=True
    ):
        np.testing.assert_allclose(one, expected, rtol=1e-9, atol=1e-14)


@each_method
def test_the_weights_gradient_is_differentiable_by_the_scores(method, u):
    s, w, grad, v = (numbers(seed) for seed in range(4))
    scores, weight = (torch.tensor(a, requires_grad=True) for a in (s, w))
    out = method(scores, weight=weight)
    for_weight = torch.autograd.grad(out, weight, torch.tensor(grad), create_graph=True)
    (found,) = torch.autograd.grad(for_weight, scores, torch.tensor(v))
    _, slope, _ = by_hand(method, s, u)
    np.testing.assert_allclose(found, v * grad * slope, rtol=1e-9, atol=1e-15)


@each_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_in_float32_over_a_weight_of_16_bits(method, dtype, u):
    s, w, grad = (numbers(seed) for seed in range(3))
    scores = torch.tensor(s, dtype=torch.float32, requires_grad=True)
    weight, grad = (torch.tensor(a).to(dtype) for a in (w, grad))
    out = method(scores, weight=weight)
    assert out.dtype is dtype
    out.backward(grad)
    assert scores.grad.dtype is torch.float32
    mask, slope, _ = by_hand(method, s, u)
    tolerance = torch.finfo(dtype).eps
    expected = torch.tensor(weight.double().numpy() * mask)
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=1e-6)
    g = weight.double().numpy() * grad.double().numpy()
    np.testing.assert_allclose(scores.grad, g * slope, rtol=2e-5, atol=1e-6)


@each_method
def test_noise_is_finite_for_every_number_drawn(method, monkeypatch):
    for number in (0.0, 1 - 2**-24):
        monkeypatch.setattr(
            random, "_uniform", lambda s, dtype, g, n=number: torch.full_like(s, n)
        )
        scores = torch.zeros(3, requires_grad=True)
        mask = method(scores)
        mask.sum().backward()
        assert mask.tolist() == pytest.approx([round(number)] * 3, abs=1e-6)
        assert scores.grad.isfinite().all()


def test_a_batch_of_scores_at_once():
    scores = torch.tensor([-50.0, 50.0]).repeat(3, 4)
    for method in (hard, soft, gates):
        masks = torch.vmap(method, randomness="different")(scores)
        torch.testing.assert_close(masks, (scores > 0).float())


@pytest.mark.parametrize("temperature", [1e-3, 0.5, 1.0, 3.0, 1e4, 1e8, 1e20])
def test_the_gradient_at_any_temperature(temperature):
    """At `s = 0` the soft mask's slope is `y * (1 - y) / T`, with y its value."""
    torch.manual_seed(0)
    scores = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    mask = functional.concrete(scores, temperature, hard=False)
    mask.sum().backward()
    y = np.float64(mask.item())
    expected = y * (1 - y) / temperature
    assert scores.grad.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("beta", [1e4, 1e8])
def test_the_gradient_of_a_hard_concrete_gate_at_high_temperatures(beta):
    """`y` is almost 1/2: the slope is `1.2 / 4 / beta`."""
    scores = torch.zeros(1, requires_grad=True)
    functional.hard_concrete(scores, beta).sum().backward()
    assert scores.grad.item() == pytest.approx(0.3 / beta, rel=1e-2)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("hard_concrete", {"beta": -1.0}),
        ("hard_concrete", {"beta": float("nan")}),
        ("hard_concrete", {"gamma": 0.2}),
        ("hard_concrete", {"zeta": 0.5}),
        ("piggyback", {"threshold": float("nan")}),
        ("piggyback", {"threshold": float("inf")}),
        ("piggyback", {"threshold": 1e39}),
    ],
)
def test_functions_refuse_the_numbers_that_their_estimators_refuse(function, arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=rf"{function}\(\) expected {name} in "):
        getattr(functional, function)(torch.zeros(2), **arguments)


def test_an_integer_weight_is_refused():
    """Its product would be an integer, without a gradient."""
    scores = torch.zeros(2, requires_grad=True)
    with pytest.raises(TypeError, match=r"floating-point weight, found torch\.int64"):
        functional.threshold(scores, weight=torch.tensor([1, 2]))


@pytest.mark.parametrize("sharpness", [0.4, 0.5, 0.6, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("method", ["concrete", "soft concrete", "hard concrete"])
def test_infinite_scores_decide(method, sharpness):
    """Infinity keeps, minus infinity masks, and neither learns."""
    temperature = 1 / sharpness
    scores = torch.tensor([torch.inf, -torch.inf], requires_grad=True)
    if method == "hard concrete":
        mask = functional.hard_concrete(scores, temperature)
    else:
        mask = functional.concrete(scores, temperature, hard=method == "concrete")
    mask.sum().backward()
    assert mask.tolist() == [1.0, 0.0]
    assert scores.grad.tolist() == [0.0, 0.0]
