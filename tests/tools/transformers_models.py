"""Tiny models of transformers, some with tied weights."""

import pytest
import torch

import masktorch
from masktorch import Threshold

transformers = pytest.importorskip("transformers")

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
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        **SMALL,
    )
    return transformers.LlamaForCausalLM(config)


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
