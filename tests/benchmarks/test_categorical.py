"""The toy of intermediate sampling, against closed forms of its own."""

import itertools
import json

import numpy as np
import pytest
import torch

import masktorch
from benchmarks.studies import categorical

FAR = 1e3  # noise that decides what is drawn


def forced(shape, drawn):
    return torch.zeros(shape, dtype=torch.float64).scatter(-1, drawn.unsqueeze(-1), FAR)


def closed_form(logits, drawn, g, alpha):
    """dL/dlogits of one draw, entry by entry: pi_j minus the moved draw's share."""
    weights = np.exp(logits)
    others = [j for j in range(len(logits)) if j != drawn]
    total = 1 - alpha * sum(g[j] - g[drawn] for j in others)
    share = np.zeros_like(logits)
    share[drawn] = 1 / total
    for j in others:
        share[j] = -alpha * (g[j] - g[drawn]) / total
    return weights / weights.sum() - share


def test_gradient_is_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(
        40, 5, dtype=torch.float64, generator=generator, requires_grad=True
    )
    g = torch.randn(40, 5, dtype=torch.float64, generator=generator)
    drawn = torch.randint(5, (40,), generator=generator)
    z = categorical.Intermediate.apply(logits, forced(logits.shape, drawn), 0.05)
    assert torch.equal(z, torch.nn.functional.one_hot(drawn, 5).double())
    (found,) = torch.autograd.grad((z * g).sum(), logits)
    for row in range(40):
        expected = closed_form(
            logits[row].detach().numpy(), int(drawn[row]), g[row].numpy(), 0.05
        )
        np.testing.assert_allclose(found[row].numpy(), expected, rtol=1e-12, atol=1e-15)


def test_gradient_is_that_of_a_divergence():
    """pi - pi_D is the derivative of KL(pi_D || pi), pi_D held, by the logits."""
    logits = torch.tensor(
        [0.3, -1.0, 2.0, 0.0], dtype=torch.float64, requires_grad=True
    )
    g = torch.tensor(
        [-0.2, 0.5, 0.4, 0.3], dtype=torch.float64
    )  # largest at the draw: pi_D > 0
    z = categorical.Intermediate.apply(logits, forced((4,), torch.tensor(1)), 0.1)
    (found,) = torch.autograd.grad((z * g).sum(), logits)
    moved = (torch.softmax(logits, -1) - found).detach()
    assert (moved > 0).all()
    divergence = (moved * (moved.log() - torch.log_softmax(logits, -1))).sum()
    (expected,) = torch.autograd.grad(divergence, logits)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_two_categories_are_the_librarys_rule():
    """z = (1 - m, m): logits (0, s), dL/dz = (0, g), alpha = step_size / rms(g)."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(
        200, dtype=torch.float64, generator=generator, requires_grad=True
    )
    g = torch.rand(200, dtype=torch.float64, generator=generator) - 0.5
    m = masktorch.functional.intermediate(scores, 0.1, generator)
    (expected,) = torch.autograd.grad((m * g).sum(), scores)

    logits = torch.stack([torch.zeros_like(scores), scores], -1)
    alpha = float(0.1 / g.square().mean().sqrt())
    assert (alpha * g).abs().max() < 0.5  # where the bound is idle
    z = categorical.Intermediate.apply(
        logits, forced(logits.shape, m.detach().long()), alpha
    )
    assert torch.equal(z[:, 1], m)
    assert 20 < m.sum() < 180
    (found,) = torch.autograd.grad((z[:, 1] * g).sum(), scores)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_it_draws_from_pi():
    torch.manual_seed(0)
    pi = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    noise = -torch.empty(20_000, 4, dtype=torch.float64).exponential_().log()
    drawn = categorical.Intermediate.apply(pi.log().expand_as(noise), noise, 1.0).mean(
        0
    )
    assert (drawn - pi).abs().max() < 4 * 0.5 / 20_000**0.5


def test_gumbel_softmax():
    logits, noise = torch.randn(
        2, 6, 4, generator=torch.Generator().manual_seed(2)
    ).double()
    soft = categorical.gumbel_softmax(
        logits, noise, torch.tensor(2.0, dtype=torch.float64)
    )
    powers = np.exp((logits + noise).numpy() / 2)
    np.testing.assert_allclose(
        soft.numpy(), powers / powers.sum(-1, keepdims=True), rtol=1e-12
    )
    cold = categorical.gumbel_softmax(
        logits, noise, torch.tensor(1e-4, dtype=torch.float64)
    )
    torch.testing.assert_close(cold, categorical.Intermediate.apply(logits, noise, 1.0))


@pytest.mark.parametrize("a", [0.5, 1, 3])
def test_the_toy_is_well_posed(a):
    """The expected gradient is that of KL(truth || pi) times a / (1 + a).

    That is a half for alpha = EPSILON, as in the toy.
    """
    logits = torch.tensor([0.2, -0.7, 1.1], dtype=torch.float64, requires_grad=True)
    truth = torch.tensor([0.5, 0.4, 0.1], dtype=torch.float64)
    pi = torch.softmax(logits, -1).detach()
    mean = torch.zeros(3, dtype=torch.float64)
    for k, target in itertools.product(range(3), repeat=2):
        alpha = a * categorical.EPSILON
        z = categorical.Intermediate.apply(logits, forced((3,), torch.tensor(k)), alpha)
        loss = -(z[target] + categorical.EPSILON).log()
        mean += pi[k] * truth[target] * torch.autograd.grad(loss, logits)[0]
    torch.testing.assert_close(mean, (pi - truth) * a / (1 + a), rtol=1e-12, atol=1e-15)


def test_it_recovers():
    """Uniform at first; the truth is recovered, so the divergence nears zero."""
    history = dict(categorical.recover(800, 4, 0))
    assert history[1].shape == (4, 3, 4)
    coarse = categorical.STEP_SIZES.index(0.1)
    before, after = (history[step][0, coarse].mean() for step in (1, 800))
    assert before > 0.2
    assert after < 0.05
    assert (history[800] > 0).all()
    start = history[1][-1, -1]  # the hottest with the smallest step has hardly moved
    moves = (history[1][1:, coarse] - start).abs().mean(-1)
    assert moves.tolist() == sorted(
        moves.tolist(), reverse=True
    )  # a step is of size 1 / T


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    return categorical.run(folder, steps=150)


def test_what_is_written(written):
    content = json.loads(written.read_text())
    assert content["command"].startswith("python -m benchmarks")
    assert content["environment"].keys() >= {
        "commit",
        "dirty",
        "masktorch",
        "torch",
        "processor",
    }
    assert (content["seed"], content["categories"]) == (0, 10)
    assert content["steps"][0] == 1
    assert content["steps"][-1] == 150
    assert 100 in content["steps"]


def test_the_divergences(written):
    content = json.loads(written.read_text())
    names = [f"Gumbel-softmax, T = {t}" for t in ("0.1", "1", "10")]
    found = dict(categorical.recover(150, categorical.RUNS, 0))
    expected = itertools.product(
        ["intermediate sampling", *names], categorical.STEP_SIZES
    )
    for number, (each, key) in enumerate(
        zip(content["methods"], expected, strict=True)
    ):
        assert (each["method"], each["step_size"]) == key
        for step in (1, 100, 150):
            at = content["steps"].index(step)
            runs = [run[at] for run in each["divergence"]]
            assert runs == pytest.approx(
                found[step][divmod(number, 3)].tolist(), rel=1e-4
            )


def test_the_command(tmp_path, call):
    assert call("categorical", "--output", tmp_path, "--steps", 120)[0] == 0
    assert [p.name for p in tmp_path.iterdir()] == ["categorical.json"]
