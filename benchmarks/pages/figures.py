"""The figures, drawn from result files alone, the blog's own numbers faintly beside ours."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from benchmarks.atomic import replacing
from benchmarks.experiment.configuration import STARTS_FROM
from benchmarks.pages.comparison import CONTROL, PAIRS, Comparison, blog

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
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(
        list(found.values()), list(found), loc="outside lower center", ncols=columns, frameon=False
    )
    return figure


def line(
    axes: Axes, x: Sequence[float], runs: Sequence[Sequence[float]], colour: str, **more: Any
) -> None:
    """The mean of the runs, and their range."""
    values = np.array(runs)
    axes.plot(x, values.mean(0), color=colour, **more)
    if len(values) > 1:
        axes.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)


def curves(found: Sequence[Comparison]) -> Figure:
    """A panel each: the test error over all epochs, those of the arm that one goes on from
    first."""
    figure, axes = panels(len(found), 5.2 if len(found) > 1 else 8, 4)
    for panel, comparison in zip(axes, found, strict=True):
        theirs = comparison.blog.get("accuracy", {})
        for arm, runs in comparison.arms.items():
            label, colour = ARMS[arm]
            errors = [[100 * (1 - epoch.test_accuracy) for epoch in run.epochs] for run in runs]
            marker = "." if len(errors[0]) == 1 else None
            line(panel, _epochs(arm, errors[0]), errors, colour, label=label, marker=marker)
            if arm in theirs:
                there = [100 * (1 - accuracy) for accuracy in theirs[arm]["val"]]
                line(panel, _epochs(arm, there), [there], colour, alpha=FAINT, label=FAINTLY)
        plain(panel.yaxis)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set(
            title=comparison.title(),
            xlabel="epochs of training, the first phase's included",
            ylabel="test error (%), lower is better",
        )
    return legend_below(figure)


def _epochs(arm: str, values: Sequence[float]) -> range:
    """Their numbers; an arm that goes on from another has them after as many of that one."""
    before = len(values) if arm in STARTS_FROM else 0
    return range(before + 1, before + len(values) + 1)


def forest(found: Sequence[Comparison]) -> Figure:
    """A row per pair and comparison: the mean difference at the last epoch, and its interval."""
    rows = [
        (f"{arm} - {other}".replace(CONTROL, "control"), c.title(arm in STARTS_FROM), paired)
        for pair in PAIRS
        for c in found
        for arm, other, paired in c.pairs()
        if (arm, other) == pair
    ]
    figure, (axes,) = panels(1, 9.5, 1.4 + 0.3 * len(rows))
    colours = dict(zip(dict.fromkeys(pair for pair, *_ in rows), "brgm", strict=False))
    for at, (pair, _, paired) in enumerate(rows):
        low, high = paired.interval or (paired.mean, paired.mean)
        axes.plot([100 * low, 100 * high], [at, at], color=colours[pair], lw=2)
        axes.plot(100 * paired.mean, at, "o" if paired.interval else "x", color=colours[pair])
    axes.set_yticks(range(len(rows)), [f"{pair}   {name}" for pair, name, _ in rows], fontsize=8)
    axes.axvline(0, color="black", lw=1)
    figure.suptitle("By how much an arm is more accurate than another, last epoch")
    axes.set(
        ylim=(max(len(rows), 1) - 0.5, -0.5),
        xlabel="percentage points: mean, 95 % interval; x: one seed",
    )
    return figure


def utilisation(found: Sequence[Comparison]) -> Figure:
    """The masked share of each layer, the mean of the seeds; the blog's faintly beside."""
    with_masks = [c for c in found if "mask" in c.arms]
    figure, axes = panels(len(with_masks), 6.5, 4.5)
    for panel, comparison in zip(axes, with_masks, strict=True):
        runs = [result.utilisation for result in comparison.arms["mask"]]
        names = [layer.layer for layer in runs[0]]
        ours = [100 * mean(layer.masked for layer in same) for same in zip(*runs, strict=True)]
        panel.bar(np.arange(len(names)) - 0.2, ours, 0.4, color="tab:blue", label="ours")
        there = [x for x in blog(comparison.of.dataset).get("layers", ()) if x.layer in names]
        if there:
            where = [names.index(layer.layer) + 0.2 for layer in there]
            panel.bar(where, [100 * x.masked for x in there], 0.4, color="grey", label="the blog's")
        panel.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        panel.set(title=comparison.title(goes_on=False), ylabel="masked (%)")
    return legend_below(figure)


def by_density(groups: Mapping[str, Mapping[float, Sequence[float]]], xlabel: str) -> Figure:
    """Accuracies (%) over density (%): a line per name, with the range of its seeds. Names that
    begin alike, up to a comma, have one colour, those that end alike one marker."""
    figure, (axes,) = panels(1, 9, 5.5)
    heads, tails = (list(dict.fromkeys(name.partition(", ")[i] for name in groups)) for i in (0, 2))
    for name, points in groups.items():
        head, _, tail = name.partition(", ")
        x = sorted(points)
        middle = np.array([mean(points[at]) for at in x])
        spread = [middle - [min(points[at]) for at in x], [max(points[at]) for at in x] - middle]
        label, colour = ARMS.get(name, (name, f"C{heads.index(head)}"))
        marker = "osD^vP*X"[tails.index(tail)]
        axes.errorbar(x, middle, spread, color=colour, marker=marker, label=label)
    plain(axes.xaxis)
    axes.set(xlabel=xlabel, ylabel="test accuracy (%), last epoch")
    return legend_below(figure)


def divergences(steps: Sequence[int], methods: Sequence[Mapping[str, Any]]) -> Figure:
    """The toy: a panel per step size, a line per method."""
    sizes = list(dict.fromkeys(each["step_size"] for each in methods))
    names = list(dict.fromkeys(each["method"] for each in methods))
    figure, axes = panels(len(sizes), 3.8, 4)
    for each in methods:
        panel = axes[sizes.index(each["step_size"])]
        colour = f"C{names.index(each['method'])}"
        line(panel, steps, each["divergence"], colour, label=each["method"])
        panel.set(xlabel="steps", title=f"step size {each['step_size']:g}")
    for panel in axes:
        panel.set(xscale="log", yscale="log", ylabel="KL(true || learned)")
    return legend_below(figure, columns=4)
