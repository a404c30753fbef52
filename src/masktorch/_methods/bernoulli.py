"""Bernoulli masks, trained by the gradient of their expectation.

Source: Zhou et al., "Deconstructing Lottery Tickets" (arXiv 1905.01067).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor
from typing_extensions import override

from masktorch._kernels.autograd import masked
from masktorch._kernels.random import drawn_mask
from masktorch._kernels.selecting import select
from masktorch._methods.rules import logistic_rule
from masktorch._methods.score_threshold import ProbabilityEstimator


def bernoulli(
    scores: Tensor, generator: Generator | None = None, *, weight: Tensor | None = None
) -> Tensor:
    """Keep each entry with probability `sigma(s)`.

    Forward `m ~ Bernoulli(sigma(s))`, a new draw in each call; backward
    `dL/ds = g * sigma(s) * (1 - sigma(s))`, the gradient of the expectation.

    Args:
        scores: floating point, any shape.
        generator: where random numbers come from; PyTorch's own by default.
        weight: return `weight * m` in its dtype, instead of `m` in the scores'.

    Source: Zhou et al., "Deconstructing Lottery Tickets" (arXiv 1905.01067).

    Examples:
        >>> import torch
        >>> bernoulli(torch.tensor([-50.0, 50.0]))
        tensor([0., 1.])
    """
    return masked(scores, weight, drawn_mask(scores, generator), select, logistic_rule)


@dataclass(frozen=True)
class Bernoulli(ProbabilityEstimator):
    """Keep each entry with probability `sigma(s)`, drawn in every forward.

    The formula is `masktorch.functional.bernoulli`. `tau` is the threshold of the
    deterministic mask only. Scores start 3 above it. Usual training: Adam, learning
    rate 0.3.

    Raises:
        ValueError: if `tau` is not in (0, 1).

    Examples:
        >>> import torch
        >>> Bernoulli().mode(torch.tensor([-1.0, 1.0]))
        tensor([False,  True])
    """

    tau: float = 0.5
    start: ClassVar[float] = 3.0

    @override
    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return bernoulli(scores, weight=weight)

    def expected(self, scores: Tensor) -> Tensor:
        return torch.sigmoid(scores)
