"""Masks in the Trainer of transformers: resuming, phases, best models."""

from pathlib import Path

import pytest
import torch

import masktorch
from masktorch import Bernoulli, Threshold

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from safetensors.torch import load_file  # noqa: E402
from transformers.pytorch_utils import Conv1D  # noqa: E402

from tools.transformers_models import TIED, gpt2, masked  # noqa: E402

pytestmark = [  # theirs, not ours
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:transformers"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch.utils.data"),
]


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


def test_resuming_without_wrap_otherwise_trains_an_unmasked_model(
    tokens, tmp_path, caplog
):
    """As many weights train as there were scores, so the optimiser's state fits."""
    plain = gpt2()
    logger = "transformers.trainer"
    with caplog.at_level("WARNING", logger=logger):
        resume(masktorch.wrap(gpt2()), plain, tokens, tmp_path)
    assert "unexpected keys" in caplog.text
    with pytest.raises(ValueError, match="nothing"):
        masktorch.masks(plain)


def test_resuming_in_another_phase_warns_and_continues(tokens, tmp_path):
    """The page warns of this: weights inherit the optimiser's state of scores."""
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


def test_the_next_phase_needs_a_new_trainer(tokens, tmp_path):
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


def test_gradient_checkpointing_in_a_trainer_recomputes_the_same_draws(
    tokens, tmp_path
):
    def trained(checkpointing):
        torch.manual_seed(0)
        model = masked(gpt2, Bernoulli())
        trainer(model, tmp_path, tokens, gradient_checkpointing=checkpointing).train()
        return model

    assert equal(trained(True), trained(False))


def test_the_default_learning_rate_masks_nothing(tokens, tmp_path):
    model = masktorch.wrap(gpt2())
    trainer(model, tmp_path, tokens, learning_rate=5e-5).train()
    assert masktorch.report(model).masked == 0


def test_weight_decay_of_a_trainer_reaches_scores(tokens, tmp_path):
    model = masktorch.wrap(gpt2())
    optimiser = trainer(model, tmp_path, tokens, weight_decay=0.1).create_optimizer()
    decayed = {
        p for g in optimiser.param_groups if g["weight_decay"] for p in g["params"]
    }
    assert set(masktorch.mask_parameters(model)) < decayed
