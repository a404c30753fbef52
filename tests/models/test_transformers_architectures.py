"""Tiny untrained models of transformers lead a whole life with masks."""

import copy
import io

import pytest
import torch
from torch import nn

import masktorch
from masktorch import Bernoulli, Threshold

transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:transformers"),
]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


IDS = torch.tensor([[1, 5, 9, 3, 7, 2], [4, 8, 6, 1, 3, 2]])
IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
SOUND = torch.randn(2, 800, generator=torch.Generator().manual_seed(2))
MEL = torch.randn(2, 8, 40, generator=torch.Generator().manual_seed(3))

TEXT = dict(
    vocab_size=32,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=16,
)
LLAMA = dict(**TEXT, num_key_value_heads=1)
BART = dict(
    vocab_size=32,
    d_model=16,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=24,
    decoder_ffn_dim=24,
)
TOKENS = dict(input_ids=IDS)
BOTH = dict(input_ids=IDS, decoder_input_ids=IDS)


def clip():
    text = transformers.CLIPTextConfig(**TEXT, projection_dim=8, eos_token_id=2)
    vision = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
        projection_dim=8,
    )
    return transformers.CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8
    )


def conv1d(name, module):
    """GPT-2's linear layers."""
    return ["weight"] if type(module).__name__ == "Conv1D" else []


def linear_and_experts(name, module):
    """Linear layers, and the experts of a mixture, which are one raw tensor a layer."""
    if isinstance(module, nn.Linear):
        return ["weight"]
    return [n for n, p in module._parameters.items() if p is not None and p.dim() == 3]


def all_but_weight_norm(name, module):
    """Linear and Conv layers whose weight is a parameter."""
    layers = nn.Linear, nn.Conv1d
    return (
        ["weight"]
        if isinstance(module, layers) and "weight" in module._parameters
        else []
    )


def originals_of_weight_norm(name, module):
    return [n for n in module._parameters if n == "original1"]


# family: (model class, its configuration, inputs, targets or None for the default)
FAMILIES = {
    "BERT": ("BertForMaskedLM", lambda t: t.BertConfig(**TEXT), TOKENS, None),
    "RoBERTa": (
        "RobertaModel",
        lambda t: t.RobertaConfig(**TEXT | {"max_position_embeddings": 20}),
        TOKENS,
        None,
    ),
    "DistilBERT": (
        "DistilBertModel",
        lambda t: t.DistilBertConfig(
            vocab_size=32,
            dim=16,
            n_layers=2,
            n_heads=2,
            hidden_dim=24,
            max_position_embeddings=16,
        ),
        TOKENS,
        None,
    ),
    "GPT-2": (
        "GPT2LMHeadModel",
        lambda t: t.GPT2Config(
            vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16
        ),
        TOKENS,
        conv1d,
    ),
    "OPT": (
        "OPTForCausalLM",
        lambda t: t.OPTConfig(
            vocab_size=32,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=24,
            max_position_embeddings=16,
            word_embed_proj_dim=16,
        ),
        TOKENS,
        None,
    ),
    "GPT-Neo": (
        "GPTNeoForCausalLM",
        lambda t: t.GPTNeoConfig(
            vocab_size=32,
            hidden_size=16,
            num_layers=2,
            num_heads=2,
            intermediate_size=24,
            max_position_embeddings=16,
            attention_types=[[["global", "local"], 1]],
        ),
        TOKENS,
        None,
    ),
    "T5": (
        "T5ForConditionalGeneration",
        lambda t: t.T5Config(
            vocab_size=32,
            d_model=16,
            d_kv=8,
            d_ff=24,
            num_layers=2,
            num_heads=2,
            decoder_start_token_id=0,
        ),
        BOTH,
        None,
    ),
    "BART": (
        "BartForConditionalGeneration",
        lambda t: t.BartConfig(**BART, max_position_embeddings=16),
        BOTH,
        None,
    ),
    "Llama": ("LlamaForCausalLM", lambda t: t.LlamaConfig(**LLAMA), TOKENS, None),
    "Llama, tied": (
        "LlamaForCausalLM",
        lambda t: t.LlamaConfig(**LLAMA, tie_word_embeddings=True),
        TOKENS,
        None,
    ),
    "Mistral": ("MistralForCausalLM", lambda t: t.MistralConfig(**LLAMA), TOKENS, None),
    "Mixtral": (
        "MixtralForCausalLM",
        lambda t: t.MixtralConfig(**LLAMA, num_local_experts=4),
        TOKENS,
        linear_and_experts,
    ),
    "ViT": (
        "ViTModel",
        lambda t: t.ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            image_size=32,
            patch_size=16,
        ),
        dict(pixel_values=IMAGE),
        None,
    ),
    "Swin": (
        "SwinModel",
        lambda t: t.SwinConfig(
            image_size=32,
            patch_size=4,
            embed_dim=8,
            depths=[1, 1],
            num_heads=[2, 2],
            window_size=4,
        ),
        dict(pixel_values=IMAGE),
        None,
    ),
    "ConvNeXt": (
        "ConvNextModel",
        lambda t: t.ConvNextConfig(hidden_sizes=[4, 8, 8, 8], depths=[1, 1, 1, 1]),
        dict(pixel_values=IMAGE),
        None,
    ),
    "Whisper": (
        "WhisperForConditionalGeneration",
        lambda t: t.WhisperConfig(
            **BART,
            num_mel_bins=8,
            max_source_positions=20,
            max_target_positions=16,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        ),
        dict(input_features=MEL, decoder_input_ids=IDS),
        None,
    ),
    "CLIP": (
        "CLIPModel",
        lambda t: clip(),
        dict(input_ids=IDS, pixel_values=IMAGE),
        None,
    ),
    "Mamba": (
        "MambaForCausalLM",
        lambda t: t.MambaConfig(
            vocab_size=32, hidden_size=16, state_size=4, num_hidden_layers=2
        ),
        TOKENS,
        None,
    ),
    "Wav2Vec2": (
        "Wav2Vec2Model",
        lambda t: wav2vec2(t),
        dict(input_values=SOUND),
        all_but_weight_norm,
    ),
    "Wav2Vec2, weight norm": (
        "Wav2Vec2Model",
        lambda t: wav2vec2(t),
        dict(input_values=SOUND),
        originals_of_weight_norm,
    ),
}


def wav2vec2(t):
    return t.Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=(8, 8),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        mask_time_prob=0.0,
        layerdrop=0.0,
    )


def build(family):
    kind, configure, inputs, targets = FAMILIES[family]
    config = configure(transformers)
    for part in (
        config,
        *(getattr(config, n, None) for n in ("text_config", "vision_config")),
    ):
        for name, value in list(vars(part).items() if part is not None else ()):
            if "drop" in name and isinstance(value, float):
                setattr(part, name, 0.0)
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config)
    return model.eval(), inputs, {} if targets is None else {"targets": targets}


def output(model, inputs):
    out = model(**inputs)
    for name in ("logits", "logits_per_image", "last_hidden_state"):
        if getattr(out, name, None) is not None:
            return out[name]
    raise AssertionError(list(out))


def evaluate(model, inputs):
    with torch.no_grad():
        return output(model.eval(), inputs)


def step(model, inputs, opt):
    opt.zero_grad()
    output(model.train(), inputs).square().mean().backward()
    opt.step()


def saved_and_loaded(model, into):
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    into.load_state_dict(torch.load(file))
    return into


def near(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("estimator", [Threshold(), Bernoulli()], ids=repr)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_architecture_leads_a_whole_life(family, estimator):
    model, inputs, targets = build(family)
    names = list(model.state_dict())
    kinds = [type(m) for m in model.modules()]
    plain = evaluate(model, inputs)

    masktorch.wrap(model, estimator, init=1.0, **targets)
    assert masktorch.report(model).masked == 0
    near(evaluate(model, inputs), plain)  # everything is kept

    wanted = {n: torch.rand(m.shape) < 0.7 for n, m in masktorch.masks(model).items()}
    masktorch.set_masks(model, wanted)
    masked = evaluate(model, inputs)
    assert not torch.allclose(masked, plain, rtol=1e-4, atol=1e-5)

    parameters = {
        n: p for n, p in model.named_parameters() if not n.endswith(".scores")
    }
    before = {n: parameters[n].detach().clone() for n in wanted}
    opt = torch.optim.SGD(model.parameters(), lr=0.01)
    step(model, inputs, opt)
    scores = list(masktorch.mask_parameters(model))
    assert sum(s.grad is not None and bool(s.grad.any()) for s in scores) >= 0.8 * len(
        scores
    )
    assert all(torch.equal(parameters[n], before[n]) for n in wanted)

    masktorch.freeze_weights(masktorch.freeze_mask(model), False)
    learned = masktorch.masks(model)
    step(model, inputs, opt)
    assert any(not torch.equal(parameters[n], before[n]) for n in wanted)
    for name, mask in learned.items():
        assert torch.equal(masktorch.masks(model)[name], mask)
        grad = parameters[name].grad
        assert grad is None or not grad[~mask].any()

    frozen = evaluate(model, inputs)
    assert torch.equal(evaluate(model, inputs), frozen)
    twin = copy.deepcopy(model)
    assert torch.equal(evaluate(twin, inputs), frozen)
    other = masktorch.freeze_mask(
        masktorch.wrap(build(family)[0], estimator, **targets, init=1.0)
    )
    masktorch.freeze_weights(other, False)
    assert torch.equal(evaluate(saved_and_loaded(model, other), inputs), frozen)

    masktorch.unwrap(model)
    near(evaluate(model, inputs), frozen)
    near(evaluate(twin, inputs), frozen)
    near(evaluate(masktorch.unwrap(twin), inputs), frozen)
    near(evaluate(masktorch.unwrap(other), inputs), frozen)
    assert torch.equal(evaluate(twin, inputs), evaluate(model, inputs))
    assert [type(m) for m in model.modules()] == kinds
    assert list(model.state_dict()) == names
    for name, mask in learned.items():
        assert not parameters[name][~mask].any()
    baked = saved_and_loaded(model, build(family)[0])
    assert torch.equal(evaluate(baked, inputs), evaluate(model, inputs))


# family: what the default targets mask: the number of tensors, and one of them
DEFAULTS = {
    "BERT": (14, "cls.predictions.transform.dense.weight"),
    "GPT-2": (
        9,
        "transformer.h.0.mlp.c_fc.weight",
    ),  # Conv1D; the head, which is the embedding
    "Mixtral": (9, "lm_head.weight"),  # not the experts
    "Llama, tied": (15, "model.embed_tokens.weight"),
    "Wav2Vec2": (
        9,
        "feature_projection.projection.weight",
    ),  # not what weight norm computes
}


@pytest.mark.filterwarnings("ignore:.*leaves out encoder.pos_conv_embed.conv.weight")
@pytest.mark.parametrize("family", DEFAULTS)
def test_default_targets_of_each_architecture(family):
    model, _, _ = build(family)
    expected = DEFAULTS[family]
    names = list(masktorch.masks(masktorch.wrap(model)))
    count, name = expected
    assert name in names
    assert len(names) == count


def test_a_wrapped_language_model_generates():
    model, _, _ = build("Llama")
    model.generation_config.pad_token_id = 0
    masktorch.set_masks(
        masktorch.wrap(model),
        {n: torch.rand(m.shape) < 0.7 for n, m in masktorch.masks(model).items()},
    )
    words = model.eval().generate(IDS, max_new_tokens=4, do_sample=False)
    assert words.shape == (2, 10)
    masktorch.unwrap(model)
    assert torch.equal(model.generate(IDS, max_new_tokens=4, do_sample=False), words)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_of_a_wrapped_model(reentrant):
    model, inputs, _ = build("Llama")
    masktorch.wrap(model, Bernoulli()).train()

    def gradients():
        model.zero_grad()
        torch.manual_seed(3)
        output(model, inputs | {"use_cache": False}).square().mean().backward()
        return [s.grad.clone() for s in masktorch.mask_parameters(model)]

    expected = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    for found, grad in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(found, grad)


def test_save_pretrained_and_from_pretrained_of_the_unwrapped_model(tmp_path):
    model, inputs, _ = build("BERT")
    masktorch.wrap(model)
    masktorch.set_masks(
        model, {n: torch.rand(m.shape) < 0.7 for n, m in masktorch.masks(model).items()}
    )
    out = evaluate(model, inputs)
    masktorch.unwrap(model).save_pretrained(tmp_path)
    near(evaluate(type(model).from_pretrained(tmp_path), inputs), out)
