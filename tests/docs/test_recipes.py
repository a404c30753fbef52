"""The recipes do what their pages show, on small digits in place of MNIST."""

import gzip
import importlib
import io
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import masktorch

datasets = pytest.importorskip(
    "sklearn.datasets", reason="scikit-learn is not installed"
)

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "recipes"
# The pages with a program beside them; test_pages.py runs the code of all.
PAGES = [
    page for page in sorted(FOLDER.glob("*.md")) if page.with_suffix(".py").exists()
]
EXCERPT = re.compile(r"^```py\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture(autouse=True, scope="module")
def threads():
    """Run the programs in one thread, and restore the setting for other tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def beside_each_other(monkeypatch):
    """Each program imports its neighbour experiment.py, as it does when it is run."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in ["experiment", "density", *(page.stem for page in PAGES)]:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """scikit-learn's digits in files of MNIST: 8x8 pixels, enlarged to 28x28."""
    folder = tmp_path_factory.mktemp("mnist")
    digits = datasets.load_digits()
    images = np.kron(digits.images, np.ones((3, 3))) * 255 / 16
    images = np.pad(images, ((0, 0), (2, 2), (2, 2))).astype(np.uint8)
    for name, part in (("train", slice(0, 600)), ("t10k", slice(600, 900))):
        for kind, array in (("images-idx3", images), ("labels-idx1", digits.target)):
            array = array[part].astype(np.uint8)
            header = bytes([0, 0, 8, array.ndim])
            header += b"".join(n.to_bytes(4, "big") for n in array.shape)
            with gzip.open(folder / f"{name}-{kind}-ubyte.gz", "wb") as file:
                file.write(header + array.tobytes())
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_shows_its_program(page):
    text, program = page.read_text(), page.with_suffix(".py").read_text()
    excerpts = EXCERPT.findall(text)
    assert excerpts
    for excerpt in excerpts:
        assert excerpt.strip("\n") in program


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_shows_its_results(page, committed_results):
    text = page.read_text()
    results = committed_results / "recipes" / f"{page.stem}.json"
    if not results.exists():
        assert "Not run yet" in text
        return
    content = json.loads(results.read_text())
    assert importlib.import_module(page.stem).table(content) in text
    assert not content["environment"]["changed"]
    assert content["command"] in text
    assert f"at {content['environment']['commit'][:7]}" in text


def test_the_density_page_shows_its_results(committed_results):
    text = (ROOT / "docs" / "density.md").read_text()
    content = json.loads((committed_results / "recipes" / "density.json").read_text())
    assert importlib.import_module("density").table(content) in text
    assert content["command"] in text
    assert f"at {content['environment']['commit'][:7]}" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_blocks_run(page):
    namespace = {"__name__": "page"}
    for block in BLOCK.findall(page.read_text()):
        exec(compile(block, str(page), "exec"), namespace)


def run(name, data, tmp_path, *options):
    program = importlib.import_module(name)
    content = program.main([str(data), "--out", str(tmp_path / "out.json"), *options])
    assert json.loads((tmp_path / "out.json").read_text()) == content
    assert program.table(content).startswith("|")
    return content["rows"]


def test_densities(data, tmp_path):
    rows = run("density", data, tmp_path, "--seeds", "1", "--epochs", "2")
    assert [row["kept"] for row in rows[1:]] == [133100, 79860, *[26620] * 3]


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.skipif(
    "MASKTORCH_DATA" not in os.environ, reason="MASKTORCH_DATA names no folder"
)
def test_a_mask_over_random_weights_classifies_digits():
    """97 % of MNIST by the mask alone, in four epochs."""
    program, experiment = (
        importlib.import_module(n) for n in ("density", "experiment")
    )
    train, test = experiment.mnist(os.environ["MASKTORCH_DATA"])
    for density in (0.5, 0.3):
        arm = (masktorch.TopK(density), density, None, 1e-3)
        accuracy, kept, size = program.run(train, test, 0, 4, *arm)
        assert kept == density * size
        assert accuracy >= 0.97


def test_tickets(data, tmp_path):
    rows = run(
        "tickets",
        data,
        tmp_path,
        "--seeds",
        "1",
        "--rounds",
        "2",
        "--every",
        "2",
        "--epochs",
        "4",
    )
    assert [row["arm"] for row in rows] == [
        "dense",
        "ticket",
        "ticket",
        "random mask",
        "supermask",
        "supermask, then weights",
    ]
    assert [row["density"] for row in rows] == [1, 0.8, *[0.64] * 4]
    assert all(row["accuracy"] > 0.5 for row in rows)


def test_a_ticket_is_rewound_and_masked_entries_stay_masked(data):
    program, experiment = (
        importlib.import_module(n) for n in ("tickets", "experiment")
    )
    images, labels = experiment.mnist(data)[0]
    start = {name: t.clone() for name, t in experiment.network().state_dict().items()}
    before = None
    for density, (masks, model) in zip(
        (0.5, 0.2),
        program.tickets(start, (images, labels), (0.5, 0.2), epochs=1),
        strict=True,
    ):
        kept = sum(int(mask.sum()) for mask in masks.values())
        assert kept == int(density * sum(mask.numel() for mask in masks.values()) + 0.5)
        if before is not None:
            assert not any((mask & ~before[name]).any() for name, mask in masks.items())
        before = masks
        for name, mask in masktorch.masks(model).items():
            assert torch.equal(mask, masks[name])
            layer = model.get_submodule(name.removesuffix(".weight"))
            trained = layer.parametrizations.weight.original
            assert torch.equal(
                trained[~mask], start[name][~mask]
            )  # masked: as it was at the start
            assert not torch.equal(trained[mask], start[name][mask])
    assert all(torch.equal(t, start[name]) for name, t in start.items())


def test_many_tasks(data, tmp_path):
    rows = run(
        "many_tasks", data, tmp_path, "--tasks", "3", "--epochs", "12", "--tries", "20"
    )
    tasks = [row for row in rows if "task" in row]
    assert len(tasks) == 3
    assert all(row["accuracy"] > 0.5 and row["bytes"] < 36_000 for row in tasks)
    told = {row["told by"]: row["told"] for row in rows if "told" in row}
    assert told[16] > 0.6


def test_federated(data, tmp_path):
    options = ["--seeds", "1", "--clients", "3", "--rounds", "3"]
    rows = run("federated", data, tmp_path, *options)
    assert [row["round"] for row in rows] == [1, 2, 3] * 2
    assert all(row["bytes up, a client"] < 36_000 for row in rows)
    assert rows[2]["accuracy, drawn"] > 0.3


def test_the_server_averages_the_draws_of_clients(data):
    program, experiment = (
        importlib.import_module(n) for n in ("federated", "experiment")
    )
    images, labels = experiment.mnist(data)[0]
    model = program.shared_model(0)
    weights = [p.detach().clone() for p in model.parameters() if not p.requires_grad]
    scores = {n: s.detach().clone() for n, s in masktorch.named_mask_parameters(model)}
    messages = [program.client(model, scores, images, labels) for _ in range(4)]
    draws = [masktorch.read_masks(io.BytesIO(m)) for m in messages]
    for name, back in program.server(messages).items():
        mean = np.mean([draw[name].numpy() for draw in draws], axis=0).clip(0.01, 0.99)
        torch.testing.assert_close(
            back.double().numpy(), np.log(mean / (1 - mean)), rtol=1e-4, atol=1e-4
        )
    now = [p for p in model.parameters() if not p.requires_grad]
    assert all(map(torch.equal, weights, now))


def test_smaller(data, tmp_path):
    pytest.importorskip("torch_pruning")
    rows = run("smaller", data, tmp_path, "--epochs", "1", "--rounds", "1")
    networks = [row for row in rows if "network" in row]
    assert [row["model"] for row in networks] == ["dense", "with zeros", "smaller"] * 2
    for _, zeros, smaller in (networks[:3], networks[3:]):
        assert smaller["parameters"] < zeros["parameters"] / 2
        assert smaller["accuracy"] == pytest.approx(zeros["accuracy"], abs=0.01)
        assert smaller["outputs differ by"] < 1e-3


@pytest.mark.parametrize("network", ["perceptron", "convolutions"])
def test_removing_unread_channels_leaves_the_output_unchanged(network):
    pytest.importorskip("torch_pruning")
    program = importlib.import_module("smaller")
    model = getattr(program, network)().double()
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean):
                nn.init.normal_(tensor)
    read, masks = {}, {}
    for name in program.readers(model):
        shape = model.get_parameter(name).shape
        read[name] = torch.rand(shape[1]) < 0.4
        masks[name] = (
            read[name].view(1, -1, *[1] * (len(shape) - 2)).expand(shape).clone()
        )
    masktorch.unwrap(masktorch.set_masks(model, masks)).eval()
    x = torch.randn(3, 784, dtype=torch.float64)
    smaller = program.without_unread_channels(model, x[:1])
    torch.testing.assert_close(smaller(x), model(x), rtol=1e-10, atol=1e-12)
    for name, kept in read.items():
        assert smaller.get_parameter(name).shape[1] == int(kept.sum())


def test_a_channel_that_a_norm_reads_is_kept():
    pytest.importorskip("torch_pruning")
    program = importlib.import_module("smaller")
    model = nn.Sequential(
        nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3)
    )
    masktorch.wrap(
        model,
        masktorch.Blocks(masktorch.TopK(0.5), (None, 1)),
        targets=program.readers(model),
    )
    with pytest.raises(AssertionError, match="not close"):
        program.without_unread_channels(masktorch.unwrap(model), torch.randn(4, 8))


def test_elsewhere(data, tmp_path):
    rows = run("elsewhere", data, tmp_path, "--epochs", "6")
    assert rows[0]["accuracy"] == rows[1]["accuracy"] > 0.5
    assert rows[1]["bytes"] < rows[0]["bytes"] / 20


def test_masks_of_torch_prune():
    program = importlib.import_module("elsewhere")
    pruned = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    prune.random_unstructured(pruned[0], "weight", 0.4)
    prune.ln_structured(pruned[2], "weight", 0.4, n=2, dim=1)
    originals = {name: p.detach().clone() for name, p in pruned.named_parameters()}
    x = torch.randn(4, 6)
    weights, masks = program.from_torch_prune(pruned.state_dict())
    plain = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    plain.load_state_dict(weights)
    assert torch.equal(masktorch.set_masks(plain, masks)(x), pruned(x))
    masktorch.unwrap(plain, bake=False)
    assert torch.equal(
        plain[0].weight, originals["0.weight_orig"]
    )  # also what is masked


@pytest.mark.parametrize("kept", [0.9, 0.5, 0.3, 0.07])
@pytest.mark.parametrize("task", [None, 1])
def test_masks_of_hidden_networks(kept, task):
    """Their rule: of n sorted scores the first int((1 - k) * n) are masked."""
    program = importlib.import_module("elsewhere")
    shapes = {"conv": (4, 3, 3, 3), "fc": (5, 10, 1, 1)}
    weights = {name: torch.randn(shape) for name, shape in shapes.items()}
    scores = {name: torch.randn(shape) for name, shape in shapes.items()}
    end = "scores" if task is None else f"scores.{task}"
    state = {f"module.{name}.weight": w for name, w in weights.items()}
    state |= {f"module.{name}.{end}": s for name, s in scores.items()}
    if task is not None:
        state |= {
            f"module.{name}.scores.0": -torch.rand(s.shape)
            for name, s in scores.items()
        }
    plain = nn.ModuleDict(
        {"conv": nn.Conv2d(3, 4, 3, bias=False), "fc": nn.Linear(10, 5, bias=False)}
    )
    taken = program.from_hidden_networks(state, kept, task)
    found, masks = (program.as_linear(part, plain) for part in taken)
    plain.load_state_dict(found)
    masktorch.set_masks(plain, masks)
    for name, s in scores.items():
        order = np.argsort(np.abs(s.numpy()).ravel(), kind="stable")
        expected = np.ones(s.numel(), bool)
        expected[order[: int((1 - kept) * s.numel())]] = False
        np.testing.assert_array_equal(masks[f"{name}.weight"].numpy().ravel(), expected)
        layer = plain[name].weight.detach().numpy().ravel()
        np.testing.assert_array_equal(layer, weights[name].numpy().ravel() * expected)
    fast = program.from_hidden_networks(state, None, task)[1]
    assert torch.equal(fast["conv.weight"], scores["conv"] >= 0)


@pytest.mark.parametrize("tile", [1, 3, 4])
def test_masks_of_supermask_linear(tile):
    """Its rule: keep tiles from the nearest percentile up, cut to the weight."""
    program = importlib.import_module("elsewhere")
    weight, bias = torch.randn(7, 10), torch.randn(7)
    tiles = (-(-7 // tile), -(-10 // tile))
    scores = torch.randn(tiles)
    state = {"0.weight": weight, "0.bias": bias, "0.scores": scores}
    state |= {"0.scale": torch.tensor([2.0]), "0.shift": torch.tensor([0.25])}
    weights, masks = program.from_supermask_linear(state, 0.6, tile)
    cut = np.sort(scores.numpy().ravel())[round(0.6 * (scores.numel() - 1))]
    expected = np.kron(scores.numpy() >= cut, np.ones((tile, tile)))[:7, :10].astype(
        bool
    )
    plain = nn.Sequential(nn.Linear(10, 7))
    plain.load_state_dict(weights)
    masktorch.set_masks(plain, masks)
    np.testing.assert_array_equal(masks["0.weight"].numpy(), expected)
    np.testing.assert_allclose(
        plain[0].weight.detach().numpy(),
        (weight.numpy() * 2 + 0.25) * expected,
        rtol=1e-6,
    )
