"""Results: a line of JSON per run, with what was run, where, and all its numbers."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

import masktorch
from benchmarks import BenchmarkError
from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.training import Epoch, best_epoch
from benchmarks.files import append_line, read_lines

RESULTS = Path("benchmarks/results")  # the committed results, a folder per study
FILE_NAME = "results.jsonl"  # in the folder of a study, or of any other runs


@dataclass(frozen=True)
class Layer:
    layer: str  # its kernel and bias together
    parameters: int
    masked: float  # the masked fraction of the best epoch's mask


@dataclass(frozen=True)
class Result:
    configuration: Configuration
    estimator: str | None  # written out with its settings
    epochs: list[Epoch]
    utilisation: list[Layer]  # in the network's order; empty without a mask
    environment: dict[str, Any]
    command: str
    # Test accuracy of the "best" and the "last" epoch with recalibrated batch norm.
    recalibrated: dict[str, float | None] | None = None

    @property
    def best(self) -> Epoch:
        return best_epoch(self.epochs, self.configuration)

    @property
    def last(self) -> Epoch:
        return self.epochs[-1]

    @property
    def final_accuracy(self) -> float:
        """The last test accuracy, with recalibrated batch norm if that was measured."""
        return (self.recalibrated or {}).get("last") or self.last.test_accuracy

    @property
    def wall_seconds(self) -> float:
        """Training and evaluation of every epoch, however often the run was resumed."""
        return sum(epoch.seconds for epoch in self.epochs)

    @property
    def masked_fraction(self) -> float | None:
        return masked_fraction(self.utilisation)

    def to_json(self) -> str:
        """Return one line: the fields, and what other readers would have to compute."""
        derived = {
            "best": asdict(self.best),
            "last": asdict(self.last),
            "wall_seconds": self.wall_seconds,
            "masked_fraction": self.masked_fraction,
        }
        return json.dumps(asdict(self) | derived)

    @classmethod
    def from_json(cls, line: str) -> "Result":
        content = json.loads(line)
        stored = {
            name: content[name] for name in cls.__dataclass_fields__ if name in content
        }
        stored["configuration"] = Configuration.from_stored(content["configuration"])
        stored["epochs"] = [Epoch(**epoch) for epoch in content["epochs"]]
        stored["utilisation"] = [Layer(**layer) for layer in content["utilisation"]]
        return cls(**stored)


def results_file(folder: Path) -> Path:
    return folder / FILE_NAME


def read_results(folder: Path) -> list[Result]:
    """Read the results of a folder; if a run was made twice, its first line counts."""
    path = results_file(folder)
    found: dict[Configuration, Result] = {}
    for number, line in enumerate(read_lines(path), start=1):
        result = _parse(line, path, number)
        found.setdefault(result.configuration, result)
    return list(found.values())


def _parse(line: str, path: Path, number: int) -> Result:
    try:
        return Result.from_json(line)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchmarkError(
            f"{path}, line {number}: expected a result of `python -m benchmarks run`, "
            f"found something else ({type(error).__name__}: {error}). Remove that line."
        ) from error


def find_result(folder: Path, configuration: Configuration) -> Result | None:
    """Return the result of exactly this configuration, or None."""
    for result in read_results(folder):
        if result.configuration == configuration:
            return result
    return None


def append_result(result: Result, folder: Path) -> None:
    append_line(result.to_json(), results_file(folder))


@dataclass(frozen=True)
class RunFiles:
    """The files of one run next to the results: its states, which git ignores."""

    folder: Path
    configuration: Configuration

    @property
    def checkpoint(self) -> Path:
        """What a run that was stopped resumes from; removed when it has its result."""
        return self._path("checkpoint.pt")

    @property
    def best_state(self) -> Path:
        """The state of the best epoch, from which other arms start."""
        return self._path("best.pt")

    @property
    def masks(self) -> Path:
        """The mask file of the best epoch, for the arm that learns masks."""
        return self._path("masks.npz")

    def _path(self, ending: str) -> Path:
        return self.folder / f"{self.configuration.name}.{ending}"


Groups = dict[
    Configuration, list[Result]
]  # the seeds of a configuration; the key has seed 0


def group_by_seed(results: Iterable[Result]) -> Groups:
    groups: Groups = {}
    for result in results:
        groups.setdefault(replace(result.configuration, seed=0), []).append(result)
    return groups


def utilisation(model: nn.Module) -> list[Layer]:
    """Return the masked fraction of each layer of a wrapped model."""
    counts: dict[str, tuple[int, int]] = {}
    for row in masktorch.report(model).rows:
        layer = row.name.rpartition(".")[0]
        size, masked = counts.get(layer, (0, 0))
        counts[layer] = size + row.size, masked + row.masked
    return [
        Layer(layer, size, masked / size) for layer, (size, masked) in counts.items()
    ]


def masked_fraction(layers: list[Layer]) -> float | None:
    """Return the masked fraction of all parameters; None if there are no layers."""
    if not layers:
        return None
    masked = sum(layer.parameters * layer.masked for layer in layers)
    return masked / sum(layer.parameters for layer in layers)
