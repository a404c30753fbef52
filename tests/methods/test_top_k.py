"""TopK and NOfM: masks against a stable argsort, gradients against their closed forms in numpy."""

import copy
import dataclasses
import io
import math
import pickle
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import masktorch
from masktorch import Concrete, NOfM, TopK, functional
from masktorch._kernels import chunked, top_k

pytestmark = [
    # torch.compile makes an instance of an autograd function while it traces one
    pytest.mark.filterwarnings("ignore:.*should not be instantiated"),
    # what inductor imports
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated"),
]

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SHAPES = [(6, 8), (6, 8, 3), (6, 8, 2, 2)]
BLOCKS = [(1, None), (None, 1), (2, 2), (3, 8), (1, 1), (6, None)]
FUSED = pytest.mark.parametrize("fused", [False, True], ids=["mask", "product"])
ABSOLUTE = pytest.mark.parametrize(
    "absolute", [True, False], ids=["absolute", "signed"]
)


@pytest.fixture(params=["whole", "chunks"])
def size(request, monkeypatch):
    if request.param == "chunks":
        monkeypatch.setattr(chunked, "CHUNK", 6)


@pytest.fixture
def dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def tensors(shape, seed=0):
    """Scores with ties and zeros of both signs, weight and the gradient that arrives, float64."""
    rng = np.random.default_rng(seed)
    s = np.where(
        rng.random(shape) < 0.3,
        np.round(rng.normal(size=shape)),
        rng.normal(size=shape),
    )
    s.flat[:4] = [0.0, -0.0, 1.0, -1.0]
    return s, rng.normal(size=shape), rng.normal(size=shape)


def kept_count(density, n):
    return max(1, math.floor(density * n + 0.5))


def first_of(values, k):
    """The k largest of a flat array, of equal ones the first, by numpy's stable sort."""
    mask = np.zeros(values.size, dtype=bool)
    mask[np.argsort(-values, kind="stable")[:k]] = True
    return mask


def lengths(shape, block):
    return [
        n if length is None else length for n, length in zip(shape, block, strict=False)
    ]


def blocks_of(shape, block):
    """Of each entry the number of its block, blocks numbered row by row."""
    (rows, columns), across = (
        lengths(shape, block),
        shape[1] // lengths(shape, block)[1],
    )
    row, column, *_ = np.indices(shape)
    return (row // rows) * across + column // columns


def topk_by_hand(s, density, absolute=True, block=None):
    v = np.abs(s) if absolute else s
    if block is None:
        return first_of(v.ravel(), kept_count(density, s.size)).reshape(s.shape)
    number = blocks_of(s.shape, block)
    means = np.array([v[number == b].mean() for b in range(number.max() + 1)])
    return first_of(means, kept_count(density, means.size))[number]


def n_of_m_by_hand(s, n, m, absolute=True):
    v = np.moveaxis(np.abs(s) if absolute else s, 1, -1)
    rows = v.reshape(-1, m)
    masks = np.array([first_of(row, n) for row in rows]).reshape(v.shape)
    return np.moveaxis(masks, -1, 1)


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
@pytest.mark.parametrize("block", BLOCKS)
def test_topk_by_blocks(fused, absolute, shape, block):
    s, w, grad = tensors(shape)
    for density in (1e-9, 0.3, 0.5, 1.0):
        out, for_scores, for_weight = run(
            lambda s, density=density, **kw: functional.topk(
                s, density, absolute=absolute, block=block, **kw
            ), s, w, grad, fused,
        )  # fmt: skip
        m = topk_by_hand(s, density, absolute, block)
        np.testing.assert_array_equal(out, w * m)
        g, number = grad * w, blocks_of(shape, block)
        mean = np.array([g[number == b].mean() for b in range(number.max() + 1)])[
            number
        ]
        np.testing.assert_allclose(
            for_scores, mean * (sign(s) if absolute else 1), rtol=1e-12
        )
        np.testing.assert_array_equal(for_weight, grad * m)


def test_means_of_blocks_are_compared_in_double_precision():
    scores = torch.tensor([[1.0, 0.0], [1.0, 2.0**-26]])
    assert functional.topk(scores, 0.5, block=(1, None)).tolist() == [[0, 0], [1, 1]]


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
def test_what_is_not_a_number_counts_as_the_largest(absolute):
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


def test_the_counts_that_others_get_wrong():
    """hidden-networks: int((1 - 0.9) * 10) = 0 are dropped; kthvalue and >= keep all ties."""
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
    "block": lambda s, **kw: functional.topk(s, 0.3, block=(2, None), **kw),
    "n of m": functional.n_of_m,
}
each_method = pytest.mark.parametrize("method", METHODS)


@each_method
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_and_dtypes_are_as_contiguous_doubles(
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
def test_the_gradient_of_the_gradient_is_that_of_the_closed_form(method):
    s, w, grad = (torch.tensor(a, requires_grad=True) for a in tensors((4, 8)))
    out = METHODS[method](s, weight=w)
    first = torch.autograd.grad(out, s, grad, create_graph=True)[0]
    (second,) = torch.autograd.grad(first.square().sum(), grad)
    g = grad.detach() * w.detach()
    if method == "block":  # mean over two rows and all columns, twice
        g = g.view(2, 16).mean(1, keepdim=True).expand(2, 16).reshape(4, 8)
    torch.testing.assert_close(second, 2 * g * w.detach())


@each_method
@pytest.mark.parametrize("fused", [False, True], ids=["mask", "product"])
def test_a_batch_of_gradients_is_one_after_the_other(method, fused):
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
def test_transforms_have_the_gradient(method):
    s, w, grad = (torch.tensor(a) for a in tensors((4, 8)))
    found = torch.func.grad(lambda s: (METHODS[method](s, weight=w) * grad).sum())(s)
    leaf = s.clone().requires_grad_()
    (METHODS[method](leaf, weight=w) * grad).sum().backward()
    torch.testing.assert_close(found, leaf.grad)


# The estimators as values

ESTIMATORS = [
    TopK(0.4), TopK(0.4, absolute=False), TopK(0.5, block=(2, None)), TopK(0.3, block=(2, 2)),
    TopK(1.0), NOfM(), NOfM(1, 2, absolute=False),
]  # fmt: skip
each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
X = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))


def network(estimator, **options):
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8))
    return masktorch.wrap(model, estimator, **options)


def test_values():
    assert repr(TopK()) == "TopK(density=0.5, absolute=True, block=None)"
    assert repr(NOfM(1)) == "NOfM(n=1, m=4, absolute=True)"
    for estimator in ESTIMATORS:
        for other in (
            eval(repr(estimator)), copy.deepcopy(estimator), pickle.loads(pickle.dumps(estimator))
        ):  # fmt: skip
            assert other == estimator
            assert hash(other) == hash(estimator)
            assert torch.equal(other.mode(X.view(12, 4)), estimator.mode(X.view(12, 4)))
        assert isinstance(estimator, masktorch.Estimator)
    assert dataclasses.replace(TopK(0.5, absolute=False), density=1) == TopK(
        1.0, absolute=False
    )
    assert repr(TopK(np.float64(0.25))) == repr(TopK(0.25))
    with pytest.raises(TypeError):
        TopK(0.5, False)


@pytest.mark.parametrize(
    ("make", "exception", "message"),
    [
        (lambda: TopK(0), ValueError, "TopK expected a density in (0, 1], found 0."),
        (lambda: TopK(-0.1), ValueError, "found -0.1"),
        (lambda: TopK(1.0000001), ValueError, "found 1.0000001"),
        (lambda: TopK(math.nan), ValueError, "found nan"),
        (lambda: TopK(math.inf), ValueError, "found inf"),
        (lambda: TopK(True), TypeError, "expected a density in (0, 1], found True"),
        (lambda: TopK("0.5"), TypeError, "found '0.5'"),
        (lambda: TopK(None), TypeError, "found None"),
        (lambda: TopK(block=(None, None)), ValueError, "found (None, None)"),
        (lambda: TopK(block=(0, 1)), ValueError, "positive whole numbers or one None"),
        (lambda: TopK(block=(1, -2)), ValueError, "found (1, -2)"),
        (lambda: TopK(block=32), TypeError, "expected block to be (rows, columns)"),
        (lambda: TopK(block=(1,)), TypeError, "found (1,)"),
        (lambda: TopK(block=(1.0, 2)), TypeError, "found (1.0, 2)"),
        (lambda: TopK(block=(True, 2)), TypeError, "found (True, 2)"),
        (lambda: NOfM(5, 4), ValueError, "expected n in [1, 4], found 5"),
        (lambda: NOfM(0, 4), ValueError, "expected n in [1, 4], found 0"),
        (lambda: NOfM(2.0, 4), TypeError, "whole numbers, found n=2.0"),
        (lambda: NOfM("2", 4), TypeError, "whole numbers, found n='2', m=4"),
        (lambda: NOfM(1, True), TypeError, "whole numbers, found n=1, m=True"),
        (lambda: TopK(absolute="no"), TypeError, "absolute to be True or False, found 'no'"),
        (lambda: NOfM(absolute=0), TypeError, "expected absolute to be True or False"),
        (lambda: Concrete(hard=None), TypeError, "Concrete expected hard to be True or False"),
        (lambda: functional.topk(X, 0.5, absolute="no"), TypeError, "topk expected absolute"),
        (lambda: functional.n_of_m(X, absolute=None), TypeError, "n_of_m expected absolute"),
        (lambda: functional.concrete(X, hard=1), TypeError, "concrete expected hard"),
        (lambda: functional.topk(X, 1.5), ValueError, "topk expected a density in (0, 1]"),
        (lambda: functional.topk(X, 0.5, block=(4, None)), ValueError,
         "blocks of (4, None) don't divide shape (6, 8): take others"),
        (lambda: functional.topk(X, 0.5, block=(None, 3)), ValueError, "(None, 3) don't divide"),
        (lambda: functional.topk(X[0], 0.5, block=(1, None)), ValueError, "divide shape (8,)"),
        (lambda: functional.n_of_m(X, 2, 3), ValueError, "shape (6, 8) is no multiple of 3"),
        (lambda: functional.n_of_m(X[0], 2, 4), ValueError, "shape (8,) is no multiple of 4"),
    ],
)  # fmt: skip
def test_what_they_refuse(make, exception, message):
    with pytest.raises(exception, match=re.escape(message)):
        make()


def test_what_does_not_divide_names_the_tensor_and_changes_nothing():
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 6))
    for estimator, name in ((TopK(block=(4, 1)), "1.weight"), (NOfM(2, 4), "0.weight")):
        with pytest.raises(ValueError, match=f"wrap.. can't mask '{name}': .*6"):
            masktorch.wrap(model, estimator)
        assert not any("parametrizations" in n for n, _ in model.named_modules())
    with pytest.raises(ValueError, match=r"wrap.. can't mask '0.bias': "):
        masktorch.wrap(model, TopK(block=(1, None)), bias=True)


@pytest.mark.parametrize(
    ("shape", "fan_in"), [((300, 50), 50), ((80, 10, 5, 5), 250), ((900,), 900)]
)
def test_scores_start_kaiming_uniform_from_the_random_stream(shape, fan_in):
    weight = torch.empty(shape, dtype=torch.float64)
    for estimator in (TopK(), NOfM()):
        torch.manual_seed(3)
        scores = estimator.init(weight)
        torch.manual_seed(3)
        assert torch.equal(scores, estimator.init(weight))
        assert scores.shape == shape
        assert scores.dtype is torch.float64
        bound = math.sqrt(
            6 / ((1 + 5) * fan_in)
        )  # of Kaiming's uniform with slope sqrt(5)
        assert 0.99 * bound < scores.abs().max() < bound
        np.testing.assert_allclose(scores.std(), bound / math.sqrt(3), rtol=0.05)


@each_estimator
def test_a_wrapped_model_computes_with_the_mask_by_hand(estimator):
    model = network(estimator)
    masks = masktorch.masks(model)
    s = model[0].parametrizations.weight.scores.detach().double().numpy()
    if isinstance(estimator, NOfM):
        by_hand = n_of_m_by_hand(s, estimator.n, estimator.m, estimator.absolute)
    else:
        by_hand = topk_by_hand(
            s, estimator.density, estimator.absolute, estimator.block
        )
    np.testing.assert_array_equal(masks["0.weight"], by_hand)
    weight = model[0]._parameters["weight"].detach()
    for mode in (True, False):
        assert torch.equal(model.train(mode)[0].weight, weight * torch.tensor(by_hand))
    masktorch.freeze_mask(model)
    assert torch.equal(model.train()[0].weight, weight * torch.tensor(by_hand))


@each_estimator
def test_the_expected_density_is_the_share_kept(estimator):
    scores = X[:, :4].requires_grad_()
    expected = estimator.expected(scores)
    assert expected.shape == scores.shape
    assert not expected.requires_grad
    torch.testing.assert_close(expected.mean(), estimator.mode(scores).float().mean())


@each_estimator
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", ["random", "ties", "zeros", "ones", "below zero"])
def test_set_masks_to_any_mask_of_the_count(estimator, dtype, start):
    model = network(estimator).to(dtype)
    values = {"random": 1.0, "ties": 1.0, "zeros": 0.0, "ones": 1.0, "below zero": -1.0}
    for trial in range(5):
        torch.manual_seed(trial)
        wanted = masktorch.masks(network(estimator).to(dtype))
        for _, scores in masktorch.named_mask_parameters(model):
            if start == "random":
                scores.data.normal_()
            elif start == "ties":
                scores.data.copy_(torch.randint(-2, 3, scores.shape))
            else:
                scores.data.fill_(values[start])
        before = [
            scores.detach().clone() for scores in masktorch.mask_parameters(model)
        ]
        masks = masktorch.masks(model)
        masktorch.set_masks(model, wanted)
        now = masktorch.masks(model)
        assert all(torch.equal(now[name], mask) for name, mask in wanted.items())
        if start == "random" and dtype in (torch.float32, torch.float64):
            after = masktorch.mask_parameters(
                model
            )  # what was on its side stays, bit for bit
            for name, old, scores in zip(wanted, before, after, strict=True):
                stays = masks[name] == wanted[name]
                assert torch.equal(scores[stays], old[stays])


def test_a_mask_of_the_wrong_count_is_refused_by_both_counts():
    model = network(TopK(0.5))
    masks = masktorch.masks(model)
    scores = [s.detach().clone() for s in masktorch.mask_parameters(model)]
    masks["2.weight"][0, 0] ^= True
    found = int(masks["2.weight"].sum())
    with pytest.raises(
        ValueError,
        match=rf"'2.weight' this mask: TopK.*of 32 .* keeps {found}, the .* 16\)",
    ):
        masktorch.set_masks(model, masks)
    for before, now in zip(scores, masktorch.mask_parameters(model), strict=True):
        assert torch.equal(before, now)
    with pytest.raises(
        ValueError, match=r"'0.weight'.*NOfM\(n=2, m=4.*keeps 32, the .* 16\)"
    ):
        masktorch.set_masks(model := network(NOfM()), {
            name: torch.ones_like(mask) for name, mask in masktorch.masks(model).items()
        })  # fmt: skip
    layer = masktorch.wrap(nn.Linear(4, 2), TopK(0.5, block=(1, None)))
    with pytest.raises(ValueError, match=r"can't give 'weight'.*block=\(1, None"):
        masktorch.set_masks(layer, {"weight": torch.tensor([[1, 0, 0, 1]] * 2).bool()})


@pytest.mark.parametrize("block", [(1, None), (None, 1), (2, None), (1, 1)])
def test_a_mask_of_blocks_has_memory_of_its_own_for_each_entry(block):
    layer = masktorch.wrap(nn.Linear(4, 4), TopK(0.5, block=block))
    masks = masktorch.masks(layer)
    masks["weight"][0, 0] ^= True
    now = masktorch.masks(layer)["weight"]
    assert int((masks["weight"] != now).sum()) == 1


@each_estimator
def test_masks_are_set_where_only_what_is_deterministic_may_run(estimator):
    masks = masktorch.masks(network(estimator))
    model = network(estimator)
    torch.use_deterministic_algorithms(True)
    try:
        masktorch.set_masks(model, masks)
    finally:
        torch.use_deterministic_algorithms(False)
    found = masktorch.masks(model)
    assert all(torch.equal(found[name], mask) for name, mask in masks.items())


def test_tensors_without_entries_have_their_masks_set():
    model = nn.Module()
    model.none = nn.Parameter(torch.empty(0, 3))
    masktorch.wrap(model, TopK(0.5), targets=["none"])
    masktorch.set_masks(model, masktorch.masks(model))
    assert masktorch.report(model).kept == 0


# Lives


@each_estimator
def test_mask_files_copies_and_state_dicts(estimator, tmp_path):
    model = network(estimator)
    masks = masktorch.masks(model)
    masktorch.save_masks(model, tmp_path / "masks.npz")
    other = network(estimator)
    for parameter, same in zip(other.parameters(), model.parameters(), strict=True):
        if not any(parameter is scores for scores in masktorch.mask_parameters(other)):
            parameter.data.copy_(same)
    masktorch.load_masks(other, tmp_path / "masks.npz")
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = network(estimator)
    loaded.load_state_dict(model.state_dict())
    for twin in (
        other,
        copy.deepcopy(model),
        torch.load(buffer, weights_only=False),
        loaded,
    ):
        assert all(
            torch.equal(masks[name], mask)
            for name, mask in masktorch.masks(twin).items()
        )


@each_estimator
def test_checkpointing_recomputes_the_same(estimator):
    model = network(estimator)
    model(X).square().sum().backward()
    expected = [scores.grad.clone() for scores in masktorch.mask_parameters(model)]
    model.zero_grad()
    checkpoint(model, X, use_reentrant=False).square().sum().backward()
    for scores, grad in zip(masktorch.mask_parameters(model), expected, strict=True):
        assert torch.equal(scores.grad, grad)


def test_frozen_masks_follow_the_scores_however_these_change():
    model = masktorch.freeze_mask(network(TopK(0.3)))
    scores = model[0].parametrizations.weight.scores
    for _ in range(20):
        scores.data.numpy()[:] = np.round(
            np.random.default_rng().normal(size=scores.shape), 1
        )
        by_hand = torch.tensor(topk_by_hand(scores.detach().double().numpy(), 0.3))
        assert torch.equal(model[0].weight != 0, by_hand)


def learned(model, x=X):
    model.zero_grad()
    out = model(x)
    out.square().sum().backward()
    return out.detach(), *(scores.grad for scores in masktorch.mask_parameters(model))


@pytest.mark.parametrize(
    ("estimator", "backend"),
    [
        *(
            (estimator, backend)
            for estimator in ESTIMATORS
            for backend in ("eager", "aot_eager")
        ),
        pytest.param(TopK(0.4), "inductor", marks=pytest.mark.slow),
        pytest.param(NOfM(), "inductor", marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_compiled_models_have_the_same_masks_and_gradients(dynamo, estimator, backend):
    model = network(estimator)
    for scores in masktorch.mask_parameters(model):
        scores.data.copy_(
            torch.randint(-2, 3, scores.shape).float() * 0.5
        )  # ties and zeros
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for found, expected in zip(learned(compiled), learned(model), strict=True):
        torch.testing.assert_close(found, expected)
    weight = torch.compile(lambda: model[0].weight, fullgraph=True, backend=backend)
    assert torch.equal(weight(), model[0].weight)
    masktorch.freeze_weights(masktorch.freeze_mask(model), False)
    torch.testing.assert_close(compiled(X), model(X))
    torch.testing.assert_close(compiled.eval()(X), model(X))


@pytest.mark.skipif(
    torch.__version__.startswith("2.6."), reason="it compiles a graph a density"
)
@pytest.mark.parametrize(
    ("options", "backend", "dynamic"),
    [
        ({}, "aot_eager", None),
        ({}, "aot_eager", False),
        (dict(block=(2, None)), "aot_eager", None),
        (dict(absolute=False), "eager", False),
    ],
    ids=str,
)
def test_a_schedule_of_densities_compiles_at_most_four_graphs(
    dynamo, options, backend, dynamic
):
    from torch._dynamo.testing import CompileCounterWithBackend

    model = network(TopK(**options))
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=dynamic)
    for density in (1.0, 0.9, 0.8, 0.65, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05):
        masktorch.set_estimator(model, TopK(density, **options))
        for found, expected in zip(learned(compiled), learned(model), strict=True):
            torch.testing.assert_close(found, expected)
    assert counter.frame_count <= 4


def test_a_density_in_the_code_of_a_user_compiles_at_most_four_graphs_too(dynamo):
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(functional.topk, fullgraph=True, backend=counter)
    scores = torch.randn(20)
    for density in (1.0, 0.9, 0.8, 0.65, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05):
        assert torch.equal(compiled(scores, density), functional.topk(scores, density))
    assert counter.frame_count <= 4


def test_training_moves_the_mask_and_keeps_its_count():
    model = network(TopK(0.25))
    before = masktorch.masks(model)
    opt = torch.optim.SGD(masktorch.mask_parameters(model), lr=0.1, momentum=0.9)
    first = learned(model)[0].square().sum()
    for _ in range(30):
        loss = learned(model)[0].square().sum()
        opt.step()
    after = masktorch.masks(model)
    assert loss < first
    assert all(after[name].sum() == before[name].sum() for name in before)
    assert any(not torch.equal(after[name], before[name]) for name in before)


def test_scores_do_not_leak_between_models_of_the_same_memory():
    """A guess is bound to an address, which another tensor may get: it must not be believed."""
    for trial in range(50):
        torch.manual_seed(trial)
        scores = torch.round(torch.randn(40), decimals=1)
        expected = topk_by_hand(scores.double().numpy(), 0.3)
        assert TopK(0.3).mode(scores).numpy().tolist() == expected.tolist()
        del scores
    assert len(top_k._last) <= top_k._LAST
