"""The class of a masked module: made once, callable, collected when unused."""

import copy
import gc
import weakref

import torch
from torch import nn
from torch.nn.utils import parametrize

import masktorch
from tools.models import ROWS


def test_a_masked_class_makes_plain_layers():
    """`type(layer)(...)` is how many tools make a layer like another."""
    layer = masktorch.wrap(nn.Linear(4, 4))
    made = type(layer)(4, 2)
    assert made(ROWS).shape == (3, 2)
    assert not parametrize.is_parametrized(made)


def test_each_class_is_subclassed_once():
    made = []

    class Listed(nn.Linear):
        def __init_subclass__(cls):
            made.append(cls)

    model = nn.Sequential(Listed(4, 4), Listed(4, 4))
    masktorch.wrap(model, bias=True)
    assert type(model[0]) is type(model[1])
    assert torch.equal(copy.deepcopy(model)(ROWS), model(ROWS))
    masktorch.wrap(masktorch.unwrap(model), bias=True)
    assert len(made) == 1


def test_a_local_class_lives_no_longer_than_its_modules():
    def life_of_a_class():
        class Local(nn.Linear):
            pass

        layer = masktorch.wrap(Local(4, 4))
        layer(ROWS).sum().backward()
        masktorch.unwrap(copy.deepcopy(layer))
        return weakref.ref(Local)

    gone = life_of_a_class()
    gc.collect()
    assert gone() is None


def test_a_wrapped_layer_is_an_instance_of_its_class():
    layer = masktorch.wrap(nn.Linear(4, 4))
    assert isinstance(layer, nn.Linear)
    assert issubclass(type(layer), nn.Linear)
    assert not isinstance(layer, nn.Conv2d)
    assert type(layer) is type(masktorch.wrap(nn.Linear(2, 2)))
    assert parametrize.type_before_parametrizations(layer) is nn.Linear
    assert parametrize.is_parametrized(layer, "weight")
    assert not parametrize.is_parametrized(layer, "bias")
