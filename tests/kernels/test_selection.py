"""Exact top-k against a stable argsort of numpy, for every layout and dtype."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from masktorch import functional
from masktorch._kernels import chunked, top_k
from masktorch._kernels.top_k import count, largest_of
from masktorch._methods.top_k import topk_mask

SPECIAL = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    2.0,
    0.5,
    1e-7,
    math.inf,
    -math.inf,
    math.nan,
    -math.nan,
]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def nothing_to_guess_from():
    top_k._previous_cuts.clear()


@pytest.fixture
def large(monkeypatch):
    """Small tensors are selected from as large ones are."""
    monkeypatch.setattr(top_k, "FEW", 0)


@pytest.fixture(params=["few", "whole", "chunks"])
def size(request, monkeypatch):
    if request.param != "few":
        monkeypatch.setattr(top_k, "FEW", 0)
    if request.param == "chunks":
        monkeypatch.setattr(chunked, "CHUNK", 3)


def largest(values, k, *, absolute=False):
    return largest_of([values], k, absolute=absolute)[0]


def by_argsort(values, k, absolute=False):
    """The mask by numpy: NaN first, then descending values, then ascending index."""
    flat = values.detach().double().numpy().ravel()
    flat = np.abs(flat) if absolute else flat
    order = np.lexsort(
        (np.arange(flat.size), -np.nan_to_num(flat, nan=0.0), ~np.isnan(flat))
    )
    mask = np.zeros(flat.size, dtype=bool)
    mask[order[:k]] = True
    return torch.from_numpy(mask).view(values.shape)


def by_stable_argsort(values, k):
    """The mask by a stable sort alone, for values without NaN."""
    flat = values.detach().double().numpy().ravel() + 0.0
    mask = np.zeros(flat.size, dtype=bool)
    mask[np.argsort(-flat, kind="stable")[:k]] = True
    return torch.from_numpy(mask).view(values.shape)


LAYOUTS = {
    "contiguous": lambda v: v,
    "transposed": lambda v: v.t(),
    "gaps": lambda v: torch.stack([v, v + 1], -1)[..., 0],
    "channels last": lambda v: v.view(2, 3, 2, 2).contiguous(
        memory_format=torch.channels_last
    ),
    "expanded": lambda v: v[:, :1].expand(4, 6),
    "a scalar": lambda v: v[0, 0],
    "flat": lambda v: v.flatten(),
}


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("absolute", [False, True])
def test_every_count_over_special_values(dtype, layout, absolute, monkeypatch):
    rng = np.random.default_rng(0)
    for numbers in (
        rng.normal(size=(4, 6)),
        np.round(rng.normal(size=(4, 6))),
        rng.choice(SPECIAL, (4, 6)),
        np.zeros((4, 6)),
        np.full((4, 6), -np.inf),
        np.full((4, 6), np.nan),
    ):
        values = LAYOUTS[layout](torch.tensor(numbers).to(dtype))
        n = values.numel()
        for k in {min(k, n) for k in (0, 1, 2, 5, 11, 18, n - 1, n)}:
            expected = by_argsort(values, k, absolute)
            if not absolute and not values.isnan().any():
                assert torch.equal(expected, by_stable_argsort(values, k))
            mask = largest(values, k, absolute=absolute)
            assert mask.dtype is torch.bool
            assert torch.equal(mask, expected)
            assert mask.stride() == torch.empty_like(values).stride()
            again = largest(values, k, absolute=absolute)  # from the guess
            assert torch.equal(again, expected)
            with monkeypatch.context() as elsewhere:
                elsewhere.setattr(top_k, "is_unseen", lambda _: False)
                # as on an accelerator, and as under a transform
                assert torch.equal(largest(values, k, absolute=absolute), expected)
                elsewhere.setattr(top_k, "is_plain", lambda _: False)
                assert torch.equal(largest(values, k, absolute=absolute), expected)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(SPECIAL), min_size=1, max_size=8),
            st.sampled_from(DTYPES),
        ),
        min_size=1,
        max_size=4,
    ),
    st.data(),
)
def test_several_tensors_are_ranked_as_one(lists, data):
    tensors = [torch.tensor(numbers, dtype=dtype) for numbers, dtype in lists]
    absolute = data.draw(st.booleans())
    together = torch.cat([tensor.double() for tensor in tensors])
    k = data.draw(st.integers(0, together.numel()))
    for _ in range(3):  # the third by a count alone
        masks = largest_of(tensors, k, absolute=absolute)
        assert torch.equal(torch.cat(masks), by_argsort(together, k, absolute))


def test_large_tensors():
    rng = np.random.default_rng(0)
    n = 2**19 + 7  # five chunks
    values = torch.tensor(rng.integers(-1000, 1000, n)).float()  # hundreds of ties
    for k in (1, n // 10, n - 1):
        assert torch.equal(largest(values, k), by_stable_argsort(values, k))
    constant = torch.ones(n)
    assert torch.equal(largest(constant, n // 2), torch.arange(n) < n // 2)


@pytest.mark.slow  # of memory, above all
def test_a_hundred_million_entries():
    values = torch.zeros(10**8, dtype=torch.bfloat16)
    values[::3] = 1
    mask = largest(values, 10**7)
    assert int(torch.count_nonzero(mask)) == 10**7
    assert torch.count_nonzero(mask[: 3 * 10**7 : 3]) == 10**7


def test_a_cut_that_another_dtype_lacks_is_not_rounded():
    exact = torch.tensor([1.0 + 2.0**-30, 1.0], dtype=torch.float64)
    coarse = torch.tensor([1.0, 1.0078125, 0.5], dtype=torch.bfloat16)
    masks = largest_of([coarse, exact], 2)
    assert [mask.tolist() for mask in masks] == [[False, True, False], [True, False]]


@pytest.mark.usefixtures("large")
def test_a_stale_guess_is_rejected_after_values_change():
    rng = np.random.default_rng(0)
    values = torch.empty(20)
    pool = [*SPECIAL, 3.0, 4.0, 5.0]
    for _ in range(200):  # behind the version counter
        values.data.copy_(torch.tensor(rng.choice(pool, 20)))
        assert torch.equal(largest(values, 7), by_argsort(values, 7))
        values.numpy()[:5] = rng.normal(size=5)
        assert torch.equal(largest(values, 7), by_argsort(values, 7))


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("absolute", [False, True])
def test_a_product_from_a_guess_equals_the_product_with_the_mask(absolute):
    rng = np.random.default_rng(0)
    values, weight = torch.empty(20), torch.randn(20)
    for trial in range(300):
        if trial % 3:  # else unchanged
            numbers = rng.choice(SPECIAL, 20) if trial % 2 else rng.normal(size=20)
            numbers[rng.integers(20)] = rng.choice(SPECIAL)
            values.data.copy_(torch.tensor(numbers))
        found = functional.topk(values, 7 / 20, absolute=absolute, weight=weight)
        assert torch.equal(found, weight * by_argsort(values, 7, absolute))


@pytest.mark.usefixtures("large")
def test_a_guess_of_another_dtype_in_the_same_memory_is_ignored():
    memory = torch.zeros(40, dtype=torch.bfloat16)
    for dtype in (torch.float32, torch.bfloat16, torch.float16) * 3:
        values = memory.view(dtype)[:20]
        values.copy_(torch.randn(20))
        assert torch.equal(largest(values, 7), by_argsort(values, 7))
    assert len(top_k._previous_cuts) == 3


@pytest.fixture
def passes(monkeypatch):
    """A list that grows by one with each pass over the values."""
    passes, chunks = [], top_k._chunks
    monkeypatch.setattr(top_k, "_chunks", lambda *a: passes.append(1) or chunks(*a))
    return passes


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("equal", [1, 3, 300], ids=["distinct", "ties", "all equal"])
@pytest.mark.parametrize("chunk", [300, 7], ids=["whole", "chunks"])
def test_one_pass_proves_the_mask_of_unchanged_values(
    absolute, equal, chunk, monkeypatch, passes
):
    monkeypatch.setattr(chunked, "CHUNK", chunk)
    values = torch.randn(300 // equal).repeat(equal)
    mask = largest(values, 94, absolute=absolute)
    assert torch.equal(mask, by_argsort(values, 94, absolute))
    ranked, partition = [], np.partition
    monkeypatch.setattr(
        np, "partition", lambda a, *b: ranked.append(a.size) or partition(a, *b)
    )
    for _ in range(3):
        passes.clear()
        assert torch.equal(largest(values, 94, absolute=absolute), mask)
        assert len(passes) == 1
    assert ranked == []
    values *= 1.5  # the cut moved: only then are values ranked again
    expected = by_argsort(values, 94, absolute)
    assert torch.equal(largest(values, 94, absolute=absolute), expected)
    assert ranked == [300]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.usefixtures("large")
def test_masks_stay_exact_however_values_move(dtype, absolute, monkeypatch, passes):
    """Small steps, jumps, no movement, ties and NaN."""
    rng = np.random.default_rng(0)
    values = torch.tensor(rng.normal(size=3000), dtype=dtype)
    monkeypatch.setattr(top_k, "SAMPLE", 256)
    for step in range(120):
        if step % 40 == 39:
            values.mul_(2).add_(1)
        elif step % 40 == 20:
            values[rng.integers(3000)] = rng.choice(SPECIAL)
        elif step % 40 < 35:
            values.add_(torch.tensor(rng.normal(size=3000) * 1e-2, dtype=dtype))
        assert torch.equal(
            largest(values, 900, absolute=absolute), by_argsort(values, 900, absolute)
        )
    assert len(passes) < 1.5 * 120 or dtype is torch.bfloat16  # whose cuts are coarse


@pytest.mark.usefixtures("large")
def test_the_number_of_remembered_cuts_is_bounded(monkeypatch):
    monkeypatch.setattr(top_k, "REMEMBERED", 5)
    values = torch.randn(50)
    for k in range(1, 40):
        assert torch.equal(largest(values, k), by_stable_argsort(values, k))
        assert len(top_k._previous_cuts) <= 5


def test_selection_on_a_cpu_never_sorts(monkeypatch):
    for name in ("sort", "argsort", "topk"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, **__: pytest.fail("sorted"))
        monkeypatch.setattr(torch, name, lambda *_, **__: pytest.fail("sorted"))
    largest(torch.randn(100), 10)
    largest_of([torch.randn(100), torch.randn(10)], 10, absolute=True)
    masks_by_share(torch.randn(8, 8))


def masks_by_share(scores):
    return topk_mask(scores, 0.3, absolute=True)


@pytest.mark.parametrize("absolute", [False, True])
def test_vmap_equals_a_loop(absolute):
    values = torch.tensor(np.random.default_rng(0).choice(SPECIAL, (6, 4, 3)))
    for dim in range(3):
        masks = torch.func.vmap(
            lambda v: largest(v, 3, absolute=absolute), in_dims=dim, out_dims=dim
        )(values)
        for mask, one in zip(masks.unbind(dim), values.unbind(dim), strict=True):
            assert torch.equal(mask, by_argsort(one, 3, absolute))


def test_the_default_device_does_not_matter():
    values = [torch.randn(9), torch.randn(5)]
    expected = by_argsort(torch.cat(values), 6)
    with torch.device("meta"):
        assert torch.equal(largest(values[0], 4), by_argsort(values[0], 4))
        masks = largest_of(values, 6)
        assert torch.equal(
            largest(values[0], 4, absolute=True), by_argsort(values[0], 4, True)
        )
    assert torch.equal(torch.cat(masks), expected)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("absolute", [False, True])
def test_bounds_outside_the_range_of_float32(absolute):
    values = torch.zeros(4)
    for size in (3e38, 1e38, 2e38, -3e38):
        values[:] = torch.tensor([size, size, size, size / 2])
        assert torch.equal(
            largest(values, 2, absolute=absolute), by_argsort(values, 2, absolute)
        )


def test_several_tensors_with_the_negative_bit_or_under_transforms():
    minus = torch.complex(torch.zeros(1), torch.ones(1)).conj().imag
    assert minus.is_neg()
    assert [mask.item() for mask in largest_of([minus, torch.zeros(1)], 1)] == [
        False,
        True,
    ]
    values, others = torch.randn(3, 4, 2), torch.randn(3, 5, dtype=torch.float64)
    masks = torch.vmap(lambda *tensors: tuple(largest_of(tensors, 6)))(values, others)
    traced = make_fx(lambda *tensors: largest_of(tensors, 6))(values[0], others[0])
    for row in range(3):
        for one, other, mask in zip(
            largest_of([values[row], others[row]], 6),
            traced(values[row], others[row]),
            (mask[row] for mask in masks),
            strict=True,
        ):
            assert torch.equal(one, mask)
            assert torch.equal(other, mask)


def test_meta_tensors_have_masks_of_their_shape():
    mask = largest(torch.empty(3, 4, device="meta"), 5)
    assert mask.is_meta
    assert mask.dtype is torch.bool
    assert mask.shape == (3, 4)


def test_a_density_keeps_floor_of_d_n_plus_a_half():
    """floor(d * n + 1/2), exact unless d * n is within rounding of a half."""
    assert [count(d, 10) for d in (0.05, 0.1, 0.9, 0.25, 0.01, 1.0)] == [
        1,
        1,
        9,
        3,
        1,
        10,
    ]
    assert count(0.3, 5) == 2  # 1.5 rounds up, though 0.3 is a little less than 3/10
    assert count(1e-9, 1000) == count(0.5, 0) == 1
    for n in (*range(1, 300), 10**6 + 1, 2**40 + 3):
        for percent in range(1, 101):
            exact = Fraction(percent, 100) * n + Fraction(1, 2)
            found = count(percent / 100, n)
            near = abs(exact - round(exact)) <= exact * Fraction(1, 2**50)
            assert found == max(1, math.floor(exact)) or (
                near and abs(found - exact) <= 1
            )


def test_the_density_k_over_n_keeps_k_entries():
    for n in (1, 2, 3, 7, 10, 49, 1000, 235200, 10**8 + 7):
        for c in (c for c in (1, 2, 3, n // 3, n // 2, n - 1, n) if 1 <= c <= n):
            assert count(c / n, n) == c


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "layout", ["contiguous", "channels last", "transposed", "gaps"]
)
def test_the_custom_operation_for_compiled_selection(absolute, dtype, layout):
    values = LAYOUTS[layout](torch.randn(4, 6).to(dtype))
    arguments = (values, torch.tensor(0.4, dtype=torch.float64), absolute)
    torch.library.opcheck(torch.ops.masktorch.largest, arguments)
    mask = torch.ops.masktorch.largest(*arguments)
    assert torch.equal(mask, largest(values, count(0.4, 24), absolute=absolute))
    assert mask.stride() == torch.empty_like(values).stride()
