"""What masktorch asks of an estimator, and what it assumes of members left out."""

from typing import Protocol, cast, runtime_checkable

from torch import Tensor


@runtime_checkable
class Estimator(Protocol):
    """Define how a mask follows from its scores: the two methods `masktorch.wrap` needs.

    An estimator is an immutable value. `__call__(scores)` returns the mask of training:
    floating point, differentiable by the estimator's rule. `mode(scores)` returns the
    deterministic mask of evaluation, frozen masks, files and reports: bool, of the same
    shape. Scores may have any shape, which `init` decides; a mask must broadcast to the
    weight.

    An estimator may offer more, by name:

    - `init`: the scores to start from, a number or a function of the weight. Without it,
      scores have the weight's shape and start at 1.0.
    - `scores_for(scores, mask)`: scores near `scores` whose `mode` is `mask`, which has
      the weight's shape. Without it, 1 for kept and 0 for masked entries, if scores
      have the weight's shape.
    - `product(scores, weight)`, `mode_product(scores, weight)`: the weight times the
      mask of training, or times the deterministic one, in the weight's dtype.
    - `expected(scores)`: the probability that each entry is kept. Without it, the mask
      of training.
    - `sample(scores)`: a bool mask drawn as in training. Without it, where the mask of
      training is positive.
    - `draws`: False if the mask of training is a function of the scores alone. Without
      it, True.

    Examples:
        >>> from masktorch import Threshold
        >>> isinstance(Threshold(), Estimator)
        True
    """

    def __call__(self, scores: Tensor, /) -> Tensor: ...
    def mode(self, scores: Tensor, /) -> Tensor: ...


def is_stochastic(estimator: Estimator) -> bool:
    """Whether two masks of training of the same scores may differ."""
    return cast(bool, getattr(estimator, "draws", True))


def expected(estimator: Estimator, scores: Tensor) -> Tensor:
    """Return the probability that each entry is kept, differentiable by the scores."""
    return cast(Tensor, getattr(estimator, "expected", estimator)(scores))


def sample(estimator: Estimator, scores: Tensor) -> Tensor:
    """Draw a bool mask as training would."""
    if hasattr(estimator, "sample"):
        return cast(Tensor, estimator.sample(scores))
    return estimator(scores) > 0
