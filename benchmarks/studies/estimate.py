"""How long a run will take on this machine, from a few steps on random images."""

import time
from functools import cache

import torch

from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.data import CLASSES, Split
from benchmarks.experiment.networks import build
from benchmarks.experiment.training import train_epoch

SIZES = {"digits": (1, 8, 1_438), "mnist": (1, 28, 60_000), "cifar10": (3, 32, 50_000)}
TIMED_STEPS, LONG = 5, 2.0  # where a step takes longer than so many seconds, one is enough


def expected_seconds(configuration: Configuration) -> float:
    """Of all epochs: their training alone, of the plain network."""
    whole = SIZES[configuration.dataset][2] - (configuration.held_out or 0)
    steps = -(-(configuration.train_images or whole) // configuration.batch_size)
    alike = Configuration(
        configuration.dataset,
        arm="weights",
        network=configuration.network,
        depth=configuration.depth,
        width=configuration.width,
        batch_size=configuration.batch_size,
        precision=configuration.precision,
        image_size=configuration.image_size,
        augmentation=configuration.augmentation,
    )
    return configuration.epochs * steps * _step_seconds(alike)


@cache
def _step_seconds(configuration: Configuration) -> float:
    channels, side, _ = SIZES[configuration.dataset]
    side = configuration.image_size or side
    model = build(configuration, (channels, side, side)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.Adam(model.parameters(), fused=True)
    took = 0.0
    for steps in (1, 1, TIMED_STEPS):  # the first warms up
        images = torch.randint(
            256, (steps * configuration.batch_size, channels, side, side), dtype=torch.uint8
        )
        split = Split(images, torch.randint(CLASSES, (len(images),)))
        start = time.perf_counter()
        train_epoch(model, optimiser, split, configuration, 1, "timed")
        took = (time.perf_counter() - start) / steps
        if took > LONG:
            break
    return took
