"""A study is data: the runs that answer a question. This module makes their results."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch.utils.benchmark import Timer

from benchmarks import Location
from benchmarks.experiment import runner
from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.data import Split
from benchmarks.experiment.networks import CLASSES, build
from benchmarks.experiment.results import Result, read_results
from benchmarks.experiment.training import adam, train_epoch

ResultsOf: TypeAlias = Callable[[str], Sequence[Result]]  # of a study, by name, so far
RETRIES = 10  # of a job whose worker is lost; an error of the job itself ends the study


class ImageSet(NamedTuple):
    channels: int
    side: int
    train_images: int


# To estimate times without reading the data.
IMAGE_SETS = {
    "digits": ImageSet(1, 8, 1_438),
    "mnist": ImageSet(1, 28, 60_000),
    "cifar10": ImageSet(3, 32, 50_000),
}


@dataclass(frozen=True)
class Study:
    name: str  # also of its folder of results
    runs: Callable[[ResultsOf], Iterable[Configuration]]
    """Yields each run after the one it starts from. It may depend on the results so
    far, of this study or of others; new runs are made in the next round."""

    def missing(self, output: Path) -> list[Configuration]:
        """Return the runs without a result; more may follow from theirs."""
        wanted = dict.fromkeys(self.runs(lambda name: read_results(output / name)))
        results = read_results(output / self.name)
        done = {result.configuration for result in results}
        return [configuration for configuration in wanted if configuration not in done]


def run(study: Study, location: Location) -> Iterator[Result]:
    """Make the missing results of a study one after the other, on this machine."""
    folder = _folder_of(study, location)
    while missing := study.missing(location.output):
        for configuration in missing:
            yield make(configuration, folder)


def run_on_cluster(
    study: Study, location: Location, cpus: float, gpus: float
) -> Iterator[Result]:
    """Make the missing results as jobs of a Ray cluster, as many at a time as fit.

    A job whose worker was lost resumes from its run's checkpoint, which lies in the
    folder that all machines share.
    """
    import ray  # of the extra `cluster`

    working_directory, folder = Path.cwd(), _folder_of(study, location)

    def job(before: Result | None, configuration: Configuration) -> Result:
        """Ray starts it once `before` exists: the result of the run it starts from."""
        os.chdir(working_directory)
        return make(configuration, folder)

    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(job).remote
    while missing := study.missing(location.output):
        jobs: dict[Configuration | None, Any] = {}
        for configuration in missing:
            jobs[configuration] = remote(jobs.get(configuration.start), configuration)
        waiting = list(jobs.values())
        while waiting:
            finished, waiting = ray.wait(waiting)
            yield from ray.get(finished)


def run_against_the_clock(
    study: Study, location: Location, minutes: float, at_once: int
) -> None:
    """Make missing results in processes of their own until the time is over.

    Runs that start from each other follow each other; `at_once` such chains run at the
    same time. A run that is stopped resumes from its checkpoint at the next call.

    Raises:
        subprocess.CalledProcessError: if a run fails, after the others have ended.
    """
    deadline = time.monotonic() + 60 * minutes
    chains = _chains(study.missing(location.output))
    run_chain = partial(_run_chain, _folder_of(study, location), deadline)
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(run_chain, chains))


def _chains(runs: Iterable[Configuration]) -> list[list[Configuration]]:
    """Group runs with the run they start from, in their order."""
    chains: dict[Configuration, list[Configuration]] = {}
    for configuration in runs:
        first = configuration.start or configuration
        chains.setdefault(first, []).append(configuration)
    return list(chains.values())


def _run_chain(
    location: Location, deadline: float, chain: Sequence[Configuration]
) -> None:
    where = ["--data-dir", str(location.data_dir), "--device", location.device]
    if location.compile is not None:
        where += ["--compile", location.compile]
    for configuration in chain:
        _, *arguments = shlex.split(command(configuration, location.output))
        left = max(0, deadline - time.monotonic())
        try:
            subprocess.run(
                [sys.executable, *arguments, *where], check=True, timeout=left
            )
        except subprocess.TimeoutExpired:
            return


def _folder_of(study: Study, location: Location) -> Location:
    return replace(location, output=location.output / study.name)


def make(configuration: Configuration, location: Location) -> Result:
    """Make one result; the command in it makes the same one."""
    line = command(configuration, location.output)
    return runner.run(configuration, [configuration.arm], location, line)[-1]


def command(configuration: Configuration, folder: Path) -> str:
    """Return the command of one run, with all options that are not the blog's."""
    words = ["python", "-m", "benchmarks", "run", "--dataset", configuration.dataset]
    words += ["--arms", configuration.arm]
    changes = configuration.changes(configuration.as_published)
    for name, (value, _) in changes.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif value is not None:
            words += [f"--{option}", str(value)]
    return shlex.join([*words, "--output", str(folder)])


def expected_seconds(configuration: Configuration) -> float:
    """Estimate the time of all training steps from one step without a mask."""
    available = IMAGE_SETS[configuration.dataset].train_images
    images = configuration.train_images or available - (configuration.held_out or 0)
    steps = -(-images // configuration.batch_size)  # rounded up
    # Settings that don't change the time of a step are made equal: one measurement.
    plain = configuration.for_arm("weights")
    plain = replace(plain, epochs=1, lr=0, seed=0, held_out=None)
    return configuration.epochs * steps * step_seconds(plain)


@cache
def step_seconds(configuration: Configuration) -> float:
    """Measure a training step on random images."""
    channels, side, _ = IMAGE_SETS[configuration.dataset]
    side = configuration.image_size or side
    shape = (channels, side, side)
    model = build(configuration, shape)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch = configuration.batch_size
    images = torch.randint(256, (batch, *shape), dtype=torch.uint8)
    split = Split(images, torch.randint(CLASSES, (batch,)))
    optimiser = adam(model, configuration)
    step = partial(train_epoch, model, optimiser, split, configuration, 1)
    timer = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=1).median
