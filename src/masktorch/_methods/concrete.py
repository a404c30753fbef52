"""Binary concrete masks (Gumbel-sigmoid)."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from masktorch._checks import check_flag, check_number
from masktorch._kernels.random import uniform_like
from masktorch._methods.built_in import BuiltIn


def concrete(
    scores: Tensor,
    temperature: float = 2 / 3,
    hard: bool = True,
    generator: Generator | None = None,
    *,
    weight: Tensor | None = None,
) -> Tensor:
    """A binary concrete sample, or Gumbel-sigmoid: a Bernoulli draw relaxed by a temperature `T`.

    Forward `m = 1[s + logit(u) > 0]` if `hard`, else `y = sigma((s + logit(u)) / T)`, `u` uniform
    on (0, 1); backward both `dL/ds = g * y * (1 - y) / T`. Sources: arXiv 1611.00712, 1611.01144.

    Examples:
        >>> concrete(torch.tensor([-50.0, 50.0]))
        tensor([0., 1.])
    """
    check_flag("concrete", "hard", hard)
    noisy = noisy_logits(scores, generator)
    mask = torch.sigmoid(noisy / temperature)
    if hard:
        mask = (noisy > 0).to(mask.dtype) + (
            mask - mask.detach()
        )  # the value of the former
    mask = mask.to(scores.dtype)
    return mask if weight is None else (weight * mask).to(weight.dtype)


def noisy_logits(scores: Tensor, generator: Generator | None) -> Tensor:
    """`s + logit(u)`, positive with probability `sigma(s)`; float32 for half precision."""
    return scores + uniform_like(scores, generator).logit_()


@dataclass(frozen=True)
class Concrete(BuiltIn):
    """Gumbel-sigmoid masks, in training `hard` or soft: `masktorch.functional.concrete`. Scores
    start at 1. Training as for `HardConcrete`; a falling temperature is `masktorch.set_estimator`
    with another value. `ValueError` for a `temperature` that is not positive and finite.

    Examples:
        >>> Concrete(temperature=0.5)
        Concrete(temperature=0.5, hard=True)
    """

    temperature: float = 2 / 3
    hard: bool = True

    def __post_init__(self) -> None:
        check_number("Concrete", "temperature", self.temperature, 0)
        check_flag("Concrete", "hard", self.hard)

    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return concrete(scores, self.temperature, self.hard, weight=weight)

    def sample(self, scores: Tensor) -> Tensor:
        return concrete(scores, self.temperature, True) > 0
