"""The benchmarks lie beside the tests, not in the installed package."""

import hashlib
import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import Location
from benchmarks import __main__ as cli
from benchmarks.experiment import data
from benchmarks.experiment import runner as experiment
from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.results import RunFiles, read_results, results_file

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Tiny networks gain nothing from more, and sums are equal on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _denormals_as_before():
    """`run` flushes them; the library's tests must not depend on the order."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def real_data():
    folder = Path(os.environ.get("MASKTORCH_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data in {folder}; MASKTORCH_DATA may name another folder")
    return folder


@pytest.fixture
def publish(monkeypatch):
    """Take these contents for those that were published."""

    def published(dataset, contents):
        md5s = {
            name: hashlib.md5(content).hexdigest() for name, content in contents.items()
        }
        monkeypatch.setitem(data.MD5, dataset, md5s)

    return published


@pytest.fixture
def tiny():
    """A configuration with 4 batches an epoch; scores start close to 0 and cross it."""

    def make(**changes):
        settings = dict(
            dataset="digits",
            network="lenet-300-100",
            depth=None,
            width=None,
            init=0.02,
            epochs=2,
            batch_size=16,
            train_images=64,
            mix_lr=1e-3,
        )
        return Configuration(**{**settings, **changes})

    return make


@pytest.fixture
def go(tmp_path):
    """Run arms in a folder below tmp_path; return their results as written."""

    def run(configuration, arms, folder="runs"):
        location = Location(tmp_path / "data", tmp_path / folder, "cpu")
        returned = experiment.run(configuration, arms, location, "made so")
        written = {r.configuration: r for r in read_results(tmp_path / folder)}
        assert [written[result.configuration] for result in returned] == returned
        return returned

    return run


@pytest.fixture
def files_of(tmp_path):
    """The states of a run in a folder below tmp_path."""

    def found(result, folder="runs"):
        return RunFiles(tmp_path / folder, result.configuration)

    return found


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command line; return its exit code and all it prints on one line."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["__main__.py", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stopped:
            code = stopped.code
        said = capsys.readouterr()
        return code, re.sub(r"[\s╭╮╰╯│─]+", " ", said.out + said.err)

    monkeypatch.setenv("COLUMNS", "200")
    return run


@pytest.fixture
def outcome():
    """All that must be the same when a run is repeated: every number but the times."""

    def read(folder):
        numbers = {}
        for line in results_file(folder).read_text().splitlines():
            content = json.loads(line)
            for key in ("environment", "command", "wall_seconds"):
                del content[key]
            for epoch in (*content["epochs"], content["best"], content["last"]):
                del epoch["seconds"]
            configuration = Configuration.from_stored(content["configuration"])
            best_state = RunFiles(folder, configuration).best_state
            state = torch.load(best_state, weights_only=True)
            values = {name: value.tolist() for name, value in state.items()}
            assert configuration.name not in numbers
            numbers[configuration.name] = content, values
        return numbers

    return read
