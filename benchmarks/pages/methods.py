"""What the studies of estimators, tickets and published supermasks found, for the page."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.results import Result
from benchmarks.pages.figures import DATASETS, by_density, save
from benchmarks.pages.render import outcomes, render, spread, table
from benchmarks.studies.study import results_so_far

Groups = Mapping[Configuration, list[Result]]  # the seeds of a configuration


def context(results: Path, figures: Path) -> dict[str, Any]:
    """Empty for each study that has no results."""
    return {
        "estimators": _estimators(results_so_far(results / "which-estimator"), figures),
        "tickets": _tickets(results_so_far(results / "tickets"), figures),
        "supermasks": _supermasks(
            results_so_far(results / "supermasks"), results_so_far(results / "literature")
        ),
        "earlier_estimators": _earlier(results_so_far(results / "reduced")),
    }


def grouped(results: Iterable[Result]) -> Groups:
    groups: dict[Configuration, list[Result]] = {}
    for result in results:
        groups.setdefault(replace(result.configuration, seed=0), []).append(result)
    return groups


def method(configuration: Configuration) -> str:
    density = configuration.density
    return f"{configuration.estimator}" + ("" if density is None else f" {density:g}")


def _estimators(results: Iterable[Result], figures: Path) -> str:
    """The full runs, the most accurate first, with the settings that the trials chose."""
    full = grouped(r for r in results if r.configuration.held_out is None)
    if not full:
        return ""
    points: dict[str, dict[float, list[float]]] = {}
    for c, runs in full.items():
        kept = 100 * (1 - sum(run.masked_fraction or 0 for run in runs) / len(runs))
        name = f"{c.estimator}, {c.weights} weights"
        points.setdefault(name, {})[kept] = [100 * run.last.test_accuracy for run in runs]
    save(by_density(points, "density of the mask (%)"), figures / "estimators.png")
    ordered = sorted(full.items(), key=lambda x: -sum(r.last.test_accuracy for r in x[1]))
    return table(
        {
            "estimator": method(c),
            "weights": c.weights,
            "learning rate": f"{c.lr:g}",
            "scores start": c.init or "the estimator's own",
            **outcomes(runs),
        }
        for c, runs in ordered
    )


def _tickets(results: Iterable[Result], figures: Path) -> list[dict[str, str]]:
    """Per data set: a table of last accuracies, a row per density, a column per arm."""
    found = []
    groups = grouped(results)
    for dataset in dict.fromkeys(c.dataset for c in groups):
        points: dict[str, dict[float, list[float]]] = {}
        for c, runs in groups.items():
            if c.dataset == dataset:
                accuracies = [100 * run.last.test_accuracy for run in runs]
                points.setdefault(c.arm, {})[100 * (c.density or 1)] = accuracies
        path = save(by_density(points, "density (%)"), figures / f"tickets-{dataset}.png")
        densities = sorted({at for arm in points.values() for at in arm}, reverse=True)
        rows = (
            {"density": f"{at:g} %"}
            | {arm: spread(of[at]) if at in of else "-" for arm, of in points.items()}
            for at in densities
        )
        found.append({"name": DATASETS[dataset], "table": table(rows), "figure": path.name})
    return found


def _supermasks(results: Iterable[Result], earlier: Iterable[Result]) -> str:
    """A row per setting, what it changes from the first of its network, the published beside."""
    published = json.loads(Path(__file__).with_name("published.json").read_text())

    def rows() -> Iterator[dict[str, str]]:
        for groups in (grouped(results), grouped(earlier)):
            for network, theirs in published["networks"].items():
                found = [c for c in groups if c.network == network]
                # The setting that most are a change from comes first.
                here = sorted(found, key=lambda c: sum(len(_changed(c, o)) for o in found))
                for c in here:
                    base = Configuration(c.dataset).for_arm(c.arm) if c == here[0] else here[0]
                    words = "" if c == here[0] else "the same, but "
                    yield {
                        "network": c.network_name,
                        "setting": words + ", ".join(_changed(c, base)),
                        **outcomes(groups[c]),
                        **theirs,
                    }

    shown = list(rows())
    return render("supermasks.md", table=table(shown), **published) if shown else ""


def _changed(ours: Configuration, base: Configuration) -> list[str]:
    named = ("dataset", "network", "depth", "width", "seed")
    return [
        f"{field.name} {getattr(ours, field.name)}"
        for field in fields(ours)
        if field.name not in named and getattr(ours, field.name) != getattr(base, field.name)
    ]


def _earlier(results: Iterable[Result]) -> str:
    """The mask arm of the study `reduced` under each estimator."""
    masks = grouped(r for r in results if r.configuration.arm == "mask")
    return table(
        {"data set": DATASETS[c.dataset], "estimator": method(c), **outcomes(runs)}
        for c, runs in masks.items()
    ) if masks else ""  # fmt: skip
