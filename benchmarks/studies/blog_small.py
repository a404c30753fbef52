"""The blog's own number of steps on small images: all else is the blog's, but for the width."""

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.experiment.configuration import Configuration, Images
from benchmarks.studies.blog import ARMS
from benchmarks.studies.study import Results, Study

SIDES: dict[Images, int] = {"cifar10": 16, "mnist": 14}
MIX_LRS = (1e-5, 1e-3)  # the blog's; and one that so small a network can use


def runs(results: Results) -> Iterator[Configuration]:
    for seed in range(3):
        for dataset, side in SIDES.items():
            base = Configuration(
                dataset, depth=16, width=1, image_size=side, seed=seed, precision="bfloat16"
            )
            for mix_lr in MIX_LRS:
                for arm in ARMS:
                    yield replace(base, mix_lr=mix_lr).for_arm(arm)


STUDY = Study("blog-small", "Is a mask a better start than none, at the blog's steps?", runs)
