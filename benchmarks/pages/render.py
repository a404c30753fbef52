"""Templates, which are text files, filled with what was computed."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd  # type: ignore[import-untyped]

from benchmarks.experiment.results import Result

RESULTS = Path(__file__).parents[1] / "results"
DOCS = Path(__file__).parents[2] / "docs"

_environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **context: Any) -> str:
    """Blank lines that a template's conditions leave behind are made one."""
    text = _environment.get_template(template).render(context)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def table(rows: Iterable[Mapping[str, Any]], style: str = "pipe") -> str:
    """Rows with the same columns; what one lacks is a dash."""
    frame = pd.DataFrame(list(rows)).fillna("-").astype(str)
    return str(frame.to_markdown(index=False, tablefmt=style, disable_numparse=True))


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The mean and, of several values, their range."""
    if not values:
        return "-"
    mean = f"{sum(values) / len(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def outcomes(runs: Sequence[Result]) -> dict[str, str]:
    """Of the seeds of one configuration: accuracies and the best epoch's masked share, in %."""
    masked = [100 * share for run in runs if (share := run.masked_fraction) is not None]
    return {
        "seeds": str(len(runs)),
        "best": spread([100 * run.best.test_accuracy for run in runs]),
        "last": spread([100 * run.last.test_accuracy for run in runs]),
        "masked": spread(masked, 1),
    }
