"""The weight under its mask, with a method's rule as the gradient of the scores.

A *source* is the tensor that the mask is computed from: the scores, the margins of a
draw, bools or bytes.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from masktorch._kernels.chunked import PLAIN_TYPES, is_eager

# (source, weight) -> weight * m, in the weight's dtype
Product = Callable[[Tensor, Tensor], Tensor]
# (scores, weight, source, G) -> dL/dscores, in the scores' dtype
Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def masked(
    scores: Tensor,
    weight: Tensor | None,
    source: Tensor | None,
    product: Product,
    rule: Rule,
) -> Tensor:
    """Return `weight * m` in the weight's dtype; without a weight `m` in the scores'.

    With `G` the gradient of the result, the scores get the rule's gradient and the
    weight gets `G * m`, which the scores can differentiate by the same rule. Scores and
    weight may differ in shape if they broadcast.

    Args:
        source: what `product` computes the mask from, a tensor of the scores' shape
            without gradient; None for the scores themselves.
        product: the forward, and the gradient of the weight.
        rule: the gradient of the scores.
    """
    if weight is None:
        weight = scores.new_ones(())
    elif not weight.is_floating_point():
        raise TypeError(f"expected a floating-point weight, found {weight.dtype}.")
    elif weight.shape != scores.shape:
        return _masked_by_broadcast(scores, weight, source, product, rule)
    if is_eager() and type(scores) in PLAIN_TYPES and type(weight) in PLAIN_TYPES:
        if scores.requires_grad and torch.is_grad_enabled():
            return _apply(scores, weight, source, product, rule)
        return product(scores.detach() if source is None else source, weight)
    if torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "torch.compile of a torch.func transform of a mask loses the gradient. "
            "Use one of them."
        )
    return _apply_under_transform(scores, weight, source, product, rule)


def _masked_by_broadcast(
    scores: Tensor,
    weight: Tensor,
    source: Tensor | None,
    product: Product,
    rule: Rule,
) -> Tensor:
    """Compute the mask in the scores' shape, expand it and multiply.

    Autograd then sums `g` over the copies of each score.
    """
    mask = masked(scores, None, source, product, rule)
    shape = torch.broadcast_shapes(scores.shape, weight.shape)  # type: ignore[no-untyped-call]
    source = scores.detach() if source is None else source
    return masked(
        mask.expand(shape), weight.expand(shape), source.expand(shape), product, _times
    )


def _times(mask: Tensor, weight: Tensor, source: Tensor, grad: Tensor) -> Tensor:
    """The rule of an ordinary product: `mask` takes the place of `scores`."""
    return (grad.to(mask.dtype) * weight).to(mask.dtype)


class _Masked(torch.autograd.Function):
    """`masked` in eager code."""

    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        weight: Tensor,
        source: Tensor | None,
        product: Product,
        rule: Rule,
    ) -> Tensor:
        ctx.save_for_backward(scores, weight, source)
        ctx.product, ctx.rule = product, rule
        return product(scores if source is None else source, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scores, weight, source = ctx.saved_tensors
        origin = scores if source is None else source
        needs_gradient = ctx.needs_input_grad
        for_scores = for_weight = None
        if needs_gradient[0]:
            for_scores = ctx.rule(scores, weight, origin, grad)
        if needs_gradient[1]:
            # Under `create_graph` it is masked as the weight was, so that the second
            # derivative follows the rule. Compiled code has no second derivative.
            if torch.is_grad_enabled() and not torch.compiler.is_compiling():
                for_weight = masked(scores, grad, source, ctx.product, ctx.rule)
            else:
                for_weight = ctx.product(origin, grad)
        return for_scores, for_weight, None, None, None


class _MaskedUnderTransform(_Masked):
    """`masked` under torch.func and torch.compile.

    They need a forward without context, which costs some calls.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(  # type: ignore[override]
        scores: Tensor,
        weight: Tensor,
        source: Tensor | None,
        product: Product,
        rule: Rule,
    ) -> Tensor:
        return product(scores if source is None else source, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.product, ctx.rule = inputs
        ctx.save_for_backward(*tensors)


# `Function.apply` re-checks transforms and the signature on each call, which doubles
# its cost; skip to the C implementation.
_apply = cast(Callable[..., Tensor], super(torch.autograd.Function, _Masked).apply)
_apply_under_transform = cast(Callable[..., Tensor], _MaskedUnderTransform.apply)
