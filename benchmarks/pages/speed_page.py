"""What `benchmarks.speed` measured, as Markdown: tables with the targets, and docs/speed.md."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.atomic import replacing
from benchmarks.pages.speed_figure import draw
from benchmarks.speed.steps import KEEP_MEMORY

RESULTS, DOCS = Path("benchmarks/results/speed"), Path("docs")

# The most that is wanted on a CPU, of medians. Steps, float32: multiples of the plain step.
STEP_TARGETS = {
    ("WRN-28-8", "eager"): {"threshold": 1.03, "bernoulli": 1.08, "intermediate": 1.08},
    ("MLP 4x2048", "eager"): {
        "threshold": 1.3,
        "bernoulli": 1.7,
        "intermediate": 1.8,
        "frozen mask": 1.25,
    },
    ("MLP 4x2048", "compiled"): {"threshold": 1.18, "bernoulli": 1.7, "intermediate": 1.8},
    ("LeNet-300-100", "eager"): {"threshold": 1.25},
    ("LeNet-300-100", "compiled"): {"threshold": 1.25},
}
# Estimators alone, from a size on, below which the call costs more than the passes.
FLOOR_TARGETS = {"eager": 2.0, "compiled": 1.1}
FLOOR_TARGETS_FROM = 10**6
OURS = ("threshold", "bernoulli", "intermediate")
# Bytes an entry. Plain training needs 16: weights, gradients and two moments. A mask needs 24:
# weights, scores, their gradients and two moments, and one effective weight; so 8 more than plain,
# and on top a transient, two temporaries of the largest layer.
MEMORY_TARGET, TRANSIENT = 24.0 - 16.0, 2 * 4.0
COSTS_TARGET = 3.0  # plain passes over the same bytes

STEPS = """\
### Training steps

Whole steps (`zero_grad`, forward, cross-entropy, backward, fused Adam) as multiples of the plain
network's: the median of the ratios within a round, in which every contestant has a turn.
*threshold*, *bernoulli* and *intermediate* are masktorch's estimators, whose scores train; under
the *frozen mask* the weights train. *textbook* is `hard + (soft - soft.detach())` in a
parametrization of `torch.nn.utils.parametrize`, *edge-popup* sorts, *prune* is
`torch.nn.utils.prune` with a fixed mask.
"""
FLOOR = """\
### The estimators alone

Forward and backward of `weight * mask` (float32, gradient to the scores), as multiples of a floor:
the 28 bytes an entry that have to move, at the rate of `torch.add(a, b, out=c)` of the same size in
the same rounds. Of 10^4 to 10^8 entries, within half of the machine's memory; the sort to 10^7.
"""
MEMORY = """\
### Memory

Bytes per masked entry by which a process grows for a network, its optimiser and its training steps
(float32, fused Adam, eager), at the peak. Activations count too, and are the same for all. The
target is that of plain training and 8 more, with two temporaries of the largest layer.
"""
COSTS = """\
### The other functions

Multiples of one out-of-place add of the weights: ten square layers, bfloat16, half of the entries
masked at random. Of 10^6 to 10^9 entries, without the sizes that would take more than half of the
machine's memory.
"""
PAGE = """\
# Speed and memory

Learning a mask does the arithmetic of plain training, and a few passes over the weights more. How
much that is, measured side by side in one run: `python -m benchmarks speed` does it all again.

## To be fast

- **Fused optimiser**: `torch.optim.Adam(model.parameters(), fused=True)` passes over scores,
  gradients and moments once.
- **Compile**: `torch.compile(model)` fuses the passes over a mask, one forward and one
  backward{compiled}.
- **bfloat16**: `with torch.autocast("cpu", dtype=torch.bfloat16)` around the forward{bfloat16}.
- **Flush denormals**: `torch.set_flush_denormal(True)` before the first step. Scores and moments
  that shrink towards zero otherwise become subnormal, which a CPU computes with many times slower.
- **Let glibc keep its memory** (CPU, Linux): by default it gives large freed tensors back to the
  system, which then clears fresh pages for the next one. Start with
  `{variables} python ...`{malloc}.

{measured}{missed}"""
MISSED = """
## Targets that are not met

Beside some of the numbers above stands the most that was aimed at. Where a number is above it, and
why, as far as it is known:

- A **drawn mask** needs random bits for each entry. PyTorch's generator on a CPU gives one number
  after the other on one thread, however many there are: 3.5 ms for a 2048x2048 mask, where four
  entries share a 64-bit number (a float each took 12 ms). The threshold's forward reads two tensors
  and writes one, in one pass; a draw adds four that stay in the cache (logistic function, scale,
  two subtractions). The backward is the threshold's: three operations, three tensors read, one
  written. Intermediate sampling keeps the mask, a byte an entry, and in the backward reads two
  tensors once more, for the norm of the gradient; its rule is ten operations. Compiled, these are
  fused but for the draw.
- The **floor** is that of an addition into memory that is there already, which at 10^6 entries
  stays in the cache. The product and the gradient are new tensors, and the system clears their
  pages as they are first written: what remains at 10^8 entries, eager or compiled. Each mode's
  additions are timed in its own rounds.
- **WRN-28-8** draws 23 million entries a step: at 1.8 ns each, 0.8 of them the generator's, that is
  42 ms of half a second.
- **LeNet** has steps of two milliseconds, of which a mask's calls from Python take 0.05 per layer;
  compiled code has none of them.
- `save_masks` hashes the weights and codes each mask to its entropy; `load_masks` undoes, checks
  and moves scores: passes of another kind, in time that grows linearly. `wrap` writes the scores,
  and like `masks`, `report` and `freeze_mask` computes each mask. At 10^9 entries a layer has 200
  MB, which the system clears for every pass, the plain one too.

With the targets in brackets:

{missed}
"""
MEASURED = """\
## On {processor}, {threads} threads

`{command}` with torch {torch} and masktorch {masktorch} at commit {commit}.

![The tables below, drawn](figures/{name}.png)

{tables}"""


class Line(NamedTuple):
    """A line of a table."""

    of: dict[str, str]  # what it is about, by column
    numbers: dict[str, float]
    most: dict[str, float]  # the targets of some of them


def write(results: Path, docs: Path) -> Path:
    """docs/speed.md and its figures, from every speed.json in and below `results`."""
    contents = read(results)
    for name, content in contents.items():
        draw(content, docs / "figures" / f"{name}.png")
    path = docs / "speed.md"
    with replacing(path) as partial:
        partial.write_text(page(contents))
    return path


def read(results: Path) -> dict[str, dict[str, Any]]:
    """By `speed`, and `speed-FOLDER` for those in a folder of their own."""
    paths = sorted(results.rglob("speed.json"), key=lambda path: len(path.parts))
    names = ["-".join(["speed", *path.parent.relative_to(results).parts]) for path in paths]
    contents = [json.loads(path.read_text()) for path in paths]
    return dict(zip(names, contents, strict=True))


def page(contents: Mapping[str, dict[str, Any]]) -> str:
    """docs/speed.md, from what was recorded."""
    recorded = list(contents.values())
    missed = "\n".join(_missed(recorded))
    return PAGE.format(
        compiled=_gain(recorded, mode="compiled"),
        bfloat16=_gain(recorded, precision="bfloat16"),
        malloc=_gain(recorded, keeps_memory=True),
        variables=" ".join(f"{name}={value}" for name, value in KEEP_MEMORY.items()),
        missed=MISSED.format(missed=missed) if missed else "",
        measured="\n".join(
            MEASURED.format(
                **content["environment"],
                command=content["command"],
                name=name,
                tables=tables(content),
            )
            for name, content in contents.items()
        ),
    )


def tables(content: dict[str, Any]) -> str:
    """A section for each part that was measured."""
    return "\n".join(f"{text}\n{_table(lines)}" for text, lines in _parts(content))


def _parts(content: dict[str, Any]) -> Iterator[tuple[str, list[Line]]]:
    parts: dict[str, tuple[str, Callable[[Any], Iterator[Line]]]] = {
        "steps": (STEPS, _steps),
        "floor": (FLOOR, _floor),
        "memory": (MEMORY, _memory),
        "costs": (COSTS, _costs),
    }
    on_cpu = content["environment"]["device"] == "cpu"
    for name, (text, lines_of) in parts.items():
        if name in content:
            lines = list(lines_of(content[name]))
            yield text, lines if on_cpu else [line._replace(most={}) for line in lines]


def _steps(rows: Sequence[dict[str, Any]]) -> Iterator[Line]:
    for row in rows:
        judged = row["precision"] == "float32" and not row["keeps_memory"]
        yield Line(
            {
                "network": row["network"],
                "batch": str(row["batch"]),
                "precision": row["precision"],
                "mode": row["mode"] + (", malloc keeps memory" if row["keeps_memory"] else ""),
                "a plain step": f"{1000 * row['seconds']['plain']:.3g} ms",
            },
            {name: median for name, (_, median, _) in row["ratio"].items()},
            STEP_TARGETS.get((row["network"], row["mode"]), {}) if judged else {},
        )


def _floor(rows: Sequence[dict[str, Any]]) -> Iterator[Line]:
    for row in rows:
        judged = OURS if row["size"] >= FLOOR_TARGETS_FROM else ()
        yield Line(
            {
                "mode": row["mode"],
                "entries": f"{row['size']:,}",
                "rate of the add": f"{row['gigabytes_per_second']:.1f} GB/s",
            },
            {name: median for name, (_, median, _) in row["multiple"].items() if name != "add"},
            dict.fromkeys(judged, FLOOR_TARGETS[row["mode"]]),
        )


def _memory(rows: Sequence[dict[str, Any]]) -> Iterator[Line]:
    for row in rows:
        numbers = row["bytes_per_entry"]
        transient = TRANSIENT * row["largest_layer"] / row["masked"]
        yield Line(
            {
                "network": row["network"],
                "batch": str(row["batch"]),
                "masked entries": f"{row['masked']:,}",
            },
            numbers,
            dict.fromkeys(OURS, numbers["plain"] + MEMORY_TARGET + transient),
        )


def _costs(rows: Sequence[dict[str, Any]]) -> Iterator[Line]:
    for row in rows:
        functions = {f"`{name}`": m for name, m in row["multiple"].items() if name != "pass"}
        yield Line(
            {"entries": f"{row['size']:,}", "a pass": f"{1000 * row['seconds']['pass']:.3g} ms"},
            functions,
            dict.fromkeys(functions, COSTS_TARGET),
        )


def _table(lines: Sequence[Line]) -> str:
    of = list(lines[0].of)
    columns = list(dict.fromkeys(name for line in lines for name in line.numbers))
    rows = [[*of, *columns], ["---"] * (len(of) + len(columns))]
    rows += [[*line.of.values(), *(_cell(line, name) for name in columns)] for line in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _cell(line: Line, name: str) -> str:
    if name not in line.numbers:
        return "-"
    number = f"{line.numbers[name]:.2f}"
    if name not in line.most:
        return number
    met = "met" if line.numbers[name] <= line.most[name] else "not met"
    return f"{number} ({line.most[name]:.3g}: {met})"


def _missed(contents: Sequence[dict[str, Any]]) -> Iterator[str]:
    for content in contents:
        for text, lines in _parts(content):
            title = text.partition("\n")[0].strip("# ")
            for line in lines:
                found = [
                    f"{name} {number:.2f} ({most:.3g})"
                    for name, most in line.most.items()
                    if (number := line.numbers.get(name, 0.0)) > most
                ]
                if found:
                    yield f"- {', '.join([title, *line.of.values()])}: {', '.join(found)}"


def _gain(contents: Sequence[dict[str, Any]], **change: Any) -> str:
    """What a habit does to a step of the threshold's MLP in the first file, in words."""
    usual = {"precision": "float32", "mode": "eager", "keeps_memory": False}
    found = [
        row["seconds"]["threshold"]
        for settings in (usual, usual | change)
        for content in contents[:1]
        for row in content.get("steps", ())
        if {"network": "MLP 4x2048", **settings}.items() <= row.items()
    ]
    if len(found) < 2:
        return ""
    return " ({:.3g} ms a step of the MLP 4x2048 below, {:.3g} without)".format(
        *(1000 * seconds for seconds in reversed(found))
    )
