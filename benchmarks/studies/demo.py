"""The blog's experiment made small: built-in images, and about a minute on one core."""

from collections.abc import Iterator

from benchmarks.experiment.configuration import Configuration
from benchmarks.studies.blog import ARMS
from benchmarks.studies.study import Results, Study

SMALL = Configuration("digits", depth=10, width=1, batch_size=32, mix_lr=1e-3)


def runs(results: Results) -> Iterator[Configuration]:
    for arm in ARMS:
        yield SMALL.for_arm(arm)


STUDY = Study("demo", "Is a mask a better start than none, on small digits?", runs)
