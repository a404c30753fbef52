"""Within `using` a model computes with other masks; afterwards nothing has changed."""

import copy
import pickle
import re

import numpy as np
import pytest
import torch
from torch import nn

import masktorch
from masktorch import Bernoulli
from tools.two_layers import (
    MASKS,
    MODELS,
    ONE_ROW,
    YES,
    assert_same,
    by_hand,
    state,
    two_layers,
)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", MODELS)
def test_using_computes_with_the_given_masks_and_restores_everything(kind, training):
    model = MODELS[kind]().train(training)
    before = state(model)
    with masktorch.using(model, MASKS) as same:
        assert same is model
        np.testing.assert_allclose(
            model(ONE_ROW).detach(), by_hand(model, MASKS), rtol=1e-6
        )
        assert all(torch.equal(m, MASKS[n]) for n, m in masktorch.masks(model).items())
        assert masktorch.report(model).masked == 4
        assert masktorch.expected_density(model) == 0.5
    assert_same(before, state(model))


def test_using_none_is_the_plain_model():
    model = two_layers(init=-1.0, rescale=True)
    everything = {name: torch.ones(2, 2) for name in MASKS}
    with masktorch.using(model, None):
        np.testing.assert_array_equal(
            model[0].weight.detach(), model[0]._parameters["weight"]
        )
        np.testing.assert_allclose(
            model(ONE_ROW).detach(), by_hand(model, everything), rtol=1e-6
        )
    assert not masktorch.masks(model)["0.weight"].any()


def test_using_rescales_as_the_layer_does():
    model = two_layers(rescale=True)
    with masktorch.using(model, MASKS):
        np.testing.assert_allclose(
            model(ONE_ROW).detach(), by_hand(model, MASKS, 2.0), rtol=1e-6
        )


def test_using_nests_and_is_left_by_an_exception():
    model = two_layers()
    before = state(model)
    other = {name: ~mask for name, mask in MASKS.items()}

    def fail():
        with masktorch.using(model, MASKS):
            with masktorch.using(model, other):
                np.testing.assert_allclose(
                    model(ONE_ROW).detach(), by_hand(model, other), rtol=1e-6
                )
            np.testing.assert_allclose(
                model(ONE_ROW).detach(), by_hand(model, MASKS), rtol=1e-6
            )
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert_same(before, state(model))


def test_using_gives_gradients_to_kept_weights_and_none_to_scores():
    model = masktorch.freeze_weights(two_layers(), False)
    with masktorch.using(model, MASKS):
        model(ONE_ROW).sum().backward()
    for i, layer in enumerate(model):
        assert layer.parametrizations.weight.scores.grad is None
        assert torch.equal(layer._parameters["weight"].grad != 0, MASKS[f"{i}.weight"])


def test_a_copy_made_while_masks_are_used_has_masks_of_its_own():
    model = two_layers()
    with masktorch.using(model, MASKS):
        copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for other in copies:
        assert masktorch.masks(other)["0.weight"].all()


def test_masks_used_in_a_file(tmp_path):
    model = two_layers()
    with masktorch.using(model, MASKS):
        masktorch.save_masks(model, tmp_path / "masks.npz")
    masktorch.load_masks(model, tmp_path / "masks.npz")
    assert torch.equal(masktorch.masks(model)["1.weight"], MASKS["1.weight"])


@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated"
)  # Dynamo itself does it
def test_masks_used_by_a_compiled_model():
    model = two_layers(Bernoulli())
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for masks in (MASKS, {name: ~mask for name, mask in MASKS.items()}):
        with masktorch.using(compiled, masks):
            np.testing.assert_allclose(
                compiled(ONE_ROW).detach(), by_hand(model, masks), rtol=1e-6
            )
    drawn = {tuple(compiled(ONE_ROW)[0].tolist()) for _ in range(20)}
    assert len(drawn) > 1


def test_using_is_not_entered_in_compiled_code(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with (
        pytest.raises(RuntimeError, match="being compiled"),
        masktorch.using(two_layers(), MASKS),
    ):
        pass


BAD = [
    ({}, ValueError, "Missing: 0.weight, 1.weight."),
    ({**MASKS, "2.weight": YES}, ValueError, "Not masked in this model: 2.weight."),
    (
        {**MASKS, "1.weight": YES[:1]},
        ValueError,
        "for '1.weight' of shape (2, 2), found (1, 2).",
    ),
    (
        {**MASKS, "1.weight": YES.float()},
        TypeError,
        "bool tensor for '1.weight', found torch.fl",
    ),
    ({**MASKS, "1.weight": [[True]]}, TypeError, "found list."),
    ([YES], TypeError, "expected a dict from tensor names to masks"),
]


@pytest.mark.parametrize(("masks", "exception", "message"), BAD)
@pytest.mark.parametrize("kind", MODELS)
def test_bad_masks_change_nothing(kind, masks, exception, message):
    model = MODELS[kind]()
    before = state(model)
    with (
        pytest.raises(exception, match=r"using\(\) .*" + re.escape(message)),
        masktorch.using(model, masks),
    ):
        pass
    assert_same(before, state(model))


@pytest.mark.parametrize("kind", MODELS)
def test_set_masks_within_using_is_refused(kind):
    model = MODELS[kind]()
    before = state(model)
    with (
        masktorch.using(model, MASKS),
        pytest.raises(ValueError, match=r"within masktorch.using would not be seen"),
    ):
        masktorch.set_masks(model, MASKS)
    assert_same(before, state(model))


def test_using_refuses_a_plain_model():
    with (
        pytest.raises(ValueError, match=r"using\(\) expected a wrapped model"),
        masktorch.using(nn.Linear(2, 2), {"weight": YES}),
    ):
        pass


def test_using_decorates_functions():
    layer, masks = one_kept_weight()

    @masktorch.using(layer, masks)
    def output():
        return layer(torch.ones(1, 2)).item()

    assert [output(), output()] == [0.0, 0.0]
    assert layer(torch.ones(1, 2)).item() == 2.0


def test_using_refuses_to_decorate_what_runs_later():
    """The body of a generator or coroutine runs after the call that makes it."""
    layer, masks = one_kept_weight()

    def generator():
        yield

    async def coroutine():
        pass

    async def asynchronous_generator():
        yield

    for function in (generator, coroutine, asynchronous_generator):
        with pytest.raises(TypeError, match=f"{function.__name__}, a generator or"):
            masktorch.using(layer, masks)(function)


def one_kept_weight():
    """A layer that computes x1 + x2, and masks that drop both."""
    layer = masktorch.wrap(nn.Linear(2, 1, bias=False))
    layer.parametrizations.weight.original.data.fill_(1.0)
    return layer, {"weight": torch.zeros(1, 2, dtype=torch.bool)}


def test_unwrap_within_using_is_refused():
    """It would bake masks that are not the model's own."""
    layer, masks = one_kept_weight()
    refused = pytest.raises(ValueError, match=r"within masktorch\.using would bake")
    with masktorch.using(layer, masks), refused:
        masktorch.unwrap(layer)
    assert masktorch.masks(layer)["weight"].all()
    with masktorch.using(layer, masks):
        masktorch.unwrap(layer, bake=False)
    assert layer.weight.tolist() == [[1.0, 1.0]]
