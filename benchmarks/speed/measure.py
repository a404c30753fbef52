"""As cheap as plain training? Five parts, measured in one run on one machine."""

import gc
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import BenchmarkError
from benchmarks.atomic import replacing
from benchmarks.experiment.training import progress_bar
from benchmarks.provenance import environment
from benchmarks.speed import costs, files, floor, memory, steps


class Part(NamedTuple):
    rows: Callable[[torch.device], Sequence[Any]]
    measure: Callable[[Any, torch.device], dict[str, Any]]


PARTS = {
    "steps": Part(steps.cases, steps.measure),
    "floor": Part(floor.cases, floor.measure),
    "memory": Part(memory.cases, memory.measure),
    "costs": Part(costs.sizes, costs.measure),
    "files": Part(files.cases, files.measure),
}


def measure(only: Sequence[str], output: Path, command: str) -> Path:
    """Measure these parts, on a GPU where there is one; every number is in `output`/speed.json."""
    if unknown := [name for name in only if name not in PARTS]:
        raise BenchmarkError(
            f"--only expected some of {', '.join(PARTS)}, with commas between them; found "
            f"{', '.join(map(repr, unknown))}."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_flush_denormal(True)  # before there is a second thread, which takes it over
    content: dict[str, Any] = {"command": command, "environment": environment(device)}
    todo = [(name, row) for name in only for row in PARTS[name].rows(device)]
    with progress_bar(total=len(todo), desc="speed", unit="row") as bar:
        for name, row in todo:
            bar.set_description(f"{name}: {row}")
            content.setdefault(name, []).append(PARTS[name].measure(row, device))
            gc.collect()
            bar.update()
    path = output / "speed.json"
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")
    return path
