"""docs/reproduction.md: what became of the blog's question, from the committed results alone."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]

from benchmarks.atomic import write_text
from benchmarks.experiment.configuration import STARTS_FROM
from benchmarks.experiment.results import RESULTS, Layer, overall_masked_fraction
from benchmarks.pages import methods
from benchmarks.pages.comparison import CONTROL, PAIRS, blog, comparisons
from benchmarks.pages.figures import curves, divergences, forest, save, utilisation
from benchmarks.pages.render import DOCS, render, spread

# The studies that answer the question, with the folders of each; and those before them, which
# answer it where those have no more than a seed.
CURRENT = {"blog": ("blog",), "blog-small": ("blog-small",)}
EARLIER = {"reduced": ("reduced", "reduced-1e-3"), "wrn-28-1": ("wrn-28-1",)}
KINDS = {
    "all layers": "", "stem": "stem", "3x3 in blocks": ".conv", "1x1 shortcuts": ".shortcut",
    "dense": "class",
}  # fmt: skip


def write(results: Path = RESULTS, docs: Path = DOCS) -> Path:
    """Write docs/reproduction.md and its figures from the results in benchmarks/results."""
    text = render("reproduction.md", **context(results, docs / "figures"))
    return write_text(text, docs / "reproduction.md")


def context(results: Path, figures: Path) -> dict[str, Any]:
    """All that the template asks for; what the results do not give is empty."""
    current, earlier = (
        [
            comparison
            for name, folders in studies.items()
            for comparison in comparisons(name, *(results / folder for folder in folders))
        ]
        for studies in (CURRENT, EARLIER)
    )
    # one seed has no interval: beside the earlier studies it stands, in place of them it would not
    several = any(found.interval for comparison in current for *_, found in comparison.pairs())
    main = current if several else [*current, *earlier]
    once = [comparison for comparison in main if comparison.first]
    if main:
        save(forest(main), figures / "differences.png")
        save(curves(main[:4]), figures / "curves.png")
        save(utilisation(once), figures / "utilisation.png")
    return {
        "main": main,
        "once": once,
        "appendix": earlier if several else [],
        "answers": {
            pair: [
                found
                for c in main
                for *names, found in c.pairs()
                if found.interval and names == [*pair]
            ]
            for pair in PAIRS
        },
        "control": CONTROL,
        "starts_from": STARTS_FROM,
        "blog": blog,
        "kinds": KINDS,
        "by_kind": by_kind,
        "commands": dict.fromkeys(result.command for c in main for result in c.results),
        "sweeps": {
            path.stem: {"rows": sweep(content["runs"]), **content}
            for path in sorted((results / "sweep").glob("*.json"))
            if (content := json.loads(path.read_text()))
        },
        "toy": toy(results / "categorical" / "categorical.json", figures),
        **methods.context(results, figures),
    }


def by_kind(runs: Sequence[Sequence[Layer]]) -> list[str]:
    """The masked share (%) of each kind of layer."""
    found = (
        [overall_masked_fraction([x for x in layers if part in x.layer]) for layers in runs]
        for part in KINDS.values()
    )
    return [spread([100 * one for one in of if one is not None], 1) for of in found]


def sweep(runs: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """By setting, of all that varies: held-out accuracy and masked share in %; first the head."""
    frame = pd.DataFrame(runs, dtype=object)
    settings = frame.drop(columns=["seed", "held_out_accuracy", "masked_fraction"]).astype(str)
    varied = [name for name in settings if settings[name].nunique() > 1]
    rows = {" | ".join(varied): ["held-out accuracy", "masked"]}
    for setting, same in frame.groupby(settings[varied].agg(" | ".join, axis=1), sort=False):
        accuracies = [100 * run[-1] for run in same["held_out_accuracy"]]
        masked = [100 * share for share in same["masked_fraction"]]
        rows[setting] = [spread(accuracies, 1), spread(masked, 0)]
    return rows


def toy(path: Path, figures: Path) -> dict[str, Any] | None:
    """KL(pi_true || pi) by method, step size and step; `mean` says it for the page's sentences."""
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text())
    save(divergences(content["steps"], content["methods"]), figures / "categorical.png")
    means = {
        (each["method"], each["step_size"]): pd.Series(
            np.mean(each["divergence"], 0), content["steps"]
        )
        for each in content["methods"]
    }

    def mean(method: str, step_size: float, step: int | str) -> str:
        found = means[method, step_size]
        return f"{found.min() if step == 'lowest' else found[step]:.4f}"

    return {**content, "mean": mean}
