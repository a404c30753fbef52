"""The gradient rules that several methods share.

A rule is `(scores, weight, source, grad) -> dL/dscores`, with `g = grad * weight` the
gradient of the mask. `masktorch._kernels.autograd` defines its arguments.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from masktorch._kernels.autograd import Rule
from masktorch._kernels.chunked import Out, chunkwise
from masktorch._kernels.dtypes import converted, wide

# (grad, y) -> grad * y * (1 - y), in one pass
sigmoid_backward: Callable[[Tensor, Tensor], Tensor]
sigmoid_backward = torch.ops.aten.sigmoid_backward.default
_leaky_relu_backward: Callable[..., Tensor]
_leaky_relu_backward_out: Callable[..., Tensor]
_leaky_relu_backward = torch.ops.aten.leaky_relu_backward.default
_leaky_relu_backward_out = torch.ops.aten.leaky_relu_backward.grad_input


@chunkwise
def logistic_rule(
    scores: Tensor, weight: Tensor, source: Tensor, grad: Tensor, out: Out
) -> Tensor:
    """`dL/ds = g * sigma(s) * (1 - sigma(s))`, with `g = grad * weight`."""
    p = torch.sigmoid(wide(scores, scores))
    slope = sigmoid_backward(wide(grad, scores), p)
    product = slope.mul_(weight) if out is None else torch.mul(slope, weight, out=out)
    return converted(product, scores.dtype)


@chunkwise
def identity_rule(
    scores: Tensor, weight: Tensor, source: Tensor, grad: Tensor, out: Out
) -> Tensor:
    """`dL/ds = g`, with `g = grad * weight`."""
    g = torch.mul(wide(grad, scores), weight, out=out)
    return converted(g, scores.dtype)


@chunkwise
def magnitude_rule(
    scores: Tensor, weight: Tensor, source: Tensor, grad: Tensor, out: Out
) -> Tensor:
    """`dL/ds = g * sign(s)`, with `g = grad * weight` and `sign(0) = 1`.

    That is the derivative by `|s|`. With PyTorch's `sign(0) = 0` a score of 0 would be
    dead.
    """
    g = wide(grad, scores) * weight
    # |s| is a leaky ReLU of slope -1, for which PyTorch counts 0 among the negatives:
    # so take -g at -s.
    operands = g.neg_(), converted(scores, g.dtype).neg(), -1.0, False
    if out is not None:
        return _leaky_relu_backward_out(*operands, grad_input=out)
    return converted(_leaky_relu_backward(*operands), scores.dtype)


def straight_rule(absolute: bool) -> Rule:
    """Return the rule of edge-popup (magnitudes compete), or of movement pruning."""
    return magnitude_rule if absolute else identity_rule
