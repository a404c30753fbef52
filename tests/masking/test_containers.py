"""Parameter containers, shared classes and initialisers under masks."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval

import masktorch

ONES = torch.ones(1, 4)


class Lists(nn.Module):
    def __init__(self, pick):
        super().__init__()
        self.pick = pick
        self.several = nn.ParameterList([torch.eye(4) * i for i in (1, 2, 3)])
        self.named = nn.ParameterDict({"a": torch.eye(4), "b": 2 * torch.eye(4)})

    def forward(self, x):
        for weight in self.pick(self):
            x = x @ weight
        return x


PICKS = {
    "index": lambda m: [m.several[0]],
    "negative index": lambda m: [m.several[-1]],
    "slice": lambda m: m.several[:2],
    "slice with a step": lambda m: m.several[::-2],
    "iteration": lambda m: m.several,
    "values": lambda m: m.named.values(),
    "copy": lambda m: m.named.copy().values(),
    "or": lambda m: (m.named | {}).values(),
    "reversed or": lambda m: ({} | m.named).values(),
    "get": lambda m: [m.named.get("a")],
    "items": lambda m: [w for _, w in m.named.items()],
}


@pytest.mark.parametrize("pick", PICKS.values(), ids=PICKS)
def test_parameters_read_from_a_container_learn(pick):
    plain, masked = Lists(pick), Lists(pick)
    names = ["several.0", "several.1", "several.2", "named.a", "named.b"]
    masktorch.wrap(masked, targets=names)
    assert torch.equal(masked(ONES), plain(ONES))
    for model in (plain, masked):
        model(ONES).sum().backward()
    trained = [p.grad is not None for p in plain.parameters()]
    assert any(trained)
    assert [s.grad is not None for s in masktorch.mask_parameters(masked)] == trained


class Scaled(nn.Linear):
    def __init__(self):
        super().__init__(2, 2)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x):
        return super().forward(x) * self.scale


class Double(nn.Module):
    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize("name", ["scale", "bias", "weight"])
def test_a_parametrization_of_one_layer_never_reaches_another(name):
    one, other = masktorch.wrap(Scaled()), masktorch.wrap(Scaled())
    expected = other(torch.ones(1, 2))
    with pytest.raises(TypeError, match=r"masktorch\.wrap"):
        parametrize.register_parametrization(one, name, Double())
    assert torch.equal(other(torch.ones(1, 2)), expected)
    assert masktorch.masks(one).keys() == {"weight"}
    one(torch.ones(1, 2)).sum().backward()


def test_parametrizations_made_before_wrap_stay():
    layer = Scaled()
    parametrize.register_parametrization(layer, "scale", Double())
    masktorch.wrap(layer)
    assert layer.scale.item() == 2
    masktorch.unwrap(layer)
    assert layer.scale.item() == 2


@pytest.mark.parametrize(
    ("make", "targets"),
    [
        (lambda: nn.Linear(4, 3), ["weight", "bias"]),
        (lambda: nn.Conv2d(2, 3, 3), ["weight"]),
        (lambda: nn.LSTM(4, 3), ["weight_ih_l0", "weight_hh_l0"]),
        (lambda: nn.LayerNorm(4), ["weight"]),
        (lambda: nn.Embedding(4, 3), ["weight"]),
    ],
    ids=["Linear", "Conv2d", "LSTM", "LayerNorm", "Embedding"],
)
def test_reset_parameters_reaches_the_weights_under_the_masks_and_no_scores(
    make, targets
):
    plain, masked = make(), make()
    masktorch.wrap(masked, targets=targets, init=lambda w: torch.full_like(w, 7.0))
    with torch.no_grad():
        for p in [*plain.parameters(), *masked.parameters()]:
            if not (p == 7.0).all():
                p.fill_(5.0)
    for module in (plain, masked):
        torch.manual_seed(3)
        module.reset_parameters()
    parameters = dict(masked.named_parameters())
    for name, expected in plain.named_parameters():
        assert torch.equal(parameters[name], expected)
    assert all((s == 7.0).all() for s in masktorch.mask_parameters(masked))
    assert list(masked._modules) == ["parametrizations"]


def test_fusing_batch_norm_into_a_rescaled_layer_is_refused():
    conv, norm = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4).eval()
    keep = torch.arange(8).view(4, 2, 1, 1) % 2 == 0
    masktorch.set_masks(masktorch.wrap(conv, rescale=True), {"weight": keep})
    with pytest.raises(ValueError, match=r"scale once more.*unwrap"):
        fuse_conv_bn_eval(conv.eval(), norm)


@pytest.mark.parametrize(
    "delete",
    [lambda d, key: d.pop(key), lambda d, key: d.__delitem__(key)],
    ids=["pop", "del"],
)
def test_a_masked_item_of_a_dict_stays_and_others_go(delete):
    module = nn.Module()
    module.named = nn.ParameterDict({"a": torch.eye(2), "b": torch.eye(2)})
    masktorch.wrap(module, targets=["named.a"])
    with pytest.raises(TypeError, match=r"masktorch\.unwrap"):
        delete(module.named, "a")
    assert list(module.named) == ["a", "b"]
    delete(module.named, "b")
    assert list(module.named) == ["a"]
    names = [name for name, _ in module.named_parameters()]
    assert names == ["named.a", "named.parametrizations.a.scores"]
