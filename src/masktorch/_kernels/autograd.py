"""A mask on a weight, with a rule for the gradient of its scores: what every method shares."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from masktorch._kernels.chunked import is_plain

Product = Callable[
    [Tensor, Tensor], Tensor
]  # (what the mask is read off, weight) -> weight * m
Rule = Callable[
    [Tensor, Tensor, Tensor, Tensor], Tensor
]  # (scores, weight, read, G) -> dL/dscores


class _Masked(torch.autograd.Function):
    """`weight * m`; backward the rule for the scores, and for the weight `G * m`."""

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
        for_scores = (
            ctx.rule(scores, weight, read, grad) if ctx.needs_input_grad[0] else None
        )
        for_weight = ctx.product(read, grad) if ctx.needs_input_grad[1] else None
        return for_scores, for_weight, None, None, None


def masked(
    scores: Tensor, weight: Tensor | None, read: Tensor, product: Product, rule: Rule
) -> Tensor:
    """`weight * m`, or the mask alone: the product with a weight of one."""
    if torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "torch.compile of a torch.func transform of a mask loses the gradient. Use one of them."
        )
    factor = scores.new_ones(()) if weight is None else weight
    apply = _Masked.apply
    if is_plain(factor) and is_plain(scores):
        if not (scores.requires_grad and torch.is_grad_enabled()):
            return product(read, factor)
        # the other form inspects the signature at each call, which takes as long as the rest
        apply = super(torch.autograd.Function, _Masked).apply
    return cast(Tensor, apply(scores, factor, read, product, rule))  # type: ignore[no-untyped-call]
