"""What `benchmarks.speed` measured, as docs/speed.md: tables with the targets, and the figure."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from benchmarks.atomic import replacing
from benchmarks.pages.figures import legend_below, panels, plain, save
from benchmarks.pages.render import render, table
from benchmarks.speed.steps import KEEP_MEMORY

# The most that is wanted on a CPU, of medians. Steps, float32: multiples of the plain step.
STEPS: dict[tuple[str, str], dict[str, float]] = {
    ("WRN-28-8", "eager"): {
        "threshold": 1.03, "bernoulli": 1.1, "intermediate": 1.1, "topk": 1.08,
    },
    ("WRN-28-2", "eager"): {"bernoulli": 1.08, "intermediate": 1.08},
    ("MLP 4x2048", "eager"): {
        "threshold": 1.3, "bernoulli": 1.5, "intermediate": 1.7, "topk": 1.6,
        "frozen mask": 1.12, "frozen top-k": 1.12,
    },
    ("MLP 4x2048", "compiled"): {"threshold": 1.18, "bernoulli": 1.4, "intermediate": 1.5},
    ("LeNet-300-100", "eager"): {"threshold": 1.25},
    ("LeNet-300-100", "compiled"): {"threshold": 1.25},
}  # fmt: skip
INFERENCE = {"frozen mask": 1.1, "frozen top-k": 1.1}
# Estimators alone, from a size on, below which the call costs more than the passes.
FLOOR, FLOOR_FROM = {"eager": 2.0, "compiled": 1.1}, 10**6
OURS = ("threshold", "bernoulli", "intermediate")
# Bytes an entry: plain training needs 16 (weights, gradients, two moments), a mask 24 (weights,
# scores, their gradients and two moments, one effective weight) and two temporaries of a layer.
MEMORY, TRANSIENT = 24.0 - 16.0, 2 * 4.0
# Plain passes over the weights.
COSTS = {
    "wrap": 3.0, "masks": 3.0, "report": 3.0, "freeze_mask": 3.0, "unwrap": 3.0,
    "save_masks": 30.0, "load_masks": 20.0, "set_masks, learning": 15.0, "set_masks, given": 1.5,
    "budget.overall": 6.0,
}  # fmt: skip


class Line(NamedTuple):
    of: dict[str, str]  # the columns that say what was measured
    numbers: dict[str, float]
    most: Mapping[str, float]  # by column: the target


def write(results: Path, docs: Path) -> Path:
    """Draw the figures and write `docs`/speed.md from all that was recorded; return its path."""
    contents = read(results)
    for name, content in contents.items():
        save(drawn(content), docs / "figures" / f"{name}.png")
    with replacing(docs / "speed.md") as partial:
        partial.write_text(page(contents))
    return docs / "speed.md"


def read(results: Path) -> dict[str, dict[str, Any]]:
    """By `speed`, and `speed-FOLDER` for those in a folder of their own."""
    paths = sorted(results.rglob("speed.json"), key=lambda path: len(path.parts))
    names = ["-".join(["speed", *path.parent.relative_to(results).parts]) for path in paths]
    return {n: json.loads(path.read_text()) for n, path in zip(names, paths, strict=True)}


def page(contents: Mapping[str, dict[str, Any]]) -> str:
    first = next(iter(contents.values()), {})
    return render(
        "speed.md",
        measured={
            name: {**content, "tables": tables(content)} for name, content in contents.items()
        },
        compiled=_gain(first, mode="compiled"),
        bfloat16=_gain(first, precision="bfloat16"),
        malloc=_gain(first, keeps_memory=True),
        variables=" ".join(f"{name}={value}" for name, value in KEEP_MEMORY.items()),
        missed=[text for content in contents.values() for text in _missed(content)],
    )


def measured(content: dict[str, Any]) -> str:
    """For the terminal."""
    return "\n\n".join(f"{name}\n\n{text}" for name, text in tables(content).items())


def tables(content: dict[str, Any]) -> dict[str, str]:
    return {
        name: table(
            {
                **line.of,
                **{column: _cell(line, column) for each in lines for column in each.numbers},
            }
            for line in lines
        )
        for name, lines in _parts(content).items()
    }


def _parts(content: dict[str, Any]) -> dict[str, list[Line]]:
    """The lines of each part that was measured; targets are of the CPU."""
    of = {"steps": _steps, "floor": _floor, "memory": _memory, "costs": _costs, "files": _files}
    found = {name: list(lines(content[name])) for name, lines in of.items() if name in content}
    if content["environment"]["device"] == "cpu":
        return found
    return {name: [line._replace(most={}) for line in lines] for name, lines in found.items()}


def _case(row: Mapping[str, Any]) -> str:
    malloc = ", malloc keeps memory" if row["keeps_memory"] else ""
    return f"{row['network']} at {row['batch']}, {row['precision']}, {row['mode']}{malloc}"


def _steps(rows: Sequence[dict[str, Any]]) -> Iterator[Line]:
    for row in rows:
        judged = row["precision"] == "float32" and not row["keeps_memory"]
        most = INFERENCE if row["mode"] == "inference" else STEPS.get((row["network"], row["mode"]))
        yield Line(
            {"case": _case(row), "plain": f"{1000 * row['seconds']['plain']:.3g} ms"},
            {name: median for name, (_, median, _) in row["ratio"].items() if name != "plain"},
            (most or {}) if judged else {},
        )


def _floor(rows: Sequence[dict[str, Any]]) -> Iterator[Line]:
    for row in rows:
        yield Line(
            {
                "mode": row["mode"],
                "entries": f"{row['size']:,}",
                "rate of the add": f"{row['gigabytes_per_second']:.1f} GB/s",
            },
            {name: median for name, (_, median, _) in row["multiple"].items() if name != "add"},
            dict.fromkeys(OURS if row["size"] >= FLOOR_FROM else (), FLOOR[row["mode"]]),
        )


def _memory(rows: Sequence[dict[str, Any]]) -> Iterator[Line]:
    for row in rows:
        numbers = row["bytes_per_entry"]
        most = numbers["plain"] + MEMORY + TRANSIENT * row["largest_layer"] / row["masked"]
        yield Line(
            {"case": f"{row['network']} at {row['batch']}", "masked entries": f"{row['masked']:,}"},
            numbers,
            dict.fromkeys(OURS, most),
        )


def _costs(rows: Sequence[dict[str, Any]]) -> Iterator[Line]:
    for row in rows:
        yield Line(
            {"entries": f"{row['size']:,}", "a pass": f"{1000 * row['seconds']['pass']:.3g} ms"},
            {name: number for name, number in row["multiple"].items() if name != "pass"},
            COSTS,
        )


def _files(rows: Sequence[dict[str, Any]]) -> Iterator[Line]:
    for row in rows:
        numbers = {name: row[name] for name in row if name not in ("size", "density")}
        of = {"entries": f"{row['size']:,}", "density": f"{100 * row['density']:g} %"}
        yield Line(of, numbers, {})


def _cell(line: Line, name: str) -> str:
    if name not in line.numbers:
        return "-"
    number = f"{line.numbers[name]:.2f}"
    if name not in line.most:
        return number
    met = line.numbers[name] <= line.most[name]
    return number if met else f"{number} (> {line.most[name]:.3g})"


def _missed(content: dict[str, Any]) -> Iterator[str]:
    """What is above its target."""
    for part, lines in _parts(content).items():
        for line in lines:
            found = [
                f"{name} {number:.2f} ({line.most[name]:.3g})"
                for name, number in line.numbers.items()
                if number > line.most.get(name, number)
            ]
            if found:
                yield f"{part}, {', '.join(line.of.values())}: {', '.join(found)}"


def _gain(content: dict[str, Any], **change: Any) -> str:
    """What a habit does to a step of the threshold's MLP, in words."""
    usual = {
        "network": "MLP 4x2048",
        "precision": "float32",
        "mode": "eager",
        "keeps_memory": False,
    }
    found = [
        1000 * row["seconds"]["threshold"]
        for wanted in (usual | change, usual)
        for row in content.get("steps", ())
        if wanted.items() <= row.items()
    ]
    return "" if len(found) < 2 else " ({:.3g} ms a step of the MLP below, {:.3g} without)".format(
        *found
    )  # fmt: skip


def drawn(content: dict[str, Any]) -> Figure:
    """The median and the quartiles of each contestant, a line of the figure per case."""
    rows = content.get("steps", [])
    figure, (axes,) = panels(1, 10, 2 + 0.4 * len(rows))
    names = dict.fromkeys(name for row in rows for name in row["ratio"] if name != "plain")
    for number, name in enumerate(names):
        at = [line for line, row in enumerate(rows) if name in row["ratio"]]
        low, median, high = np.array([rows[line]["ratio"][name] for line in at]).T
        colour, marker = f"C{number % 10}", "osD"[number // 10]
        axes.errorbar(
            median,
            at,
            xerr=[median - low, high - median],
            fmt=marker,
            color=colour,
            label=name,
            ms=5,
        )
    axes.set_yticks(range(len(rows)), [_case(row) for row in rows], fontsize=8)
    plain(axes.xaxis)
    axes.set(xlabel="times the plain network's: left faster", ylim=(len(rows) - 0.5, -0.5))
    axes.axvline(1, color="black", lw=1)
    legend_below(figure, columns=5)
    return figure
