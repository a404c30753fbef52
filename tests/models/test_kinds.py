"""Models of every kind: each is wrapped, evaluated, trained, copied, pickled, unwrapped."""

import abc
import copy
import dataclasses
import gc
import io
import pickle
import types
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal, weight_norm

import masktorch
from masktorch import (
    Bernoulli,
    Concrete,
    HardConcrete,
    IntermediateSampling,
    Piggyback,
    Threshold,
)

ESTIMATORS = [
    Threshold(),
    Bernoulli(),
    IntermediateSampling(),
    Piggyback(),
    HardConcrete(),
    Concrete(),
]
each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)


def half(model):
    return {
        name: torch.rand(m.shape) < 0.5 for name, m in masktorch.masks(model).items()
    }


def tensors(out):
    if isinstance(out, torch.Tensor):
        return [out]
    return [t for part in out if part is not None for t in tensors(part)]


def same(one, other):
    """Equal up to rounding: a product may round by where its factors lie in memory."""
    one, other = tensors(one), tensors(other)
    close = all(
        torch.allclose(a, b, rtol=1e-5, atol=1e-6)
        for a, b in zip(one, other, strict=True)
    )
    return close and all(a.dtype == b.dtype for a, b in zip(one, other, strict=True))


def loss_of(out):
    return sum(t.float().square().mean() for t in tensors(out))


def random_masks(model, *arguments, **keywords):
    """Wraps; the masks keep about half."""
    return masktorch.set_masks(
        model := masktorch.wrap(model, *arguments, **keywords), half(model)
    )


def plain_with(model, masks):
    """A copy of the plain model whose masked entries are 0."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters(remove_duplicate=True):
            if name in masks:
                parameter[~masks[name]] = 0
    return model


def life(model, call, targets, estimator, pickles=True):
    """Wraps `model` and leads it through everything; `call(model)` is its output."""
    kinds = [type(module) for module in model.modules()]
    before = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    random_masks(model, estimator, targets=targets)
    masks = masktorch.masks(model)
    assert sorted(masks) == sorted(targets)
    expected = call(plain_with(before, masks).eval())
    assert same(call(model.eval()), expected)
    assert not same(call(before.eval()), expected)

    for _ in range(2):  # a second backward must work too
        scores = list(masktorch.mask_parameters(model))
        opt = torch.optim.SGD(scores, lr=1.0)
        opt.zero_grad()
        loss_of(call(model.train())).backward()
        assert all(s.grad is not None and s.grad.isfinite().all() for s in scores)
        assert any(torch.count_nonzero(s.grad) for s in scores)
        assert all(parameters[name].grad is None for name in targets)
        opt.step()
    masktorch.set_masks(model, masks)

    twin = copy.deepcopy(model)
    assert same(call(twin.eval()), expected)
    if pickles:
        reloaded = pickle.loads(pickle.dumps(model.train()))
        assert same(call(reloaded.eval()), expected)
        assert same(call(masktorch.unwrap(reloaded)), expected)
    assert same(call(masktorch.unwrap(twin).eval()), expected)
    assert same(call(model.eval()), expected)

    masktorch.freeze_weights(masktorch.freeze_mask(model), False)
    for p in parameters.values():
        p.grad = None
    loss_of(call(model.train())).backward()
    for name, mask in masks.items():
        assert torch.count_nonzero(parameters[name].grad[~mask]) == 0
    assert any(torch.count_nonzero(parameters[name].grad) for name in targets)

    assert same(call(masktorch.unwrap(model).eval()), expected)
    assert [type(module) for module in model.modules()] == kinds
    assert dict(model.named_parameters()).keys() == parameters.keys()
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
    return model


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


class Abstract(nn.Module, abc.ABC):
    @abc.abstractmethod
    def scale(self): ...

    def forward(self, x):
        return x * self.weight * self.scale()


class Concrete(Abstract):
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


class Scaled(nn.Sequential):
    """A container that owns a parameter and iterates over its children."""

    def __init__(self, *layers):
        super().__init__(*layers)
        self.scale = nn.Parameter(torch.randn(4))

    def forward(self, x):
        for layer in self:
            x = layer(x)
        return x * self.scale


class Siamese(nn.Module):
    """One instance at two places."""

    def __init__(self):
        super().__init__()
        self.left = nn.Linear(4, 4)
        self.right = self.left

    def forward(self, x):
        return self.right(self.left(x))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.embedding(x))


def encoder_layer(**keywords):
    return nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0.0, batch_first=True, **keywords
    )


def transposed():
    layer = nn.Linear(4, 5)
    layer.weight = nn.Parameter(torch.randn(4, 5).t())
    assert not layer.weight.is_contiguous()
    return layer


def traced():
    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(x @ self.weight)

    return torch.fx.symbolic_trace(Owner())


def orthogonal_bias_masked():
    layer = orthogonal(nn.Linear(4, 4))
    with torch.no_grad():
        layer.parametrizations.weight.original.normal_()
    return layer


ROWS = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
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
    "abstract base": (Concrete, on(ROWS), ["weight"]),
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
def test_a_kind_of_model_leads_a_whole_life(kind, estimator):
    make, call, targets = KINDS[kind]
    model = make()
    if isinstance(model, nn.BatchNorm1d):
        model.track_running_stats = False
        model.running_mean = model.running_var = None
    life(model, call, targets, estimator, pickles=kind not in NOT_PICKLED_BY_TORCH)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str
)
@each_estimator
def test_every_precision(dtype, estimator):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)).to(dtype)
    life(model, on(ROWS.to(dtype)), ["0.weight", "2.weight"], estimator)


@pytest.mark.parametrize(
    "convert", [nn.Module.half, nn.Module.bfloat16, nn.Module.double]
)
def test_conversion_after_wrap(convert):
    model = random_masks(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)), rescale=True
    )
    masks = masktorch.masks(model)
    convert(model).eval()
    dtype = model[0].bias.dtype
    assert model[0].weight.dtype == dtype
    scores_dtype = torch.promote_types(dtype, torch.float32)
    assert {s.dtype for s in masktorch.mask_parameters(model)} == {scores_dtype}
    assert all(
        torch.equal(m, masks[name]) for name, m in masktorch.masks(model).items()
    )
    out = model(ROWS.to(dtype))
    assert torch.equal(masktorch.unwrap(model)(ROWS.to(dtype)), out)


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


def test_an_lstm_draws_once_per_forward_and_uses_what_it_drew():
    layer = masktorch.wrap(
        nn.LSTM(8, 4), Bernoulli(), targets=["weight_ih_l0", "weight_hh_l0"]
    )
    drawn = []
    mask = layer.parametrizations.weight_ih_l0
    mask.register_forward_hook(
        lambda module, inputs, output: drawn.append(output.detach())
    )
    plain = nn.LSTM(8, 4)
    plain.load_state_dict(layer.state_dict(), strict=False)
    for _ in range(3):
        drawn.clear()
        with torch.random.fork_rng():
            layer.weight_hh_l0  # noqa: B018  (a read outside a forward leaves nothing behind)
        state = torch.get_rng_state()
        out, _ = layer(SEQUENCE)
        assert len(drawn) == 1
        torch.set_rng_state(state)
        again, _ = layer(SEQUENCE)
        assert torch.equal(out, again)
        assert torch.equal(drawn[0], drawn[1])
    first, _ = layer(SEQUENCE)
    assert not torch.equal(first, out)


def test_copying_an_lstm_draws_nothing_from_the_global_stream():
    layer = masktorch.wrap(nn.LSTM(8, 4), Bernoulli(), targets=["weight_ih_l0"])
    layer(SEQUENCE)
    state = torch.get_rng_state()
    pickle.dumps(layer)
    copy.deepcopy(layer)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_plain_lstm_again_after_unwrap():
    layer = masktorch.wrap(nn.LSTM(8, 4), Bernoulli(), targets=["weight_ih_l0"])
    layer(SEQUENCE)
    masktorch.unwrap(layer)
    twin = copy.deepcopy(layer)
    opt = torch.optim.SGD(layer.parameters(), lr=0.5)
    before, _ = layer(SEQUENCE)
    before.square().mean().backward()
    opt.step()
    after, _ = layer(SEQUENCE)
    assert not torch.equal(before, after)
    assert torch.equal(twin(SEQUENCE)[0], before)


def test_embedding_training_leaves_the_padding_row_alone():
    layer = masktorch.wrap(nn.Embedding(7, 4, padding_idx=0), targets=["weight"])
    layer(TOKENS).sum().backward()
    scores = layer.parametrizations.weight.scores
    assert torch.count_nonzero(scores.grad[0]) == 0
    assert torch.count_nonzero(scores.grad[5]) == 0  # a token that does not occur
    assert torch.count_nonzero(scores.grad[1]) == 4


def overlapping():
    storage = torch.randn(6)
    module = nn.Module()
    module.weight = nn.Parameter(storage.as_strided((4, 3), (1, 1)))
    return module


def lazy():
    return nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 3))


def old_weight_norm():
    with pytest.warns(FutureWarning):
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(2, 2)))


class Keyed(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.ones(2)))
        self.linear = nn.Linear(2, 2)


class HasChild(nn.Linear):
    """A child of its own where the masks go."""

    def __init__(self):
        super().__init__(2, 2)
        self.parametrizations = nn.ModuleList()


class NeedsWord(nn.Linear):
    """A class whose subclasses must say something, as some registries ask."""

    def __init_subclass__(cls, *, word):
        super().__init_subclass__()


REFUSED = {
    "lazy": (lazy, ["1.weight", "0.weight"], "'0.weight': it has no shape yet"),
    "expanded": (
        lambda: nn.ParameterList(
            [torch.ones(2), nn.Parameter(torch.ones(1).expand(3))]
        ),
        ["0", "1"],
        "can't mask '1': several of its entries share",
    ),
    "overlapping": (
        overlapping,
        ["weight"],
        "can't mask 'weight': several of its entries share",
    ),
    "old weight norm": (
        old_weight_norm,
        ["0.bias", "0.weight"],
        "can't mask 0.weight: not a",
    ),
    "weight norm": (
        lambda: nn.Sequential(nn.Linear(2, 2), weight_norm(nn.Linear(2, 2))),
        ["0.weight", "1.weight"],
        "can't mask 1.weight: not a parameter, computed by weight_norm",
    ),
    "keys": (lambda: Keyed("keys"), ["linear.weight", "keys"], "can't mask 'keys'"),
    "update": (
        lambda: Keyed("update"),
        ["linear.weight", "update"],
        "can't mask 'update'",
    ),
    "a child called parametrizations": (
        lambda: nn.Sequential(nn.Linear(2, 2), HasChild()),
        None,
        "can't mask '1.weight'",
    ),
    "a container's own parameter": (
        lambda: Scaled(nn.Linear(4, 4), nn.ReLU()),
        ["0.weight", "scale"],
        "can't mask 'scale'",
    ),
    "a traced module's own parameter": (
        traced,
        ["linear.weight", "weight"],
        "can't mask 'weight'",
    ),
    "sparse gradients": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.Embedding(7, 4, sparse=True)),
        ["0.weight", "1.weight"],
        "can't mask '1.weight': sparse",
    ),
    "sparse gradients of a bag": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.EmbeddingBag(7, 4, sparse=True)),
        ["0.weight", "1.weight"],
        "can't mask '1.weight': sparse",
    ),
    "no subclass": (
        lambda: nn.Sequential(nn.Linear(2, 2), NeedsWord(2, 2)),
        None,
        "'word'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_refused_before_anything_changes(case):
    make, targets, message = REFUSED[case]
    model = make()

    def snapshot():
        return (
            str(model),
            [type(m) for m in model.modules()],
            [(n, id(p), p.requires_grad) for n, p in model.named_parameters()],
        )

    before = snapshot()
    with pytest.raises((ValueError, TypeError), match=message):
        masktorch.wrap(model, **({} if targets is None else {"targets": targets}))
    assert snapshot() == before


def test_a_materialised_lazy_module_is_like_any_other():
    model = lazy()
    model(ROWS)
    assert type(model[0]) is nn.Linear
    life(model, on(ROWS), ["0.weight", "1.weight"], Threshold())


def test_the_meta_device():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    masktorch.freeze_mask(masktorch.wrap(model))
    assert all(s.is_meta for s in masktorch.mask_parameters(model))
    real = random_masks(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)))
    masktorch.freeze_mask(real).eval()
    for materialise in (
        lambda m: m.load_state_dict(real.state_dict(), assign=True),
        lambda m: m.to_empty(device="cpu").load_state_dict(real.state_dict()),
    ):
        twin = copy.deepcopy(model)
        materialise(twin)
        assert torch.equal(twin.eval()(ROWS), real(ROWS))
        assert not twin[0].parametrizations.weight.scores.requires_grad
        assert not dict(twin.named_parameters())["0.weight"].requires_grad
        masktorch.unwrap(twin)
        assert torch.equal(twin(ROWS), real(ROWS))
        assert type(twin[0]) is nn.Linear
        assert twin[0].weight.requires_grad


def test_tied_weights_that_a_load_has_untied_are_all_baked():
    model = random_masks(Tied())
    state = {name: t.clone() for name, t in model.state_dict().items()}
    model.load_state_dict(state, assign=True)  # as on a plain model: the tie is broken
    model.eval()
    out = model(TOKENS)
    assert torch.equal(masktorch.unwrap(model)(TOKENS), out)
    assert model.head.weight.requires_grad


def test_freezing_reaches_every_place_of_weights_that_were_tied():
    model = random_masks(Tied())
    model.head.weight = nn.Parameter(torch.randn(7, 4))
    masktorch.freeze_weights(model)
    assert [p.requires_grad for p in model.parameters()].count(True) == 1  # the scores
    masktorch.freeze_weights(model, False)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.filterwarnings("ignore::FutureWarning")
@each_estimator
def test_what_an_old_weight_norm_computes_from_can_be_masked(estimator):
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)))
    random_masks(model, estimator, targets=["0.weight_v"])
    model(ROWS).square().sum().backward()
    (scores,) = masktorch.mask_parameters(model)
    assert torch.count_nonzero(scores.grad)
    out = model.eval()(ROWS)
    assert same(masktorch.unwrap(model)(ROWS), out)
    nn.utils.remove_weight_norm(model[0])
    assert same(model(ROWS), out)


class AddOne(nn.Module):
    def forward(self, x):
        return x + 1


def test_registering_on_another_tensor_leaves_the_other_layers_alone():
    class Own(nn.Linear):  # a class that no other test wraps
        pass

    model = nn.Sequential(Own(4, 4), Own(4, 4))
    masktorch.wrap(model)
    expected = model[1](ROWS)
    bias = model[0].bias.detach().clone()
    with pytest.raises((TypeError, ValueError), match="wrap"):
        parametrize.register_parametrization(model[0], "bias", AddOne())
    assert torch.equal(model[0].bias, bias)
    assert isinstance(model[1].bias, nn.Parameter)
    assert torch.equal(model[1](ROWS), expected)
    assert masktorch.wrap(Own(4, 4))(ROWS).shape == (3, 4)


def test_registering_on_the_masked_tensor_changes_nothing():
    layer = random_masks(nn.Linear(4, 4))
    out = layer.eval()(ROWS)
    for register in (weight_norm, lambda m: parametrize.register_parametrization(
        m, "weight", AddOne()
    )):  # fmt: skip
        with pytest.raises(TypeError, match="not a list of parametrizations"):
            register(layer)
        assert torch.equal(layer(ROWS), out)


@pytest.mark.xfail(strict=True, reason="it takes the parameter away before it fails")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_old_weight_norm_on_a_masked_tensor_changes_nothing():
    layer = random_masks(nn.Linear(4, 4))
    out = layer.eval()(ROWS)
    with pytest.raises((TypeError, ValueError, KeyError)):
        nn.utils.weight_norm(layer)
    assert torch.equal(layer(ROWS), out)


@pytest.mark.xfail(
    strict=True,
    reason="the masks are a child of the ParametrizationList, which counts its children",
)
def test_a_parametrization_appended_where_an_original_is_masked():
    layer = weight_norm(nn.Linear(4, 4))
    masktorch.wrap(layer, targets=["parametrizations.weight.original1"])
    before = layer.weight.detach()
    parametrize.register_parametrization(layer, "weight", AddOne())
    torch.testing.assert_close(layer.weight, before + 1)


@pytest.mark.xfail(
    strict=True,
    reason="the masks are a child of the ParametrizationList, over which it iterates",
)
def test_assigning_to_a_weight_whose_originals_are_masked():
    layer = weight_norm(nn.Linear(4, 4))
    masktorch.wrap(layer, targets=["parametrizations.weight.original1"])
    layer.weight = ROWS.new_ones(4, 4)
    torch.testing.assert_close(layer.weight, torch.ones(4, 4))


def test_a_class_can_still_be_called():
    """`type(layer)(...)` is how many tools make a layer like another."""
    layer = masktorch.wrap(nn.Linear(4, 4))
    made = type(layer)(4, 2)
    assert made(ROWS).shape == (3, 2)
    assert not parametrize.is_parametrized(made)


class Broken:
    def __call__(self, scores):
        return scores.no_such_attribute

    def mode(self, scores):
        return scores > 0


def test_a_class_is_subclassed_once():
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


def test_an_estimator_that_fails_is_not_passed_over():
    layer = masktorch.wrap(nn.Linear(4, 4), Broken())
    with pytest.raises(
        (AttributeError, RuntimeError, TypeError), match="no_such_attribute"
    ):
        layer(ROWS)


def test_forward_patched_before_wrap():
    """As accelerate does: the instance holds its own forward around the old one."""
    layer = nn.Linear(4, 4)
    old = layer.forward
    layer.forward = lambda x: old(x) + 1
    random_masks(layer, Bernoulli())
    plain = F.linear(ROWS, layer.eval().weight, layer.bias)
    assert torch.equal(layer(ROWS), plain + 1)
    out = layer(ROWS)
    assert torch.equal(masktorch.unwrap(layer)(ROWS), out)


@pytest.mark.xfail(
    strict=True, reason="the instance's forward hides the one that holds a draw"
)
def test_one_draw_where_forward_was_patched_before_wrap():
    class Twice(nn.Linear):
        def forward(self, x):
            return F.linear(x, self.weight - self.weight)

    layer = Twice(30, 30, bias=False)
    layer.forward = types.MethodType(Twice.forward, layer)
    masktorch.wrap(layer, Bernoulli())
    assert torch.count_nonzero(layer(torch.randn(2, 30))) == 0


def test_forward_patched_after_wrap():
    layer = random_masks(nn.Linear(4, 4), Bernoulli())
    old = layer.forward
    layer.forward = types.MethodType(lambda self, x: old(x) + 1, layer)
    plain = F.linear(ROWS, layer.eval().weight, layer.bias)
    assert torch.equal(layer(ROWS), plain + 1)
    out = layer(ROWS)
    assert torch.equal(masktorch.unwrap(layer)(ROWS), out)
    masktorch.wrap(layer)
    assert torch.equal(layer.eval()(ROWS), out)


def test_hooks_on_parameters_and_modules():
    layer, seen = nn.Linear(4, 4), []
    layer.weight.register_post_accumulate_grad_hook(lambda p: seen.append("weight"))
    layer.register_forward_hook(
        lambda module, args, out: seen.append(type(module).__name__)
    )
    masktorch.wrap(layer)
    scores = layer.parametrizations.weight.scores
    scores.register_post_accumulate_grad_hook(lambda p: seen.append("scores"))
    layer(ROWS).sum().backward()
    assert seen == ["MaskedLinear", "scores"]
    masktorch.freeze_weights(masktorch.freeze_mask(layer), False)
    layer(ROWS).sum().backward()
    assert seen[2:] == ["MaskedLinear", "weight"]
    masktorch.unwrap(layer)(ROWS).sum().backward()
    assert seen[4:] == ["Linear", "weight"]


def test_shared_memory():
    layer = masktorch.wrap(nn.Linear(4, 4)).share_memory()
    assert all(p.is_shared() for p in layer.parameters())
    layer(ROWS).sum().backward()
    assert layer.parametrizations.weight.scores.grad is not None


def test_state_dicts_of_plain_and_wrapped_models_load_into_one_another():
    def make():
        return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))

    plain, wrapped = make(), random_masks(make())
    masks = masktorch.masks(wrapped)
    missing, unexpected = wrapped.load_state_dict(plain.state_dict(), strict=False)
    assert missing == [f"{i}.parametrizations.weight.scores" for i in (0, 2)]
    assert not unexpected
    assert torch.equal(wrapped.eval()(ROWS), plain_with(plain, masks)(ROWS))

    again = make()
    missing, unexpected = again.load_state_dict(wrapped.state_dict(), strict=False)
    masks_of = [f"{i}.parametrizations.weight." for i in (0, 2)]
    assert unexpected == [
        name + key for name in masks_of for key in ("scores", "_extra_state")
    ]
    assert not missing
    assert torch.equal(again(ROWS), plain(ROWS))

    other = masktorch.wrap(make()).eval()
    other.load_state_dict(wrapped.state_dict())
    assert torch.equal(other(ROWS), wrapped(ROWS))


def test_the_optimiser_goes_on_after_its_state_is_saved_and_loaded():
    def make():
        torch.manual_seed(3)
        model = masktorch.wrap(nn.Linear(4, 4))
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    def step(model, opt):
        opt.zero_grad()
        model(ROWS).square().sum().backward()
        opt.step()

    (model, opt), (other, other_opt) = make(), make()
    for _ in range(3):
        step(model, opt)
    file = io.BytesIO()
    torch.save((model.state_dict(), opt.state_dict()), file)
    file.seek(0)
    state, opt_state = torch.load(file)
    other.load_state_dict(state)
    other_opt.load_state_dict(opt_state)
    for m in (model, other):
        masktorch.freeze_weights(masktorch.freeze_mask(m), False)
    for pair in ((model, opt), (other, other_opt)):
        for _ in range(3):
            step(*pair)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_zero_size_tensors_lead_a_life():
    model = nn.Module()
    model.none = nn.Parameter(torch.empty(0, 3))
    model.some = nn.Parameter(torch.ones(3))
    masktorch.wrap(model, Bernoulli(), targets=["none", "some"], rescale=True)
    assert model.none.shape == (0, 3)
    (model.none.sum() + model.some.sum()).backward()
    masktorch.freeze_weights(masktorch.freeze_mask(masktorch.set_masks(model, {
        "none": torch.empty(0, 3, dtype=torch.bool), "some": torch.ones(3, dtype=torch.bool),
    })), False)  # fmt: skip
    assert masktorch.report(model).size == 3
    assert masktorch.unwrap(model).none.shape == (0, 3)


def test_two_estimators_in_one_module():
    layer = masktorch.wrap(nn.Linear(4, 4), Bernoulli(), targets=["weight"])
    masktorch.wrap(layer, Threshold(), targets=["bias"])
    assert list(masktorch.masks(layer)) == ["weight", "bias"]
    assert torch.equal(layer.bias, layer.bias)
    assert not torch.equal(layer.weight, layer.weight)
    masktorch.unwrap(layer)
    assert type(layer) is nn.Linear


@pytest.mark.parametrize(
    "make", [old_weight_norm, lambda: nn.Sequential(weight_norm(nn.Linear(2, 2)))]
)
def test_the_default_targets_leave_out_what_is_computed(make):
    model = make().append(nn.Linear(2, 2))
    with pytest.warns(
        UserWarning, match=r"wrap\(\) leaves out 0.weight: not a parameter"
    ) as caught:
        masktorch.wrap(model)
    assert caught[0].filename == __file__
    assert list(masktorch.masks(model)) == ["1.weight"]
