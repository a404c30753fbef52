"""The command line: what it explains, what it runs, what it says when something is wrong."""

import re
import shlex
from dataclasses import replace

import pytest

from benchmarks import __main__ as cli
from benchmarks.experiment.configuration import ARMS, Configuration
from benchmarks.studies.sweep import SWEEPS


@pytest.fixture
def asked(monkeypatch):
    """What `run` would have been asked to do."""
    calls = []
    monkeypatch.setattr(cli.experiment, "run", lambda *arguments: calls.append(arguments) or [])
    return calls


def test_help_names_every_command(call):
    code, text = call("--help")
    assert code == 0
    assert "Without a command: the demo" in text
    for command in ("demo", "run", "study", "table", "figures", "download"):
        assert re.search(rf"• {command} [A-Z]", text)


def test_help_of_run_explains_arms_and_options(call):
    _, text = call("run", "--help")
    for words in ("mask: scores train", "mix: weights train under the frozen mask", "auto: cuda"):
        assert words in text
    for field in Configuration.__dataclass_fields__:
        assert (f"--{field.replace('_', '-')} " in text.replace(",", " ")) == (field != "arm")
    assert all(f"{arm}:" in text or f"{arm}," in text for arm in ARMS)


def test_defaults_of_run_are_the_blogs(asked, call):
    assert call("run", "--dataset", "cifar10")[0] == 0
    ((options, arms, data_dir, output, device, _),) = asked
    assert options == Configuration(
        "cifar10", network="wrn", depth=28, width=8, estimator="threshold", init=None, epochs=30,
        batch_size=128, lr=1e-2, mix_lr=1e-5, seed=0, precision="float32",
    )  # fmt: skip
    assert options == Configuration("cifar10")
    assert arms == ["mask", "weights", "mix"]
    assert (str(data_dir), str(output), device) == ("data", "runs", "auto")


def test_every_option_of_run_arrives(asked, call):
    text = (
        "run --dataset mnist --arms mask,weights-then-weights --estimator intermediate --init 0.5 "
        "--network lenet-300-100 --depth 16 --width 2 --epochs 3 --batch-size 64 --lr 0.1 "
        "--mix-lr 0.2 --seed 7 --precision bfloat16 --train-images 99 --faithful-scaling "
        "--score-lr 0.3 --held-out 50 --rescale --weights signed-constant --no-augmentation "
        "--density 0.2 --budget erk --schedule-density cubic --image-size 14 "
        "--schedule cosine --device cuda:1 --data-dir d --output o"
    )
    assert call(*text.split())[0] == 0
    ((options, arms, *rest),) = asked
    assert options == Configuration(
        "mnist", network="lenet-300-100", depth=16, width=2, estimator="intermediate", init=0.5,
        epochs=3, batch_size=64, lr=0.1, mix_lr=0.2, seed=7, precision="bfloat16",
        train_images=99, faithful_scaling=True, score_lr=0.3, held_out=50,
        rescale=True, weights="signed-constant", schedule="cosine", augmentation=False,
        density=0.2, budget="erk", schedule_density="cubic", image_size=14,
    )  # fmt: skip
    assert arms == ["mask", "weights-then-weights"]
    assert [str(argument) for argument in rest[:3]] == ["d", "o", "cuda:1"]
    assert rest[3] == f"python -m benchmarks {text}"


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
        ("run --dataset digits --arms mask,mox", "error: --arms: 'mox' is no arm; choose from ma"),
        ("run --dataset digits --epochs 0", "error: --epochs must be at least 1; found 0"),
        ("run --dataset mnist --data-dir nowhere", "error: No mnist files"),
        ("run --dataset digits --depth 11", "error: The depth of a wide residual network"),
        ("table nowhere", "error: nowhere holds no result"),
        ("figures nowhere", "error: nowhere holds no result"),
        ("study nothing", "error: No study is called 'nothing'. Choose one of: blog-small, which-"),
    ],
)
def test_errors_are_messages_not_tracebacks(tmp_path, monkeypatch, call, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _ = call(*arguments.split())
    assert code.startswith(message)


def test_without_a_command_it_is_the_demo(tmp_path, monkeypatch, call):
    tiny = replace(
        cli.DEMO, network="lenet-300-100", depth=None, width=None, epochs=1, train_images=64
    )
    monkeypatch.setattr(cli, "DEMO", tiny)
    monkeypatch.chdir(tmp_path)
    code, text = call()
    assert code == 0
    assert "made small" in text
    assert "| mask |" in text
    assert "figures are in runs/demo" in text
    names = {path.name for path in (tmp_path / "runs" / "demo").iterdir()}
    stems = [tiny.for_arm(arm).name for arm in cli.DEMO_ARMS]
    title = "digits-lenet-300-100-threshold"
    assert names == {
        *(f"{stem}.{end}" for end in ("json", "best.pt") for stem in stems),
        f"{stems[0]}.masks.npz", "table.md", f"curves-{title}.png", f"utilisation-{title}.png",
    }  # fmt: skip
    assert "| mask |" in (tmp_path / "runs" / "demo" / "table.md").read_text()
    again, text = call()
    assert again == 0
    assert text.count("skipped") == len(cli.DEMO_ARMS)


def test_the_demo_says_what_is_smaller():
    demo = cli.DEMO
    assert f"WRN-{demo.depth}-{demo.width}" in cli.DEMO_TEXT
    assert f"of {demo.batch_size}" in cli.DEMO_TEXT
    assert f"{demo.epochs}\nepochs per arm" in cli.DEMO_TEXT
    blog = Configuration("digits")
    assert demo == replace(blog, depth=10, width=1, batch_size=32, mix_lr=1e-3)


@pytest.mark.parametrize("which", SWEEPS)
def test_sweep_passes_its_options_on(which, monkeypatch, call):
    calls = []
    monkeypatch.setattr(cli.sweep, "sweep", lambda *arguments: calls.append(arguments) or "there")
    monkeypatch.setattr(cli.sweeps, "markdown", "| table of {} |".format)
    line = f"sweep --which {which} --data-dir d --output o"
    assert call(*shlex.split(line)) == (0, "| table of there | Written to there ")
    assert [*map(str, calls[0])] == [which, "d", "o", f"python -m benchmarks {line}"]


def test_download_passes_its_options_on(monkeypatch, call):
    calls = []
    monkeypatch.setattr(cli, "fetch", lambda *arguments: calls.append(arguments) or "there")
    code, text = call("download", "mnist", "--data-dir", "d", "--base-url", "u/")
    assert (code, text) == (0, "mnist is in there ")
    assert [str(argument) for argument in calls[0]] == ["mnist", "d", "u/"]
