"""The command line: its help, what it runs, its errors."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import Location
from benchmarks import __main__ as cli
from benchmarks.experiment import data as download
from benchmarks.experiment.arms import ARMS
from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.results import Result, append_result, read_results
from benchmarks.experiment.training import Epoch
from benchmarks.pages.render import render
from benchmarks.studies import catalogue


@pytest.fixture
def asked(monkeypatch):
    """What `run` would have been asked to do."""
    calls = []
    monkeypatch.setattr(
        cli.runner, "run", lambda *arguments: calls.append(arguments) or []
    )
    return calls


def test_help_names_every_command(call):
    code, text = call("--help")
    assert code == 0
    assert "Without a command: the demo" in text
    for command in ("demo", "run", "study", "show", "download"):
        assert re.search(rf"• {command} [A-Z]", text)


def test_help_of_run_explains_arms_and_options(call):
    _, text = call("run", "--help")
    for words in (
        "mask: scores train",
        "mix: weights train under the frozen mask",
        "auto: cuda",
        "digits come with scikit-learn",
        "Images per step",
        "Average the images",
        "from -1 to 509",
        "Flip, rotate and shift",
    ):
        assert words in text
    for field in Configuration.__dataclass_fields__:
        assert (f"--{field.replace('_', '-')} " in text.replace(",", " ")) == (
            field != "arm"
        )
    assert all(f"{arm}:" in text or f"{arm}," in text for arm in ARMS)


def test_defaults_of_run_are_the_blogs(asked, call):
    assert call("run", "--dataset", "cifar10")[0] == 0
    ((options, arms, location, _),) = asked
    assert options == Configuration(
        "cifar10",
        network="wrn",
        depth=28,
        width=8,
        estimator="threshold",
        init=None,
        epochs=30,
        batch_size=128,
        lr=1e-2,
        mix_lr=1e-5,
        seed=0,
        precision="float32",
    )
    assert options == Configuration("cifar10")
    assert arms == ["mask", "weights", "mix"]
    assert location == Location(Path("data"), Path("runs"), "auto")


def test_every_option_of_run_arrives(asked, call):
    text = (
        "run --dataset mnist --arms mask,weights-then-weights --estimator intermediate "
        "--init 0.5 --network lenet-300-100 --depth 16 --width 2 --epochs 3 "
        "--batch-size 64 --lr 0.1 --mix-lr 0.2 --seed 7 --precision bfloat16 "
        "--train-images 99 --faithful-scaling --score-lr 0.3 --held-out 50 --rescale "
        "--weights signed-constant --no-augmentation "
        "--density 0.2 --budget erk --schedule-density cubic --image-size 14 "
        "--schedule cosine --device cuda:1 --data-dir d --output o --compile default"
    )
    assert call(*text.split())[0] == 0
    ((options, arms, location, command),) = asked
    assert options == Configuration(
        "mnist",
        network="lenet-300-100",
        depth=16,
        width=2,
        estimator="intermediate",
        init=0.5,
        epochs=3,
        batch_size=64,
        lr=0.1,
        mix_lr=0.2,
        seed=7,
        precision="bfloat16",
        train_images=99,
        faithful_scaling=True,
        score_lr=0.3,
        held_out=50,
        rescale=True,
        weights="signed-constant",
        schedule="cosine",
        augmentation=False,
        density=0.2,
        budget="erk",
        schedule_density="cubic",
        image_size=14,
    )
    assert arms == ["mask", "weights-then-weights"]
    assert location == Location(Path("d"), Path("o"), "cuda:1", "default")
    assert command == f"python -m benchmarks {text}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run", "Missing from python -m benchmarks run: --dataset"),
        ("run --dataset svhn", "invalid choice 'svhn' for argument '--dataset'"),
        ("run --dataset digits --epochs many", "--epochs"),
        ("run --dataset digits --colour red", "--colour"),
        ("dance", "dance"),
    ],
)
def test_wrong_use(asked, call, arguments, message):
    code, text = call(*arguments.split())
    assert code == 2
    assert message in text
    assert asked == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "run --dataset digits --arms mask,mox",
            "error: --arms: expected mask, weights, mix",
        ),
        (
            "run --dataset mnist --data-dir nowhere",
            "error: nowhere/MNIST/raw/train-images",
        ),
        (
            "run --dataset digits --depth 11",
            "error: The depth of a wide residual network",
        ),
        ("show nowhere", "error: nowhere holds no result"),
        ("study nothing", "error: study: expected blog-small, which-"),
    ],
)
def test_errors_are_messages_not_tracebacks(
    tmp_path, monkeypatch, call, arguments, message
):
    monkeypatch.chdir(tmp_path)
    code, _ = call(*arguments.split())
    assert code.startswith(message)


def test_without_a_command_it_is_the_demo(tmp_path, monkeypatch, call):
    tiny = replace(
        catalogue.SMALL,
        network="lenet-300-100",
        depth=None,
        width=None,
        epochs=1,
        train_images=64,
    )
    monkeypatch.setattr(catalogue, "SMALL", tiny)
    monkeypatch.chdir(tmp_path)
    code, text = call()
    assert code == 0
    assert "made small" in text
    for arm in ("mask", "weights", "mix", "weights-then-weights"):
        assert re.search(rf" {arm} 1 \d+\.\d\d ", text)
    assert re.search(
        r"Is a mask a better start\? .*: after 1 epochs more, weights under", text
    )
    assert "Drawn: runs/demo/demo.png" in text
    folder = tmp_path / "runs" / "demo"
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")
    results = folder / "results.jsonl"
    time, content = results.stat().st_mtime_ns, results.read_bytes()
    assert len(read_results(folder)) == 4
    assert call()[0] == 0
    assert (results.stat().st_mtime_ns, results.read_bytes()) == (time, content)


def test_the_demo_says_what_is_smaller():
    text = render("demo_start.txt", run=catalogue.SMALL.for_arm("mix"))
    for words in (
        "a WRN-10-1 here",
        "of 128 are of 32",
        "is 0.001",
        "30 epochs an arm",
    ):
        assert words in text
    assert (
        replace(Configuration("digits"), depth=10, width=1, batch_size=32, mix_lr=1e-3)
        == catalogue.SMALL
    )


@pytest.mark.parametrize(
    ("right", "answer"),
    [
        (0.95, "Yes, in this run"),
        (0.80, "No, in this run"),
        (0.90, "This run cannot tell"),
    ],
)
def test_the_demos_answer(right, answer, tmp_path):
    """The two are apart where a normal interval of two shares of 359 images says so."""
    accuracies = {
        "mask": 0.5,
        "weights": 0.7,
        "mix": right,
        "weights-then-weights": 0.88,
    }
    found = [
        Result(
            configuration=catalogue.SMALL.for_arm(arm),
            estimator=None,
            environment={},
            command="",
            epochs=[Epoch(1, 0.1, 1, 1, 1, accuracy, 1)],
            utilisation=[],
        )
        for arm, accuracy in accuracies.items()
    ]
    for each in found:
        append_result(each, tmp_path)
    text = cli.show(tmp_path)
    assert f"Is a mask a better start? {answer}: after 1 epochs more" in text
    chance = 196 * ((right * (1 - right) + 0.88 * 0.12) / 359) ** 0.5
    assert f"less than {chance:.1f} points" in text


def test_download_passes_its_options_on(monkeypatch, call, tmp_path):
    calls = []
    monkeypatch.setattr(
        download, "_fetch", lambda url, path: calls.append((url, path)) or path.touch()
    )
    monkeypatch.setitem(download.MD5, "mnist", {})
    monkeypatch.setitem(download.MD5, "cifar10", {"batch": "md5"})
    assert call("download", "mnist", "--data-dir", tmp_path) == (
        0,
        f"Written to {tmp_path / 'MNIST' / 'raw'} ",
    )
    code, _ = call("download", "cifar10", "--data-dir", tmp_path, "--base-url", "u/")
    assert (
        "batch: expected the file that was published, with MD5 md5, found [Errno 2]"
        in code
    )
    assert calls == [("u/cifar-10-python.tar.gz", tmp_path / "cifar-10-python.tar.gz")]
