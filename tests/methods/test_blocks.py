"""Blocks: masks and gradients of every inner estimator against closed forms."""

import copy
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

import masktorch
from masktorch import (
    Bernoulli,
    Blocks,
    Concrete,
    ConcreteNOfM,
    HardConcrete,
    IntermediateSampling,
    NOfM,
    Piggyback,
    Threshold,
    TopK,
)
from masktorch._kernels import random
from masktorch._methods import concrete_n_of_m
from tools.by_hand import blocks_of, n_of_m_by_hand, sigma, topk_by_hand

SHAPES = [(6, 8), (6, 8, 3), (6, 8, 2, 2)]
BLOCKS = [(1, None), (None, 1), (2, 2), (3, 8), (1, 1), (6, None), (None, None)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
each_block = pytest.mark.parametrize("block", BLOCKS, ids=str)
FUSED = pytest.mark.parametrize("fused", [False, True], ids=["mask", "product"])


def grid(shape, block):
    """The shape of block scores."""
    lengths = [
        size if length is None else length
        for size, length in zip(shape, block, strict=False)
    ]
    return (shape[0] // lengths[0], shape[1] // lengths[1], *[1] * (len(shape) - 2))


def spread(values, shape, block):
    """An array with one entry per block, repeated over the weight."""
    return np.asarray(values).ravel()[blocks_of(shape, block)]


def sums(g, block):
    """The sum of g over each block, in the shape of block scores."""
    number = blocks_of(g.shape, block)
    total = [g[number == b].sum() for b in range(number.max() + 1)]
    return np.array(total).reshape(grid(g.shape, block))


def run(estimator, s, w, grad, fused):
    """weight * mask, and the gradients of scores and weight."""
    scores, weight = (torch.tensor(a, requires_grad=True) for a in (s, w))
    out = estimator.product(scores, weight) if fused else weight * estimator(scores)
    out.backward(torch.tensor(grad))
    return out.detach().numpy(), scores.grad.numpy(), weight.grad.numpy()


def tensors(shape, block, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=grid(shape, block)),
        rng.normal(size=shape),
        rng.normal(size=shape),
    )


# Of deterministic inner estimators: the mask, and the rule given the summed gradient.

DETERMINISTIC = {
    Threshold(0.6): (
        lambda s: sigma(s) > 0.6,
        lambda s, g: g * sigma(s) * (1 - sigma(s)),
    ),
    Piggyback(0.1): (lambda s: s > 0.1, lambda s, g: g),
    TopK(0.4): (lambda s: topk_by_hand(s, 0.4), lambda s, g: g * np.sign(s)),
    TopK(0.4, absolute=False): (
        lambda s: topk_by_hand(s, 0.4, absolute=False),
        lambda s, g: g,
    ),
}


@FUSED
@each_shape
@each_block
@pytest.mark.parametrize("inner", DETERMINISTIC, ids=repr)
def test_deterministic_masks(inner, block, shape, fused):
    mask_of, rule = DETERMINISTIC[inner]
    s, w, grad = tensors(shape, block)
    out, for_scores, for_weight = run(Blocks(inner, block), s, w, grad, fused)
    m = spread(mask_of(s), shape, block)
    np.testing.assert_array_equal(out, w * m)
    np.testing.assert_allclose(
        for_scores, rule(s, sums(grad * w, block)), rtol=1e-10, atol=1e-12
    )
    np.testing.assert_array_equal(for_weight, grad * m)


@FUSED
@pytest.mark.parametrize("block", [(1, None), (None, 1), (2, 2)], ids=str)
def test_bernoulli(block, fused):
    s, w, grad = tensors((6, 8), block)
    out, for_scores, for_weight = run(Blocks(Bernoulli(), block), s, w, grad, fused)
    m = out / w
    assert set(np.unique(m)) <= {0.0, 1.0}
    share = sums(m, block) / (m.size / s.size)  # kept of each block: all or nothing
    np.testing.assert_allclose(m, spread(share, w.shape, block))
    g = sums(grad * w, block)
    np.testing.assert_allclose(for_scores, g * sigma(s) * (1 - sigma(s)), rtol=1e-10)
    np.testing.assert_allclose(for_weight, grad * m)


@FUSED
@pytest.mark.parametrize("block", [(1, None), (2, 2)], ids=str)
def test_intermediate_sampling_steps_by_the_root_mean_square_over_blocks(block, fused):
    s, w, grad = tensors((6, 8), block)
    estimator = Blocks(IntermediateSampling(0.3), block)
    out, for_scores, _ = run(estimator, s, w, grad, fused)
    g = sums(grad * w, block)
    drawn = sums(out / w, block) > 0
    x = np.clip(0.3 * g / np.sqrt((g**2).mean()), -0.5, 0.5)
    q = np.where(drawn, 1 / (1 + x), -x / (1 - x))
    np.testing.assert_allclose(for_scores, sigma(s) - q, rtol=1e-9, atol=1e-12)


@FUSED
@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("block", [(1, None), (2, 4)], ids=str)
def test_concrete(block, hard, fused, monkeypatch):
    s, w, grad = tensors((6, 8), block)
    u = np.random.default_rng(1).uniform(size=s.shape)
    monkeypatch.setattr(
        random, "_uniform", lambda scores, dtype, generator: torch.tensor(u)
    )
    estimator = Blocks(Concrete(0.7, hard), block)
    out, for_scores, for_weight = run(estimator, s, w, grad, fused)
    noisy = s + np.log(u / (1 - u))
    y = sigma(noisy / 0.7)
    m = spread(noisy > 0 if hard else y, w.shape, block)
    np.testing.assert_allclose(out, w * m, rtol=1e-10)
    by_hand = sums(grad * w, block) * y * (1 - y) / 0.7
    np.testing.assert_allclose(for_scores, by_hand, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(for_weight, grad * m, rtol=1e-10)


@FUSED
def test_hard_concrete(fused, monkeypatch):
    block = (1, None)
    s, w, grad = tensors((6, 8), block)
    u = np.random.default_rng(1).uniform(size=s.shape)
    monkeypatch.setattr(
        random, "_uniform", lambda scores, dtype, generator: torch.tensor(u)
    )
    out, for_scores, _ = run(Blocks(HardConcrete(), block), s, w, grad, fused)
    y = sigma((np.log(u / (1 - u)) + s) / (2 / 3))
    z = np.clip(y * 1.2 - 0.1, 0, 1)
    np.testing.assert_allclose(out, w * spread(z, w.shape, block), rtol=1e-10)
    slope = np.where((z > 0) & (z < 1), 1.2 * y * (1 - y) / (2 / 3), 0)
    by_hand = sums(grad * w, block) * slope
    np.testing.assert_allclose(for_scores, by_hand, rtol=1e-9, atol=1e-12)


@FUSED
def test_n_of_m_of_blocks(fused):
    """Of every 4 tiles of 2 rows and 1 column, the 2 with the largest scores."""
    block = (2, 1)
    s, w, grad = tensors((6, 8), block)
    out, for_scores, _ = run(Blocks(NOfM(2, 4), block), s, w, grad, fused)
    m = spread(n_of_m_by_hand(s, 2, 4), w.shape, block)
    np.testing.assert_array_equal(out, w * m)
    np.testing.assert_allclose(for_scores, sums(grad * w, block) * np.sign(s))


@FUSED
def test_concrete_n_of_m_of_blocks(fused, monkeypatch):
    """Scores have the shape of the inner estimator: 6 patterns for every 4 blocks."""
    rng = np.random.default_rng(0)
    block, s = (2, 1), rng.normal(size=(3, 2, 6))
    w, grad, u = (
        rng.normal(size=(6, 8)),
        rng.normal(size=(6, 8)),
        rng.uniform(size=s.shape),
    )
    monkeypatch.setattr(
        concrete_n_of_m, "uniform_like", lambda s, generator: torch.tensor(u)
    )
    estimator = Blocks(ConcreteNOfM(2, 4), block)
    assert estimator.init(torch.randn(6, 8)).shape == s.shape
    out, for_scores, _ = run(estimator, s, w, grad, fused)
    patterns = np.array([[j in p for j in range(4)] for p in PAIRS], float)
    logits = s - np.log(-np.log(u))
    y = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    m = (y @ patterns).reshape(3, 8)
    np.testing.assert_allclose(out, w * spread(m, w.shape, block), rtol=1e-10)
    g = sums(grad * w, block).reshape(3, 2, 4) @ patterns.T
    by_hand = y * (g - (g * y).sum(-1, keepdims=True))
    np.testing.assert_allclose(for_scores, by_hand, rtol=1e-9, atol=1e-12)


PAIRS = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


INNER = [
    *DETERMINISTIC,
    Bernoulli(),
    IntermediateSampling(),
    Concrete(),
    Concrete(hard=False),
    HardConcrete(),
    NOfM(1, 2),
    ConcreteNOfM(1, 2),
]
each_inner = pytest.mark.parametrize("inner", INNER, ids=repr)


@each_inner
@pytest.mark.parametrize("block", [(1, None), (2, 2), (1, 1)], ids=str)
@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 2, 2)], ids=str)
def test_every_member_is_that_of_the_inner_estimator_repeated(inner, block, shape):
    if block == (1, None) and isinstance(inner, NOfM | ConcreteNOfM):
        block = (1, 2)  # groups need several blocks along dimension 1
    estimator = Blocks(inner, block)
    scores = inner.init(torch.empty(grid(shape, block))).normal_()

    def repeated(mask):
        return torch.tensor(spread(mask.detach().numpy(), shape, block))

    weight = torch.randn(shape)
    mode = inner.mode(scores)
    assert torch.equal(estimator.mode(scores).expand(shape), repeated(mode))
    assert torch.equal(estimator.mode_product(scores, weight), weight * repeated(mode))
    assert estimator.draws == inner.draws
    for name in ("expected", "sample", "__call__"):
        torch.manual_seed(5)
        found = getattr(estimator, name)(scores) if hasattr(estimator, name) else None
        torch.manual_seed(5)
        if hasattr(inner, name):
            one = getattr(inner, name)(scores)
        else:
            one = inner(scores) > 0 if name == "sample" else inner(scores)
        assert torch.equal(found.expand(shape), repeated(one))
    given = repeated(inner.mode(inner.init(torch.empty(grid(shape, block))).normal_()))
    moved = estimator.scores_for(scores, given)
    assert torch.equal(estimator.mode(moved).expand(shape), given)


@each_inner
@pytest.mark.parametrize("shape", [(8, 4), (8, 4, 3)], ids=str)
def test_a_models_life(inner, shape, tmp_path):
    """Wrap, train, set, save, copy, freeze and bake a layer with blocks."""
    block = (2, 1) if isinstance(inner, NOfM | ConcreteNOfM) else (1, None)
    model = nn.Module()
    model.weight = nn.Parameter(torch.randn(shape))
    masktorch.wrap(model, Blocks(inner, block), targets=["weight"])
    scores = model.parametrizations.weight.scores
    assert scores.numel() < model._parameters["weight"].numel()
    assert report_counts_whole_blocks(model, block)
    model.weight.square().sum().backward()
    assert scores.grad.shape == scores.shape
    opt = torch.optim.SGD(masktorch.mask_parameters(model), lr=1e-5)
    opt.step()
    for mask in (masktorch.masks(model), masktorch.sample_masks(model)):
        assert mask["weight"].shape == shape
    masktorch.set_masks(model, masktorch.masks(model))
    masktorch.save_masks(model, tmp_path / "masks.npz")
    twin = copy.deepcopy(model)
    masktorch.load_masks(twin, tmp_path / "masks.npz")
    assert torch.equal(
        masktorch.masks(twin)["weight"], masktorch.masks(model)["weight"]
    )
    with torch.no_grad():
        used = masktorch.freeze_mask(model).eval().weight
    assert torch.equal(masktorch.unwrap(model).weight, used)


def report_counts_whole_blocks(model, block):
    (row,) = masktorch.report(model).rows
    weight = model._parameters["weight"]
    return (
        row.size == weight.numel()
        and row.kept % (row.size // math.prod(grid(row.shape, block))) == 0
    )


def test_the_inner_init_sees_the_blockwise_means_of_magnitudes():
    seen = []

    class Seeing(Threshold):
        def init(self, weight):
            seen.append(weight)
            return super().init(weight)

    weight = torch.randn(4, 6, 3, dtype=torch.float64)
    Blocks(Seeing(), (2, None)).init(weight)
    expected = weight.abs().view(2, 2, 6, 3).mean((1, 2, 3)).view(2, 1, 1)
    torch.testing.assert_close(seen[0], expected)


def test_an_init_of_the_weights_shape_is_reduced_to_means():
    layer = nn.Conv2d(4, 6, 3)
    estimator = Blocks(TopK(0.5), (1, None))
    masktorch.wrap(layer, estimator, init=lambda w: w.abs())
    scores = layer.parametrizations.weight.scores
    weight = layer._parameters["weight"]
    torch.testing.assert_close(
        scores, weight.abs().mean((1, 2, 3), keepdim=True), check_layout=True
    )
    layer = masktorch.wrap(nn.Conv2d(4, 6, 3), estimator, init=0.25)
    assert torch.equal(
        layer.parametrizations.weight.scores, torch.full((6, 1, 1, 1), 0.25)
    )
    own = masktorch.wrap(
        nn.Conv2d(4, 6, 3), estimator, init=lambda w: torch.ones(6, 1, 1, 1)
    )
    assert own.parametrizations.weight.scores.shape == (6, 1, 1, 1)


def test_means_are_taken_in_double_precision():
    weight = torch.full((1, 2**20), 0.1)
    mean = Blocks(TopK(), (1, None)).block_means(weight)
    assert mean.item() == torch.tensor(0.1).item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_and_their_gradient_are_float32_over_16_bits(dtype):
    layer = nn.Linear(64, 8, bias=False).to(dtype)
    masktorch.wrap(layer, Blocks(Piggyback(), (1, None)))
    weight = layer._parameters["weight"].detach()
    out = layer.weight
    assert out.dtype is dtype
    grad = torch.randn(8, 64).to(dtype)
    out.backward(grad)
    scores = layer.parametrizations.weight.scores
    assert scores.grad.dtype is torch.float32
    exact = (grad.double() * weight.double()).sum(1, keepdim=True)
    torch.testing.assert_close(scores.grad.double(), exact, rtol=1e-5, atol=1e-5)


def test_set_density_counts_blocks():
    model = masktorch.wrap(nn.Linear(6, 10), Blocks(TopK(0.5), (1, None)))
    masktorch.set_density(model, 0.3)
    mask = masktorch.masks(model)["weight"]
    assert mask.all(1).sum() == 3
    assert mask.sum() == 18
    estimator = model.parametrizations.weight.estimator
    assert estimator == Blocks(TopK(0.3), (1, None))


def test_a_mask_that_is_not_constant_on_blocks_names_the_tensor():
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2))
    masktorch.wrap(model, Blocks(Threshold(), (1, None)))
    masks = masktorch.masks(model)
    masks["1.weight"] = torch.eye(2, dtype=torch.bool)
    message = (
        r"'1.weight'.*not constant on blocks of \(1, None\): 2 of 2 are kept in part"
    )
    with pytest.raises(ValueError, match=message):
        masktorch.set_masks(model, masks)


@pytest.mark.parametrize(
    ("model", "block", "options", "message"),
    [
        (
            nn.Linear(6, 4),
            (3, None),
            {},
            "'weight': blocks of (3, None) do not divide shape (4, 6): 4 is no "
            "multiple of 3",
        ),
        (
            nn.Linear(6, 4),
            (None, 4),
            {},
            "'weight': blocks of (None, 4) do not divide shape (4, 6): 6 is no "
            "multiple of 4",
        ),
        (
            nn.Linear(6, 4),
            (1, None),
            {"bias": True},
            "'bias': blocks need two dimensions or more, found shape (4,)",
        ),
    ],
)
def test_blocks_that_do_not_fit_are_refused_by_name(model, block, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        masktorch.wrap(model, Blocks(Threshold(), block), **options)
    assert not hasattr(model, "parametrizations")


def test_budgets_refuse_blocks():
    model = masktorch.wrap(nn.Linear(6, 4), Blocks(TopK(0.5), (1, None)))
    for allocate in (masktorch.budget.overall, masktorch.budget.erk):
        with pytest.raises(ValueError, match="has blocks in 'weight'"):
            allocate(model, 0.5)


class OfUsers:
    """An estimator with the two methods only."""

    def __call__(self, scores):
        return torch.sigmoid(scores)

    def mode(self, scores):
        return scores > 0


def test_an_estimator_of_the_users_with_two_methods_only():
    layer = masktorch.wrap(nn.Linear(4, 6), Blocks(OfUsers(), (2, None)))
    scores = layer.parametrizations.weight.scores
    assert torch.equal(scores, torch.ones(3, 1))
    layer.weight.sum().backward()
    weight = layer._parameters["weight"].detach()
    summed = weight.view(3, 8).sum(1, keepdim=True)
    slope = torch.sigmoid(torch.ones(3, 1)) * torch.sigmoid(-torch.ones(3, 1))
    torch.testing.assert_close(scores.grad, summed * slope)
    wanted = torch.tensor([1, 1, 0, 0, 1, 1]).bool().view(6, 1).expand(6, 4)
    masktorch.set_masks(layer, {"weight": wanted})
    assert torch.equal(masktorch.masks(layer)["weight"], wanted)


def test_vmap_and_grad_transforms():
    estimator = Blocks(Threshold(), (2, None))
    s, w = torch.randn(5, 3, 1), torch.randn(5, 6, 4)
    batch = torch.vmap(estimator.product)(s, w)
    each = [estimator.product(*pair) for pair in zip(s, w, strict=True)]
    assert torch.equal(batch, torch.stack(each))
    found = torch.func.grad(lambda s: estimator.product(s, w[0]).sum())(s[0])
    leaf = s[0].clone().requires_grad_()
    estimator.product(leaf, w[0]).sum().backward()
    torch.testing.assert_close(found, leaf.grad)


def test_channels_last_weights_stay_channels_last():
    layer = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    masktorch.wrap(layer, Blocks(Threshold(), (1, None)))
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert layer.eval().weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
@pytest.mark.parametrize(
    "inner", [Threshold(), Bernoulli(), ConcreteNOfM(1, 2)], ids=repr
)
def test_compiled_as_eager(dynamo, inner):
    block = (2, 1) if isinstance(inner, ConcreteNOfM) else (2, None)
    layer = masktorch.wrap(nn.Linear(4, 6), Blocks(inner, block))
    x = torch.randn(3, 4)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    compiled(x).square().sum().backward()
    assert layer.parametrizations.weight.scores.grad.isfinite().all()
    torch.testing.assert_close(compiled.eval()(x), layer(x))
