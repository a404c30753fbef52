"""The arms of one experiment side by side, and the difference of two of them, seed by seed."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from operator import attrgetter
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from scipy import stats  # type: ignore[import-untyped]

from benchmarks.experiment.configuration import ARMS, Configuration
from benchmarks.experiment.results import Groups, Layer, Result, grouped, read_results

CONTROL = "weights-then-weights"
PAIRS = (("mask", "weights"), ("mix", "weights"), (CONTROL, "weights"), ("mix", CONTROL))


def blog(dataset: str) -> dict[str, Any]:
    """The blog's own numbers, digitised from its figures; empty where it has none."""
    content = json.loads(Path(__file__).with_name("reference.json").read_text())
    found: dict[str, Any] = content["datasets"].get(dataset, {})
    return found and found | {"layers": [Layer(**layer) for layer in found["utilization"]]}


@dataclass(frozen=True)
class Paired:
    """Of two arms, which share initial weights and images: the difference says more than both."""

    differences: tuple[float, ...]  # of accuracies, one per seed

    @property
    def mean(self) -> float:
        return mean(self.differences)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's, 95 %; None for a single seed."""
        n = len(self.differences)
        if n == 1:
            return None
        half = float(stats.t.ppf(0.975, n - 1) * stats.sem(self.differences))
        return self.mean - half, self.mean + half

    @property
    def sign(self) -> int | None:
        """1 or -1 where the interval lies above or below 0, 0 where it holds 0."""
        return (self.interval[0] > 0) - (self.interval[1] < 0) if self.interval else None

    def __str__(self) -> str:
        """In percentage points."""
        ends = [f"{100 * end:+.2f}" for end in self.interval or ()]
        return f"{100 * self.mean:+.2f} ({' to '.join(ends) or 'one seed'})"


class Difference(NamedTuple):
    pair: tuple[str, str]  # of the arms: the first less the second
    of: Configuration  # of the first
    best: Paired
    last: Paired


def paired(some: Sequence[Result], others: Sequence[Result], of: str = "anew") -> Paired:
    """Over the seeds that both have."""
    known = {run.configuration.seed: attrgetter(of)(run) for run in others}
    both = (run for run in some if run.configuration.seed in known)
    return Paired(tuple(attrgetter(of)(run) - known[run.configuration.seed] for run in both))


@dataclass(frozen=True)
class Experiment:
    """The arms of a study that share network, images and whatever else all of them use."""

    study: str
    groups: Groups  # by learning rate of the arms that go on, then in the order of ARMS

    @property
    def results(self) -> list[Result]:
        return [result for runs in self.groups.values() for result in runs]

    @property
    def blog(self) -> dict[str, Any]:
        """The blog's numbers, where they compare: it has wide residual networks alone."""
        of = self.results[0].configuration
        return blog(of.dataset) if of.network == "wrn" else {}

    @property
    def deviations(self) -> dict[str, None]:
        """Every field of the configurations that is not the blog's."""
        return {
            f"`{name}` {here} ({'all' if there is None else there})": None
            for of in self.groups
            for name, (here, there) in of.changes(of.blogs).items()
        }

    def differences(self, pairs: Sequence[tuple[str, str]] = PAIRS) -> Iterator[Difference]:
        """Of each pair of arms, over the seeds that both have."""
        for one, (arm, other) in product(self.groups, pairs):
            runs = self.groups[one], self.groups.get(one.for_arm(other), ())
            best, last = paired(*runs, "best.test_accuracy"), paired(*runs)
            if one.arm == arm and last.differences:
                yield Difference((arm, other), one, best, last)

    def phases(self) -> Iterator["Experiment"]:
        """One per learning rate of the arms that go on, with all that start anew."""
        for lr in dict.fromkeys(of.mix_lr for of in self.groups if of.mix_lr) or (None,):
            of_lr = {of: runs for of, runs in self.groups.items() if of.mix_lr in (None, lr)}
            yield Experiment(self.study, of_lr)


def experiments(study: Path) -> list[Experiment]:
    """Those of the blog's estimator in a folder of results."""
    found: dict[Configuration, Groups] = {}
    groups = grouped(read_results(study))
    for of in sorted(groups, key=lambda of: (of.mix_lr or 0, ARMS.index(of.arm))):
        if of.estimator in (None, "threshold"):
            found.setdefault(of.for_arm("weights"), {})[of] = groups[of]
    return [Experiment(study.name, arms) for arms in found.values()]
