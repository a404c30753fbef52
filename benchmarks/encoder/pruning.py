"""Methods that choose which half of an encoder's weights to keep.

Each takes a fine-tuned classifier and returns a copy with fixed masks.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import masktorch
from benchmarks.encoder.classifier import Batch, Classifier, linear_layers, train

GROUP = 128  # columns that SparseGPT decides on at once, half of them kept per row
HALF_OF_GROUP = masktorch.NOfM(GROUP // 2, None)
START = 1e-2  # mean of the learned masks' first scores
TEMPERATURES = (4.0, 0.05)  # of MaskLLM, first and last
SCALES = (100.0, 500.0)


@dataclass(frozen=True)
class Task:
    """A fine-tuned classifier, and what its masks may depend on."""

    dense: Classifier
    two_of_four: bool  # if not, half of each row
    calibration: Sequence[Batch]
    training: Sequence[Batch]
    rate: float  # of the scores
    seed: int

    @property
    def names(self) -> list[str]:
        return linear_layers(self.dense)

    def keep(self, columns: int) -> masktorch.NOfM:
        return (
            masktorch.NOfM(2, 4)
            if self.two_of_four
            else masktorch.NOfM(columns // 2, None)
        )


Method = Callable[[Task], Classifier]


def magnitude(task: Task) -> Classifier:
    return _with_largest(task, {n: _weight(task.dense, n).abs() for n in task.names})


def wanda(task: Task) -> Classifier:
    """Magnitude times the norm of the input (Sun et al., arXiv 2306.11695)."""
    inputs = inputs_of_layers(task.dense, task.names, task.calibration)
    scores = {
        name: _weight(task.dense, name).abs() * inputs[name].norm(dim=0)
        for name in task.names
    }
    return _with_largest(task, scores)


def sparse_gpt(task: Task) -> Classifier:
    """Let the kept weights make up for the masked ones (arXiv 2301.00774)."""
    inputs = inputs_of_layers(task.dense, task.names, task.calibration)
    keep, group = (
        (masktorch.NOfM(2, 4), 4) if task.two_of_four else (HALF_OF_GROUP, GROUP)
    )
    model = copy.deepcopy(task.dense)
    masks = {}
    for name in task.names:
        parameter = model.get_parameter(name)
        weight, masks[name] = reconstruct(parameter.detach(), inputs[name], keep, group)
        with torch.no_grad():
            parameter.copy_(weight)
    return masktorch.set_masks(model, masks)


def learned_n_of_m(task: Task) -> Classifier:
    """Learn scores by the straight-through estimator; they start at magnitudes."""
    model = _frozen_copy(task.dense)
    estimators = {name: task.keep(_weight(model, name).shape[1]) for name in task.names}
    masktorch.wrap(
        model,
        estimators,
        init=lambda weight: START * weight.abs() / weight.abs().mean(),
    )
    return _learn(task, model)


def learned_patterns(task: Task) -> Classifier:
    """Learn the pattern of each group (MaskLLM, arXiv 2409.17481) from magnitudes."""
    prior = masktorch.masks(magnitude(task))
    model = _frozen_copy(task.dense)
    torch.manual_seed(task.seed)
    masktorch.wrap(model, dict.fromkeys(task.names, masktorch.ConcreteNOfM(2, 4)))
    masktorch.set_masks(model, prior)

    def anneal(progress: float) -> None:
        estimator = masktorch.ConcreteNOfM(
            2,
            4,
            temperature=_between(TEMPERATURES, progress),
            scale=_between(SCALES, progress),
        )
        masktorch.set_estimator(model, estimator)

    return _learn(task, model, anneal)


PER_ROW: dict[str, Method] = {
    "magnitude": magnitude,
    "Wanda": wanda,
    "SparseGPT": sparse_gpt,
    "learned NOfM": learned_n_of_m,
}
TWO_OF_FOUR: dict[str, Method] = PER_ROW | {"learned ConcreteNOfM": learned_patterns}


@torch.no_grad()
def inputs_of_layers(
    model: nn.Module, names: Sequence[str], found: Sequence[Batch]
) -> dict[str, Tensor]:
    """Return for each linear layer all its inputs, a row per token."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    real = torch.ones(0, dtype=torch.bool)

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[name].append(args[0].flatten(0, -2)[real])  # without the padding

        return hook

    hooks = [
        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
            keep(name)
        )
        for name in names
    ]
    model.eval()
    for batch in found:
        real = batch.tokens["attention_mask"].bool().flatten()
        model(batch.tokens)
    for handle in hooks:
        handle.remove()
    return {name: torch.cat(rows) for name, rows in seen.items()}


@torch.no_grad()
def reconstruct(
    weight: Tensor, inputs: Tensor, keep: masktorch.NOfM, group: int
) -> tuple[Tensor, Tensor]:
    """Return (weights, mask): `keep` selects in each `group` of columns."""
    hessian = inputs.T @ inputs
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))
    inverse = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    weight, mask = weight.clone(), torch.ones_like(weight, dtype=torch.bool)
    for column in range(weight.shape[1]):
        if column % group == 0:
            columns = slice(column, column + group)
            scores = (weight[:, columns] / inverse.diagonal()[columns]).abs()
            mask[:, columns] = keep.mode(scores)
        error = weight[:, column] * ~mask[:, column] / inverse[column, column]
        weight[:, column:] -= error[:, None] * inverse[column, column:]
    return weight, mask


def _learn(
    task: Task,
    model: Classifier,
    before_step: Callable[[float], None] = lambda progress: None,
) -> Classifier:
    scores = {"params": list(masktorch.mask_parameters(model)), "lr": task.rate}
    train(model, [scores], task.training, task.seed, before_step=before_step)
    masks = masktorch.masks(model)
    return masktorch.set_masks(copy.deepcopy(task.dense), masks)


def _with_largest(task: Task, scores: dict[str, Tensor]) -> Classifier:
    masks = {n: task.keep(s.shape[1]).mode(s) for n, s in scores.items()}
    return masktorch.set_masks(copy.deepcopy(task.dense), masks)


def _frozen_copy(model: Classifier) -> Classifier:
    return copy.deepcopy(model).requires_grad_(False)


def _weight(model: nn.Module, name: str) -> Tensor:
    return model.get_parameter(name).detach()


def _between(ends: tuple[float, float], progress: float) -> float:
    first, last = ends
    return first + progress * (last - first)
