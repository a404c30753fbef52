"""Deep copies, shallow copies and pickles have masks of their own."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import masktorch
from masktorch import (
    Bernoulli,
)
from tools.estimators import ELEMENTWISE, each_learning_everywhere
from tools.models import (
    ROWS,
    SIX_ROWS,
    Block,
    assert_equal,
    assert_learns,
    gradients,
    random_masks,
    seeded_step,
    striped,
    weight_under,
)


def unwrap_bake(model):
    masktorch.unwrap(model)


def unwrap_only(model):
    masktorch.unwrap(model, bake=False)


def remove(leave_parametrized):
    def remove_all(model):
        for module in list(model.modules()):
            for name in list(getattr(module, "parametrizations", {})):
                parametrize.remove_parametrizations(module, name, leave_parametrized)

    return remove_all


WAYS = {
    "bake": unwrap_bake,
    "no bake": unwrap_only,
    "remove, leave": remove(True),
    "remove": remove(False),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("of", ["original", "copy"])
@pytest.mark.parametrize("bias", [False, True])
@each_learning_everywhere
def test_unwrapping_one_copy_leaves_the_other_alive(way, of, bias, estimator):
    model = random_masks(Block(), estimator, bias=bias)
    pair = {"original": model.eval(), "copy": copy.deepcopy(model)}
    other = pair["copy" if of == "original" else "original"]
    one = pair[of]
    expected, masks = model(SIX_ROWS), masktorch.masks(model)
    under = {n: p.detach().clone() for n, p in one.named_parameters() if n in masks}
    WAYS[way](one)

    assert [type(m) for m in one.modules()] == [type(m) for m in Block().modules()]
    assert (
        dict(one.named_parameters()).keys() == dict(Block().named_parameters()).keys()
    )
    baked = way in ("bake", "remove, leave")
    assert torch.equal(one(SIX_ROWS), expected) == baked
    for name, parameter in one.named_parameters():
        if name in masks:
            assert torch.equal(
                parameter, under[name] * masks[name] if baked else under[name]
            )
            assert torch.equal(dict(one.named_parameters())[name], parameter)
    one.requires_grad_(True)
    one.zero_grad()
    one(SIX_ROWS).square().mean().backward()
    assert gradients(one).keys() == dict(one.named_parameters()).keys()

    assert torch.equal(other(SIX_ROWS), expected)
    assert masktorch.masks(other).keys() == masks.keys()
    assert_learns(other)
    masktorch.wrap(one, bias=bias)  # and it can be wrapped again
    assert_learns(one)


def test_removing_one_of_two_masks_keeps_the_other():
    layer = random_masks(nn.Linear(4, 4), bias=True).eval()
    twin = copy.deepcopy(layer)
    out = layer(SIX_ROWS)
    parametrize.remove_parametrizations(layer, "weight")
    assert list(masktorch.masks(layer)) == ["bias"]
    assert isinstance(layer.weight, nn.Parameter)
    assert torch.equal(layer(SIX_ROWS), out)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert list(masktorch.masks(again)) == ["bias"]
        assert torch.equal(again(SIX_ROWS), out)
    masktorch.wrap(layer, Bernoulli(), targets=["weight"])
    assert sorted(masktorch.masks(layer)) == ["bias", "weight"]
    masktorch.unwrap(layer)
    assert type(layer) is nn.Linear
    assert torch.equal(twin(SIX_ROWS), out)


def test_a_copy_of_one_tied_layer_is_independent():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False))
    model[1].weight = model[0].weight
    random_masks(model).eval()
    expected = model[1](SIX_ROWS)
    for twin in (copy.deepcopy(model[1]), pickle.loads(pickle.dumps(model[1]))):
        assert torch.equal(twin(SIX_ROWS), expected)
        twin.parametrizations.weight.original.data.zero_()
        assert torch.count_nonzero(twin(SIX_ROWS)) == 0
        masktorch.unwrap(twin)
        assert type(twin) is nn.Linear
    assert torch.equal(model[1](SIX_ROWS), expected)
    one = copy.deepcopy(model)
    assert one[0].parametrizations.weight is one[1].parametrizations.weight
    assert (
        dict(one[0].named_parameters())["weight"]
        is dict(one[1].named_parameters())["weight"]
    )
    assert_learns(nn.Sequential(one[1]))


# Loads models with their inputs, outputs and masks; prints what trains before and after
# unwrap. One process for all of them, since importing torch takes longer than the rest.
FRESH = """
import sys, torch, masktorch

def trains(model):
    return sorted(n for n, p in model.named_parameters() if p.requires_grad)

for path in sys.argv[1:]:
    model = torch.load(path, weights_only=False)
    x, out, masks = torch.load(path + ".expected")
    assert torch.equal(model(x), out)
    found = masktorch.masks(model)
    assert found.keys() == masks.keys()
    assert all(torch.equal(found[n], masks[n]) for n in masks)
    assert [type(m).__name__ for m in model][:1] == ["MaskedLinear"]
    assert all(m.parametrizations.weight.frozen for m in (model[0], model[2]))
    before = trains(model)
    assert torch.equal(masktorch.unwrap(model)(x), out)
    assert type(model[0]) is torch.nn.Linear
    print(before, trains(model))
"""


def test_a_whole_model_is_loaded_in_a_fresh_process(tmp_path):
    paths = []
    for number, estimator in enumerate(ELEMENTWISE):
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        model[2].weight.requires_grad_(False)
        random_masks(model, estimator)
        model(SIX_ROWS).sum().backward()
        masktorch.freeze_mask(model).eval()
        paths.append(f"{tmp_path / str(number)}.pt")
        torch.save(model, paths[-1])
        expected = SIX_ROWS, model(SIX_ROWS).detach(), masktorch.masks(model)
        torch.save(expected, f"{paths[-1]}.expected")
    run = subprocess.run(
        [sys.executable, "-c", FRESH, *paths],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    trains = f"{['0.bias', '2.bias']} {['0.bias', '0.weight', '2.bias']}"
    assert run.stdout.splitlines() == [trains] * len(ELEMENTWISE)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_protocols(protocol):
    model = random_masks(Block(), Bernoulli())
    twin = pickle.loads(pickle.dumps(model, protocol))
    assert type(twin.up) is type(model.up)
    assert_equal(seeded_step(twin), seeded_step(model))
    masktorch.freeze_weights(masktorch.freeze_mask(model), False)
    twin = pickle.loads(pickle.dumps(model, protocol))
    for name, p in twin.named_parameters():
        assert p.requires_grad == (not name.endswith("scores"))


def test_copying_within_a_forward_keeps_the_draw():
    class Copied(nn.Linear):
        def forward(self, x):
            first = self.weight
            copy.deepcopy(self)
            assert self.weight is first
            return super().forward(x)

    masktorch.wrap(Copied(20, 20), masktorch.Bernoulli(), init=0.0)(torch.ones(1, 20))


def test_a_copy_made_within_a_forward_draws_for_itself():
    class Copies(nn.Linear):
        def forward(self, x):
            out = F.linear(x, self.weight)
            self.__dict__["twin"] = None
            twin = copy.deepcopy(self)
            self.__dict__["twin"] = twin
            return out

    layer = masktorch.wrap(Copies(30, 30), Bernoulli())
    layer(torch.randn(2, 30))
    assert not torch.equal(layer.twin.weight, layer.twin.weight)


def test_a_whole_model_in_a_buffer_of_bytes():
    file = io.BytesIO()
    torch.save(random_masks(Block(), Bernoulli(), rescale=True), file)
    file.seek(0)
    twin = torch.load(file, weights_only=False)
    assert_learns(twin)


def test_a_shallow_copy_has_the_same_masks():
    """As the copy of any module has the same parameters."""
    layer = striped(rescale=True).eval()
    twin = copy.copy(layer)
    assert type(twin) is type(layer)
    assert weight_under(twin) is weight_under(layer)
    expected = layer(ROWS)
    assert torch.equal(twin(ROWS), expected)
    masktorch.unwrap(twin)
    assert type(twin) is nn.Linear
    assert torch.equal(twin(ROWS), expected)
    assert torch.equal(layer(ROWS), expected)  # baked as well, and scaled once
    with pytest.raises(ValueError, match="nothing is masked"):
        masktorch.masks(layer)
    assert masktorch.masks(masktorch.wrap(layer))


def test_a_custom_copy_method_is_respected():
    class Copies(nn.Linear):
        def __copy__(self):
            return "its own"

    assert copy.copy(masktorch.wrap(Copies(2, 2))) == "its own"
