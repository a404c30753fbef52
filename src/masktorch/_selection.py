"""Masks that follow from values: keep the largest, or replace the smallest."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from masktorch._checks import check_density, check_number
from masktorch._kernels.top_k import count, largest_of
from masktorch._sharding import gathered, parted


def keep_largest(
    scores: Mapping[str, Tensor], density: float | Mapping[str, float]
) -> dict[str, Tensor]:
    """Return the masks that keep the largest scores, by the same names.

    A number is the density of all tensors together: of their `n` entries the
    `k = max(1, floor(density * n + 1/2))` largest are kept. A mapping gives each tensor
    a density of its own. Ties go to the earlier tensor, then to the lower row-major
    index. NaN ranks largest. Give magnitudes where these count.

    Args:
        scores: floating-point tensors of any shape, by name.
        density: a number in (0, 1], or one for each name.

    Returns:
        bool tensors of the same shapes.

    Raises:
        ValueError: a density lies outside (0, 1], or the names differ.
        TypeError: `scores` is not a mapping of floating-point tensors, or a density is
            not a number.

    Examples:
        >>> scores = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0, 4.0])}
        >>> keep_largest(scores, 0.5)
        {'a': tensor([ True, False]), 'b': tensor([False,  True])}
    """
    _check_scores("keep_largest", "scores", scores)
    if isinstance(density, Mapping):
        if differing := sorted(scores.keys() ^ density.keys()):
            raise ValueError(
                "keep_largest() expected scores and a density for each of "
                f"{differing}, found only one of the two."
            )
        return {
            name: keep_largest({name: values}, density[name])[name]
            for name, values in scores.items()
        }
    check_density(density, "keep_largest()")
    tensors = [gathered(tensor) for tensor in scores.values()]
    kept = count(density, sum(tensor.numel() for tensor in tensors))
    masks = zip(scores, largest_of(tensors, kept), strict=True)
    return {name: parted(mask, scores[name]) for name, mask in masks}


def regrow(
    masks: Mapping[str, Tensor],
    *,
    drop: Mapping[str, Tensor],
    grow: Mapping[str, Tensor],
    share: float,
) -> dict[str, Tensor]:
    """Return masks after one step of regrowth: drop some kept entries, grow as many.

    In each tensor, of the `K` kept entries the `floor(share * K + 1/2)` smallest in
    `drop` are masked. Then, of all entries that are masked now, the just dropped ones
    included, as many of the largest in `grow` are kept. The number of kept entries
    stays. Of equal values in `drop` the lower row-major index is dropped first; of
    equal values in `grow` it is kept. NaN ranks largest.

    RigL (Evci et al., arXiv 1911.11134) drops by `|weight|` and grows by the magnitude
    of the dense gradient; SET (Mocanu et al., arXiv 1707.04780) grows at random.

    Args:
        masks: bool tensors by name, as `masktorch.masks` returns them.
        drop: floating-point tensors of the same names and shapes.
        grow: the same.
        share: the share of the kept entries to replace, in [0, 1].

    Returns:
        bool tensors of the same names and shapes; `masks` are unchanged.

    Raises:
        ValueError: names or shapes differ, or `share` lies outside [0, 1].
        TypeError: an argument is not a mapping of tensors of the right dtype, or
            `share` is not a number.

    Examples:
        >>> regrow(
        ...     {"a": torch.tensor([True, True, False, False])},
        ...     drop={"a": torch.tensor([3.0, 1.0, 0.0, 0.0])},
        ...     grow={"a": torch.tensor([0.0, 0.0, 1.0, 2.0])},
        ...     share=0.5,
        ... )
        {'a': tensor([ True, False, False,  True])}
    """
    _check_masks("regrow", masks)
    for argument, values in (("drop", drop), ("grow", grow)):
        _check_scores("regrow", argument, values)
        _check_like(masks, values, argument)
    check_number("regrow()", "share", share, 0, 1, closed_low=True, closed_high=True)
    return {
        name: parted(_regrown(mask, drop[name], grow[name], share), mask)
        for name, mask in masks.items()
    }


def _regrown(mask: Tensor, drop: Tensor, grow: Tensor, share: float) -> Tensor:
    """Regrow one mask, gathered where it is sharded."""
    mask, drop, grow = gathered(mask), gathered(drop), gathered(grow)
    kept = int(torch.count_nonzero(mask))
    replaced = math.floor(share * kept + 0.5)
    regrown = mask.clone(memory_format=torch.contiguous_format)
    # The largest of the reversed values, so that of equal ones the earlier is dropped.
    stay = _largest(drop[mask.to(drop.device)].flip(0), kept - replaced).flip(0)
    regrown[mask] = stay.to(mask.device)
    masked = ~regrown
    grown = _largest(grow[masked.to(grow.device)], replaced)
    regrown[masked] = grown.to(mask.device)
    return regrown


def _largest(values: Tensor, k: int) -> Tensor:
    """Mark the `k` largest of a one-dimensional tensor; ties go to the lower index."""
    if k == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    return largest_of([values], k)[0]


def _check_like(
    masks: Mapping[str, Tensor], values: Mapping[str, Tensor], argument: str
) -> None:
    """Raise unless `values` have the names and shapes of `masks`."""
    if masks.keys() != values.keys():
        missing = ", ".join(sorted(masks.keys() - values.keys())) or "none"
        unknown = ", ".join(sorted(values.keys() - masks.keys())) or "none"
        raise ValueError(
            f"regrow() expected {argument} to have the names of the masks. Missing: "
            f"{missing}. Unknown: {unknown}."
        )
    for name, mask in masks.items():
        if values[name].shape != mask.shape:
            raise ValueError(
                f"regrow() expected {argument}[{name!r}] to have the shape of the mask,"
                f" {tuple(mask.shape)}, found {tuple(values[name].shape)}."
            )


def _check_scores(caller: str, argument: str, values: Mapping[str, Tensor]) -> None:
    """Raise unless `values` maps names to dense floating-point tensors."""
    _check_mapping(caller, argument, values)
    for name, tensor in values.items():
        if not _is_dense(tensor) or not tensor.is_floating_point():
            raise TypeError(
                f"{caller}() expected dense floating-point {argument} for {name!r}, "
                f"found {_kind(tensor)}."
            )


def _check_masks(caller: str, masks: Mapping[str, Tensor]) -> None:
    """Raise unless `masks` maps names to dense bool tensors."""
    _check_mapping(caller, "masks", masks)
    for name, mask in masks.items():
        if not _is_dense(mask) or mask.dtype is not torch.bool:
            raise TypeError(
                f"{caller}() expected a dense bool mask for {name!r}, found "
                f"{_kind(mask)}."
            )


def _check_mapping(caller: str, argument: str, values: Any) -> None:
    if not isinstance(values, Mapping):
        raise TypeError(
            f"{caller}() expected {argument} to be a dict by tensor names, found "
            f"{type(values)}."
        )


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided


def _kind(value: Any) -> str:
    """What an error says that it found."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return str(value.dtype if _is_dense(value) else value.layout)
