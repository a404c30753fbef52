"""One warning for each load_state_dict of a model whose masks differ, on any root."""

import copy
import json
import warnings

import pytest
import torch
from torch import nn

import masktorch
from masktorch import Bernoulli, TopK, budget


def network(layers=3, **options):
    return masktorch.wrap(
        nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers))), **options
    )


def said_by(function):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    assert all(entry.filename == __file__ for entry in caught)  # the caller's line
    return [str(entry.message) for entry in caught]


def said_when_loaded(model, state, **options):
    return said_by(lambda: model.load_state_dict(state, **options))


@pytest.mark.parametrize(
    ("layers", "subject"),
    [
        (1, "mask of '0.weight' was"),
        (2, "masks of '0.weight' and 1 more tensor were"),
        (40, "masks of '0.weight' and 39 more tensors were"),
    ],
)
def test_one_warning_for_all_layers(layers, subject):
    (said,) = said_when_loaded(
        network(layers), network(layers, rescale=True).state_dict()
    )
    assert f"The {subject} saved in another state. '0.weight' had rescale=True" in said


def test_the_first_that_differs_is_named():
    saved, model = network(), network()
    masktorch.freeze_mask(saved[1])
    masktorch.freeze_mask(saved[2])
    (said,) = said_when_loaded(model, saved.state_dict())
    assert "The masks of '1.weight' and 1 more tensor were" in said


class Root(nn.Module):
    """A root of the user's own, over models that were wrapped one by one."""

    def __init__(self, wrap=masktorch.wrap):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.first = wrap(nn.Sequential(nn.Linear(4, 4)))
        self.second = wrap(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))


class OwnLoad(Root):
    def load_state_dict(self, values, strict=True, assign=False):
        renamed = {key.removeprefix("old."): value for key, value in values.items()}
        return super().load_state_dict(renamed, strict=strict, assign=assign)


def frozen(model):
    return masktorch.freeze_mask(masktorch.wrap(model))


def test_a_root_over_several_wrapped_models():
    (said,) = said_when_loaded(Root(), Root(frozen).state_dict())
    assert "The masks of 'first.0.weight' and 2 more tensors were" in said


def test_a_part_of_a_model():
    model = Root()
    (said,) = said_when_loaded(model.second, Root(frozen).second.state_dict())
    assert "The masks of '0.weight' and 1 more tensor were" in said
    layer = model.first[0]
    (said,) = said_when_loaded(layer, Root(frozen).first[0].state_dict())
    assert "The mask of 'weight' was" in said


def test_a_load_state_dict_of_the_users_own():
    state = {f"old.{n}": value for n, value in OwnLoad(frozen).state_dict().items()}
    with pytest.warns(UserWarning, match="and 2 more tensors were saved") as caught:
        OwnLoad().load_state_dict(state)
    assert len(caught) == 1


def test_a_module_that_lives_in_two_places():
    model, saved = network(1), masktorch.freeze_mask(network(1))
    twice = nn.Sequential(model, model)
    assert len(said_when_loaded(twice, nn.Sequential(saved, saved).state_dict())) == 1


def test_modules_that_are_loaded_without_load_state_dict():
    """As transformers has loaded them: each module is given what is its own."""
    state = masktorch.freeze_mask(network()).state_dict()
    model = network()

    def load():
        for name, module in model.named_modules():
            prefix = f"{name}." if name else ""
            module._load_from_state_dict(state, prefix, {}, True, [], [], [])

    with pytest.warns(UserWarning, match="saved in another state") as caught:
        load()
    assert [f"of '{number}.weight' was" in str(caught[number].message) for number in
            range(3)] == [True] * 3  # fmt: skip
    assert len(caught) == 3


def test_a_loader_that_holds_the_model_but_not_as_a_child():
    state = masktorch.freeze_mask(network(1)).state_dict()

    class Loader(nn.Module):
        def __init__(self):
            super().__init__()
            self.held = [network(1)]

        def load_state_dict(self, state_dict):
            for name, module in self.held[0].named_modules():
                prefix = f"{name}." if name else ""
                module._load_from_state_dict(state_dict, prefix, {}, True, [], [], [])

    with pytest.warns(UserWarning, match="mask of '0.weight' was saved") as caught:
        Loader().load_state_dict(state)
    assert len(caught) == 1


@pytest.mark.parametrize("strict", [True, False])
def test_a_failing_load_warns_once_too(strict):
    state = masktorch.freeze_mask(network()).state_dict()
    state["0.weight"] = torch.ones(5, 5)
    with (
        pytest.raises(RuntimeError, match="size mismatch"),
        pytest.warns(UserWarning, match="in another state") as c,
    ):
        network().load_state_dict(state, strict=strict)
    assert len(c) == 1


def test_every_load_warns():
    model, state = network(), network(rescale=True).state_dict()
    assert len(said_when_loaded(model, state)) == 1
    assert len(said_when_loaded(model, state)) == 1
    assert said_when_loaded(model, copy.deepcopy(model).state_dict()) == []


def averaged(states):
    """FedAvg, as everybody writes it."""
    return {key: sum(state[key] for state in states) / 3 for key in states[0]}


def test_averaged_states_load_without_a_word():
    clients = [network(init=torch.randn_like) for _ in range(3)]
    server = network()
    server.load_state_dict(averaged([client.state_dict() for client in clients]))
    for position, layer in enumerate(server):
        scores = [client[position].parametrizations.weight.scores for client in clients]
        assert torch.equal(layer.parametrizations.weight.scores, sum(scores) / 3)


def test_averages_turned_back_into_bytes_advise_nothing():
    state = network().state_dict()
    for key in state:
        if key.endswith("_extra_state"):
            state[key] = 3 * state[key] // 3  # which overflows
    (said,) = said_when_loaded(network(), state)
    assert "can't be read" in said
    assert "?" not in said
    assert "match_checkpoint" not in said


def test_following_the_warning_gives_the_densities_that_were_saved():
    saved = network(estimator=TopK())
    densities = {"0.weight": 0.125, "1.weight": 0.5, "2.weight": 1.0}
    masktorch.set_density(saved, densities)
    state, model = saved.state_dict(), network(estimator=TopK())
    (said,) = said_when_loaded(model, state)
    call = said.partition("to make them agree: ")[2].removesuffix(".")
    eval(call, {"masktorch": masktorch, "model": model, "state_dict": state})
    assert said_when_loaded(model, state) == []
    assert [row.kept for row in masktorch.report(model).rows] == [2, 8, 16]


def test_estimators_of_each_tensor_as_a_budget_sets_them():
    saved = masktorch.wrap(nn.Sequential(nn.Linear(20, 10), nn.Linear(10, 2)), TopK())
    masktorch.set_density(saved, budget.erk(saved, 0.5))
    state = saved.state_dict()
    model = masktorch.wrap(nn.Sequential(nn.Linear(20, 10), nn.Linear(10, 2)), TopK())
    (said,) = said_when_loaded(model, state)
    assert "TopK(density=0.45" in said
    assert masktorch.report(masktorch.match_checkpoint(model, state)).kept == 110


def old_state(estimator):
    """The extra state of the first versions, which had the repr of an estimator."""
    known = {
        "rescale": False,
        "mask_frozen": False,
        "weights_frozen": True,
        "estimator": estimator,
    }
    return torch.tensor(list(json.dumps(known).encode().ljust(512)), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("estimator", "warnings"),
    [
        ("Bernoulli(tau=0.5)", 0),
        ("Bernoulli(tau=0.25)", 1),
        ("TopK(density=0.5, absolute=True, block=(1, None))", 1),
    ],
)
def test_older_checkpoints_knew_the_repr_only(estimator, warnings):
    state = network(1, estimator=Bernoulli()).state_dict()
    state["0.parametrizations.weight._extra_state"] = old_state(estimator)
    said = said_when_loaded(network(1, estimator=Bernoulli()), state)
    assert len(said) == warnings
    assert all(f"had estimator={estimator} (here Bernoulli(" in text for text in said)
