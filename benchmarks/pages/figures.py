"""The figures, drawn from result files alone, the blog's own numbers faintly beside ours."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from benchmarks.experiment.configuration import STARTS_FROM
from benchmarks.files import replacing
from benchmarks.pages.comparison import CONTROL, PAIRS, Difference, Experiment
from benchmarks.pages.render import title

Points = Mapping[float, Sequence[float]]  # the values at each x
ARMS = {  # as a figure calls and colours them
    "mask": ("a mask alone (mask)", "tab:blue"),
    "weights": ("weights alone (weights)", "tab:orange"),
    "mix": ("then weights under that mask (mix)", "tab:green"),
    CONTROL: (f"then weights once more, no mask ({CONTROL})", "tab:red"),
    "ticket": ("the largest trained weights, from the start again (ticket)", "tab:purple"),
    "random-mix": ("random, as dense as the mask (random-mix)", "tab:olive"),
    "random-ticket": ("random, as dense as the ticket (random-ticket)", "tab:pink"),
}
FAINT, FAINTLY = 0.35, "the blog's, faint"


def save(figure: Figure, path: Path) -> Path:
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
    return path


def plain(axis: Axis) -> None:
    """A logarithmic axis with ticks that one can read: 1, 2, 5, 10, ..."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})  # type: ignore[attr-defined]
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.set_minor_formatter(NullFormatter())


def panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Up to three in a row; four in two."""
    columns = 2 if count == 4 else min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = [figure.add_subplot(rows, columns, number) for number in range(1, count + 1)]
    for each in axes:
        each.grid(alpha=0.3)
    return figure, axes


def legend_below(figure: Figure, columns: int = 2) -> Figure:
    pairs = (zip(*axes.get_legend_handles_labels(), strict=True) for axes in figure.axes)
    found = {label: handle for handle, label in chain.from_iterable(pairs)}
    handles, labels = list(found.values()), list(found)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def line(axes: Axes, points: Points, **look: Any) -> None:
    """At each x the mean, and the range."""
    x = sorted(points)
    middle, low, high = ([of(points[at]) for at in x] for of in (mean, min, max))
    (drawn,) = axes.plot(x, middle, **{"marker": "." if len(x) == 1 else "", **look})
    axes.fill_between(x, low, high, color=drawn.get_color(), alpha=0.2)


def errors(arm: str, runs: Iterable[Sequence[float]]) -> Points:
    """Errors (%) by epoch, of runs' accuracies; an arm that goes on from another comes after as
    many epochs of that one."""
    by_epoch = list(zip(*runs, strict=True))
    before = len(by_epoch) if arm in STARTS_FROM else 0
    return {
        before + number: [100 * (1 - accuracy) for accuracy in same]
        for number, same in enumerate(by_epoch, start=1)
    }


def curves(found: Sequence[Experiment]) -> Figure:
    """A panel each: the test error over all epochs."""
    figure, axes = panels(len(found), 5.2 if len(found) > 1 else 8, 4)
    for panel, experiment in zip(axes, found, strict=True):
        theirs = experiment.blog.get("accuracy", {})
        for of, runs in experiment.groups.items():
            label, colour = ARMS[of.arm]
            ours = [[epoch.test_accuracy for epoch in run.epochs] for run in runs]
            line(panel, errors(of.arm, ours), color=colour, label=label)
            if of.arm in theirs:
                there = errors(of.arm, [theirs[of.arm]["val"]])
                line(panel, there, color=colour, alpha=FAINT, label=FAINTLY)
        plain(panel.yaxis)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set(title=title(of), ylabel="test error (%), lower is better")
        panel.set(xlabel="epochs of training, the first phase's included")
    return legend_below(figure)


def forest(found: Iterable[Difference]) -> Figure:
    """A row each: the mean at the last epoch, averages anew, and its interval."""
    rows = sorted(found, key=lambda row: PAIRS.index(row.pair))
    figure, (axes,) = panels(1, 9.5, 1.4 + 0.3 * len(rows))
    for at, row in enumerate(rows):
        ends, colour = row.last.interval or (row.last.mean,), "brgm"[PAIRS.index(row.pair)]
        axes.plot([100 * end for end in ends], [at] * len(ends), color=colour, lw=2)
        axes.plot(100 * row.last.mean, at, "o" if row.last.interval else "x", color=colour)
    names = [" - ".join(row.pair).replace(CONTROL, "control") for row in rows]
    labels = [f"{name}   {title(row.of)}" for name, row in zip(names, rows, strict=True)]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.axvline(0, color="black", lw=1)
    figure.suptitle("By how much an arm is more accurate than another, last epoch, averages anew")
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.set_xlabel("percentage points: mean, 95 % interval; x: one seed")
    return figure


def by_density(groups: Mapping[str, Points], xlabel: str) -> Figure:
    """Accuracies (%) over density (%). Names that begin alike, up to a comma, have one colour,
    those that end alike one marker."""
    figure, (axes,) = panels(1, 9, 5.5)
    heads, tails = (list(dict.fromkeys(name.partition(", ")[i] for name in groups)) for i in (0, 2))
    for name, points in groups.items():
        head, _, tail = name.partition(", ")
        label, colour = ARMS.get(name, (name, f"C{heads.index(head)}"))
        line(axes, points, color=colour, marker="osD^vP*X"[tails.index(tail)], label=label)
    plain(axes.xaxis)
    axes.set(xlabel=xlabel, ylabel="test accuracy (%), last epoch")
    return legend_below(figure)


def divergences(steps: Sequence[int], methods: Sequence[Mapping[str, Any]]) -> Figure:
    """The toy: a panel per step size, a line per method."""
    frame = pd.DataFrame(methods)
    figure, axes = panels(frame["step_size"].nunique(), 3.8, 4)
    for panel, (size, same) in zip(axes, frame.groupby("step_size", sort=False), strict=True):
        for method, runs in zip(same["method"], same["divergence"], strict=True):
            line(panel, dict(zip(steps, zip(*runs, strict=True), strict=True)), label=method)
        panel.set(xscale="log", yscale="log", xlabel="steps", title=f"step size {size:g}")
        panel.set(ylabel="KL(true || learned)")
    return legend_below(figure, columns=4)
