"""What the studies of estimators, tickets and published supermasks found, for the page."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.results import Result, read_results
from benchmarks.pages.figures import by_density, save

Groups = Mapping[Configuration, list[Result]]  # the seeds of a configuration
Points = dict[
    str, dict[float, list[float]]
]  # by line of a figure and density: accuracies, all in %


def context(results: Path, figures: Path) -> dict[str, Any]:
    """Empty for each study that has no results."""
    of = {
        name: grouped(read_results(results / name))
        for name in ("which-estimator", "tickets", "supermasks", "literature", "reduced")
    }
    full = {c: runs for c, runs in of["which-estimator"].items() if c.held_out is None}
    if full:
        points: Points = {}
        for c, runs in full.items():
            kept = 100 * (1 - sum(run.masked_fraction or 0 for run in runs) / len(runs))
            points.setdefault(f"{c.estimator}, {c.weights} weights", {})[kept] = accuracies(runs)
        save(by_density(points, "density of the mask (%)"), figures / "estimators.png")
    published = json.loads(Path(__file__).with_name("published.json").read_text())
    return {
        "estimators": sorted(full.items(), key=lambda found: -sum(accuracies(found[1]))),
        "tickets": tickets(of["tickets"], figures),
        "supermasks": [
            (*row, theirs)
            for groups in (of["supermasks"], of["literature"])
            for network, theirs in published["networks"].items()
            for row in changes({c: runs for c, runs in groups.items() if c.network == network})
        ],
        "published": published,
        "earlier_estimators": {c: runs for c, runs in of["reduced"].items() if c.arm == "mask"},
    }


def grouped(results: Iterable[Result]) -> Groups:
    groups: dict[Configuration, list[Result]] = {}
    for result in results:
        groups.setdefault(replace(result.configuration, seed=0), []).append(result)
    return groups


def accuracies(runs: Iterable[Result]) -> list[float]:
    return [100 * run.last.test_accuracy for run in runs]


def tickets(groups: Groups, figures: Path) -> dict[str, Points]:
    """By data set; a figure of each."""
    found: dict[str, Points] = {}
    for c, runs in groups.items():
        points = found.setdefault(c.dataset, {}).setdefault(c.arm, {})
        points[100 * (c.density or 1)] = accuracies(runs)
    for dataset, of in found.items():
        save(by_density(of, "density (%)"), figures / f"tickets-{dataset}.png")
    return found


def changes(groups: Groups) -> Iterator[tuple[Configuration, str, list[Result]]]:
    """Settings of one network: what each changes from the first, and that from the blog's."""
    named = ("dataset", "network", "depth", "width", "seed")
    # The setting that most are a change from comes first.
    here = sorted(groups, key=lambda c: sum(len(c.changes(other, *named)) for other in groups))
    for c in here:
        changed = c.changes(c.blogs if c == here[0] else here[0], *named)
        words = ", ".join(f"{name} {ours}" for name, (ours, _) in changed.items())
        yield c, ("" if c == here[0] else "the same, but ") + words, groups[c]
