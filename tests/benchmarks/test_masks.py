"""The masks of a run: estimators, densities, where the sparse arms start."""

import json
from dataclasses import replace

import pytest
import torch

import masktorch
from benchmarks import BenchmarkError
from benchmarks.experiment import masks, training
from benchmarks.experiment import runner as experiment
from benchmarks.experiment.arms import ARMS
from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.estimators import ESTIMATORS
from benchmarks.experiment.networks import build
from benchmarks.experiment.results import RunFiles

LENET = Configuration("digits", network="lenet-300-100", depth=None, width=None)
TOPK = replace(LENET, estimator="topk")
SHAPE = (1, 8, 8)


@pytest.mark.parametrize("method", ESTIMATORS)
def test_every_estimator_has_a_name_and_trains(method, tiny, go, files_of):
    one = masks.make_estimator(replace(LENET, estimator=method))
    assert type(one).__name__.lower() == {
        "intermediate": "intermediatesampling",
        "hard-concrete": "hardconcrete",
    }.get(method, method)
    (result,) = go(tiny(estimator=method, init=None, epochs=1), ["mask"])
    assert result.estimator == repr(one)
    name = files_of(result).best_state.name
    assert name.startswith(f"digits-lenet-300-100-mask-{method}-")


def wrapped(configuration):
    model = build(configuration, SHAPE)
    masks.wrap(model, configuration)
    return model


def test_where_scores_start():
    found = {
        init: wrapped(replace(LENET, init=init)) for init in (None, 0.25, "normal")
    }
    scores = {
        init: next(masktorch.mask_parameters(model)) for init, model in found.items()
    }
    assert (scores[None] == 1).all()
    assert (scores[0.25] == 0.25).all()
    assert scores["normal"].mean().abs() < 0.05
    assert 0.95 < scores["normal"].std() < 1.05
    again = next(masktorch.mask_parameters(wrapped(replace(LENET, init="normal"))))
    assert torch.equal(scores["normal"], again)  # the seed decides


def kept(model):
    return {name: int(mask.sum()) for name, mask in masktorch.masks(model).items()}


def test_densities_of_each_tensor_and_of_all():
    sizes = {
        name: mask.numel() for name, mask in masktorch.masks(wrapped(TOPK)).items()
    }
    for budget in ("none", "overall", "erk"):
        configuration = replace(TOPK, density=0.1, budget=budget)
        model = wrapped(configuration)
        masks.set_epoch_density(model, configuration, 1)
        found = kept(model)
        if budget == "none":
            assert found == {
                name: max(1, int(0.1 * n + 0.5)) for name, n in sizes.items()
            }
        else:
            assert sum(found.values()) == int(0.1 * sum(sizes.values()) + 0.5)
    assert found["hidden1.bias"] == 300  # erk: small tensors are dense


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("none", [0.125] * 8),
        ("cubic", [0.125 + 0.875 * (1 - t / 6) ** 3 for t in range(6)] + [0.125] * 2),
        ("geometric", [0.125 ** (t / 6) for t in range(6)] + [0.125] * 2),
    ],
)
def test_a_scheduled_density(schedule, expected):
    """It falls over three quarters of the epochs: here six of eight."""
    falling = replace(TOPK, density=0.125, schedule_density=schedule, epochs=8)
    found = [masks.scheduled_density(falling, epoch) for epoch in range(1, 9)]
    assert found == pytest.approx(expected)


def test_a_scheduled_density_in_one_epoch():
    falling = replace(TOPK, density=0.25, schedule_density="cubic", epochs=1)
    assert masks.scheduled_density(falling, 1) == 0.25


@pytest.mark.parametrize("budget", ["none", "overall", "erk"])
def test_the_masks_of_a_falling_density(budget, tiny, go, monkeypatch):
    """They have the density of each epoch; mix has the masks of the best epoch."""
    seen = []
    original = training.evaluate

    def watch(model, *rest):
        found = masktorch.masks(model)
        entries = sum(mask.numel() for mask in found.values())
        seen.append(sum(int(mask.sum()) for mask in found.values()) / entries)
        return original(model, *rest)

    monkeypatch.setattr(training, "evaluate", watch)
    options = tiny(
        estimator="topk",
        init=None,
        density=0.2,
        budget=budget,
        schedule_density="geometric",
        epochs=4,
    )
    mask, mix = go(options, ["mask", "mix"])
    expected = [0.2 ** (t / 3) for t in range(4)] + [0.2] * 4
    assert seen == pytest.approx(expected, abs=1e-4)
    assert mask.best.epoch == 4
    assert mask.utilisation == mix.utilisation
    assert 1 - mask.masked_fraction == pytest.approx(0.2, abs=1e-4)


def test_a_falling_density_resumed(tiny, go, outcome, tmp_path, monkeypatch):
    options = tiny(
        estimator="topk",
        init=None,
        density=0.2,
        budget="overall",
        schedule_density="cubic",
        epochs=4,
    )
    go(options, ["mask"], "whole")
    original, calls = training.evaluate, []

    def dying(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", dying)
        with pytest.raises(KeyboardInterrupt):
            go(options, ["mask"], "stopped")
    go(options, ["mask"], "stopped")
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("budget", ["none", "overall"])
def test_the_sparse_arms_start_from_w0_under_a_given_mask(
    budget, tiny, go, files_of, tmp_path, monkeypatch
):
    """A ticket keeps the largest trained weights; controls keep as many per tensor."""
    seen = {}
    train = experiment.train

    def watch(model, data, configuration, *rest):
        has_fixed_mask = ARMS[configuration.arm].starts_from is not None
        given = masktorch.masks(model) if has_fixed_mask else {}
        start = {
            name: p.clone() for name, p in model.named_parameters() if p.requires_grad
        }
        seen[configuration.arm] = given, start
        return train(model, data, configuration, *rest)

    monkeypatch.setattr(experiment, "train", watch)
    options = tiny(estimator="topk", init=None, density=0.3, budget=budget)
    *_, ticket, random_mix, random_ticket = go(
        options, ["ticket", "random-mix", "random-ticket"]
    )
    w0 = dict(build(options.for_arm("weights"), SHAPE).named_parameters())
    for arm in ("ticket", "random-mix", "random-ticket"):
        assert all(torch.equal(value, w0[name]) for name, value in seen[arm][1].items())
        assert seen[arm][1].keys() == w0.keys()

    def best_state(arm):
        path = RunFiles(tmp_path / "runs", options.for_arm(arm)).best_state
        return torch.load(path, weights_only=True)

    trained = best_state("weights")
    kernels = {n: w.abs() for n, w in trained.items() if n.endswith("weight")}
    everything = torch.cat([size.flatten() for size in kernels.values()])
    for name, size in kernels.items():
        among = everything if budget == "overall" else size.flatten()
        cut = among.sort(descending=True, stable=True).values[
            int(0.3 * len(among) + 0.5) - 1
        ]
        assert torch.equal(seen["ticket"][0][name], size >= cut)

    counts = {
        arm: {n: int(m.sum()) for n, m in given.items()}
        for arm, (given, _) in seen.items()
    }
    assert counts["random-ticket"] == counts["ticket"]
    ticket_mask, random_mask = (
        seen[a][0]["hidden1.weight"] for a in ("ticket", "random-ticket")
    )
    assert 0.1 < (ticket_mask & random_mask).sum() / random_mask.sum() < 0.6
    learned = best_state("mask")
    donor = wrapped(options.for_arm("mask"))
    masks.load_state(donor, learned, options.for_arm("mask"))
    assert counts["random-mix"] == kept(donor)
    for result in (ticket, random_mix, random_ticket):
        content = json.loads(result.to_json())
        assert content["masked_fraction"] == pytest.approx(0.7, abs=0.01)
        after = torch.load(files_of(result).best_state, weights_only=True)
        given = seen[content["configuration"]["arm"]][0]
        for name, mask in given.items():
            assert torch.equal(after[name][~mask], w0[name][~mask])


@pytest.mark.parametrize(
    ("changes", "arm", "message"),
    [
        (
            {"density": 0.5},
            "mask",
            "--density is about --estimator topk; found --estimator thresh",
        ),
        ({"budget": "erk"}, "mask", "--budget is about --estimator topk"),
        (
            {"schedule_density": "cubic"},
            "mix",
            "--schedule_density is about --estimator topk",
        ),
        ({}, "ticket", "The arm ticket expects a --density, found none"),
    ],
)
def test_what_no_run_can_be_made_of(changes, arm, message, tiny, go, tmp_path):
    with pytest.raises(BenchmarkError, match=message):
        go(tiny(**changes), [arm])
    assert not (tmp_path / "runs").exists()


def test_recalibrated(tiny, go, files_of):
    """Plain means over the training images replace the running averages.

    The best state that is kept has its own.
    """
    options = tiny(network="wrn", depth=10, width=1, batch_size=32, augmentation=False)
    (result,) = go(options, ["weights"])
    model = build(result.configuration, SHAPE)
    state = torch.load(files_of(result).best_state, weights_only=True)
    model.load_state_dict(state)
    data = training_data(options)
    again = training.recalibrated_accuracy(model, data, options)
    assert again == result.recalibrated["best"]
    assert result.recalibrated.keys() == {"best", "last"}
    after = model.state_dict()
    assert torch.equal(after["stem.weight"], state["stem.weight"])
    inputs = data.train.images.float() / 127.5 - 1
    means = torch.nn.functional.conv2d(
        inputs, state["stem.weight"], state["stem.bias"], padding=1
    ).mean((0, 2, 3))
    torch.testing.assert_close(
        after["stem_norm.running_mean"], means, rtol=1e-4, atol=1e-5
    )
    assert not torch.allclose(state["stem_norm.running_mean"], means, rtol=0.1)


def training_data(options):
    return experiment.load_images(options, "unused")
