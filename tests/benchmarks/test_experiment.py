"""What a run does with what it finds: results, checkpoints and states of earlier ones."""

from dataclasses import replace

import pytest
import torch

import masktorch
from benchmarks import BenchmarkError, results
from benchmarks.configuration import Configuration
from benchmarks.experiment import build, rebuild, run, start

WRN = Configuration("digits", depth=10, width=1, epochs=2, batch_size=32, train_images=96)
LENET = Configuration(
    "digits", network="lenet-300-100", epochs=4, batch_size=32, train_images=96, mix_lr=1e-3
)


def go(output, options=LENET, arms=("mask", "weights", "mix")):
    return run(options, arms, "unused", output, "cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    go(folder)
    return folder


class KilledError(Exception):
    pass


def kill_at_call(monkeypatch, owner, name, number):
    original, calls = getattr(owner, name), []

    def dying(*args, **kwargs):
        calls.append(name)
        if len(calls) == number:
            raise KilledError
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, dying)


@pytest.mark.parametrize("device", ["quantum", "cuda:77", "meta:x"])
def test_impossible_devices(device, tmp_path):
    with pytest.raises(BenchmarkError, match=f"--device must be one.*found '{device}'"):
        run(LENET, ["mask"], "unused", tmp_path, device)
    assert list(tmp_path.iterdir()) == []


def test_init_and_biases():
    configuration = replace(LENET, init=0.25).for_arm("mask")
    model = build(configuration, (1, 8, 8))
    start(model, configuration, "unused")
    scores = list(masktorch.mask_parameters(model))
    assert len(scores) == 6
    assert all((score == 0.25).all() for score in scores)


def test_batch_norm_trains_under_the_mask():
    configuration = WRN.for_arm("mask")
    model = build(configuration, (1, 8, 8))
    start(model, configuration, "unused")
    parameters = dict(model.named_parameters())
    assert parameters["stem_norm.weight"].requires_grad
    assert parameters["stem.parametrizations.weight.scores"].requires_grad
    assert not parameters["stem.weight"].requires_grad


def test_utilisation_counts_kernel_and_bias_together():
    model = masktorch.wrap(build(LENET.for_arm("mask"), (1, 8, 8)), bias=True)
    kept = masktorch.masks(model)
    kept["classifier.weight"] = torch.zeros(10, 100, dtype=torch.bool)
    kept["classifier.weight"][0] = True
    *_, classifier = results.utilisation(masktorch.set_masks(model, kept))
    assert (classifier.layer, classifier.parameters) == ("classifier", 1010)
    assert classifier.masked == pytest.approx(900 / 1010)


def test_a_network_from_its_seed_and_masks_alone(tmp_path):
    (path,) = go(tmp_path, arms=["mask"])
    masks, settings = path.with_suffix(".masks.npz"), LENET.for_arm("mask")
    assert rebuild(settings, masks, tmp_path) == results.Result.read(path).best.test_accuracy
    assert masks.stat().st_size < 10_000
    with pytest.raises(ValueError, match="expected the weights that the masks were saved over"):
        rebuild(replace(settings, seed=1), masks, tmp_path)
    with pytest.raises(BenchmarkError, match="found batch norm in wrn-10-1"):
        rebuild(WRN, masks, tmp_path)
