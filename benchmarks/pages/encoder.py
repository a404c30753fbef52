"""Pruned halves and heads of a pretrained encoder, compared seed by seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.encoder.experiments import read_rows
from benchmarks.pages import figures
from benchmarks.pages.comparison import Paired

Row = dict[str, Any]

DENSE = "dense"
CHOICES = ("learned gates", "magnitude", "random")


@dataclass(frozen=True)
class Way:
    """One method and pattern, over the seeds."""

    method: str
    pattern: str  # empty for dense
    before: Sequence[float]  # accuracy before recovery
    after: Sequence[float]
    against_dense: dict[str, Paired]  # "before" and "after" recovery

    @property
    def name(self) -> str:
        return f"{self.method} {self.pattern}".strip()


@dataclass(frozen=True)
class Patterns:
    dense: Way
    ways: Sequence[Way]

    @property
    def answer(self) -> str:
        """Say which method of each pattern is the most accurate, and what dense has."""
        by_pattern: dict[str, list[Way]] = {}
        for way in self.ways:
            by_pattern.setdefault(way.pattern, []).append(way)
        parts = []
        for pattern, ways in by_pattern.items():
            before = max(ways, key=lambda way: mean(way.before))
            after = max(ways, key=lambda way: mean(way.after))
            where = f"At {pattern}" if ":" in pattern else pattern.capitalize()
            again = "" if after is before else f"{after.method} "
            parts.append(
                f"{where}, {before.method} is the most accurate before recovery "
                f"({_percent(before.before)}) and {again}after it "
                f"({_percent(after.after)})."
            )
        dense = _percent(self.dense.before), _percent(self.dense.after)
        return f"{' '.join(parts)} The dense encoder has {dense[0]} and {dense[1]}."


@dataclass(frozen=True)
class Gates:
    """One penalty, over the seeds."""

    penalty: float
    kept: Sequence[float]
    accuracies: Mapping[str, Sequence[float]]  # by choice of heads
    against: dict[str, Paired]  # learned gates against another choice


@dataclass(frozen=True)
class Heads:
    count: int
    all_heads: Sequence[float]
    gates: Sequence[Gates]

    @property
    def fewest(self) -> Gates:
        """The gates that keep the fewest heads."""
        return min(self.gates, key=lambda one: mean(one.kept))


@dataclass(frozen=True)
class Encoder:
    patterns: Patterns | None
    heads: Heads | None
    settings: dict[str, Any]


def encoder(study: Path, folder: Path) -> Encoder | None:
    """Compare the runs of `python -m benchmarks encoder`; None without runs."""
    rows = read_rows(study)
    if not rows:
        return None
    patterns = _patterns([row for row in rows if row["experiment"] == "patterns"])
    heads = _heads([row for row in rows if row["experiment"] == "heads"])
    if patterns:
        _draw_patterns(patterns, folder / "encoder-patterns.png")
    if heads:
        _draw_heads(heads, folder / "encoder-heads.png")
    return Encoder(patterns, heads, rows[0]["settings"])


def _patterns(rows: Sequence[Row]) -> Patterns | None:
    by_way: dict[tuple[str, str], dict[int, Row]] = {}
    for row in rows:
        key = row["method"], row.get("pattern", "")
        by_way.setdefault(key, {}).setdefault(row["seed"], row)
    dense = by_way.get((DENSE, ""), {})
    ways = [
        Way(
            method,
            pattern,
            [row["before"] for row in runs.values()],
            [row["after"] for row in runs.values()],
            {
                when: Paired(
                    tuple(
                        row[when] - dense[seed][when]
                        for seed, row in sorted(runs.items())
                        if seed in dense
                    )
                )
                for when in ("before", "after")
            },
        )
        for (method, pattern), runs in by_way.items()
    ]
    if not dense or len(ways) == 1:
        return None
    is_dense = [way.method == DENSE for way in ways]
    first = ways.pop(is_dense.index(True))
    return Patterns(first, ways)


def _heads(rows: Sequence[Row]) -> Heads | None:
    if not rows:
        return None
    by_penalty: dict[float, list[Row]] = {}
    for row in rows:
        by_penalty.setdefault(row["penalty"], []).append(row)
    gates = []
    for penalty, runs in sorted(by_penalty.items()):
        accuracies = {c: [row["accuracy"][c] for row in runs] for c in CHOICES}
        learned, *others = CHOICES
        against = {
            other: Paired(
                tuple(
                    a - b
                    for a, b in zip(accuracies[learned], accuracies[other], strict=True)
                )
            )
            for other in others
        }
        gates.append(Gates(penalty, [row["kept"] for row in runs], accuracies, against))
    first = by_penalty[gates[0].penalty]
    return Heads(rows[0]["heads"], [row["all_heads"] for row in first], gates)


def _percent(accuracies: Sequence[float]) -> str:
    return f"{100 * mean(accuracies):.1f} %"


def _draw_patterns(patterns: Patterns, path: Path) -> None:
    figure, (panel,) = figures.make_panels(1, 9, 5)
    ways = [patterns.dense, *patterns.ways]
    for shift, (label, marker) in enumerate((("before", "o"), ("after", "s"))):
        for place, way in enumerate(ways):
            values = way.before if label == "before" else way.after
            panel.plot(
                [100 * value for value in values],
                [place + 0.2 * shift] * len(values),
                f"C{shift}{marker}",
                label=f"{label} recovery",
            )
    panel.set_yticks(range(len(ways)), [way.name for way in ways])
    panel.invert_yaxis()
    panel.set(xlabel="test accuracy (%), a point per seed")
    figures.add_legend_below(figure)
    figures.save(figure, path)


def _draw_heads(heads: Heads, path: Path) -> None:
    figure, (panel,) = figures.make_panels(1, 9, 5)
    for number, choice in enumerate(CHOICES):
        for one in heads.gates:
            panel.plot(
                one.kept,
                [100 * value for value in one.accuracies[choice]],
                f"C{number}{figures.MARKERS[number]}",
                label=choice,
            )
    panel.axhline(100 * mean(heads.all_heads), color="grey", label="all heads")
    panel.set(
        xlabel=f"heads kept, of {heads.count}",
        ylabel="test accuracy (%), a point per seed",
    )
    figures.add_legend_below(figure)
    figures.save(figure, path)
