"""`layer.weight = ...` of a masked layer, tied weights that come untied, copies that share."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval

import masktorch
from masktorch import Bernoulli, Threshold

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
STRIPES = torch.tensor([[True, False, True, False]]).expand(4, 4)


def under(layer):
    return layer._parameters["weight"]


def striped(layer=None, estimator=Threshold(), **options):
    """A layer whose mask keeps every other column."""
    layer = masktorch.wrap(layer or nn.Linear(4, 4, bias=False), estimator, **options)
    return masktorch.set_masks(layer, {"weight": STRIPES.contiguous()})


def tied(**options):
    """Two layers of one weight, under one mask."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    masktorch.wrap(model, **options)
    return masktorch.set_masks(model, {"0.weight": STRIPES.contiguous()})


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
    parameter, before = under(layer), under(layer).detach().clone()
    with torch.set_grad_enabled(gradients):
        layer.weight = layer.weight
        kept = layer.weight
        with torch.no_grad():
            parameter.mul_(2)
        layer.weight = (
            kept  # as without masks: it is the parameter, whatever became of it
        )
    assert under(layer) is parameter
    assert torch.equal(parameter, 2 * before)


@pytest.mark.parametrize("phase", PHASES)
def test_the_weight_of_another_mask_is_refused(phase):
    a, b = PHASES[phase](striped()), PHASES[phase](striped())
    before = under(b).detach().clone()
    with pytest.raises(
        ValueError, match=r"'weight' has a mask of its own.*another one.*tie the two"
    ):
        b.weight = a.weight
    assert torch.equal(under(b), before)
    b.weight = under(a)  # two masks on one tensor, which unwrap does not bake
    assert under(b) is under(a)


def test_what_has_come_untied_is_tied_again_as_without_masks():
    """As transformers' tie_weights does after loading."""
    model = tied()
    model[1].weight = nn.Parameter(torch.randn(4, 4))
    assert under(model[1]) is not under(model[0])
    model[1].weight = model[0].weight
    assert under(model[1]) is under(model[0])


@pytest.mark.parametrize("value", [
    lambda layer: layer.weight * 2,
    lambda layer: torch.ones(4, 4, requires_grad=True),
])  # fmt: skip
def test_a_tensor_that_requires_a_gradient_is_not_cut_off(value):
    layer = striped()
    before = under(layer).detach().clone()
    with pytest.raises(
        ValueError, match=r"expected values or an nn.Parameter.*detach\(\)"
    ):
        layer.weight = value(layer)
    assert torch.equal(under(layer), before)


@pytest.mark.parametrize("rescale", [False, True])
def test_fusing_with_batch_norm(rescale):
    conv = masktorch.wrap(nn.Conv2d(2, 3, 3), rescale=rescale)
    masktorch.set_masks(conv, {"weight": torch.rand(3, 2, 3, 3) < 0.5}).eval()
    norm = nn.BatchNorm2d(3).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    images = torch.randn(2, 2, 5, 5)
    expected = norm(conv(images))
    if rescale:  # what is fused would be rescaled once more
        masktorch.unwrap(conv)
    fused = fuse_conv_bn_eval(conv, norm)
    torch.testing.assert_close(fused(images), expected)


def test_what_was_read_before_an_assignment_is_not_read_after_it():
    """Within one forward, which holds its draws, and a parameter within torch's own context."""

    class Assigns(nn.Linear):
        def forward(self, x):
            before = self.weight
            assert self.weight is before  # held
            self.weight = self.value
            return F.linear(x, self.weight)

    layer = masktorch.wrap(Assigns(4, 4, bias=False), Bernoulli(), init=200.0)
    layer.value = torch.ones(4, 4)
    assert torch.equal(layer(X), F.linear(X, torch.ones(4, 4)))
    layer.value = nn.Parameter(torch.full((4, 4), 2.0))
    assert torch.equal(layer(X), F.linear(X, layer.value))
    with parametrize.cached():
        assert torch.equal(layer.weight, torch.full((4, 4), 2.0))
        layer.weight = nn.Parameter(torch.zeros(4, 4))
        assert torch.count_nonzero(layer.weight) == 0


# Tied weights that come untied


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
def test_each_place_has_its_own_tensor(untie, way):
    model = tied()
    untie(model)
    model = way(model)
    if untie is by_loading:
        with torch.no_grad():
            under(model[1]).normal_()
    assert not torch.equal(under(model[0]), under(model[1]))
    for layer in model:
        mask = layer.parametrizations.weight
        assert mask.scores is model[0].parametrizations.weight.scores
        with pytest.raises(
            ValueError, match="expected one tensor under this mask, found 2"
        ):
            mask.original  # noqa: B018  (which of the two?)
    with parametrize.cached():
        for layer in model:
            assert torch.equal(layer.weight, under(layer) * STRIPES)
        for layer in model:
            assert torch.equal(layer.weight, under(layer) * STRIPES)


def test_the_mask_of_what_has_come_untied_is_one():
    model = tied()
    by_assigning(model)
    assert model[1].parametrizations.weight is model[0].parametrizations.weight
    masktorch.freeze_weights(masktorch.freeze_mask(model), False)
    assert torch.equal(
        model[1].parametrizations.weight.get_extra_state(),
        model.state_dict()["0.parametrizations.weight._extra_state"],
    )
    assert copy.deepcopy(model[0].parametrizations.weight).state_dict().keys()


def test_a_cached_weight_is_that_of_its_mode_and_of_its_tensors():
    layer = masktorch.wrap(nn.Linear(30, 30, bias=False), Bernoulli(), init=1.0)
    with parametrize.cached():
        drawn, mode = layer.weight, layer.eval().weight
        assert torch.equal(mode, under(layer))
        assert not torch.equal(drawn, mode)
        assert layer.train().weight is drawn
        with masktorch.using(layer, {"weight": torch.zeros(30, 30, dtype=torch.bool)}):
            assert torch.count_nonzero(layer.weight) == 0
        assert layer.weight is drawn
        x = torch.eye(30)
        for factor in (1, 2):
            weight = {"weight": torch.full((30, 30), float(factor))}
            out = torch.func.functional_call(layer.eval(), weight, (x,))
            assert torch.equal(out, torch.full((30, 30), float(factor)))
        for score in (1.0, -1.0):
            scores = {"parametrizations.weight.scores": torch.full((30, 30), score)}
            out = torch.func.functional_call(layer, scores, (x,))
            assert bool(out.any()) is (score > 0)


def test_two_names_in_one_module_under_one_mask():
    """The tensor and the mask make what is cached, not a name."""
    module = nn.Module()
    module.one = module.other = nn.Parameter(torch.ones(3))
    masktorch.wrap(module, targets=["one"])
    masktorch.set_masks(module, {"one": torch.tensor([True, False, True])})
    module.other = nn.Parameter(torch.full((3,), 2.0))
    with parametrize.cached():
        assert module.one.tolist() == [1, 0, 1]
        assert module.other.tolist() == [2, 0, 2]


# Tied weights of which one place is unwrapped


def test_one_place_of_tied_weights_is_not_baked_where_the_other_would_scale_it_again():
    model = tied(rescale=True).eval()
    before, expected = under(model[0]).detach().clone(), model(X)
    with pytest.raises(
        ValueError, match=r"unwrap\(\) can't bake 'weight': .* or a module outside"
    ):
        masktorch.unwrap(model[1])
    assert torch.equal(under(model[0]), before)
    assert torch.equal(model(X), expected)
    alone = copy.deepcopy(model[1])
    out = alone(X)
    assert torch.equal(
        masktorch.unwrap(alone)(X), out
    )  # no other place holds its tensor
    masktorch.unwrap(model[1], bake=False)
    assert torch.equal(model[1](X), F.linear(X, before))
    assert torch.equal(masktorch.unwrap(tied(rescale=True))[0].weight == 0, ~STRIPES)


def test_a_place_that_has_its_own_tensor_may_be_baked():
    model = tied(rescale=True).eval()
    by_assigning(model)
    expected = model(X)
    masktorch.unwrap(model[1])
    torch.testing.assert_close(model(X), expected)
    assert torch.equal(masktorch.unwrap(model)[0].weight == 0, ~STRIPES)


def test_what_is_gone_is_no_other_place():
    model = tied(rescale=True).eval()
    last = model[1]
    del model
    assert torch.equal(masktorch.unwrap(last).weight == 0, ~STRIPES)


def test_a_second_place_that_came_untied_is_not_baked_either():
    a, b, c = (nn.Linear(4, 4, bias=False) for _ in range(3))
    b.weight = c.weight = a.weight
    inner = nn.Sequential(a, b)
    model = masktorch.wrap(
        nn.Sequential(inner, c), rescale=True, init=torch.randn_like
    ).eval()
    b.weight = c.weight = nn.Parameter(torch.ones(4, 4))
    expected = model(X)
    with pytest.raises(ValueError, match="or a module outside"):
        masktorch.unwrap(inner)
    assert torch.equal(model(X), expected)


def test_a_tensor_under_two_masks_is_not_baked():
    model = masktorch.wrap(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    model[1].weight = under(model[0])
    with pytest.raises(
        ValueError, match=r"can't bake '1.weight': another mask lies on it"
    ):
        masktorch.unwrap(model)
    assert type(masktorch.unwrap(model, bake=False)[1]) is nn.Linear


def test_what_was_read_and_written_into_is_assigned_by_its_values():
    layer = striped().eval()
    with torch.no_grad():
        before = under(layer).clone()
        layer.weight *= 2
    assert torch.equal(layer.weight, 2 * before * STRIPES)


def test_one_place_without_rescaling_may_be_baked_alone():
    model = tied().eval()
    expected = model(X)
    masktorch.unwrap(model[1])
    assert type(model[1]) is nn.Linear
    assert torch.equal(model(X), expected)


# Shallow copies


def test_a_shallow_copy_has_the_same_masks():
    """As the copy of any module has the same parameters."""
    layer = striped(rescale=True).eval()
    twin = copy.copy(layer)
    assert type(twin) is type(layer)
    assert under(twin) is under(layer)
    expected = layer(X)
    assert torch.equal(twin(X), expected)
    masktorch.unwrap(twin)
    assert type(twin) is nn.Linear
    assert torch.equal(twin(X), expected)
    assert torch.equal(layer(X), expected)  # baked as well, and scaled once
    with pytest.raises(ValueError, match="nothing is masked"):
        masktorch.masks(layer)
    assert masktorch.masks(masktorch.wrap(layer))


def test_a_class_that_copies_itself_goes_on_to():
    class Copies(nn.Linear):
        def __copy__(self):
            return "its own"

    assert copy.copy(masktorch.wrap(Copies(2, 2))) == "its own"
