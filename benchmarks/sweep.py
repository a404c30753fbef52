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
from benchmarks.configuration import Configuration
from benchmarks.experiment import ESTIMATORS, build, images
from benchmarks.results import environment
from benchmarks.table import spread
from benchmarks.training import progress_bar, train


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
    for name, score_lr in [
        ("threshold", 0.01),
        *itertools.product(("bernoulli", "intermediate"), (0.01, 0.03, 0.1)),
    ]:
        yield Setting(replace(base, score_lr=score_lr), ESTIMATORS[name])


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
            masktorch.wrap(
                model, setting.estimator, bias=True, init=configuration.init,
                rescale=bool(configuration.rescale),
            )  # fmt: skip
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


OUTCOMES = ("seed", "held_out_accuracy", "masked_fraction")


def markdown(path: Path) -> str:
    """A row per setting, a column for all that varies: held-out accuracy after the last epoch and
    masked fraction, mean and range of the seeds."""
    runs = json.loads(path.read_text())["runs"]
    varied = [
        key for key in runs[0]
        if key not in OUTCOMES and any(run[key] != runs[0][key] for run in runs)
    ]  # fmt: skip
    header = [*varied, "held-out accuracy (%)", "masked (%)"]
    lines = [f"| {' | '.join(header)} |", "|" + " --- |" * len(header)]
    for setting, group in itertools.groupby(runs, key=lambda run: [run[key] for key in varied]):
        same = list(group)
        accuracy = spread([100 * run["held_out_accuracy"][-1] for run in same], 1)
        masked = spread([100 * run["masked_fraction"] for run in same], 0)
        lines.append(f"| {' | '.join([*map(str, setting), accuracy, masked])} |")
    return "\n".join(lines)
