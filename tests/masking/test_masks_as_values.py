"""Masks as values: used for a while, drawn, given to plain models."""

import copy
import pickle
import re

import numpy as np
import pytest
import torch
from torch import nn

import masktorch
from masktorch import Bernoulli, Concrete, HardConcrete, IntermediateSampling, Threshold

YES = torch.tensor([[True, False], [False, True]])


def two_layers(estimator=Threshold(), **options):
    return masktorch.wrap(
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), estimator, **options
    )


def given_two():
    return masktorch.set_masks(
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
        {"0.weight": ~YES, "1.weight": ~YES},
    )


MASKS = {"0.weight": YES, "1.weight": ~YES}
X = torch.tensor([[1.0, 2.0]])


def by_hand(model, masks, factor=1.0):
    """What the two layers compute under the masks, in numpy."""
    out = X.numpy()
    for i, layer in enumerate(model):
        weight = (
            layer._parameters["weight"].detach().numpy() * masks[f"{i}.weight"].numpy()
        )
        out = out @ (weight * factor).T + layer.bias.detach().numpy()
    return out


def state(model):
    """All that a visit of `using` must leave as it was."""
    return (
        [
            (name, p.detach().clone(), p.requires_grad)
            for name, p in model.named_parameters()
        ],
        list(model.state_dict()),
        [repr(module) for module in model.modules()],
        {name: mask.clone() for name, mask in masktorch.masks(model).items()},
        torch.get_rng_state(),
    )


def assert_same(before, after):
    for (name, a, trains), (other, b, trained) in zip(before[0], after[0], strict=True):
        assert (name, trains) == (other, trained)
        assert torch.equal(a, b)
    assert before[1:3] == after[1:3]
    assert all(torch.equal(before[3][name], after[3][name]) for name in before[3])
    assert torch.equal(before[4], after[4])


MODELS = {
    "threshold": two_layers,
    "bernoulli": lambda: two_layers(Bernoulli()),
    "frozen": lambda: masktorch.freeze_mask(two_layers()),
    "given": given_two,
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", MODELS)
def test_using_masks_for_a_while(kind, training):
    model = MODELS[kind]().train(training)
    before = state(model)
    with masktorch.using(model, MASKS) as same:
        assert same is model
        np.testing.assert_allclose(model(X).detach(), by_hand(model, MASKS), rtol=1e-6)
        assert all(torch.equal(m, MASKS[n]) for n, m in masktorch.masks(model).items())
        assert masktorch.report(model).masked == 4
        assert masktorch.expected_density(model) == 0.5
    assert_same(before, state(model))


def test_using_no_masks_is_the_plain_model():
    model = two_layers(init=-1.0, rescale=True)
    everything = {name: torch.ones(2, 2) for name in MASKS}
    with masktorch.using(model, None):
        np.testing.assert_array_equal(
            model[0].weight.detach(), model[0]._parameters["weight"]
        )
        np.testing.assert_allclose(
            model(X).detach(), by_hand(model, everything), rtol=1e-6
        )
    assert not masktorch.masks(model)["0.weight"].any()


def test_using_rescales_as_the_layer_does():
    model = two_layers(rescale=True)
    with masktorch.using(model, MASKS):
        np.testing.assert_allclose(
            model(X).detach(), by_hand(model, MASKS, 2.0), rtol=1e-6
        )


def test_using_nests_and_ends_by_an_exception():
    model = two_layers()
    before = state(model)
    other = {name: ~mask for name, mask in MASKS.items()}

    def fail():
        with masktorch.using(model, MASKS):
            with masktorch.using(model, other):
                np.testing.assert_allclose(
                    model(X).detach(), by_hand(model, other), rtol=1e-6
                )
            np.testing.assert_allclose(
                model(X).detach(), by_hand(model, MASKS), rtol=1e-6
            )
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert_same(before, state(model))


def test_using_sends_gradients_to_weights_under_the_masks_and_none_to_scores():
    model = masktorch.freeze_weights(two_layers(), False)
    with masktorch.using(model, MASKS):
        model(X).sum().backward()
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
                compiled(X).detach(), by_hand(model, masks), rtol=1e-6
            )
    drawn = {tuple(compiled(X)[0].tolist()) for _ in range(20)}
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
def test_masks_are_not_set_where_others_are_used(kind):
    model = MODELS[kind]()
    before = state(model)
    with (
        masktorch.using(model, MASKS),
        pytest.raises(ValueError, match=r"within masktorch.using would not be seen"),
    ):
        masktorch.set_masks(model, MASKS)
    assert_same(before, state(model))


def test_using_on_a_plain_model():
    with (
        pytest.raises(ValueError, match=r"using\(\) expected a wrapped model"),
        masktorch.using(nn.Linear(2, 2), {"weight": YES}),
    ):
        pass


def test_a_plain_model_gets_masks_that_do_not_learn():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    given = YES.clone()
    assert masktorch.set_masks(model, {"1.weight": given}) is model
    given[:] = False  # a copy was taken
    assert list(masktorch.masks(model)) == ["1.weight"]
    assert torch.equal(masktorch.masks(model)["1.weight"], YES)
    assert list(masktorch.mask_parameters(model)) == []
    assert model[1]._parameters["weight"].requires_grad  # trains as before
    np.testing.assert_array_equal((model[1].weight != 0).numpy(), YES.numpy())


def test_a_given_mask_is_switched():
    model = given_two()
    for masks in (MASKS, {name: ~mask for name, mask in MASKS.items()}):
        masktorch.set_masks(model, masks)
        np.testing.assert_allclose(model(X).detach(), by_hand(model, masks), rtol=1e-6)


PLAIN = [
    ({"3.weight": YES}, ValueError, "set_masks() found no parameter '3.weight'"),
    (
        {"0.weight": YES[:1]},
        ValueError,
        "for '0.weight' of shape (2, 2), found (1, 2).",
    ),
    (
        {"0.weight": YES.int()},
        TypeError,
        "bool tensor for '0.weight', found torch.int32",
    ),
    ({}, ValueError, "set_masks() expected a wrapped model: nothing is masked"),
]


@pytest.mark.parametrize(("masks", "exception", "message"), PLAIN)
def test_bad_masks_leave_a_plain_model_plain(masks, exception, message):
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(exception, match=re.escape(message)):
        masktorch.set_masks(model, masks)
    assert type(model[0]) is nn.Linear


def test_a_tied_tensor_is_named_by_any_of_its_names_and_once():
    def tied():
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        model[1].weight = model[0].weight
        return model

    model = masktorch.set_masks(tied(), {"1.weight": YES})
    assert torch.equal(masktorch.masks(model)["0.weight"], YES)
    with pytest.raises(ValueError, match=r"one mask .*found two for '0.weight'"):
        masktorch.set_masks(tied(), {"0.weight": YES, "1.weight": ~YES})


@pytest.mark.parametrize(
    ("estimator", "p"),
    [
        (Bernoulli(), 0.75),
        (IntermediateSampling(), 0.75),
        (Concrete(hard=True), 0.75),
        (Concrete(hard=False), 0.75),
        # P(z > 0) = sigma(s - beta * log(-gamma / zeta))
        (HardConcrete(), 1 / (1 + (0.1 / 1.1) ** (2 / 3) / 3)),
    ],
    ids=repr,
)
def test_masks_are_sampled_by_their_probability(estimator, p):
    n = 40_000
    model = masktorch.wrap(nn.Linear(n, 1), estimator, init=float(np.log(3)))
    before = torch.get_rng_state()
    first = masktorch.sample_masks(model, torch.Generator().manual_seed(1))["weight"]
    again = masktorch.sample_masks(model, torch.Generator().manual_seed(1))["weight"]
    assert torch.equal(
        before, torch.get_rng_state()
    )  # the generator's draws are its own
    other = masktorch.sample_masks(model)["weight"]
    assert first.dtype is torch.bool
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    for mask in (first, other):
        assert abs(mask.double().mean() - p) < 5 * np.sqrt(p * (1 - p) / n)
    assert masktorch.expected_density(model).item() == pytest.approx(p, rel=1e-5)


@pytest.mark.parametrize("kind", ["threshold", "frozen", "given"])
def test_what_is_not_drawn_is_sampled_as_it_is(kind):
    model = MODELS[kind]()
    sampled = masktorch.sample_masks(model)
    for name, mask in masktorch.masks(model).items():
        assert torch.equal(sampled[name], mask)
        sampled[name].fill_(False)  # a copy
    assert_same(state(model), state(model))


def test_averaging_draws_of_clients_into_scores():
    """Federated masks: a draw a client up, the average's scores down."""
    server = masktorch.wrap(nn.Linear(50, 40), Bernoulli(), init=0.0)
    clients = [
        masktorch.sample_masks(server, torch.Generator().manual_seed(i))["weight"]
        for i in range(10)
    ]
    mean = torch.stack(clients).float().mean(0).clamp(0.01, 0.99)
    for name, scores in masktorch.named_mask_parameters(server):
        assert name == "weight"
        scores.data.copy_(torch.logit(mean))
    torch.testing.assert_close(masktorch.expected_density(server), mean.mean())


def test_a_tied_tensor_goes_by_any_of_its_names_in_every_call():
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


def test_sampling_by_a_generator_seeds_no_other_stream(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", calls.append)
    masktorch.sample_masks(two_layers(Bernoulli()), torch.Generator().manual_seed(1))
    assert calls == []
    with pytest.raises(
        TypeError, match=r"expected a torch.Generator, found .*Generator"
    ):
        masktorch.sample_masks(two_layers(Bernoulli()), np.random.default_rng(0))


def test_a_sparse_mask_is_refused_before_anything_changes():
    layer = nn.Linear(2, 2)
    with pytest.raises(
        TypeError, match=r"a dense bool tensor for 'weight', found Tensor"
    ):
        masktorch.set_masks(layer, {"weight": YES.to_sparse()})
    assert type(layer) is nn.Linear
