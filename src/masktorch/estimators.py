"""The estimators: how a mask is chosen from its scores, and what gradient the scores get.

An estimator is a value, a frozen dataclass: two that are equal do the same, and its repr evaluates
back to it. The formulas are in `masktorch.functional`.
"""

import math
import numbers
from dataclasses import dataclass
from typing import ClassVar, Protocol, final, runtime_checkable

import torch
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
      `masktorch.set_masks` tries 1 where the mask keeps and 0 elsewhere);
    - `expected(scores)`: the probability that each entry is kept, differentiable, for
      `masktorch.expected_density` (else the mask of training, one draw);
    - `sample(scores)`: a bool mask drawn for `masktorch.sample_masks` (else where the mask of
      training is positive).

    Examples:
        >>> isinstance(Threshold(), Estimator)
        True
    """

    def __call__(self, scores: Tensor, /) -> Tensor: ...
    def mode(self, scores: Tensor, /) -> Tensor: ...


class _Cut:
    """What is kept is what lies above one score, `at`."""

    @property
    def at(self) -> float:
        """The largest score that is masked."""
        return 0.0

    @property
    def init(self) -> float:
        """Scores start 1 above it: a fresh model computes as the plain one in evaluation."""
        return self.at + 1.0

    def mode(self, scores: Tensor) -> Tensor:
        """The deterministic mask `1[s > at]`, bool."""
        return functional.keeps(scores, self.at)

    def mode_product(self, scores: Tensor, weight: Tensor) -> Tensor:
        """`weight` times the deterministic mask."""
        return functional.mode_product(scores, weight, self.at)

    def scores_for(self, scores: Tensor, mask: Tensor) -> Tensor:
        """The scores with those not yet beyond the threshold, on their side, set 1 beyond it."""
        decided = (functional.keeps(scores, self.at) == mask) & (scores != self.at)
        beyond = mask.to(scores.dtype).mul_(2).add_(self.at - 1)
        return functional.select(scores, decided).add_(functional.select(beyond, ~decided))


class _Probability(_Cut):
    """`sigma(s)` is the probability that an entry is kept, or is compared with `tau`."""

    tau: float

    @property
    def at(self) -> float:
        """`logit(tau)`."""
        return functional.logit(self.tau)

    def _masked(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        raise NotImplementedError

    def __call__(self, scores: Tensor) -> Tensor:
        """The mask of training, floating point."""
        return self._masked(scores, None)

    def product(self, scores: Tensor, weight: Tensor) -> Tensor:
        """`weight` times the mask of training."""
        return self._masked(scores, weight)

    def expected(self, scores: Tensor) -> Tensor:
        """The probability that each entry is kept, `sigma(s)`."""
        return torch.sigmoid(scores)

    def __post_init__(self) -> None:
        _check_number(type(self).__name__, "tau", self.tau)
        functional.logit(self.tau)  # raises for one outside (0, 1)


@final
@dataclass(frozen=True)
class Threshold(_Probability):
    """Straight-through threshold: see `masktorch.functional.threshold`.

    Scores start at 1.0, or 1 above another threshold: everything is kept. Usual training: Adam,
    learning rate 1e-2. Raises `ValueError` for a `tau` outside (0, 1).

    Examples:
        >>> import torch
        >>> Threshold().mode(torch.tensor([-1.0, 1.0]))
        tensor([False,  True])
    """

    tau: float = 0.5
    draws: ClassVar[bool] = False

    def _masked(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return functional.threshold(scores, self.tau, weight=weight)

    def expected(self, scores: Tensor) -> Tensor:
        """The mask itself, nothing is drawn; differentiable by the same rule."""
        return self(scores)


@final
@dataclass(frozen=True)
class Bernoulli(_Probability):
    """Bernoulli samples, gradient of the expectation: see `masktorch.functional.bernoulli`.

    `tau` is the threshold of the deterministic mask only. Scores start at 1.0, or 1 above another
    threshold. Raises `ValueError` for a `tau` outside (0, 1).

    Examples:
        >>> import torch
        >>> Bernoulli().mode(torch.tensor([-1.0, 1.0]))
        tensor([False,  True])
    """

    tau: float = 0.5

    def _masked(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return functional.bernoulli(scores, weight=weight)


@final
@dataclass(frozen=True)
class IntermediateSampling(_Probability):
    """Intermediate sampling: see `masktorch.functional.intermediate`.

    `step_size` is the step on a draw in units of the root mean square of the tensor's gradient.
    `tau` is the threshold of the deterministic mask only. Scores start at 1.0, or 1 above another
    threshold. Raises `ValueError` for a `tau` outside (0, 1) or a `step_size` that is not positive
    and finite.

    The gradient of the scores does not grow with the loss, so a `torch.amp.GradScaler`, which
    divides by the factor that it gave the loss, makes it too small by that factor. Give it back:

        scaler.unscale_(optimizer)
        for scores in masktorch.mask_parameters(model):
            scores.grad.mul_(scaler.get_scale())
        scaler.step(optimizer)

    Examples:
        >>> IntermediateSampling(step_size=0.2)
        IntermediateSampling(step_size=0.2, tau=0.5)
    """

    step_size: float = functional.STEP_SIZE
    tau: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_number("IntermediateSampling", "step_size", self.step_size)
        if not self.step_size > 0:
            raise ValueError(
                "IntermediateSampling expected a positive step_size, found "
                f"{self.step_size!r}. It is the step on a draw in units of rms(dL/dmask)."
            )

    def _masked(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return functional.intermediate(scores, self.step_size, weight=weight)


@final
@dataclass(frozen=True)
class Piggyback(_Cut):
    """A threshold on the score itself: see `masktorch.functional.piggyback`.

    Scores start at 1e-2, everything kept. Usual training: pretrained weights, Adam, learning rate
    1e-4. Raises `ValueError` for a `threshold` that is not a finite number.

    Examples:
        >>> import torch
        >>> Piggyback().mode(torch.tensor([0.0, 1e-2]))
        tensor([False,  True])
    """

    threshold: float = 5e-3
    draws: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_number("Piggyback", "threshold", self.threshold)

    @property
    def at(self) -> float:
        """The threshold."""
        return self.threshold

    @property
    def init(self) -> float:
        """1e-2, or as far above another threshold as that is above the usual one."""
        return self.threshold + 5e-3

    def __call__(self, scores: Tensor) -> Tensor:
        """The mask of training, floating point."""
        return functional.piggyback(scores, self.threshold)

    def product(self, scores: Tensor, weight: Tensor) -> Tensor:
        """`weight` times the mask of training."""
        return functional.piggyback(scores, self.threshold, weight=weight)

    def expected(self, scores: Tensor) -> Tensor:
        """The mask itself, nothing is drawn; differentiable by the same rule."""
        return self(scores)


@final
@dataclass(frozen=True)
class HardConcrete(_Cut):
    """Hard concrete gates, those of L0 regularisation: see `masktorch.functional.hard_concrete`.

    The mask of training is relaxed: it lies in [0, 1]. The deterministic one is `1[s > 0]`, the
    binary mask nearest to the gates that the paper evaluates with,
    `min(1, max(0, sigma(s) * (zeta - gamma) + gamma))`; those may lie between 0 and 1, so that
    accuracies differ a little from the paper's way. Scores start at `logit(0.9)`. Usual training:
    Adam, with a penalty on `masktorch.expected_density`. Raises `ValueError` unless `beta > 0`
    and `gamma < 0 < 1 < zeta`.

    Examples:
        >>> import torch
        >>> HardConcrete().mode(torch.tensor([-1.0, 1.0]))
        tensor([False,  True])
    """

    beta: float = 2 / 3
    gamma: float = -0.1
    zeta: float = 1.1

    def __post_init__(self) -> None:
        for field in ("beta", "gamma", "zeta"):
            _check_number("HardConcrete", field, getattr(self, field))
        if not (self.beta > 0 and self.gamma < 0 and self.zeta > 1):
            raise ValueError(
                f"HardConcrete expected beta > 0, gamma < 0 and zeta > 1, found {self!r}. The "
                "interval from gamma to zeta holds [0, 1], so that a gate closes and opens fully."
            )

    @property
    def init(self) -> float:
        """`logit(0.9)`: a drop rate of one in ten."""
        return functional.logit(0.9)

    def __call__(self, scores: Tensor) -> Tensor:
        """The mask of training, in [0, 1]."""
        return functional.hard_concrete(scores, self.beta, self.gamma, self.zeta)

    def expected(self, scores: Tensor) -> Tensor:
        """The probability that a gate is not 0, `sigma(s - beta * log(-gamma / zeta))`."""
        return torch.sigmoid(scores - self.beta * math.log(-self.gamma / self.zeta))


@final
@dataclass(frozen=True)
class Concrete(_Cut):
    """Binary concrete or Gumbel-sigmoid masks: see `masktorch.functional.concrete`.

    `hard` masks are 0 or 1 in training, soft ones lie between; the deterministic mask is
    `1[s > 0]`. Scores start at 1.0. A temperature that falls is `masktorch.set_estimator` with
    another value. Usual training: Adam, with a penalty on `masktorch.expected_density`. Raises
    `ValueError` for a `temperature` that is not positive and finite.

    Examples:
        >>> Concrete(temperature=0.5)
        Concrete(temperature=0.5, hard=True)
    """

    temperature: float = 2 / 3
    hard: bool = True

    def __post_init__(self) -> None:
        _check_number("Concrete", "temperature", self.temperature)
        if not self.temperature > 0:
            raise ValueError(
                f"Concrete expected a positive temperature, found {self.temperature!r}. The "
                "smaller it is, the nearer are soft masks to 0 and 1."
            )
        if not isinstance(self.hard, bool):
            raise TypeError(f"Concrete expected hard to be True or False, found {self.hard!r}.")

    def __call__(self, scores: Tensor) -> Tensor:
        """The mask of training."""
        return functional.concrete(scores, self.temperature, self.hard)

    def expected(self, scores: Tensor) -> Tensor:
        """The probability that `s + l > 0`, `sigma(s)`."""
        return torch.sigmoid(scores)

    def sample(self, scores: Tensor) -> Tensor:
        """A hard draw, bool."""
        return functional.concrete(scores, self.temperature, True) > 0


@dataclass(frozen=True)
class Given:
    """A mask that is given, not learned: its scores are the mask itself, bool."""

    def __call__(self, scores: Tensor) -> Tensor:
        return scores

    def mode(self, scores: Tensor) -> Tensor:
        return scores


def _check_number(estimator: str, field: str, value: object) -> None:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{estimator} expected {field} to be a number, found {value!r}.")
    if not math.isfinite(value):
        raise ValueError(f"{estimator} expected a finite {field}, found {value!r}.")
