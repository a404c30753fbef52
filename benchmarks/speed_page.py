"""The measurements of `benchmarks.speed` as Markdown tables, the targets beside them."""

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks import costs

# Most that is wanted, float32 on the CPU: (case, mode) -> contestant -> ratio to the plain step.
STEP_TARGETS = {
    ("WRN-28-8", "eager"): {"threshold": 1.03, "bernoulli": 1.08, "intermediate": 1.08},
    ("MLP 4x2048", "eager"): {
        "threshold": 1.3, "bernoulli": 1.7, "intermediate": 1.8, "frozen mask": 1.25,
    },
    ("MLP 4x2048", "compiled"): {"threshold": 1.18},
    ("LeNet-300-100", "eager"): {"threshold": 1.25},
}  # fmt: skip
FLOOR_TARGETS = {"threshold, eager": 2.0, "threshold, compiled": 1.1}  # from a size on:
FLOOR_TARGETS_FROM = 10**6
COSTS_TARGET = 3.0  # plain passes over the same bytes
# Bytes an entry beyond the plain network: its weights, gradients and moments are 16, a mask's
# weights, scores, their gradients and moments, and one effective weight are 24. On top come two
# temporaries of the largest layer.
MEMORY_TARGET, TEMPORARIES = 8.0, 2 * 4.0

STEPS = """\
## Training steps

Whole steps (`zero_grad`, forward, cross-entropy, backward, fused Adam) as multiples of the plain
network's: the median of the ratios within a round, in which every contestant has a turn.
*threshold*, *bernoulli* and *intermediate* are masktorch's estimators, only scores train; under a
*frozen mask* the weights train. *textbook* is `hard + (soft - soft.detach())` in a
`torch.nn.utils.parametrize` parametrization, *edge-popup* sorts, *prune* is
`torch.nn.utils.prune` with a fixed mask.
"""
FLOOR = """\
## The estimators alone

Forward and backward of `weight * mask` (float32, gradient to the scores), as multiples of the
floor: the 28 bytes an entry that it must move, at the rate of a plain `torch.add(a, b, out=c)` of
the same size in the same rounds.
"""
MEMORY = """\
## Memory

What a process grows by, at the peak of a training step (float32, fused Adam, eager), in bytes per
masked entry; activations count too. Plain needs 16 for weights, gradients and two moments.
"""
COSTS = """\
## What the other functions cost

Multiples of one out-of-place add of the weights: ten square layers, bfloat16, half of the entries
masked at random.
"""


def tables(content: dict[str, Any]) -> str:
    """A section for each part that was measured."""
    sections = {"steps": _steps, "floor": _floor, "memory": _memory, "costs": _costs}
    return "\n".join(
        section(content[part]) for part, section in sections.items() if part in content
    )


def _steps(rows: Sequence[dict[str, Any]]) -> str:
    names = _union(row["ratio"] for row in rows)
    lines = []
    for row in rows:
        judged = row["precision"] == "float32" and not row["keeps_memory"]
        targets = STEP_TARGETS.get((row["network"], row["mode"]), {}) if judged else {}
        mode = row["mode"] + (", malloc keeps memory" if row["keeps_memory"] else "")
        lines.append(
            [row["network"], row["batch"], row["precision"], mode]
            + [f"{1000 * row['seconds']['plain']:.3g} ms"]
            + [_cell(row["ratio"].get(name, [None] * 3)[1], targets.get(name)) for name in names]
        )
    return (
        STEPS
        + "\n"
        + _table(["network", "batch", "precision", "mode", "a plain step", *names], lines)
    )


def _floor(rows: Sequence[dict[str, Any]]) -> str:
    names = [name for name in _union(row["multiple"] for row in rows) if name != "add"]
    lines = []
    for row in rows:
        targets = FLOOR_TARGETS if row["size"] >= FLOOR_TARGETS_FROM else {}
        lines.append(
            [f"{row['size']:,}", f"{row['gigabytes_per_second']:.1f} GB/s"]
            + [_cell(row["multiple"].get(name, [None] * 3)[1], targets.get(name)) for name in names]
        )
    return FLOOR + "\n" + _table(["entries", "rate of the add", *names], lines)


def _memory(rows: Sequence[dict[str, Any]]) -> str:
    names = _union(row["bytes_per_entry"] for row in rows)
    lines = []
    for row in rows:
        used = row["bytes_per_entry"]
        transient = TEMPORARIES * row["largest_layer"] / row["masked"]
        most = used["plain"] + MEMORY_TARGET + transient
        targets = {
            name: most for name in names if name in ("threshold", "bernoulli", "intermediate")
        }
        lines.append(
            [row["network"], row["batch"], f"{row['masked']:,}"]
            + [_cell(used[name], targets.get(name)) for name in names]
        )
    return MEMORY + "\n" + _table(["network", "batch", "masked entries", *names], lines)


def _costs(rows: Sequence[dict[str, Any]]) -> str:
    names = [name for name in rows[0]["multiple"] if name != "pass"]
    lines = [
        [f"{row['size']:,}", f"{1000 * row['seconds']['pass']:.3g} ms"]
        + [_cell(row["multiple"][name], COSTS_TARGET) for name in names]
        for row in rows
    ]
    left_out = [size for size in costs.SIZES if size not in [row["size"] for row in rows]]
    note = f"\n\nLeft out, more than half of the machine's memory: {left_out}" if left_out else ""
    return (
        COSTS + "\n" + _table(["entries", "a pass", *(f"`{name}`" for name in names)], lines) + note
    )


def _cell(value: float | None, target: float | None) -> str:
    if value is None:
        return "-"
    if target is None:
        return f"{value:.2f}"
    return f"{value:.2f} (target {target:.3g}: {'met' if value <= target else 'not met'})"


def _union(dicts: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for each in dicts for name in each))


def _table(header: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows) + "\n"
