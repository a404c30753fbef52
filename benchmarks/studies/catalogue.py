"""All studies, by name; here are those whose runs are known from the start."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product

from benchmarks import BenchmarkError
from benchmarks.experiment.configuration import Configuration, Images
from benchmarks.studies import supermasks, which_estimator
from benchmarks.studies.study import Results, Study

SEEDS = range(3)
BOTH: tuple[Images, ...] = ("cifar10", "mnist")
ARMS = ("mask", "weights", "mix", "weights-then-weights")  # the blog's three and the control
SPARSE = ("mask", "mix", "random-mix", "ticket", "random-ticket")

# The blog's experiment made small: built-in images, and about a minute on one core.
SMALL = Configuration("digits", depth=10, width=1, batch_size=32, mix_lr=1e-3)
# For tickets: every line has the same steps. A mask learned, then weights trained under it; or
# weights trained, the largest kept, and those trained again from where they began.
LENET = Configuration(
    "mnist", network="lenet-300-100", estimator="topk", budget="overall", schedule="cosine",
    lr=1e-3, score_lr=1e-2, mix_lr=1e-3, epochs=15, augmentation=False,
)  # fmt: skip
SMALL_CONV = replace(
    LENET, dataset="cifar10", network="conv-2", image_size=16, augmentation=True, epochs=10,
    precision="bfloat16",
)  # fmt: skip
REDUCED = Configuration(
    "cifar10", depth=16, width=1, train_images=5_000, epochs=20, precision="bfloat16"
)


def each(base: Configuration, arms: Iterable[str] = ARMS) -> Iterator[Configuration]:
    return map(base.for_arm, arms)


def demo(results: Results) -> Iterator[Configuration]:
    return each(SMALL)


def blog(results: Results) -> Iterator[Configuration]:
    """As published: WRN-28-8, for which one wants a GPU."""
    for seed, dataset in product(SEEDS, BOTH):
        yield from each(Configuration(dataset, seed=seed))


def blog_small(results: Results) -> Iterator[Configuration]:
    """All is the blog's, its number of steps too, but for small images, the width and, of the arms
    that go on, a second learning rate, which so small a network can use."""
    small = Configuration("cifar10", depth=16, width=1, precision="bfloat16")
    for seed, dataset, mix_lr in product(SEEDS, BOTH, (1e-5, 1e-3)):
        side = {"cifar10": 16, "mnist": 14}[dataset]
        yield from each(replace(small, dataset=dataset, image_size=side, seed=seed, mix_lr=mix_lr))


def tickets(results: Results) -> Iterator[Configuration]:
    """Each trained on, with a random mask of the same densities as control."""
    for base, seed in product((LENET, SMALL_CONV), SEEDS):
        dense = replace(base, seed=seed)
        yield from each(dense, ("weights", "weights-then-weights"))
        for density in (0.8, 0.5, 0.2, 0.1, 0.05, 0.02):
            yield from each(replace(dense, density=density), SPARSE)


def wrn_28_1(results: Results) -> Iterator[Configuration]:
    """All images and the blog's depth, in half the epochs and fewer."""
    for dataset, epochs in zip(BOTH, (15, 5), strict=True):
        base = Configuration(dataset, width=1, epochs=epochs, precision="bfloat16")
        yield from each(base, ("mask", "weights", "mix"))


def reduced(results: Results) -> Iterator[Configuration]:
    """5,000 images, and the mask under each of the first three estimators."""
    for dataset, seed in product(BOTH, SEEDS):
        base = replace(REDUCED, dataset=dataset, seed=seed)
        yield from each(base)
        for estimator in ("bernoulli", "intermediate"):
            yield replace(base, estimator=estimator, init=1.0, score_lr=0.1).for_arm("mask")


def reduced_1e_3(results: Results) -> Iterator[Configuration]:
    for dataset, seed in product(BOTH, SEEDS):
        base = replace(REDUCED, dataset=dataset, seed=seed, mix_lr=1e-3)
        yield from each(base, ("mix", "weights-then-weights"))


def literature(results: Results) -> Iterator[Configuration]:
    """The blog's threshold with what Zhou et al. add to a mask."""
    for lr, seed in product((0.03, 0.1), SEEDS):
        yield Configuration(
            "mnist", network="lenet-300-100", weights="signed-constant", init=1.0, rescale=True,
            lr=lr, schedule="cosine", augmentation=False, seed=seed,
        ).for_arm("mask")  # fmt: skip


DEMO = Study("demo", "Is a mask a better start than none, on small digits?", demo)
STUDIES = {
    study.name: study
    for study in (
        Study("blog-small", "Is a mask a better start than none, at the blog's steps?", blog_small),
        which_estimator.STUDY,
        supermasks.STUDY,
        Study("tickets", "Is a learned mask a ticket, or better than one?", tickets),
        Study("blog", "Is a mask a better start than none, as the blog has it?", blog),
        # What was run before there were small images: fewer images, fewer epochs.
        Study("wrn-28-1", "How far does the blog's depth get in fewer epochs?", wrn_28_1),
        Study("reduced", "Is a mask a better start than none, at a tenth of the steps?", reduced),
        Study("reduced-1e-3", "And with a rate that so few steps can use?", reduced_1e_3),
        Study("literature", "Does the threshold reach the published supermasks?", literature),
    )
}


def study(name: str) -> Study:
    if name not in STUDIES:
        raise BenchmarkError(f"No study is called {name!r}. Choose one of: {', '.join(STUDIES)}.")
    return STUDIES[name]
