"""Ticket or supermask? Each trained on, with a random mask of the same densities as control.

Every line has the same steps: a mask learned, then weights trained under it; or weights trained,
the largest kept, and those trained again from where they began.
"""

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.experiment.configuration import Configuration
from benchmarks.studies.study import Results, Study

DENSITIES = (0.8, 0.5, 0.2, 0.1, 0.05, 0.02)
SPARSE = ("mask", "mix", "random-mix", "ticket", "random-ticket")
LENET = Configuration(
    "mnist", network="lenet-300-100", estimator="topk", budget="overall", schedule="cosine",
    lr=1e-3, score_lr=1e-2, mix_lr=1e-3, epochs=15, augmentation=False,
)  # fmt: skip
SMALL_CONV = replace(
    LENET, dataset="cifar10", network="conv-2", image_size=16, augmentation=True, epochs=10,
    precision="bfloat16",
)  # fmt: skip


def runs(results: Results) -> Iterator[Configuration]:
    for base in (LENET, SMALL_CONV):
        for seed in range(3):
            dense = replace(base, seed=seed)
            yield dense.for_arm("weights")
            yield dense.for_arm("weights-then-weights")
            for density in DENSITIES:
                for arm in SPARSE:
                    yield replace(dense, density=density).for_arm(arm)


STUDY = Study("tickets", "Is a learned mask a ticket, or better than one?", runs)
