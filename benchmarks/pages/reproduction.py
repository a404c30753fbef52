"""docs/reproduction.md: what became of the blog's question, from the committed results alone."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]

from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.results import RESULTS, Groups, Layer, Result, grouped, masked_share
from benchmarks.experiment.results import read_results as read
from benchmarks.files import write_text
from benchmarks.pages import figures
from benchmarks.pages.comparison import CONTROL, Experiment, blog, experiments, paired
from benchmarks.pages.render import DOCS, render

STUDIES = ("blog", "blog-small")  # that answer the question
EARLIER = ("reduced", "wrn-28-1")  # and that did before them
KINDS = {
    "all layers": "", "stem": "stem", "3x3 in blocks": ".conv", "1x1 shortcuts": ".shortcut",
    "dense": "class",
}  # fmt: skip


def write(results: Path = RESULTS, docs: Path = DOCS) -> Path:
    """Write docs/reproduction.md and its figures from the results in benchmarks/results."""
    text = render("reproduction.md", **context(results, docs / "figures"))
    return write_text(text, docs / "reproduction.md")


def context(results: Path, folder: Path) -> dict[str, Any]:
    """All that the template asks for; what the results do not give is empty."""
    main, earlier = (
        [experiment for name in names for experiment in experiments(results / name)]
        for names in (STUDIES, EARLIER)
    )
    differences = [found for one in main for found in one.differences()]
    if main:
        phases = [phase for one in main for phase in one.phases()]
        figures.save(figures.forest(differences), folder / "differences.png")
        figures.save(figures.curves(phases[:6]), folder / "curves.png")
    published = json.loads(Path(__file__).with_name("published.json").read_text())
    return {
        "main": main,
        "earlier": earlier,
        "differences": differences,
        "control": CONTROL,
        "blog": blog,
        "by_kind": by_kind,
        "published": published,
        "estimators": estimators(grouped(read(results / "which-estimator")), folder),
        "tickets": tickets(runs := grouped(read(results / "tickets")), folder),
        "beside": Experiment("tickets", runs),
        **{
            study: list(changes(grouped(read(results / study)), published["networks"]))
            for study in ("supermasks", "literature")
        },
        "toy": toy(results / "categorical" / "categorical.json", folder),
    }


def by_kind(runs: Sequence[Sequence[Layer]]) -> dict[str, list[float | None]]:
    """The masked share of each kind of layer, run by run."""
    return {
        kind: [masked_share([x for x in layers if part in x.layer]) for layers in runs]
        for kind, part in KINDS.items()
    }


def accuracies(runs: Sequence[Result]) -> list[float]:
    return [100 * run.last.test_accuracy for run in runs]


Lines = dict[str, dict[float, list[float]]]  # of a figure: accuracies (%) by name and density (%)


def estimators(groups: Groups, folder: Path) -> list[tuple[Configuration, list[Result]]]:
    """Those that were run in full, the best first."""
    full = {of: runs for of, runs in groups.items() if of.held_out is None}
    points: Lines = {}
    for of, runs in full.items():
        kept = 100 * (1 - sum(run.masked_fraction or 0 for run in runs) / len(runs))
        points.setdefault(f"{of.estimator}, {of.weights} weights", {})[kept] = accuracies(runs)
    if full:
        drawn = figures.by_density(points, "density of the mask (%)")
        figures.save(drawn, folder / "estimators.png")
    return sorted(full.items(), key=lambda found: -sum(accuracies(found[1])))


def tickets(groups: Groups, folder: Path) -> dict[str, Lines]:
    """By data set, and arm."""
    found: dict[str, Lines] = {}
    for of, runs in groups.items():
        points = found.setdefault(of.dataset, {}).setdefault(of.arm, {})
        points[100 * (of.density or 1)] = accuracies(runs)
    for dataset, arms in found.items():
        figures.save(figures.by_density(arms, "density (%)"), folder / f"tickets-{dataset}.png")
    return found


def changes(groups: Groups, networks: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """By network its settings: what each changes from the first, and that from the blog's; what
    that adds; the runs; what others found."""
    named = ("dataset", "network", "depth", "width")
    for network, theirs in networks.items():
        same = [of for of in groups if of.network == network]
        # The setting that most are a change from comes first.
        here = sorted(same, key=lambda of: sum(len(of.changes(other, *named)) for other in same))
        for of in here:
            changed = of.changes(of.blogs if of == here[0] else here[0], *named)
            words = ", ".join(f"{name} {ours}" for name, (ours, _) in changed.items())
            adds = paired(groups[of], groups[here[0]])
            yield of, ("" if of == here[0] else "the same, but ") + words, adds, groups[of], theirs


def toy(path: Path, folder: Path) -> dict[str, Any] | None:
    """KL(pi_true || pi) by method, step size and step; `mean` says it for the page's sentences."""
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text())
    drawn = figures.divergences(content["steps"], content["methods"])
    figures.save(drawn, folder / "categorical.png")
    means = {}
    for each in content["methods"]:
        mean = pd.DataFrame(each["divergence"], columns=content["steps"]).mean()
        means[each["method"], each["step_size"]] = {**mean, "lowest": mean.min()}
    return {**content, "mean": lambda *key: f"{means[key[:2]][key[2]]:.4f}"}
