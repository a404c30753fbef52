"""`layer.weight = ...` on a masked layer: values, parameters and refusals."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import masktorch
from masktorch import (
    Bernoulli,
    Threshold,
)
from tools.models import (
    ROWS,
    STRIPES,
    parameter_under,
    random_masks,
    striped,
    weight_under,
)


def test_assigning_values_writes_into_the_parameter():
    layer = masktorch.wrap(nn.Linear(2, 1))
    masktorch.set_masks(layer, {"weight": torch.tensor([[True, False]])})
    parameter = parameter_under(layer, "weight")
    layer.weight = torch.tensor([[3.0, 4.0]])
    assert parameter_under(layer, "weight") is parameter
    assert parameter.tolist() == [[3.0, 4.0]]
    assert layer.eval().weight.tolist() == [[3.0, 0.0]]


@pytest.mark.parametrize("value", [None, torch.ones(()), nn.Parameter(torch.ones(2))])
def test_assigning_another_shape_is_refused(value):
    layer = masktorch.wrap(nn.Linear(2, 3), bias=True)
    with pytest.raises(
        ValueError, match=r"'bias' has a mask: expected a tensor of shape \(3,\)"
    ):
        layer.bias = value
    assert layer(torch.ones(1, 2)).shape == (1, 3)


def test_assigning_to_a_masked_weight():
    layer = random_masks(nn.Linear(4, 3)).eval()
    mask = masktorch.masks(layer)["weight"]
    parameter = dict(layer.named_parameters())["weight"]
    value = torch.randn(3, 4)
    layer.weight = value
    assert dict(layer.named_parameters())["weight"] is parameter
    assert torch.equal(layer.weight, value * mask)

    new = nn.Parameter(torch.randn(3, 4))
    layer.weight = new
    assert dict(layer.named_parameters())["weight"] is new
    assert layer.parametrizations.weight.original is new
    assert torch.equal(layer.weight, new * mask)
    masktorch.unwrap(layer)
    assert layer.weight is new

    masktorch.wrap(layer)
    with pytest.raises((RuntimeError, ValueError)):
        layer.weight = torch.randn(4, 4)
    with pytest.raises((TypeError, ValueError)):
        layer.weight = "weight"


PHASES = {
    "learning": lambda m: m,
    "evaluated": nn.Module.eval,
    "frozen": masktorch.freeze_mask,
    "mixed": lambda m: masktorch.freeze_weights(masktorch.freeze_mask(m), False),
}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("estimator", [Threshold(), Bernoulli()], ids=repr)
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("gradients", [True, False])
def test_a_weight_assigned_to_itself_changes_nothing(
    phase, estimator, rescale, gradients
):
    layer = PHASES[phase](striped(estimator=estimator, rescale=rescale))
    parameter, before = weight_under(layer), weight_under(layer).detach().clone()
    with torch.set_grad_enabled(gradients):
        layer.weight = layer.weight
        kept = layer.weight
        with torch.no_grad():
            parameter.mul_(2)
        layer.weight = (
            kept  # as without masks: it is the parameter, even if changed since
        )
    assert weight_under(layer) is parameter
    assert torch.equal(parameter, 2 * before)


@pytest.mark.parametrize("phase", PHASES)
def test_the_weight_of_another_mask_is_refused(phase):
    a, b = PHASES[phase](striped()), PHASES[phase](striped())
    before = weight_under(b).detach().clone()
    with pytest.raises(
        ValueError, match=r"'weight' has a mask of its own.*another one.*tie the two"
    ):
        b.weight = a.weight
    assert torch.equal(weight_under(b), before)
    b.weight = weight_under(a)  # two masks on one tensor, which unwrap does not bake
    assert weight_under(b) is weight_under(a)


@pytest.mark.parametrize("value", [
    lambda layer: layer.weight * 2,
    lambda layer: torch.ones(4, 4, requires_grad=True),
])  # fmt: skip
def test_assigning_a_tensor_that_requires_a_gradient_is_refused(value):
    layer = striped()
    before = weight_under(layer).detach().clone()
    with pytest.raises(
        ValueError, match=r"expected values or an nn.Parameter.*detach\(\)"
    ):
        layer.weight = value(layer)
    assert torch.equal(weight_under(layer), before)


def test_reads_after_an_assignment_see_the_new_value():
    """Within one forward, which holds its draw, and within `parametrize.cached()`."""

    class Assigns(nn.Linear):
        def forward(self, x):
            before = self.weight
            assert self.weight is before  # held
            self.weight = self.value
            return F.linear(x, self.weight)

    layer = masktorch.wrap(Assigns(4, 4, bias=False), Bernoulli(), init=200.0)
    layer.value = torch.ones(4, 4)
    assert torch.equal(layer(ROWS), F.linear(ROWS, torch.ones(4, 4)))
    layer.value = nn.Parameter(torch.full((4, 4), 2.0))
    assert torch.equal(layer(ROWS), F.linear(ROWS, layer.value))
    with parametrize.cached():
        assert torch.equal(layer.weight, torch.full((4, 4), 2.0))
        layer.weight = nn.Parameter(torch.zeros(4, 4))
        assert torch.count_nonzero(layer.weight) == 0


def test_an_in_place_operation_on_the_weight_assigns_its_values():
    layer = striped().eval()
    with torch.no_grad():
        before = weight_under(layer).clone()
        layer.weight *= 2
    assert torch.equal(layer.weight, 2 * before * STRIPES)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_write_into_what_was_read_can_be_assigned_back(mode):
    """PyTorch counts no writes in inference mode."""
    layer = masktorch.wrap(nn.Linear(2, 1, bias=False))
    original = layer.parametrizations.weight.original
    original.data[:] = torch.tensor([[2.0, torch.nan]])
    masktorch.set_masks(layer, {"weight": torch.tensor([[False, True]])})
    with mode():
        layer.weight = layer.weight
    assert str(original.tolist()) == "[[2.0, nan]]"
    with mode():
        weight = layer.weight
        weight[:] = 7.0
        layer.weight = weight
    assert original.tolist() == [[7.0, 7.0]]


class Writes(nn.Linear):
    """Adds `amount` to its weight in every forward, and assigns it back."""

    amount = 0.0

    def forward(self, x):
        self.weight += self.amount
        return super().forward(x)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_write_within_a_forward_can_be_assigned_back(mode, frozen):
    layer = Writes(2, 1, bias=False)
    masktorch.wrap(layer, Threshold())
    original = layer.parametrizations.weight.original
    original.data[:] = torch.tensor([[2.0, 3.0]])
    with torch.no_grad():
        layer.parametrizations.weight.scores[0, 0] = 0.0
    if frozen:
        masktorch.freeze_mask(layer)
    with mode():
        layer(torch.ones(1, 2))
    # Adding 0 changes no value. Without a version counter that is no write.
    if mode is torch.inference_mode:
        assert original.tolist() == [[2.0, 3.0]]
    layer.amount = 7.0
    with mode():
        layer(torch.ones(1, 2))
    assert original.tolist() == [[7.0, 10.0]]


@pytest.mark.parametrize("value", [None, nn.Parameter(torch.ones(1, 4))])
def test_a_parameter_that_does_not_fit_is_not_registered_under_a_mask(value):
    layer = masktorch.wrap(nn.Linear(4, 3))
    before = layer.parametrizations.weight.original
    with pytest.raises(ValueError, match=r"expected a tensor of shape \(3, 4\)"):
        layer.register_parameter("weight", value)
    assert layer.parametrizations.weight.original is before
    same = nn.Parameter(torch.ones(3, 4))
    layer.register_parameter("weight", same)
    assert layer.parametrizations.weight.original is same
