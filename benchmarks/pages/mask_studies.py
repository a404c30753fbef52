"""What masks alone reach: the estimators, the published supermasks, tickets."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.experiment.arms import CONTROL
from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.results import Groups, Result
from benchmarks.pages import figures
from benchmarks.pages.comparison import Experiment, Paired, Verdict, paired
from benchmarks.pages.formats import dataset_name, points
from benchmarks.pages.verdicts import SUPERMASK_OR_TICKET, tally

NAMED_BY_NETWORK = ("dataset", "network", "depth", "width")


def final_accuracies(runs: Iterable[Result]) -> list[float]:
    """In %."""
    return [100 * run.final_accuracy for run in runs]


# The lines of a figure: accuracies (%) by name and density (%).
Lines = dict[str, dict[float, list[float]]]


def estimators(
    groups: Groups, folder: Path
) -> list[tuple[Configuration, list[Result]]]:
    """Return the settings that were run in full, the most accurate first; draw them."""
    full = {c: runs for c, runs in groups.items() if c.held_out is None}
    lines: Lines = {}
    for configuration, runs in full.items():
        masked = sum(run.masked_fraction or 0 for run in runs) / len(runs)
        name = f"{configuration.estimator}, {configuration.weights} weights"
        lines.setdefault(name, {})[100 * (1 - masked)] = final_accuracies(runs)
    if full:
        figure = figures.by_density(lines, "density of the mask (%)")
        figures.save(figure, folder / "estimators.png")
    return sorted(full.items(), key=lambda item: -mean(final_accuracies(item[1])))


# The arms of `tickets` in the order of their columns, with what the page calls them.
TICKET_ARMS = {
    "mask": "mask alone",
    "mix": "supermask, then weights",
    "random-mix": "random control",
    "ticket": "ticket",
    "random-ticket": "random control",
}
TICKET_PAIRS = (
    ("mix", "random-mix"),
    ("ticket", "random-ticket"),
    ("mix", "ticket"),
    ("random-mix", "random-ticket"),
)


@dataclass(frozen=True)
class AtDensity:
    """The arms of `tickets` on one data set at one density."""

    dataset: str
    density: float  # in %
    accuracies: Sequence[Sequence[float]]  # by arm, in the order of TICKET_ARMS
    differences: Sequence[Paired | None]  # by pair, in the order of TICKET_PAIRS


@dataclass(frozen=True)
class Tickets:
    conclusion: str  # empty if no comparison has several seeds
    dense: Mapping[str, Sequence[float]]  # accuracies by data set
    rows: Sequence[AtDensity]
    datasets: Sequence[str]  # each has a figure


def tickets(groups: Groups, folder: Path) -> Tickets | None:
    """Compare learned masks with tickets, and draw them; None without runs."""
    if not groups:
        return None
    experiment = Experiment("tickets", groups)
    pair = "mix", "ticket"
    compared = tally(experiment.differences([pair]), pair)
    by_dataset: dict[str, Lines] = {}
    for configuration in sorted(groups, key=lambda c: (c.dataset, c.arm)):
        lines = by_dataset.setdefault(configuration.dataset, {})
        density = 100 * (configuration.density or 1)
        accuracies = final_accuracies(groups[configuration])
        lines.setdefault(configuration.arm, {})[density] = accuracies
    for dataset, lines in by_dataset.items():
        figure = figures.by_density(lines, "density (%)")
        figures.save(figure, folder / f"tickets-{dataset}.png")
    return Tickets(
        SUPERMASK_OR_TICKET[compared.conclusion] if compared else "",
        {
            dataset_name(configuration): final_accuracies(runs)
            for configuration, runs in groups.items()
            if configuration.arm == CONTROL
        },
        list(_at_each_density(experiment)),
        list(by_dataset),
    )


def _at_each_density(experiment: Experiment) -> Iterator[AtDensity]:
    found: dict[tuple[str, float], dict[str, list[Result]]] = {}
    for configuration, runs in experiment.groups.items():
        if configuration.density is not None:
            key = dataset_name(configuration), 100 * configuration.density
            found.setdefault(key, {})[configuration.arm] = runs
    for (dataset, density), by_arm in sorted(found.items(), key=_densest_first):
        yield AtDensity(
            dataset,
            density,
            [final_accuracies(by_arm.get(arm, [])) for arm in TICKET_ARMS],
            [
                paired(by_arm[arm], by_arm[other])
                if arm in by_arm and other in by_arm
                else None
                for arm, other in TICKET_PAIRS
            ],
        )


def _densest_first(item: tuple[tuple[str, float], Any]) -> tuple[str, float]:
    (dataset, density), _ = item
    return dataset, -density


@dataclass(frozen=True)
class Setting:
    """A setting of a network, what it changes, and what that adds."""

    network: str
    is_first: bool
    changed: str  # from the blog's settings for the first, else from the first
    adds: Paired  # to the last accuracy of the first
    runs: list[Result]
    published: Mapping[str, str]  # accuracies by method

    @property
    def accuracy(self) -> float:
        """After the last epoch, the mean of the seeds."""
        return mean(final_accuracies(self.runs))

    @property
    def density(self) -> float:
        """In %, the mean of the seeds."""
        return mean(100 * (1 - (run.masked_fraction or 0)) for run in self.runs)


@dataclass(frozen=True)
class Settings:
    """The settings of all networks, for a table and for the sentence below it."""

    rows: list[Setting]

    def __bool__(self) -> bool:
        return bool(self.rows)

    @property
    def published_methods(self) -> list[str]:
        return list(self.rows[0].published)

    @property
    def best(self) -> list[Setting]:
        """The setting of each network that ended with the highest accuracy."""
        best: dict[str, Setting] = {}
        for row in self.rows:
            before = best.get(row.network)
            if before is None or row.accuracy > before.accuracy:
                best[row.network] = row
        return list(best.values())

    @property
    def on_gpus(self) -> str:
        """Name the networks that ran on GPUs, such as: conv-2 (1 of 3)."""
        runs: dict[str, list[Result]] = {}
        for row in self.rows:
            runs.setdefault(row.network, []).extend(row.runs)
        found = []
        for network, of_network in runs.items():
            devices = [run.environment.get("device", "cpu") for run in of_network]
            count = sum(device.startswith("cuda") for device in devices)
            if count:
                found.append(f"{network} ({count} of {len(devices)})")
        return ", ".join(found) or "none"

    @property
    def better(self) -> str:
        return self._with_verdict(Verdict.BETTER)

    @property
    def worse(self) -> str:
        return self._with_verdict(Verdict.WORSE)

    def _with_verdict(self, verdict: Verdict) -> str:
        """List the changes and what they add, such as: lr 0.01 (-37.45)."""
        found = [
            f"{row.changed} ({points(row.adds.mean, 2)})"
            for row in self.rows
            if row.adds.verdict is verdict
        ]
        return ", ".join(found) or "none"


def settings(groups: Groups, networks: Mapping[str, Mapping[str, str]]) -> Settings:
    """Return every setting of these networks, compared with the network's first."""
    rows = []
    for network, published in networks.items():
        ordered = _reference_first([c for c in groups if c.network == network])
        for number, configuration in enumerate(ordered):
            is_first = number == 0
            reference = configuration.as_published if is_first else ordered[0]
            changes = configuration.changes(reference, ignoring=NAMED_BY_NETWORK)
            changed = [f"{name} {value}" for name, (value, _) in changes.items()]
            row = Setting(
                network=configuration.network_name,
                is_first=is_first,
                changed=", ".join(changed),
                adds=paired(groups[configuration], groups[ordered[0]]),
                runs=groups[configuration],
                published=published,
            )
            rows.append(row)
    return Settings(rows)


def _reference_first(configurations: Sequence[Configuration]) -> list[Configuration]:
    """Sort by the number of changes to all others: what they all vary comes first."""

    def total_changes(configuration: Configuration) -> int:
        return sum(
            len(configuration.changes(other, ignoring=NAMED_BY_NETWORK))
            for other in configurations
        )

    return sorted(configurations, key=total_changes)
