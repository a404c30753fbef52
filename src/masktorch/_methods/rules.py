"""The gradient rules that several methods share.

A rule is `(scores, weight, source, grad) -> dL/dscores`, with `g = grad * weight` the
gradient of the mask. `masktorch._kernels.autograd` defines its arguments.
"""

import torch
from torch import Tensor

from masktorch._kernels.autograd import Rule
from masktorch._kernels.chunked import Out, chunkwise
from masktorch._methods.built_in import wide


@chunkwise
def logistic_rule(
    scores: Tensor, weight: Tensor, source: Tensor, grad: Tensor, out: Out
) -> Tensor:
    """`dL/ds = g * sigma(s) * (1 - sigma(s))`, with `g = grad * weight`."""
    p = torch.sigmoid(wide(scores, scores))
    slope = torch.ops.aten.sigmoid_backward(wide(grad, scores), p)
    product = slope.mul_(weight) if out is None else torch.mul(slope, weight, out=out)
    return product.to(scores.dtype)


@chunkwise
def identity_rule(
    scores: Tensor, weight: Tensor, source: Tensor, grad: Tensor, out: Out
) -> Tensor:
    """`dL/ds = g`, with `g = grad * weight`."""
    return torch.mul(wide(grad, scores), weight, out=out).to(scores.dtype)


@chunkwise
def magnitude_rule(
    scores: Tensor, weight: Tensor, source: Tensor, grad: Tensor, out: Out
) -> Tensor:
    """`dL/ds = g * sign(s)`, with `g = grad * weight` and `sign(0) = 1`.

    That is the derivative by `|s|`. With PyTorch's `sign(0) = 0` a score of 0 would be
    dead.
    """
    g = torch.mul(wide(grad, scores), weight, out=out)
    # sign(0) becomes 1
    sign = scores.detach().sign().add_(0.5).sign_()
    return g.mul_(sign).to(scores.dtype)


def straight_rule(absolute: bool) -> Rule:
    """Return the rule of edge-popup (magnitudes compete), or of movement pruning."""
    return magnitude_rule if absolute else identity_rule
