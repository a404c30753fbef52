"""What `benchmarks.speed` measured, as docs/speed.md: tables with the targets, and the figure."""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.experiment.results import RESULTS
from benchmarks.files import write_text
from benchmarks.pages.figures import legend_below, panels, plain, save
from benchmarks.pages.render import DOCS, render
from benchmarks.speed.steps import KEEP_MEMORY, Case

TARGETS = json.loads(Path(__file__).with_name("targets.json").read_text())
OURS = ("threshold", "bernoulli", "intermediate")
NUMBERS = {  # by part: where a row has them, and of which one the others are multiples
    "steps": ("ratio", "plain"),
    "floor": ("multiple", "add"),
    "memory": ("bytes_per_entry", None),
    "costs": ("multiple", "pass"),
    "files": (None, None),
}


def write(results: Path = RESULTS / "speed", docs: Path = DOCS) -> Path:
    """Write docs/speed.md and its figure from the results in benchmarks/results/speed."""
    contents = read(results)
    for name, content in contents.items():
        save(drawn(content), docs / "figures" / f"{name}.png")
    return write_text(page(contents), docs / "speed.md")


def read(results: Path) -> dict[str, dict[str, Any]]:
    """By `speed`, and `speed-FOLDER` for those in a folder of their own."""
    paths = sorted(results.rglob("speed.json"), key=lambda path: len(path.parts))
    names = ["-".join(["speed", *path.parent.relative_to(results).parts]) for path in paths]
    return {n: json.loads(path.read_text()) for n, path in zip(names, paths, strict=True)}


def page(contents: Mapping[str, dict[str, Any]]) -> str:
    first = next(iter(contents.values()), {})
    return render(
        "speed.md",
        measured={name: content | judged(content) for name, content in contents.items()},
        case=case,
        compiled=_gain(first, mode="compiled"),
        bfloat16=_gain(first, precision="bfloat16"),
        malloc=_gain(first, keeps_memory=True),
        variables=KEEP_MEMORY,
    )


def measured(content: dict[str, Any]) -> str:
    """For the terminal."""
    return render("measured.txt", measured=judged(content), case=case)


def judged(content: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """By part, the rows with their `numbers` and the targets, which are of CPUs, that they miss."""
    cpu = content["environment"]["device"] == "cpu"
    found: dict[str, list[dict[str, Any]]] = {}
    for part, (where, base) in NUMBERS.items():
        for row in content.get(part, ()):
            numbers = {
                name: number[1] if isinstance(number, list) else number  # the median of quartiles
                for name, number in row.get(where, row).items()
                if name not in (base, "size", "density")
            }
            most = _most(part, row) if cpu else {}
            missed = {k: most[k] for k, x in numbers.items() if x > most.get(k, x)}
            found.setdefault(part, []).append({**row, "numbers": numbers, "missed": missed})
    return found


def _most(part: str, row: dict[str, Any]) -> dict[str, float]:
    """The targets, by column."""
    found: dict[str, Any] = TARGETS.get(part, {})
    if part == "steps":
        judged = row["precision"] == "float32" and not row["keeps_memory"]
        found = found.get(row["mode"], {}) | found.get(f"{row['network']}, {row['mode']}", {})
        return found if judged else {}
    if part == "floor":
        return dict.fromkeys(OURS if row["size"] >= found["from"] else (), found[row["mode"]])
    if part == "memory":
        transient = found["temporaries"] * row["largest_layer"] / row["masked"]
        return dict.fromkeys(OURS, row["bytes_per_entry"]["plain"] + found["mask"] + transient)
    return found


def case(row: Mapping[str, Any]) -> str:
    return str(Case(**{field.name: row[field.name] for field in fields(Case)}))


def _gain(content: dict[str, Any], **change: Any) -> list[float]:
    """Milliseconds of a step of the threshold's MLP with a habit and without; fewer where they were
    not measured."""
    usual = Case("MLP 4x2048", 128)
    found = {case(row): row["seconds"].get("threshold") for row in content.get("steps", ())}
    wanted = [found.get(str(of)) for of in (replace(usual, **change), usual)]
    return [1000 * seconds for seconds in wanted if seconds]


def drawn(content: dict[str, Any]) -> Figure:
    """The median and the quartiles of each contestant, a line of the figure per case."""
    rows = content.get("steps", [])
    figure, (axes,) = panels(1, 10, 2 + 0.4 * len(rows))
    names = dict.fromkeys(name for row in rows for name in row["ratio"] if name != "plain")
    for number, name in enumerate(names):
        at = [line for line, row in enumerate(rows) if name in row["ratio"]]
        low, median, high = np.array([rows[line]["ratio"][name] for line in at]).T
        look = {"fmt": "osD"[number // 10], "color": f"C{number % 10}", "ms": 5, "label": name}
        axes.errorbar(median, at, xerr=[median - low, high - median], **look)
    axes.set_yticks(range(len(rows)), [case(row) for row in rows], fontsize=8)
    plain(axes.xaxis)
    axes.set(xlabel="times the plain network's: left faster", ylim=(len(rows) - 0.5, -0.5))
    axes.axvline(1, color="black", lw=1)
    return legend_below(figure, columns=5)
