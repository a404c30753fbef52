"""Two processes of torchrun give the numbers of one, and write each file once."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from benchmarks.experiment import training
from benchmarks.experiment.data import load_images
from benchmarks.experiment.results import results_file

HERE = Path(__file__)
spec = importlib.util.spec_from_file_location(
    "launching", HERE.parents[1] / "torch_features" / "test_distributed.py"
)
launching = importlib.util.module_from_spec(spec)
spec.loader.exec_module(launching)
pytestmark = launching.pytestmark

# Each process notes what it writes and which images it trains on; the one that is told
# to, dies.
LAUNCH = f"""
import os, sys
from pathlib import Path
sys.path[:0] = {[str(HERE.parents[2] / "src"), str(HERE.parents[2])]}
from benchmarks import __main__ as cli
from benchmarks.experiment import parallel, training

notes = Path("notes." + os.environ["RANK"])
deaths = int(os.environ.get("DIES_AFTER", 99))
replace, part, written = os.replace, parallel.part, []

def noting(source, target):
    replace(source, target)
    written.append(target)
    with notes.open("a") as file:
        print("wrote", Path(target).name, file=file)
    if sum("checkpoint" in str(path) for path in written) == deaths:
        os._exit(3)

def parting(inputs, labels):
    images, classes, weight = part(inputs, labels)
    with notes.open("a") as file:
        for image in images:
            print("image", f"{{image.double().sum().item():.4f}}", file=file)
    return images, classes, weight

os.replace, parallel.part = noting, parting
cli.main()
{launching.EXIT}
"""
OPTIONS = {
    "lenet": "--network lenet-300-100 --init 0.02 --train-images 70",
    "wrn": "--depth 10 --width 1 --train-images 70",
}


@pytest.fixture
def torchrun(tmp_path):
    (tmp_path / "launch.py").write_text(LAUNCH)

    def run(name, arms):
        return launching.torchrun(
            "launch.py",
            "run",
            "--dataset",
            "digits",
            *OPTIONS[name].split(),
            "--epochs",
            2,
            "--batch-size",
            16,
            "--mix-lr",
            1e-3,
            "--arms",
            arms,
            "--device",
            "cpu",
            "--output",
            "runs",
            cwd=tmp_path,
            timeout=240,
        )

    return run


def notes(folder, rank, kind):
    words = [
        line.split() for line in (folder / f"notes.{rank}").read_text().splitlines()
    ]
    return [what for found, what in words if found == kind]


@pytest.mark.parametrize("dies", [False, True], ids=["undisturbed", "resumed"])
def test_numbers_of_one_process(
    torchrun, tmp_path, tiny, go, files_of, monkeypatch, dies
):
    if dies:
        with monkeypatch.context() as patch:
            patch.setenv("DIES_AFTER", "1")
            assert torchrun("lenet", "mask,mix")[0] != 0
        assert not results_file(tmp_path / "runs").exists()
    code, output = torchrun("lenet", "mask,mix")
    assert code == 0, output
    assert output.count("digits-lenet-300-100-mix") == 1  # one of them speaks
    assert not list((tmp_path / "runs").glob("*checkpoint*"))

    results = go(tiny(train_images=70), ["mask", "mix"], "alone")
    lines = results_file(tmp_path / "runs").read_text().splitlines()
    assert len(lines) == 2  # each result once
    for result, line in zip(results, lines, strict=True):
        alone, found = json.loads(result.to_json()), json.loads(line)
        assert found["environment"]["processes"] == 2
        assert found["configuration"] == alone["configuration"]
        assert found["masked_fraction"] == alone["masked_fraction"] > 0
        for one, two in zip(alone["epochs"], found["epochs"], strict=True):
            del one["seconds"], two["seconds"]
            assert two == pytest.approx(one, rel=1e-4)
        states = (
            torch.load(files_of(result, folder).best_state)
            for folder in ("alone", "runs")
        )
        torch.testing.assert_close(*states, rtol=1e-3, atol=1e-5)

    written = notes(tmp_path, 0, "wrote")
    assert (
        len([name for name in written if "checkpoint" in name]) == 2 * 2
    )  # one an epoch
    assert notes(tmp_path, 1, "wrote") == []
    if not dies:  # each image once an epoch, half of each batch on either
        shares = [notes(tmp_path, rank, "image") for rank in (0, 1)]
        assert [len(share) for share in shares] == [4 * 35, 4 * 35]
        expected = []
        for arm in ("mask", "mix"):
            options = tiny(train_images=70).for_arm(arm)
            data = training_images(options)
            for epoch in (1, 2):
                seed = training.epoch_seed(options, epoch)
                for inputs, _ in training.batches(data, options, seed):
                    expected += [
                        f"{image.double().sum().item():.4f}" for image in inputs
                    ]
        assert sorted(shares[0] + shares[1]) == sorted(expected)


def training_images(options):
    return load_images(options, Path()).train


def test_batch_norm_on_cpus_is_each_ones_own_and_ends_the_same(torchrun, tmp_path):
    code, output = torchrun("wrn", "weights")
    assert code == 0, output
    (line,) = results_file(tmp_path / "runs").read_text().splitlines()
    content = json.loads(line)
    assert content["recalibrated"].keys() == {"best", "last"}
    assert len(content["epochs"]) == 2


def test_a_batch_too_small_is_an_error(torchrun, monkeypatch):
    monkeypatch.setitem(OPTIONS, "lenet", OPTIONS["lenet"].replace("70", "65"))
    code, output = torchrun("lenet", "mask")
    assert code != 0
    assert (
        "Each of 2 processes needs an image of every batch; found a batch of 1."
        in output
    )
