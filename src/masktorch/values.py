"""Masks as values: read from a model by tensor name, and set."""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from masktorch.model import Model, masked_tensors, warn_if_empty
from masktorch.parametrization import Mask, is_sharded


def masks(model: nn.Module) -> dict[str, Tensor]:
    """The deterministic masks by tensor name: bool, shaped like their tensors, on their device.

    Raises `ValueError` if nothing is masked.

    Examples:
        >>> from masktorch import wrap
        >>> masks(wrap(nn.Linear(2, 1)))
        {'weight': tensor([[True, True]])}
    """
    found = {places[0].name: mask for mask, places in masked_tensors(model, "masks")}
    return {
        name: mask.mode() if mask.learns else mask.mode().clone() for name, mask in found.items()
    }


def set_masks(model: Model, masks: Mapping[str, Tensor]) -> Model:
    """Moves the scores so that the deterministic masks are exactly those given.

    Scores that are on their side of the threshold already stay where they are. Warns where a mask
    keeps nothing of its tensor.

    Args:
        masks: for every masked tensor its mask, bool, by name, as `masks` returns them.

    Raises `ValueError` for a missing or unknown name, a wrong shape, or a mask that the estimator
    cannot express, `TypeError` for anything but a bool tensor; the model is then unchanged.

    Examples:
        >>> from masktorch import wrap
        >>> model = set_masks(wrap(nn.Linear(2, 1)), {"weight": torch.tensor([[True, False]])})
        >>> model.parametrizations.weight.scores.data
        tensor([[ 1., -1.]])
    """
    found = {places[0].name: mask for mask, places in masked_tensors(model, "set_masks")}
    if not isinstance(masks, Mapping):
        raise TypeError(
            "set_masks() expected a dict from tensor names to masks, as masktorch.masks(model) "
            f"returns it, found {type(masks).__name__}."
        )
    missing, unknown = found.keys() - masks.keys(), masks.keys() - found.keys()
    if missing or unknown:
        raise ValueError(
            "set_masks() expected one mask for each masked tensor, by name. "
            + (f"Missing: {', '.join(sorted(missing))}. " if missing else "")
            + (f"Not masked in this model: {', '.join(sorted(unknown))}. " if unknown else "")
            + "masktorch.masks(model) shows the names."
        )
    scores = {name: _scores_for(name, mask, masks[name]) for name, mask in found.items()}
    with torch.no_grad():
        for name, mask in found.items():
            mask.scores.copy_(scores[name])
    for name in found:
        warn_if_empty(name, masks[name])
    return model


def _scores_for(name: str, mask: Mask, wanted: Tensor) -> Tensor:
    scores: Any = mask.scores.detach()
    if not isinstance(wanted, Tensor) or wanted.dtype is not torch.bool:
        found = wanted.dtype if isinstance(wanted, Tensor) else type(wanted).__name__
        raise TypeError(f"set_masks() expected a bool tensor for {name!r}, found {found}.")
    if wanted.shape != scores.shape:
        raise ValueError(
            f"set_masks() expected a mask of shape {tuple(scores.shape)} for {name!r}, found "
            f"{tuple(wanted.shape)}."
        )
    wanted = wanted.to(scores.device)
    if is_sharded(scores) and not is_sharded(wanted):
        tensors = sys.modules["torch.distributed.tensor"]
        wanted = tensors.distribute_tensor(wanted, scores.device_mesh, scores.placements)
    scores_for = getattr(mask.estimator, "scores_for", None)
    try:
        moved = wanted.to(scores.dtype) if scores_for is None else scores_for(scores, wanted)
    except ValueError as error:  # the estimator knows why, and not of which tensor
        raise ValueError(f"set_masks() can't give {name!r} this mask: {error}") from error
    if not torch.equal(mask.estimator.mode(moved), wanted):
        raise ValueError(
            f"set_masks() can't give {name!r} this mask: {mask.estimator!r} does not express it "
            f"({int(wanted.sum())} of {wanted.numel()} entries kept). Give the estimator a method "
            "scores_for(scores, mask) that does, or use a mask it can express."
        )
    return moved
