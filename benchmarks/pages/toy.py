"""The toy of intermediate sampling: what its measurement says."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]

from benchmarks.pages import figures
from benchmarks.pages.formats import spread

SHOWN_STEPS = (100, 1_000, 10_000, 30_000)


def read_toy(path: Path, folder: Path) -> dict[str, Any] | None:
    """Return KL(pi_true || pi) by method, step size and step, and draw it.

    `mean(method, step_size, step)` is the mean over the distributions, for the page's
    sentences; the step "lowest" is the lowest mean of all steps.
    """
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text())
    steps, methods = content["steps"], content["methods"]
    figures.save(figures.divergences(steps, methods), folder / "categorical.png")
    means = {
        (method["method"], method["step_size"]): _means_by_step(method, steps)
        for method in methods
    }

    def mean_text(method: str, step_size: float, step: int | str) -> str:
        return f"{means[method, step_size][step]:.4f}"

    return {
        **content,
        "distributions": len(methods[0]["divergence"]),
        "mean": mean_text,
        "shown_steps": SHOWN_STEPS,
        "rows": [_toy_row(method, steps) for method in methods],
    }


def _means_by_step(
    method: Mapping[str, Any], steps: Sequence[int]
) -> dict[int | str, float]:
    means = pd.DataFrame(method["divergence"], columns=steps).mean()
    return {**means, "lowest": means.min()}


def _toy_row(method: Mapping[str, Any], steps: Sequence[int]) -> list[str]:
    """Return the cells: method, step size, the shown steps, lowest mean."""
    shown = []
    for step in SHOWN_STEPS:
        at = steps.index(step)
        shown.append(spread([run[at] for run in method["divergence"]], digits=4))
    lowest = f"{_means_by_step(method, steps)['lowest']:.4f}"
    return [method["method"], f"{method['step_size']:g}", *shown, lowest]
