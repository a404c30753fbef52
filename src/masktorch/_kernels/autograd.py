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


class _Masked(torch.autograd.Function):
    """`weight * m`. With `G` the gradient of the result, the scores get the rule's
    gradient and the weight gets `G * m`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Any, weight: Any, read: Any, product: Any, rule: Any) -> Any:
        return product(read, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.product, ctx.rule = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scores, weight, read = ctx.saved_tensors
        for_scores = for_weight = None
        if ctx.needs_input_grad[0]:
            for_scores = _gradient_of_scores(ctx.rule, scores, weight, read, grad)
        if ctx.needs_input_grad[1]:
            for_weight = _gradient_of_weight(ctx, scores, read, grad)
            if weight.shape != grad.shape:
                for_weight = for_weight.sum_to_size(weight.shape)
        return for_scores, for_weight, None, None, None


def _gradient_of_scores(
    rule: Rule, scores: Tensor, weight: Tensor, read: Tensor, grad: Tensor
) -> Tensor:
    """Apply the rule, where shapes differ to the sum of `g = G * weight` per score."""
    weight_fits = weight.shape == scores.shape or weight.dim() == 0
    if weight_fits and grad.shape == scores.shape:
        return rule(scores, weight, read, grad)
    wide = torch.promote_types(scores.dtype, torch.float32)
    g = (grad.to(wide) * weight).sum_to_size(scores.shape)
    return rule(scores, g.new_ones(()), read, g)


def _gradient_of_weight(ctx: Any, scores: Tensor, read: Tensor, grad: Tensor) -> Tensor:
    """`G * m`; under `create_graph` it is masked by the scores as the weight was, so
    that the second derivative follows the rule too."""
    # Compiled backward passes have no second derivative.
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return masked(scores, grad, read, ctx.product, ctx.rule)
    return cast(Tensor, ctx.product(read, grad))


def masked(
    scores: Tensor, weight: Tensor | None, read: Tensor, product: Product, rule: Rule
) -> Tensor:
    """Return `weight * m`, or `m` itself in the scores' dtype if `weight` is None.

    The result has the weight's dtype. Scores and weight may differ in dtype, and in
    shape if they broadcast; the rule then gets `g = G * weight` summed to the scores' shape.

    Args:
        read: what `product` reads the mask off, of the scores' shape, without gradient.
        product: the forward, and the gradient of the weight.
        rule: the gradient of the scores.
    """
    if torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "torch.compile of a torch.func transform of a mask loses the gradient. "
            "Use one of them."
        )
    factor = scores.new_ones(()) if weight is None else weight
    apply = _Masked.apply
    if is_plain(factor) and is_plain(scores):
        if not (scores.requires_grad and torch.is_grad_enabled()):
            return product(read, factor)
        # `_Masked.apply` inspects its signature in each call, which takes as long as
        # the rest; only transforms need that.
        apply = super(torch.autograd.Function, _Masked).apply
    return cast(Tensor, apply(scores, factor, read, product, rule))  # type: ignore[no-untyped-call]
