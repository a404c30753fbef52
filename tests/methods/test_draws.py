"""Random masks and noise: their distribution and their independence."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import masktorch
from masktorch import Bernoulli, IntermediateSampling, functional
from masktorch._kernels import chunked, random
from masktorch._kernels.random import uniform_like
from tools.by_hand import sigma

pytestmark = [
    # torch.compile makes an instance of an autograd function while it traces one
    pytest.mark.filterwarnings("ignore:.*should not be instantiated"),
    # inductor's first import
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated"),
]


BACKENDS = ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
FUNCTIONS = [functional.bernoulli, functional.intermediate]
each_function = pytest.mark.parametrize("function", FUNCTIONS)


def score_of(p):
    return torch.special.logit(torch.tensor(p, dtype=torch.float64)).float()


# One mask


@each_function
def test_a_draw_follows_its_probability_and_generator(function):
    s = torch.tensor([-3.0, 0.0, 3.0]).repeat(100_000, 1)
    a = function(s, generator=torch.Generator().manual_seed(5))
    b = function(s, generator=torch.Generator().manual_seed(5))
    assert torch.equal(a, b)
    p = sigma(np.array([-3.0, 0.0, 3.0]))
    deviation = np.sqrt(p * (1 - p) / 100_000)
    assert np.all(np.abs(a.mean(0).numpy() - p) < 5 * deviation)


@each_function
@pytest.mark.parametrize("n", [1, random.SMALL, random.SMALL + 1, 2**18 + 1])
def test_a_draw_consumes_a_number_an_entry_or_one_if_large(function, n):
    for generator in (torch.Generator(), torch.default_generator):
        generator.manual_seed(7)
        given = {} if generator is torch.default_generator else {"generator": generator}
        function(torch.zeros(n), **given)
        after = generator.get_state()
        generator.manual_seed(7)
        if n > random.SMALL:
            torch.randint(2**63 - 1, (), generator=generator)
        else:
            torch.rand(n, generator=generator)
        assert torch.equal(generator.get_state(), after)


@each_function
def test_a_default_device_does_not_affect_draws(function):
    with torch.device("meta"):
        assert function(torch.zeros(5, device="cpu")).device.type == "cpu"


def drawn_with(bits, monkeypatch, s):
    """The mask drawn from given 15-bit numbers, one more than there are scores."""

    class Bits:
        def __init__(self, start):
            pass

        def random_raw(self, count):
            found = np.zeros(4 * count, np.int16)
            found[: len(bits)] = bits
            return found.view(np.uint64)

    monkeypatch.setattr(random, "SFC64", Bits)
    monkeypatch.setattr(random, "SMALL", 0)
    return functional.bernoulli(s).tolist()


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64]
)
@pytest.mark.parametrize("bits", [0, 32767])
def test_probabilities_0_and_1_are_certain(dtype, bits, monkeypatch):
    certain = torch.tensor([-torch.inf, torch.inf], dtype=dtype)
    assert drawn_with([bits] * 3, monkeypatch, certain) == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_entry_is_kept_if_its_thirty_bits_are_below_its_probability(
    dtype, monkeypatch
):
    rng = np.random.default_rng(0)
    numbers = rng.integers(2**30, size=50)
    pairs = [(int(u >> 15), int(u & 32767)) for u in numbers]
    pairs += [
        (0, 0),
        (0, 1),
        (1, 0),
        (16383, 32767),
        (16384, 0),
        (16384, 1),
        (32767, 32767),
    ]
    for high, low in pairs:
        u = (high + low / 2**15) / 2**15
        for p in (u - 2**-30, u, u + 2**-30, u + 2**-24, u + 2**-29 * rng.random()):
            p = min(max(p, 2**-40), 1 - 2**-40)
            s = torch.special.logit(torch.tensor([p, 0.5], dtype=torch.float64)).to(
                dtype
            )
            exact = float(
                torch.sigmoid(s)[0]
            )  # p, as far as scores of that dtype have it
            drawn = drawn_with([high, low, 0], monkeypatch, s)
            assert drawn[0] == (u < exact), (u, exact)


@pytest.mark.parametrize("dense", [False, True], ids=["whole", "chunks"])
def test_draws_of_extreme_probabilities_are_accurate_and_uncorrelated(dense):
    n = 2**22
    for exponent in (2, 6, 10, 13, 16):
        p = 2.0**-exponent
        s = score_of(p).expand(n)
        s = s.contiguous() if dense else s  # else drawn in one go
        for scores, rare in ((s, 1), (-s, 0)):
            drawn = (functional.bernoulli(scores) == rare).double().numpy()
            assert abs(drawn.sum() - n * p) < 5 * np.sqrt(n * p)
            for lag in (1, 2, 3, 4, 2048, chunked.CHUNK):
                pairs = (drawn[:-lag] * drawn[lag:]).sum()
                assert (
                    abs(pairs - (n - lag) * p * p)
                    < 5 * np.sqrt(n * p * p) + 5 + n * p * 2**-15
                )


class Elsewhere(torch.Tensor):
    """A tensor subclass, which may be on a GPU or be a shard."""


@each_function
def test_tensor_subclasses_draw_from_their_own_uniform_numbers(function):
    s = torch.tensor([-3.0, 0.0, 3.0]).repeat(100_000, 1).as_subclass(Elsewhere)
    drawn = function(s)
    assert type(drawn) is Elsewhere
    p = sigma(np.array([-3.0, 0.0, 3.0]))
    deviation = np.sqrt(p * (1 - p) / 100_000)
    assert np.all(np.abs(drawn.mean(0).numpy() - p) < 5 * deviation)
    certain = (
        torch.tensor([-torch.inf, torch.inf]).expand(100_000, 2).as_subclass(Elsewhere)
    )
    assert torch.equal(function(certain), torch.tensor([0.0, 1.0]).expand(100_000, 2))


# Many masks


def masks_in_a_row(s, count):
    return [functional.bernoulli(s) for _ in range(count)]


def masks_of_neighbouring_seeds(s, count):
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    return [functional.bernoulli(s, generator) for generator in generators]


def masks_of_neighbouring_numbers(s, count):
    return [torch.ops.masktorch.draw(s, torch.tensor(seed)) for seed in range(count)]


@pytest.mark.parametrize("exponent", [1, 4, 8])
@pytest.mark.parametrize(
    "many", [masks_in_a_row, masks_of_neighbouring_seeds, masks_of_neighbouring_numbers]
)
def test_small_masks_are_independent_of_each_other(many, exponent):
    """Each entry has its probability, and one mask says nothing about the next."""
    p, size, count = 2.0**-exponent, 64, 4000
    drawn = torch.stack(many(score_of(p).expand(size), count)).double().numpy()
    variance = p * (1 - p)
    assert np.all(np.abs(drawn.mean(0) - p) < 5 * np.sqrt(variance / count))
    centred = (drawn - p) / np.sqrt(variance)
    totals = centred.sum(1) / np.sqrt(
        size
    )  # variance 1, kurtosis 3 + (1/variance - 6) / size
    assert abs(totals.var() - 1) < 5 * np.sqrt((2 + (1 / variance - 6) / size) / count)
    for lag in (1, 2, 3):
        across = (centred[:-lag] * centred[lag:]).sum()
        assert abs(across) < 5 * np.sqrt(size * count)
        assert abs((totals[:-lag] * totals[lag:]).sum()) < 5 * np.sqrt(count)


@each_function
def test_manual_seed_and_generator_state_determine_draws(function):
    s = torch.zeros(50)
    torch.manual_seed(3)
    first, state, second = function(s), torch.get_rng_state(), function(s)
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(function(s), second)
    torch.manual_seed(3)
    assert torch.equal(function(s), first)


# Compiled


@pytest.mark.parametrize("shape", [(1,), (0,), (3, 5), (5, 3, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("chunk", [6, 2**18])
def test_the_custom_operation_for_compiled_draws(shape, dtype, chunk, monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK", chunk)
    scores = torch.randn(shape, dtype=dtype)
    if scores.dim() == 4:
        scores = scores.to(memory_format=torch.channels_last)
    seed = torch.tensor(2**62 + 1)
    torch.library.opcheck(torch.ops.masktorch.draw, (scores, seed))
    drawn = torch.ops.masktorch.draw(scores, seed)
    assert drawn.dtype is torch.uint8
    assert drawn.stride() == scores.stride()
    assert torch.equal(torch.ops.masktorch.draw(scores, seed), drawn)
    certain = torch.where(scores > 0, 50.0, -50.0).to(dtype)
    assert torch.equal(torch.ops.masktorch.draw(certain, seed) > 0, scores > 0)


class Twice(nn.Module):
    """One layer called twice, or two tied layers: two draws of the same scores."""

    def __init__(self, tied):
        super().__init__()
        self.a = self.b = nn.Linear(8, 8, bias=False)
        if tied:
            self.b = nn.Linear(8, 8, bias=False)
            self.b.weight = self.a.weight

    def forward(self, x):
        return self.a(x) - self.b(x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("estimator", [Bernoulli(), IntermediateSampling()], ids=repr)
@pytest.mark.parametrize("tied", [False, True], ids=["called twice", "tied"])
def test_two_compiled_draws_differ(dynamo, backend, estimator, tied):
    """Outputs and gradients are zero if the two draws are the same."""
    model = masktorch.wrap(Twice(tied), estimator, init=0.0)
    (scores,) = masktorch.mask_parameters(model)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    x = torch.eye(8)
    for run in (model, compiled):
        difference = run(x)
        (grad,) = torch.autograd.grad(difference.sum(), scores)
        assert difference.abs().sum() > 0, run
        if isinstance(estimator, IntermediateSampling):  # p - q depends on the draw
            assert grad.abs().sum() > 0, run


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("estimator", [Bernoulli(), IntermediateSampling()], ids=repr)
def test_compiled_draws_are_distributed_like_eager_ones(dynamo, backend, estimator):
    """Mean and variance of output and gradients, entry by entry, over many steps."""
    torch.manual_seed(1)
    layer = masktorch.wrap(
        nn.Linear(6, 5, bias=False), estimator, init=torch.randn_like
    )
    masktorch.freeze_weights(layer, False)
    compiled = torch.compile(copy.deepcopy(layer), backend=backend, fullgraph=True)
    x, steps, found = torch.eye(6), 1500, []
    for run in (layer, compiled):
        samples = []
        for _ in range(steps):
            out = run(x)
            gradients = torch.autograd.grad(out.square().sum(), list(run.parameters()))
            samples.append(torch.cat([t.detach().flatten() for t in (out, *gradients)]))
        found.append(torch.stack(samples).double())
    eager, other = found
    for of in (lambda t: t, lambda t: (t - eager.mean(0)).square()):
        a, b = of(eager), of(other)
        spread = (a.var(0) / steps + b.var(0) / steps).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() <= 5 * spread + 1e-6).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_manual_seed_determines_compiled_draws(dynamo, backend):
    layer = masktorch.wrap(nn.Linear(8, 8), Bernoulli(), init=0.0)
    compiled = torch.compile(layer, backend=backend, fullgraph=True)

    def outputs():
        torch.manual_seed(3)
        return compiled(torch.eye(8)), compiled(torch.eye(8))

    first, second = outputs()
    again, _ = outputs()
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


@pytest.mark.skipif(torch.__version__ < "2.7", reason="Dynamo of torch 2.6 refuses it")
@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("compiles", [False, True], ids=["eager", "compiled"])
def test_a_checkpoint_draws_the_same_mask_again(dynamo, backend, compiles):
    layer = masktorch.wrap(nn.Linear(8, 8, bias=False), Bernoulli(), init=0.0)

    def run(x):
        return checkpoint(lambda x: layer(x).exp(), x, use_reentrant=False)

    run = torch.compile(run, backend=backend, fullgraph=True) if compiles else run
    for _ in range(3):
        x = torch.eye(8, requires_grad=True)
        out = run(x)
        (grad,) = torch.autograd.grad(out.sum(), x)
        used = (
            out.detach().log().T
        )  # the weight of the forward, that of the backward is in grad
        torch.testing.assert_close(grad, out.detach() @ used, rtol=1e-4, atol=1e-4)


# Under transforms


@each_function
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_vmap_over_any_dimension(function, dim):
    scores = torch.full((3, 4, 5), 50.0)
    scores.select(dim, 0).fill_(-50)
    mask = torch.func.vmap(function, in_dims=dim, out_dims=dim, randomness="different")(
        scores
    )
    assert torch.equal(mask, (scores > 0).float())


def test_vmap_draws_per_batch_entry_or_once_for_all():
    def draw(scores, randomness="error"):
        return torch.func.vmap(functional.bernoulli, randomness=randomness)(scores)

    scores = torch.zeros(3, 200)
    assert len(draw(scores, "different").unique(dim=0)) == 3
    same = draw(torch.tensor([-1.0, 0.0, 1.0])[:, None].expand(3, 200), "same")
    assert (same[0] <= same[1]).all()
    assert (same[1] <= same[2]).all()
    with pytest.raises(RuntimeError, match="randomness"):
        draw(scores)


def test_vmap_draws_per_batch_entry_for_shared_scores():
    scores = torch.zeros(200)
    drawn = torch.func.vmap(
        lambda _: functional.bernoulli(scores), randomness="different"
    )(torch.arange(3))
    assert len(drawn.unique(dim=0)) == 3


@each_function
@pytest.mark.parametrize("n", [7, 2**18 + 5], ids=["small", "in chunks"])
@pytest.mark.parametrize("fused", [False, True], ids=["mask", "product"])
def test_draws_under_transforms_equal_plain_draws(function, n, fused):
    scores, weight = torch.randn(n), torch.ones(n) if fused else None
    torch.manual_seed(3)
    drawn = function(scores, weight=weight)
    torch.manual_seed(3)

    def total(scores):
        out = function(scores, weight=weight)
        return out.sum(), out

    _, found = torch.func.grad(total, has_aux=True)(scores)
    assert torch.equal(found, drawn)


# Noise


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64]
)
@pytest.mark.parametrize(
    "generator", [None, torch.Generator()], ids=["global", "generator"]
)
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
        monkeypatch.setattr(
            torch, name, lambda _, dtype, **_k: torch.zeros(3, dtype=dtype)
        )
    for generator in (None, torch.Generator()):
        noise = torch.special.logit(
            uniform_like(torch.zeros(3, dtype=dtype), generator)
        )
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
