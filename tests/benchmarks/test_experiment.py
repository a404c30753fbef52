"""What a run reads and prepares: images, networks, masks, earlier states."""

import contextlib
from dataclasses import replace

import pytest
import torch

import masktorch
from benchmarks import BenchmarkError, Location
from benchmarks.experiment import results, runner
from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.data import load_images, read_digits
from benchmarks.experiment.networks import build
from benchmarks.experiment.results import RunFiles
from benchmarks.experiment.runner import prepare_model, run
from benchmarks.experiment.training import evaluate

WRN = Configuration(
    "digits", depth=10, width=1, epochs=2, batch_size=32, train_images=96
)
LENET = Configuration(
    "digits",
    network="lenet-300-100",
    epochs=4,
    batch_size=32,
    train_images=96,
    mix_lr=1e-3,
)


def go(output, options=LENET, arms=("mask", "weights", "mix")):
    return run(options, arms, Location(output=output, device="cpu"), "made so")


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
    with pytest.raises((RuntimeError, AssertionError)):  # torch's own
        run(LENET, ["mask"], Location(output=tmp_path, device=device), "")
    assert list(tmp_path.iterdir()) == []


def test_held_out_images(tmp_path):
    """The last training images replace the test set; no image is in both splits."""
    whole = read_digits(tmp_path)
    some = load_images(replace(LENET, held_out=100), tmp_path)
    assert len(some.train.labels) == 96
    assert torch.equal(some.train.images, whole.train.images[:96])
    assert torch.equal(some.test.images, whole.train.images[-100:])
    assert torch.equal(some.test.labels, whole.train.labels[-100:])
    rest = load_images(replace(LENET, held_out=100, train_images=None), tmp_path)
    assert torch.equal(
        torch.cat([rest.train.images, rest.test.images]), whole.train.images
    )
    assert torch.equal(
        torch.cat([rest.train.labels, rest.test.labels]), whole.train.labels
    )


@pytest.mark.parametrize(
    ("held_out", "train_images"),
    [
        (-1, 96),
        (1438, None),
        (1343, 96),
        (100, 0),
        (None, 0),
        (None, -1),
        (None, 1439),
    ],
)
def test_impossible_splits(held_out, train_images, tmp_path):
    options = replace(LENET, held_out=held_out, train_images=train_images)
    message = (
        f"at most 1438, the size of digits's training set; found {train_images} and "
    )
    with pytest.raises(BenchmarkError, match=f"{message}{held_out}"):
        go(tmp_path, options)
    assert list(tmp_path.iterdir()) == []


def test_a_run_on_held_out_images(tmp_path):
    (result,) = go(tmp_path, replace(LENET, held_out=100, init=0.02), ["mask"])
    assert results.read_results(tmp_path) == [result]
    assert result.configuration.held_out == 100
    model = build(result.configuration, (1, 8, 8))
    masktorch.load_masks(model, RunFiles(tmp_path, result.configuration).masks)
    held_out = load_images(result.configuration, tmp_path).test
    assert (
        evaluate(model, held_out, result.configuration)[1] == result.best.test_accuracy
    )


def test_init_and_biases():
    configuration = replace(LENET, init=0.25).for_arm("mask")
    model = build(configuration, (1, 8, 8))
    prepare_model(model, configuration, "unused")
    scores = list(masktorch.mask_parameters(model))
    assert len(scores) == 6
    assert all((score == 0.25).all() for score in scores)


@pytest.mark.parametrize("network", ["lenet-300-100", "conv-2", "conv-4", "conv-6"])
def test_networks_of_the_literature_train_nothing_but_scores(network):
    configuration = replace(LENET, network=network).for_arm("mask")
    model = build(configuration, (3, 8, 8))
    prepare_model(model, configuration, "unused")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        name for name in dict(model.named_parameters()) if name.endswith("scores")
    }
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == int(network[-1] if network.startswith("conv") else 0)


def test_signed_constant_weights_in_every_arm():
    for arm in ("mask", "weights"):
        configuration = replace(LENET, weights="signed-constant").for_arm(arm)
        kernel = build(configuration, (1, 8, 8)).hidden2.weight
        assert len(kernel.unique()) == 2
        plain = build(
            replace(configuration, weights="glorot"), (1, 8, 8)
        ).hidden2.weight
        assert torch.equal(kernel.sign(), plain.sign())


def test_rescaled():
    """In the arms that have a mask: the weights of half the entries are doubled."""
    configuration = replace(LENET, rescale=True).for_arm("mask")
    assert replace(LENET, rescale=True).for_arm("mix").rescale is True
    assert replace(LENET, rescale=True).for_arm("weights").rescale is False
    model = build(configuration, (1, 8, 8))
    weight = model.hidden1.weight.clone()
    prepare_model(model, configuration, "unused")
    kept = masktorch.masks(model)
    kept["hidden1.weight"][::2] = False
    masktorch.set_masks(model, kept)
    torch.testing.assert_close(model.hidden1.weight[1::2], 2 * weight[1::2])
    assert not model.hidden1.weight[::2].any()


def test_batch_norm_trains_under_the_mask():
    configuration = WRN.for_arm("mask")
    model = build(configuration, (1, 8, 8))
    prepare_model(model, configuration, "unused")
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
    literature = replace(LENET, weights="signed-constant", rescale=True, init=0.02)
    (result,) = go(tmp_path, literature, arms=["mask"])
    masks = RunFiles(tmp_path, result.configuration).masks
    settings = replace(LENET, weights="signed-constant")
    data = load_images(settings, tmp_path)
    model = masktorch.load_masks(
        build(settings.for_arm("mask"), data.image_shape), masks
    )
    found = evaluate(model, data.test, settings)[1]
    assert found == result.best.test_accuracy
    assert masks.stat().st_size < 10_000
    other = build(replace(settings, seed=1).for_arm("mask"), data.image_shape)
    with pytest.raises(ValueError, match="expected fingerprint"):
        masktorch.load_masks(other, masks)


@pytest.mark.parametrize(
    ("text", "emulates"),
    [("flags : sse avx2", True), ("flags : avx512_bf16", False), ("", False)],
)
def test_bfloat16_warns_where_it_is_emulated(text, emulates, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "cpuinfo", lambda: text)
    tiny = replace(LENET, precision="bfloat16", epochs=1, train_images=64)
    warned = pytest.warns(UserWarning, match="emulates bfloat16")
    with warned if emulates else contextlib.nullcontext():
        go(tmp_path, tiny, arms=["weights"])
