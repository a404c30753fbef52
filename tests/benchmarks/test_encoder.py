"""Pruning a tiny random encoder of sentences on a few made-up questions."""

import json
import random

import pytest
import torch

import masktorch
from benchmarks.encoder import experiments, pruning
from benchmarks.encoder.classifier import CLASSES, Batch, Classifier, linear_layers
from benchmarks.experiment.results import results_file
from benchmarks.pages.encoder import encoder
from masktorch import NOfM

transformers = pytest.importorskip("transformers")

WORDS = [
    "who",
    "what",
    "where",
    "when",
    "how",
    "many",
    "city",
    "person",
    "number",
    "means",
]


def tokenizer(texts, **options):
    longest = max(len(text.split()) for text in texts)
    rows = [[1 + WORDS.index(word) for word in text.split()] for text in texts]
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def tiny():
    config = transformers.BertConfig(
        vocab_size=1 + len(WORDS),
        hidden_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=32,
    )
    encoder = transformers.BertModel(config, add_pooling_layer=False)
    return Classifier(encoder, config.hidden_size), tokenizer


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "pretrained", tiny)
    monkeypatch.setattr("benchmarks.encoder.classifier.HELD_OUT", 8)
    choose = random.Random(0)
    folder = tmp_path / "trec"
    folder.mkdir()
    for part in ("train", "test"):
        lines = [
            f"{CLASSES[i % 6]}:x {' '.join(choose.sample(WORDS, 2 + i % 4))}"
            for i in range(40)
        ]
        (folder / f"TREC.{part}").write_text("\n".join(lines) + "\n")
    return folder


def settings(**changes):
    return experiments.Settings(
        dense_steps=2, mask_steps=2, recovery_steps=2, **changes
    )


@pytest.fixture
def study(data, tmp_path):
    folder = tmp_path / "study"
    experiments.run(data, settings(), folder, seeds=2)
    return folder


def test_each_way_has_a_row_and_half_of_the_weights(study):
    rows = experiments.read_rows(study)
    patterns = [row for row in rows if row["experiment"] == "patterns"]
    assert len(patterns) == 2 * (1 + 5 + 4)
    masked = [row for row in patterns if row["method"] != "dense"]
    assert {row["density"] for row in masked} == {0.5}
    assert all(0 <= row[key] <= 1 for row in patterns for key in ("before", "after"))
    heads = [row for row in rows if row["experiment"] == "heads"]
    assert [row["penalty"] for row in heads] == 2 * list(settings().penalties)
    for row in heads:
        assert row["heads"] == 4
        assert row["kept"] == sum(map(sum, row["gates"]))
        assert set(row["accuracy"]) == {"learned gates", "magnitude", "random"}
    assert {row["seed"] for row in rows} == {0, 1}


def test_a_stopped_study_resumes_with_the_same_numbers(study, data):
    path = results_file(study)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:3]) + "\n")
    experiments.run(data, settings(), study, seeds=2)
    assert [_numbers(row) for row in experiments.read_rows(study)] == [
        _numbers(row) for row in map(json.loads, lines)
    ]


def _numbers(row):
    return {key: row[key] for key in row if key not in ("environment", "command")}


def test_rates_are_chosen_on_training_questions_only(data, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="--hold-out"):
        experiments.run(data, settings(), tmp_path / "held", experiments="rates")
    monkeypatch.setattr(
        experiments, "CANDIDATES", dict.fromkeys(experiments.CANDIDATES, (0.001,))
    )
    experiments.run(
        data, settings(hold_out=True), tmp_path / "held", experiments="rates", seeds=1
    )
    rows = experiments.read_rows(tmp_path / "held")
    assert [row["what"] for row in rows] == list(experiments.CANDIDATES)


def test_sparse_gpt_is_the_least_squares_fit_for_one_masked_column():
    """If only the first column may go, the rest solve a least-squares problem."""
    torch.manual_seed(0)
    inputs, weight = torch.randn(200, 6).double(), torch.randn(3, 6).double()

    class First:
        def mode(self, scores):
            return torch.arange(scores.shape[1]).expand_as(scores) > 0

    torch.set_default_dtype(torch.float64)
    try:
        found, mask = pruning.reconstruct(weight, inputs, First(), 6)
    finally:
        torch.set_default_dtype(torch.float32)
    assert mask[:, 1:].all()
    assert not mask[:, 0].any()
    gram = inputs.T @ inputs
    gram += 0.01 * gram.diagonal().mean() * torch.eye(6)
    wanted = (
        weight[:, 1:] + weight[:, :1] * torch.linalg.solve(gram[1:, 1:], gram[1:, :1]).T
    )
    torch.testing.assert_close(found[:, 1:], wanted)


def test_sparse_gpt_disturbs_the_outputs_less_than_magnitude():
    torch.manual_seed(0)
    inputs = torch.randn(200, 16) @ torch.randn(16, 16)
    weight = torch.randn(8, 16)
    found, mask = pruning.reconstruct(weight, inputs, NOfM(2, 4), 4)
    assert (mask.view(8, 4, 4).sum(-1) == 2).all()
    largest = weight * NOfM(2, 4).mode(weight.abs())
    error, other = (((w - weight) @ inputs.T).norm() for w in (found * mask, largest))
    assert error < other


def test_inputs_are_those_of_words_and_not_of_padding():
    model, tokenize = tiny()
    tokens = tokenize(["who", "what where when"])
    names = linear_layers(model)
    assert len(names) == 6
    batch = Batch(tokens, torch.tensor([0, 1]))
    inputs = pruning.inputs_of_layers(model, names, [batch])
    assert {len(rows) for rows in inputs.values()} == {4}
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_head_is_a_block_of_columns():
    model, _ = tiny()
    (name,) = experiments.head_layers(model)
    with torch.no_grad():
        model.get_parameter(name)[:, 32:64] *= 10
    norms = experiments.head_norms(model, [name])
    assert norms.shape == (1, 4)
    expected = model.get_parameter(name)[:, 32:64].norm()
    torch.testing.assert_close(norms[0, 1], expected)
    heads = experiments.largest(norms, 1)
    assert heads.tolist() == [[False, True, False, False]]
    mask = masktorch.masks(experiments.with_heads(model, [name], heads))[name]
    assert mask[:, 32:64].all()
    assert not mask[:, :32].any()
    assert not mask[:, 64:].any()


def patterns(after):
    """Rows of a method and of dense, whose accuracies after recovery these are."""
    return [
        {
            "experiment": "patterns",
            "method": method,
            "before": 0.5,
            "after": value,
            "seed": seed,
            "settings": {},
            **({} if method == "dense" else {"pattern": "2:4"}),
        }
        for method, values in after.items()
        for seed, value in enumerate(values)
    ]


def test_the_best_ways_of_a_pattern(tmp_path):
    rows = patterns(
        {
            "dense": [0.90, 0.91, 0.92],
            "Wanda": [0.80, 0.81, 0.82],
            "SparseGPT": [0.85, 0.86, 0.87],
        }
    )
    path = results_file(tmp_path)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = encoder(tmp_path, tmp_path).patterns
    assert found.answer == (
        "At 2:4, Wanda is the most accurate before recovery (50.0 %) and SparseGPT "
        "after it (86.0 %). The dense encoder has 50.0 % and 91.0 %."
    )
    wanda = next(way for way in found.ways if way.method == "Wanda")
    assert wanda.against_dense["before"].mean == 0
    expected = "-10.00 (-10.00 to -10.00), worse"
    assert wanda.against_dense["after"].in_words == expected
    assert (tmp_path / "encoder-patterns.png").exists()


def test_gates_are_compared_seed_by_seed(tmp_path):
    path = results_file(tmp_path)
    with path.open("w") as file:
        for seed in range(3):
            row = {
                "experiment": "heads",
                "penalty": 1.0,
                "heads": 72,
                "kept": 30 + seed,
                "accuracy": {
                    "learned gates": 0.9 + 0.01 * seed,
                    "magnitude": 0.8 + 0.01 * seed,
                    "random": [0.9, 0.95, 0.88][seed],
                },
                "all_heads": 0.95,
                "seed": seed,
                "settings": {},
            }
            file.write(json.dumps(row) + "\n")
            file.write(json.dumps({**row, "penalty": 0.1, "kept": 60}) + "\n")
    heads = encoder(tmp_path, tmp_path).heads
    assert heads.fewest.penalty == 1.0
    against = heads.fewest.against
    assert against["magnitude"].in_words.startswith("+10.00")
    assert against["magnitude"].in_words.endswith("better")
    assert against["random"].in_words.endswith("cannot tell")


def test_without_runs_there_is_no_section(tmp_path):
    assert encoder(tmp_path, tmp_path) is None
