"""One JSON file per arm run: what was run, on what, and every number that came out."""

import json
import platform
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import masktorch
from benchmarks import BenchmarkError
from benchmarks.atomic import replacing
from benchmarks.configuration import Configuration
from benchmarks.training import Epoch, best_epoch


@dataclass(frozen=True)
class Layer:
    """A layer's kernel and bias together."""

    layer: str
    parameters: int
    masked: float  # the masked fraction of the best epoch's mask


@dataclass(frozen=True)
class Result:
    configuration: Configuration
    estimator: str | None  # written out with its settings
    epochs: list[Epoch]
    utilisation: list[Layer]  # in the network's order; empty where nothing is masked
    environment: dict[str, Any]
    command: str

    @property
    def best(self) -> Epoch:
        return best_epoch(self.epochs)

    @property
    def last(self) -> Epoch:
        return self.epochs[-1]

    @property
    def wall_seconds(self) -> float:
        """Training and evaluation of every epoch, however often the run was resumed."""
        return sum(epoch.seconds for epoch in self.epochs)

    @property
    def masked_fraction(self) -> float | None:
        return overall_masked_fraction(self.utilisation) if self.utilisation else None

    def write(self, path: Path) -> None:
        derived = {
            "best": asdict(self.best),
            "last": asdict(self.last),
            "wall_seconds": self.wall_seconds,
            "masked_fraction": self.masked_fraction,
        }
        with replacing(path) as partial:
            partial.write_text(json.dumps(asdict(self) | derived, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Result":
        try:
            content = json.loads(path.read_text())
            return cls(
                configuration=Configuration(**content["configuration"]),
                estimator=content["estimator"],
                epochs=[Epoch(**epoch) for epoch in content["epochs"]],
                utilisation=[Layer(**layer) for layer in content["utilisation"]],
                environment=content["environment"],
                command=content["command"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise BenchmarkError(
                f"{path}: expected a result of `python -m benchmarks run`, found another file "
                f"({type(error).__name__}: {error}). Move it out of the results' folder."
            ) from error


def read_results(folder: Path) -> list[Result]:
    """All results of a folder, by file name."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no result (*.json). Make some with `python -m benchmarks run "
            f"--output {folder}`, or name another folder."
        )
    return [Result.read(path) for path in paths]


def utilisation(model: nn.Module) -> list[Layer]:
    """The masked fraction of each layer of a wrapped model."""
    sizes: dict[str, int] = {}
    masked: dict[str, int] = {}
    for row in masktorch.report(model).rows:
        layer = row.name.rpartition(".")[0]
        sizes[layer] = sizes.get(layer, 0) + row.size
        masked[layer] = masked.get(layer, 0) + row.masked
    return [Layer(layer, size, masked[layer] / size) for layer, size in sizes.items()]


def overall_masked_fraction(layers: list[Layer]) -> float:
    masked = sum(layer.parameters * layer.masked for layer in layers)
    return masked / sum(layer.parameters for layer in layers)


def environment(device: torch.device) -> dict[str, Any]:
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "-uno")
    return {
        "masktorch": masktorch.__version__,
        "torch": torch.__version__,
        "commit": commit,
        "dirty": None if commit is None else bool(changes),
        "device": str(device),
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
    }


def command_line() -> str:
    """The command that is running, as it would be typed."""
    return shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])


def _git(*arguments: str) -> str | None:
    """What git says about the checkout this file lies in; None where there is none."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
