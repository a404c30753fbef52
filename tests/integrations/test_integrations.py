"""transformers, lightning and peft: what docs/integrations.md says, and what it rests on."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import masktorch
from masktorch import Bernoulli, Threshold
from masktorch._masking.targets import conv_and_linear

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytest.importorskip("accelerate")

from safetensors.torch import load_file  # noqa: E402
from transformers.pytorch_utils import Conv1D  # noqa: E402

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```py\n(.*?)^```$", re.DOTALL | re.MULTILINE)

pytestmark = [  # theirs, not ours
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:transformers"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch.utils.data"),
]

SMALL = dict(vocab_size=31, pad_token_id=0, bos_token_id=1, eos_token_id=2)


def gpt2():
    config = transformers.GPT2Config(
        n_embd=16, n_layer=1, n_head=2, n_positions=16, **SMALL
    )
    return transformers.GPT2LMHeadModel(config)


def t5():
    config = transformers.T5Config(
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        **SMALL,
    )
    return transformers.T5ForConditionalGeneration(config)


def bert():
    config = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        **SMALL,
    )
    return transformers.BertForMaskedLM(config)


TIED = {
    gpt2: "transformer.wte.weight",
    t5: "shared.weight",
    bert: "bert.embeddings.word_embeddings.weight",
}


def llama():
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, **SMALL,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


@pytest.fixture
def tokens():
    return torch.randint(3, 31, (4, 8))


def logits(model, tokens):
    with torch.no_grad():
        return model.eval()(input_ids=tokens, labels=tokens).logits


def masked(build, estimator=Threshold(), init=None):
    """A wrapped model in which a third of each tensor is masked."""
    model = masktorch.wrap(build(), estimator, init=init)
    return masktorch.set_masks(
        model,
        {
            name: torch.rand(mask.shape) < 0.7
            for name, mask in masktorch.masks(model).items()
        },
    )


# Which tensors


class OwnConv1D(Conv1D):
    pass


def test_conv1d_of_transformers_is_a_default_target():
    assert conv_and_linear("c_attn", Conv1D(4, 3)) == ["weight"]
    assert conv_and_linear("c_attn", OwnConv1D(4, 3)) == ["weight"]
    other = type("Conv1D", (nn.Module,), {})()
    other.weight = nn.Parameter(torch.ones(2, 2))
    assert conv_and_linear("c_attn", other) == []


def test_gpt2_is_masked_in_its_blocks_and_where_its_head_is_tied():
    model = masktorch.wrap(gpt2())
    assert list(masktorch.masks(model)) == [
        "transformer.wte.weight",
        *(
            f"transformer.h.0.{name}.weight"
            for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        ),
    ]
    assert {type(m).__name__ for m in model.transformer.h[0].mlp.children()} > {
        "MaskedConv1D"
    }


ADAPTERS = {
    "lora": lambda: peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"]),
    "dora": lambda: peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True),
    "lora and embedding": lambda: peft.LoraConfig(
        r=2, target_modules=["q_proj", "embed_tokens"]
    ),
    "lora and head": lambda: peft.LoraConfig(
        r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]
    ),
    "adalora": lambda: peft.AdaLoraConfig(total_step=9, target_modules=["q_proj"]),
    "ia3": lambda: peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
    "vera": lambda: peft.VeraConfig(r=2, target_modules=["q_proj"]),
    "frod": lambda: peft.FrodConfig(target_modules=["q_proj"]),
    "oft": lambda: peft.OFTConfig(target_modules=["q_proj"], oft_block_size=4),
    "layer norm": lambda: peft.LNTuningConfig(target_modules=["q_proj"]),
    "prompt": lambda: peft.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=2, encoder_hidden_size=8
    ),
}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_what_peft_adds_is_left_alone_and_what_it_adapts_is_masked(adapter):
    model = llama()
    linears = {m.weight for m in model.modules() if isinstance(m, nn.Linear)}
    adapted = peft.get_peft_model(model, ADAPTERS[adapter]())
    trained = {p for p in adapted.parameters() if p.requires_grad}

    masktorch.wrap(adapted)
    parameters = dict(adapted.named_parameters(remove_duplicate=False))
    assert {parameters[name] for name in masktorch.masks(adapted)} == linears
    scores = set(masktorch.mask_parameters(adapted))
    assert {p for p in adapted.parameters() if p.requires_grad} == trained | scores


def test_targets_of_ones_own_reach_what_peft_adds():
    adapted = peft.get_peft_model(llama(), ADAPTERS["lora"]())
    masktorch.wrap(
        adapted, targets=lambda name, _: ["weight"] if "lora_A.default" in name else []
    )
    assert all("lora_A.default.weight" in name for name in masktorch.masks(adapted))


def one_linear():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5, dtype=torch.float64))


@pytest.mark.parametrize("first", ["masks", "lora"])
def test_lora_and_masks_on_one_model(first):
    """y = x (W * m + scale B A)^T, and the gradients of scores, A and B are those of this."""
    lora = peft.LoraConfig(
        r=2, lora_alpha=6, target_modules=["0"], init_lora_weights=False
    )
    model = one_linear()
    weight, bias = (p.detach().numpy().copy() for p in model.parameters())
    if first == "masks":
        model = peft.get_peft_model(masktorch.wrap(model), lora).double()
        masktorch.freeze_mask(model, False)  # the one line of the page
    else:
        model = masktorch.wrap(peft.get_peft_model(model, lora).double())
    (name,) = masktorch.masks(model)
    assert name == "base_model.model.0.base_layer.weight"
    mask = torch.rand(5, 6) < 0.6
    masktorch.set_masks(model, {name: mask})
    layer = model.base_model.model[0]
    a, b = (f["default"].weight for f in (layer.lora_A, layer.lora_B))
    (scores,) = masktorch.mask_parameters(model)
    assert {p for p in model.parameters() if p.requires_grad} == {a, b, scores}

    x = torch.randn(3, 6, dtype=torch.float64)
    out = model.train()(x)
    (out.square().sum() / 2).backward()
    low = 3 * b.detach().numpy() @ a.detach().numpy()
    y = x.numpy() @ (weight * mask.numpy() + low).T + bias
    by_effective = y.T @ x.numpy()  # dL/dW_eff
    sigma = 1 / (1 + torch.exp(-scores.detach())).numpy()
    torch.testing.assert_close(out.detach().numpy(), y)
    torch.testing.assert_close(
        scores.grad.numpy(), by_effective * weight * sigma * (1 - sigma)
    )
    torch.testing.assert_close(a.grad.numpy(), 3 * b.detach().numpy().T @ by_effective)
    torch.testing.assert_close(b.grad.numpy(), 3 * by_effective @ a.detach().numpy().T)

    merged = masktorch.unwrap(model).merge_and_unload()
    assert type(merged[0]) is nn.Linear
    torch.testing.assert_close(
        merged[0].weight.detach().numpy(), weight * mask.numpy() + low
    )


def test_a_mask_file_made_before_lora_fits_the_backbone_of_lora(tmp_path):
    model = masked(llama)
    masktorch.save_masks(model, tmp_path / "masks.npz")
    backbone = masktorch.unwrap(model, bake=False)
    masktorch.load_masks(backbone, tmp_path / "masks.npz")
    adapted = peft.get_peft_model(backbone, ADAPTERS["lora"]())
    assert masktorch.report(adapted).masked > 0


# Saving


@pytest.mark.parametrize("given", [False, True], ids=["learning", "given"])
@pytest.mark.parametrize("build", TIED)
def test_tied_masked_weights_survive_save_pretrained(build, given, tokens, tmp_path):
    model = masked(build)
    assert TIED[build] in masktorch.masks(model)
    if given:
        masktorch.save_masks(model, tmp_path / "masks.npz")
        masktorch.load_masks(
            masktorch.unwrap(model, bake=False), tmp_path / "masks.npz"
        )
    expected = logits(model, tokens)
    model.save_pretrained(tmp_path)

    saved = load_file(tmp_path / "model.safetensors")
    names = [name for name in saved if name.endswith(".scores")]
    assert len(names) == len(masktorch.masks(model))  # those of the tied weights once
    fresh = type(model).from_pretrained(
        tmp_path
    )  # the weights under the masks, and no masks
    assert not torch.equal(logits(fresh, tokens), expected)
    if given:
        masktorch.load_masks(fresh, tmp_path / "masks.npz")
    else:
        masktorch.wrap(fresh)
    _, unexpected = fresh.load_state_dict(saved, strict=False)
    assert not unexpected
    assert torch.equal(logits(fresh, tokens), expected)

    masktorch.unwrap(model).save_pretrained(tmp_path / "baked")
    assert torch.equal(
        logits(type(model).from_pretrained(tmp_path / "baked"), tokens), expected
    )


def test_only_what_is_tied_is_written_once(tmp_path):
    """Scores that share memory and are no tied mask's are still an error of transformers."""
    model = masktorch.wrap(gpt2())
    model.register_buffer("one", torch.zeros(3))
    model.register_buffer("other", model.one)
    with pytest.raises(RuntimeError, match="shared tensors"):
        model.save_pretrained(tmp_path)


# Trainer


def trainer(model, folder, tokens, **arguments):
    settings = dict(
        max_steps=6, save_steps=3, learning_rate=0.5, per_device_train_batch_size=4,
        disable_tqdm=True, report_to="none", use_cpu=True, logging_strategy="no",
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in tokens.repeat(4, 1)]
    return transformers.Trainer(
        model,
        transformers.TrainingArguments(str(folder), **{**settings, **arguments}),
        train_dataset=data,
        eval_dataset=data[:4],
    )


def phase(model, number):
    return (
        masktorch.freeze_weights(masktorch.freeze_mask(model), False)
        if number
        else model
    )


def equal(one, other):
    return all(map(torch.equal, one.parameters(), other.parameters()))


@pytest.mark.parametrize("estimator", [Threshold(), Bernoulli()], ids=repr)
@pytest.mark.parametrize("number", [0, 1], ids=["mask", "weights"])
@pytest.mark.parametrize("build", TIED)
def test_a_trainer_resumes_to_the_same_numbers(
    build, number, estimator, tokens, tmp_path
):
    def fresh():
        torch.manual_seed(0)
        return phase(masked(build, estimator), number)

    start, whole, resumed = fresh(), fresh(), fresh()
    trainer(whole, tmp_path, tokens).train()
    assert not equal(whole, start)
    masks = zip(
        masktorch.masks(whole).values(), masktorch.masks(start).values(), strict=True
    )
    assert all(torch.equal(one, other) for one, other in masks) == bool(number)
    trainer(resumed, tmp_path / "again", tokens).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-3")
    )
    assert equal(whole, resumed)


def blocks(module_name, module):
    return ["weight"] if isinstance(module, Conv1D) else []


def resume(saved, other, tokens, folder):
    trainer(saved, folder, tokens).train()
    trainer(other, folder / "again", tokens).train(
        resume_from_checkpoint=str(folder / "checkpoint-3")
    )


def test_resuming_without_wrap_is_an_error_if_all_else_is_frozen(tokens, tmp_path):
    saved = masktorch.wrap(gpt2().requires_grad_(False), targets=blocks)
    with pytest.raises(ValueError, match="parameter group"):
        resume(saved, gpt2(), tokens, tmp_path)


def test_resuming_without_wrap_else_trains_an_unmasked_model(tokens, tmp_path, caplog):
    """As many weights train as there were scores, so that the optimiser's state fits."""
    plain = gpt2()
    logger = "transformers.trainer"
    with caplog.at_level("WARNING", logger=logger):
        resume(masktorch.wrap(gpt2()), plain, tokens, tmp_path)
    assert "unexpected keys" in caplog.text
    with pytest.raises(ValueError, match="nothing"):
        masktorch.masks(plain)


def test_resuming_in_another_phase_warns_and_goes_on(tokens, tmp_path):
    """What the page warns of: the optimiser's state of the scores becomes that of the weights."""
    saved, other = (
        masktorch.wrap(gpt2().requires_grad_(False), targets=blocks) for _ in range(2)
    )
    with pytest.warns(UserWarning, match="mask_frozen"):
        resume(saved, phase(other, 1), tokens, tmp_path)


def test_resuming_where_more_learns_is_an_error_after_the_warning(tokens, tmp_path):
    saved, other = (
        masktorch.wrap(gpt2().requires_grad_(False), targets=blocks) for _ in range(2)
    )
    masktorch.freeze_weights(other, False)
    with (
        pytest.warns(UserWarning, match="weights_frozen"),
        pytest.raises(ValueError, match="parameter group"),
    ):
        resume(saved, other, tokens, tmp_path)


def test_the_next_phase_wants_a_new_trainer(tokens, tmp_path):
    model = masked(gpt2)
    weight = model.transformer.h[0].attn.c_attn.parametrizations.weight.original

    def moved_by(trains):
        before = weight.detach().clone()
        trains.train()
        return not torch.equal(weight, before)

    first = trainer(model, tmp_path, tokens)
    assert not moved_by(first)  # the phase of the masks
    phase(model, 1)
    assert not moved_by(first)  # its optimiser does not know the weights
    assert moved_by(trainer(model, tmp_path, tokens))


def test_a_trainer_keeps_its_best_model(tokens, tmp_path):
    model = masked(gpt2)
    settings = dict(eval_strategy="steps", eval_steps=3, load_best_model_at_end=True)
    trains = trainer(model, tmp_path, tokens, **settings)
    trains.train()
    best = masktorch.wrap(gpt2())
    best.load_state_dict(
        load_file(Path(trains.state.best_model_checkpoint) / "model.safetensors"),
        strict=False,
    )
    assert equal(model, best)


def test_gradient_checkpointing_sees_the_same_draws(tokens, tmp_path):
    def trained(checkpointing):
        torch.manual_seed(0)
        model = masked(gpt2, Bernoulli())
        trainer(model, tmp_path, tokens, gradient_checkpointing=checkpointing).train()
        return model

    assert equal(trained(True), trained(False))


def test_with_the_default_learning_rate_no_score_crosses(tokens, tmp_path):
    model = masktorch.wrap(gpt2())
    trainer(model, tmp_path, tokens, learning_rate=5e-5).train()
    assert masktorch.report(model).masked == 0


# What the page warns of


def test_weight_decay_of_a_trainer_reaches_scores(tokens, tmp_path):
    model = masktorch.wrap(gpt2())
    optimiser = trainer(model, tmp_path, tokens, weight_decay=0.1).create_optimizer()
    decayed = {
        p for g in optimiser.param_groups if g["weight_decay"] for p in g["params"]
    }
    assert set(masktorch.mask_parameters(model)) < decayed


def test_a_checkpoint_of_peft_has_no_masks(tmp_path):
    model = masktorch.wrap(peft.get_peft_model(llama(), ADAPTERS["lora"]()))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert saved
    assert all("lora_" in name for name in saved)
    assert any(name.endswith(".scores") for name in model.state_dict())


def test_what_modules_to_save_replaces_is_masked_and_gets_no_gradient(tokens):
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["mlp"])
    model = masktorch.wrap(peft.get_peft_model(llama(), lora))
    names = [name for name in masktorch.masks(model) if ".original_module." in name]
    assert names
    model(input_ids=tokens, labels=tokens).loss.backward()
    for name, scores in masktorch.named_mask_parameters(model):
        assert (scores.grad is None) == (name in names), name


@pytest.mark.parametrize(
    "change", [lambda m: m.tie_weights(), lambda m: m.resize_token_embeddings(40)]
)
def test_tying_and_resizing_come_before_wrap(change):
    with pytest.raises(AttributeError, match="wte"):
        change(masktorch.wrap(gpt2()))
    model = gpt2()
    change(model)
    masktorch.wrap(model)


class WrapsItself(transformers.GPT2LMHeadModel):
    def __init__(self, config):
        super().__init__(config)
        masktorch.wrap(self)


def test_a_model_that_wraps_itself_is_not_loaded_by_from_pretrained(tmp_path):
    WrapsItself(gpt2().config).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="meta"):
        WrapsItself.from_pretrained(tmp_path)


def test_merging_under_a_mask_is_lost(tokens):
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = masktorch.wrap(peft.get_peft_model(llama(), lora))
    before = logits(model, tokens)
    model.merge_adapter()
    assert not torch.allclose(logits(model, tokens), before, rtol=1e-3, atol=1e-3)


def test_the_page_runs(tmp_path, monkeypatch):
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "integrations.md"
    text, namespace = page.read_text(), {"__name__": "page"}
    for block in BLOCK.finditer(text):
        lines_before = text.count("\n", 0, block.start(1))
        exec(compile("\n" * lines_before + block[1], str(page), "exec"), namespace)
