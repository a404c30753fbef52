"""Draws of few entries, and on accelerators: `p` against PyTorch's own numbers."""

import pytest
import torch

from masktorch import functional
from masktorch._kernels import random
from masktorch._kernels.selecting import as_number, select

LARGEST = 1 - 2**-24  # of what `torch.rand` returns in float32
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
each_function = pytest.mark.parametrize(
    "function", [functional.bernoulli, functional.intermediate]
)


@pytest.fixture
def drawn_with(monkeypatch):
    """Draw with one number for all entries."""

    def drawn(function, scores, u, **options):
        def uniform(scores, dtype, generator):
            return torch.full(scores.shape, u, dtype=dtype)

        monkeypatch.setattr(random, "_uniform", uniform)
        return function(scores, **options)

    return drawn


@each_function
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("u", [0.0, 0.5, LARGEST])
def test_probabilities_0_and_1_are_certain_for_any_number(
    function, dtype, u, drawn_with
):
    certain = torch.tensor([-torch.inf, torch.inf, torch.nan], dtype=dtype)
    assert drawn_with(function, certain, u).tolist() == [0, 1, 1]
    weight = torch.tensor([torch.nan, 2.0, 3.0], dtype=torch.bfloat16)
    found = drawn_with(function, certain.requires_grad_(), u, weight=weight)
    assert found.tolist() == [0, 2, 3]
    assert found.dtype is torch.bfloat16


@each_function
def test_an_entry_is_kept_if_its_number_is_below_its_probability(function, drawn_with):
    p = torch.sigmoid(torch.tensor(0.3))
    step = 2**-24
    for u, kept in ((p - step, 1), (p, 0), (p + step, 0)):
        drawn = drawn_with(function, torch.full((4,), 0.3), float(u))
        assert drawn.tolist() == [kept] * 4


@each_function
@pytest.mark.parametrize("n", [1, 1000, random.SMALL, random.SMALL + 1])
def test_a_transform_draws_what_plain_code_draws_at_every_size(function, n):
    scores = torch.randn(n)
    torch.manual_seed(3)
    drawn = function(scores)
    torch.manual_seed(3)
    found = torch.func.vjp(function, scores)[0]
    assert torch.equal(found, drawn)


def test_a_mask_is_one_number_and_one_selection_in_every_form():
    margins = torch.tensor([0.5, 0.0, -0.5, 1e-45])
    bools = torch.tensor([True, False, False, True])
    weight = torch.tensor([1.0, torch.nan, torch.inf, 2.0])
    for read in (margins, bools, bools.view(torch.uint8)):
        assert as_number(read, torch.float32).tolist() == [1, 0, 0, 1]
        assert select(read, weight).tolist() == [1, 0, 0, 2]
