"""Ways to a sparse network, and masks in half precision, compared seed by seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.experiment.arms import ARMS
from benchmarks.experiment.results import Groups, Result
from benchmarks.pages import figures
from benchmarks.pages.comparison import Paired, Verdict, paired
from benchmarks.pages.formats import points
from benchmarks.pages.mask_studies import Lines, last_accuracies

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


@dataclass(frozen=True)
class AtDensity:
    density: float  # in %
    ways: Sequence[Way]

    def with_verdict(self, verdict: Verdict) -> str:
        """RigL (+3.21), SET (+2.10); nothing if there is none"""
        return ", ".join(
            f"{way.name} ({points(way.adds.mean, 2)})"
            for way in self.ways
            if way.adds.verdict is verdict and way.name != NAMES[REFERENCE]
        )

    @property
    def answer(self) -> str:
        """Say which ways differ from a static random mask, and how."""
        parts = []
        for verdict, words in (
            (Verdict.BETTER, "better"),
            (Verdict.WORSE, "worse"),
            (Verdict.UNDECIDED, "not distinguishable by these runs"),
        ):
            found = self.with_verdict(verdict)
            if found:
                parts.append(f"{words}: {found}")
        return "; ".join(parts)


@dataclass(frozen=True)
class SparseTraining:
    dense: Sequence[Result]  # in as many steps
    by_density: Sequence[AtDensity]


def sparse_training(groups: Groups, folder: Path) -> SparseTraining | None:
    """Compare the ways of the study `dynamic`, and draw them; None without runs."""
    if not groups:
        return None
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
        lines.setdefault(configuration.arm, {})[density] = last_accuracies(runs)
    figures.save(figures.by_density(lines, "density (%)"), folder / "dynamic.png")
    return SparseTraining(
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
    def answer(self) -> str:
        return {
            Verdict.BETTER: "are more accurate",
            Verdict.WORSE: "are less accurate",
            Verdict.UNDECIDED: "cannot be distinguished",
            None: "were run with one seed, which decides nothing",
        }[self.adds.verdict]


def half_precision(groups: Groups) -> HalfPrecision | None:
    """Compare the precisions of the study `bfloat16`; None unless both have runs."""
    by_precision = {c.precision: runs for c, runs in groups.items()}
    if set(by_precision) != {"float32", "bfloat16"}:
        return None
    wide, narrow = by_precision["float32"], by_precision["bfloat16"]
    return HalfPrecision(wide, narrow, paired(narrow, wide))
