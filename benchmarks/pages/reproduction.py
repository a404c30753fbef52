"""docs/reproduction.md: what became of the blog's question, from the committed results alone."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from benchmarks.atomic import replacing
from benchmarks.experiment.configuration import STARTS_FROM, Configuration
from benchmarks.experiment.results import overall_masked_fraction
from benchmarks.pages import methods
from benchmarks.pages.comparison import CONTROL, PAIRS, Comparison, Paired, comparisons
from benchmarks.pages.figures import DATASETS, curves, divergences, forest, save, utilisation
from benchmarks.pages.reference import blog, is_comparable
from benchmarks.pages.render import outcomes, render, spread, table
from benchmarks.studies.study import results_so_far

CURRENT = ("blog", "blog-small")  # the studies that answer the question
# Those before them, with the folders of each; they answer it where there is no other.
EARLIER = {"reduced": ("reduced", "reduced-1e-3"), "wrn-28-1": ("wrn-28-1",)}
KINDS = {"stem": "stem", "3x3 in blocks": ".conv", "1x1 shortcuts": ".shortcut", "dense": "class"}


def write(results: Path, docs: Path) -> Path:
    """Draw the figures into `docs`/figures and write `docs`/reproduction.md; return its path."""
    path = docs / "reproduction.md"
    text = render("reproduction.md", **context(results, docs / "figures"))
    with replacing(path) as partial:
        partial.write_text(text)
    return path


def context(results: Path, figures: Path) -> dict[str, Any]:
    """All that the template asks for; what the results do not give is empty."""
    current = [c for name in CURRENT for c in comparisons(name, results_so_far(results / name))]
    earlier = [
        comparison
        for name, folders in EARLIER.items()
        for comparison in comparisons(
            name, [r for folder in folders for r in results_so_far(results / folder)]
        )
    ]
    main = current or earlier
    if main:
        save(forest(main), figures / "differences.png")
        save(curves(main[:4]), figures / "curves.png")
        save(utilisation(_once(main)), figures / "utilisation.png")
    return {
        "main": bool(main),
        "answers": {" - ".join(pair): answer(main, *pair) for pair in PAIRS},
        "control": CONTROL,
        "arms": table(_arms(main)) if main else "",
        "appendix": table(_arms(earlier)) if current and earlier else "",
        "differences": table(_differences(main)) if main else "",
        "runs": table(_runs(main)) if main else "",
        "masked": table(_masked(_once(main))) if main else "",
        "deviations": [(_name(c), deviations(c)) for c in _once(main)],
        "commands": list(dict.fromkeys(result.command for c in main for result in c.results)),
        "sweeps": {
            path.stem: {"table": _sweep(content["runs"]), **content}
            for path in sorted((results / "sweep").glob("*.json"))
            if (content := json.loads(path.read_text()))
        },
        "toy": _toy(results / "categorical" / "categorical.json", figures),
        **methods.context(results, figures),
    }


def answer(found: Sequence[Comparison], arm: str, other: str) -> dict[str, Any] | None:
    """In how many comparisons of several seeds the interval lies above, over or below zero."""
    every = {
        (c.study, c.of.dataset, paired.differences): paired
        for c in found
        if (paired := c.paired(arm, other)) and paired.interval
    }
    if not every:
        return None
    signs = [paired.sign for paired in every.values()]
    means = [100 * paired.mean for paired in every.values()]
    return {
        "better": signs.count(1),
        "level": signs.count(0),
        "worse": signs.count(-1),
        "of": len(signs),
        "range": " to ".join(f"{end:+.1f}" for end in sorted({min(means), max(means)})),
    }


def deviations(comparison: Comparison) -> str:
    """Every field of the configurations that is not the blog's."""
    found: dict[str, None] = {}
    for result in comparison.results:
        ours = result.configuration
        blogs = replace(Configuration(ours.dataset).for_arm(ours.arm), seed=ours.seed)
        found |= dict.fromkeys(changes(ours, blogs))
    return ", ".join(found)


def changes(ours: Configuration, others: Configuration) -> Iterator[str]:
    """The fields of one that are not the other's."""
    for field in fields(ours):
        here, there = getattr(ours, field.name), getattr(others, field.name)
        if here != there:
            yield f"`{field.name}` {here} ({'all' if there is None else there})"


def _once(found: Sequence[Comparison]) -> list[Comparison]:
    """One per study and data set."""
    return list({(c.study, c.of.dataset): c for c in reversed(found)}.values())[::-1]


def _name(comparison: Comparison) -> str:
    return f"{DATASETS[comparison.of.dataset]}, `{comparison.study}`"


def _arms(found: Sequence[Comparison]) -> Iterator[Mapping[str, str]]:
    """A row per arm, the blog's best beside."""
    shown = set()
    for comparison in found:
        for arm, by_seed in comparison.arms.items():
            runs = list(by_seed.values())
            of = replace(runs[0].configuration, seed=0)
            if (comparison.study, of) in shown:
                continue  # an arm that several go on from, each with a learning rate of its own
            shown.add((comparison.study, of))
            reference = blog(of.dataset)
            theirs = reference.curves.get(arm) if reference and is_comparable(of) else None
            yield {
                "results": _name(comparison),
                "arm": f"`{arm}`" + (f", lr {of.mix_lr:g}" if of.mix_lr else ""),
                "epochs": f"{of.epochs}" + (f" after {of.epochs}" if arm in STARTS_FROM else ""),
                **outcomes(runs),
                "the blog's best": f"{100 * theirs.best:.1f}" if theirs else "-",
                "the blog's last": f"{100 * theirs.last:.1f}" if theirs else "-",
            }


def _differences(found: Sequence[Comparison]) -> Iterator[Mapping[str, str]]:
    for comparison in found:
        for arm, other in PAIRS:
            pair = [comparison.paired(arm, other, epoch) for epoch in ("best", "last")]
            if all(isinstance(paired, Paired) for paired in pair):
                yield {
                    "results": _name(comparison),
                    "lr of the second phase": f"{comparison.of.mix_lr:g}",
                    "difference": f"`{arm}` - `{other}`",
                    "best epoch": str(pair[0]),
                    "last epoch": str(pair[1]),
                }


def _runs(found: Sequence[Comparison]) -> Iterator[Mapping[str, str]]:
    for c in _once(found):
        software = {
            f"masktorch {e['masktorch']} at {str(e['commit'])[:7]}, torch {e['torch']}"
            for e in (result.environment for result in c.results)
        }
        yield {
            "results": _name(c),
            "network": c.of.network_name,
            "processor": ", ".join(sorted({r.environment["processor"] for r in c.results})),
            "software": "; ".join(sorted(software)),
            "runs": str(len(c.results)),
            "hours": f"{sum(result.wall_seconds for result in c.results) / 3600:.1f}",
        }


def _masked(found: Sequence[Comparison]) -> Iterator[Mapping[str, str]]:
    """The masked share (%) by kind of layer."""
    for dataset in dict.fromkeys(c.of.dataset for c in found):
        runs = {
            f"`{c.study}`": [result.utilisation for result in c.arms["mask"].values()]
            for c in found
            if c.of.dataset == dataset and "mask" in c.arms
        }
        if reference := blog(dataset):
            runs = {"the blog": [reference.utilisation], **runs}
        for name, seeds in runs.items():
            kinds = {
                kind: [[layer for layer in layers if part in layer.layer] for layers in seeds]
                for kind, part in {"all layers": "", **KINDS}.items()
            }
            yield {
                "data set": DATASETS[dataset],
                "masks": name,
                **{
                    kind: spread([100 * overall_masked_fraction(one) for one in of if one], 1)
                    for kind, of in kinds.items()
                },
            }


def _sweep(runs: Sequence[Mapping[str, Any]]) -> str:
    """A row per setting, a column for all that varies: held-out accuracy and masked share in %."""
    outcome = ("seed", "held_out_accuracy", "masked_fraction")
    varied = [
        key for key in runs[0]
        if key not in outcome and any(run[key] != runs[0][key] for run in runs)
    ]  # fmt: skip
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault(tuple(str(run[key]) for key in varied), []).append(run)
    return table(
        {
            **dict(zip(varied, setting, strict=True)),
            "held-out accuracy": spread([100 * run["held_out_accuracy"][-1] for run in same], 1),
            "masked": spread([100 * run["masked_fraction"] for run in same], 0),
        }
        for setting, same in groups.items()
    )


def _toy(path: Path, figures: Path) -> dict[str, Any] | None:
    """KL(pi_true || pi) of each method and step size: a table, and the means by name and step."""
    if not path.exists():
        return None
    content = json.loads(path.read_text())
    save(divergences(content["steps"], content["methods"]), figures / "categorical.png")
    steps, rows = content["steps"], []
    means: dict[tuple[str, float], dict[int | str, float]] = {}
    for each in content["methods"]:
        after = dict(zip(steps, zip(*each["divergence"], strict=True), strict=True))
        found: dict[int | str, float] = {at: sum(of) / len(of) for at, of in after.items()}
        means[each["method"], each["step_size"]] = found | {"lowest": min(found.values())}
        rows.append(
            {"method": each["method"], "step": f"{each['step_size']:g}"}
            | {f"after {s:,}": spread(after[s], 4) for s in (100, 1_000, 10_000, 30_000)}
            | {"lowest mean": f"{min(found.values()):.4f}"}
        )

    def mean(method: str, step_size: float, step: int | str) -> str:
        return f"{means[method, step_size][step]:.4f}"

    return {**content, "table": table(rows), "mean": mean}
