"""Which estimator learns the best mask, each with the settings that suit it.

Two parts: every method tries the same grid of learning rates and starts on held-out images, with
one seed and few epochs; its best by the last epoch's accuracy is then run in full.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.results import Result
from benchmarks.studies.study import Results, Study

NAME = "which-estimator"
METHODS = (  # with a density or none
    ("threshold", None), ("bernoulli", None), ("intermediate", None), ("topk", 0.5), ("topk", 0.3),
    ("topk", 0.1), ("piggyback", None), ("hard-concrete", None), ("concrete", None),
)  # fmt: skip
WEIGHTS = ("signed-kaiming", "glorot")
LRS = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1)
STARTS = (None, "normal")
LENET = Configuration("mnist", network="lenet-300-100", schedule="cosine", augmentation=False)


def methods() -> Iterator[Configuration]:
    for weights, (estimator, density) in product(WEIGHTS, METHODS):
        changed = {"weights": weights, "estimator": estimator, "density": density}
        yield replace(LENET, **changed).for_arm("mask")  # type: ignore[arg-type]


def trials(method: Configuration) -> Iterator[Configuration]:
    for init, lr in product(STARTS, LRS):
        yield replace(method, epochs=4, held_out=10_000, init=init, lr=lr)  # type: ignore[arg-type]


def chosen(method: Configuration, done: Sequence[Result]) -> Configuration | None:
    """The method with the best of its settings; None while one is still to be tried."""
    tried = {result.configuration: result.last.test_accuracy for result in done}
    if any(trial not in tried for trial in trials(method)):
        return None
    best = max(trials(method), key=lambda trial: tried[trial])
    return replace(method, init=best.init, lr=best.lr)


def runs(results: Results) -> Iterator[Configuration]:
    for method in methods():
        yield from trials(method)
    done = results(NAME)
    best = [found for method in methods() if (found := chosen(method, done))]
    for seed in range(3):
        yield from (replace(found, seed=seed) for found in best)


STUDY = Study(NAME, "Which estimator learns the best mask?", runs)
