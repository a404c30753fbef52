"""Masks together with adapters of peft."""

import pytest
import torch
from torch import nn

import masktorch

pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from safetensors.torch import load_file  # noqa: E402

from tools.transformers_models import llama, logits, masked  # noqa: E402

pytestmark = [  # theirs, not ours
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:transformers"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch.utils.data"),
]


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
def test_adapted_layers_are_masked_and_adapters_are_not(adapter):
    model = llama()
    linears = {m.weight for m in model.modules() if isinstance(m, nn.Linear)}
    adapted = peft.get_peft_model(model, ADAPTERS[adapter]())
    trained = {p for p in adapted.parameters() if p.requires_grad}

    masktorch.wrap(adapted)
    parameters = dict(adapted.named_parameters(remove_duplicate=False))
    assert {parameters[name] for name in masktorch.masks(adapted)} == linears
    scores = set(masktorch.mask_parameters(adapted))
    assert {p for p in adapted.parameters() if p.requires_grad} == trained | scores


def test_own_targets_can_mask_adapters():
    adapted = peft.get_peft_model(llama(), ADAPTERS["lora"]())
    masktorch.wrap(
        adapted, targets=lambda name, _: ["weight"] if "lora_A.default" in name else []
    )
    assert all("lora_A.default.weight" in name for name in masktorch.masks(adapted))


def one_linear():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5, dtype=torch.float64))


@pytest.mark.parametrize("first", ["masks", "lora"])
def test_lora_and_masks_compute_their_closed_form(first):
    """y = x (W * m + scale B A)^T, and its gradients for scores, A and B."""
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


def test_a_mask_file_saved_before_lora_loads_below_it(tmp_path):
    model = masked(llama)
    masktorch.save_masks(model, tmp_path / "masks.npz")
    backbone = masktorch.unwrap(model, bake=False)
    masktorch.load_masks(backbone, tmp_path / "masks.npz")
    adapted = peft.get_peft_model(backbone, ADAPTERS["lora"]())
    assert masktorch.report(adapted).masked > 0


def test_a_peft_checkpoint_contains_no_masks(tmp_path):
    model = masktorch.wrap(peft.get_peft_model(llama(), ADAPTERS["lora"]()))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert saved
    assert all("lora_" in name for name in saved)
    assert any(name.endswith(".scores") for name in model.state_dict())


def test_modules_replaced_by_modules_to_save_get_no_score_gradient(tokens):
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["mlp"])
    model = masktorch.wrap(peft.get_peft_model(llama(), lora))
    names = [name for name in masktorch.masks(model) if ".original_module." in name]
    assert names
    model(input_ids=tokens, labels=tokens).loss.backward()
    for name, scores in masktorch.named_mask_parameters(model):
        assert (scores.grad is None) == (name in names), name


def test_merging_under_a_mask_is_lost(tokens):
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = masktorch.wrap(peft.get_peft_model(llama(), lora))
    before = logits(model, tokens)
    model.merge_adapter()
    assert not torch.allclose(logits(model, tokens), before, rtol=1e-3, atol=1e-3)
