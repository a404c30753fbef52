"""The scores that a mask starts from: their shape, dtype and values."""

import math
import numbers
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from typing_extensions import TypeIs

from masktorch._checks import check_takes
from masktorch._kernels.dtypes import at_least_float32
from masktorch._methods import protocol
from masktorch._methods.protocol import Estimator

Init = float | Callable[[Tensor], Tensor]


def scores_dtype(weight: Tensor) -> torch.dtype:
    """Return the dtype of the scores of a weight: at least float32.

    In bfloat16 a score of 1.0 cannot move by 1e-3, so no mask would learn.
    """
    return at_least_float32(weight.dtype)


def initial_scores(
    caller: str, name: str, estimator: Estimator, weight: Tensor, init: Init | None
) -> Tensor:
    """Return the scores to start from, as `masktorch.wrap` was asked for them.

    Args:
        caller: the public function, for messages.
        name: the full name of the weight, for messages.
        estimator: decides the shape of the scores.
        weight: the tensor to mask.
        init: None for the estimator's own scores, a number for all scores, or a
            function of the weight that returns scores of the estimator's shape. An
            estimator of blocks also takes the weight's shape and reduces it to the
            means of its blocks.

    Raises:
        TypeError, ValueError: if the estimator cannot be used on this weight, or if
            `init` is or returns something else.
    """
    # Tensors made in inference mode never learn.
    with torch.inference_mode(False):
        if init is None:
            return own_scores(caller, name, estimator, weight)
        own = undrawn_scores(caller, name, estimator, weight)
        if _is_number(init):
            return torch.full_like(own, float(init))
        scores = _real_tensor(
            f"{caller}() expected init to be a number, or a function that returns "
            f"scores for {name!r}",
            _call(caller, init, weight) if callable(init) else init,
        )
        block_means = getattr(estimator, "block_means", None)
        if block_means is not None and scores.shape == weight.shape != own.shape:
            scores = block_means(scores)
        if scores.shape != own.shape:
            raise ValueError(
                f"{caller}() expected init to return scores of shape "
                f"{tuple(own.shape)} for {name!r}, found shape {tuple(scores.shape)}."
            )
        return torch.empty_like(own).copy_(scores.detach())


def own_scores(caller: str, name: str, estimator: Estimator, weight: Tensor) -> Tensor:
    """Return the scores that an estimator itself starts from.

    They may be drawn at random.

    Raises:
        TypeError, ValueError: if the estimator cannot be used on this weight.
    """
    init = protocol.init(estimator)
    dtype = scores_dtype(weight)
    if _is_number(init):
        return torch.full_like(weight, float(init), dtype=dtype, requires_grad=False)
    try:
        found = init(_values(weight)) if callable(init) else init
    except ValueError as error:
        raise ValueError(f"{caller}() can't mask {name!r}: {error}") from error
    scores = _real_tensor(
        f"{caller}() expected init of {estimator!r} to be a number, or a function of "
        f"the weight that returns scores for {name!r}",
        found,
    )
    if scores.shape != weight.shape:
        return scores.detach().to(weight.device, dtype, copy=True)
    # As the weight lies in memory, so that arithmetic on both is fast.
    like_weight = torch.empty_like(weight, dtype=dtype, requires_grad=False)
    return like_weight.copy_(scores.detach())


def undrawn_scores(
    caller: str, name: str, estimator: Estimator, weight: Tensor
) -> Tensor:
    """Return the scores of `own_scores`, and leave the global random streams alone.

    They are an example: of their shape, for instance.
    """
    devices = [weight.device] if weight.is_cuda else []
    with torch.random.fork_rng(devices):
        return own_scores(caller, name, estimator, weight)


def score_shape(
    caller: str, name: str, estimator: Estimator, weight: Tensor
) -> torch.Size:
    """Return the shape of `own_scores`, if possible without computing them."""
    if _is_number(protocol.init(estimator)):
        return weight.shape
    without_values = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
    try:
        return undrawn_scores(caller, name, estimator, without_values).shape
    except Exception:  # it reads values, or does not fit: the weight will show it
        return undrawn_scores(caller, name, estimator, weight).shape


def _values(weight: Tensor) -> Tensor:
    """A copy, because the functions of torch.nn.init write into what they get."""
    return weight.detach().clone()


def _call(caller: str, init: Callable[[Tensor], Tensor], weight: Tensor) -> Any:
    """`init(weight)`, if it takes one argument."""
    check_takes(
        f"{caller}() expected init to be a function of one argument, the weight",
        init,
        1,
    )
    return init(_values(weight))


def _is_number(value: Any) -> TypeIs[float]:
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_real and not math.isnan(value)


def _real_tensor(expected: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{expected}, found {value!r:.80}.")
    if value.is_complex():
        raise TypeError(f"{expected}, found {value.dtype}.")
    return value
