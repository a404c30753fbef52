"""How much of each tensor is masked: a table to print, rows to plot."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from masktorch.model import masked_tensors
from masktorch.parametrization import total


class Row(NamedTuple):
    """One masked tensor."""

    name: str
    shape: tuple[int, ...]
    size: int  # entries
    masked: int  # entries masked
    masked_fraction: float  # masked / size, 0.0 for a tensor without entries
    trains: bool  # whether the mask learns (else it is frozen)


@dataclass(frozen=True)
class Report:
    """The masks of a model: `rows`, one a tensor, and totals. `print(report)` is a table."""

    rows: tuple[Row, ...]

    @property
    def size(self) -> int:
        """Entries of all masked tensors."""
        return sum(row.size for row in self.rows)

    @property
    def masked(self) -> int:
        """Entries masked in all tensors."""
        return sum(row.masked for row in self.rows)

    @property
    def masked_fraction(self) -> float:
        """`masked / size`."""
        return _fraction(self.masked, self.size)

    def __str__(self) -> str:
        cells = [("tensor", "shape", "size", "masked", "fraction", "mask")]
        for row in self.rows:
            shape, state = "x".join(map(str, row.shape)), "trains" if row.trains else "frozen"
            cells.append((row.name, shape, *_numbers(row), state))
        cells.append(("total", "", *_numbers(self), ""))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        aligned = "<<>>><"
        return "\n".join(
            "  ".join(
                f"{cell:{a}{w}}" for cell, a, w in zip(line, aligned, widths, strict=True)
            ).rstrip()
            for line in cells
        )


def report(model: nn.Module) -> Report:
    """Counts what the deterministic masks of a wrapped model mask.

    Raises `ValueError` if nothing is masked.

    Examples:
        >>> from masktorch import set_masks, wrap
        >>> layer = wrap(nn.Linear(2, 3))
        >>> keep = layer.weight.detach().bool()
        >>> keep[0] = False
        >>> print(report(set_masks(layer, {"weight": keep})))
        tensor  shape  size  masked  fraction  mask
        weight  3x2       6       2    0.3333  trains
        total             6       2    0.3333
    """
    rows = []
    for mask, (place, *_) in masked_tensors(model, "report"):
        kept = mask.mode()
        masked = kept.numel() - total(kept)
        rows.append(
            Row(
                name=place.name,
                shape=tuple(kept.shape),
                size=kept.numel(),
                masked=masked,
                masked_fraction=_fraction(masked, kept.numel()),
                trains=not mask.frozen,
            )
        )
    return Report(tuple(rows))


def _numbers(counted: Row | Report) -> tuple[str, str, str]:
    return f"{counted.size:,}", f"{counted.masked:,}", f"{counted.masked_fraction:.4f}"


def _fraction(masked: int, size: int) -> float:
    return masked / size if size else 0.0
