"""The number of threads leaves binary masks equal, all else equal up to rounding.

All other tests may run on one thread, so this one asks for more.
"""

import pytest
import torch

from tools import estimators

ROWS, COLUMNS = 1024, 512  # enough for chunks, and for PyTorch to use its threads


def on_threads(count, function):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return function()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("estimator", estimators.ALL, ids=repr)
def test_several_threads_compute_what_one_does(estimator):
    weight = torch.randn(ROWS, COLUMNS)
    start = estimator.init(weight)
    scores = (start + torch.randn_like(start)).requires_grad_()
    direction = torch.randn(ROWS, COLUMNS)

    def compute():
        torch.manual_seed(1)
        mask = estimator(scores)
        (gradient,) = torch.autograd.grad((mask * weight * direction).sum(), scores)
        return mask.detach(), gradient, estimator.mode(scores)

    one, several = on_threads(1, compute), on_threads(3, compute)
    torch.testing.assert_close(several, one)
