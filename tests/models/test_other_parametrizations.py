"""Masks together with weight_norm, orthogonal and other parametrizations."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.parametrizations import weight_norm

import masktorch
from tools.estimators import each_elementwise
from tools.models import ROWS, random_masks, same_output


def old_weight_norm():
    with pytest.warns(FutureWarning):
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(2, 2)))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@each_elementwise
def test_originals_of_the_old_weight_norm_can_be_masked(estimator):
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)))
    random_masks(model, estimator, targets=["0.weight_v"])
    model(ROWS).square().sum().backward()
    (scores,) = masktorch.mask_parameters(model)
    assert torch.count_nonzero(scores.grad)
    out = model.eval()(ROWS)
    assert same_output(masktorch.unwrap(model)(ROWS), out)
    nn.utils.remove_weight_norm(model[0])
    assert same_output(model(ROWS), out)


def pruned():
    layer = nn.Linear(2, 2)
    prune.random_unstructured(layer, "weight", amount=1)
    return nn.Sequential(layer, nn.Linear(2, 2))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("make", "name", "remove"),
    [
        (pruned, "weight_orig", lambda layer: prune.remove(layer, "weight")),
        (old_weight_norm, "weight_v", nn.utils.remove_weight_norm),
    ],
)
def test_a_tensor_taken_from_under_its_mask_is_reported(make, name, remove):
    model = masktorch.wrap(make().append(nn.Linear(2, 2)), targets=[f"0.{name}"])
    remove(model[0])
    for call in (masktorch.masks, masktorch.report, masktorch.unwrap):
        with pytest.raises(ValueError, match=f"found none under that of '0.{name}'"):
            call(model)
    del model[0].parametrizations[name]
    assert not [n for n, _ in model.named_parameters() if n.endswith("scores")]
    assert list(masktorch.masks(masktorch.wrap(model, targets=["1.weight"]))) == [
        "1.weight"
    ]


class AddOne(nn.Module):
    def forward(self, x):
        return x + 1


def test_registering_a_parametrization_beside_a_mask_is_refused():
    class Own(nn.Linear):  # a class that no other test wraps
        pass

    model = nn.Sequential(Own(4, 4), Own(4, 4))
    masktorch.wrap(model)
    expected = model[1](ROWS)
    bias = model[0].bias.detach().clone()
    with pytest.raises((TypeError, ValueError), match="wrap"):
        parametrize.register_parametrization(model[0], "bias", AddOne())
    assert torch.equal(model[0].bias, bias)
    assert isinstance(model[1].bias, nn.Parameter)
    assert torch.equal(model[1](ROWS), expected)
    assert masktorch.wrap(Own(4, 4))(ROWS).shape == (3, 4)


def test_registering_a_parametrization_on_a_masked_tensor_is_refused():
    layer = random_masks(nn.Linear(4, 4))
    out = layer.eval()(ROWS)
    for register in (weight_norm, lambda m: parametrize.register_parametrization(
        m, "weight", AddOne()
    )):  # fmt: skip
        with pytest.raises(TypeError, match="not a list of parametrizations"):
            register(layer)
        assert torch.equal(layer(ROWS), out)


@pytest.mark.xfail(strict=True, reason="it takes the parameter away before it fails")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_old_weight_norm_on_a_masked_tensor_changes_nothing():
    layer = random_masks(nn.Linear(4, 4))
    out = layer.eval()(ROWS)
    with pytest.raises((TypeError, ValueError, KeyError)):
        nn.utils.weight_norm(layer)
    assert torch.equal(layer(ROWS), out)


@pytest.mark.xfail(
    strict=True,
    reason="masks are a child of the ParametrizationList, which counts its children",
)
def test_a_parametrization_appended_where_an_original_is_masked():
    layer = weight_norm(nn.Linear(4, 4))
    masktorch.wrap(layer, targets=["parametrizations.weight.original1"])
    before = layer.weight.detach()
    parametrize.register_parametrization(layer, "weight", AddOne())
    torch.testing.assert_close(layer.weight, before + 1)


@pytest.mark.xfail(
    strict=True,
    reason="the masks are a child of the ParametrizationList, over which it iterates",
)
def test_assigning_to_a_weight_whose_originals_are_masked():
    layer = weight_norm(nn.Linear(4, 4))
    masktorch.wrap(layer, targets=["parametrizations.weight.original1"])
    layer.weight = ROWS.new_ones(4, 4)
    torch.testing.assert_close(layer.weight, torch.ones(4, 4))


@pytest.mark.parametrize(
    "make", [old_weight_norm, lambda: nn.Sequential(weight_norm(nn.Linear(2, 2)))]
)
def test_default_targets_leave_out_computed_weights(make):
    model = make().append(nn.Linear(2, 2))
    with pytest.warns(
        UserWarning, match=r"wrap\(\) leaves out 0.weight: not a parameter"
    ) as caught:
        masktorch.wrap(model)
    assert caught[0].filename == __file__
    assert list(masktorch.masks(model)) == ["1.weight"]


def test_a_parametrization_of_another_tensor_can_be_removed():
    layer = nn.Linear(3, 2)
    parametrize.register_parametrization(layer, "bias", Doubled())
    masktorch.wrap(layer)
    expected = layer(torch.ones(1, 3))
    parametrize.remove_parametrizations(layer, "bias")
    assert torch.equal(layer(torch.ones(1, 3)), expected)
    assert isinstance(layer.bias, nn.Parameter)
    assert list(masktorch.masks(layer)) == ["weight"]
    masktorch.unwrap(layer)
    assert torch.equal(layer(torch.ones(1, 3)), expected)


class Doubled(nn.Module):
    def forward(self, tensor):
        return 2 * tensor


def test_reset_parameters_may_set_a_child():
    class WithNorm(nn.Linear):
        def reset_parameters(self):
            super().reset_parameters()
            self.norm = nn.LayerNorm(4)

    layer = masktorch.wrap(WithNorm(4, 4), targets=["weight"])
    before = layer.norm
    layer.reset_parameters()
    assert layer.norm is not before
    assert list(masktorch.masks(layer)) == ["weight"]


def test_reset_parameters_keeps_the_scores_of_children():
    class Parent(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))
            self.child = nn.Linear(4, 4)

        def reset_parameters(self):
            for parameter in self.parameters():
                nn.init.zeros_(parameter)

    parent = masktorch.wrap(Parent(), targets=["weight", "child.weight"])
    before = masktorch.masks(parent)
    parent.reset_parameters()
    after = masktorch.masks(parent)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not parent.child.parametrizations.weight.original.any()


def test_reset_parameters_computes_with_the_masks_of_children():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(()))
            self.child = nn.Linear(4, 4, bias=False)

        def reset_parameters(self):
            with torch.no_grad():
                self.gain.copy_(self.child(torch.ones(4)).sum())

    model = masktorch.wrap(Scaled(), targets=["gain", "child.weight"])
    masktorch.set_masks(
        model, {"gain": torch.tensor(True), "child.weight": torch.eye(4) > 0}
    )
    model.reset_parameters()
    weight = model.child.parametrizations.weight.original
    torch.testing.assert_close(model.gain, weight.diagonal().sum())


def test_reset_parameters_of_a_layer_with_weight_norm_and_a_masked_bias():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    masktorch.wrap(layer, targets=["bias"])
    before = layer.parametrizations.bias.scores.clone()
    nn.init.zeros_(layer.parametrizations.bias.original)
    layer.reset_parameters()
    assert layer.parametrizations.bias.original.any()
    assert torch.equal(layer.parametrizations.bias.scores, before)
