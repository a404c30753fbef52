"""Programs that are unusual, and were silently wrong once."""

import copy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import masktorch
from masktorch import Bernoulli, ConcreteNOfM, TopK


class StraightThrough:
    """An estimator that a subclass completes by `mode`."""

    draws = False

    def __call__(self, scores):
        return self.mode(scores) + scores - scores.detach()

    def mode(self, scores):
        return scores > 0


def two_layers():
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


# -- checkpoints -----------------------------------------------------------------------


def test_scores_that_were_stopped_by_hand_stay_stopped():
    model = masktorch.freeze_weights(masktorch.wrap(nn.Linear(4, 3)), False)
    for scores in masktorch.mask_parameters(model):
        scores.requires_grad_(False)
    again = masktorch.match_checkpoint(nn.Linear(4, 3), model.state_dict())
    (row,) = masktorch.report(again).rows
    assert (row.trains, row.weights_train) == (False, True)
    assert not again.parametrizations.weight.frozen


def test_a_model_whose_gradients_are_off_loads_without_a_warning():
    state = masktorch.wrap(nn.Linear(4, 3).requires_grad_(False)).state_dict()
    model = masktorch.wrap(nn.Linear(4, 3)).requires_grad_(False)
    model.load_state_dict(state)  # a warning would be an error


def test_scores_of_a_wider_checkpoint_stay_the_same_object():
    model = masktorch.wrap(nn.Linear(4, 3))
    (before,) = masktorch.mask_parameters(model)
    state = masktorch.wrap(nn.Linear(4, 3)).double().state_dict()
    masktorch.match_checkpoint(model, state).load_state_dict(state)
    (after,) = masktorch.mask_parameters(model)
    assert after is before
    assert after.dtype is torch.float64


@dataclass(frozen=True, eq=False)
class Prior(StraightThrough):
    bias: torch.Tensor

    def mode(self, scores):
        return scores + self.bias > 0


def test_an_estimator_whose_repr_leaves_values_out_is_not_taken_for_equal():
    one, other = torch.zeros(64, 64), torch.zeros(64, 64)
    other[3:60, 3:60] = -5
    state = masktorch.wrap(nn.Linear(64, 64), Prior(one)).state_dict()
    model = masktorch.wrap(nn.Linear(64, 64), Prior(other))
    with pytest.raises(ValueError, match="its repr leaves values out"):
        masktorch.match_checkpoint(model, state)


class Level(NamedTuple):
    level: float = 0.0


class Above(Level, StraightThrough):
    def mode(self, scores):
        return scores > self.level


def test_an_estimator_that_is_a_tuple_is_no_data():
    state = masktorch.wrap(nn.Linear(4, 4), Above(0.9)).state_dict()
    with pytest.raises(ValueError, match="only this text"):
        masktorch.match_checkpoint(nn.Linear(4, 4), state, estimators=(Above,))


def test_match_checkpoint_within_using_is_refused():
    state = masktorch.wrap(nn.Linear(4, 4), ConcreteNOfM(2, 4)).state_dict()
    model = masktorch.wrap(nn.Linear(4, 4), TopK(0.5))
    with masktorch.using(model, None):
        with pytest.raises(ValueError, match=r"within masktorch\.using"):
            masktorch.match_checkpoint(model, state)
        assert masktorch.report(model).masked == 0


class CopiesItsDict(nn.Linear):
    def __deepcopy__(self, memo):
        new = self.__class__.__new__(self.__class__)
        new.__dict__ = copy.deepcopy(self.__dict__, memo)
        return new


def test_the_phase_of_a_copy_that_does_not_know_its_module():
    model = masktorch.freeze_weights(masktorch.wrap(CopiesItsDict(4, 3)), False)
    state = copy.deepcopy(model).state_dict()
    again = masktorch.match_checkpoint(nn.Linear(4, 3), state)
    assert masktorch.report(again).rows[0].weights_train


class SavedTransposed(nn.Linear):
    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight.detach().T.clone()

    def _load_from_state_dict(self, state, prefix, *others):
        state[f"{prefix}weight"] = state[f"{prefix}weight"].T
        super()._load_from_state_dict(state, prefix, *others)


def test_a_class_that_saves_its_weight_itself_saves_what_is_masked_too():
    layer = masktorch.wrap(SavedTransposed(4, 3), TopK(0.5))
    before = layer.parametrizations.weight.original.detach().clone()
    layer.load_state_dict(layer.state_dict())
    assert torch.equal(layer.parametrizations.weight.original, before)


# -- assignment ------------------------------------------------------------------------


def test_assigning_to_a_masked_parameter_list():
    parameters = nn.ParameterList([nn.Parameter(torch.randn(3, 3)) for _ in range(2)])
    masktorch.wrap(parameters, TopK(0.5), targets=["*"])
    before = [p.detach().clone() for p in parameters._parameters.values()]
    parameters[0] = parameters[0]
    with pytest.raises(ValueError, match="under another one"):
        parameters[0] = parameters[1]
    for parameter, values in zip(parameters._parameters.values(), before, strict=True):
        assert torch.equal(parameter, values)
        assert not parameter.requires_grad
    parameters[-1] = torch.ones(3, 3)
    assert (parameters._parameters["1"] == 1).all()


def test_assigning_to_a_masked_parameter_dict():
    parameters = nn.ParameterDict({"a": torch.randn(3, 3), "b": torch.randn(3, 3)})
    masktorch.wrap(parameters, TopK(0.5), targets=["a"])
    parameters["a"] = torch.ones(3, 3)
    assert not parameters._parameters["a"].requires_grad
    assert (parameters._parameters["a"] == 1).all()
    parameters["b"] = parameters["c"] = torch.ones(3, 3)
    assert isinstance(parameters["c"], nn.Parameter)


def test_a_class_assigned_after_wrap_is_reported():
    class Doubled(nn.Linear):
        pass

    layer = masktorch.wrap(nn.Linear(4, 3))
    layer.__class__ = Doubled
    with pytest.raises(ValueError, match="the class has become Doubled"):
        masktorch.report(layer)


def test_two_fixed_masks_change_places():
    model = two_layers()
    given = {f"{index}.weight": torch.rand(4, 4) > 0.5 for index in range(2)}
    masktorch.set_masks(model, given)
    one, other = (layer.parametrizations.weight.scores for layer in model)
    masktorch.set_masks(model, {"0.weight": other, "1.weight": one})
    masks = masktorch.masks(model)
    assert torch.equal(masks["0.weight"], given["1.weight"])
    assert torch.equal(masks["1.weight"], given["0.weight"])


def test_a_module_patched_after_wrap_is_copied_with_its_patch():
    layer = masktorch.wrap(nn.Linear(4, 3), TopK(0.5))
    kind = type(layer)
    layer.__class__ = type(
        "Doubled", (kind,), {"forward": lambda self, x: 2 * kind.forward(self, x)}
    )
    x = torch.randn(2, 4)
    again = copy.deepcopy(layer)
    assert torch.equal(again(x), layer(x))
    again.parametrizations.weight.scores.data.neg_()
    masktorch.set_masks(again, {"weight": ~masktorch.masks(layer)["weight"]})
    assert not torch.equal(again(x), layer(x))


def test_freezing_within_cached_is_seen():
    layer = masktorch.freeze_mask(masktorch.wrap(nn.Linear(4, 3), TopK(0.5)))
    x = torch.randn(2, 4)
    with nn.utils.parametrize.cached():
        layer(x)
        masktorch.freeze_weights(layer, False)
        layer(x).sum().backward()
    assert layer.parametrizations.weight.original.grad is not None


# -- estimators of one's own -----------------------------------------------------------


@dataclass(frozen=True)
class PercentTopK(TopK):
    density: float = 50

    def __post_init__(self):
        object.__setattr__(self, "density", self.density / 100)
        super().__post_init__()


def test_a_copy_does_not_convert_fields_again():
    model = masktorch.wrap(nn.Linear(20, 20), PercentTopK(50))
    assert masktorch.report(copy.deepcopy(model)).kept == 200


@dataclass(frozen=True)
class AboveOne(StraightThrough):
    def mode(self, scores):
        return scores > 1

    def scores_for(self, scores, mask):
        return torch.from_numpy(np.where(mask, np.nextafter(1.0, 2.0), 1.0))


@dataclass(frozen=True)
class OfOneColumn(StraightThrough):
    def init(self, weight):
        return torch.ones(len(weight), 1)

    def scores_for(self, scores, mask):
        return mask.float()


@dataclass(frozen=True)
class InPlace(StraightThrough):
    def scores_for(self, scores, mask):
        scores.copy_(mask)
        return scores


@pytest.mark.parametrize(
    ("estimator", "message"),
    [(AboveOne(), "cannot express it"), (OfOneColumn(), r"shape \(4, 4\), expected")],
)
def test_scores_for_of_another_dtype_or_shape(estimator, message):
    model = masktorch.wrap(two_layers(), {"0.weight": TopK(0.5), "1.weight": estimator})
    before = masktorch.masks(model)
    rows = torch.tensor([[True], [False], [True], [False]]).expand(4, 4)
    with pytest.raises(ValueError, match=message):
        masktorch.set_masks(model, {"0.weight": ~before["0.weight"], "1.weight": rows})
    assert torch.equal(masktorch.masks(model)["0.weight"], before["0.weight"])


def test_scores_for_may_write_into_what_it_gets():
    model = masktorch.wrap(two_layers(), {"0.weight": InPlace(), "1.weight": TopK(0.5)})
    every = torch.ones(4, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"cannot give '1\.weight'"):
        masktorch.set_masks(model, {"0.weight": torch.eye(4) > 0, "1.weight": every})
    assert masktorch.report(model).rows[0].kept == 16
    masktorch.set_estimator(model, {"0.weight": InPlace(), "1.weight": InPlace()})
    masktorch.set_masks(model, {"0.weight": torch.eye(4) > 0, "1.weight": every})
    assert masktorch.report(model).kept == 4 + 16


@dataclass(frozen=True)
class LowRank(StraightThrough):
    rows: int

    def init(self, weight):
        return torch.randn(sum(weight.shape), 2)

    def mode(self, scores):
        return scores[: self.rows] @ scores[self.rows :].T > 0

    def scores_for(self, scores, mask):
        return scores


def test_set_masks_does_not_round_under_autocast():
    layer = masktorch.wrap(nn.Linear(256, 256), LowRank(256))
    scores = layer.parametrizations.weight.scores.detach()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = LowRank(256).mode(scores)
        exact = masktorch.masks(layer)["weight"]
        assert not torch.equal(rounded, exact)
        masktorch.set_masks(layer, {"weight": exact})
        with pytest.raises(ValueError, match="cannot express it"):
            masktorch.set_masks(layer, {"weight": rounded})


class AnswersNothing(StraightThrough):
    @property
    def draws(self):
        raise KeyError("draws")


def test_an_estimator_that_raises_changes_no_other():
    model = masktorch.wrap(two_layers())
    with pytest.raises(KeyError):
        masktorch.set_estimator(
            model, {"0.weight": TopK(0.5), "1.weight": AnswersNothing()}
        )
    assert "TopK" not in repr(model)


@dataclass(frozen=True)
class Wrapping(StraightThrough):
    estimator: TopK

    def mode(self, scores):
        return self.estimator.mode(scores)


def test_a_budget_ranks_as_the_estimator_inside_does():
    def budget(estimator):
        model = masktorch.wrap(two_layers(), estimator, init=torch.randn_like)
        for layer, value in zip(model, (-5.0, 1.0), strict=True):
            nn.init.constant_(layer.parametrizations.weight.scores, value)
        return masktorch.budget.overall(model, 0.5)

    highest = TopK(0.5, absolute=False)
    assert budget(Wrapping(highest)) == budget(highest)


# -- the rest --------------------------------------------------------------------------


def test_samples_from_the_default_generator_differ():
    layer = masktorch.wrap(nn.Linear(20, 20), Bernoulli(), init=0.0)
    one, other = (
        masktorch.sample_masks(layer, torch.default_generator)["weight"]
        for _ in range(2)
    )
    assert not torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_the_cost_of_a_tensor_without_entries():
    model = masktorch.wrap(nn.Sequential(nn.Linear(0, 3), nn.Linear(2, 2)))
    density = masktorch.expected_density(model, cost={"0.weight": 1.0, "1.weight": 0.1})
    assert density.item() == pytest.approx(1.0)


def test_scores_made_in_inference_mode_are_not_half_thawed():
    model = masktorch.freeze_mask(masktorch.wrap(nn.Linear(4, 3)))
    with torch.inference_mode():
        model = copy.deepcopy(model)
    with pytest.raises(ValueError, match="created in inference mode"):
        masktorch.freeze_mask(model, False)
    assert model.parametrizations.weight.frozen


def test_a_computed_tensor_in_place_of_a_parameter():
    model = two_layers()
    model[1]._parameters["weight"] = model[1].weight * 2
    with pytest.raises(ValueError, match=r"can't mask '1\.weight': it is not a leaf"):
        masktorch.wrap(model)
    assert type(model[0]) is nn.Linear


def test_a_fixed_mask_on_the_meta_device():
    model = nn.Linear(4, 3, device="meta")
    masktorch.set_masks(model, {"weight": torch.ones(3, 4, dtype=torch.bool)})
    model.to_empty(device="cpu")
    assert model.parametrizations.weight.scores.shape == (3, 4)
    assert model.parametrizations.weight.scores.dtype is torch.bool
