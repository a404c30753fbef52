"""match_checkpoint where lightning and transformers' Trainer resume."""

import pytest
import torch
from torch import nn

import masktorch
from masktorch import TopK

lightning = pytest.importorskip("lightning")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from safetensors.torch import load_file  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

pytestmark = [  # theirs, not ours
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:transformers"),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch.utils.data"),
]


def mix(model):
    return masktorch.freeze_weights(masktorch.freeze_mask(model), False)


def learning(model):
    return model


def assert_equal(model, other):
    assert repr(model) == repr(other)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
        assert one.requires_grad == two.requires_grad


class Module(lightning.LightningModule):
    """Its model may be plain: a checkpoint says what it was."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch, index):
        return (self.model(batch) - batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-2)

    def on_load_checkpoint(self, checkpoint):
        masktorch.match_checkpoint(
            self.model, checkpoint["state_dict"], prefix="model."
        )


def fit(module, epochs, checkpoint=None):
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    trainer.fit(module, DataLoader(data, batch_size=8), ckpt_path=checkpoint)
    return trainer


def layers():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))


@pytest.mark.parametrize("phase", [learning, mix])
def test_lightning_resumes_in_a_plain_model(phase, tmp_path):
    def wrapped():
        return phase(masktorch.wrap(layers(), TopK(0.4), init=lambda w: w.abs()))

    whole, first, second = Module(wrapped()), Module(wrapped()), Module(layers())
    fit(whole, 4)
    fit(first, 2).save_checkpoint(tmp_path / "two.ckpt")
    fit(second, 4, tmp_path / "two.ckpt")
    assert_equal(second, whole)
    assert any(
        not torch.equal(one, two)
        for one, two in zip(first.parameters(), whole.parameters(), strict=True)
    )


def llama():
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24,
        num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=31, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def trainer(model, folder):
    tokens = torch.randint(3, 31, (32, 8), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row} for row in tokens]
    arguments = transformers.TrainingArguments(
        folder, max_steps=8, save_steps=4, learning_rate=2e-2, report_to="none",
        per_device_train_batch_size=8, use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    return transformers.Trainer(model, arguments, train_dataset=data)


@pytest.mark.parametrize("phase", [learning, mix])
def test_a_trainer_resumes_in_a_plain_model(phase, tmp_path):
    """Its safetensors hold a tied tensor, and the scores of its mask, once."""
    tied = ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"]
    whole = phase(
        masktorch.wrap(llama(), TopK(0.4), targets=tied, init=lambda w: w.abs())
    )
    trainer(whole, tmp_path / "whole").train()
    folder = tmp_path / "whole" / "checkpoint-4"
    resumed = masktorch.match_checkpoint(
        llama(), load_file(folder / "model.safetensors")
    )
    trainer(resumed, tmp_path / "resumed").train(resume_from_checkpoint=str(folder))
    assert_equal(resumed, whole)
    assert resumed.lm_head.parametrizations.weight.frozen == (phase is mix)
