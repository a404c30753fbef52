"""Templates, which are text files, filled with what was computed."""

import re
from pathlib import Path
from statistics import mean
from typing import Any

import jinja2
from tabulate import tabulate  # type: ignore[import-untyped]

from benchmarks.experiment.configuration import Configuration

DOCS = Path("docs")
DATASETS = {"cifar10": "CIFAR-10", "mnist": "MNIST", "digits": "digits"}


def render(template: str, **context: Any) -> str:
    """Blank lines that a template's conditions leave behind are made one."""
    text = _environment.get_template(template).render(context)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"


def aligned(text: str, style: str = "pipe") -> str:
    """A table, a row a line with | between the cells, the first its head."""
    head, *rows = ([c.strip() for c in line.split("|")] for line in text.splitlines() if line)
    return str(tabulate(rows, head, tablefmt=style, disable_numparse=True))


def title(of: Configuration) -> str:
    """What a figure calls runs of this configuration."""
    parts = [DATASETS[of.dataset], of.network_name.upper()]
    parts += [f"{of.image_size}x{of.image_size}"] if of.image_size else []
    parts += [f"{of.train_images:,} images"] if of.train_images else []
    return ", ".join(parts + ([f"then lr {of.mix_lr:g}"] if of.mix_lr else []))


_templates = jinja2.FileSystemLoader(Path(__file__).with_name("templates"))
_environment = jinja2.Environment(
    loader=_templates, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_environment.globals |= {"title": title, "DATASETS": DATASETS, "average": mean}
_environment.filters["aligned"] = aligned
