"""ConcreteNOfM: patterns against enumeration, gradients against closed forms."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import masktorch
from masktorch import ConcreteNOfM, NOfM, functional
from masktorch._methods import concrete_n_of_m


def patterns(n, m):
    kept = itertools.combinations(range(m), n)
    return np.array([[j in p for j in range(m)] for p in kept], float)


def by_groups(masks, m):
    """Entries of each group last: (rows, groups, kernel positions..., m)."""
    shape = masks.shape
    return np.moveaxis(masks.reshape(shape[0], -1, m, *shape[2:]), 2, -1)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


N_OF_M = [(2, 4), (1, 2), (1, 4), (3, 4), (2, 8), (4, 4)]
each_n_of_m = pytest.mark.parametrize(("n", "m"), N_OF_M, ids=str)
KERNELS = pytest.mark.parametrize("kernel", [(), (3,), (2, 2)], ids=str)


@each_n_of_m
@KERNELS
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_masks_and_gradients(n, m, kernel, hard, fused, monkeypatch):
    rng = np.random.default_rng(0)
    table, temperature, scale = patterns(n, m), 0.7, 1.5
    s = rng.normal(size=(3, 2, *kernel, len(table)))
    w, grad = rng.normal(size=(2, 3, 2 * m, *kernel))
    u = rng.uniform(size=s.shape)
    monkeypatch.setattr(
        concrete_n_of_m, "uniform_like", lambda s, generator: torch.tensor(u)
    )
    scores, weight = (torch.tensor(a, requires_grad=True) for a in (s, w))

    def mask(**options):
        return functional.concrete_n_of_m(
            scores, n, m, temperature, scale, hard, **options
        )

    out = mask(weight=weight) if fused else weight * mask()
    out.backward(torch.tensor(grad))

    logits = scale * s - np.log(-np.log(u))
    y = softmax(logits / temperature)
    one_hot = np.eye(len(table))[logits.argmax(-1)]
    entries = (one_hot if hard else y) @ table
    np.testing.assert_allclose(
        by_groups(out.detach().numpy(), m), by_groups(w, m) * entries, rtol=1e-10
    )
    g = by_groups(grad * w, m) @ table.T
    by_hand = scale / temperature * y * (g - (g * y).sum(-1, keepdims=True))
    np.testing.assert_allclose(scores.grad, by_hand, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        by_groups(weight.grad.numpy(), m), by_groups(grad, m) * entries, rtol=1e-10
    )


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 3)], ids=str)
def test_patterns_are_drawn_with_the_probabilities_of_their_softmax(n, m):
    """50,000 draws of each group against enumeration, within 5 standard deviations."""
    draws, table = 50_000, patterns(n, m)
    rng = np.random.default_rng(0)
    s, scale = rng.normal(size=len(table)), 1.3
    p = softmax(scale * s)
    scores = torch.tensor(s).expand(draws, 1, -1)
    for masks in (
        ConcreteNOfM(n, m, temperature=3.0, scale=scale).sample(scores),
        functional.concrete_n_of_m(scores, n, m, 0.4, scale, hard=True) > 0,
    ):
        found = (masks.numpy()[:, None] == (table > 0)).all(-1).mean(0)
        assert found.sum() == pytest.approx(1)
        assert (np.abs(found - p) < 5 * np.sqrt(p * (1 - p) / draws)).all()


@each_n_of_m
@KERNELS
def test_evaluation_and_samples_keep_exactly_n_of_m(n, m, kernel):
    estimator = ConcreteNOfM(n, m, scale=100.0)
    weight = torch.randn(4, 2 * m, *kernel)
    scores = estimator.init(weight)
    assert scores.shape == (4, 2, *kernel, math.comb(m, n))
    largest = scores.numpy().argmax(-1)
    mode = estimator.mode(scores)
    np.testing.assert_array_equal(by_groups(mode.numpy(), m), patterns(n, m)[largest])
    for mask in (mode, estimator.sample(scores)):
        assert mask.dtype is torch.bool
        assert mask.shape == weight.shape
        assert (by_groups(mask.numpy(), m).sum(-1) == n).all()


def test_scores_start_at_a_normal_distribution_from_the_random_stream():
    estimator = ConcreteNOfM()
    weight = torch.randn(300, 40)
    torch.manual_seed(3)
    scores = estimator.init(weight)
    torch.manual_seed(3)
    assert torch.equal(scores, estimator.init(weight))
    assert scores.std().item() == pytest.approx(0.01, rel=0.02)
    assert abs(scores.mean().item()) < 2e-4
    assert estimator.init(weight.bfloat16()).dtype is torch.float32


@each_n_of_m
def test_the_expected_mask_is_that_of_hard_draws(n, m):
    scores = torch.randn(1, 2, math.comb(m, n), dtype=torch.float64)
    expected = ConcreteNOfM(n, m, temperature=9.0, scale=1.3).expected(scores)
    p = softmax(1.3 * scores.numpy())
    np.testing.assert_allclose(by_groups(expected.numpy(), m), p @ patterns(n, m))


@each_n_of_m
@KERNELS
@pytest.mark.parametrize("start", ["init", "ties", "zeros", "large", "not finite"])
def test_a_given_mask_is_a_prior(n, m, kernel, start):
    estimator = ConcreteNOfM(n, m)
    weight = torch.randn(4, 2 * m, *kernel)
    scores = estimator.init(weight)
    if start == "ties":
        scores = scores.round(decimals=2)
    elif start == "zeros":
        scores.zero_()
    elif start == "large":
        scores = (scores * 1e3).round() * 1e30
    elif start == "not finite":
        scores[0, 0] = torch.inf
        scores[1, 0] = torch.nan
    wanted = NOfM(n, m).mode(weight)
    moved = estimator.scores_for(scores, wanted)
    assert torch.equal(estimator.mode(moved), wanted)
    if start == "init":
        stays = (estimator.mode(scores) == wanted).view(4, 2, m, -1).all((2, 3))
        assert torch.equal(moved[stays], scores[stays])
        # Learning can still change it: at the usual scale of 100 the odds are finite.
        odds = (100 * moved).softmax(-1).amax(-1)
        assert (odds[..., None] < 0.9999).all() or math.comb(m, n) == 1


def test_a_mask_that_is_not_n_of_m_is_refused():
    layer = masktorch.wrap(nn.Linear(8, 2), ConcreteNOfM(2, 4))
    wanted = torch.tensor([[1, 1, 0, 0, 1, 1, 1, 0]] * 2).bool()
    message = r"'weight'.*exactly 2 of every 4 .*, the mask 3 of a group.*NOfM\(2, 4\)"
    with pytest.raises(ValueError, match=message):
        masktorch.set_masks(layer, {"weight": wanted})


def test_a_models_life(tmp_path):
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(32, 4))
    masktorch.wrap(model, ConcreteNOfM(scale=100.0, temperature=4.0))
    x, opt = torch.randn(8, 4, 4, 4), torch.optim.Adam(masktorch.mask_parameters(model))
    for step in range(20):
        progress = step / 19
        masktorch.set_estimator(
            model,
            ConcreteNOfM(
                temperature=4.0 * (0.05 / 4.0) ** progress, scale=100 + 400 * progress
            ),
        )
        opt.zero_grad()
        model(x).square().mean().backward()
        assert all(s.grad.isfinite().all() for s in masktorch.mask_parameters(model))
        opt.step()
    for masks in (masktorch.masks(model), masktorch.sample_masks(model)):
        for mask in masks.values():
            assert (by_groups(mask.numpy(), 4).sum(-1) == 2).all()
    assert masktorch.report(model).density == 0.5
    assert masktorch.expected_density(model).item() == pytest.approx(0.5)
    masktorch.save_masks(model, tmp_path / "masks.npz")
    masktorch.load_masks(model, tmp_path / "masks.npz")
    baked = masktorch.unwrap(model)
    assert (baked[2].weight.detach().view(4, 8, 4) != 0).sum(-1).eq(2).all()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
def test_compiled_as_eager(dynamo):
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4))
    masktorch.wrap(model, ConcreteNOfM(hard=True))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 8)
    compiled(x).square().sum().backward()
    assert all(s.grad.isfinite().all() for s in masktorch.mask_parameters(model))
    torch.testing.assert_close(compiled.eval()(x), model(x))


@pytest.mark.skipif(
    torch.__version__.startswith("2.6."), reason="it compiles a graph a number"
)
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
def test_a_schedule_compiles_at_most_four_graphs(dynamo):
    layer = masktorch.wrap(nn.Linear(8, 4), ConcreteNOfM())
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for step in range(8):
        temperature, scale = 4.0 * 0.6**step, 100.0 + 50 * step
        masktorch.set_estimator(
            layer, ConcreteNOfM(temperature=temperature, scale=scale)
        )
        compiled(torch.randn(3, 8)).square().sum().backward()
    assert counter.frame_count <= 4


def test_autocast_does_not_round_the_mask():
    layer = masktorch.wrap(nn.Linear(8, 4, bias=False), ConcreteNOfM())
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer.weight
    torch.manual_seed(1)
    assert torch.equal(found, layer.weight)


@pytest.mark.parametrize(
    ("make", "exception", "message"),
    [
        (
            lambda: ConcreteNOfM(5, 4),
            ValueError,
            "ConcreteNOfM expected n in [1, 4], found 5",
        ),
        (lambda: ConcreteNOfM(2.0, 4), TypeError, "whole numbers, found n=2.0"),
        (lambda: ConcreteNOfM(2, None), TypeError, "whole numbers, found n=2, m=None"),
        (
            lambda: ConcreteNOfM(5, 11),
            ValueError,
            "at most 256 patterns, there are more of 5 in 11",
        ),
        (lambda: ConcreteNOfM(500_000, 1_000_000), ValueError, "at most 256 patterns"),
        (
            lambda: ConcreteNOfM(temperature=0),
            ValueError,
            "temperature in (0, inf), found 0",
        ),
        (lambda: ConcreteNOfM(scale=-1.0), ValueError, "scale in (0, inf), found -1.0"),
        (lambda: ConcreteNOfM(hard=1), TypeError, "hard to be True or False, found 1"),
        (
            lambda: ConcreteNOfM().mode(torch.zeros(2, 4, 5)),
            ValueError,
            "found (2, 4, 5)",
        ),
        (
            lambda: ConcreteNOfM().init(torch.zeros(2, 6)),
            ValueError,
            "shape (2, 6) is no multiple of 4",
        ),
        (
            lambda: ConcreteNOfM().init(torch.zeros(8)),
            ValueError,
            "shape (8,) has no dimension 1",
        ),
        (
            lambda: functional.concrete_n_of_m(torch.zeros(2, 6)),
            ValueError,
            "found (2, 6)",
        ),
    ],
)
def test_arguments_that_are_refused(make, exception, message):
    with pytest.raises(exception, match=re.escape(message)):
        make()


def test_as_many_patterns_as_allowed():
    assert ConcreteNOfM(1, 256).init(torch.zeros(1, 256)).shape == (1, 1, 256)
    assert ConcreteNOfM(5, 10).init(torch.zeros(1, 10)).shape == (1, 1, 252)
