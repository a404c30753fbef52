"""Another estimator or density on the same scores."""

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import masktorch
from masktorch import (
    Blocks,
    Concrete,
    IntermediateSampling,
    NOfM,
    Threshold,
    TopK,
)
from tools.by_hand import sigma
from tools.models import kept_counts


def two_layers(estimator, **options):
    return masktorch.wrap(
        nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), estimator, **options
    )


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
        assert kept_counts(model) == {
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
    assert kept_counts(model) == {"0.weight": 6, "1.weight": 3}
    masktorch.set_density(model, {"0.weight": 1, "1.weight": 0.01})
    assert kept_counts(model) == {"0.weight": 24, "1.weight": 1}
    assert model[0].parametrizations.weight.estimator == TopK(1)


def test_a_density_is_set_only_where_an_estimator_has_one():
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    masktorch.wrap(model, {"0.weight": Threshold(), "1.weight": TopK(0.5)})
    masktorch.set_density(model, 0.25)
    assert kept_counts(model) == {"0.weight": 24, "1.weight": 3}
    masktorch.set_density(model, {"1.weight": 0.75})
    assert kept_counts(model) == {"0.weight": 24, "1.weight": 9}
    with pytest.raises(ValueError, match=r"Not among them: 0.weight"):
        masktorch.set_density(model, {"0.weight": 0.5, "1.weight": 0.5})


def test_a_frozen_mask_stays_frozen_under_another_density():
    model = masktorch.freeze_mask(two_layers(TopK(0.5)))
    masktorch.set_density(model, 0.25)
    assert kept_counts(model)["0.weight"] == 6
    assert not any(row.trains for row in masktorch.report(model).rows)


def given():
    ones = torch.ones(4, 6, dtype=torch.bool)
    return masktorch.set_masks(nn.Sequential(nn.Linear(6, 4)), {"0.weight": ones})


NO = nn.Sequential(nn.Linear(6, 4))


REFUSED = [
    (
        lambda: two_layers(TopK()),
        0.0,
        ValueError,
        "set_density() for '0.weight' expected a",
    ),
    (lambda: two_layers(TopK()), 1.5, ValueError, "found 1.5"),
    (lambda: two_layers(TopK()), float("nan"), ValueError, "found nan"),
    (lambda: two_layers(TopK()), "0.5", TypeError, "found '0.5'"),
    (lambda: two_layers(TopK()), True, TypeError, "found True"),
    (lambda: two_layers(TopK()), {"0.weight": 0.5}, ValueError, "Missing: 1.weight"),
    (
        lambda: two_layers(TopK()),
        {"0.weight": 0.5, "1.weight": 2.0},
        ValueError,
        "'1.weight'",
    ),
    (
        lambda: two_layers(Threshold()),
        0.5,
        ValueError,
        "whose estimators have a density, as TopK, found "
        "Threshold(tau=0.5). Call masktorch.set_estimator(model, "
        "masktorch.TopK(density, absolute=False)), "
        "which keeps the highest scores of any mask.",
    ),
    (
        given,
        0.5,
        ValueError,
        "whose estimators have a density, found fixed masks only. Call "
        "masktorch.unwrap",
    ),
    (lambda: NO, 0.5, ValueError, "set_density() expected a wrapped model"),
]


@pytest.mark.parametrize(("make", "density", "exception", "message"), REFUSED)
def test_set_density_refuses_before_anything_changes(make, density, exception, message):
    model = make()
    before = repr(model)
    with pytest.raises(exception, match=re.escape(message)):
        masktorch.set_density(model, density)
    assert repr(model) == before


ESTIMATORS_REFUSED = [
    (
        lambda: two_layers(TopK()),
        TopK,
        TypeError,
        "set_estimator() expected an estimator",
    ),
    (lambda: two_layers(TopK()), 0.5, TypeError, "Found 0.5"),
    (lambda: two_layers(TopK()), {"0.weight": TopK()}, ValueError, "Missing: 1.weight"),
    (
        lambda: two_layers(TopK()),
        {"0.weight": TopK(), "1.weight": TopK(), "x": TopK()},
        ValueError,
        "Not masked in this model: x.",
    ),
    (lambda: two_layers(TopK()), NOfM(1, 4), ValueError, "can't mask '0.weight'"),
    (
        lambda: two_layers(TopK()),
        Blocks(TopK(), (4, 4)),
        ValueError,
        "can't mask '0.weight'",
    ),
    (
        lambda: two_layers(TopK()),
        Blocks(TopK(), (1, 2)),
        ValueError,
        "it has scores of shape (4, 3), and those of the model have shape (4, 6)",
    ),
    (
        given,
        TopK(),
        ValueError,
        "found a fixed mask on '0.weight', which has no scores. Call masktorch.unwrap",
    ),
    (lambda: NO, TopK(), ValueError, "set_estimator() expected a wrapped model"),
]


@pytest.mark.parametrize(
    ("make", "estimator", "exception", "message"), ESTIMATORS_REFUSED
)
def test_set_estimator_refuses_before_anything_changes(
    make, estimator, exception, message
):
    model = make()
    before = repr(model)
    with pytest.raises(exception, match=re.escape(message)):
        masktorch.set_estimator(model, estimator)
    assert repr(model) == before


def test_a_density_that_is_no_dataclass_field_is_left_alone():
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
        # the noise is small compared with 300: the mask is nearly sigma(300 / T)
        assert mask.item() == pytest.approx(sigma(300 / temperature), abs=0.1)
    assert compiled.frame_count <= 4


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


def test_cached_weights_depend_on_the_estimator():
    layer = masktorch.wrap(nn.Linear(4, 4), TopK(1.0))
    with torch.nn.utils.parametrize.cached():
        assert (layer.weight != 0).sum() == 16
        masktorch.set_density(layer, 0.25)
        assert (layer.weight != 0).sum() == 4
        for kept_counts in range(
            1, 17
        ):  # estimators that may lie where one was that is gone
            masktorch.set_density(layer, kept_counts / 16)
            assert (layer.weight != 0).sum() == kept_counts
