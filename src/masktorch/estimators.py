"""The estimators: each a method as a value, whose formula is in `masktorch.functional`. Two that
are equal do the same, and the repr of one evaluates back to it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from masktorch import functional
from masktorch.checks import check_flag, check_number


@runtime_checkable
class Estimator(Protocol):
    """What `masktorch.wrap` asks of an estimator: two methods.

    `__call__(scores)` gives the mask used in training: floating point, shaped like `scores`,
    differentiable by the estimator's rule. `mode(scores)` gives the deterministic one of
    evaluation, frozen masks, files and reports: bool, the same shape. It may offer more, by name:

    - `draws`: False where the mask of training follows from the scores;
    - `init`: the scores to start from, a number or a function of the weight (else 1.0);
    - `product(scores, weight)`, `mode_product(scores, weight)`: the weight times either mask;
    - `scores_for(scores, mask)`: scores near those given whose `mode` is `mask` (else 1 and 0);
    - `expected(scores)`: the probability that each entry is kept (else the mask of training);
    - `sample(scores)`: a bool mask drawn as in training (else where that one is positive).

    Examples:
        >>> isinstance(Threshold(), Estimator)
        True
    """

    def __call__(self, scores: Tensor, /) -> Tensor: ...
    def mode(self, scores: Tensor, /) -> Tensor: ...


class Method:
    """What the library's own share: `product` gives the weight times the mask of training, or that
    mask; the deterministic one is `1[s > at]`, and a fresh model evaluates as the plain one."""

    draws: ClassVar[bool] = True
    start: ClassVar[float] = 1.0  # above `at`
    product: Callable[[Tensor, Tensor | None], Tensor]

    @property
    def at(self) -> float:
        return 0.0

    @property
    def init(self) -> Any:
        return self.at + max(self.start, abs(self.at) / 100)  # above it in half precision too

    def __call__(self, scores: Tensor) -> Tensor:
        return self.product(scores, None)

    def expected(self, scores: Tensor) -> Tensor:
        return torch.sigmoid(scores) if self.draws else self(scores)

    def mode(self, scores: Tensor) -> Tensor:
        return functional.keeps(scores, self.at)

    def mode_product(self, scores: Tensor, weight: Tensor) -> Tensor:
        return functional.mode_product(scores, weight, self.at)

    def scores_for(self, scores: Tensor, mask: Tensor) -> Tensor:
        """The scores; those not beyond the threshold on their side go 1 beyond it."""
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


@dataclass(frozen=True)
class Threshold(_Probability):
    """Straight-through: `masktorch.functional.threshold`. Scores start 1 above the threshold. Usual
    training: Adam, learning rate 1e-2. `ValueError` for a `tau` outside (0, 1).

    Examples:
        >>> Threshold().mode(torch.tensor([-1.0, 1.0]))
        tensor([False,  True])
    """

    tau: float = 0.5
    draws: ClassVar[bool] = False

    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return functional.threshold(scores, self.tau, weight=weight)


@dataclass(frozen=True)
class Bernoulli(_Probability):
    """Samples: `masktorch.functional.bernoulli`. `tau` is the threshold of the deterministic mask
    only. Scores start 3 above it. Usual training: Adam, learning rate 0.3. Raises as `Threshold`.

    Examples:
        >>> Bernoulli().mode(torch.tensor([-1.0, 1.0]))
        tensor([False,  True])
    """

    tau: float = 0.5
    start: ClassVar[float] = 3.0

    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return functional.bernoulli(scores, weight=weight)


@dataclass(frozen=True)
class IntermediateSampling(_Probability):
    """Intermediate sampling: `masktorch.functional.intermediate`. Start, training and `tau` as for
    `Threshold`, which raises the same; `ValueError` too for a `step_size` that is not positive.

    The gradient does not grow with the loss: give back to each `scores.grad` what the `unscale_` of
    a `torch.amp.GradScaler` divides it by, `scores.grad.mul_(scaler.get_scale())`.

    Examples:
        >>> IntermediateSampling(step_size=0.2)
        IntermediateSampling(step_size=0.2, tau=0.5)
    """

    step_size: float = 0.1
    tau: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("IntermediateSampling", "step_size", self.step_size, 0)

    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return functional.intermediate(scores, self.step_size, weight=weight)


@dataclass(frozen=True)
class Piggyback(Method):
    """A threshold on the score: `masktorch.functional.piggyback`. Scores start 5e-3 above it. Usual
    training: pretrained weights, Adam, learning rate 1e-4. `ValueError` unless it is finite.

    Examples:
        >>> Piggyback().mode(torch.tensor([0.0, 1e-2]))
        tensor([False,  True])
    """

    threshold: float = 5e-3
    draws: ClassVar[bool] = False
    start: ClassVar[float] = 5e-3

    def __post_init__(self) -> None:
        check_number("Piggyback", "threshold", self.threshold)

    @property
    def at(self) -> float:
        return self.threshold

    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return functional.piggyback(scores, self.threshold, weight=weight)


@dataclass(frozen=True)
class HardConcrete(Method):
    """The gates of L0 regularisation: `masktorch.functional.hard_concrete`. The deterministic mask
    is `1[s > 0]`, where the paper evaluates with gates that may lie between 0 and 1. Scores start
    at `logit(0.9)`. Usual training: Adam, with a penalty on `masktorch.expected_density`, of
    `sigma(s - beta * log(-gamma / zeta))`. `ValueError` unless `gamma < 0 < 1 < zeta`, `beta > 0`.

    Examples:
        >>> HardConcrete().mode(torch.tensor([-1.0, 1.0]))
        tensor([False,  True])
    """

    beta: float = 2 / 3
    gamma: float = -0.1
    zeta: float = 1.1
    start: ClassVar[float] = functional.logit(0.9)

    def __post_init__(self) -> None:
        check_number("HardConcrete", "beta", self.beta, 0)
        check_number("HardConcrete", "gamma", self.gamma, high=0)
        check_number("HardConcrete", "zeta", self.zeta, 1)

    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return functional.hard_concrete(scores, self.beta, self.gamma, self.zeta, weight=weight)

    def expected(self, scores: Tensor) -> Tensor:
        return torch.sigmoid(scores - self.beta * math.log(-self.gamma / self.zeta))


@dataclass(frozen=True)
class Concrete(Method):
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
        return functional.concrete(scores, self.temperature, self.hard, weight=weight)

    def sample(self, scores: Tensor) -> Tensor:
        return functional.concrete(scores, self.temperature, True) > 0


@dataclass(frozen=True)
class Given:
    """A mask that is given, not learned: its scores are the mask itself, bool."""

    def __call__(self, scores: Tensor) -> Tensor:
        return scores

    mode = __call__
