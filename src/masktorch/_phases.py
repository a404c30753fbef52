"""What learns: the masks, the weights under them, or neither."""

from collections.abc import Iterator

from torch import nn

from masktorch._masking.lookup import (
    Model,
    check_flag,
    masked_tensors,
    set_trains,
    warn_if_empty,
)


def freeze_mask(model: Model, frozen: bool = True) -> Model:
    """Stops the masks: no gradient for the scores, the deterministic mask in every mode.

    `freeze_mask(model, False)` lets them learn again from where they were. Warns where a mask
    keeps nothing of its tensor. Raises `ValueError` if nothing is masked.

    Examples:
        >>> from masktorch import wrap
        >>> freeze_mask(wrap(nn.Linear(2, 1))).parametrizations.weight.scores.requires_grad
        False
    """
    check_flag("freeze_mask", "frozen", frozen)
    found = masked_tensors(model, "freeze_mask")
    given = [place.name for mask, (place, *_) in found if not mask.has_scores]
    if given and not frozen:
        raise ValueError(
            f"freeze_mask() can't let {given[0]!r} learn: a given mask has no scores."
        )
    for mask, _ in found:
        mask.frozen = bool(frozen)
        set_trains(mask.scores, not frozen)
    for mask, (place, *_) in found if frozen else []:
        warn_if_empty(place.name, mask.mode())
    return model


def freeze_weights(model: Model, frozen: bool = True) -> Model:
    """Stops the masked tensors, or with `frozen=False` lets them train under their masks.

    A masked entry's gradient is exactly 0, and whatever an optimiser does to it, it contributes
    exactly 0. Raises `ValueError` if nothing is masked.

    Examples:
        >>> from masktorch import wrap
        >>> model = freeze_weights(freeze_mask(wrap(nn.Linear(2, 1))), False)
        >>> [name for name, p in model.named_parameters() if p.requires_grad]
        ['weight', 'bias']
    """
    check_flag("freeze_weights", "frozen", frozen)
    for _, places in masked_tensors(model, "freeze_weights"):
        for place in places:
            set_trains(place.parameter, not frozen)
    return model


def mask_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The scores of all masks, for an optimiser. Raises `ValueError` if nothing is masked.

    Examples:
        >>> from masktorch import wrap
        >>> sum(scores.numel() for scores in mask_parameters(wrap(nn.Linear(4, 3))))
        12
    """
    found = masked_tensors(model, "mask_parameters")
    return (mask.scores for mask, _ in found if isinstance(mask.scores, nn.Parameter))


def named_mask_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The scores of all masks, by the names of their tensors. `ValueError` if nothing is masked.

    Examples:
        >>> from masktorch import wrap
        >>> [name for name, _ in named_mask_parameters(wrap(nn.Sequential(nn.Linear(4, 3))))]
        ['0.weight']
    """
    found = masked_tensors(model, "named_mask_parameters")
    return (
        (p.name, m.scores) for m, (p, *_) in found if isinstance(m.scores, nn.Parameter)
    )
