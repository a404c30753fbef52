"""The figures, drawn from results alone; the blog's own numbers are faint."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullFormatter,
    StrMethodFormatter,
)

from benchmarks.experiment.arms import ARMS, CONTROL
from benchmarks.files import replacing
from benchmarks.pages.comparison import PAIRS, Difference, Experiment
from benchmarks.pages.formats import title

Points = Mapping[float, Sequence[float]]  # the values at each x

PAIR_COLOURS = dict(zip(PAIRS, "brgm", strict=True))
MARKERS = "osD^vP*X"
FAINT, FAINT_LABEL = 0.35, "the blog's, faint"


def save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def set_log_scale(axis: Axis) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2, 5, 10, ..."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})  # type: ignore[attr-defined]
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.set_minor_formatter(NullFormatter())


def make_panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels of this size, three in a row; four in two rows."""
    columns = 2 if count == 4 else min(count, 3)
    rows = -(-count // columns)  # rounded up
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    panels = [
        figure.add_subplot(rows, columns, number) for number in range(1, count + 1)
    ]
    for panel in panels:
        panel.grid(alpha=0.3)
    return figure, panels


def add_legend_below(figure: Figure, columns: int = 2) -> None:
    """Add one legend of all panels, with each label once."""
    by_label = {
        label: handle
        for panel in figure.axes
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(by_label.values()),
        list(by_label),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
    )


def draw_line(panel: Axes, points: Points, **style: Any) -> None:
    """Draw the mean at each x, and the range as a band."""
    x = sorted(points)
    means = [mean(points[at]) for at in x]
    lowest = [min(points[at]) for at in x]
    highest = [max(points[at]) for at in x]
    style = {"marker": "." if len(x) == 1 else "", **style}
    (line,) = panel.plot(x, means, **style)
    panel.fill_between(x, lowest, highest, color=line.get_color(), alpha=0.2)


def errors_by_epoch(arm: str, runs: Iterable[Sequence[float]]) -> Points:
    """Return errors (%) by epoch from accuracies, one sequence per run.

    An arm that starts from another is shifted by as many epochs as it has itself.
    """
    by_epoch = list(zip(*runs, strict=True))
    before = 0 if ARMS[arm].starts_from is None else len(by_epoch)
    return {
        before + number: [100 * (1 - accuracy) for accuracy in accuracies]
        for number, accuracies in enumerate(by_epoch, start=1)
    }


def curves(experiments: Sequence[Experiment]) -> Figure:
    """Draw the test error over all epochs, a panel per experiment."""
    width = 5.2 if len(experiments) > 1 else 8
    figure, panels = make_panels(len(experiments), width, 4)
    for panel, experiment in zip(panels, experiments, strict=True):
        _draw_experiment(panel, experiment)
        set_log_scale(panel.yaxis)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        last_configuration = list(experiment.groups)[-1]
        panel.set(
            title=title(last_configuration),
            xlabel="epochs of training, including the first phase",
            ylabel="test error (%), lower is better",
        )
    add_legend_below(figure)
    return figure


def _draw_experiment(panel: Axes, experiment: Experiment) -> None:
    published = experiment.published.get("accuracy", {})
    for configuration, runs in experiment.groups.items():
        arm = ARMS[configuration.arm]
        ours = [[epoch.test_accuracy for epoch in run.epochs] for run in runs]
        points = errors_by_epoch(arm.name, ours)
        draw_line(panel, points, color=arm.colour, label=arm.label)
        if arm.name in published:
            blogs = errors_by_epoch(arm.name, [published[arm.name]["val"]])
            draw_line(panel, blogs, color=arm.colour, alpha=FAINT, label=FAINT_LABEL)


def forest(differences: Iterable[Difference]) -> Figure:
    """Draw each difference at the last epoch with its interval, a row each."""
    rows = sorted(differences, key=lambda row: PAIRS.index(row.pair))
    figure, (panel,) = make_panels(1, 9.5, 1.4 + 0.3 * len(rows))
    labels = []
    for y, row in enumerate(rows):
        average, interval = 100 * row.last.mean, row.last.interval
        colour = PAIR_COLOURS[row.pair]
        ends = (row.last.mean,) if interval is None else interval
        panel.plot([100 * end for end in ends], [y] * len(ends), color=colour, lw=2)
        panel.plot(average, y, "x" if interval is None else "o", color=colour)
        pair = " - ".join(row.pair).replace(CONTROL, "control")
        labels.append(f"{pair}   {title(row.configuration)}")
    panel.set_yticks(range(len(rows)), labels, fontsize=8)
    panel.axvline(0, color="black", lw=1)
    panel.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    panel.set_xlabel("percentage points: mean, 95 % interval; x: one seed")
    figure.suptitle(
        "Accuracy of one arm minus another, last epoch, recalibrated batch norm"
    )
    return figure


def by_density(groups: Mapping[str, Points], xlabel: str) -> Figure:
    """Draw accuracies (%) over density (%).

    The key of a group is an arm, or "estimator, weights": estimators differ in colour,
    weights in marker.
    """
    figure, (panel,) = make_panels(1, 9, 5.5)
    heads = list(dict.fromkeys(name.partition(", ")[0] for name in groups))
    tails = list(dict.fromkeys(name.partition(", ")[2] for name in groups))
    for name, points in groups.items():
        head, _, tail = name.partition(", ")
        if name in ARMS:
            label, colour = ARMS[name].label, ARMS[name].colour
        else:
            label, colour = name, f"C{heads.index(head)}"
        marker = MARKERS[tails.index(tail)]
        draw_line(panel, points, color=colour, marker=marker, label=label)
    set_log_scale(panel.xaxis)
    panel.set(xlabel=xlabel, ylabel="test accuracy (%), last epoch")
    add_legend_below(figure)
    return figure


def divergences(steps: Sequence[int], methods: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw intermediate sampling's toy: a panel per step size, a line per method."""
    frame = pd.DataFrame(methods)
    by_step_size = frame.groupby("step_size", sort=False)
    figure, panels = make_panels(len(by_step_size), 3.8, 4)
    for panel, (step_size, same) in zip(panels, by_step_size, strict=True):
        for method, runs in zip(same["method"], same["divergence"], strict=True):
            by_step: Points = dict(zip(steps, zip(*runs, strict=True), strict=True))
            draw_line(panel, by_step, label=method)
        panel.set(
            xscale="log",
            yscale="log",
            xlabel="steps",
            ylabel="KL(true || learned)",
            title=f"step size {step_size:g}",
        )
    add_legend_below(figure, columns=4)
    return figure
