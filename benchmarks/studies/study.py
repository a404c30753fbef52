"""A study is data: what it asks, and the runs that answer it. Here is what makes them."""

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from benchmarks.experiment import arms
from benchmarks.experiment.configuration import Configuration, option
from benchmarks.experiment.results import Result, read_results

Results: TypeAlias = Callable[[str], Sequence[Result]]  # of a study by its name, so far


@dataclass(frozen=True)
class Study:
    name: str  # and the folder of its results
    question: str
    runs: Callable[[Results], Iterable[Configuration]]  # each after those that it goes on from

    def missing(self, output: Path) -> list[Configuration]:
        """The runs that have no result yet; more may follow from the results of these."""
        wanted = self.runs(lambda study: read_results(output / study))
        done = {result.configuration for result in read_results(output / self.name)}
        return [run for run in dict.fromkeys(wanted) if run not in done]


def run(study: Study, data_dir: Path, output: Path, device: str) -> Iterator[Path]:
    """Make every result of a study that is missing, one after the other, on this machine."""
    while missing := study.missing(output):
        for configuration in missing:
            yield make(configuration, data_dir, output / study.name, device)


def make(configuration: Configuration, data_dir: Path, folder: Path, device: str) -> Path:
    """One result; the command in it makes the same one."""
    line = command(configuration, folder)
    return arms.run(configuration, [configuration.arm], data_dir, folder, device, line)[-1]


def command(configuration: Configuration, folder: Path) -> str:
    """What makes one run: all that is not the blog's."""
    words = ["python", "-m", "benchmarks", "run", "--dataset", configuration.dataset]
    words += ["--arms", configuration.arm]
    for name, (value, _) in configuration.changes(configuration.blogs).items():
        if isinstance(value, bool):
            words.append(option(name) if value else option(f"no_{name}"))
        elif value is not None:
            words += [option(name), str(value)]
    return shlex.join([*words, "--output", str(folder)])
