"""A study on a Ray cluster of two workers, one of which is killed during a run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import Location
from benchmarks.experiment.results import read_results
from benchmarks.studies import study
from benchmarks.studies.study import Study

pytest.importorskip("ray")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]

# In every worker: note each checkpoint, and die once, after the second of a mask run.
WORKER = """
import os, signal
from pathlib import Path

replace, counts = os.replace, {}

def noting(source, target):
    replace(source, target)
    name = Path(target).name
    if name.endswith(".checkpoint.pt"):
        counts[name] = counts.get(name, 0) + 1
        with open(os.environ["NOTES"], "a") as file:
            print(os.getpid(), name, file=file)
        if counts[name] == 2 and "-mask-" in name:
            try:
                open(os.environ["NOTES"] + ".death", "x").close()
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)

os.replace = noting
"""
DRIVER = """
import sys
import ray
from benchmarks import __main__ as cli
from benchmarks.experiment.configuration import Configuration
from benchmarks.studies import catalogue
from benchmarks.experiment.results import read_results
from benchmarks.studies.study import Study

def runs(results):
    first = Configuration(
        dataset="digits", network="lenet-300-100", init=0.02, epochs=4, batch_size=16,
        train_images=64, mix_lr=1e-3,
    )
    for arm in ("mask", "weights", "mix"):
        yield first.for_arm(arm)
    if len(results("small")) >= 3:
        yield first.for_arm("weights-then-weights")

if __name__ == "__main__":
    catalogue.STUDIES["small"] = Study("small", runs)
    ray.init(num_cpus=2, include_dashboard=False)
    cli.main()
"""


def test_a_worker_is_killed_in_the_middle(tmp_path, outcome):
    place = tmp_path / "shared"
    place.mkdir()
    (place / "sitecustomize.py").write_text(WORKER)
    (place / "driver.py").write_text(DRIVER)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (place, ROOT / "src", ROOT))),
        "NOTES": str(place / "notes"),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [
        sys.executable,
        "driver.py",
        "study",
        "small",
        "--cluster",
        "--device",
        "cpu",
    ]
    made = subprocess.run(
        [*command, "--output", "results"],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert made.returncode == 0, made.stderr
    made_runs = names(place / "results/small")
    assert len(made_runs) == 4
    # Not by lines: what Ray prints of its workers can come before a line has ended.
    assert [name for name in made_runs if name not in made.stdout] == []
    assert not list((place / "results/small").glob("*checkpoint*"))

    notes = [line.split() for line in (place / "notes").read_text().splitlines()]
    killed = [pid for pid, name in notes if "-mask-" in name]
    assert len(set(killed[:2])) == len(set(killed[2:])) == 1
    assert killed[0] != killed[2]  # another worker
    assert len(killed) == 4  # which went on after the second epoch
    assert len({pid for pid, _ in notes}) >= 2
    assert len(notes) == 4 * 4

    scope: dict = {"__name__": "driver"}
    exec(DRIVER, scope)
    small = Study("small", scope["runs"])
    assert (
        len(list(study.run(small, Location(tmp_path, tmp_path / "alone", "cpu")))) == 4
    )
    assert outcome(place / "results/small") == outcome(tmp_path / "alone/small")
    assert small.missing(place / "results") == []


def names(folder):
    return {result.configuration.name for result in read_results(folder)}
