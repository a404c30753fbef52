"""How long a run will take on this machine, from a few steps on random images."""

import time
from functools import cache

import torch

from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.data import Split
from benchmarks.experiment.networks import CLASSES, build
from benchmarks.experiment.training import adam, train_epoch

SIZES = {"digits": (1, 8, 1_438), "mnist": (1, 28, 60_000), "cifar10": (3, 32, 50_000)}
DECIDING = (
    "dataset", "network", "depth", "width", "batch_size", "precision", "image_size", "augmentation",
)  # fmt: skip
TIMED_STEPS, LONG = 5, 2.0  # where a step takes longer than so many seconds, one is enough


def expected_seconds(configuration: Configuration) -> float:
    """Of all epochs: their training alone, of the plain network."""
    whole = SIZES[configuration.dataset][2] - (configuration.held_out or 0)
    steps = -(-(configuration.train_images or whole) // configuration.batch_size)
    alike = Configuration(**{name: getattr(configuration, name) for name in DECIDING})
    return configuration.epochs * steps * _step_seconds(alike.for_arm("weights"))


@cache
def _step_seconds(configuration: Configuration) -> float:
    channels, side, _ = SIZES[configuration.dataset]
    shape = (channels, *[configuration.image_size or side] * 2)
    model = build(configuration, shape).to(memory_format=torch.channels_last)  # type: ignore
    optimiser, took = adam(model, configuration), 0.0
    for steps in (1, 1, TIMED_STEPS):  # the first warms up
        count = steps * configuration.batch_size
        images = torch.randint(256, (count, *shape), dtype=torch.uint8)
        split = Split(images, torch.randint(CLASSES, (count,)))
        start = time.perf_counter()
        train_epoch(model, optimiser, split, configuration, 1)
        took = (time.perf_counter() - start) / steps
        if took > LONG:
            break
    return took
