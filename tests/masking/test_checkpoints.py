"""What a checkpoint knows of its masks, and what loading it into another model says."""

import copy
import io
import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import masktorch
from masktorch import Bernoulli, Threshold

KEY = "0.parametrizations.weight._extra_state"


def network(estimator=Threshold(), **options):
    return masktorch.wrap(
        nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), estimator, **options
    )


def mix(model):
    return masktorch.freeze_weights(masktorch.freeze_mask(model), False)


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# what is saved, what is present, what is said of the first of its two masks
DIFFERENT = {
    "phase": (
        lambda: mix(network()),
        network,
        "mask_frozen=True (here False), weights_frozen=False (here True)",
    ),
    "phase, the other way": (
        network,
        lambda: masktorch.freeze_mask(network()),
        "mask_frozen=False (here True)",
    ),
    "estimator": (
        lambda: network(Bernoulli()),
        network,
        "estimator=Bernoulli(tau=0.5) (here Threshold(tau=0.5))",
    ),
    "rescale": (
        network,
        lambda: network(rescale=True),
        "rescale=False (here True)",
    ),
    "one field of the estimator": (
        lambda: network(Threshold(0.3)),
        lambda: network(Threshold(0.4)),
        "estimator=Threshold(tau=0.3) (here Threshold(tau=0.4))",
    ),
}


@pytest.mark.parametrize("case", DIFFERENT)
@pytest.mark.parametrize("assign", [False, True])
def test_a_difference_is_warned_of_once(case, assign):
    make, make_other, difference = DIFFERENT[case]
    state, model = through_a_file(make().state_dict()), make_other()
    with pytest.warns(UserWarning, match="saved in another state") as caught:
        model.load_state_dict(state, assign=assign)
    assert len(caught) == 1
    assert str(caught[0].message) == (
        "load_state_dict(): The masks of '0.weight' and 1 more tensor were saved in "
        f"another state. '0.weight' had {difference}. Loading changes scores and "
        f"weights "
        "only. Before it, to make them agree: "
        "masktorch.match_checkpoint(model, state_dict)."
    )
    for name, value in model.state_dict().items():  # and it is loaded
        assert torch.equal(value, state[name]) or name.endswith("_extra_state")


@pytest.mark.parametrize("case", DIFFERENT)
def test_the_call_named_in_the_warning_makes_them_agree(case):
    make, make_other, _ = DIFFERENT[case]
    state, model = make().state_dict(), make_other()
    with pytest.warns(UserWarning, match="saved in another state") as caught:
        model.load_state_dict(state)
    *_, call = (
        str(caught[0].message).removesuffix(".").partition("to make them agree: ")
    )
    eval(call, {"masktorch": masktorch, "model": model, "state_dict": state})
    model.load_state_dict(state)


@pytest.mark.parametrize("phase", [lambda m: m, masktorch.freeze_mask, mix])
@pytest.mark.parametrize("way", [through_a_file, copy.deepcopy, dict])
@pytest.mark.parametrize("assign", [False, True])
def test_loading_in_the_same_phase_does_not_warn(phase, way, assign):
    model = phase(network(Bernoulli(0.4), rescale=True))
    other = phase(network(Bernoulli(0.4), rescale=True))
    assert other.load_state_dict(way(model.state_dict()), assign=assign) == ([], [])
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin.load_state_dict(model.state_dict())
        assert torch.equal(twin.state_dict()[KEY], model.state_dict()[KEY])


def test_the_extra_state_is_one_small_tensor_per_mask():
    one = network().state_dict()[KEY]
    assert (one.dtype, one.device.type, one.shape) == (torch.uint8, "cpu", (512,))
    with torch.device("meta"):
        assert network().state_dict()[KEY].device.type == "cpu"


@pytest.mark.parametrize(("length", "size"), [(1, 512), (500, 1024), (5000, 5120)])
def test_the_extra_state_grows_in_steps(length, size):
    @dataclass(frozen=True)
    class Wordy(Threshold):
        word: str = ""

    model = network(Wordy(word="w" * length))
    assert model.state_dict()[KEY].shape == (size,)
    network(Wordy(word="w" * length)).load_state_dict(model.state_dict())


def test_a_long_repr_is_cut():
    class Wordy:
        def __init__(self):
            self.attribute = 1  # which makes it something else than data

        def __call__(self, scores):
            return scores

        def mode(self, scores):
            return scores > 0

        def __repr__(self):
            return "Wordy(" + '"é\\' * 1000 + ")"

    state = network(Wordy()).state_dict()
    assert state[KEY].shape == (512,)
    network(Wordy()).load_state_dict(through_a_file(state))


def old(state):
    """A state dict without the extra state of the masks."""
    return {
        name: value
        for name, value in state.items()
        if not name.endswith("_extra_state")
    }


@pytest.mark.parametrize("phase", [lambda m: m, mix])
def test_an_older_checkpoint_loads_without_a_warning(phase):
    model = phase(network())
    state = through_a_file(old(network(init=-3.0).state_dict()))
    assert len(state) == 6
    assert model.load_state_dict(state, strict=True) == ([], [])
    assert all((s == -3).all() for s in masktorch.masks(model) and scores_of(model))


def scores_of(model):
    return [s for n, s in model.named_parameters() if n.endswith("scores")]


def test_strict_loading_reports_missing_and_unexpected_keys():
    model, state = network(), network().state_dict()
    for change, message in [
        (lambda s: s.pop("0.parametrizations.weight.scores"), "Missing key"),
        (
            lambda s: s.update({"0.parametrizations.weight.more": torch.ones(1)}),
            "Unexpected key",
        ),
        (
            lambda s: s.update({"0.parametrizations.bias.scores": torch.ones(3)}),
            "Unexpected key",
        ),
    ]:
        changed = dict(state)
        change(changed)
        with pytest.raises(RuntimeError, match=message):
            model.load_state_dict(changed)
    plain = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with pytest.raises(RuntimeError, match=rf"Unexpected key.*{KEY}"):
        plain.load_state_dict(state)


@pytest.mark.parametrize("left_out", ["parametrizations", "scores"])
def test_a_state_without_scores_does_not_warn(left_out):
    """Rewinding the weights under a frozen mask."""
    start = network().state_dict()
    model = mix(network(init=2.0))
    state = {name: value for name, value in start.items() if left_out not in name}
    model.load_state_dict(state, strict=False)
    assert torch.equal(model.state_dict()["0.weight"], start["0.weight"])
    assert all((s == 2).all() for s in scores_of(model))


def tied():
    model = nn.Module()
    model.embedding, model.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    model.head.weight = model.embedding.weight
    return masktorch.wrap(model)


def test_tied_weights_are_warned_of_once():
    outer = nn.Sequential(tied())
    with pytest.warns(UserWarning, match="saved in another state") as caught:
        masktorch.freeze_mask(outer).load_state_dict(nn.Sequential(tied()).state_dict())
    assert len(caught) == 1
    assert "mask of '0.embedding.weight' was saved" in str(caught[0].message)


def test_the_warning_names_tensors_of_a_compiled_model():
    model = torch.compile(network(targets=["0.weight"]), backend="eager")
    state = masktorch.freeze_mask(network(targets=["0.weight"])).state_dict()
    with pytest.warns(
        UserWarning, match="mask of '0.weight' was .* had mask_frozen=True"
    ):
        model.load_state_dict(
            {f"_orig_mod.{name}": value for name, value in state.items()}
        )


def test_given_masks_know_whether_the_weights_under_them_train():
    keep = {"0.weight": torch.ones(3, 4, dtype=torch.bool)}

    def given():
        plain = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        return masktorch.set_masks(plain, keep)

    state = given().state_dict()
    given().load_state_dict(through_a_file(state))
    with pytest.warns(UserWarning, match=r"had weights_frozen=False \(here True\)"):
        masktorch.freeze_weights(given()).load_state_dict(state)
    with pytest.raises(
        RuntimeError, match="expected scores, found a mask"
    ):  # and nothing else
        network(targets=["0.weight"]).load_state_dict(state)


DAMAGED = [
    b"",
    b"{",
    b"[]",
    b'{"estimator": 3}',
    b"\xff" * 512,
    b"[" * 10_000,
    b'{"rescale":0,"mask_frozen":false,"weights_frozen":true,"estimator":"Mine()"}',
    b'{"rescale":false,"mask_frozen":false,"weights_frozen":true,"estimator":{}}',
    b'{"rescale":false,"mask_frozen":false,"weights_frozen":true,"estimator":'
    b'{"class":3,"fields":{}}}',
    b'{"rescale":false,"mask_frozen":false,"weights_frozen":true,"estimator":'
    b'{"class":"A","fields":{"a":' + b'{"tuple":[' * 50 + b"]}" * 50 + b"}}}",
]


@pytest.mark.parametrize("code", DAMAGED, ids=range(len(DAMAGED)))
def test_an_unreadable_extra_state_is_warned_of(code):
    state = network().state_dict()
    state[KEY] = torch.tensor([*code], dtype=torch.uint8)
    with pytest.warns(UserWarning, match="load_state_dict") as caught:
        network().load_state_dict(state)
    assert len(caught) == 1
    assert str(caught[0].message) == (
        "load_state_dict(): The mask of '0.weight' was saved in a state that can't be "
        "read (averaging breaks it), so estimator, rescale and phase were not compared."
    )


def test_the_meta_device():
    with torch.device("meta"):
        model = network()
        empty = network().state_dict()
    state = network().state_dict()
    model.load_state_dict(state, assign=True)
    assert not model.state_dict()["0.weight"].is_meta
    with torch.device("meta"):
        other = network()
    other.load_state_dict({**empty, KEY: empty[KEY].to("meta")}, assign=True)
    with pytest.warns(UserWarning, match="had mask_frozen=False"):
        mix(model).load_state_dict(state, assign=True)


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model = network()
    safetensors.save_file(model.state_dict(), tmp_path / "plain.safetensors")
    state = safetensors.load_file(tmp_path / "plain.safetensors")
    network().load_state_dict(state)
    with pytest.warns(UserWarning, match="mask_frozen=False"):
        mix(network()).load_state_dict(state)
    safetensors.save_model(tied(), tmp_path / "tied.safetensors")
    assert safetensors.load_model(tied(), tmp_path / "tied.safetensors") == (set(), [])


def test_an_estimator_with_the_default_repr_does_not_differ_by_address():
    class Mine:
        def __call__(self, scores):
            return (scores > 0).to(scores.dtype) + scores - scores.detach()

        def mode(self, scores):
            return scores > 0

    model, other = (masktorch.wrap(nn.Linear(2, 2), Mine()) for _ in range(2))
    other.load_state_dict(
        model.state_dict()
    )  # no warning, which would be an error here
