"""A study's runs as jobs of a Ray cluster, which places and retries them.

A job whose worker was lost goes on from its run's checkpoint, in the folder all machines share.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from benchmarks.experiment.configuration import Configuration
from benchmarks.studies import study as studies

RETRIES = 10  # of a job whose worker is lost; an error of its own ends the study


def run(
    study: studies.Study, data_dir: Path, output: Path, device: str, cpus: float, gpus: float
) -> Iterator[Path]:
    """Make every result of a study that is missing, as many at a time as there is room for."""
    job = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(_make)
    here, folder = Path.cwd(), output / study.name
    while missing := study.missing(output):
        jobs: dict[Configuration, Any] = {}
        for configuration in missing:
            before = jobs.get(configuration.start) if configuration.start else None
            jobs[configuration] = job.remote(here, before, configuration, data_dir, folder, device)
        waiting = list(jobs.values())
        while waiting:
            done, waiting = ray.wait(waiting)
            yield from ray.get(done)


def _make(
    place: Path,
    before: Path | None,  # its start's result: Ray runs a job when it has what it is given
    configuration: Configuration,
    data_dir: Path,
    folder: Path,
    device: str,
) -> Path:
    os.chdir(place)
    return studies.make(configuration, data_dir, folder, device)
