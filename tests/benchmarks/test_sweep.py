"""A sweep trains what its settings say, on held-out images, and its table says what varied."""

import json
import math
from dataclasses import replace

import pytest

import masktorch
from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.results import Result
from benchmarks.pages import sweeps
from benchmarks.pages.table import spread
from benchmarks.studies import sweep

SMALL = Configuration(
    "digits", network="lenet-300-100", epochs=2, batch_size=32, train_images=96, held_out=100,
    init=0.02, augmentation=False,
)  # fmt: skip


@pytest.mark.parametrize("which", sweep.SWEEPS)
def test_no_setting_sees_a_test_image(which):
    settings = list(sweep.SWEEPS[which]())
    assert len({repr(setting) for setting in settings}) == len(settings)
    assert all(setting.configuration.held_out for setting in settings)


def test_a_setting_is_a_run(tmp_path, monkeypatch, go):
    """With an estimator by name, it gives the numbers of `run`."""
    settings = [
        sweep.Setting(replace(SMALL, seed=seed, score_lr=score_lr), masktorch.Threshold())
        for score_lr in (0.01, 0.02)
        for seed in (0, 1)
    ]
    monkeypatch.setitem(sweep.SWEEPS, "small", lambda: iter(settings))
    path = sweep.sweep("small", tmp_path, tmp_path, "the command")
    assert path == tmp_path / "small.json"
    content = json.loads(path.read_text())
    assert content["command"] == "the command"
    assert [run["score_lr"] for run in content["runs"]] == [0.01, 0.01, 0.02, 0.02]
    last, masked = [], []
    for number, (setting, run) in enumerate(zip(settings, content["runs"], strict=True)):
        (result_path,) = go(setting.configuration, ["mask"], f"run{number}")
        result = Result.read(result_path)
        accuracies = [epoch.test_accuracy for epoch in result.epochs]
        assert run["held_out_accuracy"] == accuracies
        last.append(100 * accuracies[-1])
        masked.append(100 * run["masked_fraction"])
    assert sweeps.markdown(path).splitlines() == [
        "| score_lr | held-out accuracy (%) | masked (%) |",
        "| --- | --- | --- |",
        f"| 0.01 | {spread(last[:2], 1)} | {spread(masked[:2], 0)} |",
        f"| 0.02 | {spread(last[2:], 1)} | {spread(masked[2:], 0)} |",
    ]
    assert len(set(last)) > 1


def test_the_bound_is_the_settings_and_then_the_librarys_again(tmp_path, monkeypatch):
    found, train = [], sweep.train

    def watch(*arguments):
        found.append(masktorch.functional.MAX_STEP)
        return train(*arguments)

    monkeypatch.setattr(sweep, "train", watch)
    before = masktorch.functional.MAX_STEP
    settings = [
        sweep.Setting(SMALL, masktorch.IntermediateSampling()),
        sweep.Setting(SMALL, masktorch.IntermediateSampling(), 0.9),
    ]
    monkeypatch.setitem(sweep.SWEEPS, "small", lambda: iter(settings))
    path = sweep.sweep("small", tmp_path, tmp_path, "")
    assert found == [before, 0.9]
    assert before == masktorch.functional.MAX_STEP
    first, second = json.loads(path.read_text())["runs"]
    assert first["estimator"] == repr(masktorch.IntermediateSampling())
    assert (first["max_step"], second["max_step"]) == (before, 0.9)
    assert not math.isclose(first["masked_fraction"], second["masked_fraction"], rel_tol=1e-9)
