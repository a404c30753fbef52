"""Bernoulli masks with the gradient of their expectation."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor

from masktorch._kernels.autograd import masked
from masktorch._kernels.random import drawn_mask
from masktorch._kernels.selecting import select
from masktorch._methods.built_in import ProbabilityEstimator, logistic_rule


def bernoulli(
    scores: Tensor, generator: Generator | None = None, *, weight: Tensor | None = None
) -> Tensor:
    """A Bernoulli sample with the gradient of its expectation.

    Forward `m ~ Bernoulli(sigma(s))`, drawn from `generator` (PyTorch's own if left out); backward
    as in `threshold`. Source: Zhou et al., "Deconstructing Lottery Tickets" (arXiv 1905.01067).

    Examples:
        >>> import torch
        >>> bernoulli(torch.tensor([-50.0, 50.0]))
        tensor([0., 1.])
    """
    return masked(scores, weight, drawn_mask(scores, generator), select, logistic_rule)


@dataclass(frozen=True)
class Bernoulli(ProbabilityEstimator):
    """Samples: `masktorch.functional.bernoulli`. `tau` is the threshold of the deterministic mask
    only. Scores start 3 above it. Usual training: Adam, learning rate 0.3. Raises as `Threshold`.

    Examples:
        >>> import torch
        >>> Bernoulli().mode(torch.tensor([-1.0, 1.0]))
        tensor([False,  True])
    """

    tau: float = 0.5
    start: ClassVar[float] = 3.0

    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return bernoulli(scores, weight=weight)
