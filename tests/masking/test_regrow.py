"""One step of RigL or SET: the smallest kept entries go, as many others come."""

import copy
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import masktorch
from masktorch import regrow


def expected_step(mask, drop, grow, share):
    """The step by sorting pairs of rank and index, entry by entry."""
    mask, drop, grow = (np.asarray(values).ravel() for values in (mask, drop, grow))

    def rank(value):  # NaN above everything, -0.0 as 0.0
        return (math.isnan(value), 0.0 if math.isnan(value) else value + 0.0)

    kept = [i for i in range(mask.size) if mask[i]]
    number = math.floor(share * len(kept) + 0.5)
    dropped = sorted(kept, key=lambda i: (rank(drop[i]), i))[:number]
    after = set(kept) - set(dropped)
    candidates = [i for i in range(mask.size) if i not in after]
    descending = sorted(candidates, key=lambda i: i)
    descending.sort(key=lambda i: rank(grow[i]), reverse=True)  # stable: lower first
    after |= set(descending[:number])
    return np.array([i in after for i in range(mask.size)])


SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.0, math.inf, -math.inf, math.nan, -math.nan]


@settings(deadline=None, max_examples=200)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(1,), (7,), (3, 4), (2, 3, 2, 2), (0, 3)]),
    st.one_of(st.floats(0, 1), st.sampled_from([0, 1, 0.5, 1 / 3])),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_against_sorting_with_ties_and_what_is_not_a_number(seed, shape, share, dtype):
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < rng.choice([0.1, 0.5, 1.0])
    drop, grow = rng.choice(SPECIAL, shape), rng.choice(SPECIAL, shape)
    (found,) = regrow(
        {"a": torch.tensor(mask)},
        drop={"a": torch.tensor(drop).to(dtype)},
        grow={"a": torch.tensor(grow).to(dtype)},
        share=share,
    ).values()
    assert found.dtype is torch.bool
    assert found.shape == shape
    expected = expected_step(mask, drop, grow, share)
    np.testing.assert_array_equal(found.numpy().ravel(), expected)
    assert found.sum() == mask.sum()


def test_every_tensor_on_its_own_and_the_arguments_unchanged():
    rng = np.random.default_rng(0)
    shapes = {"first": (6, 5), "second": (3, 2, 3, 3)}
    masks = {n: torch.tensor(rng.random(s) < 0.4) for n, s in shapes.items()}
    drop = {n: torch.tensor(rng.normal(size=s)) for n, s in shapes.items()}
    grow = {n: torch.tensor(rng.normal(size=s)) for n, s in reversed(shapes.items())}
    before = copy.deepcopy((masks, drop, grow))
    found = regrow(masks, drop=drop, grow=grow, share=0.3)
    assert list(found) == ["first", "second"]
    for name, mask in found.items():
        expected = expected_step(masks[name], drop[name], grow[name], 0.3)
        np.testing.assert_array_equal(mask.numpy().ravel(), expected)
        for old, new in zip(before, (masks, drop, grow), strict=True):
            assert torch.equal(old[name], new[name])
    assert found["first"].data_ptr() != masks["first"].data_ptr()


def test_an_entry_that_was_dropped_may_be_grown_at_once():
    mask = torch.tensor([True, True, False])
    drop, grow = torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0.0, 5.0, 4.0])
    found = regrow({"a": mask}, drop={"a": drop}, grow={"a": grow}, share=0.5)["a"]
    assert torch.equal(found, mask)


def test_row_major_order_whatever_the_layout():
    """Entries [0, 1] and [1, 0] tie; a column-major walk would meet the other first."""
    mask = torch.tensor([[True, True], [True, True]]).t()
    zeros = torch.zeros(2, 2).t()
    found = regrow({"a": mask}, drop={"a": zeros}, grow={"a": zeros}, share=0.5)["a"]
    assert torch.equal(found, mask)  # the two dropped ones are the first to come back
    grow = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    found = regrow({"a": mask}, drop={"a": zeros}, grow={"a": grow}, share=0.25)["a"]
    assert torch.equal(found, mask)
    mask = torch.tensor([[True, True], [True, False]])
    found = regrow({"a": mask}, drop={"a": zeros}, grow={"a": grow}, share=2 / 3)["a"]
    assert found.tolist() == [[True, False], [True, True]]


def test_a_step_of_rigl_on_a_model():
    """Drop by |W|, grow by |dense gradient|, which may be given."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    weights = {n: p for n, p in model.named_parameters() if p.dim() > 1}
    drop = {name: weight.abs() for name, weight in weights.items()}
    masktorch.set_masks(model, masktorch.keep_largest(drop, dict.fromkeys(drop, 0.25)))
    masks = masktorch.masks(model)
    grow = {name: torch.rand_like(weight) for name, weight in weights.items()}
    found = regrow(masks, drop=drop, grow=grow, share=0.3)
    masktorch.set_masks(model, found)
    assert not any(mask.requires_grad for mask in found.values())
    for name, mask in masktorch.masks(model).items():
        arrays = (masks[name], drop[name].detach(), grow[name])
        expected = expected_step(*arrays, 0.3)
        np.testing.assert_array_equal(mask.numpy().ravel(), expected)
        assert (mask != masks[name]).sum() > 0


def test_nothing_to_regrow():
    assert regrow({}, drop={}, grow={}, share=0.5) == {}


MASK, VALUES = torch.tensor([True, False]), torch.ones(2)
REFUSED = [
    ({"masks": [MASK]}, TypeError, "expected masks to be a dict by tensor names"),
    ({"drop": VALUES}, TypeError, "expected drop to be a dict by tensor names"),
    (
        {"masks": {"a": VALUES}},
        TypeError,
        "expected a dense bool mask for 'a', found torch.fl",
    ),
    (
        {"masks": {"a": [True]}},
        TypeError,
        "expected a dense bool mask for 'a', found list",
    ),
    (
        {"drop": {"a": MASK}},
        TypeError,
        "expected dense floating-point drop for 'a', found torch.bool",
    ),
    (
        {"grow": {"a": VALUES.int()}},
        TypeError,
        "expected dense floating-point grow for 'a', found tor",
    ),
    (
        {"grow": {"a": VALUES.to_sparse()}},
        TypeError,
        "expected dense floating-point grow for 'a', found torch.sparse_coo",
    ),
    (
        {"drop": {}},
        ValueError,
        "expected drop to have the names of the masks. Missing: a. Unknown: none.",
    ),
    (
        {"grow": {"a": VALUES, "b": VALUES}},
        ValueError,
        "expected grow to have the names of the masks. Missing: none. Unknown: b.",
    ),
    (
        {"drop": {"a": torch.ones(3)}},
        ValueError,
        "expected drop['a'] to have the shape of the mask, (2,), found (3,).",
    ),
    ({"share": 1.01}, ValueError, "expected share in [0, 1], found 1.01"),
    ({"share": -0.1}, ValueError, "expected share in [0, 1], found -0.1"),
    ({"share": math.nan}, ValueError, "expected share in [0, 1], found nan"),
    ({"share": "0.3"}, TypeError, "expected share in [0, 1], found '0.3'"),
]


@pytest.mark.parametrize(("changed", "exception", "message"), REFUSED)
def test_arguments_that_are_refused(changed, exception, message):
    arguments = {
        "masks": {"a": MASK},
        "drop": {"a": VALUES},
        "grow": {"a": VALUES},
        "share": 0.5,
    }
    with pytest.raises(exception, match=re.escape(f"regrow() {message}")):
        regrow(**{**arguments, **changed})
