"""The blog's own numbers, digitised from its figures (how exactly: the head of the JSON file)."""

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.results import Layer


@dataclass(frozen=True)
class Curve:
    train: list[float]
    test: list[float]
    best: float
    last: float


@dataclass(frozen=True)
class Reference:
    """One data set of the blog: accuracy per epoch of each arm, and the mask arm's layers."""

    curves: dict[str, Curve]
    utilisation: list[Layer]


def blog(dataset: str) -> Reference | None:
    """What the blog has on a data set; None where it has nothing."""
    content = json.loads(Path(__file__).with_name("reference.json").read_text())
    if dataset not in content["datasets"]:
        return None
    found = content["datasets"][dataset]
    curves = {
        arm: Curve(curve["train"], curve["val"], found["best_val"][arm], found["final_val"][arm])
        for arm, curve in found["accuracy"].items()
    }
    return Reference(curves, [Layer(**layer) for layer in found["utilization"]])


def is_comparable(configuration: Configuration) -> bool:
    """The blog has wide residual networks alone, masked by thresholds alone."""
    return configuration.network == "wrn" and configuration.estimator in (None, "threshold")
