"""What the estimators of the library share."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from masktorch._checks import check_number
from masktorch._kernels.autograd import Rule, masked
from masktorch._kernels.chunked import Out, chunkwise
from masktorch._kernels.selecting import at_most, compared, select_above


class BuiltIn:
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
        return self.at + max(
            self.start, abs(self.at) / 100
        )  # above it in half precision too

    def __call__(self, scores: Tensor) -> Tensor:
        return self.product(scores, None)

    def expected(self, scores: Tensor) -> Tensor:
        return torch.sigmoid(scores) if self.draws else self(scores)

    def mode(self, scores: Tensor) -> Tensor:
        return keeps(scores, self.at)

    def mode_product(self, scores: Tensor, weight: Tensor) -> Tensor:
        return mode_product(scores, weight, self.at)

    def scores_for(self, scores: Tensor, mask: Tensor) -> Tensor:
        """The scores; those not beyond the threshold on their side go 1 beyond it."""
        decided = (keeps(scores, self.at) == mask) & (scores != self.at)
        return torch.where(
            decided, scores, mask.to(scores.dtype).mul_(2).add_(self.at - 1)
        )


class ProbabilityEstimator(BuiltIn):
    """`sigma(s)` is the probability that an entry is kept, or is compared with `tau`."""

    tau: float

    def __post_init__(self) -> None:
        logit(self.tau, type(self).__name__)

    @property
    def at(self) -> float:
        return logit(self.tau)


def logit(tau: float, caller: str = "threshold()") -> float:
    """The score `s` at which `sigma(s) = tau`. Raises unless `tau` lies in (0, 1)."""
    check_number(caller, "tau", tau, 0, 1)
    return math.log(tau / (1 - tau))


def keeps(scores: Tensor, at: float = 0.0) -> Tensor:
    """The deterministic mask `m = 1[s > at]`, bool; a score that is not a number is kept."""
    at = at_most(at, scores.dtype)
    return chunkwise(lambda s, out: compared(lambda v: ~(v <= at), s, out))(
        scores.detach()
    )


def mode_product(scores: Tensor, weight: Tensor, at: float = 0.0) -> Tensor:
    """`weight` under that mask, without a tensor for the mask; differentiable by the weight."""
    return select_above(weight, scores.detach(), at_most(at, scores.dtype))


def above(at: float, scores: Tensor, weight: Tensor | None, rule: Rule) -> Tensor:
    """That mask or the weight under it, with a rule for the gradient."""
    at, read = (
        at_most(at, scores.dtype),
        scores.detach(),
    )  # Dynamo takes no tensor twice
    return masked(scores, weight, read, lambda s, w: select_above(w, s, at), rule)


@chunkwise
def logistic_rule(
    scores: Tensor, weight: Tensor, read: Tensor, grad: Tensor, out: Out
) -> Tensor:
    """`g * sigma(s) * (1 - sigma(s))`."""
    p = torch.sigmoid(wide(scores, scores))  # 1 - p would be 0 in half precision
    slope = torch.ops.aten.sigmoid_backward(wide(grad, scores), p)
    product = slope.mul_(weight) if out is None else torch.mul(slope, weight, out=out)
    return product.to(scores.dtype)


def wide(tensor: Tensor, scores: Tensor) -> Tensor:
    """The tensor in the dtype that the scores' gradient is computed in: float32, or
    float64 for scores in it."""
    return tensor.to(torch.promote_types(scores.dtype, torch.float32))
