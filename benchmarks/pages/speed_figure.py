"""What `benchmarks.speed` measured, drawn: a panel for each part."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.atomic import replacing

COLOURS = {
    "threshold": "tab:blue",
    "bernoulli": "tab:orange",
    "intermediate": "tab:green",
    "frozen mask": "tab:cyan",
    "textbook": "tab:red",
    "textbook bernoulli": "tab:pink",
    "edge-popup": "tab:brown",
    "sort alone": "tab:brown",
    "prune": "tab:purple",
    "plain": "tab:grey",
}
LINES = {"eager": "-", "compiled": "--"}

Rows = Sequence[dict[str, Any]]


def draw(content: dict[str, Any], path: Path) -> Path:
    """Write the panels of the parts that were measured to a PNG file."""
    panels: dict[str, Callable[[Axes, Rows], None]] = {
        "steps": _steps,
        "floor": _floor,
        "memory": _memory,
        "costs": _costs,
    }
    parts = [name for name in panels if name in content]
    heights = [1 + 0.45 * len(content[name]) if name == "steps" else 4 for name in parts]
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    axes = figure.subplots(len(parts), squeeze=False, height_ratios=heights)[:, 0]
    for name, panel in zip(parts, axes, strict=True):
        panels[name](panel, content[name])
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
    return path


def _steps(axes: Axes, rows: Rows) -> None:
    """The median and the quartiles of each contestant, a line of the panel per case."""
    names = dict.fromkeys(name for row in rows for name in row["ratio"] if name != "plain")
    for name in names:
        at = [line for line, row in enumerate(rows) if name in row["ratio"]]
        low, median, high = np.array([rows[line]["ratio"][name] for line in at]).T
        spread = [median - low, high - median]
        axes.errorbar(median, at, xerr=spread, fmt="o", color=COLOURS[name], label=name, ms=5)
    labels = [
        f"{row['network']}, {row['precision']}, {row['mode']}"
        + (", malloc keeps" if row["keeps_memory"] else "")
        for row in rows
    ]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.set(
        xscale="log", xlabel="training step / the plain network's", ylim=(len(rows) - 0.5, -0.5)
    )
    axes.axvline(1, color="black", lw=1)


def _floor(axes: Axes, rows: Rows) -> None:
    for mode, style in LINES.items():
        here = [row for row in rows if row["mode"] == mode]
        for name in dict.fromkeys(name for row in here for name in row["multiple"]):
            if name != "add":
                points = [
                    (r["size"], r["multiple"][name][1]) for r in here if name in r["multiple"]
                ]
                axes.plot(
                    *zip(*points, strict=True), style, color=COLOURS[name], marker=".",
                    label=f"{name}, {mode}",
                )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="entries", ylabel="forward + backward / floor")


def _memory(axes: Axes, rows: Rows) -> None:
    names = list(rows[0]["bytes_per_entry"])
    for number, name in enumerate(names):
        at = np.arange(len(rows)) + 0.8 * (number - (len(names) - 1) / 2) / len(names)
        used = [row["bytes_per_entry"][name] for row in rows]
        axes.bar(at, used, 0.8 / len(names), color=COLOURS[name], label=name)
    axes.set_xticks(range(len(rows)), [row["network"] for row in rows])
    axes.set(ylabel="peak, bytes per masked entry")


def _costs(axes: Axes, rows: Rows) -> None:
    for name in rows[0]["multiple"]:
        if name != "pass":
            axes.plot(
                [row["size"] for row in rows], [row["multiple"][name] for row in rows],
                marker=".", label=name,
            )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="entries", ylabel="time / a pass over the weights")
