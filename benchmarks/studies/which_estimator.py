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
METHODS: tuple[dict[str, object], ...] = (
    {"estimator": "threshold"},
    {"estimator": "bernoulli"},
    {"estimator": "intermediate"},
    {"estimator": "topk", "density": 0.5},
    {"estimator": "topk", "density": 0.3},
    {"estimator": "topk", "density": 0.1},
    {"estimator": "piggyback"},
    {"estimator": "hard-concrete"},
    {"estimator": "concrete"},
)
WEIGHTS = ("signed-kaiming", "glorot")
LRS = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1)
STARTS = (None, "normal")
LENET = Configuration("mnist", network="lenet-300-100", schedule="cosine", augmentation=False)
TRIAL = replace(LENET, epochs=4, held_out=10_000)


def methods() -> Iterator[Configuration]:
    for weights, method in product(WEIGHTS, METHODS):
        yield replace(LENET, weights=weights, **method).for_arm("mask")  # type: ignore[arg-type]


def trials(method: Configuration) -> Iterator[Configuration]:
    base = replace(method, epochs=TRIAL.epochs, held_out=TRIAL.held_out)
    for init, lr in product(STARTS, LRS):
        yield replace(base, init=init, lr=lr)  # type: ignore[arg-type]


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
    for seed in range(3):
        for method in methods():
            if best := chosen(method, results(NAME)):
                yield replace(best, seed=seed)


STUDY = Study(NAME, "Which estimator learns the best mask?", runs)
