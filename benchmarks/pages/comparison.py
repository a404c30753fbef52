"""The arms of one experiment side by side, and the difference of two of them, seed by seed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from statistics import mean

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

from benchmarks import BenchmarkError
from benchmarks.experiment.configuration import ARMS, Configuration
from benchmarks.experiment.results import Result

CONTROL = "weights-then-weights"
PAIRS = (("mask", "weights"), ("mix", "weights"), (CONTROL, "weights"), ("mix", CONTROL))


@dataclass(frozen=True)
class Paired:
    """Two arms of a seed share initial weights and images, so that their difference says more than
    the two apart."""

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
        half = stats.t.ppf(0.975, n - 1) * float(np.std(self.differences, ddof=1)) / n**0.5
        return self.mean - half, self.mean + half

    @property
    def sign(self) -> int | None:
        """1 or -1 where the interval lies above or below 0, 0 where it holds 0."""
        if self.interval is None:
            return None
        low, high = self.interval
        return 1 if low > 0 else -1 if high < 0 else 0

    def __str__(self) -> str:
        """In percentage points."""
        if self.interval is None:
            return f"{100 * self.mean:+.2f} (one seed)"
        low, high = self.interval
        return f"{100 * self.mean:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"


@dataclass(frozen=True)
class Comparison:
    """The runs of one study and data set that go together: the arms that start anew, and with one
    learning rate those that go on from them."""

    study: str
    arms: dict[str, dict[int, Result]]  # by seed; of one configuration each, but for the seed

    @property
    def results(self) -> list[Result]:
        return [result for runs in self.arms.values() for result in runs.values()]

    @property
    def of(self) -> Configuration:
        """What all have in common, and the learning rate of the arms that go on."""
        return self.results[-1].configuration

    def paired(self, arm: str, other: str, epoch: str = "last") -> Paired | None:
        """`arm` less `other` over the seeds that both have; None where they have none."""
        one, two = self.arms.get(arm, {}), self.arms.get(other, {})
        seeds = sorted(one.keys() & two.keys())
        if not seeds:
            return None
        return Paired(tuple(one[s].accuracy(epoch) - two[s].accuracy(epoch) for s in seeds))


def comparisons(study: str, results: Sequence[Result]) -> Iterator[Comparison]:
    """Of the blog's estimator, one per data set and learning rate of the arms that go on."""
    ours = [r for r in results if r.configuration.estimator in (None, "threshold")]
    for dataset in dict.fromkeys(r.configuration.dataset for r in ours):
        here = [r for r in ours if r.configuration.dataset == dataset]
        lrs = sorted({lr for r in here if (lr := r.configuration.mix_lr) is not None})
        for lr in lrs or (None,):
            arms: dict[str, dict[int, Result]] = {}
            for result in sorted(here, key=lambda r: ARMS.index(r.configuration.arm)):
                if result.configuration.mix_lr in (None, lr):
                    runs = arms.setdefault(result.configuration.arm, {})
                    for other in list(runs.values())[:1]:
                        _check_seeds_alone_differ(other.configuration, result.configuration)
                    runs[result.configuration.seed] = result
            yield Comparison(study, arms)


def _check_seeds_alone_differ(one: Configuration, other: Configuration) -> None:
    differing = [f.name for f in fields(one) if getattr(one, f.name) != getattr(other, f.name)]
    if set(differing) - {"seed"}:
        raise BenchmarkError(
            f"{one.name}.json and {other.name}.json can't be shown as seeds of one run: they "
            f"differ in {', '.join(differing)}. Move one to another folder."
        )
