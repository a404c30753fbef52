"""Pruned halves and heads of a pretrained encoder, compared seed by seed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.encoder.experiments import read_rows
from benchmarks.pages import figures
from benchmarks.pages.comparison import Paired, Verdict
from benchmarks.pages.formats import points

Row = dict[str, Any]

DENSE = "dense"
CHOICES = ("learned gates", "magnitude", "random")
WORDS = {
    Verdict.BETTER: "better",
    Verdict.WORSE: "worse",
    Verdict.UNDECIDED: "not distinguishable by these runs",
}


@dataclass(frozen=True)
class Way:
    """One method and pattern, over the seeds."""

    method: str
    pattern: str  # empty for dense
    before: Sequence[float]  # accuracy before recovery
    after: Sequence[float]
    against_dense: dict[str, Paired]  # "before" and "after" recovery
    adds: Paired  # recovery, to the accuracy

    @property
    def name(self) -> str:
        return f"{self.method} {self.pattern}".strip()


@dataclass(frozen=True)
class Patterns:
    dense: Way
    ways: Sequence[Way]

    def answer(self, when: str) -> str:
        """Say which ways differ from dense, "before" or "after" recovery."""
        return _listed((way.name, way.against_dense[when]) for way in self.ways)

    @property
    def recovery(self) -> str:
        return _listed((way.name, way.adds) for way in self.ways)


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
    def answer(self) -> str:
        """Say at each penalty how learned gates compare with the other choices."""
        return "; ".join(
            f"with {mean(one.kept):.0f} of {self.count} heads, "
            + ", ".join(
                f"{WORDS[paired.verdict]} against {other} ({points(paired.mean, 2)})"
                if paired.verdict
                else f"one seed against {other}"
                for other, paired in one.against.items()
            )
            for one in self.gates
        )


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
            Paired(tuple(row["after"] - row["before"] for row in runs.values())),
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


def _listed(differences: Iterable[tuple[str, Paired]]) -> str:
    """worse: magnitude 2:4 (-3.21); not distinguishable by these runs: ..."""
    found = list(differences)
    parts = []
    for verdict, words in WORDS.items():
        names = [
            f"{name} ({points(paired.mean, 2)})"
            for name, paired in found
            if paired.verdict is verdict
        ]
        if names:
            parts.append(f"{words}: {', '.join(names)}")
    return "; ".join(parts)


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
