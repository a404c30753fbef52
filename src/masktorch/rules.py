"""A mask on a weight, with a rule for the gradient of its scores: what every method shares."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from masktorch.blocks import blockwise, is_plain
from masktorch.draws import drawn_mask, margin_of_draw
from masktorch.selection import exceeds, select, select_above


def overwriting(grad: Tensor) -> Callable[[Tensor], Tensor | None]:
    """`out=into(t)` writes over a tensor `t` that a rule has computed on its way, unless the
    gradient that arrives shows that the way is to be differentiated, transformed or compiled."""
    if torch.is_grad_enabled() or not is_plain(grad):
        return lambda tensor: None
    return lambda tensor: tensor


Rule = Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]
"""(scores, weight, mask where one was kept, G) -> dL/dscores"""


class _Transformable(torch.autograd.Function):
    """`weight * m`; backward the rule for the scores, and for the weight its gradient under the
    mask. `m` is `kept`, bools or bytes, where it was drawn, else `1[scores > at]`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        weight: Tensor, scores: Tensor, kept: Tensor | None, rule: Rule, at: float | None
    ) -> Tensor:
        if at is None:
            return select(weight, cast(Tensor, kept))
        return select_above(weight, scores, at)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor | None) -> None:
        weight, scores, kept, ctx.rule, ctx.at = inputs
        ctx.save_for_backward(weight, scores, kept)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, scores, kept = ctx.saved_tensors
        for_weight, for_scores = ctx.needs_input_grad[:2]
        return (
            _Transformable.forward(grad, scores, kept, ctx.rule, ctx.at) if for_weight else None,
            ctx.rule(scores, weight, kept, grad) if for_scores else None,
            None,
            None,
            None,
        )


class _Masked(torch.autograd.Function):
    """The same in PyTorch's older form. `torch.func` can't transform it; but calling it costs a
    third (of the other form PyTorch inspects the signature at every call), and the mask is drawn
    inside, and kept only if the backward would need it."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, scores: Tensor, draw: Any, rule: Rule, at: float | None
    ) -> Tensor:
        product: Tensor
        product, *kept = draw(weight, scores) if at is None else (select_above(weight, scores, at),)
        _Transformable.setup_context(
            ctx, (weight, scores, kept[0] if kept else None, rule, at), product
        )
        return product

    backward = _Transformable.backward


def masked(
    weight: Tensor | None,
    scores: Tensor,
    rule: Rule,
    *,
    at: float | None = None,
    kept: Tensor | None = None,
    generator: torch.Generator | None = None,
    keep: bool = False,
) -> Tensor:
    """`weight * m`, or the mask alone: the product with a weight of one. `m` is drawn unless `at`
    is given or the mask itself, `kept`; a rule that asks for the drawn mask says `keep`."""
    factor = scores.new_ones(()) if weight is None else weight

    if torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "masktorch can't compile a torch.func transform of a mask: torch loses its gradient "
            "there. Use one of the two, torch.func or torch.compile."
        )
    if not (is_plain(factor) and is_plain(scores)):
        if at is None and kept is None:
            kept = drawn_mask(scores, generator)
        return cast(Tensor, _Transformable.apply(factor, scores, kept, rule, at))  # type: ignore[no-untyped-call]

    def draw(weight: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        margin = margin_of_draw(scores, generator)

        def drawn(scores: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
            above = margin(scores)
            product = select_above(weight, above, 0.0)
            return (product, exceeds(above, 0.0)) if keep or factor.requires_grad else (product,)

        return blockwise(drawn, scores, weight)

    def under(weight: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        return select(weight, cast(Tensor, kept)), cast(Tensor, kept)

    mask = draw if kept is None else under
    return cast(Tensor, _Masked.apply(factor, scores, mask, rule, at))  # type: ignore[no-untyped-call]
