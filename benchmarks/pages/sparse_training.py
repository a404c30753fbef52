"""Ways to a sparse network, and masks in half precision, compared seed by seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import mean

from benchmarks.experiment.arms import ARMS
from benchmarks.experiment.results import Groups, Result
from benchmarks.pages import figures
from benchmarks.pages.comparison import Paired, Verdict, paired
from benchmarks.pages.formats import dataset_name
from benchmarks.pages.mask_studies import Lines, final_accuracies

REFERENCE = "static"  # what the other ways to a sparse network have to beat
NAMES = {
    "static": "static random mask",
    "set": "SET",
    "rigl": "RigL",
    "gradual": "gradual magnitude pruning",
    "mix": "supermask, then weights",
    "ticket": "lottery ticket",
}


@dataclass(frozen=True)
class Way:
    """One way to a sparse network, at one density."""

    name: str
    runs: Sequence[Result]
    adds: Paired  # to the accuracy under a static random mask

    @property
    def accuracy(self) -> float:
        """In %, the mean of the seeds."""
        return mean(final_accuracies(self.runs))


@dataclass(frozen=True)
class AtDensity:
    density: float  # in %
    ways: Sequence[Way]

    @property
    def best(self) -> Way:
        return max(self.ways, key=lambda way: way.accuracy)

    @property
    def reference(self) -> Way:
        return next(way for way in self.ways if way.name == NAMES[REFERENCE])

    @property
    def where(self) -> str:
        """The density, the best accuracy at it, and that of the reference."""
        accuracies = f"{self.best.accuracy:.2f} %"
        if self.best is not self.reference:
            compared = f"{self.reference.accuracy:.2f} %"
            accuracies += f", a {NAMES[REFERENCE]} {compared}"
        return f"at {self.density:g} % ({accuracies})"


@dataclass(frozen=True)
class OnDataset:
    dataset: str
    title: str
    network: str
    epochs: int
    dense: Sequence[Result]  # in as many steps
    by_density: Sequence[AtDensity]

    @property
    def answer(self) -> str:
        """Name the best ways, such as: On MNIST, RigL ends highest at 10 % (97.50 %, a
        static random mask 97.10 %)."""
        parts = []
        for name, densities in groupby(self.by_density, key=lambda at: at.best.name):
            where = " and ".join(at.where for at in densities)
            parts.append(f"{name} ends highest {where}")
        return f"On {self.title}, {'; '.join(parts)}."


def sparse_training(groups: Groups, folder: Path) -> list[OnDataset]:
    """Compare the ways of the study `dynamic` on each data set, and draw them."""
    by_dataset: dict[str, Groups] = {}
    for configuration, runs in groups.items():
        by_dataset.setdefault(configuration.dataset, {})[configuration] = runs
    return [_on_dataset(found, folder) for found in by_dataset.values()]


def _on_dataset(groups: Groups, folder: Path) -> OnDataset:
    longest = max(configuration.epochs for configuration in groups)
    dense: Sequence[Result] = []
    lines: Lines = {}
    by_density: dict[float, dict[str, Sequence[Result]]] = {}
    for configuration, runs in groups.items():
        if configuration.arm == "weights" and configuration.epochs == longest:
            dense = runs
        if configuration.arm not in NAMES or configuration.density is None:
            continue
        density = 100 * configuration.density
        by_density.setdefault(density, {})[configuration.arm] = runs
        lines.setdefault(configuration.arm, {})[density] = final_accuracies(runs)
    one = next(iter(groups))
    figure = figures.by_density(lines, "density (%)")
    figures.save(figure, folder / f"dynamic-{one.dataset}.png")
    return OnDataset(
        one.dataset,
        dataset_name(one),
        one.network_name,
        longest,
        dense,
        [
            AtDensity(density, _ways(by_arm))
            for density, by_arm in sorted(by_density.items(), reverse=True)
            if REFERENCE in by_arm
        ],
    )


def _ways(by_arm: dict[str, Sequence[Result]]) -> list[Way]:
    return [
        Way(NAMES[arm], by_arm[arm], paired(by_arm[arm], by_arm[REFERENCE]))
        for arm in sorted(by_arm, key=list(ARMS).index)
    ]


@dataclass(frozen=True)
class HalfPrecision:
    float32: Sequence[Result]
    bfloat16: Sequence[Result]
    adds: Paired

    @property
    def predicate(self) -> str:
        return {
            Verdict.BETTER: "are more accurate than in float32",
            Verdict.WORSE: "are less accurate than in float32",
            Verdict.UNDECIDED: "differ from float32 by less than these runs can tell",
            None: "were run with one seed, which decides nothing",
        }[self.adds.verdict]


def half_precision(groups: Groups) -> HalfPrecision | None:
    """Compare the precisions of the study `bfloat16`; None unless both have runs."""
    by_precision = {c.precision: runs for c, runs in groups.items()}
    if set(by_precision) != {"float32", "bfloat16"}:
        return None
    wide, narrow = by_precision["float32"], by_precision["bfloat16"]
    return HalfPrecision(wide, narrow, paired(narrow, wide))
