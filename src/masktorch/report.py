"""How much of each tensor is masked: a table to print, rows to plot."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from masktorch.mask import total
from masktorch.model import masked_tensors


@dataclass(frozen=True)
class Report:
    """The masks of a model: `rows`, one a tensor, and totals. `print(report)` is a table."""

    class Row(NamedTuple):
        """One masked tensor."""

        name: str
        shape: tuple[int, ...]
        size: int  # entries
        kept: int  # entries kept
        masked: int  # entries masked
        density: float  # kept / size, 0.0 for a tensor without entries
        masked_fraction: float  # masked / size, likewise
        trains: bool  # whether the mask learns: it is not frozen, its scores require a gradient

    rows: tuple[Row, ...]
    parameters: int  # entries of all parameters of the model, scores left out

    @property
    def size(self) -> int:
        """Entries of all masked tensors."""
        return sum(row.size for row in self.rows)

    @property
    def kept(self) -> int:
        """Entries kept in all tensors."""
        return sum(row.kept for row in self.rows)

    @property
    def masked(self) -> int:
        """Entries masked in all tensors."""
        return sum(row.masked for row in self.rows)

    @property
    def density(self) -> float:
        """`kept / size`."""
        return _fraction(self.kept, self.size)

    @property
    def masked_fraction(self) -> float:
        """`masked / size`."""
        return _fraction(self.masked, self.size)

    @property
    def share(self) -> float:
        """Of the model's parameters, the share that is under masks."""
        return _fraction(self.size, self.parameters)

    def __str__(self) -> str:
        cells: list[tuple[str, ...]] = [
            ("tensor", "shape", "size", "kept", "density", "masked", "fraction", "mask")
        ]
        for row in self.rows:
            shape, state = "x".join(map(str, row.shape)), "trains" if row.trains else "frozen"
            cells.append((row.name, shape, *_numbers(row), state))
        cells.append(("total", "", *_numbers(self), ""))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        aligned = "<<>>>>><"
        lines = [
            "  ".join(
                f"{cell:{a}{w}}" for cell, a, w in zip(line, aligned, widths, strict=True)
            ).rstrip()
            for line in cells
        ]
        lines.append(
            f"under masks: {self.size:,} of {self.parameters:,} parameters ({self.share:.1%})"
        )
        if not self.masked:
            lines.append("nothing is masked yet: every entry is kept")
        return "\n".join(lines)


def report(model: nn.Module) -> Report:
    """Counts what the deterministic masks of a wrapped model mask.

    Raises `ValueError` if nothing is masked.

    Examples:
        >>> from masktorch import set_masks, wrap
        >>> layer = wrap(nn.Linear(2, 3))
        >>> keep = layer.weight.detach().bool()
        >>> keep[0] = False
        >>> print(report(set_masks(layer, {"weight": keep})))
        tensor  shape  size  kept  density  masked  fraction  mask
        weight  3x2       6     4   0.6667       2    0.3333  trains
        total             6     4   0.6667       2    0.3333
        under masks: 6 of 9 parameters (66.7%)
    """
    rows = []
    found = masked_tensors(model, "report")
    scores = {id(mask.scores) for mask, _ in found}
    for mask, (place, *_) in found:
        mode = mask.mode()
        size, kept = mode.numel(), total(mode)
        rows.append(
            Report.Row(
                name=place.name,
                shape=tuple(mode.shape),
                size=size,
                kept=kept,
                masked=size - kept,
                density=_fraction(kept, size),
                masked_fraction=_fraction(size - kept, size),
                trains=mask.learning and mask.scores.requires_grad,
            )
        )
    parameters = sum(p.numel() for p in model.parameters() if id(p) not in scores)
    return Report(tuple(rows), parameters)


def _numbers(counted: Report.Row | Report) -> tuple[str, ...]:
    return (
        f"{counted.size:,}",
        f"{counted.kept:,}",
        f"{counted.density:.4f}",
        f"{counted.masked:,}",
        f"{counted.masked_fraction:.4f}",
    )


def _fraction(part: int, size: int) -> float:
    return part / size if size else 0.0
