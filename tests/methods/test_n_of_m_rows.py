"""NOfM with large groups and whole rows: against a stable sort of each group."""

import re
import time

import numpy as np
import pytest
import torch
from torch import nn

import masktorch
from masktorch import NOfM, functional
from masktorch._kernels import chunked
from tools.by_hand import n_of_m_by_hand

SPECIAL = [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0]
ABSOLUTE = pytest.mark.parametrize("absolute", [True, False])


def by_sorting(scores, n, m, absolute):
    """NaN ranks largest, -0.0 equals 0.0, ties go to the lower index."""
    v = np.abs(scores) if absolute else scores
    v = np.where(np.isnan(v), np.inf, v + 0.0)
    is_nan = np.isnan(scores)
    groups = np.moveaxis(v.reshape(len(v), -1, m, *v.shape[2:]), 2, -1)
    nan = np.moveaxis(is_nan.reshape(len(v), -1, m, *v.shape[2:]), 2, -1)
    index = np.broadcast_to(np.arange(m), groups.shape)
    order = np.lexsort((index, -groups, ~nan), axis=-1)
    mask = np.zeros(groups.shape, bool)
    np.put_along_axis(mask, order[..., :n], True, axis=-1)
    return np.moveaxis(mask, -1, 2).reshape(scores.shape)


@ABSOLUTE
@pytest.mark.parametrize("kernel", [(), (3,), (2, 2)], ids=str)
@pytest.mark.parametrize("m", [1, 2, 4, 8, 9, 16, 48])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("chunk", [2**17, 50])
def test_masks(m, kernel, absolute, ties, chunk, monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK", chunk)
    rng = np.random.default_rng(m)
    shape = (5, 3 * m, *kernel)
    scores = rng.choice(SPECIAL, shape) if ties else rng.normal(size=shape)
    for n in {1, (m + 1) // 2, m}:
        found = NOfM(n, m, absolute=absolute).mode(torch.tensor(scores))
        np.testing.assert_array_equal(found, by_sorting(scores, n, m, absolute))


@ABSOLUTE
@pytest.mark.parametrize("kernel", [(), (2, 2)], ids=str)
def test_none_is_the_whole_of_dimension_1_at_each_kernel_position(kernel, absolute):
    scores = np.random.default_rng(0).normal(size=(5, 24, *kernel))
    found = NOfM(7, None, absolute=absolute).mode(torch.tensor(scores))
    np.testing.assert_array_equal(found, n_of_m_by_hand(scores, 7, 24, absolute))
    assert (found.sum(1) == 7).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("m", [4, 32])
def test_dtypes_rank_as_float64(dtype, m):
    scores = torch.tensor(np.random.default_rng(0).normal(size=(6, 64))).to(dtype)
    expected = by_sorting(scores.double().numpy(), m // 2, m, True)
    np.testing.assert_array_equal(NOfM(m // 2, m).mode(scores), expected)


@pytest.mark.parametrize("m", [4, 32, None])
def test_transforms_and_meta_tensors_agree_with_eager(m):
    scores = torch.tensor(np.random.default_rng(0).choice(SPECIAL, (4, 6, 64)))
    estimator = NOfM(3, m)
    each = torch.stack([estimator.mode(one) for one in scores])
    assert torch.equal(torch.vmap(estimator.mode)(scores), each)
    meta = estimator.mode(torch.empty(6, 64, device="meta"))
    assert meta.is_meta
    assert meta.shape == (6, 64)


@pytest.mark.parametrize("m", [4, 32, None])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
def test_compiled_code_has_the_same_masks(dynamo, m):
    scores = torch.tensor(np.random.default_rng(0).choice(SPECIAL, (6, 64)))
    compiled = torch.compile(NOfM(3, m).mode, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(scores), NOfM(3, m).mode(scores))


def test_the_gradient_is_that_of_n_of_m():
    s, w = torch.randn(2, 6, 32, dtype=torch.float64)
    s.requires_grad_()
    functional.n_of_m(s, 5, None, weight=w).sum().backward()
    torch.testing.assert_close(s.grad, w * s.detach().sign())


def convolutions():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))


def test_wanda_is_one_line():
    """Half of each row by |W| times the norm of the input, as a fixed mask."""
    layer, x = nn.Linear(10, 4), torch.randn(100, 10)
    importance = layer.weight.detach().abs() * x.norm(dim=0)
    mask = NOfM(10 // 2, None).mode(importance)
    masktorch.set_masks(layer, {"weight": mask})
    assert (masktorch.unwrap(layer).weight != 0).sum(1).tolist() == [5] * 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NOfM(0, None), "NOfM expected n in [1, inf), found 0"),
        (
            lambda: NOfM(9, None).mode(torch.zeros(2, 8)),
            "dimension 1 of shape (2, 8) has fewer than 9 entries",
        ),
        (lambda: NOfM(2, None).mode(torch.zeros(8)), "shape (8,) has no dimension 1"),
        (
            lambda: masktorch.wrap(convolutions(), NOfM(2, 4)),
            "can't mask '0.weight': dimension 1 of shape (8, 3, 3, 3) is no multiple "
            "of 4. Leave such tensors out: name the others in targets=[...] or in a "
            "mapping",
        ),
    ],
)
def test_arguments_that_are_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_a_tensor_that_does_not_fit_is_left_out_as_the_message_says():
    model = convolutions()
    masktorch.wrap(model, {"1.weight": NOfM(2, 4)})
    assert list(masktorch.masks(model)) == ["1.weight"]


def test_a_large_group_costs_no_more_than_a_sort_of_it():
    """m - 1 passes would take 20 times as long as the sort at m = 256."""

    def seconds(function, best=9.0):
        for _ in range(5):
            start = time.perf_counter()
            function()
            best = min(best, time.perf_counter() - start)
        return best

    scores = torch.randn(512, 1024)
    groups = scores.abs().view(512, -1, 256)
    ours = seconds(lambda: NOfM(64, 256).mode(scores))
    sort = seconds(lambda: groups.argsort(dim=2, stable=True, descending=True))
    assert ours < 2 * sort
