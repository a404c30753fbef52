"""The table of docs/estimators.md has the settings and costs of the results."""

import json
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parents[2]


def cells_of(estimator, density, weights, runs):
    group = [
        run
        for run in runs
        if (run["configuration"]["estimator"], run["configuration"]["density"])
        == (estimator, density)
        and run["configuration"]["weights"] == weights
    ]
    settings = group[0]["configuration"]
    start = "normal" if settings["init"] == "normal" else "its own"
    accuracy = 100 * mean(run["epochs"][-1]["test_accuracy"] for run in group)
    return f"{accuracy:.1f} % | {settings['lr']:g} | {start}"


def table(results):
    lines = (results / "which-estimator" / "results.jsonl").read_text().splitlines()
    runs = [json.loads(line) for line in lines]
    full = [run for run in runs if run["configuration"]["held_out"] is None]
    steps = json.loads((results / "speed" / "speed.json").read_text())["steps"]
    cost = {
        step["network"]: step["ratio"]
        for step in reversed(steps)
        if (step["precision"], step["mode"], step["keeps_memory"])
        == ("float32", "eager", False)
    }
    found = dict.fromkeys(
        (run["configuration"]["estimator"], run["configuration"]["density"])
        for run in full
    )
    lines = [
        "| estimator | signed constants | rate | start | Glorot's weights | rate "
        "| start | step, MLP | step, WRN |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for estimator, density in found:
        name = estimator if density is None else f"{estimator} {density:g}"
        cells = [
            cells_of(estimator, density, kind, full)
            for kind in ("signed-kaiming", "glorot")
        ]
        ratios = (
            cost[n].get(estimator.replace("-", " ")) for n in ("MLP 4x2048", "WRN-28-8")
        )
        cells += [f"{ratio[1]:.2f}" if ratio else "-" for ratio in ratios]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_table_is_that_of_the_results(committed_results):
    assert table(committed_results) in (ROOT / "docs/estimators.md").read_text()
