"""The one training loop: Adam, a schedule, a checkpoint after every epoch."""

import math
import os
import time
from collections.abc import Iterator, Sequence
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
from benchmarks.experiment import masks, parallel
from benchmarks.experiment.configuration import STARTS_FROM, Configuration
from benchmarks.experiment.data import Dataset, Split, augment, scale
from benchmarks.files import replacing

ADAM_EPSILON = 1e-7  # Keras's
EVALUATION_BATCH = 1000
# Of the processes of torchrun in RANK 0 alone, and there only on a terminal.
HIDDEN = os.environ.get("RANK", "0") != "0" or None
progress_bar = partial(tqdm, mininterval=0.5, dynamic_ncols=True, disable=HIDDEN)


@dataclass(frozen=True)
class Epoch:
    epoch: int
    lr: float  # of all but scores with a learning rate of their own, which moves in proportion
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float


def best_epoch(history: Sequence[Epoch], configuration: Configuration) -> Epoch:
    """The epoch with the highest test accuracy, the first of equals: the blog's selection. While
    densities still fall it is the last."""
    fallen = history[masks.epochs_of_fall(configuration) :] or history[-1:]
    return max(fallen, key=lambda epoch: epoch.test_accuracy)


def plateau(lr: float, train_accuracies: Sequence[float]) -> float:
    """The learning rate after these epochs: x 0.1 at every second epoch in a row whose training
    accuracy is not more than 1e-4 above the best so far (Keras's ReduceLROnPlateau, patience 2)."""
    best, waited = -math.inf, 0
    for accuracy in train_accuracies:
        if accuracy > best + 1e-4:
            best, waited = accuracy, 0
        else:
            waited += 1
        if waited == 2:
            lr, waited = lr * 0.1, 0
    return lr


def scheduled(lr: float, configuration: Configuration, train_accuracies: Sequence[float]) -> float:
    """What a learning rate that started at `lr` is after these epochs; a cosine: from `lr` to 0."""
    if configuration.schedule == "plateau":
        return plateau(lr, train_accuracies)
    return lr * (1 + math.cos(math.pi * len(train_accuracies) / configuration.epochs)) / 2


def adam(model: nn.Module, configuration: Configuration) -> Optimizer:
    """Of what trains, scores apart from the rest, with the learning rate that each starts from."""
    scores = set(masktorch.mask_parameters(model)) if configuration.estimator else set()
    trains = [p for p in model.parameters() if p.requires_grad]
    parts = [p for p in trains if p not in scores], [p for p in trains if p in scores]
    lr, score_lr = configuration.first_lr, configuration.score_lr
    lrs = lr, lr if score_lr is None else score_lr
    groups = [{"params": p, "initial_lr": lr} for p, lr in zip(parts, lrs, strict=True) if p]
    return torch.optim.Adam(groups, lr=lrs[0], eps=ADAM_EPSILON, fused=True)


def epoch_seed(configuration: Configuration, epoch: int) -> int:
    """The same for all arms that start anew, and another one for those that go on from them."""
    goes_on = configuration.arm in STARTS_FROM
    state = np.random.SeedSequence([configuration.seed, int(goes_on), epoch]).generate_state(1)
    return int(state[0])


def train(
    model: nn.Module, data: Dataset, configuration: Configuration, checkpoint: Path, whole_run: Any
) -> tuple[list[Epoch], dict[str, Tensor]]:
    """Train what requires gradients; return the epochs and the state of the best one. Everything
    random in an epoch follows from its `epoch_seed`, so a run that goes on from `checkpoint` gives
    the numbers of one that was not stopped, wherever the device computes reproducibly."""
    device = data.train.images.device
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = adam(model, configuration)
    history: list[Epoch] = []
    best_state: dict[str, Tensor] = {}
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        masks.load(model, saved["model"], configuration)
        optimiser.load_state_dict(saved["optimiser"])
        history = [Epoch(**epoch) for epoch in saved["history"]]
        best_state = saved["best_state"]
        whole_run.total -= len(history)

    for number in range(len(history) + 1, configuration.epochs + 1):
        accuracies = [epoch.train_accuracy for epoch in history]
        lr = scheduled(configuration.first_lr, configuration, accuracies)
        for group in optimiser.param_groups:
            group["lr"] = scheduled(group["initial_lr"], configuration, accuracies)
        masks.cut(model, configuration, number)
        start = time.perf_counter()
        trained = train_epoch(model, optimiser, data.train, configuration, number)
        masks.cut(model, configuration, number)  # as the scores now are
        tested = evaluate(model, data.test, configuration)
        this = Epoch(number, lr, *trained, *tested, seconds=time.perf_counter() - start)
        history.append(this)
        if best_epoch(history, configuration) is this:
            best_state = {name: value.clone() for name, value in model.state_dict().items()}
        if parallel.rank() == 0:
            state = {
                "model": model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "history": [asdict(epoch) for epoch in history],
                "best_state": best_state,
            }
            with replacing(checkpoint) as path:
                torch.save(state, path)
        whole_run.write(
            f"{configuration.arm} {number}: train {this.train_accuracy:.4f}, "
            f"test {this.test_accuracy:.4f}, lr {lr:.0e}, {this.seconds:.1f} s"
        )
        whole_run.update()
    return history, best_state


def train_epoch(
    model: nn.Module, optimiser: Optimizer, split: Split, configuration: Configuration, epoch: int
) -> tuple[float, float]:
    """One pass over the training set; its mean loss and accuracy as met on the way."""
    seed = epoch_seed(configuration, epoch)
    torch.manual_seed(seed)  # for stochastic masks
    totals = torch.zeros(2, device=split.images.device)
    network = parallel.over_all(model)  # anew: a density may have changed
    network.train()
    count = math.ceil(len(split.labels) / configuration.batch_size)
    pairs = batches(split, configuration, seed)
    name = f"{configuration.arm} {epoch}/{configuration.epochs}"
    for inputs, labels in progress_bar(pairs, total=count, desc=name, position=1, leave=False):
        images, classes, weight = parallel.part(inputs, labels)
        loss, found = _loss_and_totals(network, images, classes, configuration)
        optimiser.zero_grad()
        (loss * weight).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        totals += found
    parallel.same_buffers(model)
    return _means(totals, split)


def batches(
    split: Split, configuration: Configuration, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch's inputs and labels. Order and augmentation have a stream of their own, so that
    every arm sees the same images."""
    device = split.images.device
    generator = torch.Generator(device).manual_seed(seed)
    order = torch.randperm(len(split.labels), generator=generator, device=device)
    for batch in torch.split(order, configuration.batch_size):
        images = split.images[batch]
        if configuration.augmentation:
            images = augment(images, generator)
        yield scale(images, configuration.faithful_scaling), split.labels[batch]


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, configuration: Configuration) -> tuple[float, float]:
    """Mean loss and accuracy in eval mode: deterministic masks, running batch-norm averages."""
    model.eval()
    totals = torch.zeros(2, device=split.images.device)
    pairs = zip(*(torch.split(part, EVALUATION_BATCH) for part in split), strict=True)
    for images, labels in islice(pairs, parallel.rank(), None, parallel.size()):
        inputs = scale(images, configuration.faithful_scaling)
        totals += _loss_and_totals(model, inputs, labels, configuration)[1]
    return _means(totals, split)


@torch.no_grad()
def recalibrated(model: nn.Module, data: Dataset, configuration: Configuration) -> float | None:
    """Test accuracy with batch norm's running averages, which lag behind the weights, replaced by
    plain means over the training images; None where there is no batch norm."""
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return None
    seed = epoch_seed(configuration, configuration.epochs + 1)
    low = configuration.precision == "bfloat16"
    with torch.autocast(data.train.images.device.type, dtype=torch.bfloat16, enabled=low):
        update_bn(batches(data.train, configuration, seed), model)
    return evaluate(model, data.test, configuration)[1]


def _loss_and_totals(
    model: nn.Module, inputs: Tensor, labels: Tensor, configuration: Configuration
) -> tuple[Tensor, Tensor]:
    """The mean loss; and the sum of the losses with how many are right."""
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    low = configuration.precision == "bfloat16"
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=low):
        logits = model(inputs)
    logits = logits.float()
    loss, hits = cross_entropy(logits, labels), (logits.argmax(dim=1) == labels).sum()
    return loss, torch.stack([loss.detach() * len(labels), hits])


def _means(totals: Tensor, split: Split) -> tuple[float, float]:
    loss, accuracy = (parallel.add_up(totals) / len(split.labels)).tolist()
    return loss, accuracy
