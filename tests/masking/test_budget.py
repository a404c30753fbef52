"""budget: how densities are shared out among tensors, and schedules."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import masktorch
from masktorch import Blocks, NOfM, Threshold, TopK, budget, keep_largest
from tools.by_hand import first_of, kept_count, together
from tools.models import kept_counts


def lenet():
    return nn.Sequential(
        nn.Linear(784, 300),
        nn.ReLU(),
        nn.Linear(300, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def conv4():
    return nn.Sequential(
        nn.Conv2d(3, 64, 3),
        nn.Conv2d(64, 64, 3),
        nn.Conv2d(64, 128, 3),
        nn.Conv2d(128, 128, 3),
        nn.Linear(8192, 256),
        nn.Linear(256, 256),
        nn.Linear(256, 10),
    )


def small(estimator=None, sizes=((4, 3), (3, 2), (2, 5)), **options):
    model = nn.Sequential(*(nn.Linear(*size) for size in sizes))
    return masktorch.wrap(model, estimator or TopK(), **options)


@settings(deadline=None, max_examples=40)
@given(st.floats(0, 1, exclude_min=True), st.integers(0, 2**32 - 1), st.booleans())
def test_overall_counts_add_up_and_no_tensor_is_empty(density, seed, absolute):
    torch.manual_seed(seed)
    model = small(TopK(absolute=absolute))
    with torch.no_grad():
        for number, scores in enumerate(masktorch.mask_parameters(model)):
            scores.normal_().mul_(10.0**-number).copy_(
                scores.float().mul(4).round().div(4)
            )
    entries = 12 + 6 + 10
    total = kept_count(density, entries)
    if total < 3:
        with pytest.raises(ValueError, match="keeps at least one entry of each tensor"):
            budget.overall(model, density)
        return
    densities = budget.overall(model, density)
    masktorch.set_density(model, densities)
    counts = kept_counts(model)
    assert sum(counts.values()) == total
    assert min(counts.values()) >= 1
    values = [
        s.detach().abs() if absolute else s for s in masktorch.mask_parameters(model)
    ]
    at_once = np.split(first_of(together(values), total), [12, 18])
    if all(part.any() for part in at_once):  # just the entries that one cut would keep
        np.testing.assert_array_equal(
            together(masktorch.masks(model).values()), np.concatenate(at_once)
        )


@pytest.mark.parametrize("absolute", [False, True])
def test_overall_keeps_the_largest_of_each_tensor_then_the_largest_of_the_rest(
    absolute,
):
    rng = np.random.default_rng(0)
    special = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan]
    for total in [*range(3, 29), *range(3, 29)]:
        model = small(TopK(absolute=absolute))
        values = []
        for scores in masktorch.mask_parameters(model):
            scores.data.copy_(torch.tensor(rng.choice(special, tuple(scores.shape))))
            flat = scores.detach().double().numpy().ravel()
            flat = np.abs(flat) if absolute else flat
            order = np.lexsort((-np.nan_to_num(flat, nan=0.0), ~np.isnan(flat)))
            values.append(flat[np.sort(order[1:])])
        left = np.concatenate(values)
        taken = np.zeros(left.size, dtype=bool)
        order = np.lexsort((-np.nan_to_num(left, nan=0.0), ~np.isnan(left)))
        taken[order[: total - 3]] = True
        counts = [1 + part.sum() for part in np.split(taken, [11, 16])]
        densities = budget.overall(model, total / 28)
        assert [
            d * n for d, n in zip(densities.values(), (12, 6, 10), strict=True)
        ] == (pytest.approx(counts))


def test_overall_keeps_at_least_one_entry_of_each_tensor():
    model = small()
    for scores, factor in zip(
        masktorch.mask_parameters(model), (1.0, 1e-6, 1.0), strict=True
    ):
        scores.data.normal_().mul_(factor)
    densities = budget.overall(model, 0.5)
    assert densities["1.weight"] == 1 / 6
    masktorch.set_density(model, densities)
    assert sum(kept_counts(model).values()) == 14


def test_overall_ignores_masks_without_a_density():
    model = masktorch.wrap(
        lenet(),
        {
            "0.weight": TopK(0.5),
            "2.weight": Threshold(),
            "4.weight": TopK(absolute=False),
        },
    )
    densities = budget.overall(model, 0.1)
    assert list(densities) == ["0.weight", "4.weight"]
    masktorch.set_density(model, densities)
    counts = kept_counts(model)
    assert counts["0.weight"] + counts["4.weight"] == kept_count(0.1, 784 * 300 + 1000)
    first, last = (model[i].parametrizations.weight.scores.detach() for i in (0, 4))
    masks = keep_largest({"0.weight": first.abs(), "4.weight": last}, 0.1)
    found = masktorch.masks(model)
    assert all(torch.equal(found[name], mask) for name, mask in masks.items())


@pytest.mark.parametrize(
    ("network", "published"),
    [
        (lenet, [0.0796, 0.2302, 1]),
        (conv4, [1, 0.0906, 0.0670, 0.0443, 0.1004, 0.1948, 1]),
    ],
)
def test_erk_gives_the_published_densities(network, published):
    with torch.device("meta"):
        model = network()
    model = masktorch.wrap(model, TopK())
    densities = budget.erk(model, 0.1)
    np.testing.assert_allclose(list(densities.values()), published, atol=5.1e-5)
    sizes = [scores.numel() for scores in masktorch.mask_parameters(model)]
    counts = [kept_count(d, n) for d, n in zip(densities.values(), sizes, strict=True)]
    assert sum(counts) == kept_count(0.1, sum(sizes))


@settings(deadline=None, max_examples=60)
@given(
    st.floats(0, 1, exclude_min=True),
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5),
)
def test_erk_counts_add_up_and_no_tensor_is_empty_or_over_full(density, sizes):
    model = small(sizes=sizes)
    numbers = [a * b for a, b in sizes]
    total = kept_count(density, sum(numbers))
    if total < len(sizes):
        with pytest.raises(ValueError, match="at least one entry of each tensor"):
            budget.erk(model, density)
        return
    densities = budget.erk(model, density)
    assert all(0 < d <= 1 for d in densities.values())
    masktorch.set_density(model, densities)
    assert sum(kept_counts(model).values()) == total


def test_erk_keeps_at_least_one_entry_of_each_tensor():
    model = small(sizes=((1, 1), (9, 9), (9, 9)))
    densities = budget.erk(model, 3 / 163)
    assert densities == {"0.weight": 1.0, "1.weight": 1 / 81, "2.weight": 1 / 81}


def test_erk_is_in_proportion_up_to_rounding():
    model = small(sizes=((300, 200), (200, 100), (50, 400)))
    densities = budget.erk(model, 0.1)
    raw = {
        name: (a + b) / (a * b)
        for name, (a, b) in zip(
            densities, ((300, 200), (200, 100), (50, 400)), strict=True
        )
    }
    ratios = [densities[name] / raw[name] for name in raw]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-3)


@pytest.mark.parametrize("allocate", [budget.overall, budget.erk])
def test_arguments_that_are_refused(allocate):
    name = f"budget.{allocate.__name__}()"
    for model, density, exception, message in (
        (small(), 0.0, ValueError, f"{name} expected a density in (0, 1], found 0.0"),
        (small(), "0.1", TypeError, "found '0.1'"),
        (
            small(),
            1e-6,
            ValueError,
            "of each tensor: 1e-06 keeps 1 of 28 entries, in 3 tensors",
        ),
        (
            small(Threshold()),
            0.5,
            ValueError,
            "a density, as TopK, found Threshold(tau=0.5)",
        ),
        (small(NOfM(1, 1)), 0.5, ValueError, "a density, as TopK, found NOfM(n=1, m=1"),
        (nn.Linear(2, 2), 0.5, ValueError, f"{name} expected a wrapped model"),
        (
            small(Blocks(TopK(), (1, None))),
            0.5,
            ValueError,
            "has blocks in '0.weight' of shape (3, 4)",
        ),
    ):
        with pytest.raises(exception, match=re.escape(message)):
            allocate(model, density)


def test_schedules_by_their_formulas():
    for start, end in ((1.0, 0.1), (0.05, 1.0), (0.01, 0.35), (0.3, 0.3), (1.0, 1e-6)):
        for t in np.linspace(0, 1, 23):
            cubic, geometric = (
                budget.cubic(start, end, t),
                budget.geometric(start, end, t),
            )
            assert cubic == pytest.approx(end + (start - end) * (1 - t) ** 3, rel=1e-12)
            assert geometric == pytest.approx(start * (end / start) ** t, rel=1e-12)
            assert 0 < cubic <= 1
            assert 0 < geometric <= 1
        for schedule in (budget.cubic, budget.geometric):
            assert schedule(start, end, 0) == pytest.approx(start)
            assert schedule(start, end, 1) == end
    assert [budget.geometric(1, 0.8**10, r / 10) for r in (1, 2)] == pytest.approx(
        [0.8, 0.64]
    )


@pytest.mark.parametrize("schedule", [budget.cubic, budget.geometric])
def test_schedules_refuse_bad_arguments(schedule):
    for arguments, exception, message in (
        ((1.0, 0.1, 1.1), ValueError, "expected progress in [0, 1], found 1.1"),
        ((1.0, 0.1, -1e-9), ValueError, "found -1e-09"),
        ((1.0, 0.1, math.nan), ValueError, "found nan"),
        ((1.0, 0.1, "0.5"), TypeError, "found '0.5'"),
        ((1.0, 0.0, 0.5), ValueError, "expected a density in (0, 1], found 0.0"),
        ((1.5, 0.1, 0.5), ValueError, "found 1.5"),
    ):
        with pytest.raises(exception, match=re.escape(message)):
            schedule(*arguments)


def test_erk_of_single_numbers():
    """The shape of a 0-d tensor has no sizes to add."""

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

    model = nn.Sequential(Scale(), Scale())
    masktorch.wrap(model, masktorch.TopK(0.5), targets=["0.scale", "1.scale"])
    assert masktorch.budget.erk(model, 1.0) == {"0.scale": 1.0, "1.scale": 1.0}
