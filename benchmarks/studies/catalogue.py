"""All studies by name, and the runs of each as data.

To add a study: write a function that yields its runs, add it to `_STUDIES`, make its
results with `python -m benchmarks study NAME`, and print them in a section of a page.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product
from statistics import mean
from typing import Any

from benchmarks.experiment.arms import CONTROL
from benchmarks.experiment.configuration import Configuration, DatasetName
from benchmarks.experiment.results import group_by_seed
from benchmarks.studies.study import ResultsOf, Study

SEEDS = range(3)
DATASETS: tuple[DatasetName, ...] = ("cifar10", "mnist")
BLOG_ARMS = ("mask", "weights", "mix", CONTROL)  # the blog's three, and the control
SPARSE_ARMS = ("mask", "mix", "random-mix", "ticket", "random-ticket")

# The blog's experiment made small: built-in images, and about a minute on one core.
SMALL = Configuration(
    "digits",
    depth=10,
    width=1,
    batch_size=32,
    mix_lr=1e-3,
)


def for_arms(base: Configuration, arms: Iterable[str]) -> Iterator[Configuration]:
    return (base.for_arm(arm) for arm in arms)


def demo(results: ResultsOf) -> Iterator[Configuration]:
    """Run the blog's arms on scikit-learn's digits."""
    return for_arms(SMALL, BLOG_ARMS)


def blog(results: ResultsOf) -> Iterator[Configuration]:
    """Is a mask a better start than none?

    As published, with WRN-28-8, but in bfloat16 and on a GPU.
    """
    for seed, dataset in product(SEEDS, DATASETS):
        base = Configuration(dataset, seed=seed, precision="bfloat16")
        yield from for_arms(base, BLOG_ARMS)


def blog_small(results: ResultsOf) -> Iterator[Configuration]:
    """Ask the same question of smaller images and a narrower network.

    All else is the blog's, also the number of steps. The arms that start from another
    also run with a second learning rate, which so small a network can use.
    """
    image_sizes = {"cifar10": 16, "mnist": 14}
    for seed, dataset, mix_lr in product(SEEDS, DATASETS, (1e-5, 1e-3)):
        base = Configuration(
            dataset,
            depth=16,
            width=1,
            precision="bfloat16",
            image_size=image_sizes[dataset],
            seed=seed,
            mix_lr=mix_lr,
        )
        yield from for_arms(base, BLOG_ARMS)


# which-estimator: every method tries the same grid of learning rates and initial scores
# on held-out images, with one seed and few epochs. Its best setting is then run in
# full.
METHODS = (  # (estimator, density)
    ("threshold", None),
    ("bernoulli", None),
    ("intermediate", None),
    ("topk", 0.5),
    ("topk", 0.3),
    ("topk", 0.1),
    ("piggyback", None),
    ("hard-concrete", None),
    ("concrete", None),
)
METHOD_WEIGHTS = ("signed-kaiming", "glorot")
LEARNING_RATES = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1)
MASK_ON_LENET = Configuration(
    "mnist", network="lenet-300-100", schedule="cosine", augmentation=False
)


def methods() -> Iterator[Configuration]:
    for weights, (estimator, density) in product(METHOD_WEIGHTS, METHODS):
        changes: dict[str, Any] = {
            "weights": weights,
            "estimator": estimator,
            "density": density,
        }
        yield replace(MASK_ON_LENET, **changes).for_arm("mask")


def trials(method: Configuration) -> Iterator[Configuration]:
    brief = replace(method, epochs=4, held_out=10_000)
    for lr in LEARNING_RATES:
        yield replace(brief, init=None, lr=lr)
    for lr in LEARNING_RATES:
        yield replace(brief, init="normal", lr=lr)


def which_estimator(results: ResultsOf) -> Iterator[Configuration]:
    """Which estimator learns the most accurate mask?"""
    done = {r.configuration: r.last.test_accuracy for r in results("which-estimator")}
    chosen = []
    for method in methods():
        tried = list(trials(method))
        yield from tried
        if all(trial in done for trial in tried):
            best = max(tried, key=lambda trial: done[trial])
            chosen.append(replace(method, init=best.init, lr=best.lr))
    for seed in SEEDS:
        yield from (replace(setting, seed=seed) for setting in chosen)


def ablations(base: Configuration) -> Iterator[Configuration]:
    """Yield `base`, one change each, and the two changes that helped most together."""
    changes: list[dict[str, Any]] = [
        {},
        {"epochs": 100},
        {"rescale": not base.rescale},
        {"batch_size": 64},
        {"schedule": "plateau"},
        {"weights": "glorot"},
        {"weights": "signed-constant"},
    ]
    if base.takes_density:
        changes += [
            {"density": 0.7},
            {"density": 0.5},
            {"density": 0.1},
            {"epochs": 100, "density": 0.1},
            {"budget": "overall"},
            {"schedule_density": "cubic"},
        ]
    return (replace(base, **change) for change in changes)


def _most_accurate_mask(results: ResultsOf) -> Configuration | None:
    """Return the best setting of `which-estimator`, once all of its runs are done."""
    done = results("which-estimator")
    known = {result.configuration for result in done}
    if any(wanted not in known for wanted in which_estimator(results)):
        return None
    full = group_by_seed(r for r in done if r.configuration.held_out is None)
    return max(
        full, key=lambda setting: mean(r.last.test_accuracy for r in full[setting])
    )


def supermasks(results: ResultsOf) -> Iterator[Configuration]:
    """How close do we come to the published supermasks, and what makes the difference?

    The setting is that of the most accurate mask of `which-estimator`, once all of its
    runs are done.
    """
    base = _most_accurate_mask(results)
    if base is None:
        return
    for seed in SEEDS:
        yield from (replace(changed, seed=seed) for changed in ablations(base))
    images = replace(
        base, dataset="cifar10", epochs=20, precision="bfloat16", augmentation=True
    )
    yield from (replace(images, network="conv-2", seed=seed) for seed in SEEDS)
    yield replace(images, network="conv-4")
    yield replace(images, network="conv-6")


def bfloat16(results: ResultsOf) -> Iterator[Configuration]:
    """Does a mask learn as well in bfloat16?

    The most accurate mask of `which-estimator`, once in each precision.
    """
    base = _most_accurate_mask(results)
    if base is None:
        return
    for seed in SEEDS:
        yield replace(base, seed=seed, precision="float32")
        yield replace(base, seed=seed, precision="bfloat16")


# tickets: all that is compared has the same number of steps; `mask` and `weights`, from
# which others start, have half. Either a mask is learned, with the setting that
# which-estimator found best, and weights train under it; or weights train, the largest
# are kept, and those train again.
LENET = Configuration(
    "mnist",
    network="lenet-300-100",
    estimator="topk",
    init="normal",
    budget="overall",
    schedule="cosine",
    lr=1e-3,
    score_lr=3e-2,
    mix_lr=1e-3,
    epochs=15,
    augmentation=False,
)
LENET_DENSITIES = (0.8, 0.5, 0.1, 0.2, 0.02, 0.05)
SMALL_CONV = replace(
    LENET,
    dataset="cifar10",
    network="conv-2",
    image_size=16,
    augmentation=True,
    epochs=6,
    precision="bfloat16",
)
SMALL_CONV_DENSITIES = (0.8, 0.1, 0.02)


def tickets(results: ResultsOf) -> Iterator[Configuration]:
    """Is a learned mask a ticket, or better than one?

    Weights train on under each, with a random mask of the same densities as a control.
    """
    for base, densities in (
        (LENET, LENET_DENSITIES),
        (SMALL_CONV, SMALL_CONV_DENSITIES),
    ):
        for seed in SEEDS:
            dense = replace(base, seed=seed)
            yield from for_arms(dense, ("weights", CONTROL))
            for density in densities:
                yield from for_arms(replace(dense, density=density), SPARSE_ARMS)


# dynamic: on each network, all have the same number of steps. What starts from another
# arm has half of them, after the other half in that arm.
DYNAMIC_NETWORKS = (replace(LENET, epochs=16), replace(SMALL_CONV, epochs=4))
DYNAMIC_DENSITIES = (0.1, 0.02)
ONE_PHASE = ("static", "set", "rigl", "gradual")
TWO_PHASES = ("mask", "mix", "ticket")


def dynamic(results: ResultsOf) -> Iterator[Configuration]:
    """Which way to a sparse network is the best, at equal steps?"""
    for base, seed in product(DYNAMIC_NETWORKS, SEEDS):
        whole = replace(base, budget="erk", seed=seed)
        half = replace(whole, epochs=base.epochs // 2)
        yield from (dense.for_arm("weights") for dense in (whole, half))
        for density in DYNAMIC_DENSITIES:
            yield from for_arms(replace(whole, density=density), ONE_PHASE)
            yield from for_arms(replace(half, density=density), TWO_PHASES)


DEMO = Study("demo", demo)
_STUDIES = (
    Study("blog-small", blog_small),
    Study("which-estimator", which_estimator),
    Study("supermasks", supermasks),
    Study("tickets", tickets),
    Study("bfloat16", bfloat16),
    Study("dynamic", dynamic),
    Study("blog", blog),
)
STUDIES = {study.name: study for study in _STUDIES}
