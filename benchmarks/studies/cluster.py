"""A study's runs as jobs of a Ray cluster, which places and retries them.

A job whose worker was lost goes on from its run's checkpoint, in the folder all machines share.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from benchmarks import Place
from benchmarks.studies import study as studies

RETRIES = 10  # of a job whose worker is lost; an error of its own ends the study


def run(study: studies.Study, place: Place, cpus: float, gpus: float) -> Iterator[Path]:
    """Make every result of a study that is missing, as many at a time as there is room for."""
    here = Path.cwd()

    def make(before: Path | None, *arguments: Any) -> Path:
        """Ray runs it when it has `before`, the result of the run it goes on from."""
        os.chdir(here)
        return studies.make(*arguments)

    job = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(make)
    while missing := study.missing(place.output):
        jobs: dict[Any, Any] = {}
        for run in missing:
            folder = replace(place, output=place.output / study.name)
            jobs[run] = job.remote(jobs.get(run.start), run, folder)
        waiting = list(jobs.values())
        while waiting:
            done, waiting = ray.wait(waiting)
            yield from ray.get(done)
