"""docs/speed.md: what `benchmarks.speed` measured, with the targets, and figures."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.experiment.estimators import MEASURED
from benchmarks.experiment.results import RESULTS
from benchmarks.files import write_text
from benchmarks.pages.figures import add_legend_below, make_panels, save, set_log_scale
from benchmarks.pages.formats import NOTHING
from benchmarks.pages.render import DOCS, aligned, render
from benchmarks.speed.steps import KEEP_MEMORY, Case

Content = dict[str, Any]  # of a speed.json
Row = Mapping[str, Any]  # of a part of it

TARGETS = json.loads(Path(__file__).with_name("targets.json").read_text())
WITH_TARGETS = ("threshold", "bernoulli", "intermediate")  # of the floor and the memory
DESCRIPTION = ("size", "density")  # what describes a row that holds its numbers itself


def case_of(row: Row) -> Case:
    return Case(**{field.name: row[field.name] for field in fields(Case)})


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


def _entries(count: int) -> str:
    return f"{count:,}"


@dataclass(frozen=True)
class Table:
    """How the rows of one part become a table."""

    head: tuple[str, ...]  # of the columns that describe a row
    describe: Callable[[Row], tuple[str, ...]]  # their cells
    numbers: (
        str | None
    )  # the field of a row that holds its numbers; None: the row itself
    reference: str | None = None  # the number that is 1 by definition, not shown


TABLES = {  # by part of the measurements; a new part is one entry
    "steps": Table(
        head=("case", "plain"),
        describe=lambda row: (
            str(case_of(row)),
            _milliseconds(row["seconds"]["plain"]),
        ),
        numbers="ratio",
        reference="plain",
    ),
    "floor": Table(
        head=("mode", "entries", "rate of the add"),
        describe=lambda row: (
            row["mode"],
            _entries(row["size"]),
            f"{row['gigabytes_per_second']:.1f} GB/s",
        ),
        numbers="multiple",
        reference="add",
    ),
    "memory": Table(
        head=("case", "masked entries"),
        describe=lambda row: (
            f"{row['network']} at {row['batch']}",
            _entries(row["masked"]),
        ),
        numbers="bytes_per_entry",
    ),
    "costs": Table(
        head=("entries", "a pass"),
        describe=lambda row: (
            _entries(row["size"]),
            _milliseconds(row["seconds"]["pass"]),
        ),
        numbers="multiple",
        reference="pass",
    ),
    "files": Table(
        head=("entries", "density"),
        describe=lambda row: (_entries(row["size"]), f"{100 * row['density']:g} %"),
        numbers=None,
    ),
    "calls": Table(
        head=("method",), describe=lambda row: (row["method"],), numbers="numbers"
    ),
    "large": Table(
        head=("method", "weights"),
        describe=lambda row: (row["method"], _entries(row["size"])),
        numbers="numbers",
    ),
}

# The columns of the first table: training steps, by type of device.
OVERVIEW = {
    "CPU: WRN-28-2": ("cpu", Case("WRN-28-2", 16)),
    "CPU: transformer": ("cpu", Case("Transformer 6x256", 16)),
    "CPU: MLP": ("cpu", Case("MLP 4x2048", 128)),
    "CPU: MLP, compiled": ("cpu", Case("MLP 4x2048", 128, mode="compiled")),
    "GPU: WRN-28-8": ("cuda", Case("WRN-28-8", 128, precision="bfloat16")),
    "GPU: MLP": ("cuda", Case("MLP 4x2048", 128)),
}


def write(results: Path = RESULTS / "speed", docs: Path = DOCS) -> Path:
    """Write docs/speed.md and its figures from benchmarks/results/speed."""
    contents = read(results)
    for name, content in contents.items():
        if "steps" in content:
            save(steps_figure(content), docs / "figures" / f"{name}.png")
    return write_text(page(contents), docs / "speed.md")


def read(results: Path) -> dict[str, Content]:
    """Read all measurements: `speed`, and `speed-FOLDER` for those in a folder."""
    paths = sorted(results.rglob("speed.json"), key=lambda path: len(path.parts))
    contents = {}
    for path in paths:
        folders = path.parent.relative_to(results).parts
        contents["-".join(["speed", *folders])] = json.loads(path.read_text())
    return contents


def page(contents: Mapping[str, Content]) -> str:
    first = next(iter(contents.values()), {})
    judged = {name: judge(content) for name, content in contents.items()}
    return render(
        "speed.md",
        overview=overview(list(contents.values())),
        costs={
            heading: cost(list(contents.values()), *column)
            for heading, column in OVERVIEW.items()
        },
        gpu=_with_steps(contents.values(), "cuda"),
        measurements=[
            {
                "name": name,
                "figure": f"figures/{name}.png",
                "content": content,
                "environment": content["environment"],
                "tables": {
                    part: table(part, rows) for part, rows in judged[name].items()
                },
            }
            for name, content in contents.items()
        ],
        missed=[line for parts in judged.values() for line in missed_lines(parts)],
        gain_of_compiling=gain(first, mode="compiled"),
        gain_of_bfloat16=gain(first, precision="bfloat16"),
        gain_of_malloc=gain(first, keeps_memory=True),
        malloc_variables=" ".join(
            f"{name}={value}" for name, value in KEEP_MEMORY.items()
        ),
    )


def overview(contents: Sequence[Content]) -> str:
    """Return the table of training steps that the page begins with."""
    columns = {
        heading: _medians(contents, *column) for heading, column in OVERVIEW.items()
    }
    columns = {heading: medians for heading, medians in columns.items() if medians}
    contestants = dict.fromkeys(
        name for medians in columns.values() for name in medians if name != "plain"
    )
    lines = [" | ".join(["", *columns])]
    for name in contestants:
        cells = (
            f"{medians[name]:.2f}" if name in medians else NOTHING
            for medians in columns.values()
        )
        lines.append(" | ".join([name, *cells]))
    return aligned("\n".join(lines)) if columns else ""


def cost(contents: Sequence[Content], device: str, case: Case) -> str:
    """Describe what learning a mask costs, from the fastest method to the slowest."""
    medians = _medians(contents, device, case)
    found = {name: medians[name] for name in MEASURED if name in medians}
    if not found:
        return ""
    by_cost = sorted(found, key=lambda name: found[name])
    fastest, slowest = by_cost[0], by_cost[-1]
    return f"{found[fastest]:.2f} ({fastest}) to {found[slowest]:.2f} ({slowest})"


def _medians(contents: Iterable[Content], device: str, case: Case) -> dict[str, float]:
    """Return the ratios to the plain step by contestant; empty if not measured."""
    for row in _with_steps(contents, device).get("steps", ()):
        if case_of(row) == case:
            return {name: median for name, (_, median, _) in row["ratio"].items()}
    return {}


def _with_steps(contents: Iterable[Content], device: str) -> Content:
    """Return the first measurement of steps on this type of device, or {}."""
    for content in contents:
        if content["environment"]["device"] == device and "steps" in content:
            return content
    return {}


def measured(content: Content) -> str:
    """Return all tables for the terminal."""
    tables = {part: table(part, rows) for part, rows in judge(content).items()}
    return render("measured.txt", tables=tables)


@dataclass(frozen=True)
class JudgedRow:
    description: tuple[str, ...]
    numbers: dict[str, float]
    missed: dict[str, float]  # the targets that its numbers are above, by column


def judge(content: Content) -> dict[str, list[JudgedRow]]:
    """Return the rows of each part with the targets they miss; targets are for CPUs."""
    has_targets = content["environment"]["device"] == "cpu"
    found: dict[str, list[JudgedRow]] = {}
    for part, layout in TABLES.items():
        for row in content.get(part, ()):
            numbers = _numbers(row, layout)
            targets = _targets(part, row) if has_targets else {}
            missed = {
                name: targets[name]
                for name, number in numbers.items()
                if name in targets and number > targets[name]
            }
            judged = JudgedRow(layout.describe(row), numbers, missed)
            found.setdefault(part, []).append(judged)
    return found


def _numbers(row: Row, layout: Table) -> dict[str, float]:
    """Return a row's numbers by column: of quartiles the median."""
    values = row if layout.numbers is None else row[layout.numbers]
    hidden = (*DESCRIPTION, layout.reference)
    return {
        name: value[1] if isinstance(value, list) else value
        for name, value in values.items()
        if name not in hidden
    }


def _targets(part: str, row: Row) -> Mapping[str, float]:
    """Return the highest wanted number of each column that has one."""
    targets: dict[str, Any] = TARGETS.get(part, {})
    if part == "steps":
        return _step_targets(row, targets)
    if part == "floor":
        is_large = row["size"] >= targets["from"]
        return dict.fromkeys(WITH_TARGETS if is_large else (), targets[row["mode"]])
    if part == "memory":
        plain = row["bytes_per_entry"]["plain"]
        temporaries = targets["temporaries"] * row["largest_layer"] / row["masked"]
        return dict.fromkeys(WITH_TARGETS, plain + targets["mask"] + temporaries)
    if part == "calls":
        of_method: Mapping[str, float] = targets.get(row["method"], {})
        return of_method
    return targets


def _step_targets(row: Row, targets: Mapping[str, Any]) -> Mapping[str, float]:
    if row["precision"] != "float32" or row["keeps_memory"]:
        return {}
    of_mode = targets.get(row["mode"], {})
    of_network = targets.get(f"{row['network']}, {row['mode']}", {})
    return {**of_mode, **of_network}


def table(part: str, rows: Sequence[JudgedRow]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row.numbers))
    lines = [" | ".join([*TABLES[part].head, *columns])]
    for row in rows:
        cells = [*row.description, *(_cell(row, column) for column in columns)]
        lines.append(" | ".join(cells))
    return aligned("\n".join(lines))


def _cell(row: JudgedRow, column: str) -> str:
    if column not in row.numbers:
        return NOTHING
    value = row.numbers[column]
    number = str(value) if isinstance(value, int) else f"{value:.2f}"
    if column in row.missed:
        return f"{number} (> {row.missed[column]:.3g})"
    return number


def missed_lines(parts: Mapping[str, Iterable[JudgedRow]]) -> list[str]:
    """Return lines such as: floor, eager, 1,000: threshold 2.10 (2)"""
    lines = []
    for part, rows in parts.items():
        for row in rows:
            if row.missed:
                misses = (
                    f"{name} {row.numbers[name]:.2f} ({target:.3g})"
                    for name, target in row.missed.items()
                )
                lines.append(
                    f"{', '.join((part, *row.description))}: {', '.join(misses)}"
                )
    return lines


def gain(content: Content, **habit: Any) -> str:
    """Describe what a habit saves in a threshold's step of the MLP, if measured."""
    usual = Case("MLP 4x2048", 128)
    seconds = {
        case_of(row): row["seconds"].get("threshold")
        for row in content.get("steps", ())
    }
    after, before = seconds.get(replace(usual, **habit)), seconds.get(usual)
    if after is None or before is None:
        return ""
    return (
        f" (a threshold's step of the MLP: {1000 * after:.3g} ms, "
        f"{1000 * before:.3g} without)"
    )


def steps_figure(content: Content) -> Figure:
    """Draw the median and the quartiles of each contestant, a line per case."""
    rows = content.get("steps", [])
    figure, (panel,) = make_panels(1, 10, 2 + 0.4 * len(rows))
    contestants = dict.fromkeys(
        name for row in rows for name in row["ratio"] if name != "plain"
    )
    for number, name in enumerate(contestants):
        lines = [line for line, row in enumerate(rows) if name in row["ratio"]]
        quartiles = np.array([rows[line]["ratio"][name] for line in lines])
        low, median, high = quartiles.T
        panel.errorbar(
            median,
            lines,
            xerr=[median - low, high - median],
            fmt="osD"[number // 10],
            color=f"C{number % 10}",
            ms=5,
            label=name,
        )
    labels = [str(case_of(row)) for row in rows]
    panel.set_yticks(range(len(rows)), labels, fontsize=8)
    panel.set_ylim(len(rows) - 0.5, -0.5)
    set_log_scale(panel.xaxis)
    panel.set_xlabel("times the plain network's: left faster")
    panel.axvline(1, color="black", lw=1)
    add_legend_below(figure, columns=5)
    return figure
