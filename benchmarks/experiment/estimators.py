"""The estimators by name, for the command line, the studies and the speed measurements.

A new estimator is one entry in `ESTIMATORS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from torch import Tensor

import masktorch

Product = Callable[[Tensor, Tensor], Tensor]  # (scores, weight) -> weight * mask


@dataclass(frozen=True)
class EstimatorKind:
    make: Callable[..., masktorch.Estimator]
    product: Product | None = None
    """The formula as a function, if `python -m benchmarks speed` measures it."""
    takes_density: bool = False
    masks_biases: bool = True  # n of m has no groups to form in a bias


functional = masktorch.functional
ESTIMATORS = {
    "threshold": EstimatorKind(
        masktorch.Threshold,
        product=lambda scores, weight: functional.threshold(scores, weight=weight),
    ),
    "bernoulli": EstimatorKind(
        masktorch.Bernoulli,
        product=lambda scores, weight: functional.bernoulli(scores, weight=weight),
    ),
    "intermediate": EstimatorKind(
        masktorch.IntermediateSampling,
        product=lambda scores, weight: functional.intermediate(scores, weight=weight),
    ),
    "topk": EstimatorKind(
        masktorch.TopK,
        product=lambda scores, weight: functional.topk(scores, 0.5, weight=weight),
        takes_density=True,
    ),
    "nofm": EstimatorKind(masktorch.NOfM, masks_biases=False),
    "piggyback": EstimatorKind(masktorch.Piggyback),
    "hard-concrete": EstimatorKind(
        masktorch.HardConcrete,
        product=lambda scores, weight: functional.hard_concrete(scores, weight=weight),
    ),
    "concrete": EstimatorKind(
        masktorch.Concrete,
        product=lambda scores, weight: functional.concrete(scores, weight=weight),
    ),
}

# The command line offers these names. A type checker takes any string: it cannot read a
# Literal from a table, and a list of its own would have to be kept equal to it.
if TYPE_CHECKING:
    EstimatorName: TypeAlias = str
else:
    EstimatorName = Literal[tuple(ESTIMATORS)]

# The names of those whose speed is measured, as the columns of the measurements have
# them.
MEASURED = {
    name.replace("-", " "): kind
    for name, kind in ESTIMATORS.items()
    if kind.product is not None
}


def names_with_density() -> list[str]:
    """Return the estimators that have a density to set."""
    return [name for name, kind in ESTIMATORS.items() if kind.takes_density]
