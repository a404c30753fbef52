"""Every Python block of the README and the docs runs, each page from top to bottom."""

import json
import re
import textwrap
from contextlib import nullcontext
from pathlib import Path
from statistics import mean

import pytest
import torch
from torch import nn

import masktorch

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SLOW_PAGES = {"language_model", "blocks", "dynamic"}
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


def read_lines(path):
    """The results of a study, a line of JSON each."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(
            page,
            id=page.stem,
            marks=[pytest.mark.slow] if page.stem in SLOW_PAGES else [],
        )
        for page in PAGES
    ],
)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, namespace = page.read_text(), {"__name__": "page"}
    for block in BLOCK.finditer(text):
        lines_before = text.count("\n", 0, block.start(2))
        code = textwrap.dedent(block[2])  # a box indents its code
        exec(compile("\n" * lines_before + code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_a_page_prints_what_it_says(page, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text()
    exec("".join(block[2] for block in BLOCK.finditer(text)), {"__name__": "page"})
    (shown,) = re.findall(r"^```text\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize(
    "page", ["maskfiles", "recipes/many_tasks", "recipes/federated"]
)
def test_the_loop_in_the_box_keeps_batch_norm_averages(page):
    text = (ROOT / "docs" / f"{page}.md").read_text()
    (loop,) = [block[2] for block in BLOCK.finditer(text) if "_BatchNorm" in block[2]]
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Dropout()
    )
    masktorch.wrap(model.requires_grad_(False)).train()
    exec(textwrap.dedent(loop), {"model": model, "nn": nn})
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    model(torch.randn(4, 1, 5, 5) + 3).sum().backward()
    assert model[
        0
    ].parametrizations.weight.scores.grad.any()  # the masks learn all the same
    assert model[3].training
    for name, tensor in model.named_buffers():
        assert torch.equal(tensor, before[name]), name


def test_every_test_named_on_the_works_with_page_exists():
    text = (ROOT / "docs" / "works-with.md").read_text()
    files = {
        path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")
    }
    named = set(re.findall(r"`(test_\w+(?:\.py)?)`", text))
    assert len(named) > 20
    for name in named:
        assert name in files or any(
            f"def {name}(" in source for source in files.values()
        ), name
    for file, kind in re.findall(r"`(test_module_kinds.py)`, kinds? `([^`]+)`", text):
        assert f'"{kind}"' in files[file], kind


def test_every_figure_has_an_alternative_text_and_its_command():
    for page in PAGES:
        text = page.read_text()
        for alternative, path in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)", text):
            assert (page.parent / path).is_file(), f"{page.name}: {path}"
            assert len(alternative.split()) > 2, (
                f"{page.name}: {path} says nothing to the blind"
            )
            made = r"(python (-m benchmarks|docs/)|make demo)"
            assert re.search(made, text), f"{page.name} does not say what draws {path}"


def test_numbers_on_the_home_page_match_the_results(committed_results):
    results = committed_results
    runs = read_lines(results / "supermasks" / "results.jsonl")
    accuracy = mean(
        run["epochs"][-1]["test_accuracy"]
        for run in runs
        if run["configuration"]["network"] == "lenet-300-100"
        and (run["configuration"]["density"], run["configuration"]["epochs"])
        == (0.1, 100)
    )
    tasks = read_lines(results / "pretrained" / "results.jsonl")
    tasks = [row for row in tasks if row.get("density") is None]
    masks, tuned = (
        [row for row in tasks if row["way"] == way] for way in ("mask", "full")
    )
    steps = json.loads((results / "speed" / "speed.json").read_text())["steps"]
    cost = next(
        row["ratio"]["threshold"][1] for row in steps if row["network"] == "WRN-28-8"
    )
    text = " ".join((ROOT / "docs" / "index.md").read_text().split())
    assert f"**{accuracy:.1%} of MNIST".replace("%", " %**") in text
    kilobytes = max(row["bytes"] for row in masks) / 1e3
    assert f"**{kilobytes:.0f} kB** per task" in text
    by_mask, by_tuning = (
        f"{mean(row['accuracy'] for row in rows):.1%}".replace("%", " %")
        for rows in (masks, tuned)
    )
    assert f"{by_mask} on TREC" in text
    assert f"takes {tuned[0]['bytes'] / 1e6:.1f} MB per task, [at {by_tuning}]" in text
    assert f"**{cost - 1:.0%}".replace("%", " %") + "** longer steps on a CPU" in text


def steps(model, optimiser, n=30):
    for _ in range(n):
        optimiser.zero_grad()
        model(torch.ones(8, 4)).sum().backward()
        optimiser.step()


def learned(*, eval_mode=False, before=False, lr=0.1, used=False):
    """Whether training moved the mask of a layer, whose bias trains too."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    masktorch.wrap(model)
    if not before:
        optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    model.train(not eval_mode)
    with masktorch.using(model, masktorch.masks(model)) if used else nullcontext():
        steps(model, optimiser)
    return masktorch.report(model).masked > 0


@pytest.mark.parametrize(
    "mistake",
    [{}, {"eval_mode": True}, {"before": True}, {"lr": 5e-5}, {"used": True}],
    ids=str,
)
def test_mistakes_that_keep_a_mask_from_learning(mistake):
    assert learned(**mistake) == (not mistake)


def test_an_optimiser_of_scores_does_not_train_weights():
    model = masktorch.wrap(nn.Linear(4, 3))
    optimiser = torch.optim.Adam(masktorch.mask_parameters(model), lr=0.1)
    masktorch.freeze_weights(masktorch.freeze_mask(model), False)
    before = [p.clone() for p in model.parameters()]
    steps(model, optimiser)
    assert all(map(torch.equal, before, model.parameters()))


def test_among_equal_scores_the_first_entries_are_kept():
    model = masktorch.wrap(nn.Linear(4, 2), masktorch.TopK(0.5), init=1.0)
    assert masktorch.masks(model)["weight"].tolist() == [[True] * 4, [False] * 4]


def test_starts_on_the_estimators_page_match_the_results(committed_results):
    text = (ROOT / "docs" / "estimators.md").read_text()
    names = {
        "threshold": "Threshold",
        "bernoulli": "Bernoulli",
        "intermediate": "IntermediateSampling",
    }
    found = {}
    for run in read_lines(committed_results / "starts" / "results.jsonl"):
        c = run["configuration"]
        key = names[c["estimator"]], c["init"], c["lr"]
        found.setdefault(key, []).append(100 * run["last"]["test_accuracy"])
        assert run["environment"]["commit"].startswith("e2e11a6")
    for (name, start, lr), values in found.items():
        (line,) = re.findall(
            rf"^\| `{name}\(\)` \| {start:g} \| (.*) \|$", text, re.MULTILINE
        )
        cell = line.split(" | ")[(0.01, 0.03, 0.1, 0.3, 1.0).index(lr)]
        mean, *spread = (float(number) for number in re.findall(r"[\d.]+", cell))
        assert mean == round(sum(values) / len(values), 1)
        assert spread == (
            [round(min(values), 1), round(max(values), 1)] if spread else []
        )
        assert bool(spread) == (len(values) > 1)
