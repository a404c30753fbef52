"""What masks alone reach: the estimators, the published supermasks, tickets."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.results import Groups, Result
from benchmarks.pages import figures
from benchmarks.pages.comparison import Experiment, Paired, Verdict, paired
from benchmarks.pages.formats import points
from benchmarks.pages.verdicts import SUPERMASK_OR_TICKET, Tally, tally

NAMED_BY_NETWORK = ("dataset", "network", "depth", "width")


def last_accuracies(runs: Iterable[Result]) -> list[float]:
    """In %."""
    return [100 * run.last.test_accuracy for run in runs]


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
        lines.setdefault(name, {})[100 * (1 - masked)] = last_accuracies(runs)
    if full:
        figure = figures.by_density(lines, "density of the mask (%)")
        figures.save(figure, folder / "estimators.png")
    return sorted(full.items(), key=lambda item: -sum(last_accuracies(item[1])))


def tickets(groups: Groups, folder: Path) -> dict[str, Lines]:
    """Return the lines of each data set's table, and draw them."""
    by_dataset: dict[str, Lines] = {}
    for configuration in sorted(groups, key=lambda c: (c.dataset, c.arm)):
        runs = groups[configuration]
        lines = by_dataset.setdefault(configuration.dataset, {})
        density = 100 * (configuration.density or 1)
        lines.setdefault(configuration.arm, {})[density] = last_accuracies(runs)
    for dataset, lines in by_dataset.items():
        figure = figures.by_density(lines, "density (%)")
        figures.save(figure, folder / f"tickets-{dataset}.png")
    return by_dataset


@dataclass(frozen=True)
class TicketAnswer:
    supermask: Tally  # trained on, against a random mask
    ticket: Tally  # against its random mask
    supermask_ticket: Tally
    shares: Tally  # a random mask with the supermask's densities, against the ticket's
    conclusion: str


def ticket_answer(groups: Groups) -> TicketAnswer | None:
    """Compare learned masks with tickets; None if no comparison has several seeds."""
    experiment = Experiment("tickets", groups)

    def compare(arm: str, other: str) -> Tally:
        pair = arm, other
        return tally(experiment.differences([pair]), pair)

    supermask_ticket = compare("mix", "ticket")
    if not supermask_ticket:
        return None
    return TicketAnswer(
        supermask=compare("mix", "random-mix"),
        ticket=compare("ticket", "random-ticket"),
        supermask_ticket=supermask_ticket,
        shares=compare("random-mix", "random-ticket"),
        conclusion=SUPERMASK_OR_TICKET[supermask_ticket.conclusion],
    )


@dataclass(frozen=True)
class Setting:
    """A setting of a network, what it changes, and what that adds."""

    network: str
    is_first: bool
    changed: str  # from the blog's settings for the first, else from the first
    adds: Paired  # to the last accuracy of the first
    runs: list[Result]
    published: Mapping[str, str]  # accuracies by method


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
    def better(self) -> str:
        return self._with_verdict(Verdict.BETTER)

    @property
    def worse(self) -> str:
        return self._with_verdict(Verdict.WORSE)

    def _with_verdict(self, verdict: Verdict) -> str:
        """lr 0.01 (-37.45), epochs 2 (-3.21)"""
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
