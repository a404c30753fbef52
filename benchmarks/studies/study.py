"""A study is data: the runs that answer a question. Here is what makes them."""

import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch.utils.benchmark import Timer

from benchmarks import Place
from benchmarks.experiment import arms
from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.data import Split
from benchmarks.experiment.networks import CLASSES, build
from benchmarks.experiment.results import Result, read_results
from benchmarks.experiment.training import adam, train_epoch

Results: TypeAlias = Callable[[str], Sequence[Result]]  # of a study by its name, so far
RETRIES = 10  # of a job whose worker is lost; an error of its own ends the study
# Channels, side and number of the training images, for an estimate without any.
SIZES = {"digits": (1, 8, 1_438), "mnist": (1, 28, 60_000), "cifar10": (3, 32, 50_000)}


@dataclass(frozen=True)
class Study:
    name: str  # and the folder of its results
    runs: Callable[[Results], Iterable[Configuration]]  # each after those that it goes on from

    def missing(self, output: Path) -> list[Configuration]:
        """The runs that have no result yet; more may follow from the results of these."""
        wanted = self.runs(lambda study: read_results(output / study))
        done = {result.configuration for result in read_results(output / self.name)}
        return [run for run in dict.fromkeys(wanted) if run not in done]


def run(study: Study, place: Place) -> Iterator[Path]:
    """Make every result of a study that is missing, one after the other, on this machine."""
    while missing := study.missing(place.output):
        for configuration in missing:
            yield make(configuration, replace(place, output=place.output / study.name))


def run_on_cluster(study: Study, place: Place, cpus: float, gpus: float) -> Iterator[Path]:
    """Make them as jobs of a Ray cluster, as many at a time as there is room for. A job whose
    worker was lost goes on from its run's checkpoint, in the folder all machines share."""
    import ray  # of the extra `cluster`

    here, folder = Path.cwd(), replace(place, output=place.output / study.name)

    def job(before: Path | None, configuration: Configuration) -> Path:
        """Ray runs it when it has `before`, the result of the run it goes on from."""
        os.chdir(here)
        return make(configuration, folder)

    start = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(job).remote
    while missing := study.missing(place.output):
        jobs: dict[Configuration | None, Any] = {}
        for configuration in missing:
            jobs[configuration] = start(jobs.get(configuration.start), configuration)
        waiting = list(jobs.values())
        while waiting:
            done, waiting = ray.wait(waiting)
            yield from ray.get(done)


def make(configuration: Configuration, place: Place) -> Path:
    """One result; the command in it makes the same one."""
    line = command(configuration, place.output)
    return arms.run(configuration, [configuration.arm], place, line)[-1]


def command(configuration: Configuration, folder: Path) -> str:
    """What makes one run: all that is not the blog's."""
    words = ["python", "-m", "benchmarks", "run", "--dataset", configuration.dataset]
    words += ["--arms", configuration.arm]
    for name, (value, _) in configuration.changes(configuration.blogs).items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif value is not None:
            words += [f"--{option}", str(value)]
    return shlex.join([*words, "--output", str(folder)])


def expected_seconds(configuration: Configuration) -> float:
    """Of all epochs: their training alone, of the plain network."""
    whole = SIZES[configuration.dataset][2] - (configuration.held_out or 0)
    steps = -(-(configuration.train_images or whole) // configuration.batch_size)
    alike = replace(configuration.for_arm("weights"), epochs=1, lr=0, seed=0, held_out=None)
    return configuration.epochs * steps * step_seconds(alike)


@cache
def step_seconds(configuration: Configuration) -> float:
    """On random images."""
    channels, side, _ = SIZES[configuration.dataset]
    shape = (channels, *[configuration.image_size or side] * 2)
    model = build(configuration, shape).to(memory_format=torch.channels_last)  # type: ignore
    images = torch.randint(256, (configuration.batch_size, *shape), dtype=torch.uint8)
    split = Split(images, torch.randint(CLASSES, (configuration.batch_size,)))
    step = partial(train_epoch, model, adam(model, configuration), split, configuration, 1)
    timer = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=1).median
