"""An LSTM draws its masks once per forward, and is a plain LSTM after unwrap."""

import copy
import pickle

import torch
from torch import nn

import masktorch
from masktorch import (
    Bernoulli,
)

SEQUENCE = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(2))


def test_an_lstm_draws_once_per_forward_and_uses_what_it_drew():
    layer = masktorch.wrap(
        nn.LSTM(8, 4), Bernoulli(), targets=["weight_ih_l0", "weight_hh_l0"]
    )
    drawn = []
    mask = layer.parametrizations.weight_ih_l0
    mask.register_forward_hook(
        lambda module, inputs, output: drawn.append(output.detach())
    )
    plain = nn.LSTM(8, 4)
    plain.load_state_dict(layer.state_dict(), strict=False)
    for _ in range(3):
        drawn.clear()
        with torch.random.fork_rng():
            layer.weight_hh_l0  # noqa: B018  (a read outside a forward leaves nothing behind)
        state = torch.get_rng_state()
        out, _ = layer(SEQUENCE)
        assert len(drawn) == 1
        torch.set_rng_state(state)
        again, _ = layer(SEQUENCE)
        assert torch.equal(out, again)
        assert torch.equal(drawn[0], drawn[1])
    first, _ = layer(SEQUENCE)
    assert not torch.equal(first, out)


def test_copying_an_lstm_draws_nothing_from_the_global_stream():
    layer = masktorch.wrap(nn.LSTM(8, 4), Bernoulli(), targets=["weight_ih_l0"])
    layer(SEQUENCE)
    state = torch.get_rng_state()
    pickle.dumps(layer)
    copy.deepcopy(layer)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_lstm_is_plain_after_unwrap():
    layer = masktorch.wrap(nn.LSTM(8, 4), Bernoulli(), targets=["weight_ih_l0"])
    layer(SEQUENCE)
    masktorch.unwrap(layer)
    twin = copy.deepcopy(layer)
    opt = torch.optim.SGD(layer.parameters(), lr=0.5)
    before, _ = layer(SEQUENCE)
    before.square().mean().backward()
    opt.step()
    after, _ = layer(SEQUENCE)
    assert not torch.equal(before, after)
    assert torch.equal(twin(SEQUENCE)[0], before)
