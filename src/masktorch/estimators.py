"""The estimators: how a mask is chosen from its scores, and what gradient the scores get.

An estimator is a value, a frozen dataclass: two that are equal do the same, and its repr evaluates
back to it. The formulas are in `masktorch.functional`.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from masktorch import functional
from masktorch.checks import check_number, check_switch


@runtime_checkable
class Estimator(Protocol):
    """What `masktorch.wrap` asks of an estimator: two methods.

    `__call__(scores)` gives the mask used in training: floating point, shaped like `scores`,
    differentiable by the estimator's rule. `mode(scores)` gives the deterministic one of
    evaluation, frozen masks, files and reports: bool, the same shape. It may offer more, by name:

    - `draws`: False where the mask of training follows from the scores (else it is held for one
      forward);
    - `init`: the scores to start from, a number or a function of the weight (else 1.0);
    - `product(scores, weight)`, `mode_product(scores, weight)`: the weight times either mask;
    - `scores_for(scores, mask)`: scores near the given ones whose `mode` is `mask` (else
      `masktorch.set_masks` tries 1 where the mask keeps and 0 elsewhere);
    - `expected(scores)`: the probability that each entry is kept, differentiable, for
      `masktorch.expected_density` (else the mask of training, one draw);
    - `sample(scores)`: a bool mask for `masktorch.sample_masks` (else where that of training is
      positive).

    Examples:
        >>> isinstance(Threshold(), Estimator)
        True
    """

    def __call__(self, scores: Tensor, /) -> Tensor: ...
    def mode(self, scores: Tensor, /) -> Tensor: ...


class Method:
    """What the library's own estimators share: each is one formula of `functional`, `product`.

    The deterministic mask is `1[s > at]`, and scores start above it: a fresh model computes as the
    plain one in evaluation.
    """

    draws: ClassVar[bool] = True
    start: ClassVar[float] = 1.0  # above the threshold

    @property
    def at(self) -> float:
        return 0.0

    @property
    def init(self) -> Any:
        return self.at + self.start

    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        """`weight` times the mask of training, or that mask."""
        raise NotImplementedError

    def __call__(self, scores: Tensor) -> Tensor:
        return self.product(scores, None)

    def expected(self, scores: Tensor) -> Tensor:
        return torch.sigmoid(scores) if self.draws else self(scores)

    def mode(self, scores: Tensor) -> Tensor:
        return functional.keeps(scores, self.at)

    def mode_product(self, scores: Tensor, weight: Tensor) -> Tensor:
        return functional.mode_product(scores, weight, self.at)

    def scores_for(self, scores: Tensor, mask: Tensor) -> Tensor:
        """The scores; those not beyond the threshold, on their side of the mask, 1 beyond it."""
        decided = (functional.keeps(scores, self.at) == mask) & (scores != self.at)
        return torch.where(decided, scores, mask.to(scores.dtype).mul_(2).add_(self.at - 1))


class _Probability(Method):
    """`sigma(s)` is the probability that an entry is kept, or is compared with `tau`."""

    tau: float

    def __post_init__(self) -> None:
        functional.logit(self.tau, type(self).__name__)

    @property
    def at(self) -> float:
        return functional.logit(self.tau)


@final
@dataclass(frozen=True)
class Threshold(_Probability):
    """Straight-through threshold: see `masktorch.functional.threshold`.

    Scores start 1 above the threshold. Usual training: Adam, learning rate 1e-2.
    Raises `ValueError` for a `tau` outside (0, 1).

    Examples:
        >>> Threshold().mode(torch.tensor([-1.0, 1.0]))
        tensor([False,  True])
    """

    tau: float = 0.5
    draws: ClassVar[bool] = False

    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return functional.threshold(scores, self.tau, weight=weight)


@final
@dataclass(frozen=True)
class Bernoulli(_Probability):
    """Bernoulli samples, gradient of the expectation: see `masktorch.functional.bernoulli`.

    `tau` is the threshold of the deterministic mask only. Scores start 3 above it. Usual training:
    Adam, learning rate 0.3. Raises `ValueError` for a `tau` outside (0, 1).

    Examples:
        >>> Bernoulli().mode(torch.tensor([-1.0, 1.0]))
        tensor([False,  True])
    """

    tau: float = 0.5
    start: ClassVar[float] = 3.0

    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return functional.bernoulli(scores, weight=weight)


@final
@dataclass(frozen=True)
class IntermediateSampling(_Probability):
    """Intermediate sampling: see `masktorch.functional.intermediate`.

    `step_size` is the step on a draw in units of the root mean square of the tensor's gradient,
    `tau` the threshold of the deterministic mask only. Scores start 1 above it. Raises `ValueError`
    for a `tau` outside (0, 1) or a `step_size` that is not positive and finite.

    The gradient of the scores does not grow with the loss, so a `torch.amp.GradScaler`, which
    divides by the factor that it gave the loss, makes it too small by that factor. Give it back:
    `scores.grad.mul_(scaler.get_scale())` for all `scores` of `masktorch.mask_parameters(model)`
    between `scaler.unscale_(optimizer)` and `scaler.step(optimizer)`.

    Examples:
        >>> IntermediateSampling(step_size=0.2)
        IntermediateSampling(step_size=0.2, tau=0.5)
    """

    step_size: float = functional.STEP_SIZE
    tau: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        hint = "It is in units of rms(dL/dmask)."
        check_number("IntermediateSampling", "step_size", self.step_size, above=0, hint=hint)

    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return functional.intermediate(scores, self.step_size, weight=weight)


@final
@dataclass(frozen=True)
class Piggyback(Method):
    """A threshold on the score itself: see `masktorch.functional.piggyback`.

    Scores start 5e-3 above it. Usual training: pretrained weights, Adam, learning rate 1e-4.
    Raises `ValueError` for a `threshold` that is not finite.

    Examples:
        >>> Piggyback().mode(torch.tensor([0.0, 1e-2]))
        tensor([False,  True])
    """

    threshold: float = 5e-3
    draws: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("Piggyback", "threshold", self.threshold)

    @property
    def at(self) -> float:
        return self.threshold

    @property
    def init(self) -> float:
        return self.threshold + max(5e-3, 0.01 * abs(self.threshold))  # above it in bfloat16 too

    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return functional.piggyback(scores, self.threshold, weight=weight)


@final
@dataclass(frozen=True)
class HardConcrete(Method):
    """Hard concrete gates, those of L0 regularisation: see `masktorch.functional.hard_concrete`.

    An entry is not 0 with the probability `sigma(s - beta * log(-gamma / zeta))`. The deterministic
    mask is `1[s > 0]`, with the usual `gamma` and `zeta` the binary one nearest to the gates that
    the paper evaluates with, `min(1, max(0, sigma(s) * (zeta - gamma) + gamma))`; those may lie
    between, so that accuracies differ a little. Scores start at `logit(0.9)`. Usual training: Adam,
    with a penalty on `masktorch.expected_density`. Raises `ValueError` unless `beta > 0` and
    `gamma < 0 < 1 < zeta`.

    Examples:
        >>> HardConcrete().mode(torch.tensor([-1.0, 1.0]))
        tensor([False,  True])
    """

    beta: float = 2 / 3
    gamma: float = -0.1
    zeta: float = 1.1
    start: ClassVar[float] = functional.logit(0.9)

    def __post_init__(self) -> None:
        hint = "From gamma to zeta lies [0, 1] with room beyond."
        check_number("HardConcrete", "beta", self.beta, above=0)
        check_number("HardConcrete", "gamma", self.gamma, below=0, hint=hint)
        check_number("HardConcrete", "zeta", self.zeta, above=1, hint=hint)

    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return functional.hard_concrete(scores, self.beta, self.gamma, self.zeta, weight=weight)

    def expected(self, scores: Tensor) -> Tensor:
        return torch.sigmoid(scores - self.beta * math.log(-self.gamma / self.zeta))


@final
@dataclass(frozen=True)
class Concrete(Method):
    """Binary concrete or Gumbel-sigmoid masks: see `masktorch.functional.concrete`.

    `hard` masks are 0 or 1 in training, soft ones lie between; an entry is kept with the
    probability `sigma(s)`. A temperature that falls is `masktorch.set_estimator` with another
    value. Usual training: Adam, with a penalty on `masktorch.expected_density`. Raises `ValueError`
    for a `temperature` that is not positive and finite.

    Examples:
        >>> Concrete(temperature=0.5)
        Concrete(temperature=0.5, hard=True)
    """

    temperature: float = 2 / 3
    hard: bool = True

    def __post_init__(self) -> None:
        check_number("Concrete", "temperature", self.temperature, above=0)
        check_switch("Concrete", "hard", self.hard)

    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return functional.concrete(scores, self.temperature, self.hard, weight=weight)

    def sample(self, scores: Tensor) -> Tensor:
        return functional.concrete(scores, self.temperature, True) > 0


@dataclass(frozen=True)
class Given:
    """A mask that is given, not learned: its scores are the mask itself, bool."""

    def __call__(self, scores: Tensor) -> Tensor:
        return scores

    mode = __call__
