"""How much of each tensor is masked, and what trains: a table and rows to plot."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from masktorch._masking.identity import identity
from masktorch._masking.lookup import Masked, MaskedTensor, masked_tensors
from masktorch._masking.mask import total
from masktorch._masking.places import Place


@dataclass(frozen=True)
class Report:
    """What masks keep, per tensor and in total. Printed, it is a table.

    Attributes:
        rows: one `Report.Row` per masked tensor, in the order of the model.
        size: entries of all masked tensors together.
        kept: how many of them masks keep.
        masked: how many they mask.
        density: `kept / size`.
        masked_fraction: `masked / size`.
        parameters: entries of all parameters of the model, scores left out.
        share: the share of these that is under masks, `size / parameters`.
    """

    class Row(NamedTuple):
        """One masked tensor.

        Attributes:
            name: its first name in the model.
            shape: its shape.
            size: its entries.
            kept: how many the deterministic mask keeps.
            masked: how many it masks.
            density: `kept / size`, 0.0 for a tensor without entries.
            masked_fraction: `masked / size`, likewise.
            trains: whether the mask learns: not frozen, and its scores need a gradient.
            weights_train: whether the weights under the mask need a gradient.
        """

        name: str
        shape: tuple[int, ...]
        size: int
        kept: int
        masked: int
        density: float
        masked_fraction: float
        trains: bool
        weights_train: bool

    rows: tuple[Row, ...]
    size: int
    kept: int
    masked: int
    density: float
    masked_fraction: float
    parameters: int
    share: float

    def __str__(self) -> str:
        of_all = f"{self.size:,} of {self.parameters:,} parameters ({self.share:.1%})"
        lines = [*self._table(), f"under masks: {of_all}"]
        if not self.masked:
            lines.append("nothing is masked yet: every entry is kept")
        return "\n".join(lines)

    def _table(self) -> list[str]:
        header = ("tensor", "shape", "size", "kept", "density", "masked", "fraction")
        cells = [(*header, "mask", "weights")]
        for row in self.rows:
            shape = "x".join(map(str, row.shape))
            phases = (_phase(row.trains), _phase(row.weights_train))
            cells.append((row.name, shape, *_numbers(row), *phases))
        cells.append(("total", "", *_numbers(self), "", ""))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        columns = zip("<<>>>>><<", widths, strict=True)
        line = "  ".join(f"{{:{side}{width}}}" for side, width in columns)
        return [line.format(*row).rstrip() for row in cells]


def report(model: nn.Module) -> Report:
    """Count the entries that the deterministic masks keep, and say what trains.

    Raises:
        ValueError: nothing is masked, or the model is on the meta device, where masks
            have no values.

    Examples:
        >>> from masktorch import TopK, wrap
        >>> print(report(wrap(nn.Linear(2, 3), TopK(0.5))))
        tensor  shape  size  kept  density  masked  fraction  mask    weights
        weight  3x2       6     3   0.5000       3    0.5000  trains  frozen
        total             6     3   0.5000       3    0.5000
        under masks: 6 of 9 parameters (66.7%)
    """
    found = masked_tensors(model, "report")
    rows = _rows(found)
    counts = _counts(sum(row.size for row in rows), sum(row.kept for row in rows))
    scores = {identity(mask.scores) for mask, _ in found}
    sizes = {identity(p): p.numel() for p in model.parameters()}  # tied weights once
    parameters = sum(size for key, size in sizes.items() if key not in scores)
    share = counts.size / max(parameters, 1)
    return Report(tuple(rows), *counts, parameters=parameters, share=share)


def _rows(found: Masked) -> list[Report.Row]:
    rows = []
    for tensor in _by_memory(found):
        name, mask, weight = tensor.name, tensor.mask, tensor.place.parameter
        mode = mask.mode()
        if mode.is_meta:
            raise ValueError(
                f"report() can't count the mask of {name!r}: it is on the meta device, "
                "without values. Call model.to_empty(device=...) and load a checkpoint,"
                " or load_state_dict(..., assign=True), first."
            )
        counts = _counts(weight.numel(), total(mode))
        trains = mask.is_learning and mask.scores.requires_grad
        weights_train = any(place.parameter.requires_grad for place in tensor.places)
        shape = tuple(weight.shape)
        rows.append(Report.Row(name, shape, *counts, trains, weights_train))
    return rows


def _by_memory(found: Masked) -> Iterator[MaskedTensor]:
    """Yield each mask once, or once per tensor if tied ones have come untied."""
    for mask, places in found:
        of_memory: dict[Hashable, list[Place]] = {}
        for place in places:
            of_memory.setdefault(identity(place.parameter), []).append(place)
        yield from (MaskedTensor(mask, together) for together in of_memory.values())


class _Counts(NamedTuple):
    """The counts that a row and the totals share, in their order."""

    size: int
    kept: int
    masked: int
    density: float
    masked_fraction: float


def _counts(size: int, kept: int) -> _Counts:
    masked = size - kept
    return _Counts(size, kept, masked, kept / max(size, 1), masked / max(size, 1))


def _numbers(counted: Report.Row | Report) -> tuple[str, str, str, str, str]:
    """The counts as they are printed."""
    density, fraction = f"{counted.density:.4f}", f"{counted.masked_fraction:.4f}"
    size, kept, masked = (
        f"{number:,}" for number in (counted.size, counted.kept, counted.masked)
    )
    return size, kept, density, masked, fraction


def _phase(trains: bool) -> str:
    return "trains" if trains else "frozen"
