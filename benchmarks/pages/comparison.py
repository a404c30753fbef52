"""The arms of one experiment, and the difference of two of them, seed by seed."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from scipy import stats  # type: ignore[import-untyped]

from benchmarks.experiment.arms import ARMS, CONTROL
from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.results import (
    Groups,
    Layer,
    Result,
    group_by_seed,
    read_results,
)

PAIRS = (
    ("mask", "weights"),
    ("mix", "weights"),
    (CONTROL, "weights"),
    ("mix", CONTROL),
)
UPPER_QUANTILE = 0.975  # of a 95 % interval
ARM_ORDER = {name: number for number, name in enumerate(ARMS)}


class Verdict(Enum):
    BETTER = "better"
    WORSE = "worse"
    UNDECIDED = "cannot tell"


@dataclass(frozen=True)
class Paired:
    """The differences of two arms, seed by seed.

    Arms of one seed share initial weights and images, so their difference varies less
    than the accuracies of either.
    """

    differences: tuple[float, ...]  # of accuracies, one per seed

    @property
    def mean(self) -> float:
        return mean(self.differences)

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """Student's 95 % interval of the mean; None for a single seed."""
        seeds = len(self.differences)
        if seeds == 1:
            return None
        quantile = stats.t.ppf(UPPER_QUANTILE, seeds - 1)
        half = float(quantile * stats.sem(self.differences))
        return self.mean - half, self.mean + half

    @property
    def verdict(self) -> Verdict | None:
        """Undecided if the interval contains 0; None for a single seed."""
        if self.interval is None:
            return None
        low, high = self.interval
        if low > 0:
            return Verdict.BETTER
        if high < 0:
            return Verdict.WORSE
        return Verdict.UNDECIDED

    @property
    def in_words(self) -> str:
        """In percentage points: -1.24 (-1.64 to -0.84), worse."""
        return f"{self}, {self.verdict.value}" if self.verdict else str(self)

    def __str__(self) -> str:
        """In percentage points: +1.24 (-0.64 to +3.12)."""
        average = f"{100 * self.mean:+.2f}"
        if self.interval is None:
            return f"{average} (one seed)"
        low, high = self.interval
        return f"{average} ({100 * low:+.2f} to {100 * high:+.2f})"


class Difference(NamedTuple):
    pair: tuple[str, str]  # arms: the accuracy of the first minus that of the second
    configuration: Configuration  # of the first
    best: Paired
    last: Paired


Measure = Callable[[Result], float]


def final_accuracy(run: Result) -> float:
    return run.final_accuracy


def best_accuracy(run: Result) -> float:
    return run.best.test_accuracy


def paired(
    runs: Sequence[Result], others: Sequence[Result], measure: Measure = final_accuracy
) -> Paired:
    """Return the differences over the seeds that both have."""
    theirs = {run.configuration.seed: measure(run) for run in others}
    return Paired(
        tuple(
            measure(run) - theirs[run.configuration.seed]
            for run in runs
            if run.configuration.seed in theirs
        )
    )


def published_numbers(dataset: str) -> dict[str, Any]:
    """Return the blog's numbers, digitised from its figures; empty without any."""
    content = json.loads(Path(__file__).with_name("reference.json").read_text())
    if dataset not in content["datasets"]:
        return {}
    found: dict[str, Any] = content["datasets"][dataset]
    return {**found, "layers": [Layer(**layer) for layer in found["utilization"]]}


@dataclass(frozen=True)
class Experiment:
    """The arms of a study that share network, images and all other common settings."""

    study: str
    groups: Groups  # by second learning rate, then in the order of ARMS

    @property
    def results(self) -> list[Result]:
        return [result for runs in self.groups.values() for result in runs]

    @property
    def configuration(self) -> Configuration:
        """One of its configurations, for what all share."""
        return self.results[0].configuration

    @property
    def published(self) -> dict[str, Any]:
        """The blog's numbers; empty for networks other than wide residual ones."""
        if self.configuration.network != "wrn":
            return {}
        return published_numbers(self.configuration.dataset)

    @property
    def deviations(self) -> list[str]:
        """Every setting that is not the blog's: `width` 1 (8)."""
        found: dict[str, None] = {}  # a set that keeps the order
        for configuration in self.groups:
            changes = configuration.changes(configuration.as_published)
            for name, (here, there) in changes.items():
                blogs = "all" if there is None else there
                found[f"`{name}` {here} ({blogs})"] = None
        return list(found)

    def differences(
        self, pairs: Sequence[tuple[str, str]] = PAIRS
    ) -> Iterator[Difference]:
        """Yield the difference of each pair of arms that have seeds in common."""
        for configuration, (arm, other) in product(self.groups, pairs):
            if configuration.arm != arm:
                continue
            runs = self.groups[configuration]
            others = self.groups.get(configuration.for_arm(other), [])
            last = paired(runs, others)
            if last.differences:
                best = paired(runs, others, best_accuracy)
                yield Difference((arm, other), configuration, best, last)

    def phases(self) -> Iterator["Experiment"]:
        """Split by second learning rate; each part has all arms without one."""
        second_lrs = dict.fromkeys(c.mix_lr for c in self.groups if c.mix_lr) or [None]
        for lr in second_lrs:
            groups = {
                c: runs for c, runs in self.groups.items() if c.mix_lr in (None, lr)
            }
            yield Experiment(self.study, groups)


def read_experiments(study: Path) -> list[Experiment]:
    """Return the experiments in a folder of results, with the blog's estimator only."""
    groups = group_by_seed(read_results(study))
    found: dict[Configuration, Groups] = {}
    for configuration in sorted(groups, key=_page_order):
        if configuration.estimator in (None, "threshold"):
            shared = configuration.for_arm("weights")
            found.setdefault(shared, {})[configuration] = groups[configuration]
    return [Experiment(study.name, arms) for arms in found.values()]


def _page_order(configuration: Configuration) -> tuple[float, int]:
    return configuration.mix_lr or 0, ARM_ORDER[configuration.arm]
