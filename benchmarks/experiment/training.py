"""The training loop: Adam, a schedule, a checkpoint after every epoch."""

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.swa_utils import update_bn
from tqdm import tqdm  # type: ignore[import-untyped]

import masktorch
from benchmarks import CompileMode
from benchmarks.experiment import dynamic, masks, parallel
from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.data import Dataset, Split, augment, scale
from benchmarks.files import replacing

ADAM_EPSILON = 1e-7  # Keras's
EVALUATION_BATCH = 1000

# Keras's ReduceLROnPlateau, as the blog calls it.
PLATEAU_PATIENCE = 2
PLATEAU_FACTOR = 0.1
PLATEAU_MIN_DELTA = 1e-4

# tqdm takes None for "only on a terminal". Of torchrun's processes only the first shows
# a bar.
_HIDDEN = True if os.environ.get("RANK", "0") != "0" else None
progress_bar = partial(tqdm, mininterval=0.5, dynamic_ncols=True, disable=_HIDDEN)

State = dict[str, Tensor]


@dataclass(frozen=True)
class Epoch:
    epoch: int
    lr: float  # not of scores with their own, whose rate falls in proportion
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float


def best_epoch(history: Sequence[Epoch], configuration: Configuration) -> Epoch:
    """Return the first epoch with the highest test accuracy, as the blog selects it.

    Only epochs with the final density count; while it still falls, the last epoch is
    the best.
    """
    at_final_density = history[masks.falling_epochs(configuration) :]
    return max(at_final_density or history[-1:], key=lambda epoch: epoch.test_accuracy)


def plateau(lr: float, train_accuracies: Sequence[float]) -> float:
    """Return the learning rate after these epochs.

    It falls to a tenth after two epochs in a row that are not better than the best
    before them.
    """
    best, waited = -math.inf, 0
    for accuracy in train_accuracies:
        if accuracy > best + PLATEAU_MIN_DELTA:
            best, waited = accuracy, 0
        else:
            waited += 1
        if waited == PLATEAU_PATIENCE:
            lr, waited = lr * PLATEAU_FACTOR, 0
    return lr


def scheduled(
    lr: float, configuration: Configuration, train_accuracies: Sequence[float]
) -> float:
    """Return the value after these epochs of a learning rate that started at `lr`."""
    if configuration.schedule == "plateau":
        return plateau(lr, train_accuracies)
    angle = math.pi * len(train_accuracies) / configuration.epochs
    return lr * (1 + math.cos(angle)) / 2


def adam(model: nn.Module, configuration: Configuration) -> Optimizer:
    """Return the optimiser of all trainable parameters.

    Scores are a group of their own, with `score_lr` if there is one. A group's
    `initial_lr` is what its schedule starts from.
    """
    has_scores = configuration.arm_definition.has_scores
    scores = set(masktorch.mask_parameters(model)) if has_scores else set()
    trainable = [p for p in model.parameters() if p.requires_grad]
    lr = configuration.first_lr
    score_lr = lr if configuration.score_lr is None else configuration.score_lr
    groups = [
        {"params": [p for p in trainable if p not in scores], "initial_lr": lr},
        {"params": [p for p in trainable if p in scores], "initial_lr": score_lr},
    ]
    not_empty = [group for group in groups if group["params"]]
    return torch.optim.Adam(not_empty, lr=lr, eps=ADAM_EPSILON, fused=True)


def epoch_seed(configuration: Configuration, epoch: int) -> int:
    """Return the seed of an epoch.

    All arms that start from the initial weights share it, so that they see the same
    images; the arms that start from another arm share another one.
    """
    starts_from_another = configuration.start is not None
    entropy = [configuration.seed, int(starts_from_another), epoch]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def train(
    model: nn.Module,
    data: Dataset,
    configuration: Configuration,
    checkpoint: Path,
    whole_run: Any,
    compile_mode: CompileMode | None = None,
) -> tuple[list[Epoch], State]:
    """Train what requires gradients; return the epochs and the best one's state.

    All randomness of an epoch follows from its `epoch_seed`. A run that resumes from
    `checkpoint` therefore gives the numbers of an uninterrupted one, if the device
    computes reproducibly.
    """
    device = data.train.images.device
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = adam(model, configuration)
    history: list[Epoch] = []
    best_state: State = {}
    if checkpoint.exists():
        history, best_state = _resume(
            checkpoint, model, optimiser, configuration, device
        )
        whole_run.total -= len(history)

    for number in range(len(history) + 1, configuration.epochs + 1):
        lr = _set_learning_rates(optimiser, configuration, history)
        epoch = _run_epoch(
            model, optimiser, data, configuration, number, lr, compile_mode
        )
        history.append(epoch)
        if best_epoch(history, configuration) is epoch:
            best_state = {
                name: value.clone() for name, value in model.state_dict().items()
            }
        if parallel.rank() == 0:
            _save_checkpoint(checkpoint, model, optimiser, history, best_state)
        whole_run.write(_progress_line(configuration, epoch))
        whole_run.update()
    return history, best_state


def _resume(
    checkpoint: Path,
    model: nn.Module,
    optimiser: Optimizer,
    configuration: Configuration,
    device: torch.device,
) -> tuple[list[Epoch], State]:
    """Load a checkpoint into model and optimiser; return its epochs and best state."""
    saved = torch.load(checkpoint, map_location=device, weights_only=True)
    masks.load_state(model, saved["model"], configuration)
    optimiser.load_state_dict(saved["optimiser"])
    return [Epoch(**epoch) for epoch in saved["history"]], saved["best_state"]


def _save_checkpoint(
    checkpoint: Path,
    model: nn.Module,
    optimiser: Optimizer,
    history: Sequence[Epoch],
    best_state: State,
) -> None:
    content = {
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "history": [asdict(epoch) for epoch in history],
        "best_state": best_state,
    }
    with replacing(checkpoint) as temporary:
        torch.save(content, temporary)


def _set_learning_rates(
    optimiser: Optimizer, configuration: Configuration, history: Sequence[Epoch]
) -> float:
    """Set every group's rate for the next epoch; return the rate of all but scores."""
    accuracies = [epoch.train_accuracy for epoch in history]
    for group in optimiser.param_groups:
        group["lr"] = scheduled(group["initial_lr"], configuration, accuracies)
    return scheduled(configuration.first_lr, configuration, accuracies)


def _run_epoch(
    model: nn.Module,
    optimiser: Optimizer,
    data: Dataset,
    configuration: Configuration,
    number: int,
    lr: float,
    compile_mode: CompileMode | None,
) -> Epoch:
    """Train for one epoch and evaluate; both see the density of the epoch.

    A budget depends on the scores, so it is computed again before the evaluation.
    """
    masks.set_epoch_density(model, configuration, number)
    start = time.perf_counter()
    train_loss, train_accuracy = train_epoch(
        model, optimiser, data.train, configuration, number, compile_mode
    )
    masks.set_epoch_density(model, configuration, number)
    test_loss, test_accuracy = evaluate(model, data.test, configuration)
    seconds = time.perf_counter() - start
    return Epoch(
        number, lr, train_loss, train_accuracy, test_loss, test_accuracy, seconds
    )


def _progress_line(configuration: Configuration, epoch: Epoch) -> str:
    return (
        f"{configuration.arm} {epoch.epoch}: train {epoch.train_accuracy:.4f}, "
        f"test {epoch.test_accuracy:.4f}, lr {epoch.lr:.0e}, {epoch.seconds:.1f} s"
    )


def train_epoch(
    model: nn.Module,
    optimiser: Optimizer,
    split: Split,
    configuration: Configuration,
    epoch: int,
    compile_mode: CompileMode | None = None,
) -> tuple[float, float]:
    """Train on every image once; return mean loss and accuracy before each step."""
    seed = epoch_seed(configuration, epoch)
    torch.manual_seed(seed)  # for stochastic masks
    totals = torch.zeros(2, device=split.images.device)
    network = parallel.distribute(model)  # in each epoch, as its density may differ
    if compile_mode is not None:
        # The smaller last batch gets a graph of its own; one graph for any size would
        # slow down all batches. Later epochs find both in the compiler's cache.
        network = torch.compile(network, mode=compile_mode, dynamic=False)  # type: ignore[assignment]
    network.train()
    steps = math.ceil(len(split.labels) / configuration.batch_size)
    pairs = progress_bar(
        batches(split, configuration, seed),
        total=steps,
        desc=f"{configuration.arm} {epoch}/{configuration.epochs}",
        position=1,
        leave=False,
    )
    for step, (inputs, labels) in enumerate(pairs, start=1):
        own_inputs, own_labels, weight = parallel.part(inputs, labels)
        optimiser.zero_grad()  # first: CUDA graphs reuse the memory of old gradients
        loss, found = _loss_and_totals(network, own_inputs, own_labels, configuration)
        (loss * weight).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        totals += found
        progress = (epoch - 1 + step / steps) / configuration.epochs
        if dynamic.move_is_due(configuration, step, progress):
            loss_again = partial(_loss, network, own_inputs, own_labels, configuration)
            dynamic.move(model, optimiser, configuration, progress, loss_again)
    parallel.synchronise_buffers(model)
    return _means(totals, split)


def batches(
    split: Split, configuration: Configuration, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs and labels of one epoch.

    Order and augmentation have a random stream of their own, so that stochastic masks
    don't change the images an arm sees.
    """
    device = split.images.device
    generator = torch.Generator(device).manual_seed(seed)
    order = torch.randperm(len(split.labels), generator=generator, device=device)
    for batch in torch.split(order, configuration.batch_size):
        images = split.images[batch]
        if configuration.augmentation:
            images = augment(images, generator)
        yield scale(images, configuration.faithful_scaling), split.labels[batch]


@torch.no_grad()
def evaluate(
    model: nn.Module, split: Split, configuration: Configuration
) -> tuple[float, float]:
    """Return mean loss and accuracy in eval mode, with deterministic masks."""
    model.eval()
    totals = torch.zeros(2, device=split.images.device)
    pairs = zip(
        torch.split(split.images, EVALUATION_BATCH),
        torch.split(split.labels, EVALUATION_BATCH),
        strict=True,
    )
    own_pairs = islice(pairs, parallel.rank(), None, parallel.size())
    for images, labels in own_pairs:
        inputs = scale(images, configuration.faithful_scaling)
        totals += _loss_and_totals(model, inputs, labels, configuration)[1]
    return _means(totals, split)


@torch.no_grad()
def recalibrated_accuracy(
    model: nn.Module, data: Dataset, configuration: Configuration
) -> float | None:
    """Return the test accuracy with recalibrated batch norm; None without batch norm.

    Batch norm's running averages lag behind the weights. They are replaced by plain
    means over the training images.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return None
    seed = epoch_seed(configuration, configuration.epochs + 1)
    with _autocast(data.train.images.device, configuration):
        update_bn(batches(data.train, configuration, seed), model)
    return evaluate(model, data.test, configuration)[1]


def _loss(
    model: nn.Module, inputs: Tensor, labels: Tensor, configuration: Configuration
) -> Tensor:
    return _loss_and_totals(model, inputs, labels, configuration)[0]


def _loss_and_totals(
    model: nn.Module, inputs: Tensor, labels: Tensor, configuration: Configuration
) -> tuple[Tensor, Tensor]:
    """Return the mean loss, and (sum of losses, number of correct answers)."""
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    with _autocast(inputs.device, configuration):
        logits = model(inputs)
    logits = logits.float()
    loss = cross_entropy(logits, labels)
    correct = (logits.argmax(dim=1) == labels).sum()
    return loss, torch.stack([loss.detach() * len(labels), correct])


def _autocast(
    device: torch.device, configuration: Configuration
) -> AbstractContextManager[Any]:
    enabled = configuration.precision == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def _means(totals: Tensor, split: Split) -> tuple[float, float]:
    loss, accuracy = (parallel.add_up(totals) / len(split.labels)).tolist()
    return loss, accuracy
