"""Result files, and the numbers of the blog that stand beside them."""

import json
import os
import re
from dataclasses import asdict, fields, replace

import pytest
import torch

import masktorch
from benchmarks import BenchmarkError
from benchmarks.experiment.configuration import ARMS, Configuration
from benchmarks.experiment.results import (
    Layer,
    Result,
    grouped,
    masked_share,
    read_results,
)
from benchmarks.experiment.training import Epoch
from benchmarks.files import replacing
from benchmarks.pages.comparison import Experiment, blog


def result(arm="mask", seed=0, test=(0.5, 0.75, 0.625), **changes):
    settings = {"dataset": "mnist", **changes}
    configuration = replace(Configuration(**settings), seed=seed, epochs=len(test)).for_arm(arm)
    layers = [Layer("stem", 100, 0.5), Layer("classifier", 300, 0.1 + 0.1 * seed)]
    published = blog(configuration.dataset)
    if configuration.network_name == "wrn-28-8":
        layers = [replace(layer, masked=0.5 * layer.masked) for layer in published["layers"]]
    return Result(
        configuration=configuration,
        estimator="Threshold(tau=0.5)" if configuration.estimator else None,
        epochs=[
            Epoch(n, 1e-2, 1 / n, 0.9 * a, 1.1 / n, a, 30.0) for n, a in enumerate(test, start=1)
        ],
        utilisation=layers if configuration.estimator else [],
        environment={"processor": "Abacus", "torch": "2", "masktorch": "0"},
        command=f"python -m benchmarks run --seed {seed}",
    )


def save(folder, *results):
    for r in results:
        r.write(folder / f"{r.configuration.name}.json")
    return folder


def test_a_results_schema(tiny, go):
    mask, weights = go(tiny(seed=3), ["mask", "weights"])
    changes = "epochs=2-batch_size=16-train_images=64-seed3.json"
    assert mask.name == f"digits-lenet-300-100-mask-threshold-init=0.02-{changes}"
    assert weights.name == f"digits-lenet-300-100-weights-{changes}"
    content = json.loads(mask.read_text())
    assert content.keys() == {
        "configuration", "estimator", "epochs", "utilisation", "environment", "command",
        "best", "last", "wall_seconds", "masked_fraction", "recalibrated",
    }  # fmt: skip
    assert content["configuration"] == {
        "dataset": "digits", "arm": "mask", "network": "lenet-300-100", "depth": None,
        "width": None, "estimator": "threshold", "init": 0.02, "epochs": 2, "batch_size": 16,
        "lr": 1e-2, "score_lr": None, "mix_lr": None, "seed": 3, "precision": "float32",
        "train_images": 64, "held_out": None, "faithful_scaling": False, "augmentation": True,
        "weights": "glorot", "rescale": False, "schedule": "plateau", "image_size": None,
        "density": None, "budget": "none", "schedule_density": "none",
    }  # fmt: skip
    assert content["estimator"] == "Threshold(tau=0.5)"
    assert [e["epoch"] for e in content["epochs"]] == [1, 2]
    for e in content["epochs"]:
        assert e.keys() == {
            "epoch", "lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds"
        }  # fmt: skip
        assert 0 <= e["train_accuracy"] <= 1
        assert 0 < e["seconds"] < 60
    assert content["best"] in content["epochs"]
    assert content["last"] == content["epochs"][-1]
    assert content["wall_seconds"] == sum(e["seconds"] for e in content["epochs"])
    sizes = {layer["layer"]: layer["parameters"] for layer in content["utilisation"]}
    assert sizes == {"hidden1": 64 * 300 + 300, "hidden2": 300 * 100 + 100, "classifier": 1010}
    masked = sum(layer["parameters"] * layer["masked"] for layer in content["utilisation"])
    assert content["masked_fraction"] == pytest.approx(masked / sum(sizes.values()))
    assert 0 < content["masked_fraction"] < 1
    origin = content["environment"]
    assert (origin["masktorch"], origin["torch"]) == (masktorch.__version__, torch.__version__)
    assert origin["device"] == "cpu"
    assert origin["threads"] == torch.get_num_threads()
    assert origin["processor"]
    assert origin["commit"] is None or re.fullmatch(r"[0-9a-f]{40}", origin["commit"])
    assert origin["dirty"] in (None, True, False)
    assert content["command"] == "made so"
    assert content["recalibrated"] is None  # no batch norm

    plain = json.loads(weights.read_text())
    assert plain["utilisation"] == []
    assert plain["masked_fraction"] is None
    assert plain["estimator"] is None
    assert plain["configuration"]["estimator"] is None
    assert plain["configuration"]["init"] is None


def test_without_git(tiny, go, monkeypatch):
    monkeypatch.setenv("PATH", "")
    origin = Result.read(go(tiny(), ["weights"])[0]).environment
    assert (origin["commit"], origin["dirty"]) == (None, None)


@pytest.mark.parametrize("arm", ARMS)
def test_read_what_was_written(arm, tmp_path):
    written = result(arm)
    written.write(tmp_path / "a" / "r.json")
    assert Result.read(tmp_path / "a" / "r.json") == written
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["r.json"]


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
    with pytest.raises(OSError, match="No space left"):
        result().write(path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "new"


def test_results_and_checkpoints_are_written_whole(tiny, go, monkeypatch):
    """Nothing appears under its own name but by a replace."""
    moved, replace_file = [], os.replace

    def watch(source, target):
        moved.append(os.path.basename(target))
        assert os.path.dirname(source) == os.path.dirname(target)
        assert not os.path.exists(target) or target.name.endswith(".checkpoint.pt")
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", watch)
    go(tiny(), ["weights"])
    name = tiny().for_arm("weights").name
    assert moved == [f"{name}.checkpoint.pt"] * 2 + [f"{name}.best.pt", f"{name}.json"]


def test_a_finished_arm_is_skipped(tiny, go, tmp_path, capsys, monkeypatch):
    paths = go(tiny(), ["mask", "weights"])
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "runs").iterdir()}
    capsys.readouterr()
    assert go(tiny(), ["mask", "weights"]) == paths
    assert f"weights: skipped, {paths[1]} is there already" in capsys.readouterr().out
    after = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "runs").iterdir()}
    assert after == before
    assert go(tiny(mix_lr=0.5), ["mask", "weights", "mix"])[:2] == paths  # no field of theirs


OTHERS = [
    ("epochs", 3), ("batch_size", 8), ("lr", 0.5), ("init", None), ("init", "normal"),
    ("precision", "bfloat16"), ("train_images", 65), ("augmentation", False), ("image_size", 4),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), OTHERS)
def test_another_configuration_has_another_file(field, value, tiny, go):
    (path,) = go(tiny(), ["mask"])
    content = path.read_bytes()
    (other,) = go(tiny(**{field: value}), ["mask"])
    assert other != path
    assert path.read_bytes() == content
    assert getattr(Result.read(other).configuration, field) == value


def test_a_file_of_another_configuration(tiny, go):
    path = go(tiny(), ["mask"])[0]
    other = path.rename(path.with_name(path.name.replace("batch_size=16", "batch_size=8")))
    content = other.read_bytes()
    expected = (
        f"{other} comes from a run with another batch_size. Give this run another --output folder, "
        f"or delete that file."
    )
    with pytest.raises(BenchmarkError, match=f"^{re.escape(expected)}$"):
        go(tiny(batch_size=8), ["mask"])
    assert other.read_bytes() == content


def test_old_files_load(tmp_path):
    """Without the fields that are younger than they are, and `rescale` None where nothing is."""
    for arm in ("mask", "weights"):
        (written := result(arm)).write(tmp_path / "r.json")
        content = json.loads((tmp_path / "r.json").read_text())
        for name in ("image_size", "density", "budget", "schedule_density"):
            del content["configuration"][name]
        del content["recalibrated"]
        content["configuration"]["rescale"] = False if arm == "mask" else None
        (tmp_path / "r.json").write_text(json.dumps(content))
        assert Result.read(tmp_path / "r.json") == written


def test_every_field_is_compared():
    one = Configuration("digits")
    for field in fields(Configuration):
        assert list(one.changes(replace(one, **{field.name: "other"}))) == [field.name]
    assert one.changes(replace(one)) == {}


def test_the_state_an_arm_starts_from_is_missing(tiny, go, tmp_path):
    path = go(tiny(), ["mask"])[0]
    best = path.with_name(f"{path.stem}.best.pt")
    best.unlink()
    message = f"{best} is missing: the arm mix starts from it. Delete {path.name} beside it and run"
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        go(tiny(), ["mix"])


FOREIGN = [
    "", "{", "[]", "3", "null", '"x"', "{}", '{"configuration": {}}', '{"name": "package.json"}',
    json.dumps({**asdict(result()), "configuration": {"dataset": "mnist", "colour": 1}}),
    json.dumps({**asdict(result()), "epochs": [{"epoch": 1}]}),
    json.dumps({k: v for k, v in asdict(result()).items() if k != "command"}),
]  # fmt: skip


@pytest.mark.parametrize("content", FOREIGN, ids=range(len(FOREIGN)))
def test_a_foreign_json(content, tmp_path):
    path = save(tmp_path, result()) / "zz.json"
    path.write_text(content)
    message = f"{path}: expected a result of `python -m benchmarks run`, found another file ("
    with pytest.raises(BenchmarkError, match=re.escape(message)) as raised:
        read_results(tmp_path)
    assert str(raised.value).endswith("). Move it out of the results' folder.")


def test_no_results(tmp_path, call):
    assert read_results(tmp_path) == read_results(tmp_path / "nowhere") == []
    message = (
        f"error: {tmp_path} holds no result (*.json). Make some with `python -m benchmarks run"
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
    assert bool(Experiment("s", grouped([result(**changes)])).blog) is comparable


def test_the_blogs_numbers():
    assert blog("digits") == {}
    found = {
        (dataset, arm): (blog(dataset)["best_val"][arm], blog(dataset)["final_val"][arm])
        for dataset in ("mnist", "cifar10")
        for arm in blog(dataset)["accuracy"]
    }
    protocol = {
        ("mnist", "mask"): (0.991, 0.991), ("mnist", "weights"): (0.991, 0.991),
        ("mnist", "mix"): (0.994, 0.993), ("cifar10", "mask"): (0.83, 0.80),
        ("cifar10", "weights"): (0.87, 0.87), ("cifar10", "mix"): (0.907, 0.904),
    }  # fmt: skip
    assert found.keys() == protocol.keys()
    for key, (best, last) in protocol.items():
        assert found[key] == pytest.approx((best, last), abs=0.006), key
    for dataset in ("mnist", "cifar10"):
        curves = blog(dataset)["accuracy"].values()
        assert all(len(c["train"]) == len(c["val"]) == 30 for c in curves)


def test_masked_share():
    assert masked_share([Layer("a", 1, 1.0), Layer("b", 3, 0.0)]) == 0.25
