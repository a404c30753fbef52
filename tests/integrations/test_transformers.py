"""Which tensors of transformers' models are masked; save_pretrained."""

import pytest
import torch
from torch import nn

import masktorch
from masktorch._masking.targets import conv_and_linear

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from safetensors.torch import load_file  # noqa: E402
from transformers.pytorch_utils import Conv1D  # noqa: E402

from tools.transformers_models import TIED, gpt2, logits, masked  # noqa: E402

pytestmark = [  # theirs, not ours
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:transformers"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch.utils.data"),
]


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


def test_save_pretrained_refuses_other_shared_tensors(tmp_path):
    """Shared memory other than tied masks is still an error of transformers."""
    model = masktorch.wrap(gpt2())
    model.register_buffer("one", torch.zeros(3))
    model.register_buffer("other", model.one)
    with pytest.raises(RuntimeError, match="shared tensors"):
        model.save_pretrained(tmp_path)


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
