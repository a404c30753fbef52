"""Settings of the estimators, compared where they are cheap, mask only.

The defaults of `masktorch.IntermediateSampling` come from `lenet`, the learning rates of the scores
in the wide residual network from `wrn`, what the literature's networks are trained with from
`literature` and `finalists`. Accuracy is measured on images held out of the training set; the test
set is not touched.
"""

import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import masktorch
from benchmarks.atomic import replacing
from benchmarks.experiment import masks
from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.data import images
from benchmarks.experiment.networks import build
from benchmarks.experiment.training import progress_bar, train
from benchmarks.provenance import environment


@dataclass(frozen=True)
class Setting:
    configuration: Configuration
    estimator: masktorch.Estimator
    max_step: float = masktorch.functional.MAX_STEP  # intermediate sampling's bound on its step


def lenet() -> Iterator[Setting]:
    """LeNet-300-100 on MNIST, two seeds."""
    base = Configuration(
        "mnist", network="lenet-300-100", epochs=3, augmentation=False, held_out=10_000
    )

    def setting(
        estimator: masktorch.Estimator,
        init: float,
        lr: float,
        max_step: float = masktorch.functional.MAX_STEP,
    ) -> Iterator[Setting]:
        for seed in (0, 1):
            yield Setting(replace(base, init=init, lr=lr, seed=seed), estimator, max_step)

    for lr in (3e-3, 1e-2, 3e-2):
        yield from setting(masktorch.Threshold(), 1.0, lr)
    for init, lr in itertools.product((0.0, 1.0), (0.1, 0.3, 1.0)):
        yield from setting(masktorch.Bernoulli(), init, lr)
    for init, step_size, lr in itertools.product((0.0, 1.0), (0.03, 0.1, 0.3), (0.1, 0.3, 1.0)):
        yield from setting(masktorch.IntermediateSampling(step_size), init, lr)
    for max_step in (0.25, 0.9):
        yield from setting(masktorch.IntermediateSampling(0.1), 1.0, 0.3, max_step)


def wrn() -> Iterator[Setting]:
    """A wide residual network on a tenth of CIFAR-10: batch norm trains beside the scores."""
    base = Configuration(
        "cifar10", depth=16, width=1, init=1.0, epochs=20, precision="bfloat16",
        train_images=5_000, held_out=2_000,
    )  # fmt: skip
    yield Setting(replace(base, score_lr=0.01), masktorch.Threshold())
    for estimator in (masktorch.Bernoulli(), masktorch.IntermediateSampling()):
        for score_lr in (0.01, 0.03, 0.1):
            yield Setting(replace(base, score_lr=score_lr), estimator)


ZHOU = Configuration(
    "mnist", network="lenet-300-100", init=1.0, rescale=True, weights="signed-constant",
    schedule="cosine", epochs=30, augmentation=False, held_out=10_000,
)  # fmt: skip


def literature() -> Iterator[Setting]:
    """LeNet-300-100 on MNIST with what Zhou et al. add to the mask, for ten epochs."""
    base = replace(ZHOU, epochs=10)
    for lr in (0.01, 0.03, 0.1, 0.3):
        yield Setting(replace(base, lr=lr), masktorch.Threshold())
    yield Setting(replace(base, lr=0.1, rescale=False), masktorch.Threshold())
    yield Setting(replace(base, lr=0.1, weights="glorot"), masktorch.Threshold())
    yield Setting(replace(base, lr=0.1, batch_size=64), masktorch.Threshold())
    for estimator in (masktorch.IntermediateSampling(), masktorch.Bernoulli()):
        for lr in (0.1, 0.3):
            yield Setting(replace(base, lr=lr), estimator)


def finalists() -> Iterator[Setting]:
    """The two best learning rates of `literature`, for as many epochs as `run` then trains."""
    for lr in (0.03, 0.1):
        yield Setting(replace(ZHOU, lr=lr), masktorch.Threshold())


SWEEPS: dict[str, Callable[[], Iterator[Setting]]] = {
    "lenet": lenet,
    "wrn": wrn,
    "literature": literature,
    "finalists": finalists,
}


def sweep(which: str, data_dir: Path, output: Path, command: str) -> Path:
    """Train with every setting of a sweep; write all accuracies to `output`/`which`.json."""
    torch.set_flush_denormal(True)
    path = output / f"{which}.json"
    origin = environment(torch.device("cpu"))
    runs: list[dict[str, Any]] = []
    settings = list(SWEEPS[which]())
    data = images(settings[0].configuration, data_dir)
    epochs = sum(setting.configuration.epochs for setting in settings)
    default_step = masktorch.functional.MAX_STEP
    with progress_bar(total=epochs, desc=f"sweep {which}", unit="epoch") as bar:
        for setting in settings:
            configuration = setting.configuration.for_arm("mask")
            model = build(configuration, data.image_shape)
            masks.wrap(model, configuration, setting.estimator)
            masktorch.functional.MAX_STEP = setting.max_step
            with tempfile.TemporaryDirectory() as folder:
                history, _ = train(model, data, configuration, Path(folder) / "checkpoint", bar)
            masktorch.functional.MAX_STEP = default_step
            runs.append(
                {
                    **asdict(configuration),
                    "estimator": repr(setting.estimator),
                    "max_step": setting.max_step,
                    "held_out_accuracy": [epoch.test_accuracy for epoch in history],
                    "masked_fraction": masktorch.report(model).masked_fraction,
                }
            )
            with replacing(path) as partial:
                content = {"command": command, "environment": origin, "runs": runs}
                partial.write_text(json.dumps(content, indent=1) + "\n")
    return path
