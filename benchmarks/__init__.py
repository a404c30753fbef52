"""The experiment of "Super-Masks: Are They Good Initializations?" (2019), run with masktorch.

experiment   one run: configuration, data, networks, arms, training, results
studies      which runs answer which question, as data
speed        what masks cost, side by side with plain training
pages        what came out: templates, tables and figures
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    data_dir: Path = Path("data")  # Folder of the data sets.
    output: Path = Path("runs")  # Folder for results and checkpoints; of a study: its folder's.
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto: cuda where there is one.


class BenchmarkError(ValueError):
    """Something the user can mend; the message says what was expected, found, and what to do."""


def check_names(what: str, found: Collection[str], known: Collection[str]) -> None:
    if unknown := [name for name in found if name not in known]:
        raise BenchmarkError(
            f"{what}: expected {', '.join(known)}; found {', '.join(map(repr, unknown))}."
        )
