"""As cheap as plain training? Five parts, measured in one run on one machine."""

import gc
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiment.training import progress_bar
from benchmarks.files import environment, write_json
from benchmarks.speed import costs, steps

# By name: what can be measured on a device, and how.
PARTS: dict[str, tuple[Callable[[torch.device], Sequence[Any]], Callable[..., dict[str, Any]]]] = {
    "steps": (lambda device: steps.CASES[device.type], steps.measure),
    "floor": (
        lambda device: list(product(("eager", "compiled"), costs.sizes(4, 8, bytes_=40))),
        costs.measure_floor,
    ),
    "memory": (lambda device: steps.MEMORY_CASES, steps.measure_memory),
    "costs": (lambda device: costs.sizes(6, 9, bytes_=10), costs.measure),
    "files": (lambda device: costs.DENSITIES, costs.measure_file),
}


def measure(only: Sequence[str], output: Path, command: str) -> tuple[dict[str, Any], Path]:
    """Measure these parts, on a GPU where there is one; every number is in `output`/speed.json."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_flush_denormal(True)  # before there is a second thread, which takes it over
    content: dict[str, Any] = {"command": command, "environment": environment(device)}
    todo = [(name, row) for name in only for row in PARTS[name][0](device)]
    for name, row in (bar := progress_bar(todo, unit="row")):
        bar.set_description(f"{name}: {row}")
        content.setdefault(name, []).append(PARTS[name][1](row, device))
        gc.collect()
    return content, write_json(content, output / "speed.json")
