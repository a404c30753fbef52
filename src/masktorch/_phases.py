"""What learns: the masks, the weights under them, or neither."""

from collections.abc import Iterator

from torch import nn

from masktorch._checks import check_flag
from masktorch._masking.identity import identity
from masktorch._masking.lookup import (
    Model,
    check_can_change,
    check_scores_can_learn,
    masked_tensors,
    set_trains,
    warn_if_empty,
)
from masktorch._masking.places import places_of


def freeze_mask(model: Model, frozen: bool = True) -> Model:
    """Stop the scores of all masks, or with `frozen=False` let them learn again.

    A frozen mask is the deterministic one in every mode, and its scores get no
    gradient. They resume from where they were. Warns about a mask that keeps nothing of
    its tensor.

    Args:
        model: a model with masks.
        frozen: whether to stop the scores.

    Returns:
        The same model.

    Raises:
        ValueError: if nothing is masked, or if a fixed mask, or one that was made in
            inference mode, is asked to learn.
        TypeError: if `frozen` is not True or False.

    Examples:
        >>> from masktorch import wrap
        >>> model = freeze_mask(wrap(nn.Linear(2, 1)))
        >>> model.parametrizations.weight.scores.requires_grad
        False
    """
    check_flag("freeze_mask()", "frozen", frozen)
    found = masked_tensors(model, "freeze_mask")
    fixed = [tensor.name for tensor in found if not tensor.mask.has_scores]
    if fixed and not frozen:
        raise ValueError(
            f"freeze_mask() can't let {fixed[0]!r} learn: a fixed mask has no scores. "
            "masktorch.unwrap(model, bake=False), then masktorch.wrap(model)."
        )
    if frozen:  # before anything changes, because a warning may be an error
        for tensor in found:
            # The frames: `warn_if_empty`, this one, and its caller.
            warn_if_empty(tensor.name, tensor.mask.mode(), stacklevel=3)
    else:
        check_scores_can_learn("freeze_mask", found)
    for mask, _ in found:
        mask.frozen = frozen
        set_trains(mask.scores, not frozen)
    return model


def freeze_weights(model: Model, frozen: bool = True) -> Model:
    """Stop the masked tensors, or with `frozen=False` let them train under their masks.

    The gradient of a masked entry is exactly 0, and it contributes exactly 0, even if
    an optimiser changes it. Every parameter of the model over the same memory is
    reached.

    Args:
        model: a model with masks.
        frozen: whether to stop the masked tensors.

    Returns:
        The same model.

    Raises:
        ValueError: if nothing is masked.
        TypeError: if `frozen` is not True or False.

    Examples:
        >>> from masktorch import wrap
        >>> model = freeze_weights(freeze_mask(wrap(nn.Linear(2, 1))), False)
        >>> [name for name, p in model.named_parameters() if p.requires_grad]
        ['weight', 'bias']
    """
    check_flag("freeze_weights()", "frozen", frozen)
    found = masked_tensors(model, "freeze_weights")
    masked = {identity(place.parameter) for _, places in found for place in places}
    reached = [p for p in places_of(model) if identity(p.parameter) in masked]
    if not frozen:
        check_can_change("freeze_weights", reached)
    for place in reached:
        set_trains(place.parameter, not frozen)
    return model


def mask_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Return the scores of all learnable masks, for an optimiser.

    Raises:
        ValueError: if nothing is masked, or only fixed masks are found.

    Examples:
        >>> from masktorch import wrap
        >>> sum(scores.numel() for scores in mask_parameters(wrap(nn.Linear(4, 3))))
        12
    """
    # A list first, so that errors are raised at the call.
    return iter([scores for _, scores in _named_scores(model, "mask_parameters")])


def named_mask_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Return the scores of all learnable masks with the names of their tensors.

    Raises:
        ValueError: if nothing is masked, or only fixed masks are found.

    Examples:
        >>> from masktorch import wrap
        >>> model = wrap(nn.Sequential(nn.Linear(4, 3)))
        >>> [name for name, _ in named_mask_parameters(model)]
        ['0.weight']
    """
    return iter(_named_scores(model, "named_mask_parameters"))


def _named_scores(model: nn.Module, caller: str) -> list[tuple[str, nn.Parameter]]:
    scores = [
        (tensor.name, tensor.mask.scores)
        for tensor in masked_tensors(model, caller)
        if isinstance(tensor.mask.scores, nn.Parameter)
    ]
    if not scores:
        raise ValueError(
            f"{caller}() expected learnable masks, found only fixed ones, which have "
            "no scores. masktorch.unwrap(model, bake=False), then "
            "masktorch.wrap(model), and masktorch.set_masks to start from the same "
            "masks."
        )
    return scores
