"""Piggyback at any threshold that float32 holds."""

import pytest
import torch

from masktorch import Piggyback

THRESHOLDS = [0.0, 5e-3, 513.0, 5000.0, -5000.0, 1e8, -1e8, 3.4e38, -3.4e38]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_piggyback_at_any_threshold_of_float32(threshold, dtype):
    estimator = Piggyback(threshold)
    scores = estimator.init(torch.empty(4, 4, dtype=dtype))
    assert scores.dtype is dtype
    assert estimator.mode(scores).all()
    wanted = torch.eye(4, dtype=torch.bool)
    for mask in (~wanted, wanted, wanted, ~wanted):
        scores = estimator.scores_for(scores, mask)
        assert scores.isfinite().all()
        assert torch.equal(estimator.mode(scores), mask)


@pytest.mark.parametrize("threshold", [float("inf"), float("nan"), 1e39, -3.5e38])
def test_piggyback_refuses_a_threshold_that_float32_lacks(threshold):
    with pytest.raises(ValueError, match=r"Piggyback expected threshold in \(-3.4"):
        Piggyback(threshold)
