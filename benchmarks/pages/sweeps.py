"""What the sweeps of `benchmarks.studies.sweep` found, as a table."""

import itertools
import json
from pathlib import Path

from benchmarks.pages.table import spread

OUTCOMES = ("seed", "held_out_accuracy", "masked_fraction")


def markdown(path: Path) -> str:
    """A row per setting, a column for all that varies: held-out accuracy after the last epoch and
    masked fraction, mean and range of the seeds."""
    runs = json.loads(path.read_text())["runs"]
    varied = [
        key for key in runs[0]
        if key not in OUTCOMES and any(run[key] != runs[0][key] for run in runs)
    ]  # fmt: skip
    header = [*varied, "held-out accuracy (%)", "masked (%)"]
    lines = [f"| {' | '.join(header)} |", "|" + " --- |" * len(header)]
    for setting, group in itertools.groupby(runs, key=lambda run: [run[key] for key in varied]):
        same = list(group)
        accuracy = spread([100 * run["held_out_accuracy"][-1] for run in same], 1)
        masked = spread([100 * run["masked_fraction"] for run in same], 0)
        lines.append(f"| {' | '.join([*map(str, setting), accuracy, masked])} |")
    return "\n".join(lines)
