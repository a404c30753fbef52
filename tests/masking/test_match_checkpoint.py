"""match_checkpoint restores masks, phases and estimators before load_state_dict."""

import copy
import io
import json
import re
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn

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
    match_checkpoint,
)

KEY = "0.parametrizations.weight._extra_state"


def plain():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def network(estimator=Threshold(), **options):
    return masktorch.wrap(plain(), estimator, **options)


def fixed():
    weights = {n: p for n, p in plain().named_parameters() if p.dim() > 1}
    masks = masktorch.keep_largest({n: w.abs() for n, w in weights.items()}, 0.5)
    return masktorch.set_masks(plain(), masks)


def mix(model):
    return masktorch.freeze_weights(masktorch.freeze_mask(model), False)


def everything_frozen(model):
    return masktorch.freeze_weights(masktorch.freeze_mask(model))


def everything_trains(model):
    return masktorch.freeze_weights(model, False)


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def load_into(model, state, **options):
    """Match and load; any warning would be an error here."""
    assert match_checkpoint(model, state, **options) is model
    assert model.load_state_dict(state) == ([], [])
    return model


def assert_equal(model, other):
    """The same names, values, classes, masks and phases."""
    assert repr(model) == repr(other)
    states = model.state_dict(), other.state_dict()
    assert list(states[0]) == list(states[1])
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    phases = [
        [(name, p.requires_grad) for name, p in one.named_parameters()]
        for one in (model, other)
    ]
    assert phases[0] == phases[1]
    assert masktorch.report(model) == masktorch.report(other)


# -- what a model may be when it is matched --------------------------------------------

SAVED = {
    "learnable": network,
    "frozen masks": lambda: masktorch.freeze_mask(network(init=torch.randn_like)),
    "mix": lambda: mix(network(init=torch.randn_like)),
    "everything frozen": lambda: everything_frozen(network()),
    "everything trains": lambda: everything_trains(network()),
    "phases differ": lambda: nn.Sequential(*mix(network())[:2], *network()[2:]),
    "rescaled": lambda: network(Bernoulli(), rescale=True),
    "biases too": lambda: network(TopK(0.25), bias=True),
    "one tensor": lambda: network(targets=["2.weight"]),
    "fixed": fixed,
    "fixed, over frozen weights": lambda: masktorch.freeze_weights(fixed()),
    "each its own": lambda: network({"0.weight": NOfM(1, 2), "2.bias": Piggyback()}),
}
PRESENT = {
    "plain": plain,
    "wrapped": network,
    "another": lambda: mix(network(TopK(0.1), bias=True, rescale=True)),
    "fixed": fixed,
    "one bias": lambda: network(targets=["0.bias"]),
}


@pytest.mark.parametrize("present", PRESENT)
@pytest.mark.parametrize("saved", SAVED)
def test_any_model_becomes_what_was_saved(saved, present):
    model = SAVED[saved]()
    state = through_a_file(model.state_dict())
    assert_equal(load_into(PRESENT[present](), state), model)


@pytest.mark.parametrize("saved", SAVED)
def test_it_is_done_once_and_for_all(saved):
    state = SAVED[saved]().state_dict()
    model = match_checkpoint(plain(), state)
    before = dict(model.named_modules(remove_duplicate=False))
    match_checkpoint(model, state)
    assert dict(model.named_modules(remove_duplicate=False)) == before


@pytest.mark.parametrize("assign", [False, True])
def test_every_way_to_load(assign):
    state = mix(network(Bernoulli(0.25))).state_dict()
    model = match_checkpoint(plain(), state)
    model.load_state_dict(state, assign=assign)
    assert_equal(model, mix(network(Bernoulli(0.25))))


# -- training goes on ------------------------------------------------------------------


def train(model, optimiser, steps):
    for step in range(steps):
        torch.manual_seed(step)  # which draws of stochastic masks follow, too
        optimiser.zero_grad()
        model(torch.randn(16, 4)).square().sum().backward()
        optimiser.step()


def optimiser_of(model):
    return torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)


PHASES = [lambda model: model, masktorch.freeze_mask, mix, everything_trains]
ESTIMATORS = [
    Threshold(0.4),
    Bernoulli(0.3),
    IntermediateSampling(0.2, 0.3),
    Piggyback(0.1),
    Concrete(0.5, hard=False),
    HardConcrete(0.5, -0.2, 1.2),
    TopK(0.3),
    TopK(0.3, absolute=False),
    NOfM(1, 2, absolute=False),
]


@pytest.mark.parametrize("make", [plain, network], ids=["plain", "wrapped"])
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_training_resumes_to_the_bit(estimator, phase, rescale, make):
    init = torch.rand_like
    model = phase(network(estimator, init=init, rescale=rescale))
    optimiser = optimiser_of(model)
    train(model, optimiser, 3)
    checkpoint = through_a_file(
        {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
    )
    train(model, optimiser, 3)

    resumed = load_into(make(), checkpoint["model"])
    optimiser = optimiser_of(resumed)
    optimiser.load_state_dict(checkpoint["optimiser"])
    before = copy.deepcopy(resumed.state_dict())
    train(resumed, optimiser, 3)
    assert_equal(resumed, model)
    assert any(not torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_parameters_and_scores_stay_the_same_objects():
    model = network(TopK(0.5))
    objects = dict(model.named_parameters())
    state = mix(network(Bernoulli())).state_dict()
    optimiser = optimiser_of(model)
    load_into(model, state)
    assert all(p is objects[name] for name, p in model.named_parameters())
    train(model, optimiser, 2)  # its weights train now, its scores no more
    moved = {n for n, v in model.state_dict().items() if not torch.equal(v, state[n])}
    assert moved == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_nothing_is_drawn_and_nothing_is_loaded():
    model, state = plain(), network(TopK(0.3)).state_dict()
    values = {n: p.detach().clone() for n, p in model.named_parameters()}
    before = {name: value.clone() for name, value in state.items()}
    random = torch.get_rng_state()
    match_checkpoint(model, state)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(
        torch.equal(p, values[n]) for n, p in model.named_parameters() if n in values
    )
    assert all(torch.equal(value, before[name]) for name, value in state.items())


def test_within_inference_mode():
    model, state = plain(), network().state_dict()
    with torch.inference_mode():
        match_checkpoint(model, state)
    model.load_state_dict(state)
    train(model, optimiser_of(model), 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_that_were_saved_in_half_precision(dtype):
    model = network(init=torch.randn_like)
    state = {
        name: value.to(dtype) if name.endswith("scores") else value
        for name, value in model.state_dict().items()
    }
    for scores in masktorch.mask_parameters(load_into(plain(), state)):
        assert scores.dtype is torch.float32
        assert torch.equal(scores, scores.to(dtype).float())


class Rows:
    """The mean score of each row decides, so scores may have any number of columns."""

    def __call__(self, scores):
        return self.mode(scores).to(scores.dtype) + scores - scores.detach()

    def mode(self, scores):
        return scores.mean(1, keepdim=True).expand(scores.shape) > 0


@pytest.mark.parametrize("make", [plain, lambda: network(Rows(), targets=["0.weight"])])
def test_the_state_dict_decides_the_shape_of_scores(make):
    state = network(Rows(), targets=["0.weight"]).state_dict()
    scores = torch.linspace(-1, 1, 8).view(8, 1)
    state["0.parametrizations.weight.scores"] = scores
    model = load_into(make(), state, estimators=(Rows,))
    assert torch.equal(model[0].parametrizations.weight.scores, scores)
    expected = (scores > 0).expand(8, 4)
    assert torch.equal(masktorch.masks(model)["0.weight"], expected)
    assert masktorch.report(model).kept == 16
    assert masktorch.expected_density(model).item() == pytest.approx(0.5)


# -- masks that the checkpoint lacks ---------------------------------------------------


def test_masks_that_were_not_saved_are_unwrapped_unbaked():
    model = network(bias=True, init=-1.0)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    objects = {place: model[place]._parameters["bias"] for place in (0, 2)}
    state = network(targets=["0.weight"]).state_dict()
    match_checkpoint(model, state)
    assert list(masktorch.masks(model)) == ["0.weight"]
    assert type(model[2]) is nn.Linear
    for place, name in ((0, "bias"), (2, "bias"), (2, "weight")):
        parameter = getattr(model[place], name)
        assert torch.equal(parameter, weights[f"{place}.{name}"])
        assert parameter.requires_grad  # as before it was wrapped
        assert name == "weight" or parameter is objects[place]


@pytest.mark.parametrize("saved", [network, fixed])
@pytest.mark.parametrize("make", [lambda model: model, masktorch.wrap])
def test_unwrapping_gives_back_what_trained_before(saved, make):
    model = plain()
    model[0].weight.requires_grad_(False)
    model = make(model)
    load_into(model, saved().state_dict())
    masktorch.unwrap(model)
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]


# -- estimators as data ----------------------------------------------------------------


@dataclass(frozen=True)
class Mine:
    """An estimator of the user's own, with every kind of field."""

    at: float = 0.0
    number: int = 3
    name: str = "mine"
    nothing: None = None
    pair: tuple = (1, None)
    items: list = field(default_factory=lambda: [1.5, True, ("a",)])
    table: dict = field(default_factory=lambda: {"tuple": [1], "class": {}})
    inner: object = TopK(0.25)
    derived: float = field(init=False, default=1.0)

    def __call__(self, scores):
        return self.mode(scores).to(scores.dtype) + scores - scores.detach()

    def mode(self, scores):
        return scores > self.at


class Simple:
    """An estimator without attributes."""

    def __call__(self, scores):
        return (scores > 0).to(scores.dtype) + scores - scores.detach()

    def mode(self, scores):
        return scores > 0


class WithAttributes(Simple):
    def __init__(self, at=0.0):
        self.at = at

    def __repr__(self):
        return f"WithAttributes({self.at})"


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_the_built_in_ones_are_equal(estimator):
    model = load_into(plain(), network(estimator).state_dict())
    restored = model[0].parametrizations.weight.estimator
    assert type(restored) is type(estimator)
    assert restored == estimator
    assert hash(restored) == hash(estimator)


@pytest.mark.parametrize(
    "estimator", [Mine(), Mine(float("inf"), pair=((2, (Mine(0.5),)),)), Simple()]
)
def test_a_class_of_the_users_own(estimator):
    state = through_a_file(network(estimator).state_dict())
    kind = type(estimator)
    for estimators in ((kind,), [kind], (Simple, Mine)):
        model = load_into(plain(), state, estimators=estimators)
        restored = model[0].parametrizations.weight.estimator
        assert type(restored) is kind
        assert restored == estimator or kind is Simple
        assert repr(restored) == repr(estimator) or kind is Simple


@pytest.mark.parametrize("make", [plain, lambda: network(Mine())])
def test_a_class_that_is_not_given_is_named(make):
    state = network(Mine()).state_dict()
    model = make()
    before = repr(model)
    message = (
        "match_checkpoint() can't restore the estimator of '0.weight': masktorch has "
        "no "
        "estimator 'Mine'. Give its class in estimators=(Mine,)."
    )
    for estimators in ((), (Simple,)):
        with pytest.raises(ValueError, match=re.escape(message)):
            match_checkpoint(model, state, estimators=estimators)
    assert repr(model) == before


def test_an_inner_class_that_is_not_given_is_named():
    state = network(Mine(inner=Simple())).state_dict()
    with pytest.raises(ValueError, match="no estimator 'Simple'"):
        match_checkpoint(plain(), state, estimators=(Mine,))


def test_a_name_of_the_librarys_own():
    @dataclass(frozen=True)
    class TopK(masktorch.TopK):
        more: int = 1

    state = network(TopK(0.3)).state_dict()
    with pytest.raises(ValueError, match="no estimator 'TopK'"):
        match_checkpoint(plain(), state)
    model = load_into(plain(), state, estimators=(TopK,))
    assert type(model[0].parametrizations.weight.estimator) is TopK
    theirs = load_into(
        plain(), network(masktorch.TopK(0.3)).state_dict(), estimators=(TopK,)
    )
    assert type(theirs[0].parametrizations.weight.estimator) is masktorch.TopK


def test_an_estimator_with_attributes_cannot_be_restored():
    state = network(WithAttributes(0.5)).state_dict()
    message = (
        r"can't restore .* of '0.weight': .*WithAttributes\(0.5\).*Call masktorch.wrap"
    )
    for make in (plain, lambda: network(WithAttributes(0.25))):
        with pytest.raises(ValueError, match=message):
            match_checkpoint(make(), state, estimators=(WithAttributes,))
    assert_equal(
        load_into(
            network(WithAttributes(0.5)), mix(network(WithAttributes(0.5))).state_dict()
        ),
        mix(network(WithAttributes(0.5))),
    )


def test_numbers_of_numpy_are_plain_numbers():
    @dataclass(frozen=True)
    class Numbers(Simple):
        one: object = np.float32(0.1)
        two: object = np.int64(3)

    model = load_into(plain(), network(Numbers()).state_dict(), estimators=(Numbers,))
    restored = model[0].parametrizations.weight.estimator
    assert restored == Numbers()
    assert (type(restored.one), type(restored.two)) == (float, int)


def with_extra_state(known, name=KEY):
    state = network().state_dict()
    code = json.dumps(known).encode()
    state[name] = torch.tensor(list(code), dtype=torch.uint8)
    return state


def known(estimator):
    return {
        "rescale": False,
        "mask_frozen": False,
        "weights_frozen": True,
        "estimator": estimator,
    }


HOSTILE = [
    ("__import__('os').system('exit 1')", "has no data of __import__"),
    (
        {"class": "os.system", "fields": {"command": "exit 1"}},
        "no estimator 'os.system'",
    ),
    ({"class": "masktorch.wrap", "fields": {}}, "no estimator 'masktorch.wrap'"),
    ({"class": "masktorch.BuiltIn", "fields": {}}, "no estimator 'masktorch.BuiltIn'"),
    ({"class": "Fixed", "fields": {}}, "no estimator 'Fixed'"),
    ({"class": "masktorch.Threshold", "fields": {"tau": 2.0}}, "does not take"),
    ({"class": "masktorch.Threshold", "fields": {"tau": "x"}}, "does not take"),
    ({"class": "masktorch.Threshold", "fields": {"x": 1}}, "does not take"),
    ({"class": "masktorch.TopK", "fields": {"density": [0.5]}}, "does not take"),
]


@pytest.mark.parametrize(("estimator", "message"), HOSTILE)
def test_nothing_is_evaluated(estimator, message):
    model = plain()
    with pytest.raises(ValueError, match=re.escape(message)):
        match_checkpoint(model, with_extra_state(known(estimator)))
    assert type(model[0]) is nn.Linear


def test_fields_of_a_later_version_are_passed_over():
    later = {
        **known({"class": "masktorch.Threshold", "fields": {"tau": 0.5}}),
        "new": 1,
    }
    load_into(plain(), with_extra_state(later))


# -- names and prefixes ----------------------------------------------------------------


class Lightning(nn.Module):
    """A module that holds the model and matches it before loading, as in Lightning."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.head = nn.Linear(2, 2)

    def on_load_checkpoint(self, checkpoint):
        match_checkpoint(self.model, checkpoint["state_dict"], prefix="model.")


def test_a_model_within_a_lightning_module():
    saved = Lightning(mix(network(Bernoulli(0.3))))
    checkpoint = {"state_dict": saved.state_dict(), "epoch": 3}
    module = Lightning(plain())
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    assert_equal(module, saved)


def test_a_prefix_leaves_other_masks_out():
    saved = nn.ModuleDict({"a": network(TopK(0.25)), "b": mix(network(bias=True))})
    state = saved.state_dict()
    models = nn.ModuleDict({"a": plain(), "b": network()})
    match_checkpoint(models["a"], state, prefix="a.")
    assert repr(models["a"]) == repr(saved["a"])
    assert repr(models["b"]) == repr(network())
    match_checkpoint(models["b"], state, prefix="b.")
    models.load_state_dict(state)
    assert_equal(models, saved)


REFUSED = [
    ({"prefix": "model"}, ValueError, "to end with a dot, as 'model.', found 'model'"),
    ({"prefix": 3}, TypeError, "expected prefix to be a string, found 3"),
    (
        {"prefix": "net."},
        ValueError,
        "no mask in the state dict under the prefix 'net.'. "
        "Prefixes of masks in it: '', "
        "'model.', 'model.0.', 'model.2.'.",
    ),
    (
        {},
        ValueError,
        "no parameter 'model.0.weight' in Sequential. Did you mean prefix='m",
    ),
    ({"estimators": Mine}, TypeError, "to be the classes of your own estimators"),
    ({"estimators": (Mine(),)}, TypeError, "to be the classes of your own estimators"),
    ({"estimators": (int,)}, TypeError, "found <class 'int'>"),
    ({"estimators": 3}, TypeError, "found 3"),
]


@pytest.mark.parametrize(("options", "exception", "message"), REFUSED)
def test_arguments_that_are_refused(options, exception, message):
    state = Lightning(network()).state_dict()
    model = plain()
    with pytest.raises(exception, match=re.escape(message)):
        match_checkpoint(model, state, **options)
    assert type(model[0]) is nn.Linear


def test_two_classes_of_one_name():
    classes = [type("Twin", (Simple,), {}) for _ in range(2)]
    with pytest.raises(ValueError, match="two with the name 'Twin'"):
        match_checkpoint(plain(), network().state_dict(), estimators=classes)


def without_extra_state(state):
    return {name: value for name, value in state.items() if name != KEY}


def damaged(state):
    return {**state, KEY: torch.full((512,), 255, dtype=torch.uint8)}


def averaged(state):
    return {name: (value + value) / 2 for name, value in state.items()}


STATES = [
    (
        without_extra_state(network().state_dict()),
        "no '0.parametrizations.weight._extra",
    ),
    (
        damaged(network().state_dict()),
        "can't read what the state dict knows of the mask ",
    ),
    (averaged(network().state_dict()), "is damaged, or an average of several"),
    (
        plain().state_dict(),
        "no mask in the state dict under the prefix ''. It has no ma",
    ),
    ({}, "It has no masks at all, but nothing."),
    ({"state_dict": network().state_dict()}, "no masks at all, but 'state_dict'."),
    (
        masktorch.wrap(nn.Sequential(nn.Linear(4, 9))).state_dict(),
        "can't mask '0.weight' of shape (8, 4) with the scores of the state dict, of "
        "shape (9, 4)",
    ),
    (
        nn.Sequential(
            masktorch.set_masks(nn.Linear(4, 9), {"weight": torch.ones(9, 4).bool()})
        ).state_dict(),
        "can't mask '0.weight' of shape (8, 4)",
    ),
    (
        masktorch.wrap(nn.Sequential(*plain(), nn.Linear(2, 2))).state_dict(),
        "a mask of '3.weight' in the state dict, but no parameter '3.weight' in Seq",
    ),
]


@pytest.mark.parametrize(("state", "message"), STATES, ids=range(len(STATES)))
@pytest.mark.parametrize(
    "make", [plain, lambda: mix(network(TopK(0.1), bias=True)), fixed]
)
def test_on_an_error_nothing_changes(state, message, make):
    model = make()
    before = repr(model), dict(model.named_parameters())
    values = copy.deepcopy(model.state_dict())
    phases = [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError, match=re.escape(message)):
        match_checkpoint(model, state)
    assert (repr(model), dict(model.named_parameters())) == before
    assert [p.requires_grad for p in model.parameters()] == phases
    assert all(torch.equal(value, values[n]) for n, value in model.state_dict().items())


def test_a_path_is_no_state_dict():
    with pytest.raises(TypeError, match=r"expected a state dict, .* found str"):
        match_checkpoint(plain(), "model.pt")


def test_the_last_tensor_is_checked_before_the_first_changes():
    class Final(nn.Linear):
        def __init_subclass__(cls):
            raise RuntimeError("no subclasses")

    model = plain()
    model[2] = Final(8, 2)
    with pytest.raises(RuntimeError, match="no subclasses"):
        match_checkpoint(model, network().state_dict())
    assert type(model[0]) is nn.Linear


# -- tied weights ----------------------------------------------------------------------


def tied(wrap=lambda model: model):
    torch.manual_seed(1)
    model = nn.Module()
    model.embedding, model.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    model.head.weight = model.embedding.weight
    return wrap(model)


@pytest.mark.parametrize("make", [tied, lambda: tied(masktorch.wrap)])
def test_tied_weights_have_one_mask(make):
    saved = mix(tied(lambda model: masktorch.wrap(model, Bernoulli(0.3))))
    model = load_into(make(), through_a_file(saved.state_dict()))
    masks = [
        model.embedding.parametrizations.weight,
        model.head.parametrizations.weight,
    ]
    assert masks[0] is masks[1]
    assert_equal(model, saved)


def test_a_file_that_has_a_tied_tensor_once(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    saved = mix(tied(lambda model: masktorch.wrap(model, Bernoulli(0.3))))
    safetensors.save_model(saved, tmp_path / "tied.safetensors")
    state = safetensors.load_file(tmp_path / "tied.safetensors")
    model = match_checkpoint(tied(), state)
    safetensors.load_model(model, tmp_path / "tied.safetensors")
    assert_equal(model, saved)


def test_a_file_that_has_a_tied_tensor_and_its_scores_under_two_names():
    """As transformers writes one: it drops all but the last of the tied names."""
    saved = mix(tied(lambda model: masktorch.wrap(model, Bernoulli(0.3))))
    state = saved.state_dict()
    del state["head.weight"]
    del state["embedding.parametrizations.weight.scores"]
    model = match_checkpoint(tied(), state)
    model.load_state_dict(state, strict=False)
    assert_equal(model, saved)


def test_fixed_masks_for_each_module_that_shares_a_weight():
    """They are matched one by one, as they were set."""
    saved = tied()
    one = torch.rand(5, 4) > 0.5
    masktorch.set_masks(saved.embedding, {"weight": one})
    masktorch.set_masks(saved.head, {"weight": ~one})
    state, model = saved.state_dict(), tied()
    message = "another mask of 'head.weight', but here the two are tied"
    with pytest.raises(ValueError, match=re.escape(message)):
        match_checkpoint(model, state)
    match_checkpoint(model.embedding, state, prefix="embedding.")
    match_checkpoint(model.head, state, prefix="head.")
    model.load_state_dict(state)
    assert torch.equal(model.head.parametrizations.weight.mode(), ~one)
    assert torch.equal(model.embedding.parametrizations.weight.mode(), one)


def test_one_masked_and_one_plain_module_that_share_a_weight():
    saved = tied()
    masktorch.set_masks(saved.head, {"weight": torch.rand(5, 4) > 0.5})
    state, model = saved.state_dict(), tied()
    with pytest.raises(
        ValueError, match=r"no mask of 'embedding.weight', but here the tw"
    ):
        match_checkpoint(model, state)
    match_checkpoint(model.head, state, prefix="head.")
    model.load_state_dict(state)
    assert_equal(model, saved)


def test_a_fixed_mask_becomes_learnable_where_no_other_learns_on_its_memory():
    state = network().state_dict()
    for elsewhere, message in (
        (lambda m: m, None),
        (masktorch.wrap, "a learnable mask"),
    ):
        other, model = plain(), plain()
        model[0].weight = other[0].weight
        masktorch.set_masks(model, {"0.weight": torch.ones(8, 4, dtype=torch.bool)})
        elsewhere(other)
        before = repr(model)
        if message is None:
            load_into(model, state)
            continue
        with pytest.raises(ValueError, match=f"mask '0.weight': {message}"):
            match_checkpoint(model, state)
        assert repr(model) == before


# -- devices, compilers ----------------------------------------------------------------


def test_a_model_and_a_state_dict_on_the_meta_device():
    saved = mix(network(TopK(0.3)))
    with torch.device("meta"):
        model = plain()
    match_checkpoint(model, saved.state_dict())
    assert all(p.is_meta for p in model.parameters())
    model.load_state_dict(saved.state_dict(), assign=True)
    assert_equal(model, saved)

    state = {
        name: value if name.endswith("_extra_state") else value.to("meta")
        for name, value in saved.state_dict().items()
    }
    model = match_checkpoint(plain(), state)
    model.load_state_dict(saved.state_dict())
    assert_equal(model, saved)


def test_the_warning_names_tensors_of_a_compiled_model():
    saved = torch.compile(mix(network(Bernoulli(0.3))), backend="eager")
    model = torch.compile(plain(), backend="eager")
    load_into(model, saved.state_dict())
    assert_equal(model._orig_mod, saved._orig_mod)


def test_weights_of_inference_mode_are_refused_before_anything_changes():
    saved = masktorch.wrap(nn.Linear(3, 2)).state_dict()
    with torch.inference_mode():
        plain = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="created in inference mode"):
        masktorch.match_checkpoint(plain, saved)
    assert type(plain) is nn.Linear


def test_scores_have_one_order_however_they_were_wrapped():
    """An optimiser saves its state by position."""

    class TwoTensors(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.ones(2, 2))
            self.b = nn.Parameter(torch.ones(2, 2))

    model = TwoTensors()
    masktorch.wrap(model, targets=["b"])
    masktorch.wrap(model, targets=["a"])
    matched = masktorch.match_checkpoint(TwoTensors(), model.state_dict())
    names = [name for name, _ in matched.named_parameters()]
    assert [name for name, _ in model.named_parameters()] == names
    assert names[2:] == ["parametrizations.a.scores", "parametrizations.b.scores"]
