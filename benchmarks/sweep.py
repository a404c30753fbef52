"""Settings of the estimators, compared where they are cheap: LeNet-300-100 on MNIST, mask only.

The defaults of `masktorch.IntermediateSampling` come from here. Accuracy is measured on 10,000
images held out of the training set; the test set is not touched.
"""

import itertools
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import masktorch
from benchmarks.atomic import replacing
from benchmarks.configuration import Configuration
from benchmarks.data import Split, load
from benchmarks.experiment import build
from benchmarks.results import environment
from benchmarks.training import progress_bar, train

HELD_OUT = 10_000
SEEDS = (0, 1)
BASE = Configuration(dataset="mnist", network="lenet-300-100", epochs=3, augmentation=False)


@dataclass(frozen=True)
class Setting:
    estimator: masktorch.Estimator
    init: float
    lr: float
    max_step: float = masktorch.functional.MAX_STEP  # intermediate sampling's bound on its step


def settings() -> Iterator[Setting]:
    for lr in (3e-3, 1e-2, 3e-2):
        yield Setting(masktorch.Threshold(), 1.0, lr)
    for init, lr in itertools.product((0.0, 1.0), (0.1, 0.3, 1.0)):
        yield Setting(masktorch.Bernoulli(), init, lr)
    for init, step_size, lr in itertools.product((0.0, 1.0), (0.03, 0.1, 0.3), (0.1, 0.3, 1.0)):
        yield Setting(masktorch.IntermediateSampling(step_size), init, lr)
    for max_step in (0.25, 0.9):
        yield Setting(masktorch.IntermediateSampling(0.1), 1.0, 0.3, max_step)


def sweep(data_dir: Path, output: Path, command: str) -> Path:
    """Train every setting with every seed; write all accuracies to `output`/sweep.json."""
    torch.set_flush_denormal(True)
    whole = load(BASE.dataset, data_dir)
    images, labels = whole.train
    data = replace(
        whole,
        train=Split(images[:-HELD_OUT], labels[:-HELD_OUT]),
        test=Split(images[-HELD_OUT:], labels[-HELD_OUT:]),
    )
    origin = environment(torch.device("cpu"))
    runs: list[dict[str, Any]] = []
    todo = list(itertools.product(settings(), SEEDS))
    default_step = masktorch.functional.MAX_STEP
    with progress_bar(total=len(todo) * BASE.epochs, desc="sweep", unit="epoch") as bar:
        for setting, seed in todo:
            configuration = replace(BASE, seed=seed, lr=setting.lr).for_arm("mask")
            model = build(configuration, data.image_shape)
            masktorch.wrap(model, setting.estimator, bias=True, init=setting.init)
            masktorch.functional.MAX_STEP = setting.max_step
            with tempfile.TemporaryDirectory() as folder:
                history, _ = train(model, data, configuration, Path(folder) / "checkpoint", bar)
            masktorch.functional.MAX_STEP = default_step
            runs.append(
                {
                    **asdict(setting),
                    "estimator": repr(setting.estimator),
                    "seed": seed,
                    "held_out_accuracy": [epoch.test_accuracy for epoch in history],
                    "masked_fraction": masktorch.report(model).masked_fraction,
                }
            )
    path = output / "sweep.json"
    with replacing(path) as partial:
        content = {"command": command, "environment": origin, "runs": runs}
        partial.write_text(json.dumps(content, indent=1) + "\n")
    return path


def markdown(path: Path) -> str:
    """A row per setting: held-out accuracy after the last epoch, mean (and range) of the seeds."""
    runs = json.loads(path.read_text())["runs"]
    lines = [
        "| estimator | scores start | learning rate | bound | held-out accuracy | masked |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    keys = ("estimator", "init", "lr", "max_step")
    for setting, group in itertools.groupby(runs, key=lambda run: [run[key] for key in keys]):
        same = list(group)
        accuracies = [100 * run["held_out_accuracy"][-1] for run in same]
        masked = sum(100 * run["masked_fraction"] for run in same) / len(same)
        estimator, init, lr, bound = setting
        lines.append(
            f"| `{estimator}` | {init:g} | {lr:g} | {bound if 'Inter' in estimator else '-'} "
            f"| {sum(accuracies) / len(same):.1f} % ({min(accuracies):.1f} to "
            f"{max(accuracies):.1f}) | {masked:.0f} % |"
        )
    return "\n".join(lines)
