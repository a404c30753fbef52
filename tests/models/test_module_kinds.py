"""Each kind of module leads a whole life: wrap, train, copy, pickle, freeze, unwrap."""

import abc
import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal, weight_norm

import masktorch
from masktorch import (
    Bernoulli,
    Threshold,
)
from tools.models import ROWS, Tied, random_masks
from tools.whole_life import lead_whole_life


class Raw(nn.Module):
    """Experts as one raw tensor."""

    def __init__(self):
        super().__init__()
        self.experts = nn.Parameter(torch.randn(3, 4, 4))
        self.gate = nn.Linear(4, 3)

    def forward(self, x):
        return torch.einsum("bi,eij,be->bj", x, self.experts, self.gate(x).softmax(-1))


class Lists(nn.Module):
    def __init__(self):
        super().__init__()
        self.list = nn.ParameterList([torch.randn(4), torch.randn(4)])
        self.dict = nn.ParameterDict({"a": torch.randn(4), "b": torch.randn(4)})

    def forward(self, x):
        for weight in self.list:
            x = x * weight
        assert list(self.dict) == ["a", "b"]
        assert len(self.list) == len(self.dict) == 2
        return x * self.dict["a"] + sum(p for p in self.dict.values())


class TransposedConv1D(nn.Module):
    """Hugging Face's Conv1D: a linear layer whose weight is stored transposed."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 5))
        self.bias = nn.Parameter(torch.randn(5))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


class AbstractBase(nn.Module, abc.ABC):
    @abc.abstractmethod
    def scale(self): ...

    def forward(self, x):
        return x * self.weight * self.scale()


class Implementation(AbstractBase):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def scale(self):
        return 2


class Slots(nn.Linear):
    __slots__ = ("tag",)


class CopiesItself(nn.Linear):
    def __deepcopy__(self, memo):
        made = copy.copy(self)
        memo[id(self)] = made
        made.__dict__ = copy.deepcopy(self.__dict__, memo)
        made.copied = True
        return made


class StateItself(nn.Linear):
    def __getstate__(self):
        return {**super().__getstate__(), "noted": True}

    def __setstate__(self, state):
        assert state.pop("noted")
        super().__setstate__(state)


class ReducesItself(nn.Linear):
    def __reduce__(self):
        return rebuilt, (dict(self.__dict__),)


def rebuilt(state):
    layer = ReducesItself.__new__(ReducesItself)
    layer.__dict__.update(state)
    return layer


class Guarded(nn.Linear):
    """Takes no attribute it doesn't know."""

    def __setattr__(self, name, value):
        if not name.startswith("_") and name not in (
            "in_features",
            "out_features",
            "training",
        ):
            assert name in ("weight", "bias"), name
        super().__setattr__(name, value)


class Stern(nn.Linear):
    """Takes no attribute at all once it is made, dunders included."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.made = True

    def __setattr__(self, name, value):
        if "made" in self.__dict__ and name != "training":
            raise AttributeError(f"{name} is fixed")
        super().__setattr__(name, value)


@dataclasses.dataclass(eq=False)
class Data(nn.Module):
    size: int
    weight: nn.Parameter = dataclasses.field(init=False)

    def __post_init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(self.size))

    def forward(self, x):
        return x * self.weight


class Siamese(nn.Module):
    """One instance at two places."""

    def __init__(self):
        super().__init__()
        self.left = nn.Linear(4, 4)
        self.right = self.left

    def forward(self, x):
        return self.right(self.left(x))


def encoder_layer(**keywords):
    return nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0.0, batch_first=True, **keywords
    )


def transposed():
    layer = nn.Linear(4, 5)
    layer.weight = nn.Parameter(torch.randn(4, 5).t())
    assert not layer.weight.is_contiguous()
    return layer


def orthogonal_bias_masked():
    layer = orthogonal(nn.Linear(4, 4))
    with torch.no_grad():
        layer.parametrizations.weight.original.normal_()
    return layer


SEQUENCE = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(2))


TOKENS = torch.tensor([[0, 1, 2, 6], [3, 4, 0, 6]])


RNN_NAMES = [
    f"{kind}_{which}_l0" for kind in ("weight", "bias") for which in ("ih", "hh")
]


def on(x):
    return lambda model: model(x)


def attend(need_weights):
    return lambda m: m(SEQUENCE, SEQUENCE, SEQUENCE, need_weights=need_weights)


ENCODER_NAMES = [
    "self_attn.in_proj_weight",
    "self_attn.out_proj.weight",
    "linear1.weight",
]


KINDS = {
    "tied": (Tied, on(TOKENS), ["embedding.weight"]),
    "attention": (
        lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        attend(False),
        ["in_proj_weight", "out_proj.weight"],
    ),
    "attention with weights": (
        lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        attend(True),
        ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"],
    ),
    "attention of other sizes": (
        lambda: nn.MultiheadAttention(
            8, 2, kdim=8, vdim=8, batch_first=True, add_bias_kv=True
        ),
        attend(True),
        ["in_proj_weight", "bias_k"],
    ),
    "encoder layer": (encoder_layer, on(SEQUENCE), ENCODER_NAMES),
    "encoder layer, norm first": (
        lambda: encoder_layer(norm_first=True),
        on(SEQUENCE),
        ENCODER_NAMES,
    ),
    "encoder": (
        lambda: nn.TransformerEncoder(encoder_layer(), 2),
        on(SEQUENCE),
        [f"layers.{i}.{name}" for i in range(2) for name in ENCODER_NAMES],
    ),
    "embedding": (lambda: nn.Embedding(7, 4, padding_idx=0), on(TOKENS), ["weight"]),
    "embedding of a bounded norm": (
        lambda: nn.Embedding(7, 4, max_norm=0.5),
        on(TOKENS),
        ["weight"],
    ),
    "embedding bag": (
        lambda: nn.EmbeddingBag(7, 4, mode="sum"),
        on(TOKENS),
        ["weight"],
    ),
    "bilinear": (
        lambda: nn.Bilinear(4, 4, 3),
        lambda model: model(ROWS, ROWS),
        ["weight", "bias"],
    ),
    "raw parameter": (Raw, on(ROWS), ["experts", "gate.weight"]),
    "parameter list and dict": (Lists, on(ROWS), ["list.0", "dict.a", "dict.b"]),
    "Conv1D": (TransposedConv1D, on(ROWS), ["weight"]),
    "abstract base": (Implementation, on(ROWS), ["weight"]),
    "slots": (lambda: Slots(4, 4), on(ROWS), ["weight"]),
    "own deepcopy": (lambda: CopiesItself(4, 4), on(ROWS), ["weight"]),
    "own getstate": (lambda: StateItself(4, 4), on(ROWS), ["weight"]),
    "own setattr": (lambda: Guarded(4, 4), on(ROWS), ["weight", "bias"]),
    "dataclass": (lambda: Data(4), on(ROWS), ["weight"]),
    "own reduce": (lambda: ReducesItself(4, 4), on(ROWS), ["weight"]),
    "strict setattr": (lambda: Stern(4, 4), on(ROWS), ["weight"]),
    "one instance, two places": (Siamese, on(ROWS), ["left.weight"]),
    "transposed parameter": (transposed, on(ROWS), ["weight"]),
    "channels last": (
        lambda: nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last),
        on(torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last)),
        ["weight"],
    ),
    "weight norm's originals": (
        # wide, since a row of which nothing is kept has no direction: 0 / 0
        lambda: nn.Sequential(nn.Linear(4, 32), weight_norm(nn.Linear(32, 4))),
        on(ROWS),
        ["1.parametrizations.weight.original0", "1.parametrizations.weight.original1"],
    ),
    "another tensor of a weight norm": (
        lambda: weight_norm(nn.Linear(4, 4)),
        on(ROWS),
        ["bias"],
    ),
    "orthogonal, its original": (
        orthogonal_bias_masked,
        on(ROWS),
        ["parametrizations.weight.original"],
    ),
    "rnn": (lambda: nn.RNN(8, 4, batch_first=True), on(SEQUENCE), RNN_NAMES),
    "lstm": (lambda: nn.LSTM(8, 4, batch_first=True), on(SEQUENCE), RNN_NAMES[:2]),
    "gru": (
        lambda: nn.GRU(8, 4, num_layers=2, bidirectional=True, batch_first=True),
        on(SEQUENCE),
        ["weight_ih_l0", "weight_hh_l1_reverse"],
    ),
    "lstm cell": (lambda: nn.LSTMCell(4, 4), on(ROWS), ["weight_ih", "weight_hh"]),
    "batch norm": (lambda: nn.BatchNorm1d(4), on(ROWS), ["weight"]),
}


NOT_PICKLED_BY_TORCH = {
    "weight norm's originals",
    "another tensor of a weight norm",
    "orthogonal, its original",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("estimator", [Threshold(), Bernoulli()], ids=repr)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_each_kind_of_module_leads_a_whole_life(kind, estimator):
    make, call, targets = KINDS[kind]
    model = make()
    if isinstance(model, nn.BatchNorm1d):
        model.track_running_stats = False
        model.running_mean = model.running_var = None
    lead_whole_life(
        model, call, targets, estimator, pickles=kind not in NOT_PICKLED_BY_TORCH
    )


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("padded", [False, True])
def test_the_fast_path_of_an_encoder_equals_the_slow_one(padded):
    model = nn.TransformerEncoder(encoder_layer(), 2)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
    targets = [f"layers.{i}.{name}" for i in range(2) for name in ENCODER_NAMES]
    random_masks(model, Bernoulli(), targets=targets).eval()
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = padded
    keep = ~padding[..., None]

    def run():
        return model(SEQUENCE, src_key_padding_mask=padding if padded else None) * keep

    taken = []
    layer = torch._transformer_encoder_layer_fwd

    def spy(*arguments, **keywords):
        taken.append(True)
        return layer(*arguments, **keywords)

    slow = run()
    assert not taken
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch, "_transformer_encoder_layer_fwd", spy)
        fast = run()
        assert len(taken) == 2
        torch.testing.assert_close(fast, slow)
        masktorch.unwrap(model)
        torch.testing.assert_close(run(), fast)


def test_scores_of_a_padding_row_get_no_gradient():
    layer = masktorch.wrap(nn.Embedding(7, 4, padding_idx=0), targets=["weight"])
    layer(TOKENS).sum().backward()
    scores = layer.parametrizations.weight.scores
    assert torch.count_nonzero(scores.grad[0]) == 0
    assert torch.count_nonzero(scores.grad[5]) == 0  # a token that does not occur
    assert torch.count_nonzero(scores.grad[1]) == 4


def lazy():
    return nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 3))


def test_a_materialised_lazy_module():
    model = lazy()
    model(ROWS)
    assert type(model[0]) is nn.Linear
    lead_whole_life(model, on(ROWS), ["0.weight", "1.weight"], Threshold())
