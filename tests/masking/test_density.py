"""How dense: another estimator on the same scores, densities, their expectation."""

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import masktorch
from masktorch import (
    Bernoulli,
    Concrete,
    HardConcrete,
    IntermediateSampling,
    NOfM,
    Piggyback,
    Threshold,
    TopK,
)


def sigma(s):
    return 1 / (1 + np.exp(-s))


def two_layers(estimator, **options):
    return masktorch.wrap(
        nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), estimator, **options
    )


def kept(model):
    return {name: int(mask.sum()) for name, mask in masktorch.masks(model).items()}


def test_a_mapping_gives_each_tensor_its_estimator_and_names_the_targets():
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3), nn.Linear(3, 2))
    masktorch.wrap(model, {"2.bias": Threshold(), "0.weight": TopK(0.25)})
    assert kept(model) == {"0.weight": 6, "2.bias": 2}
    assert model[0].parametrizations.weight.estimator == TopK(0.25)
    assert type(model[1]) is nn.Linear


def test_a_tied_tensor_in_a_mapping():
    def tied():
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight = model[0].weight
        return model

    assert kept(masktorch.wrap(tied(), {"1.weight": TopK(0.25)})) == {"0.weight": 4}
    both = {"0.weight": TopK(0.25), "1.weight": TopK(0.5)}
    with pytest.raises(
        ValueError, match=r"one estimator, found two for '0.weight', tied"
    ):
        masktorch.wrap(tied(), both)


WRAP = [
    (({"0.weight": TopK()},), {"bias": True}, ValueError, "Missing: 0.bias."),
    (({"0.weight": TopK()},), {"targets": ["0.bias"]}, ValueError, "Missing: 0.bias."),
    (
        ({"0.wieght": TopK()},),
        {},
        ValueError,
        "no parameter '0.wieght' in the model. Did you",
    ),
    (
        ({"0.weight": TopK},),
        {},
        TypeError,
        "an estimator such as masktorch.Threshold()",
    ),
    (({"0.weight": 0.5},), {}, TypeError, "Found 0.5"),
    (({},), {}, ValueError, "found nothing to mask"),
    ((TopK(block=(4, 4)),), {}, ValueError, "'0.weight'"),
    ((NOfM(2, 4),), {}, ValueError, "'0.weight'"),
]


@pytest.mark.parametrize(("arguments", "options", "exception", "message"), WRAP)
def test_what_wrap_refuses(arguments, options, exception, message):
    model = nn.Sequential(nn.Linear(6, 4))
    with pytest.raises(exception, match=re.escape(message)):
        masktorch.wrap(model, *arguments, **options)
    assert type(model[0]) is nn.Linear


def test_another_estimator_leaves_scores_gradients_and_optimiser_alone():
    model = two_layers(Threshold())
    optimiser = torch.optim.Adam(masktorch.mask_parameters(model), lr=1e-2)
    model(torch.randn(5, 6)).square().sum().backward()
    optimiser.step()
    scores = {
        name: s.detach().clone() for name, s in masktorch.named_mask_parameters(model)
    }
    before = [state["exp_avg"].clone() for state in optimiser.state.values()]
    for step in range(100):
        density = masktorch.budget.cubic(1.0, 0.1, step / 99)
        masktorch.set_estimator(model, TopK(density, absolute=False))
        assert kept(model) == {
            "0.weight": max(1, int(density * 24 + 0.5)),
            "1.weight": max(1, int(density * 12 + 0.5)),
        }
    for name, parameter in masktorch.named_mask_parameters(model):
        assert torch.equal(parameter, scores[name])
        assert parameter in optimiser.state
        assert parameter.grad is not None
    for old, state in zip(before, optimiser.state.values(), strict=True):
        assert torch.equal(old, state["exp_avg"])


def test_densities_as_a_number_and_by_name():
    model = two_layers(TopK(0.5))
    masktorch.set_density(model, 0.25)
    assert kept(model) == {"0.weight": 6, "1.weight": 3}
    masktorch.set_density(model, {"0.weight": 1, "1.weight": 0.01})
    assert kept(model) == {"0.weight": 24, "1.weight": 1}
    assert model[0].parametrizations.weight.estimator == TopK(1)


def test_a_density_is_set_where_there_is_one():
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    masktorch.wrap(model, {"0.weight": Threshold(), "1.weight": TopK(0.5)})
    masktorch.set_density(model, 0.25)
    assert kept(model) == {"0.weight": 24, "1.weight": 3}
    masktorch.set_density(model, {"1.weight": 0.75})
    assert kept(model) == {"0.weight": 24, "1.weight": 9}
    with pytest.raises(ValueError, match=r"Not among them: 0.weight"):
        masktorch.set_density(model, {"0.weight": 0.5, "1.weight": 0.5})


def test_a_frozen_mask_stays_frozen_under_another_density():
    model = masktorch.freeze_mask(two_layers(TopK(0.5)))
    masktorch.set_density(model, 0.25)
    assert kept(model)["0.weight"] == 6
    assert not any(row.trains for row in masktorch.report(model).rows)


def given():
    ones = torch.ones(4, 6, dtype=torch.bool)
    return masktorch.set_masks(nn.Sequential(nn.Linear(6, 4)), {"0.weight": ones})


NO = nn.Sequential(nn.Linear(6, 4))
REFUSED = [
    (lambda: two_layers(TopK()), 0.0, ValueError, "set_density() for '0.weight' expected a"),
    (lambda: two_layers(TopK()), 1.5, ValueError, "found 1.5"),
    (lambda: two_layers(TopK()), float("nan"), ValueError, "found nan"),
    (lambda: two_layers(TopK()), "0.5", TypeError, "found '0.5'"),
    (lambda: two_layers(TopK()), True, TypeError, "found True"),
    (lambda: two_layers(TopK()), {"0.weight": 0.5}, ValueError, "Missing: 1.weight"),
    (lambda: two_layers(TopK()), {"0.weight": 0.5, "1.weight": 2.0}, ValueError, "'1.weight'"),
    (lambda: two_layers(Threshold()), 0.5, ValueError, "whose estimators have a density, as TopK, found "
     "Threshold(tau=0.5). Call masktorch.set_estimator(model, masktorch.TopK(density, absolute=False)), "
     "which keeps the highest scores of any mask."),
    (given, 0.5, ValueError, "whose estimators have a density, found fixed masks only. Call masktorch.unwrap"),
    (lambda: NO, 0.5, ValueError, "set_density() expected a wrapped model"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "density", "exception", "message"), REFUSED)
def test_what_set_density_refuses(make, density, exception, message):
    model = make()
    before = repr(model)
    with pytest.raises(exception, match=re.escape(message)):
        masktorch.set_density(model, density)
    assert repr(model) == before


ESTIMATORS_REFUSED = [
    (lambda: two_layers(TopK()), TopK, TypeError, "set_estimator() expected an estimator"),
    (lambda: two_layers(TopK()), 0.5, TypeError, "Found 0.5"),
    (lambda: two_layers(TopK()), {"0.weight": TopK()}, ValueError, "Missing: 1.weight"),
    (lambda: two_layers(TopK()), {"0.weight": TopK(), "1.weight": TopK(), "x": TopK()},
     ValueError, "Not masked in this model: x."),
    (lambda: two_layers(TopK()), NOfM(1, 4), ValueError, "can't mask '0.weight'"),
    (lambda: two_layers(TopK()), TopK(block=(2, 2)), ValueError, "can't mask '1.weight'"),
    (given, TopK(), ValueError, "found a fixed mask on '0.weight', which has no scores. Call masktorch.unwrap"),
    (lambda: NO, TopK(), ValueError, "set_estimator() expected a wrapped model"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "estimator", "exception", "message"), ESTIMATORS_REFUSED
)
def test_what_set_estimator_refuses(make, estimator, exception, message):
    model = make()
    before = repr(model)
    with pytest.raises(exception, match=re.escape(message)):
        masktorch.set_estimator(model, estimator)
    assert repr(model) == before


EXPECTED = [
    # estimator, the probability that an entry with score s is kept, its derivative by s
    (Threshold(), lambda s: s > 0, lambda s: sigma(s) * sigma(-s)),
    (Threshold(0.7), lambda s: sigma(s) > 0.7, lambda s: sigma(s) * sigma(-s)),
    (Bernoulli(), sigma, lambda s: sigma(s) * sigma(-s)),
    (IntermediateSampling(), sigma, lambda s: sigma(s) * sigma(-s)),
    (Piggyback(0.1), lambda s: s > 0.1, np.ones_like),
    (Concrete(), sigma, lambda s: sigma(s) * sigma(-s)),
    (Concrete(2.0, hard=False), sigma, lambda s: sigma(s) * sigma(-s)),
    (
        HardConcrete(0.5, -0.2, 1.3),
        lambda s: sigma(s - 0.5 * np.log(0.2 / 1.3)),
        lambda s: (
            sigma(s - 0.5 * np.log(0.2 / 1.3)) * sigma(0.5 * np.log(0.2 / 1.3) - s)
        ),
    ),
]


@pytest.mark.parametrize(
    ("estimator", "probability", "slope"),
    EXPECTED,
    ids=[repr(case[0]) for case in EXPECTED],
)
def test_the_expected_density_and_its_gradient(estimator, probability, slope):
    rng = np.random.default_rng(0)
    s = {"0.weight": rng.normal(size=(4, 6)), "1.weight": rng.normal(size=(3, 4))}
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)).double()
    masktorch.wrap(model, estimator)
    for name, scores in masktorch.named_mask_parameters(model):
        scores.data = torch.tensor(s[name])
    density = masktorch.expected_density(model)
    assert density.shape == ()
    np.testing.assert_allclose(
        density.item(), sum(probability(a).sum() for a in s.values()) / 36, rtol=1e-12
    )
    density.backward()
    for name, scores in masktorch.named_mask_parameters(model):
        np.testing.assert_allclose(scores.grad, slope(s[name]) / 36, rtol=1e-10)


@pytest.mark.parametrize(
    "estimator", [TopK(0.25), TopK(0.25, absolute=False), NOfM(1, 2)]
)
def test_where_the_count_is_fixed_the_expected_density_is_a_constant(estimator):
    model = two_layers(estimator)
    density = masktorch.expected_density(model)
    assert not density.requires_grad
    assert density.item() == pytest.approx(masktorch.report(model).density)


@pytest.mark.parametrize(
    "make", [lambda: masktorch.freeze_mask(two_layers(Bernoulli())), given]
)
def test_a_mask_that_does_not_learn_has_the_density_it_has(make):
    density = masktorch.expected_density(make())
    assert not density.requires_grad
    assert density == 1.0


def test_the_expected_density_of_half_precision_is_not_rounded_to_it():
    layer = masktorch.wrap(nn.Linear(100, 100).bfloat16(), Bernoulli(), init=0.0)
    density = masktorch.expected_density(layer)
    assert density.dtype is torch.float32
    assert density == 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_density_of_a_frozen_mask_is_not_rounded_to_the_default_dtype(dtype):
    layer = masktorch.freeze_mask(masktorch.wrap(nn.Linear(600, 600), TopK(0.5011)))
    torch.set_default_dtype(dtype)
    try:
        density = masktorch.expected_density(layer)
    finally:
        torch.set_default_dtype(torch.float32)
    assert density.item() == pytest.approx(masktorch.report(layer).density)


def test_a_density_that_is_no_field_is_not_set():
    class Dense:
        density = 0.25

        def __call__(self, scores):
            return torch.sigmoid(scores)

        def mode(self, scores):
            return scores > 0

    model = masktorch.wrap(
        nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)),
        {"0.weight": Dense(), "1.weight": TopK(0.5)},
    )
    masktorch.set_density(model, 0.25)
    assert masktorch.masks(model)["1.weight"].sum() == 3
    assert masktorch.budget.erk(model, 0.5).keys() == {"1.weight"}


def test_a_penalty_reaches_its_target():
    """((expected - target) / 0.05) ** 2 is a line of the user's."""
    model = two_layers(Bernoulli(), init=0.0)
    optimiser = torch.optim.Adam(masktorch.mask_parameters(model), lr=0.1)
    for _ in range(100):
        optimiser.zero_grad()
        (((masktorch.expected_density(model) - 0.2) / 0.05) ** 2).backward()
        optimiser.step()
    assert masktorch.expected_density(model).item() == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize(
    "estimator",
    [
        Threshold(),
        Threshold(0.9),
        Bernoulli(),
        Bernoulli(0.9),
        IntermediateSampling(),
        Piggyback(),
        Piggyback(0.5),
        HardConcrete(),
        Concrete(),
        Concrete(hard=False),
    ],
    ids=repr,
)
def test_a_fresh_model_evaluates_as_the_plain_one(estimator):
    torch.manual_seed(0)
    plain, x = nn.Linear(6, 4), torch.randn(3, 6)
    expected = plain(x)
    model = masktorch.wrap(plain, estimator).eval()
    assert torch.equal(model(x), expected)
    assert masktorch.report(model).masked == 0


@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated"
)  # Dynamo itself does it
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_ten_temperatures_compile_at_most_four_graphs_and_are_the_ones_set(backend):
    torch._dynamo.reset()
    compiled = CompileCounterWithBackend(backend)
    layer = masktorch.wrap(
        nn.Linear(1, 1, bias=False), Concrete(900.0, hard=False), init=300.0
    )
    layer._parameters["weight"].data.fill_(1.0)
    forward = torch.compile(layer, backend=compiled, fullgraph=True)
    for temperature in np.geomspace(800, 50, 10):
        masktorch.set_estimator(layer, Concrete(float(temperature), hard=False))
        mask = forward(torch.ones(1, 1))
        mask.sum().backward()
        # the noise is some units beside 300, so that the mask is nearly sigma(300 / T)
        assert mask.item() == pytest.approx(sigma(300 / temperature), abs=0.1)
    assert compiled.frame_count <= 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "estimator", [Bernoulli(), HardConcrete(), Concrete()], ids=repr
)
def test_a_penalty_reaches_confident_scores_in_half_precision(estimator, dtype):
    layer = masktorch.wrap(nn.Linear(2, 2, bias=False).to(dtype), estimator, init=7.0)
    masktorch.expected_density(layer).backward()
    (scores,) = masktorch.mask_parameters(layer)
    shift = 2 / 3 * np.log(0.1 / 1.1) if isinstance(estimator, HardConcrete) else 0
    slope = sigma(7 - shift) * sigma(shift - 7) / 4
    np.testing.assert_allclose(scores.grad.double(), np.full((2, 2), slope), rtol=0.02)


def test_an_estimator_is_a_value_not_a_module():
    class Module(nn.Module):
        def forward(self, scores):
            return scores

        def mode(self, scores):
            return scores > 0

    model = two_layers(Threshold())
    with pytest.raises(TypeError, match=r"set_estimator\(\) expected an estimator"):
        masktorch.set_estimator(model, {"0.weight": TopK(), "1.weight": Module()})
    assert model[0].parametrizations.weight.estimator == Threshold()


@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated"
)  # Dynamo itself does it
def test_a_compiled_model_takes_another_step_size():
    torch._dynamo.reset()
    model = two_layers(IntermediateSampling(0.1))
    compiled = torch.compile(model, backend="eager")
    for step_size in (0.1, 0.2, 0.3):
        masktorch.set_estimator(model, IntermediateSampling(step_size))
        compiled(torch.randn(2, 6)).sum().backward()


def test_soft_masks_are_rescaled_by_their_sum_however_small(monkeypatch):
    u = torch.full((1, 2), 0.5)
    monkeypatch.setattr(
        "masktorch._methods.concrete.uniform_like", lambda scores, generator: u
    )
    layer = nn.Linear(2, 1, bias=False)
    masktorch.wrap(layer, Concrete(hard=False), init=-3.0, rescale=True)
    m = sigma(np.full(2, -3.0) / (2 / 3))
    expected = layer._parameters["weight"].detach().numpy() * m * 2 / m.sum()
    np.testing.assert_allclose(layer.weight.detach().numpy(), expected, rtol=1e-5)


def test_what_is_cached_is_of_the_estimator_and_the_phase_that_computed_it():
    layer = masktorch.wrap(nn.Linear(4, 4), TopK(1.0))
    with torch.nn.utils.parametrize.cached():
        assert (layer.weight != 0).sum() == 16
        masktorch.set_density(layer, 0.25)
        assert (layer.weight != 0).sum() == 4
        for kept in range(1, 17):  # estimators that may lie where one was that is gone
            masktorch.set_density(layer, kept / 16)
            assert (layer.weight != 0).sum() == kept
