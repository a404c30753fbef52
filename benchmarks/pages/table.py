"""The results as a Markdown table, the blog's numbers beside ours."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from benchmarks.experiment.configuration import STARTS_FROM
from benchmarks.experiment.results import Result, overall_masked_fraction
from benchmarks.pages.reference import blog, is_comparable

HEADER = (
    "| # | data set | images | network | arm | estimator | seeds | epochs | best test accuracy "
    "| blog | last test accuracy | blog | masked fraction | blog | minutes |"
)
NOTES = """
Images: how many of the training set were trained on. Best: the epoch with the highest test
accuracy, as the blog selects; last: the last epoch, nothing selected. Several seeds: mean (lowest
to highest). The masked fraction counts the best epoch's mask. Minutes: training and evaluation of
one run, on the processor named below. The blog's network is WRN-28-8, its training 30 epochs, its
arms one run each.
"""


def markdown(results: Iterable[Result]) -> str:
    """A row per configuration, its seeds together, and under the table each row's commands."""
    groups: dict[object, list[Result]] = {}
    for result in results:
        groups.setdefault(replace(result.configuration, seed=0), []).append(result)
    rows = [_row(number, group) for number, group in enumerate(groups.values(), start=1)]
    separator = "|" + " --- |" * (HEADER.count("|") - 1)
    return "\n".join([HEADER, separator, *rows, NOTES, origins(groups.values()), ""])


def _row(number: int, group: Sequence[Result]) -> str:
    configuration = group[0].configuration
    cells = [
        str(number),
        configuration.dataset,
        str(configuration.train_images or "all"),
        configuration.network_name,
        configuration.arm,
        configuration.estimator or "-",
        str(len(group)),
        _epochs(group[0]),
        spread([result.best.test_accuracy for result in group], 4),
        _blog(group[0], "best"),
        spread([result.last.test_accuracy for result in group], 4),
        _blog(group[0], "last"),
        spread([m for result in group if (m := result.masked_fraction) is not None], 4),
        _blog(group[0], "masked"),
        spread([result.wall_seconds / 60 for result in group], 1),
    ]
    return f"| {' | '.join(cells)} |"


def _epochs(result: Result) -> str:
    """An arm that goes on from another one has had that one's epochs before its own."""
    epochs, arm = result.configuration.epochs, result.configuration.arm
    return f"{epochs} after {epochs} of {STARTS_FROM[arm]}" if arm in STARTS_FROM else str(epochs)


def spread(values: Sequence[float], digits: int) -> str:
    """The mean and, of several values, their range."""
    if not values:
        return "-"
    mean = f"{sum(values) / len(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _blog(result: Result, what: str) -> str:
    configuration = result.configuration
    reference = blog(configuration.dataset)
    if (
        reference is None
        or configuration.arm not in reference.curves
        or not is_comparable(configuration)
    ):
        return "-"
    if what == "masked":
        masks = configuration.estimator is not None
        return f"{overall_masked_fraction(reference.utilisation):.3f}" if masks else "-"
    curve = reference.curves[configuration.arm]
    return f"{curve.best if what == 'best' else curve.last:.3f}"


def origins(groups: Iterable[Sequence[Result]]) -> str:
    """What makes each row: one line for the rows of the same commands."""
    rows: dict[str, list[str]] = {}
    for number, group in enumerate(groups, start=1):
        processors = ", ".join(dict.fromkeys(str(r.environment["processor"]) for r in group))
        made = f"{_commands(group)} ({processors}, {group[0].configuration.precision})"
        rows.setdefault(made, []).append(str(number))
    lines = [f"- {', '.join(numbers)}: {made}" for made, numbers in rows.items()]
    return "\n".join(["What makes each row:", "", *lines])


def _commands(group: Sequence[Result]) -> str:
    """The commands; of those that differ in the seed alone the first."""
    seeds: dict[str, list[str]] = {}  # by the command around them
    for command in dict.fromkeys(result.command for result in group):
        before, option, after = command.partition(" --seed ")
        seed, _, rest = after.partition(" ")
        seeds.setdefault(f"{before}{option}{{}} {rest}".strip(), []).append(seed)
    return ", ".join(
        f"`{command.replace('{}', first)}`"
        + (f" and with seed {', '.join(others)}" if others else "")
        for command, (first, *others) in seeds.items()
    )
