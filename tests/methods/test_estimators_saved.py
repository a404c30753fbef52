"""Estimators are plain values: they compare, hash, print, copy and pickle."""

import copy
import dataclasses
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import masktorch
from masktorch import Blocks, NOfM, Piggyback, Threshold, TopK
from masktorch._methods.built_in import BuiltIn
from tools.estimators import ALL

each_value = pytest.mark.parametrize("value", ALL, ids=repr)


def saved_and_loaded(value, weights_only):
    buffer = io.BytesIO()
    torch.save({"estimator": value}, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=weights_only)["estimator"]


def fields_of(value):
    return {
        field.name: getattr(value, field.name) for field in dataclasses.fields(value)
    }


WAYS = {
    "repr": lambda value: eval(repr(value), vars(masktorch)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "old pickle": lambda value: pickle.loads(pickle.dumps(value, protocol=2)),
    "torch.load": lambda value: saved_and_loaded(value, weights_only=True),
    "unsafe torch.load": lambda value: saved_and_loaded(value, weights_only=False),
    "replace": dataclasses.replace,
    "fields": lambda value: type(value)(**fields_of(value)),
}


@each_value
@pytest.mark.parametrize("way", WAYS)
def test_a_copy_is_the_same_value(value, way):
    other = WAYS[way](value)
    assert type(other) is type(value)
    assert other == value
    assert hash(other) == hash(value)
    assert repr(other) == repr(value)
    weight = torch.randn(4, 8)
    torch.manual_seed(3)
    expected = value.init(weight)
    torch.manual_seed(3)
    assert torch.equal(other.init(weight), expected)
    assert torch.equal(other.mode(expected), value.mode(expected))


def test_the_list_has_every_public_estimator():
    public = {getattr(masktorch, name) for name in masktorch.__all__}
    classes = {kind for kind in public if isinstance(kind, type)}
    assert {type(value) for value in ALL} == {
        kind for kind in classes if issubclass(kind, BuiltIn)
    }


def test_values_that_differ_are_not_equal():
    assert len({*ALL}) == len(ALL)


@each_value
def test_the_state_holds_no_tensor_and_names_the_public_place(value):
    state = value.__reduce_ex__(2)[2] or {}  # None if there are no fields
    assert state == fields_of(value)
    plain = int | float | tuple | BuiltIn | None
    assert all(isinstance(field, plain) for field in state.values())
    assert type(value).__module__ == "masktorch"
    assert getattr(masktorch, type(value).__name__) is type(value)


@each_value
def test_numbers_of_numpy_become_plain_ones(value):
    fields = fields_of(value)
    numpy = {
        name: np.float64(field) if type(field) is float else field
        for name, field in fields.items()
    }
    other = type(value)(**numpy)
    assert repr(other) == repr(value)
    assert saved_and_loaded(other, weights_only=True) == value


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        (Threshold, {"tau": 2.0}),
        (Piggyback, {"threshold": float("nan")}),
        (TopK, {"density": 7.0, "absolute": True}),
        (NOfM, {"n": 5, "m": 4, "absolute": True}),
        (Blocks, {"estimator": TopK(), "block": (0, 1)}),
    ],
)
def test_a_state_from_a_file_is_checked_as_the_constructor_does(kind, state):
    value = kind.__new__(kind)
    with pytest.raises(ValueError, match="expected"):
        value.__setstate__(state)


def test_a_new_class_of_the_package_is_public_and_loadable(monkeypatch):
    safe = []
    monkeypatch.setattr(torch.serialization, "add_safe_globals", safe.extend)
    within = {"__module__": "masktorch._methods.new"}
    new = type("New", (Threshold,), within)
    assert new.__module__ == "masktorch"
    assert safe == [new]
    abstract = type("NewBase", (BuiltIn,), within)
    assert abstract.__module__ == "masktorch._methods.new"
    assert safe == [new]


class Mine(Threshold):
    """A subclass of a user's, which torch.load has no reason to trust."""


def test_a_class_of_the_users_is_not_made_safe():
    buffer = io.BytesIO()
    torch.save(Mine(), buffer)
    buffer.seek(0)
    with pytest.raises(pickle.UnpicklingError, match="Mine"):
        torch.load(buffer, weights_only=True)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
def test_a_loaded_value_compiles_at_most_four_graphs_over_a_schedule(dynamo):
    from torch._dynamo.testing import CompileCounterWithBackend

    layer = masktorch.wrap(nn.Linear(8, 4), TopK())
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter, dynamic=False)
    for density in (1.0, 0.9, 0.8, 0.65, 0.5, 0.4, 0.3, 0.2):
        loaded = saved_and_loaded(TopK(density), weights_only=True)
        masktorch.set_estimator(layer, loaded)
        x = torch.randn(2, 8)
        torch.testing.assert_close(compiled(x), layer(x))
    assert counter.frame_count <= 4


@each_value
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_over_16_bits_start_in_float32(value, dtype):
    assert value.init(torch.randn(4, 8).to(dtype)).dtype is torch.float32
