"""Estimators are immutable values; what they refuse."""

import copy
import dataclasses
import math
import pickle
import re

import numpy as np
import pytest
import torch

import masktorch
from masktorch import (
    Bernoulli,
    Blocks,
    Concrete,
    IntermediateSampling,
    NOfM,
    Threshold,
    TopK,
    functional,
)
from tools.estimators import RANKED


@pytest.mark.parametrize("tau", [0, 1, -0.1, 1.5, float("nan")])
@pytest.mark.parametrize("estimator", [Threshold, Bernoulli, IntermediateSampling])
def test_tau_outside_the_unit_interval_is_refused(estimator, tau):
    message = rf"expected tau in \(0, 1\), found {tau}"
    with pytest.raises(ValueError, match=message):
        estimator(tau=tau)


@pytest.mark.parametrize("step_size", [0, -1.0, float("inf"), float("nan")])
def test_a_step_size_that_is_not_positive_is_refused(step_size):
    with pytest.raises(
        ValueError, match=rf"expected step_size in \(0, inf\), found {step_size}"
    ):
        IntermediateSampling(step_size)


def test_estimators_are_immutable_and_print_as_themselves():
    for estimator in [Threshold(0.3), Bernoulli(), IntermediateSampling(0.2, tau=0.4)]:
        assert eval(repr(estimator)) == estimator
        with pytest.raises(AttributeError):
            estimator.tau = 0.1


SCORES = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))


def test_ranked_estimators_compare_copy_and_pickle():
    assert repr(TopK()) == "TopK(density=0.5, absolute=True)"
    assert repr(NOfM(1)) == "NOfM(n=1, m=4, absolute=True)"
    for estimator in RANKED:
        for other in (
            eval(repr(estimator)),
            copy.deepcopy(estimator),
            pickle.loads(pickle.dumps(estimator)),
        ):
            assert other == estimator
            assert hash(other) == hash(estimator)
            assert torch.equal(
                other.mode(SCORES.view(12, 4)), estimator.mode(SCORES.view(12, 4))
            )
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
        (lambda: Blocks(TopK(), (0, None)), ValueError, "found (0, None)"),
        (
            lambda: Blocks(TopK(), (0, 1)),
            ValueError,
            "positive ints or None for a whole dimension",
        ),
        (lambda: Blocks(TopK(), (1, -2)), ValueError, "found (1, -2)"),
        (
            lambda: Blocks(TopK(), 32),
            TypeError,
            "Blocks expected block to be (rows, columns)",
        ),
        (lambda: Blocks(TopK(), (1,)), TypeError, "found (1,)"),
        (lambda: Blocks(TopK(), (1.0, 2)), TypeError, "found (1.0, 2)"),
        (lambda: Blocks(TopK(), (True, 2)), TypeError, "found (True, 2)"),
        (lambda: NOfM(5, 4), ValueError, "expected n in [1, 4], found 5"),
        (lambda: NOfM(0, 4), ValueError, "expected n in [1, 4], found 0"),
        (lambda: NOfM(2.0, 4), TypeError, "whole numbers, found n=2.0"),
        (lambda: NOfM("2", 4), TypeError, "whole numbers, found n='2', m=4"),
        (lambda: NOfM(1, True), TypeError, "whole numbers, found n=1, m=True"),
        (
            lambda: TopK(absolute="no"),
            TypeError,
            "absolute to be True or False, found 'no'",
        ),
        (lambda: NOfM(absolute=0), TypeError, "expected absolute to be True or False"),
        (
            lambda: Concrete(hard=None),
            TypeError,
            "Concrete expected hard to be True or False",
        ),
        (
            lambda: functional.topk(SCORES, 0.5, absolute="no"),
            TypeError,
            "topk() expected absolute",
        ),
        (
            lambda: functional.n_of_m(SCORES, absolute=None),
            TypeError,
            "n_of_m() expected absolute",
        ),
        (
            lambda: functional.concrete(SCORES, hard=1),
            TypeError,
            "concrete() expected hard",
        ),
        (
            lambda: functional.topk(SCORES, 1.5),
            ValueError,
            "topk() expected a density in (0, 1]",
        ),
        (
            lambda: Blocks(TopK(), (4, None)).init(SCORES),
            ValueError,
            "blocks of (4, None) do not divide shape (6, 8): 6 is no multiple of 4",
        ),
        (
            lambda: Blocks(TopK(), (None, 3)).init(SCORES),
            ValueError,
            "8 is no multiple of 3",
        ),
        (
            lambda: Blocks(TopK(), (1, None)).init(SCORES[0]),
            ValueError,
            "blocks need two dimensions or more, found shape (8,)",
        ),
        (lambda: Blocks(TopK, (1, None)), TypeError, "Blocks expected an estimator"),
        (lambda: Blocks(0.5, (1, None)), TypeError, "Blocks expected an estimator"),
        (
            lambda: functional.n_of_m(SCORES, 2, 3),
            ValueError,
            "shape (6, 8) is no multiple of 3",
        ),
        (
            lambda: functional.n_of_m(SCORES[0], 2, 4),
            ValueError,
            "shape (8,) has no dimension 1",
        ),
    ],
)
def test_arguments_that_are_refused(make, exception, message):
    with pytest.raises(exception, match=re.escape(message)):
        make()
