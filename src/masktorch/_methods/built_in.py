"""What all built-in estimators share."""

import inspect
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from masktorch._checks import check_number
from masktorch._kernels.dtypes import converted
from masktorch._kernels.selecting import select

PACKAGE = __name__.partition(".")[0]


class BuiltIn(ABC):
    """Base class of the built-in estimators: frozen dataclasses, plain values.

    `product` returns `weight * mask` in the weight's dtype, or the mask in the scores'
    dtype if `weight` is None. The members' meaning is that of `masktorch.Estimator`.

    A field `density` opts into `masktorch.set_density` and `masktorch.budget`.
    """

    def __init_subclass__(cls) -> None:
        """Make an estimator that this package defines public and loadable.

        It takes the module "masktorch", the name under which pickles and checkpoints
        find it, and `torch.load(weights_only=True)` may read it. Base classes and the
        subclasses of users stay as they are.
        """
        super().__init_subclass__()
        is_ours = cls.__module__.partition(".")[0] == PACKAGE
        if is_ours and not inspect.isabstract(cls):
            cls.__module__ = PACKAGE
            torch.serialization.add_safe_globals([cls])

    def __post_init__(self) -> None:  # noqa: B027
        """Check the fields, if there are any."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what a copy or a file says, and check it as the constructor does.

        A subclass of the user's is not checked: its `__post_init__` may change fields.
        """
        self.__dict__.update(state)
        if type(self).__module__ == "masktorch":
            self.__post_init__()

    def _check_number(
        self, field: str, low: float = -math.inf, high: float = math.inf
    ) -> None:
        """Check a field and make it a plain float: numpy's are not plain values."""
        value = getattr(self, field)
        check_number(type(self).__name__, field, value, low, high)
        object.__setattr__(self, field, float(value))

    @property
    def draws(self) -> bool:
        """Whether training draws masks; the deterministic estimators say False."""
        return True

    @abstractmethod
    def init(self, weight: Tensor) -> Tensor:
        """Return the scores to start from, in `at_least_float32(weight.dtype)`."""

    @abstractmethod
    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        """Return the weight under the mask of training, or that mask."""

    @abstractmethod
    def mode(self, scores: Tensor) -> Tensor:
        """Return the deterministic mask, bool."""

    @abstractmethod
    def scores_for(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Return scores near `scores` whose `mode` is `mask`."""

    def __call__(self, scores: Tensor) -> Tensor:
        """Return the mask of training."""
        return self.product(scores, None)

    def mode_product(self, scores: Tensor, weight: Tensor) -> Tensor:
        """Return the weight under the deterministic mask."""
        return select(self.mode(scores), weight)


def times(weight: Tensor | None, mask: Tensor) -> Tensor:
    """Return `weight * mask` in the weight's dtype, or the mask if `weight` is None.

    Autograd gives a mask of a wider dtype its gradient in that dtype.
    """
    return mask if weight is None else converted(weight * mask, weight.dtype)


def straight_through(value: Tensor, differentiable: Tensor) -> Tensor:
    """Return `value`, with the gradient of `differentiable`."""
    return value + (differentiable - differentiable.detach())
