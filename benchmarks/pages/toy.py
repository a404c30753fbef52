"""What the toy of `benchmarks.studies.categorical` recovered: as a table and as a figure."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.atomic import replacing
from benchmarks.pages.table import spread
from benchmarks.studies.categorical import SHOWN


@dataclass(frozen=True)
class Descent:
    """KL(pi_true || pi) of one method with one step size."""

    method: str
    step_size: float
    steps: list[int]
    divergence: list[list[float]]  # per run, after each of the steps

    def mean(self) -> list[float]:
        return [sum(runs) / len(runs) for runs in zip(*self.divergence, strict=True)]

    def after(self, step: int) -> list[float]:
        return [run[self.steps.index(step)] for run in self.divergence]


def read(path: Path) -> list[Descent]:
    content = json.loads(path.read_text())
    return [Descent(steps=content["steps"], **method) for method in content["methods"]]


def markdown(descents: Sequence[Descent]) -> str:
    """A row per method and step size, the mean and range of the runs."""
    shown = [step for step in SHOWN if step in descents[0].steps]
    header = ["method", "step", *(f"after {step:,}" for step in shown), "lowest mean on the way"]
    lines = [f"| {' | '.join(header)} |", "|" + " --- |" * len(header)]
    for descent in descents:
        cells = [spread(descent.after(step), 4) for step in shown]
        lines.append(
            f"| {descent.method} | {descent.step_size:g} | {' | '.join(cells)} "
            f"| {min(descent.mean()):.4f} |"
        )
    return "\n".join(lines)


def draw(descents: Sequence[Descent], output: Path) -> Path:
    """A panel per step size, a line per method with the range of its runs."""
    sizes = list(dict.fromkeys(descent.step_size for descent in descents))
    methods = list(dict.fromkeys(descent.method for descent in descents))
    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for descent in descents:
        axes = panels[sizes.index(descent.step_size)]
        colour = f"C{methods.index(descent.method)}"
        runs = np.array(descent.divergence)
        axes.plot(descent.steps, runs.mean(0), color=colour, label=descent.method)
        axes.fill_between(descent.steps, runs.min(0), runs.max(0), color=colour, alpha=0.15, lw=0)
    for axes, size in zip(panels, sizes, strict=True):
        axes.set(xscale="log", yscale="log", xlabel="steps", title=f"step size {size:g}")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("KL(true || learned)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    path = output / "categorical.png"
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150, format="png")
    return path
