"""The blog's figures, drawn from result files alone, its own numbers faintly beside ours."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from benchmarks import BenchmarkError
from benchmarks.atomic import replacing
from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.results import Result
from benchmarks.pages.reference import blog, is_comparable

COLOURS = {
    "mask": "tab:blue",
    "weights": "tab:orange",
    "mix": "tab:green",
    "weights-then-weights": "tab:red",
}
FAINT = 0.3


def draw(results: Sequence[Result], output: Path) -> list[Path]:
    """Training curves and mask utilisation per data set, network and estimator, as PNG files."""
    drawn = []
    for dataset, network in sorted({_setting(result) for result in results}):
        here = [result for result in results if _setting(result) == (dataset, network)]
        estimators = sorted({str(e) for r in here if (e := r.configuration.estimator)})
        for estimator in estimators or [""]:
            shown = [r for r in here if r.configuration.estimator in (None, estimator)]
            _check_seeds_alone_differ(shown)
            title = " · ".join(part for part in (dataset, network, estimator) if part)
            figures = {"curves": training_curves(shown, title)}
            if masks := [result for result in shown if result.configuration.arm == "mask"]:
                figures["utilisation"] = mask_utilisation(masks, title)
            for kind, figure in figures.items():
                path = output / f"{kind}-{title.replace(' · ', '-')}.png"
                with replacing(path) as partial:
                    figure.savefig(partial, dpi=150, format="png")
                drawn.append(path)
    return drawn


def _setting(result: Result) -> tuple[str, str]:
    return result.configuration.dataset, result.configuration.network_name


def _check_seeds_alone_differ(results: Sequence[Result]) -> None:
    """The runs of an arm are averaged, so they must be runs of one configuration."""
    first: dict[str, Configuration] = {}
    for result in results:
        other = result.configuration
        one = first.setdefault(other.arm, other)
        differing = [f.name for f in fields(one) if getattr(one, f.name) != getattr(other, f.name)]
        if set(differing) - {"seed"}:
            raise BenchmarkError(
                f"{one.name}.json and {other.name}.json can't be drawn as seeds of one run: they "
                f"differ in {', '.join(differing)}. Move one to another folder."
            )


def training_curves(results: Sequence[Result], title: str) -> Figure:
    """Accuracy over epochs: train and test of each arm, the mean and range of its seeds."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(
        xlabel="epoch of the arm", ylabel="accuracy", title=f"Training curves: {title}"
    )
    reference = blog(results[0].configuration.dataset)
    blog_drawn = False
    arms = [arm for arm in COLOURS if any(r.configuration.arm == arm for r in results)]
    for arm in arms:
        runs = [result for result in results if result.configuration.arm == arm]
        if reference and arm in reference.curves and is_comparable(runs[0].configuration):
            curve = reference.curves[arm]
            _curve(axes, [curve.train], COLOURS[arm], "--", FAINT)
            _curve(axes, [curve.test], COLOURS[arm], "-", FAINT)
            blog_drawn = True
        train = [[epoch.train_accuracy for epoch in run.epochs] for run in runs]
        test = [[epoch.test_accuracy for epoch in run.epochs] for run in runs]
        _curve(axes, train, COLOURS[arm], "--", 1)
        _curve(axes, test, COLOURS[arm], "-", 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    legend: list[Artist] = [Patch(color=COLOURS[arm], label=arm) for arm in arms]
    legend += [
        Line2D([], [], color="black", linestyle="-", label="test"),
        Line2D([], [], color="black", linestyle="--", label="train"),
    ]
    if blog_drawn:
        legend.append(Line2D([], [], color="black", alpha=FAINT, label="the blog (WRN-28-8)"))
    figure.legend(handles=legend, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _curve(
    axes: Axes, runs: Sequence[Sequence[float]], colour: str, style: str, alpha: float
) -> None:
    values = np.array(runs)
    epochs = np.arange(1, values.shape[1] + 1)
    marker = "." if len(epochs) == 1 else None  # a line of one point would not show
    axes.plot(epochs, values.mean(0), style, color=colour, alpha=alpha, lw=1.5, marker=marker)
    if len(values) > 1:
        axes.fill_between(
            epochs, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0
        )


def mask_utilisation(masks: Sequence[Result], title: str) -> Figure:
    """Per layer: masked fraction (the mean of the seeds) above, number of parameters below."""
    layers = masks[0].utilisation
    names = [layer.layer for layer in layers]
    masked = np.array([[layer.masked for layer in result.utilisation] for result in masks])
    figure = Figure(figsize=(max(5, 2 + 0.3 * len(names)), 6.5), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=[2, 1])
    positions = np.arange(len(names))

    reference = blog(masks[0].configuration.dataset)
    if reference and is_comparable(masks[0].configuration):
        theirs = [
            (names.index(layer.layer), layer)
            for layer in reference.utilisation
            if layer.layer in names
        ]
        at = np.array([position for position, _ in theirs]) + 0.2
        above.bar(at, [100 * layer.masked for _, layer in theirs], 0.4, color="grey", alpha=FAINT)
        below.bar(at, [layer.parameters for _, layer in theirs], 0.4, color="grey", alpha=FAINT)
        handles = [
            Patch(color=COLOURS["mask"], label="ours"),
            Patch(color="grey", alpha=FAINT, label="the blog (WRN-28-8)"),
        ]
        figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False)
        ours, width = positions - 0.2, 0.4
    else:
        ours, width = positions.astype(float), 0.8
    spread = np.abs([masked.min(0), masked.max(0)] - masked.mean(0)) if len(masks) > 1 else None
    above.bar(
        ours,
        100 * masked.mean(0),
        width,
        color=COLOURS["mask"],
        yerr=None if spread is None else 100 * spread,
        ecolor="black",
    )
    below.bar(ours, [layer.parameters for layer in layers], width, color=COLOURS["mask"])
    above.set(ylabel="masked (%)", title=f"Mask utilisation: {title}")
    below.set(ylabel="parameters", yscale="log", xlim=(-0.7, len(names) - 0.3))
    below.set_xticks(positions, names, rotation=90, fontsize=8)
    for axes in (above, below):
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    return figure
