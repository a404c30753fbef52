"""What was run before there were small images: fewer images, fewer epochs."""

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.experiment.configuration import Configuration, Images
from benchmarks.studies.blog import ARMS
from benchmarks.studies.study import Results, Study


def wrn_28_1(results: Results) -> Iterator[Configuration]:
    """All images and the blog's depth, in half the epochs and fewer."""
    lengths: dict[Images, int] = {"cifar10": 15, "mnist": 5}
    for dataset, epochs in lengths.items():
        for arm in ("mask", "weights", "mix"):
            base = Configuration(dataset, width=1, epochs=epochs, precision="bfloat16")
            yield base.for_arm(arm)


def reduced(results: Results) -> Iterator[Configuration]:
    """Three seeds on 5,000 images, and the mask under each of the first three estimators."""
    for base in _reduced():
        for arm in ARMS:
            yield base.for_arm(arm)
        for estimator in ("bernoulli", "intermediate"):
            yield replace(base, estimator=estimator, init=1.0, score_lr=0.1).for_arm("mask")


def reduced_1e_3(results: Results) -> Iterator[Configuration]:
    for base in _reduced():
        for arm in ("mix", "weights-then-weights"):
            yield replace(base, mix_lr=1e-3).for_arm(arm)


def _reduced() -> Iterator[Configuration]:
    datasets: tuple[Images, ...] = ("cifar10", "mnist")
    for dataset in datasets:
        for seed in range(3):
            yield Configuration(
                dataset, depth=16, width=1, train_images=5_000, epochs=20, precision="bfloat16",
                seed=seed,
            )  # fmt: skip


def literature(results: Results) -> Iterator[Configuration]:
    """The blog's threshold with what Zhou et al. add to a mask."""
    for lr in (0.03, 0.1):
        for seed in range(3):
            yield Configuration(
                "mnist", network="lenet-300-100", weights="signed-constant", init=1.0, rescale=True,
                lr=lr, schedule="cosine", augmentation=False, seed=seed,
            ).for_arm("mask")  # fmt: skip


STUDIES = (
    Study("wrn-28-1", "How far does the blog's depth get in fewer epochs?", wrn_28_1),
    Study("reduced", "Is a mask a better start than none, at a tenth of the steps?", reduced),
    Study("reduced-1e-3", "And with a learning rate that so few steps can use?", reduced_1e_3),
    Study("literature", "Does the threshold reach the published supermasks?", literature),
)
