"""The experiment of "Super-Masks: Are They Good Initializations?" (2019).

A consumer of masktorch: it uses public names only.

experiment   one run: configuration, data, networks, arms, training, results
studies      which runs answer which question, as data
speed        what masks cost, measured against plain training
pages        results as text: templates, tables, verdicts and figures
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CompileMode = Literal["default", "reduce-overhead", "max-autotune"]


@dataclass(frozen=True)
class Location:
    """Where a run reads, writes and computes."""

    data_dir: Path = Path("data")  # Folder of the data sets.
    output: Path = Path("runs")  # Folder of results and states; a study adds its name.
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto: cuda if there is one.
    compile: CompileMode | None = None  # Train with torch.compile, in this mode.


class BenchmarkError(ValueError):
    """An error that the user can fix: what was expected, what was found, what to do."""


def check_names(what: str, found: Collection[str], known: Collection[str]) -> None:
    """Raise `BenchmarkError` if any name in `found` is not in `known`."""
    unknown = [name for name in found if name not in known]
    if unknown:
        raise BenchmarkError(
            f"{what}: expected {', '.join(known)}; "
            f"found {', '.join(map(repr, unknown))}."
        )
