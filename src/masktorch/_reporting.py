"""How much of each tensor is masked: a table to print, rows to plot."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from masktorch._masking.lookup import masked_tensors
from masktorch._masking.mask import total


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
    size: int  # as in a row, of all masked tensors
    kept: int
    masked: int
    density: float
    masked_fraction: float
    parameters: int  # entries of all parameters of the model, scores left out
    share: float  # of these, the share that is under masks

    def __str__(self) -> str:
        table = [
            ("tensor", "shape", "size", "kept", "density", "masked", "fraction", "mask")
        ]
        for row in self.rows:
            shape, state = (
                "x".join(map(str, row.shape)),
                "trains" if row.trains else "frozen",
            )
            table.append((row.name, shape, *_numbers(row), state))
        table.append(("total", "", *_numbers(self), ""))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        aligned = "  ".join(
            f"{{:{side}{n}}}" for side, n in zip("<<>>>>><", widths, strict=True)
        )
        lines = [aligned.format(*cells).rstrip() for cells in table]
        of_all = f"{self.size:,} of {self.parameters:,} parameters ({self.share:.1%})"
        fresh = [] if self.masked else ["nothing is masked yet: every entry is kept"]
        return "\n".join([*lines, f"under masks: {of_all}", *fresh])


def report(model: nn.Module) -> Report:
    """Counts what the deterministic masks mask. Raises `ValueError` if nothing is masked.

    Examples:
        >>> from masktorch import TopK, wrap
        >>> print(report(wrap(nn.Linear(2, 3), TopK(0.5))))
        tensor  shape  size  kept  density  masked  fraction  mask
        weight  3x2       6     3   0.5000       3    0.5000  trains
        total             6     3   0.5000       3    0.5000
        under masks: 6 of 9 parameters (66.7%)
    """
    found, rows = masked_tensors(model, "report"), []
    for mask, (place, *_) in found:
        mode, trains = mask.mode(), mask.learning and mask.scores.requires_grad
        counts = _counts(mode.numel(), total(mode))
        rows.append(Report.Row(place.name, tuple(mode.shape), *counts, trains))
    counts = _counts(sum(row.size for row in rows), sum(row.kept for row in rows))
    scores = {id(mask.scores) for mask, _ in found}
    parameters = sum(p.numel() for p in model.parameters() if id(p) not in scores)
    return Report(tuple(rows), *counts, parameters, counts[0] / max(parameters, 1))


def _counts(size: int, kept: int) -> tuple[int, int, int, float, float]:
    """`size`, `kept`, `masked`, `density` and `masked_fraction`."""
    return size, kept, size - kept, kept / max(size, 1), (size - kept) / max(size, 1)


def _numbers(counted: Report.Row | Report) -> tuple[str, str, str, str, str]:
    kept, masked = f"{counted.density:.4f}", f"{counted.masked_fraction:.4f}"
    return f"{counted.size:,}", f"{counted.kept:,}", kept, f"{counted.masked:,}", masked
