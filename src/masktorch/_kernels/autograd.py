"""The weight under its mask, with a method's rule as the gradient of the scores."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from masktorch._kernels.chunked import is_plain

# (what the mask is read off, weight) -> weight * m, in the weight's dtype
Product = Callable[[Tensor, Tensor], Tensor]
# (scores, weight, what the mask is read off, G) -> dL/dscores, in the scores' dtype
Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def masked(
    scores: Tensor,
    weight: Tensor | None,
    read: Tensor | None,
    product: Product,
    rule: Rule,
) -> Tensor:
    """Return `weight * m` in the weight's dtype, or `m` in the scores' without a weight.

    With `G` the gradient of the result, the scores get the rule's gradient and the weight
    gets `G * m`, which the scores can differentiate by the same rule. Scores and weight
    may differ in shape if they broadcast.

    Args:
        read: what `product` reads the mask off, a tensor of the scores' shape without
            gradient; None for the scores themselves.
        product: the forward, and the gradient of the weight.
        rule: the gradient of the scores.
    """
    if weight is None:
        weight = scores.new_ones(())
    elif weight.shape != scores.shape:
        return _masked_by_broadcast(scores, weight, read, product, rule)
    if is_plain(scores, weight):
        if scores.requires_grad and torch.is_grad_enabled():
            return _apply(scores, weight, read, product, rule)
        return product(scores.detach() if read is None else read, weight)
    if torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "torch.compile of a torch.func transform of a mask loses the gradient. "
            "Use one of them."
        )
    return _apply_under_transform(scores, weight, read, product, rule)


def _masked_by_broadcast(
    scores: Tensor,
    weight: Tensor,
    read: Tensor | None,
    product: Product,
    rule: Rule,
) -> Tensor:
    """The mask of the scores' shape, expanded: so the rule gets `g` summed per score."""
    mask = masked(scores, None, read, product, rule)
    shape = torch.broadcast_shapes(scores.shape, weight.shape)  # type: ignore[no-untyped-call]
    read = scores.detach() if read is None else read
    return masked(
        mask.expand(shape), weight.expand(shape), read.expand(shape), product, _times
    )


def _times(mask: Tensor, weight: Tensor, read: Tensor, grad: Tensor) -> Tensor:
    """The rule of an ordinary product."""
    return (grad.to(mask.dtype) * weight).to(mask.dtype)


class _Masked(torch.autograd.Function):
    """`masked` in eager code."""

    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        weight: Tensor,
        read: Tensor | None,
        product: Product,
        rule: Rule,
    ) -> Tensor:
        ctx.save_for_backward(scores, weight, read)
        ctx.product, ctx.rule = product, rule
        return product(scores if read is None else read, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scores, weight, read = ctx.saved_tensors
        if read is None:
            read = scores.detach()
        needs_scores, needs_weight, *_ = ctx.needs_input_grad
        for_scores = ctx.rule(scores, weight, read, grad) if needs_scores else None
        for_weight = None
        if needs_weight:
            # Under `create_graph` it is masked as the weight was, so that the second
            # derivative follows the rule. Compiled code has no second derivative.
            if torch.is_grad_enabled() and not torch.compiler.is_compiling():
                for_weight = masked(scores, grad, read, ctx.product, ctx.rule)
            else:
                for_weight = ctx.product(read, grad)
        return for_scores, for_weight, None, None, None


class _MaskedUnderTransform(_Masked):
    """`masked` where torch.func or torch.compile looks on: it separates the forward from
    what is kept for the backward, which costs some calls."""

    generate_vmap_rule = True

    @staticmethod
    def forward(  # type: ignore[override]
        scores: Tensor,
        weight: Tensor,
        read: Tensor | None,
        product: Product,
        rule: Rule,
    ) -> Tensor:
        return product(scores if read is None else read, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.product, ctx.rule = inputs
        ctx.save_for_backward(*tensors)


# `_Masked.apply` looks for transforms and inspects a signature in each call, which takes
# as long as the rest; this is what it then calls.
_apply = cast(Callable[..., Tensor], super(torch.autograd.Function, _Masked).apply)
_apply_under_transform = cast(Callable[..., Tensor], _MaskedUnderTransform.apply)
