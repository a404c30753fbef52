"""Templates are text files that print what was computed; this module fills them."""

import re
from pathlib import Path
from statistics import mean
from typing import Any

import jinja2
from tabulate import tabulate  # type: ignore[import-untyped]

from benchmarks.pages import formats

DOCS = Path("docs")


def render(template: str, **context: Any) -> str:
    """Fill a template; the blank lines that conditions leave behind become one."""
    text = _environment.get_template(template).render(context)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"


def aligned(text: str, style: str = "pipe") -> str:
    """Return a table of lines with | between the cells; the first line is its head."""
    lines = [line for line in text.splitlines() if line]
    head, *rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    return str(tabulate(rows, head, tablefmt=style, disable_numparse=True))


_environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters["aligned"] = aligned
_environment.globals |= {
    "dataset_names": formats.DATASET_NAMES,
    "masked": formats.masked,
    "mean": mean,
    "method_name": formats.method_name,
    "outcomes": formats.outcomes,
    "points": formats.points,
    "spread": formats.spread,
    "title": formats.title,
}
