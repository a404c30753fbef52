"""The blog's experiment as published: WRN-28-8, for which one wants a GPU."""

from collections.abc import Iterator

from benchmarks.experiment.configuration import Configuration
from benchmarks.studies.study import Results, Study

ARMS = ("mask", "weights", "mix", "weights-then-weights")  # the blog's three and the control


def runs(results: Results) -> Iterator[Configuration]:
    for seed in range(3):
        for dataset in ("cifar10", "mnist"):
            for arm in ARMS:
                yield Configuration(dataset, seed=seed).for_arm(arm)


STUDY = Study("blog", "Is a mask a better start than none, as the blog has it?", runs)
