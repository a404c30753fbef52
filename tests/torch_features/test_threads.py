"""Several threads run one model."""

import threading

import torch
from torch import nn
from torch.nn import functional as F

import masktorch
from masktorch import (
    Bernoulli,
)
from tools.models import SIX_ROWS, Block, random_masks, what_is_held


def in_threads(function, count=2):
    results, errors = [None] * count, []

    def run(i):
        try:
            results[i] = function(i)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    return results


def test_two_threads_run_one_model_in_eval():
    model = random_masks(Block(), Bernoulli()).eval()
    expected = model(SIX_ROWS)

    def run(i):
        with torch.no_grad():
            return all(torch.equal(model(SIX_ROWS), expected) for _ in range(200))

    assert in_threads(run) == [True, True]


def test_forwards_of_two_threads_that_overlap_leave_nothing_held():
    """Thread 1 starts, thread 2 starts, thread 1 ends, thread 2 ends."""
    first_in, second_in, first_out = (
        threading.Event(),
        threading.Event(),
        threading.Event(),
    )

    class Slow(nn.Linear):
        def forward(self, x, i):
            out = F.linear(x, self.weight)
            if i == 0:
                first_in.set()
                assert second_in.wait(10)
            else:
                second_in.set()
                assert first_out.wait(10)
            self.ended.append(torch.equal(out, F.linear(x, self.weight)))
            return out

    layer = masktorch.wrap(Slow(30, 30, bias=False), Bernoulli())
    layer.ended = []
    x = torch.randn(2, 30)

    def run(i):
        if i:
            assert first_in.wait(10)
        out = layer(x, i)
        if not i:
            first_out.set()
        return out

    one, other = in_threads(run)
    assert not what_is_held(layer)
    assert not torch.equal(layer.weight, layer.weight)
    assert layer.ended == [True, True]
    assert not torch.equal(one, other)
