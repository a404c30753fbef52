"""Shell patterns for names: what they match, which value wins, refusals."""

import re

import pytest
import torch
from torch import nn

import masktorch
from masktorch import Bernoulli, Threshold, TopK


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(4, 4)
        self.k_proj = nn.Linear(4, 4, bias=False)
        self.norm = nn.LayerNorm(4)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(4, 6, bias=False)


class Bracketed(nn.Module):
    """Names that are patterns, too: `w[0]` would match only `w0`."""

    def __init__(self):
        super().__init__()
        for name in ("w0", "w1", "w[0]", "w[1]"):
            self.register_parameter(name, nn.Parameter(torch.ones(2)))


Q = ["blocks.0.q_proj.weight", "blocks.1.q_proj.weight"]
K = ["blocks.0.k_proj.weight", "blocks.1.k_proj.weight"]

TARGETS = [
    (["*.q_proj.weight"], Q),
    (["blocks.*.q_proj.weight"], Q),
    (["*.[qk]_proj.weight"], [Q[0], K[0], Q[1], K[1]]),
    (["*.[!q]_proj.weight"], K),
    (["blocks.?.k_proj.*"], K),
    (["blocks.1.*proj*"], ["blocks.1.q_proj.weight", "blocks.1.q_proj.bias", K[1]]),
    (
        ["*.norm.*"],
        [f"blocks.{i}.norm.{n}" for i in (0, 1) for n in ("weight", "bias")],
    ),
    (["embed*", "head.weight"], ["embed.weight", "head.weight"]),
    (["head.weight", "*head*", "h*"], ["head.weight"]),
    (("*.q_proj.weight",), Q),
    ({"*.q_proj.weight"}, Q),
    (lambda name, module: ["w*"] if name.endswith("q_proj") else [], Q),
]


@pytest.mark.parametrize(("targets", "names"), TARGETS)
def test_targets_select_tensors(targets, names):
    model = masktorch.wrap(Model(), targets=targets)
    assert sorted(masktorch.masks(model)) == sorted(names)


def test_everything_includes_norms_and_embeddings():
    model = Model()
    names = [name for name, _ in model.named_parameters()]
    masktorch.wrap(model, targets=["*"])
    assert list(masktorch.masks(model)) == names


def test_case_counts_as_in_fnmatchcase():
    with pytest.raises(
        ValueError, match=re.escape("matches the pattern '*.Q_proj.weight'")
    ):
        masktorch.wrap(Model(), targets=["*.Q_proj.weight"])


def test_a_single_layer():
    layer = masktorch.wrap(nn.Linear(3, 2), targets=["w*"])
    assert list(masktorch.masks(layer)) == ["weight"]


def test_no_pattern_matches_scores():
    model = masktorch.wrap(Model(), targets=["*.q_proj.weight"])
    masktorch.wrap(model, targets=["*.k_proj.*"])
    assert sorted(masktorch.masks(model)) == sorted(Q + K)
    with pytest.raises(ValueError, match=re.escape("matches the pattern '*.scores'")):
        masktorch.wrap(model, targets=["*.scores"])
    name = "blocks.0.q_proj.parametrizations.weight.scores"
    with pytest.raises(ValueError, match="it is the scores of a mask"):
        masktorch.wrap(model, targets=[name])


@pytest.mark.parametrize(
    "targets",
    [
        ["*.v_proj.weight"],
        ["head.weight", "*.v_proj.weight"],
        ["blocks.2.*"],
        ["*.heads"],
    ],
)
def test_a_target_that_matches_nothing(targets):
    model = Model()
    message = f"wrap() found no parameter that matches the pattern {targets[-1]!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        masktorch.wrap(model, targets=targets)
    assert type(model.head) is nn.Linear


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (["w[0]"], ["w[0]"]),
        (["w[01]"], ["w0", "w1"]),
        (["w[[]?]"], ["w[0]", "w[1]"]),
        (["w?"], ["w0", "w1"]),
    ],
)
def test_the_exact_name_of_a_tensor_is_no_pattern(targets, names):
    model = masktorch.wrap(Bracketed(), targets=targets)
    assert list(masktorch.masks(model)) == names


# -- mappings --------------------------------------------------------------------------


def estimators(model):
    return {
        name: mask.estimator
        for name, module in model.named_modules()
        if name.endswith("weight") and (mask := module)
    }


def by_tensor(model):
    """The estimator of each masked tensor, by the tensor's name."""
    return {
        name.replace(".parametrizations", ""): estimator
        for name, estimator in estimators(model).items()
    }


MAPPINGS = [
    {"*.q_proj.weight": TopK(0.1), "*.k_proj.weight": Threshold()},
    {"*.[qk]_proj.weight": Threshold(), Q[0]: TopK(0.1), Q[1]: TopK(0.1)},
    {Q[0]: TopK(0.1), Q[1]: TopK(0.1), "*proj.weight": Threshold()},
    {"*0.q*.weight": TopK(0.1), "*.q_proj.weight": TopK(0.1), "*k_proj*": Threshold()},
]


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("call", ["wrap", "set_estimator"])
def test_estimators(mapping, call):
    model = Model()
    if call == "wrap":
        masktorch.wrap(model, mapping)
    else:
        masktorch.wrap(model, Bernoulli(), targets=["*.[qk]_proj.weight"])
        masktorch.set_estimator(model, mapping)
    expected = dict.fromkeys(Q, TopK(0.1)) | dict.fromkeys(K, Threshold())
    assert by_tensor(model) == expected


def test_an_overruled_pattern_has_matched():
    model = masktorch.wrap(nn.Sequential(nn.Linear(2, 2)), targets=["0.weight"])
    masktorch.set_estimator(model, {"0.weight": Bernoulli(), "0.*": Threshold()})
    assert by_tensor(model) == {"0.weight": Bernoulli()}


@pytest.mark.parametrize("call", ["wrap", "set_estimator"])
def test_patterns_that_disagree(call):
    model = Model()
    mapping = {
        "*.weight": Threshold(),
        "blocks.1.*": TopK(0.5),
        "head.weight": TopK(0.1),
    }
    if call == "wrap":
        run = lambda: masktorch.wrap(model, mapping)  # noqa: E731
    else:
        masktorch.wrap(model, targets=["*.weight", "*.bias"])
        run = lambda: masktorch.set_estimator(model, mapping)  # noqa: E731
    before = str(model)
    with pytest.raises(ValueError, match="expected one estimator") as raised:
        run()
    message = str(raised.value)
    assert message.startswith(f"{call}() ")
    assert "found two for 'blocks.1.q_proj.weight'" in message
    assert "'*.weight' and 'blocks.1.*' both match" in message
    assert str(model) == before


def test_patterns_that_agree_where_they_meet():
    mapping = {"*.q_proj.*": TopK(0.5), "blocks.1.*": TopK(0.5)}
    model = masktorch.wrap(Model(), mapping)
    assert set(by_tensor(model).values()) == {TopK(0.5)}


def density_of(model):
    return {row.name: row.density for row in masktorch.report(model).rows}


def test_densities():
    model = masktorch.wrap(Model(), TopK(0.5), targets=["*_proj.weight"])
    masktorch.set_density(
        model, {"*.q_proj.weight": 0.25, "*.k_proj*": 0.5, Q[1]: 0.75}
    )
    assert density_of(model) == {Q[0]: 0.25, K[0]: 0.5, Q[1]: 0.75, K[1]: 0.5}
    with pytest.raises(ValueError, match=r"found two for 'blocks.0.q_proj.weight'"):
        masktorch.set_density(model, {"*.q_proj.weight": 0.25, "*": 1.0})
    with pytest.raises(ValueError, match=re.escape("Missing: blocks.0.k_proj.weight")):
        masktorch.set_density(model, {"*.q_proj.weight": 0.25})


def test_densities_reach_only_estimators_that_have_one():
    mapping = {"*.q_proj.weight": TopK(0.5), "*.k_proj.weight": Threshold()}
    model = masktorch.wrap(Model(), mapping)
    masktorch.set_density(model, {"*": 0.25})
    assert density_of(model) == {Q[0]: 0.25, K[0]: 1.0, Q[1]: 0.25, K[1]: 1.0}
    with pytest.raises(
        ValueError, match=re.escape("no tensor that matches the pattern '*.k")
    ):
        masktorch.set_density(model, {"*": 0.25, "*.k_proj.weight": 0.25})


@pytest.mark.parametrize(
    "call",
    [
        lambda m: masktorch.wrap(m, {"*.weight": TopK(), "*.gone": TopK()}),
        lambda m: masktorch.wrap(m, {"*.gone": TopK(), "*": TopK()}, targets=Q),
        lambda m: masktorch.set_estimator(
            masktorch.wrap(m), {"*": TopK(), "*.gone": TopK()}
        ),
        lambda m: masktorch.set_density(
            masktorch.wrap(m, TopK()), {"*": 0.5, "*.gone": 0.5}
        ),
        lambda m: masktorch.set_estimator(
            masktorch.wrap(m), {"*": TopK(), "*.scores": TopK()}
        ),
    ],
)
def test_a_key_that_matches_nothing(call):
    with pytest.raises(ValueError, match=r"matches the pattern '\*\.(gone|scores)'"):
        call(Model())


def test_tied_tensors_go_by_any_of_their_names():
    model = Model()
    model.head.weight = model.embed.weight
    masktorch.wrap(model, {"head*": TopK(0.5)})
    masktorch.set_estimator(model, {"emb*": TopK(0.25), "head.weight": TopK(0.5)})
    assert masktorch.report(model).density == 0.5  # an exact name wins
    with pytest.raises(ValueError, match=r"'emb\*' and 'head\*' both match") as raised:
        masktorch.set_estimator(model, {"emb*": TopK(0.25), "head*": TopK(0.5)})
    assert "'embed.weight'" in str(raised.value)


@pytest.mark.parametrize("key", ["*.weight", "0.*"])
def test_masks_are_named_exactly(key):
    """One mask for several tensors would be none of the shape of some."""
    mask = torch.ones(2, 2, dtype=torch.bool)
    plain = nn.Sequential(nn.Linear(2, 2, bias=False))
    with pytest.raises(
        ValueError, match=re.escape(f"no parameter {key!r} in the model")
    ):
        masktorch.set_masks(plain, {key: mask})
    masktorch.wrap(plain)
    with pytest.raises(ValueError, match=re.escape(f"Not masked in this model: {key}")):
        masktorch.set_masks(plain, {key: mask})


# -- peft ------------------------------------------------------------------------------

LLAMA = dict(
    vocab_size=40, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=2,
)  # fmt: skip


def adapters():
    peft = pytest.importorskip("peft")
    on_q = dict(target_modules=["q_proj"])
    return {
        "lora": peft.LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"]),
        "dora": peft.LoraConfig(r=2, use_dora=True, **on_q),
        "saved": peft.LoraConfig(r=2, modules_to_save=["lm_head"], **on_q),
        "tokens": peft.LoraConfig(r=2, trainable_token_indices=[1, 2], **on_q),
        "adalora": peft.AdaLoraConfig(total_step=9, **on_q),
        "ia3": peft.IA3Config(feedforward_modules=[], **on_q),
        "vera": peft.VeraConfig(r=2, **on_q),
        "vblora": peft.VBLoRAConfig(r=2, num_vectors=4, vector_length=4, **on_q),
        "randlora": peft.RandLoraConfig(r=2, **on_q),
        "oft": peft.OFTConfig(oft_block_size=4, **on_q),
        "layer norm": peft.LNTuningConfig(target_modules=["input_layernorm"]),
        "prompt": peft.PromptEncoderConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=2, encoder_hidden_size=8
        ),
        "llama adapter": peft.AdaptionPromptConfig(
            task_type="CAUSAL_LM", adapter_len=2, adapter_layers=1
        ),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", adapters())
def test_no_pattern_matches_what_peft_adds(name):
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    before = {id(p) for p in model.parameters()}
    adapted = peft.get_peft_model(model, adapters()[name])
    names = {id(p): n for n, p in adapted.named_parameters()}
    masktorch.wrap(adapted, targets=["*"])
    assert set(masktorch.masks(adapted)) == {names[i] for i in before}
    own = next(n for i, n in names.items() if i not in before)
    if name in {"lora", "dora"}:
        masktorch.wrap(adapted, targets=[own])  # named exactly, it can be masked
        with pytest.raises(ValueError, match=f"Missing: {re.escape(own)}"):
            masktorch.set_estimator(adapted, {"*": TopK()})
