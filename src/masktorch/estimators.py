"""The estimators: how a mask is chosen from its scores, and what gradient the scores get.

An estimator is a value, a frozen dataclass: two that are equal do the same, and its repr evaluates
back to it. The formulas are in `masktorch.functional`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol, final, runtime_checkable

from torch import Tensor

from masktorch import functional


@runtime_checkable
class Estimator(Protocol):
    """What `masktorch.wrap` asks of an estimator: two methods.

    `__call__(scores)` gives the mask used in training: floating point, shaped like `scores`,
    differentiable by the estimator's rule. `mode(scores)` gives the deterministic mask: bool, the
    same shape; it is used in evaluation, when frozen, in files and in reports.

    An estimator may offer more, each found by its name:

    - `draws`: False where the mask of training follows from the scores alone (else a draw is held
      for one forward);
    - `init`: the scores to start from, a number or a function of the weight (else 1.0);
    - `product(scores, weight)`: `weight` times the mask of training, in fewer passes over memory;
    - `mode_product(scores, weight)`: the same with the deterministic mask;
    - `scores_for(scores, mask)`: scores near the given ones whose `mode` is `mask` (else
      `masktorch.set_masks` tries 1 where the mask keeps and 0 elsewhere).

    Examples:
        >>> isinstance(Threshold(), Estimator)
        True
    """

    def __call__(self, scores: Tensor, /) -> Tensor: ...
    def mode(self, scores: Tensor, /) -> Tensor: ...


class _Logistic:
    """What the three share: a weight is kept where `sigma(score) > tau`."""

    tau: float

    def _masked(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        raise NotImplementedError

    def __call__(self, scores: Tensor) -> Tensor:
        """The mask of training, floating point."""
        return self._masked(scores, None)

    def product(self, scores: Tensor, weight: Tensor) -> Tensor:
        """`weight` times the mask of training."""
        return self._masked(scores, weight)

    def mode(self, scores: Tensor) -> Tensor:
        """The deterministic mask `1[sigma(s) > tau]`, bool."""
        return functional.keeps(scores, self.tau)

    def mode_product(self, scores: Tensor, weight: Tensor) -> Tensor:
        """`weight` times the deterministic mask."""
        return functional.mode_product(scores, weight, self.tau)

    def scores_for(self, scores: Tensor, mask: Tensor) -> Tensor:
        """The scores with those not yet beyond the threshold, on their side, set 1 beyond it."""
        at = functional.logit(self.tau)
        decided = (functional.keeps(scores, self.tau) == mask) & (scores != at)
        beyond = mask.to(scores.dtype).mul_(2).add_(at - 1)
        return functional.select(scores, decided).add_(functional.select(beyond, ~decided))

    def __post_init__(self) -> None:
        functional.logit(self.tau)  # raises for one outside (0, 1)


@final
@dataclass(frozen=True)
class Threshold(_Logistic):
    """Straight-through threshold: see `masktorch.functional.threshold`.

    Scores start at 1.0, everything kept. Usual training: Adam, learning rate 1e-2. Raises
    `ValueError` for a `tau` outside (0, 1).

    Examples:
        >>> import torch
        >>> Threshold().mode(torch.tensor([-1.0, 1.0]))
        tensor([False,  True])
    """

    tau: float = 0.5
    draws: ClassVar[bool] = False
    init: ClassVar[float] = 1.0

    def _masked(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return functional.threshold(scores, self.tau, weight=weight)


@final
@dataclass(frozen=True)
class Bernoulli(_Logistic):
    """Bernoulli samples, gradient of the expectation: see `masktorch.functional.bernoulli`.

    `tau` is the threshold of the deterministic mask only. Scores start at 0.0, every probability
    one half. Raises `ValueError` for a `tau` outside (0, 1).

    Examples:
        >>> import torch
        >>> Bernoulli().mode(torch.tensor([-1.0, 1.0]))
        tensor([False,  True])
    """

    tau: float = 0.5
    init: ClassVar[float] = 0.0

    def _masked(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return functional.bernoulli(scores, weight=weight)


@final
@dataclass(frozen=True)
class IntermediateSampling(_Logistic):
    """Intermediate sampling: see `masktorch.functional.intermediate`.

    `step_size` is the step on a draw in units of the root mean square of the tensor's gradient.
    `tau` is the threshold of the deterministic mask only. Scores start at 1.0. Raises
    `ValueError` for a `tau` outside (0, 1) or a `step_size` that is not positive and finite.

    Examples:
        >>> IntermediateSampling(step_size=0.2)
        IntermediateSampling(step_size=0.2, tau=0.5)
    """

    step_size: float = functional.STEP_SIZE
    tau: float = 0.5
    init: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.step_size < math.inf:
            raise ValueError(
                "IntermediateSampling expected a positive, finite step_size, found "
                f"{self.step_size!r}. It is the step on a draw in units of rms(dL/dmask)."
            )

    def _masked(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return functional.intermediate(scores, self.step_size, weight=weight)


@dataclass(frozen=True)
class Given:
    """A mask that is given, not learned: its scores are the mask itself, bool."""

    def __call__(self, scores: Tensor) -> Tensor:
        return scores

    def mode(self, scores: Tensor) -> Tensor:
        return scores
