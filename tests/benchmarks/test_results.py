"""Results, one line each; and the blog's numbers, which they are compared with."""

import json
import multiprocessing
import os
import re
import subprocess
from dataclasses import asdict, fields, replace

import pytest
import torch

import masktorch
from benchmarks import BenchmarkError
from benchmarks.experiment.arms import ARMS
from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.results import (
    Layer,
    Result,
    append_result,
    find_result,
    group_by_seed,
    masked_fraction,
    read_results,
    results_file,
)
from benchmarks.experiment.training import Epoch
from benchmarks.files import append_line, environment, read_lines, replacing
from benchmarks.pages.comparison import Experiment, published_numbers


def result(arm="mask", seed=0, test=(0.5, 0.75, 0.625), **changes):
    settings = {"dataset": "mnist", **changes}
    configuration = replace(
        Configuration(**settings), seed=seed, epochs=len(test)
    ).for_arm(arm)
    layers = [Layer("stem", 100, 0.5), Layer("classifier", 300, 0.1 + 0.1 * seed)]
    published = published_numbers(configuration.dataset)
    if configuration.network_name == "wrn-28-8":
        layers = [
            replace(layer, masked=0.5 * layer.masked) for layer in published["layers"]
        ]
    return Result(
        configuration=configuration,
        estimator="Threshold(tau=0.5)" if configuration.estimator else None,
        epochs=[
            Epoch(n, 1e-2, 1 / n, 0.9 * a, 1.1 / n, a, 30.0)
            for n, a in enumerate(test, start=1)
        ],
        utilisation=layers if configuration.estimator else [],
        environment={"processor": "Abacus", "torch": "2", "masktorch": "0"},
        command=f"python -m benchmarks run --seed {seed}",
    )


def save(folder, *results):
    for r in results:
        append_result(r, folder)
    return folder


def test_a_results_schema(tiny, go, files_of, tmp_path):
    mask, weights = go(tiny(seed=3), ["mask", "weights"])
    changes = "epochs=2-batch_size=16-train_images=64-seed3.best.pt"
    name = f"digits-lenet-300-100-mask-threshold-init=0.02-{changes}"
    assert files_of(mask).best_state.name == name
    assert (
        files_of(weights).best_state.name == f"digits-lenet-300-100-weights-{changes}"
    )
    lines = (tmp_path / "runs" / "results.jsonl").read_text().splitlines()
    content, plain = map(json.loads, lines)
    assert content.keys() == {
        "configuration",
        "estimator",
        "epochs",
        "utilisation",
        "environment",
        "command",
        "best",
        "last",
        "wall_seconds",
        "masked_fraction",
        "recalibrated",
    }
    assert content["configuration"] == {
        "dataset": "digits",
        "arm": "mask",
        "network": "lenet-300-100",
        "depth": None,
        "width": None,
        "estimator": "threshold",
        "init": 0.02,
        "epochs": 2,
        "batch_size": 16,
        "lr": 1e-2,
        "score_lr": None,
        "mix_lr": None,
        "seed": 3,
        "precision": "float32",
        "train_images": 64,
        "held_out": None,
        "faithful_scaling": False,
        "augmentation": True,
        "weights": "glorot",
        "rescale": False,
        "schedule": "plateau",
        "image_size": None,
        "density": None,
        "budget": "none",
        "schedule_density": "none",
    }
    assert content["estimator"] == "Threshold(tau=0.5)"
    assert [e["epoch"] for e in content["epochs"]] == [1, 2]
    for e in content["epochs"]:
        assert e.keys() == {
            "epoch",
            "lr",
            "train_loss",
            "train_accuracy",
            "test_loss",
            "test_accuracy",
            "seconds",
        }
        assert 0 <= e["train_accuracy"] <= 1
        assert 0 < e["seconds"] < 60
    assert content["best"] in content["epochs"]
    assert content["last"] == content["epochs"][-1]
    assert content["wall_seconds"] == sum(e["seconds"] for e in content["epochs"])
    sizes = {layer["layer"]: layer["parameters"] for layer in content["utilisation"]}
    assert sizes == {
        "hidden1": 64 * 300 + 300,
        "hidden2": 300 * 100 + 100,
        "classifier": 1010,
    }
    masked = sum(
        layer["parameters"] * layer["masked"] for layer in content["utilisation"]
    )
    assert content["masked_fraction"] == pytest.approx(masked / sum(sizes.values()))
    assert 0 < content["masked_fraction"] < 1
    origin = content["environment"]
    assert (origin["masktorch"], origin["torch"]) == (
        masktorch.__version__,
        torch.__version__,
    )
    assert origin["device"] == "cpu"
    assert origin["threads"] == torch.get_num_threads()
    assert origin["processor"]
    assert origin["commit"] is None or re.fullmatch(r"[0-9a-f]{40}", origin["commit"])
    assert origin["dirty"] in (None, True, False)
    assert content["command"] == "made so"
    assert content["recalibrated"] is None  # no batch norm

    assert plain["utilisation"] == []
    assert plain["masked_fraction"] is None
    assert plain["estimator"] is None
    assert plain["configuration"]["estimator"] is None
    assert plain["configuration"]["init"] is None


def test_without_git(tiny, go, monkeypatch):
    monkeypatch.setenv("PATH", "")
    origin = go(tiny(), ["weights"])[0].environment
    assert (origin["commit"], origin["dirty"]) == (None, None)


@pytest.mark.parametrize("arm", ARMS)
def test_read_what_was_written(arm, tmp_path):
    written = result(arm)
    append_result(written, tmp_path / "a")
    assert read_results(tmp_path / "a") == [written]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["results.jsonl"]


def test_best_last_and_masked():
    r = result(test=(0.5, 0.75, 0.625, 0.75), network="lenet-300-100")
    assert (r.best.epoch, r.last.epoch) == (2, 4)
    assert r.masked_fraction == pytest.approx((50 + 30) / 400)
    assert r.wall_seconds == 120


class StopError(Exception):
    pass


def test_a_failure_while_writing_leaves_the_old(tmp_path, monkeypatch):
    path = tmp_path / "file"
    for text in ("old", "new"):
        with replacing(path) as partial:
            partial.write_text(text)
    assert path.read_text() == "new"

    def broken():
        with replacing(path) as partial:
            partial.write_text("ne")
            raise StopError

    with pytest.raises(StopError):
        broken()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "new"

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"), replacing(path) as partial:
        partial.write_text("newer")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "new"


def test_a_failure_while_appending_leaves_the_old(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    append_line("first", path)

    def full(descriptor):  # after the line is written
        assert path.read_text() == "first\nsecond\n"
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            append_line("second", path)
    assert path.read_text() == "first\n"
    append_line("third", path)
    assert read_lines(path) == ["first", "third"]


def test_what_a_killed_writer_left_is_no_line(tmp_path):
    path = tmp_path / "lines"
    append_line("first", path)
    with path.open("a") as file:
        file.write('{"half": ')
    assert read_lines(path) == ["first"]
    append_line("second", path)
    assert path.read_text() == "first\nsecond\n"


def append_many(path, name, start):
    start.wait()
    for number in range(200):
        append_line(f"{name} {number} " + "x" * 2_000, path)


def test_processes_append_to_one_file(tmp_path):
    """Each line whole, and each writer's lines in its order."""
    context, path = multiprocessing.get_context("spawn"), tmp_path / "lines"
    start = context.Barrier(2)
    writers = [
        context.Process(target=append_many, args=(path, name, start)) for name in "ab"
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    lines = [line.split(" ") for line in read_lines(path)]
    assert {len(filling) for _, _, filling in lines} == {2_000}
    for name in "ab":
        assert [int(n) for writer, n, _ in lines if writer == name] == list(range(200))


def append_when_ready(path, ready):
    ready.set()
    append_line("late", path)


def test_appending_waits_for_the_lock(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    context, path = multiprocessing.get_context("spawn"), tmp_path / "lines"
    ready = context.Event()
    writer = context.Process(target=append_when_ready, args=(path, ready))
    with path.open("a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        writer.start()
        assert ready.wait(120)
        writer.join(1)
        assert writer.is_alive()
        assert path.stat().st_size == 0
    writer.join()
    assert read_lines(path) == ["late"]


def test_a_run_that_was_made_twice_counts_once(tmp_path):
    """Two machines can make it, and a merge keeps the lines of both."""
    first, again = result(test=(0.5, 0.6)), result(test=(0.5, 0.7))
    save(tmp_path, first, result(seed=1), again)
    assert read_results(tmp_path) == [first, result(seed=1)]
    assert find_result(tmp_path, again.configuration) == first
    assert find_result(tmp_path, result(seed=2).configuration) is None


def test_results_do_not_make_a_checkout_dirty(tmp_path, monkeypatch):
    """A run appends to a file in git; only other changes make the checkout dirty."""

    def git(*arguments):
        subprocess.run(
            ["git", "-C", tmp_path, *arguments], check=True, capture_output=True
        )

    results, code = (
        tmp_path / "benchmarks/results/s/results.jsonl",
        tmp_path / "code.py",
    )
    results.parent.mkdir(parents=True)
    results.touch()
    code.touch()
    git("init")
    git("add", ".")
    identity = "-c", "user.name=a", "-c", "user.email=a@b"
    git(*identity, "commit", "-m", "all")
    monkeypatch.setattr(
        "benchmarks.files.__file__", str(tmp_path / "benchmarks/files.py")
    )
    results.write_text("a line")
    assert environment(torch.device("cpu"))["dirty"] is False
    code.write_text("changed")
    assert environment(torch.device("cpu"))["dirty"] is True


def test_states_are_written_whole_and_before_the_result(
    tiny, go, tmp_path, monkeypatch
):
    """No state appears under its own name but by a replace."""
    moved, replace_file = [], os.replace

    def watch(source, target):
        moved.append(os.path.basename(target))
        assert os.path.dirname(source) == os.path.dirname(target)
        assert not os.path.exists(target) or target.name.endswith(".checkpoint.pt")
        assert read_results(tmp_path / "runs") == []
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", watch)
    go(tiny(), ["weights"])
    name = tiny().for_arm("weights").name
    assert moved == [f"{name}.checkpoint.pt"] * 2 + [f"{name}.best.pt"]
    assert len(read_results(tmp_path / "runs")) == 1


def test_a_finished_arm_is_skipped(tiny, go, tmp_path, capsys, monkeypatch):
    results = go(tiny(), ["mask", "weights"])
    before = {
        p.name: (p.stat().st_mtime_ns, p.read_bytes())
        for p in (tmp_path / "runs").iterdir()
    }
    capsys.readouterr()
    assert go(tiny(), ["mask", "weights"]) == results
    path = tmp_path / "runs" / "results.jsonl"
    assert f"weights: skipped, its result is in {path}" in capsys.readouterr().out
    after = {
        p.name: (p.stat().st_mtime_ns, p.read_bytes())
        for p in (tmp_path / "runs").iterdir()
    }
    assert after == before
    assert (
        go(tiny(mix_lr=0.5), ["mask", "weights", "mix"])[:2] == results
    )  # no field of theirs


OTHERS = [
    ("epochs", 3),
    ("batch_size", 8),
    ("lr", 0.5),
    ("init", None),
    ("init", "normal"),
    ("precision", "bfloat16"),
    ("train_images", 65),
    ("augmentation", False),
    ("image_size", 4),
]


@pytest.mark.parametrize(("field", "value"), OTHERS)
def test_another_configuration_has_another_result(field, value, tiny, go, files_of):
    """Its own line and its own states; those that are there stay as they are."""
    (result,) = go(tiny(), ["mask"])
    files = files_of(result)
    line, state = results_file(files.folder).read_text(), files.best_state.read_bytes()
    (other,) = go(tiny(**{field: value}), ["mask"])
    assert getattr(other.configuration, field) == value
    assert files_of(other).best_state != files.best_state
    assert files_of(other).checkpoint != files.checkpoint
    assert results_file(files.folder).read_text().startswith(line)
    assert read_results(files.folder) == [result, other]
    assert files.best_state.read_bytes() == state


def test_old_results_load(tmp_path):
    """They lack newer fields, and have None for `rescale` without a mask."""
    for arm in ("mask", "weights"):
        written = result(arm)
        content = json.loads(written.to_json())
        for name in ("image_size", "density", "budget", "schedule_density"):
            del content["configuration"][name]
        del content["recalibrated"]
        content["configuration"]["rescale"] = False if arm == "mask" else None
        append_line(json.dumps(content), results_file(tmp_path))
        assert find_result(tmp_path, written.configuration) == written


def test_every_field_is_compared():
    one = Configuration("digits")
    for field in fields(Configuration):
        assert list(one.changes(replace(one, **{field.name: "other"}))) == [field.name]
    assert one.changes(replace(one)) == {}


def test_the_state_an_arm_starts_from_is_missing(tiny, go, files_of):
    best = files_of(go(tiny(), ["mask"])[0]).best_state
    best.unlink()
    message = (
        f"{best} is missing: the arm mix starts from it. Copy it there, or run with "
        f"another --output folder, which trains the arm mask again."
    )
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        go(tiny(), ["mix"])


FOREIGN = [
    "",
    "{",
    "[]",
    "3",
    "null",
    '"x"',
    "{}",
    '{"configuration": {}}',
    '{"name": "package.json"}',
    json.dumps(
        {**asdict(result()), "configuration": {"dataset": "mnist", "colour": 1}}
    ),
    json.dumps({**asdict(result()), "epochs": [{"epoch": 1}]}),
    json.dumps({k: v for k, v in asdict(result()).items() if k != "command"}),
]


@pytest.mark.parametrize("content", FOREIGN, ids=range(len(FOREIGN)))
def test_a_foreign_line(content, tmp_path):
    path = results_file(save(tmp_path, result()))
    append_line(content, path)
    message = (
        f"{path}, line 2: expected a result of `python -m benchmarks run`, "
        "found something else ("
    )
    with pytest.raises(BenchmarkError, match=re.escape(message)) as raised:
        read_results(tmp_path)
    assert str(raised.value).endswith("). Remove that line.")


def test_no_results(tmp_path, call):
    assert read_results(tmp_path) == read_results(tmp_path / "nowhere") == []
    message = (
        f"error: {tmp_path} holds no result (results.jsonl). Make some with "
        "`python -m benchmarks run"
    )
    assert call("show", tmp_path)[0].startswith(message)


@pytest.mark.parametrize(
    ("changes", "comparable"),
    [
        ({}, True),
        ({"depth": 10, "width": 1}, True),
        ({"network": "lenet-300-100"}, False),
    ],
)
def test_comparable(changes, comparable):
    assert (
        bool(Experiment("s", group_by_seed([result(**changes)])).published)
        is comparable
    )


def test_the_blogs_numbers():
    assert published_numbers("digits") == {}
    found = {
        (dataset, arm): (numbers["best_val"][arm], numbers["final_val"][arm])
        for dataset in ("mnist", "cifar10")
        for numbers in [published_numbers(dataset)]
        for arm in numbers["accuracy"]
    }
    protocol = {
        ("mnist", "mask"): (0.991, 0.991),
        ("mnist", "weights"): (0.991, 0.991),
        ("mnist", "mix"): (0.994, 0.993),
        ("cifar10", "mask"): (0.83, 0.80),
        ("cifar10", "weights"): (0.87, 0.87),
        ("cifar10", "mix"): (0.907, 0.904),
    }
    assert found.keys() == protocol.keys()
    for key, (best, last) in protocol.items():
        assert found[key] == pytest.approx((best, last), abs=0.006), key
    for dataset in ("mnist", "cifar10"):
        curves = published_numbers(dataset)["accuracy"].values()
        assert all(len(c["train"]) == len(c["val"]) == 30 for c in curves)


def test_masked_fraction():
    assert masked_fraction([Layer("a", 1, 1.0), Layer("b", 3, 0.0)]) == 0.25
