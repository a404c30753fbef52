"""Our learned supermasks beside the published ones: the right numbers in the right rows."""

from dataclasses import replace

import pytest

from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.networks import OF_ONE_SIZE
from benchmarks.experiment.results import Layer, Result
from benchmarks.experiment.training import Epoch
from benchmarks.pages import literature

LENET = Configuration(
    "mnist", network="lenet-300-100", epochs=2, lr=0.1, schedule="cosine", rescale=True,
    weights="signed-constant", init=1.0, augmentation=False,
).for_arm("mask")  # fmt: skip
CONV = replace(
    LENET, dataset="cifar10", network="conv-2", estimator="bernoulli", rescale=False, init=None,
    weights="glorot", precision="bfloat16", batch_size=64,
)  # fmt: skip


def write(folder, configuration, accuracy, masked):
    """A result whose best epoch is not its last."""
    Result(
        configuration=configuration,
        estimator="-",
        epochs=[Epoch(1, 0.1, 0, 0, 0, accuracy + 0.01, 0), Epoch(2, 0.1, 0, 0, 0, accuracy, 0)],
        utilisation=[Layer("a", 30, masked), Layer("b", 10, 0.0)],
        environment={"processor": "Abacus"},
        command=f"make {configuration.network} --seed {configuration.seed} --fast",
    ).write(folder / f"{configuration.name}.json")


@pytest.fixture
def lines(tmp_path):
    write(tmp_path, replace(CONV, seed=4), 0.6, 0.0)
    for seed, accuracy, masked in [(0, 0.9712, 0.4), (1, 0.9754, 0.6), (2, 0.9733, 0.8)]:
        write(tmp_path, replace(LENET, seed=seed), accuracy, masked)
    return literature.markdown(tmp_path).splitlines()


def test_rows(lines):
    """The mean and the range of the last epochs; the smaller network first."""
    assert lines[:4] == [
        "| # | network | our setting | seeds | epochs | our accuracy | masked fraction | "
        "Zhou et al. | edge-popup | biprop | signed supermask | trained weights |",
        "|" + " --- |" * 12,
        "| 1 | lenet-300-100 | threshold, signed-constant weights, rescaled, learning rate 0.1, "
        "cosine, scores from 1, batches of 128, float32 | 3 | 2 | 97.33 (97.12 to 97.54) "
        "| 0.45 (0.30 to 0.60) | 98.0 | - | - | 97.48 | 97.43 |",
        "| 2 | conv-2 | bernoulli, glorot weights, learning rate 0.1, cosine, batches of 64, "
        "bfloat16 | 1 | 2 | 60.00 | 0.00 | 66.0 | 65 | 70 | 68.37 | 68.79 |",
    ]


def test_commands_and_notes(lines):
    assert lines[-2:] == [
        "- 1: `make lenet-300-100 --seed 0 --fast` and with seed 1, 2 (Abacus, float32)",
        "- 2: `make conv-2 --seed 4 --fast` (Abacus, bfloat16)",
    ]
    assert not any(line.startswith("#") for line in lines)
    text = " ".join(lines)
    for words in ("What differs from the publications: ", "1905.01067", "2201.13361"):
        assert words in text


def test_every_network_but_the_blogs_has_published_numbers():
    assert set(literature.PUBLISHED) == set(OF_ONE_SIZE)
    assert {len(row) for row in literature.PUBLISHED.values()} == {len(literature.SOURCES)}


def test_settings_are_told_apart(tmp_path):
    """Seeds share a row, other settings do not."""
    write(tmp_path, LENET, 0.5, 0.0)
    write(tmp_path, replace(LENET, estimator="bernoulli"), 0.6, 0.0)
    rows = literature.markdown(tmp_path).splitlines()[2:4]
    assert ["bernoulli" in row for row in rows] == [True, False]
    assert ["| 60.00 |" in row for row in rows] == [True, False]
