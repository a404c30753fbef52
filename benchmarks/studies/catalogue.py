"""All studies, by name, and the runs of each as data."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product
from statistics import mean
from typing import Any

from benchmarks.experiment.configuration import Configuration, Images
from benchmarks.experiment.results import grouped
from benchmarks.studies.study import Results, Study

SEEDS = range(3)
BOTH: tuple[Images, ...] = ("cifar10", "mnist")
ARMS = ("mask", "weights", "mix", "weights-then-weights")  # the blog's three and the control
SPARSE = ("mask", "mix", "random-mix", "ticket", "random-ticket")

# The blog's experiment made small: built-in images, and about a minute on one core.
SMALL = Configuration("digits", depth=10, width=1, batch_size=32, mix_lr=1e-3)
# For tickets: every line has the same steps. A mask learned, with what which-estimator found best,
# then weights trained under it; or weights trained, the largest kept, and those trained again.
LENET = Configuration(
    "mnist", network="lenet-300-100", estimator="topk", init="normal", budget="overall",
    schedule="cosine", lr=1e-3, score_lr=3e-2, mix_lr=1e-3, epochs=15, augmentation=False,
)  # fmt: skip
SMALL_CONV = replace(
    LENET, dataset="cifar10", network="conv-2", image_size=16, augmentation=True, epochs=6,
    precision="bfloat16",
)  # fmt: skip


def each(base: Configuration, arms: Iterable[str] = ARMS) -> Iterator[Configuration]:
    return map(base.for_arm, arms)


def blog(results: Results) -> Iterator[Configuration]:
    """Is a mask a better start than none? As published, WRN-28-8, but in bfloat16, on a GPU."""
    for seed, dataset in product(SEEDS, BOTH):
        yield from each(Configuration(dataset, seed=seed, precision="bfloat16"))


def blog_small(results: Results) -> Iterator[Configuration]:
    """The same question, and all is the blog's, its number of steps too, but for small images, the
    width and, of the arms that go on, a second learning rate, which so small a network can use."""
    small = Configuration("cifar10", depth=16, width=1, precision="bfloat16")
    for seed, dataset, mix_lr in product(SEEDS, BOTH, (1e-5, 1e-3)):
        side = {"cifar10": 16, "mnist": 14}[dataset]
        yield from each(replace(small, dataset=dataset, image_size=side, seed=seed, mix_lr=mix_lr))


# For which-estimator: every method tries the same grid of learning rates and starts on held-out
# images, with one seed and few epochs; its best by the last epoch's accuracy is then run in full.
METHODS = (  # with a density or none
    ("threshold", None), ("bernoulli", None), ("intermediate", None), ("topk", 0.5), ("topk", 0.3),
    ("topk", 0.1), ("piggyback", None), ("hard-concrete", None), ("concrete", None),
)  # fmt: skip
MASK = Configuration("mnist", network="lenet-300-100", schedule="cosine", augmentation=False)
LRS = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1)


def methods() -> Iterator[Configuration]:
    for weights, (estimator, density) in product(("signed-kaiming", "glorot"), METHODS):
        changed = {"weights": weights, "estimator": estimator, "density": density}
        yield replace(MASK, **changed).for_arm("mask")  # type: ignore[arg-type]


def trials(method: Configuration) -> Iterator[Configuration]:
    for init, lr in product((None, "normal"), LRS):
        yield replace(method, epochs=4, held_out=10_000, init=init, lr=lr)  # type: ignore[arg-type]


def which_estimator(results: Results) -> Iterator[Configuration]:
    done = {r.configuration: r.last.test_accuracy for r in results("which-estimator")}
    best = []
    for method in methods():
        tried = list(trials(method))
        yield from tried
        if done.keys() >= set(tried):
            found = max(tried, key=lambda trial: done[trial])
            best.append(replace(method, init=found.init, lr=found.lr))
    for seed in SEEDS:
        yield from (replace(found, seed=seed) for found in best)


def ablations(base: Configuration) -> Iterator[Configuration]:
    """One change each, and together the two that helped most."""
    changes: list[dict[str, Any]] = [
        {}, {"epochs": 100}, {"rescale": not base.rescale}, {"batch_size": 64},
        {"schedule": "plateau"}, {"weights": "glorot"}, {"weights": "signed-constant"},
    ]  # fmt: skip
    if base.estimator == "topk":
        changes += [{"density": d} for d in (0.7, 0.5, 0.1)] + [{"epochs": 100, "density": 0.1}]
        changes += [{"budget": "overall"}, {"schedule_density": "cubic"}]
    return (replace(base, **change) for change in changes)


def supermasks(results: Results) -> Iterator[Configuration]:
    """The published supermasks, with the setting of the most accurate mask of `which-estimator`
    once all its runs are done; and what makes the difference."""
    done = results("which-estimator")
    if set(which_estimator(results)) - {result.configuration for result in done}:
        return
    full = grouped(result for result in done if result.configuration.held_out is None)
    base = max(full, key=lambda of: mean(result.last.test_accuracy for result in full[of]))
    for seed in SEEDS:
        yield from (replace(changed, seed=seed) for changed in ablations(base))
    images = replace(base, dataset="cifar10", epochs=20, precision="bfloat16", augmentation=True)
    for network in ("conv-2", "conv-4", "conv-6"):
        yield replace(images, network=network)


def tickets(results: Results) -> Iterator[Configuration]:
    """Is a learned mask a ticket, or better than one? Each trained on, with a random mask of the
    same densities as control."""
    for base, seed in product((LENET, SMALL_CONV), SEEDS):
        dense = replace(base, seed=seed)
        yield from each(dense, ("weights", "weights-then-weights"))
        for density in (0.8, 0.5, 0.1, 0.2, 0.02, 0.05)[:: 1 if base is LENET else 2]:
            yield from each(replace(dense, density=density), SPARSE)


DEMO = Study("demo", lambda results: each(SMALL))
RUNS = {
    "blog-small": blog_small, "which-estimator": which_estimator, "supermasks": supermasks,
    "tickets": tickets, "blog": blog,
}  # fmt: skip
STUDIES = {name: Study(name, runs) for name, runs in RUNS.items()}
