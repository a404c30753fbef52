"""As cheap as plain training? Five parts, measured in one run on one machine."""

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import BenchmarkError
from benchmarks.atomic import write_json
from benchmarks.experiment.training import progress_bar
from benchmarks.provenance import environment
from benchmarks.speed import costs, floor, memory, steps

# By name: what can be measured on a device, and how.
PARTS: dict[str, tuple[Callable[..., Sequence[Any]], Callable[..., dict[str, Any]]]] = {
    "steps": (steps.cases, steps.measure),
    "floor": (floor.cases, floor.measure),
    "memory": (lambda device: memory.CASES, memory.measure),
    "costs": (costs.sizes, costs.measure),
    "files": (lambda device: costs.DENSITIES, costs.measure_file),
}


def measure(only: Sequence[str], output: Path, command: str) -> tuple[dict[str, Any], Path]:
    """Measure these parts, on a GPU where there is one; every number is in `output`/speed.json."""
    if unknown := [name for name in only if name not in PARTS]:
        raise BenchmarkError(
            f"--only expected some of {', '.join(PARTS)}, with commas between them; found "
            f"{', '.join(map(repr, unknown))}."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_flush_denormal(True)  # before there is a second thread, which takes it over
    content: dict[str, Any] = {"command": command, "environment": environment(device)}
    todo = [(name, row) for name in only for row in PARTS[name][0](device)]
    for name, row in (bar := progress_bar(todo, unit="row")):
        bar.set_description(f"{name}: {row}")
        content.setdefault(name, []).append(PARTS[name][1](row, device))
        gc.collect()
    return content, write_json(content, output / "speed.json")
