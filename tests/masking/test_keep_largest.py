"""keep_largest: one cut for several tensors, by numpy's stable sort."""

import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from masktorch import keep_largest
from tools.by_hand import first_of, kept_count, together


@pytest.mark.parametrize("density", [1e-9, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_one_cut_for_all_tensors(density, dtype):
    rng = np.random.default_rng(0)
    scores = {
        name: torch.tensor(np.round(rng.normal(size=shape), 1)).to(dtype)
        for name, shape in (("a", (3, 4)), ("b", (7,)), ("c", (2, 3, 2, 2)))
    }
    scores["c"] = scores["c"].to(memory_format=torch.channels_last)
    before = {name: tensor.clone() for name, tensor in scores.items()}
    masks = keep_largest(scores, density)
    assert list(masks) == ["a", "b", "c"]
    expected = first_of(together(scores.values()), kept_count(density, 12 + 7 + 24))
    np.testing.assert_array_equal(together(masks.values()), expected)
    for name, mask in masks.items():
        assert mask.dtype is torch.bool
        assert mask.shape == scores[name].shape
        assert torch.equal(scores[name], before[name])


def test_ties_go_to_the_earlier_tensor_then_to_the_lower_index():
    scores = {"late": torch.ones(2), "early": torch.ones(2, 2).t()}
    assert [m.flatten().tolist() for m in keep_largest(scores, 0.5).values()] == [
        [True, True], [True, False, False, False]
    ]  # fmt: skip


def test_each_tensor_may_have_its_own_density():
    scores = {"a": torch.arange(10.0), "b": torch.arange(4.0)}
    masks = keep_largest(scores, {"b": 0.75, "a": 0.2})
    assert list(masks) == ["a", "b"]
    assert masks["a"].nonzero().flatten().tolist() == [8, 9]
    assert masks["b"].nonzero().flatten().tolist() == [1, 2, 3]


def test_empty_tensors_parameters_and_nan():
    assert keep_largest({}, 0.5) == {}
    assert keep_largest({}, {}) == {}
    layer = nn.Linear(2, 2)
    mask = keep_largest({"weight": layer.weight}, 0.5)["weight"]
    assert not mask.requires_grad
    scores = {
        "a": torch.tensor([1.0, math.inf]),
        "b": torch.tensor([-math.nan, math.inf]),
    }
    assert [m.tolist() for m in keep_largest(scores, 0.5).values()] == [
        [False, True],
        [True, False],
    ]


@pytest.mark.parametrize(
    ("scores", "density", "exception", "message"),
    [
        (
            [torch.ones(2)],
            0.5,
            TypeError,
            "a dict by tensor names, found <class 'list'>",
        ),
        ({"a": [1.0]}, 0.5, TypeError, "floating-point scores for 'a'"),
        (
            {"a": torch.ones(2, dtype=torch.int64)},
            0.5,
            TypeError,
            "floating-point scores for 'a'",
        ),
        ({"a": torch.ones(2)}, 0, ValueError, "expected a density in (0, 1], found 0."),
        ({"a": torch.ones(2)}, math.nan, ValueError, "found nan"),
        (
            {"a": torch.ones(2)},
            True,
            TypeError,
            "expected a density in (0, 1], found True",
        ),
        ({"a": torch.ones(2)}, "0.5", TypeError, "found '0.5'"),
        (
            {"a": torch.ones(2)},
            {"a": 2},
            ValueError,
            "expected a density in (0, 1], found 2",
        ),
        (
            {"a": torch.ones(2)},
            {},
            ValueError,
            "expected scores and a density for each of ['a']",
        ),
        ({"a": torch.ones(2)}, {"a": 1, "b": 1}, ValueError, "for each of ['b']"),
    ],
)
def test_keep_largest_refuses_bad_arguments(scores, density, exception, message):
    with pytest.raises(exception, match=re.escape(message)):
        keep_largest(scores, density)
