"""One tensor at several places has one mask, also after the places come untied."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import masktorch
from masktorch import (
    Bernoulli,
    TopK,
)
from tools.estimators import each_elementwise
from tools.models import ROWS, STRIPES, Tied, kept_counts, random_masks, weight_under
from tools.two_layers import YES

TOKENS = torch.tensor([[0, 1, 2, 6], [3, 4, 0, 6]])


def test_tied_weights_untied_by_a_load_are_all_baked():
    model = random_masks(Tied())
    state = {name: t.clone() for name, t in model.state_dict().items()}
    model.load_state_dict(state, assign=True)  # as on a plain model: the tie is broken
    model.eval()
    out = model(TOKENS)
    assert torch.equal(masktorch.unwrap(model)(TOKENS), out)
    assert model.head.weight.requires_grad


def test_freezing_reaches_weights_that_came_untied():
    model = random_masks(Tied())
    model.head.weight = nn.Parameter(torch.randn(7, 4))
    masktorch.freeze_weights(model)
    assert [p.requires_grad for p in model.parameters()].count(True) == 1  # the scores
    masktorch.freeze_weights(model, False)
    assert all(p.requires_grad for p in model.parameters())


def test_tied_weights_share_one_mask():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    model[1].weight = model[0].weight
    masktorch.wrap(
        model
    )  # the Linear is the target, the embedding holds the same tensor
    assert list(masktorch.masks(model)) == ["0.weight"]
    wanted = torch.rand(5, 4) < 0.5
    masktorch.set_masks(model, {"0.weight": wanted}).eval()
    assert torch.equal(model[0].weight, model[1].weight)
    out = model(torch.arange(5))
    masktorch.unwrap(model)
    assert model[0].weight is model[1].weight
    assert torch.equal(model(torch.arange(5)), out)


@each_elementwise
def test_tied_layers_may_be_in_different_modes(estimator):
    """Tied layers, one in training mode and one not."""
    model = nn.Sequential(nn.Embedding(50, 40), nn.Linear(40, 50, bias=False))
    model[1].weight = model[0].weight
    masktorch.wrap(model, estimator, init=0.0)
    model[0].eval()
    assert not model[0].weight.requires_grad
    assert model[1].weight.requires_grad
    assert (
        torch.count_nonzero(model[0].weight) == 0
    )  # a score of 0 is masked, when not drawn


@pytest.mark.parametrize(("masked", "chosen"), [(0, "1.weight"), (1, "0.weight")])
def test_a_tied_tensor_masked_elsewhere_is_refused(masked, chosen):
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    model[1].weight = model[0].weight
    masktorch.wrap(model[masked], Bernoulli(), targets=["weight"])
    with pytest.raises(ValueError, match=rf"'{masked}.weight': it has a mask already"):
        masktorch.wrap(model, targets=[chosen])
    assert model[masked].parametrizations.weight.estimator == Bernoulli()


def test_set_masks_takes_any_name_of_a_tied_tensor_once():
    def tied():
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        model[1].weight = model[0].weight
        return model

    model = masktorch.set_masks(tied(), {"1.weight": YES})
    assert torch.equal(masktorch.masks(model)["0.weight"], YES)
    with pytest.raises(ValueError, match=r"one mask .*found two for '0.weight'"):
        masktorch.set_masks(tied(), {"0.weight": YES, "1.weight": ~YES})


def test_every_function_takes_any_name_of_a_tied_tensor():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    masktorch.wrap(model)
    masktorch.set_masks(model, {"1.weight": YES})
    assert torch.equal(masktorch.masks(model)["0.weight"], YES)
    with masktorch.using(model, {"0.weight": ~YES, "1.weight": ~YES}):
        assert torch.equal(masktorch.masks(model)["0.weight"], ~YES)
    masktorch.set_estimator(model, {"1.weight": Bernoulli()})
    assert model[0].parametrizations.weight.estimator == Bernoulli()
    with pytest.raises(
        ValueError, match=r"found two for '0.weight', tied to '1.weight'"
    ):
        masktorch.set_masks(model, {"0.weight": YES, "1.weight": ~YES})


def test_wrap_takes_any_name_of_a_tied_tensor_once():
    def tied():
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight = model[0].weight
        return model

    assert kept_counts(masktorch.wrap(tied(), {"1.weight": TopK(0.25)})) == {
        "0.weight": 4
    }
    both = {"0.weight": TopK(0.25), "1.weight": TopK(0.5)}
    with pytest.raises(
        ValueError, match=r"one estimator, found two for '0.weight', tied"
    ):
        masktorch.wrap(tied(), both)


def tied(**options):
    """Two layers of one weight, under one mask."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    masktorch.wrap(model, **options)
    return masktorch.set_masks(model, {"0.weight": STRIPES.contiguous()})


def test_untied_weights_can_be_tied_again():
    """As transformers' tie_weights does after loading."""
    model = tied()
    model[1].weight = nn.Parameter(torch.randn(4, 4))
    assert weight_under(model[1]) is not weight_under(model[0])
    model[1].weight = model[0].weight
    assert weight_under(model[1]) is weight_under(model[0])


def by_assigning(model):
    model[1].weight = nn.Parameter(torch.randn(4, 4))


def by_loading(model):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def by_emptying(model):
    model.to("meta").to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    masktorch.set_masks(model, {"0.weight": STRIPES.contiguous()})


UNTIE = [by_assigning, by_loading, by_emptying]


@pytest.mark.parametrize("untie", UNTIE)
@pytest.mark.parametrize("way", [lambda m: m, copy.deepcopy])
def test_untied_places_have_their_own_tensors(untie, way):
    model = tied()
    untie(model)
    model = way(model)
    if untie is by_loading:
        with torch.no_grad():
            weight_under(model[1]).normal_()
    assert not torch.equal(weight_under(model[0]), weight_under(model[1]))
    for layer in model:
        mask = layer.parametrizations.weight
        assert mask.scores is model[0].parametrizations.weight.scores
        with pytest.raises(
            ValueError, match="expected one tensor under this mask, found 2"
        ):
            mask.original  # noqa: B018  (which of the two?)
    with parametrize.cached():
        for layer in model:
            assert torch.equal(layer.weight, weight_under(layer) * STRIPES)
        for layer in model:
            assert torch.equal(layer.weight, weight_under(layer) * STRIPES)


def test_untied_places_keep_one_mask():
    model = tied()
    by_assigning(model)
    assert model[1].parametrizations.weight is model[0].parametrizations.weight
    masktorch.freeze_weights(masktorch.freeze_mask(model), False)
    assert torch.equal(
        model[1].parametrizations.weight.get_extra_state(),
        model.state_dict()["0.parametrizations.weight._extra_state"],
    )
    assert copy.deepcopy(model[0].parametrizations.weight).state_dict().keys()


def test_two_names_in_one_module_share_one_mask():
    """The tensor and the mask make what is cached, not a name."""
    module = nn.Module()
    module.one = module.other = nn.Parameter(torch.ones(3))
    masktorch.wrap(module, targets=["one"])
    masktorch.set_masks(module, {"one": torch.tensor([True, False, True])})
    module.other = nn.Parameter(torch.full((3,), 2.0))
    with parametrize.cached():
        assert module.one.tolist() == [1, 0, 1]
        assert module.other.tolist() == [2, 0, 2]


def test_baking_one_tied_place_is_refused_where_the_other_would_rescale_it():
    model = tied(rescale=True).eval()
    before, expected = weight_under(model[0]).detach().clone(), model(ROWS)
    with pytest.raises(
        ValueError, match=r"unwrap\(\) can't bake 'weight': a module outside is tied"
    ):
        masktorch.unwrap(model[1])
    assert torch.equal(weight_under(model[0]), before)
    assert torch.equal(model(ROWS), expected)
    alone = copy.deepcopy(model[1])
    out = alone(ROWS)
    assert torch.equal(
        masktorch.unwrap(alone)(ROWS), out
    )  # no other place holds its tensor
    masktorch.unwrap(model[1], bake=False)
    assert torch.equal(model[1](ROWS), F.linear(ROWS, before))
    assert torch.equal(masktorch.unwrap(tied(rescale=True))[0].weight == 0, ~STRIPES)


def test_an_untied_place_may_be_baked_alone():
    model = tied(rescale=True).eval()
    by_assigning(model)
    expected = model(ROWS)
    masktorch.unwrap(model[1])
    torch.testing.assert_close(model(ROWS), expected)
    assert torch.equal(masktorch.unwrap(model)[0].weight == 0, ~STRIPES)


def test_a_deleted_place_does_not_prevent_baking():
    model = tied(rescale=True).eval()
    last = model[1]
    del model
    assert torch.equal(masktorch.unwrap(last).weight == 0, ~STRIPES)


def test_untied_places_that_share_a_tensor_are_not_baked_alone():
    a, b, c = (nn.Linear(4, 4, bias=False) for _ in range(3))
    b.weight = c.weight = a.weight
    inner = nn.Sequential(a, b)
    model = masktorch.wrap(
        nn.Sequential(inner, c), rescale=True, init=torch.randn_like
    ).eval()
    b.weight = c.weight = nn.Parameter(torch.ones(4, 4))
    expected = model(ROWS)
    with pytest.raises(
        ValueError, match="a module outside is tied to it and would rescale"
    ):
        masktorch.unwrap(inner)
    assert torch.equal(model(ROWS), expected)


def test_a_tensor_under_two_masks_is_not_baked():
    model = masktorch.wrap(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    model[1].weight = weight_under(model[0])
    with pytest.raises(
        ValueError, match=r"can't bake '1.weight': another mask lies on it"
    ):
        masktorch.unwrap(model)
    assert type(masktorch.unwrap(model, bake=False)[1]) is nn.Linear


def test_a_tied_place_may_be_baked_alone_under_a_frozen_mask():
    model = masktorch.freeze_mask(tied()).eval()
    expected = model(ROWS)
    masktorch.unwrap(model[1])
    assert type(model[1]) is nn.Linear
    assert torch.equal(model(ROWS), expected)
