"""One JSON file per arm run: what was run, on what, and every number that came out."""

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
from benchmarks.files import write_text

RESULTS = Path("benchmarks/results")  # those that are committed, a folder a study


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
    utilisation: list[Layer]  # in the network's order; empty where nothing is masked
    environment: dict[str, Any]
    command: str
    recalibrated: dict[str, float | None] | None = None  # accuracy of the best and the last epoch

    @property
    def best(self) -> Epoch:
        return best_epoch(self.epochs, self.configuration)

    @property
    def last(self) -> Epoch:
        return self.epochs[-1]

    @property
    def anew(self) -> float:
        """The last test accuracy, with batch norm's averages taken anew where they were."""
        return (self.recalibrated or {}).get("last") or self.last.test_accuracy

    @property
    def wall_seconds(self) -> float:
        """Training and evaluation of every epoch, however often the run was resumed."""
        return sum(epoch.seconds for epoch in self.epochs)

    @property
    def masked_fraction(self) -> float | None:
        return masked_share(self.utilisation)

    def write(self, path: Path) -> None:
        derived = {
            "best": asdict(self.best),
            "last": asdict(self.last),
            "wall_seconds": self.wall_seconds,
            "masked_fraction": self.masked_fraction,
        }
        write_text(json.dumps(asdict(self) | derived, indent=1) + "\n", path)

    @classmethod
    def read(cls, path: Path) -> "Result":
        try:
            content = json.loads(path.read_text())
            stored = {name: content[name] for name in cls.__dataclass_fields__ if name in content}
            stored["configuration"] = Configuration.of(content["configuration"])
            stored["epochs"] = [Epoch(**epoch) for epoch in content["epochs"]]
            stored["utilisation"] = [Layer(**layer) for layer in content["utilisation"]]
            return cls(**stored)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BenchmarkError(
                f"{path}: expected a result of `python -m benchmarks run`, found another file "
                f"({type(error).__name__}: {error}). Move it out of the results' folder."
            ) from error


def read_results(folder: Path) -> list[Result]:
    return [Result.read(path) for path in sorted(folder.glob("*.json"))]


def find(folder: Path, configuration: Configuration) -> Path | None:
    """The result of a configuration, where there is one."""
    path = folder / f"{configuration.name}.json"
    if not path.exists():
        return None
    if changes := configuration.changes(Result.read(path).configuration):
        raise BenchmarkError(
            f"{path} comes from a run with another {', '.join(changes)}. Give this run another "
            f"--output folder, or delete that file."
        )
    return path


Groups = dict[Configuration, list[Result]]  # the seeds of a configuration, whose own seed is 0


def grouped(results: Iterable[Result]) -> Groups:
    groups: Groups = {}
    for result in results:
        groups.setdefault(replace(result.configuration, seed=0), []).append(result)
    return groups


def utilisation(model: nn.Module) -> list[Layer]:
    """The masked fraction of each layer of a wrapped model."""
    counts: dict[str, tuple[int, int]] = {}
    for row in masktorch.report(model).rows:
        layer = row.name.rpartition(".")[0]
        size, masked = counts.get(layer, (0, 0))
        counts[layer] = size + row.size, masked + row.masked
    return [Layer(layer, size, masked / size) for layer, (size, masked) in counts.items()]


def masked_share(layers: list[Layer]) -> float | None:
    """None where there are no layers."""
    size = sum(layer.parameters for layer in layers)
    return sum(layer.parameters * layer.masked for layer in layers) / size if layers else None
