"""What masktorch asks of an estimator, and what it assumes of members left out."""

from typing import Any, Protocol, cast, runtime_checkable

from torch import Tensor


@runtime_checkable
class Estimator(Protocol):
    """Define how a mask follows from its scores: what `masktorch.wrap` needs.

    An estimator is an immutable value. `__call__(scores)` returns the mask of training:
    floating point, differentiable by the estimator's rule. `mode(scores)` returns the
    deterministic mask of evaluation, frozen masks, files and reports: bool, of the same
    shape. Scores may have any shape, which `init` decides; a mask must broadcast to the
    weight.

    An estimator may offer more, by name. A subclass that overrides `__call__` or `mode`
    defines the members that must agree with it again, or does without them.

    - `init`: the scores to start from, a number or a function of the weight. Without
      it, scores have the weight's shape and start at 1.0.
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


def init(estimator: Estimator) -> Any:
    """Return where scores start: a number for all, or a function of the weight."""
    return getattr(estimator, "init", 1.0)


def scores_for(estimator: Estimator, scores: Tensor, mask: Tensor) -> Tensor:
    """Return scores near `scores` whose deterministic mask is `mask`.

    Raises:
        ValueError: the estimator does not say which scores these are.
    """
    own = getattr(estimator, "scores_for", None)
    if own is not None:
        return cast(Tensor, own(scores, mask))
    if scores.shape != mask.shape:
        raise ValueError(
            f"{estimator!r} has scores of shape {tuple(scores.shape)} and no "
            "scores_for(scores, mask) that says which of them give a mask."
        )
    return mask.to(scores.dtype)


# What an optional member must agree with.
_AGREES_WITH = {
    "draws": "__call__",
    "product": "__call__",
    "expected": "__call__",
    "sample": "__call__",
    "mode_product": "mode",
}

_OPTIONAL_METHODS = ("scores_for", "product", "mode_product", "expected", "sample")


def wrong_members(estimator: Any) -> list[str]:
    """Return the names of optional methods that the estimator uses for other values."""
    return [
        name
        for name in _OPTIONAL_METHODS
        if hasattr(estimator, name) and not callable(getattr(estimator, name))
    ]


def offers(estimator: Estimator, name: str) -> bool:
    """Whether an estimator has an optional member that agrees with its masks.

    A subclass that overrides `mode` and inherits `mode_product` would compute with
    another mask than it shows, and so would a wrapper that passes on the members of
    another estimator by `__getattr__`. A member counts if the class that defines it is
    the one that defines what it must agree with, or derives from it.
    """
    if name in getattr(estimator, "__dict__", {}):
        return True
    for cls in type(estimator).__mro__:
        if name in vars(cls):
            return True
        if _AGREES_WITH[name] in vars(cls):
            return False
    return False


def is_stochastic(estimator: Estimator) -> bool:
    """Whether two masks of training of the same scores may differ."""
    if offers(estimator, "draws"):
        return cast(bool, estimator.draws)  # type: ignore[attr-defined]
    return True


def expected(estimator: Estimator, scores: Tensor) -> Tensor:
    """Return the probability that each entry is kept, differentiable by the scores."""
    if offers(estimator, "expected"):
        return cast(Tensor, estimator.expected(scores))  # type: ignore[attr-defined]
    return estimator(scores)


def sample(estimator: Estimator, scores: Tensor) -> Tensor:
    """Draw a bool mask as training would."""
    if offers(estimator, "sample"):
        return cast(Tensor, estimator.sample(scores))  # type: ignore[attr-defined]
    return estimator(scores) > 0
