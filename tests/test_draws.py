"""Random masks and noise: how they are distributed, and that no two draws are one."""

import numpy as np
import pytest
import torch

from masktorch.draws import uniform_like

pytestmark = [
    # torch.compile makes an instance of an autograd function while it traces one
    pytest.mark.filterwarnings("ignore:.*should not be instantiated"),
    # inductor's first import
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated"),
]


@pytest.fixture
def dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


BACKENDS = ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("generator", [None, torch.Generator()], ids=["global", "generator"])
def test_uniform_noise(dtype, generator):
    scores = torch.zeros(200_000, 1, dtype=dtype, requires_grad=True)
    u = uniform_like(scores, generator)
    assert u.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    assert u.shape == scores.shape
    assert not u.requires_grad
    assert 0 < u.min() < u.max() < 1
    counts = np.histogram(u, 100, (0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 99 + 5 * np.sqrt(2 * 99)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_noise_is_never_0(dtype, monkeypatch):
    for name in ("rand", "rand_like"):
        monkeypatch.setattr(torch, name, lambda _, dtype, **_k: torch.zeros(3, dtype=dtype))
    for generator in (None, torch.Generator()):
        noise = torch.special.logit(uniform_like(torch.zeros(3, dtype=dtype), generator))
        assert torch.isfinite(noise).all()


def test_uniform_noise_under_vmap():
    def draw(randomness, scores, in_dims=0):
        return torch.vmap(uniform_like, in_dims, randomness=randomness)(scores)

    scores = torch.zeros(3, 20)
    apart, same = draw("different", scores), draw("same", scores)
    assert len(apart.unique(dim=0)) == 3
    assert len(same.unique(dim=0)) == 1
    with pytest.raises(RuntimeError, match="randomness"):
        draw("error", scores)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_noise_is_drawn_twice(dynamo, backend):
    def difference(s):
        return (s + uniform_like(s) - uniform_like(s)).square().sum()

    s = torch.zeros(8, requires_grad=True)
    value = torch.compile(difference, backend=backend, fullgraph=True)(s)
    value.backward()
    assert value > 0
    assert s.grad.abs().sum() > 0
