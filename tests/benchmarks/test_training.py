"""The schedule, evaluation, what each arm trains; a stopped run resumes exactly."""

import itertools
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import benchmarks
import masktorch
from benchmarks.experiment import runner as experiment
from benchmarks.experiment import training
from benchmarks.experiment.arms import ARMS
from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.data import Split, read_digits
from benchmarks.experiment.results import RunFiles, read_results, utilisation
from benchmarks.experiment.training import (
    Epoch,
    best_epoch,
    evaluate,
    plateau,
    scheduled,
)
from benchmarks.files import command_line

ROOT = Path(benchmarks.__file__).parents[1]
BLOG_ARMS = list(ARMS)[:4]


def epochs(*test_accuracies):
    return [
        Epoch(n, 0.1, 0, 0, 0, a, 0) for n, a in enumerate(test_accuracies, start=1)
    ]


# (training accuracies, how often the learning rate has been divided by 10 after them)
PLATEAUS = [
    ([], 0),
    ([0.5], 0),
    ([0.1, 0.2, 0.3, 0.4], 0),
    ([0.5, 0.5], 0),
    ([0.5, 0.5, 0.5], 1),
    ([0.5, 0.4, 0.6], 0),  # one bad epoch alone
    ([0.5, 0.4, 0.6, 0.5, 0.7, 0.6], 0),  # never two in a row
    ([0.5, 0.4, 0.45], 1),  # better than the last, not than the best
    ([0.5, 0.5001, 0.5001], 1),  # 1e-4 more is not more than 1e-4 more
    ([0.5, 0.5002, 0.5001], 0),
    (
        [0.5, 0.50006, 0.50012],
        0,
    ),  # compared with the best, which only a better one moves
    ([0.5, 0.5, 0.5, 0.5], 1),  # counted anew after each drop
    ([0.5, 0.5, 0.5, 0.5, 0.5], 2),
    ([0.5, 0.5, 0.5, 0.4, 0.5002], 1),
    ([0.9, 0.1, 0.2, 0.3, 0.4], 2),  # the best outlives a drop
    ([0.0, 0.0, 0.0], 1),
    ([0.5] * 9, 4),
]


@pytest.mark.parametrize(("accuracies", "drops"), PLATEAUS)
def test_plateau(accuracies, drops):
    assert plateau(1e-2, accuracies) == pytest.approx(1e-2 * 0.1**drops, rel=1e-12)


class ReduceLROnPlateau:
    """Keras's callback: monitor="acc", factor=0.1, patience=2, min_delta=1e-4."""

    def __init__(self, lr):
        self.lr, self.best, self.wait = lr, -float("inf"), 0

    def on_epoch_end(self, current):
        if current - 1e-4 > self.best:
            self.best = current
            self.wait = 0
            return
        self.wait += 1
        if self.wait >= 2:
            self.lr *= 0.1
            self.wait = 0


def test_plateau_as_keras():
    levels = (0.2, 0.20005, 0.3, 0.9)
    for accuracies in itertools.product(levels, repeat=6):
        keras = ReduceLROnPlateau(1e-2)
        for accuracy in accuracies:
            keras.on_epoch_end(accuracy)
        assert plateau(1e-2, accuracies) == pytest.approx(keras.lr), accuracies


def cosine(lr, epoch, epochs):
    return scheduled(
        lr, Configuration("digits", schedule="cosine", epochs=epochs), [0.5] * epoch
    )


def test_cosine():
    """From the whole rate before the first of the epochs to none after the last."""
    assert [cosine(0.4, epoch, 4) for epoch in range(5)] == pytest.approx(
        [0.4, 0.2 + 0.2 * 0.5**0.5, 0.2, 0.2 - 0.2 * 0.5**0.5, 0.0]
    )
    ours = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(ours, T_max=7)
    for epoch in range(7):
        assert cosine(0.3, epoch, 7) == pytest.approx(
            ours.param_groups[0]["lr"], rel=1e-12
        )
        ours.step()
        schedule.step()


def test_the_cosine_is_followed(tiny, go, rates):
    options = tiny(
        network="wrn", depth=10, width=1, epochs=3, lr=0.3, score_lr=0.6, mix_lr=0.1
    )
    results = go(replace(options, schedule="cosine"), ["mask", "mix"])
    for result, first in zip(results, (0.3, 0.1), strict=True):
        expected = [cosine(first, epoch, 3) for epoch in range(3)]
        assert [epoch.lr for epoch in result.epochs] == expected
    scores = [list(groups)[1] for groups in rates["mask"]]
    assert scores == [cosine(0.6, epoch, 3) for epoch in range(3)]


def test_the_schedule_is_followed(tiny, go):
    results = go(
        tiny(epochs=8, lr=0.3, mix_lr=0.2), ["weights", "weights-then-weights"]
    )
    for result, first in zip(results, (0.3, 0.2), strict=True):
        history = result.epochs
        accuracies = [epoch.train_accuracy for epoch in history]
        rates = [plateau(first, accuracies[:n]) for n in range(8)]
        assert [epoch.lr for epoch in history] == rates
        assert rates[-1] < first


@pytest.fixture
def rates(monkeypatch):
    """By arm: per epoch, the names that each learning rate trained."""
    seen = {}
    original = training.train_epoch

    def watch(model, optimiser, split, configuration, *rest):
        names = {p: name for name, p in model.named_parameters()}
        groups = {
            g["lr"]: {names[p] for p in g["params"]} for g in optimiser.param_groups
        }
        seen.setdefault(configuration.arm, []).append(groups)
        return original(model, optimiser, split, configuration, *rest)

    monkeypatch.setattr(training, "train_epoch", watch)
    return seen


def test_scores_have_a_learning_rate_of_their_own(tiny, go, rates, monkeypatch):
    """It falls when the other one does; arms without learnable scores ignore it."""
    monkeypatch.setattr(
        training, "plateau", lambda lr, accuracies: lr * 0.5 ** len(accuracies)
    )
    small = dict(network="wrn", depth=10, width=1, epochs=3)
    options = tiny(**small, lr=0.5, score_lr=0.75, mix_lr=0.25, init=1.0)
    mask, *others = go(options, ["mask", "weights", "mix"])
    assert mask.configuration.score_lr == 0.75
    factors = [epoch.lr / 0.5 for epoch in mask.epochs]
    assert factors == [1, 0.5, 0.25]
    for factor, groups in zip(factors, rates["mask"], strict=True):
        norms, scores = groups.values()
        assert list(groups) == [0.5 * factor, 0.75 * factor]
        assert len(norms) == 14
        assert all("norm" in name for name in norms)
        assert len(scores) == 20
        assert all(name.endswith(".scores") for name in scores)
    for result, first in zip(others, (0.5, 0.25), strict=True):
        groups = rates[result.configuration.arm]
        assert list(groups[0]) == [first]
        assert len(groups[0][first]) == 34


def test_scores_without_a_learning_rate_of_their_own(tiny, go, outcome, tmp_path):
    """They have that of the rest, to the same numbers as if it were named."""
    small = dict(network="wrn", depth=10, width=1)
    found = {}
    for score_lr in (None, 1e-2, 2e-2):
        go(tiny(**small, score_lr=score_lr), ["mask"], str(score_lr))
        ((content, state),) = outcome(tmp_path / str(score_lr)).values()
        assert content["configuration"].pop("score_lr") == score_lr
        found[score_lr] = content, state
    assert found[None] == found[1e-2]
    assert found[None] != found[2e-2]


@pytest.mark.parametrize(
    ("accuracies", "best"),
    [([0.3], 1), ([0.1, 0.3, 0.2], 2), ([0.1, 0.3, 0.3], 2), ([0.0, 0], 1)],
)
def test_best_epoch(accuracies, best):
    assert best_epoch(epochs(*accuracies), Configuration("digits")).epoch == best


def test_the_best_epoch_has_the_last_density():
    """While it falls the latest epoch is the best: here three of four epochs."""
    falling = Configuration(
        "digits", estimator="topk", schedule_density="cubic", epochs=4
    )
    accuracies = (0.9, 0.8, 0.7, 0.5)
    kept = [best_epoch(epochs(*accuracies[:n]), falling).epoch for n in (1, 2, 3, 4)]
    assert kept == [1, 2, 3, 4]
    falling = replace(falling, epochs=8)
    assert best_epoch(epochs(*accuracies, 0.3, 0.3, 0.2, 0.1), falling).epoch == 7


@pytest.fixture
def digits(tmp_path):
    return read_digits(tmp_path)


def test_evaluation_of_any_batch_size(digits, tiny, monkeypatch):
    model = experiment.build(tiny(network="wrn", depth=10, width=1), digits.image_shape)
    model(
        torch.rand(32, 1, 8, 8)
    )  # running averages that are not those of a test batch
    options = tiny()
    assert len(digits.test.labels) == 359
    found = {}
    for size in (1000, 359, 100, 7):
        monkeypatch.setattr(training, "EVALUATION_BATCH", size)
        found[size] = evaluate(model, digits.test, options)
        assert found[size] == pytest.approx(found[1000], rel=1e-5)
    model.eval()
    logits = model(digits.test.images.float() / 127.5 - 1)
    losses = -logits.log_softmax(1)[range(359), digits.test.labels]
    hits = logits.argmax(1) == digits.test.labels
    assert found[1000] == pytest.approx(
        (losses.mean().item(), hits.float().mean().item())
    )


def test_evaluation_changes_nothing(digits, tiny):
    model = masktorch.wrap(
        experiment.build(tiny(), (1, 8, 8)), masktorch.Bernoulli(), init=0.1
    )
    before, stream = (
        [p.clone() for p in model.state_dict().values()],
        torch.get_rng_state(),
    )
    first = evaluate(model, digits.test, tiny())
    assert evaluate(model, digits.test, tiny()) == first
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(map(torch.equal, before, model.state_dict().values()))
    assert not model.training


def weights(state):
    return {
        name: value for name, value in state.items() if not name.endswith(".scores")
    }


def equal(a, b):
    return {name: torch.equal(a[name], b[name]) for name in a.keys() & b.keys()}


def states(found):
    """All but what a checkpoint says of itself."""
    return (
        (name, value)
        for name, value in found.items()
        if not name.endswith("_extra_state")
    )


@pytest.fixture
def watched(monkeypatch):
    """Every arm's state before and after training, and what of it may train."""
    seen = {}

    def train(model, data, configuration, *rest):
        before = {name: value.clone() for name, value in states(model.state_dict())}
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        history, best = training.train(model, data, configuration, *rest)
        after = {name: value.clone() for name, value in states(model.state_dict())}
        seen[configuration.seed, configuration.arm] = (
            before,
            after,
            dict(states(best)),
            trained,
        )
        return history, best

    monkeypatch.setattr(experiment, "train", train)
    return seen


@pytest.mark.parametrize("estimator", ["threshold", "bernoulli", "intermediate"])
@pytest.mark.parametrize("network", ["wrn", "lenet-300-100"])
def test_every_arm_trains_what_it_should(
    network, estimator, tiny, go, files_of, watched
):
    size = dict(depth=10, width=1) if network == "wrn" else {}
    options = tiny(network=network, estimator=estimator, lr=0.02, epochs=3, **size)
    results = go(options, BLOG_ARMS)
    w0 = experiment.build(options, (1, 8, 8)).state_dict()
    kernels = {n for n in w0 if "norm" not in n}
    norms = {n for n in w0 if "norm" in n and n.endswith(("weight", "bias"))}
    assert len(norms) == (14 if network == "wrn" else 0)

    before, after, mask_best, trained = watched[0, "mask"]
    scores = {n for n in before if n.endswith(".scores")}
    assert len(scores) == len(kernels)
    assert trained == scores | norms
    assert all(equal(w0, before).values())
    assert all(same == (n in kernels) for n, same in equal(w0, after).items())
    kernel_scores = {
        n: before[n] for n in scores if ".bias." not in n
    }  # biases are 0: no gradient
    assert not any(equal(kernel_scores, after).values())
    assert all((before[n] == 0.02).all() for n in scores)

    before, after, weights_best, trained = watched[0, "weights"]
    assert trained == kernels | norms
    assert before.keys() == w0.keys()
    assert all(equal(w0, before).values())
    assert not any(equal(w0, after).values())

    before, after, _, trained = watched[0, "mix"]
    assert trained == kernels | norms
    assert before.keys() == mask_best.keys()
    assert all(equal(before, mask_best).values())
    assert {n for n, same in equal(before, after).items() if same} == scores
    model = masktorch.wrap(experiment.build(options, (1, 8, 8)), bias=True)
    model.load_state_dict(after)
    dropped = 0
    for name, mask in masktorch.masks(model).items():
        assert torch.equal(after[name][~mask], w0[name][~mask])
        if mask.any():
            assert not torch.equal(after[name][mask], w0[name][mask])
        dropped += (~mask).sum().item()
    assert dropped > 100
    utilisation = results[2].utilisation
    assert (
        sum(round(layer.parameters * layer.masked) for layer in utilisation) == dropped
    )

    before, after, _, trained = watched[0, "weights-then-weights"]
    assert trained == kernels | norms
    assert all(equal(before, weights_best).values())
    assert not any(equal(before, after).values())

    # What a result reports as best is what its file holds.
    for result, arm in zip(results, BLOG_ARMS, strict=True):
        kept = torch.load(files_of(result).best_state, weights_only=True)
        kept = dict(states(kept))
        assert kept.keys() == watched[0, arm][2].keys()
        assert all(equal(kept, watched[0, arm][2]).values())


@pytest.mark.parametrize("arm", ARMS)
def test_the_best_state_is_the_best_epochs(
    arm, tiny, go, files_of, digits, monkeypatch
):
    """Where later epochs are worse or as good, the file has the best one's weights."""
    accuracies = itertools.cycle([0.1, 0.5, 0.3, 0.5])

    def staged(*arguments):
        return evaluate(*arguments)[0], next(accuracies)

    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", staged)
        needs_density = ARMS[arm].needs_density
        density = {"density": 0.5, "estimator": "topk"} if needs_density else {}
        result = go(tiny(epochs=4, lr=0.1, mix_lr=0.05, **density), [arm])[-1]
    # Only the last epoch of gradual pruning has the final density.
    assert result.best.epoch == (4 if arm == "gradual" else 2)
    model = experiment.build(result.configuration, (1, 8, 8))
    files = files_of(result)
    experiment.prepare_model(model, result.configuration, files.folder)
    model.load_state_dict(torch.load(files.best_state, weights_only=True))
    loss, _ = evaluate(model, digits.test, result.configuration)
    assert loss == pytest.approx(result.best.test_loss, rel=1e-6)
    assert len({epoch.test_loss for epoch in result.epochs}) == 4
    if (
        result.configuration.estimator
    ):  # the mask that is reported is the best epoch's as well
        assert result.utilisation == utilisation(model)


def test_seeds(tiny, go, watched, outcome, tmp_path):
    for seed in (0, 1):
        go(tiny(seed=seed), ["mask", "weights"], "both")
    starts = {key: weights(before) for key, (before, *_) in watched.items()}
    assert all(equal(starts[0, "mask"], starts[0, "weights"]).values())
    assert all(equal(starts[1, "mask"], starts[1, "weights"]).values())
    assert not equal(starts[0, "mask"], starts[1, "mask"])["hidden1.weight"]
    found = outcome(tmp_path / "both")
    assert len(found) == 4
    for arm in ("mask", "weights"):
        zero, one = (
            found[tiny(seed=seed).for_arm(arm).name][0]["epochs"] for seed in (0, 1)
        )
        assert all(
            a["train_loss"] != b["train_loss"] for a, b in zip(zero, one, strict=True)
        )


def test_arms_see_the_same_images(tiny, go, monkeypatch):
    """Arms from the initial weights do, the others see other ones; no epoch repeats."""
    seen = []
    scale = training.scale

    def watch(images, *rest):
        if images.dtype != torch.uint8:  # augmented: a training batch
            seen.append(images.sum((1, 2, 3)).tolist())
        return scale(images, *rest)

    monkeypatch.setattr(training, "scale", watch)
    go(tiny(estimator="bernoulli"), BLOG_ARMS)
    assert len(seen) == 4 * 2 * 4
    per_epoch = [seen[i : i + 4] for i in range(0, 32, 4)]
    mask, weight, mix, more = (per_epoch[i : i + 2] for i in range(0, 8, 2))
    assert mask == weight
    assert mix == more
    assert all(a != b for a, b in itertools.combinations([*mask, *mix], 2))


STOPS = {
    "first epoch": ("scale", 2),
    "middle of epoch 2": ("scale", 7),
    "evaluation of epoch 2": ("scale", 10),
    "last arm, epoch 2": ("scale", 27),
    "between arms": ("prepare_model", 2),
    "before the last arm": ("prepare_model", 3),
    "trained, nothing written": ("utilisation", 1),
    "mix trained, nothing written": ("utilisation", 2),
}


@pytest.mark.parametrize("estimator", ["threshold", "bernoulli"])
@pytest.mark.parametrize("stop", STOPS)
def test_resumed(stop, estimator, tiny, go, outcome, tmp_path, monkeypatch):
    options = tiny(estimator=estimator, lr=0.02)
    arms = ["mask", "weights", "mix"]
    go(options, arms, "whole")

    name, last = STOPS[stop]
    module = training if name == "scale" else experiment
    original, calls = getattr(module, name), itertools.count(1)

    def dying(*arguments):
        if next(calls) == last:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, dying)
        with pytest.raises(KeyboardInterrupt):
            go(options, arms, "stopped")
    assert next(calls) == last + 1
    assert len(read_results(tmp_path / "stopped")) < 3
    torch.manual_seed(1234)  # whatever the process that resumes has drawn before
    go(options, arms, "stopped")
    expected = outcome(tmp_path / "whole")
    assert len(expected) == 3
    assert outcome(tmp_path / "stopped") == expected
    names = {p.name for p in (tmp_path / "stopped").iterdir()}
    ends = {name.partition("-seed0.")[2] for name in names - {"results.jsonl"}}
    assert ends == {"best.pt", "masks.npz"}


def test_resumed_with_two_learning_rates(
    tiny, go, outcome, rates, tmp_path, monkeypatch
):
    options = tiny(network="wrn", depth=10, width=1, epochs=3, score_lr=0.1)
    go(options, ["mask"], "whole")
    original, calls = training.evaluate, itertools.count(1)

    def dying(*arguments):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", dying)
        with pytest.raises(KeyboardInterrupt):
            go(options, ["mask"], "stopped")
    go(options, ["mask"], "stopped")
    assert [list(groups) for groups in rates["mask"]] == [[1e-2, 0.1]] * 7
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


def test_resuming_does_not_train_again(tiny, go, monkeypatch):
    options = tiny(epochs=3)
    original, trained = training.train_epoch, []

    def dying(model, optimiser, split, configuration, epoch, compile_mode):
        trained.append(epoch)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return original(model, optimiser, split, configuration, epoch, compile_mode)

    monkeypatch.setattr(training, "train_epoch", dying)
    with pytest.raises(KeyboardInterrupt):
        go(options, ["weights"])
    go(options, ["weights"])
    assert trained == [1, 2, 3, 3]
    go(options, ["weights"])
    assert trained == [1, 2, 3, 3]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_killed(tiny, go, outcome, tmp_path):
    options = tiny(estimator="bernoulli", epochs=100, mix_lr=1e-5)
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "run",
        "--dataset",
        "digits",
        "--arms",
        "mask",
        "--network",
        "lenet-300-100",
        "--estimator",
        "bernoulli",
        "--init",
        "0.02",
        "--epochs",
        "100",
        "--batch-size",
        "16",
        "--train-images",
        "64",
        "--output",
        tmp_path / "killed",
    ]
    threads = str(torch.get_num_threads())  # sums depend on their number
    checkpoint = RunFiles(tmp_path / "killed", options.for_arm("mask")).checkpoint
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": threads},
        stderr=subprocess.PIPE,
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while not checkpoint.exists():
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.005)
        finally:
            process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    done = torch.load(checkpoint, weights_only=True)["history"]
    assert 1 <= len(done) < 100
    assert read_results(tmp_path / "killed") == []
    go(options, ["mask"], "killed")
    go(options, ["mask"], "whole")
    assert len(outcome(tmp_path / "whole")) == 1
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_repeated_as_a_whole(tiny, go, outcome, tmp_path):
    for folder in ("a", "b"):
        go(tiny(network="wrn", depth=10, width=1), ["mix"], folder)
    assert len(outcome(tmp_path / "a")) == 2  # mix and the arm it starts from
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")


def test_without_augmentation(tiny, go, monkeypatch):
    def forbidden(*arguments):
        raise AssertionError("augmented")

    (with_it,) = go(tiny(), ["weights"], "with")
    monkeypatch.setattr(training, "augment", forbidden)
    (without,) = go(tiny(augmentation=False), ["weights"], "without")
    assert without.configuration.augmentation is False
    assert without.last.train_loss < with_it.last.train_loss  # plain digits are easier
    with pytest.raises(AssertionError, match="augmented"):
        go(tiny(), ["weights"], "patched")


def test_bfloat16(tiny, go, files_of, monkeypatch):
    """The network computes in it; parameters, loss and numbers stay float32."""
    found, cross_entropy = set(), training.cross_entropy

    def watch(logits, labels):
        found.add(("logits", logits.dtype))
        return cross_entropy(logits, labels)

    monkeypatch.setattr(training, "cross_entropy", watch)
    build = experiment.build

    def hooked(*arguments):
        model = build(*arguments)
        model[-1].register_forward_hook(lambda m, i, out: found.add(("out", out.dtype)))
        return model

    monkeypatch.setattr(experiment, "build", hooked)
    small = dict(network="wrn", depth=10, width=1)
    (exact,) = go(tiny(**small), ["mask"], "float32")
    assert found == {("logits", torch.float32), ("out", torch.float32)}
    found.clear()
    (rough,) = go(tiny(precision="bfloat16", **small), ["mask"], "bfloat16")
    assert found == {("logits", torch.float32), ("out", torch.bfloat16)}
    assert rough.epochs[0].train_loss != exact.epochs[0].train_loss
    assert rough.epochs[0].train_loss == pytest.approx(
        exact.epochs[0].train_loss, rel=0.02
    )
    state = torch.load(files_of(rough, "bfloat16").best_state, weights_only=True)
    assert {v.dtype for _, v in states(state)} == {torch.float32, torch.int64}


def test_it_learns(tiny, go):
    options = tiny(
        epochs=6, train_images=None, augmentation=False, lr=1e-2, batch_size=64
    )
    mask, weight = go(options, ["mask", "weights"])
    assert weight.best.test_accuracy > 0.9
    assert mask.best.test_accuracy > 0.8
    assert mask.masked_fraction > 0.05


def test_adam_as_kerass(tiny, go, monkeypatch):
    made = []
    adam = torch.optim.Adam

    def watch(parameters, **settings):
        made.append(settings)
        return adam(parameters, **settings)

    monkeypatch.setattr(torch.optim, "Adam", watch)
    go(tiny(), ["mix"])
    assert [(s["lr"], s["eps"]) for s in made] == [(1e-2, 1e-7), (1e-3, 1e-7)]
    assert all(
        s.keys() <= {"lr", "eps", "fused"} for s in made
    )  # betas and decay: the defaults


def test_the_loss_of_uneven_batches(tiny, digits, monkeypatch):
    """Means over images, not over batches; the last batch is smaller here."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False)
    model[0].anchor = nn.Parameter(torch.zeros(()))
    data = Split(*(part[:40] for part in digits.train))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.0)
    monkeypatch.setattr(
        training,
        "cross_entropy",
        lambda logits, labels: (logits[:, 0] + model[0].anchor).mean(),
    )
    options = tiny(augmentation=False, batch_size=18)
    loss, accuracy = training.train_epoch(model, optimiser, data, options, 1)
    logits = model(data.images.float() / 127.5 - 1)
    assert loss == pytest.approx(logits[:, 0].mean().item(), rel=1e-4)
    assert accuracy == pytest.approx(
        (logits.argmax(1) == data.labels).float().mean().item()
    )


def test_the_command_of_a_result(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["__main__.py", "run", "--output", "a b"])
    assert command_line() == "python -m benchmarks run --output 'a b'"
