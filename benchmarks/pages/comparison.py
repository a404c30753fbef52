"""The arms of one experiment side by side, and the difference of two of them, seed by seed."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from scipy import stats  # type: ignore[import-untyped]

from benchmarks import BenchmarkError
from benchmarks.experiment.configuration import ARMS, STARTS_FROM, Configuration
from benchmarks.experiment.results import Layer, Result, read_results
from benchmarks.pages.render import DATASETS

CONTROL = "weights-then-weights"
PAIRS = (("mask", "weights"), ("mix", "weights"), (CONTROL, "weights"), ("mix", CONTROL))


def blog(dataset: str) -> dict[str, Any]:
    """The blog's own numbers, digitised from its figures (how exactly: the head of the JSON file);
    empty where it has none."""
    content = json.loads(Path(__file__).with_name("reference.json").read_text())
    found: dict[str, Any] = content["datasets"].get(dataset, {})
    return found and found | {"layers": [Layer(**layer) for layer in found["utilization"]]}


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


@dataclass(frozen=True)
class Comparison:
    """The runs of one study and data set that go together: the arms that start anew, and with one
    learning rate those that go on from them."""

    study: str
    arms: dict[str, list[Result]]  # a seed each; of one configuration, but for the seed
    first: bool  # of its study and data set; the others have the same arms that start anew

    @property
    def results(self) -> list[Result]:
        return [result for runs in self.arms.values() for result in runs]

    @property
    def of(self) -> Configuration:
        """What all have in common, and the learning rate of the arms that go on."""
        return self.results[-1].configuration

    @property
    def name(self) -> str:
        return f"{DATASETS[self.of.dataset]}, `{self.study}`"

    def title(self, goes_on: bool = True) -> str:
        of = self.of
        parts = [DATASETS[of.dataset], of.network_name.upper()]
        parts += [f"{of.image_size}x{of.image_size}"] if of.image_size else []
        parts += [f"{of.train_images:,} images"] if of.train_images else []
        return ", ".join(parts + ([f"then lr {of.mix_lr:g}"] if of.mix_lr and goes_on else []))

    @property
    def blog(self) -> dict[str, Any]:
        """The blog's numbers, where they compare: it has wide residual networks alone, masked by
        thresholds alone."""
        return blog(self.of.dataset) if self.of.network == "wrn" else {}

    @property
    def deviations(self) -> list[str]:
        """Every field of the configurations that is not the blog's."""
        found = (
            f"`{name}` {here} ({'all' if there is None else there})"
            for of in (result.configuration for result in self.results)
            for name, (here, there) in of.changes(of.blogs, "seed").items()
        )
        return list(dict.fromkeys(found))

    @property
    def software(self) -> list[str]:
        origins = (result.environment for result in self.results)
        words = "masktorch {masktorch} at {commit:.7}, torch {torch}"
        return sorted({words.format(**{**e, "commit": str(e["commit"])}) for e in origins})

    def paired(self, arm: str, other: str, epoch: str = "last") -> Paired | None:
        """`arm` less `other` over the seeds that both have; None where they have none."""
        one, two = (
            {run.configuration.seed: getattr(run, epoch) for run in self.arms.get(name, ())}
            for name in (arm, other)
        )
        seeds = sorted(one.keys() & two.keys())
        found = tuple(one[seed].test_accuracy - two[seed].test_accuracy for seed in seeds)
        return Paired(found) if found else None

    def pairs(self) -> Iterator[tuple[str, str, Paired]]:
        """The pairs that no comparison before this one has."""
        for arm, other in PAIRS:
            new = self.first or arm in STARTS_FROM
            if new and (paired := self.paired(arm, other)):
                yield arm, other, paired


def comparisons(study: str, *folders: Path) -> Iterator[Comparison]:
    """Of the blog's estimator, one per data set and learning rate of the arms that go on."""
    results = [result for folder in folders for result in read_results(folder)]
    ours = [r for r in results if r.configuration.estimator in (None, "threshold")]
    for dataset in dict.fromkeys(r.configuration.dataset for r in ours):
        here = [r for r in ours if r.configuration.dataset == dataset]
        lrs = sorted({lr for r in here if (lr := r.configuration.mix_lr) is not None})
        for lr in lrs or (None,):
            arms: dict[str, list[Result]] = {}
            for result in sorted(here, key=lambda r: ARMS.index(r.configuration.arm)):
                this = result.configuration
                if this.mix_lr not in (None, lr):
                    continue
                arms.setdefault(this.arm, []).append(result)
                one = arms[this.arm][0].configuration
                if one.changes(this, "seed"):
                    raise BenchmarkError(
                        f"{one.name}.json and {this.name}.json can't be shown as seeds of one run: "
                        f"they differ in {', '.join(one.changes(this))}. Move one to another "
                        f"folder."
                    )
            yield Comparison(study, arms, first=not lrs or lr == lrs[0])
