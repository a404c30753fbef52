"""The blog's question: is a learned mask a better start for the weights than none?"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import NamedTuple

from benchmarks.experiment.arms import CONTROL
from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.results import Layer, Result, masked_fraction
from benchmarks.pages.comparison import (
    Difference,
    Experiment,
    final_accuracy,
    published_numbers,
)
from benchmarks.pages.formats import (
    DATASET_NAMES,
    NOTHING,
    dataset_name,
    outcomes,
    points,
    spread,
)
from benchmarks.pages.verdicts import tally

LAYER_KINDS = {  # by a part of a layer's name
    "all layers": "",
    "stem": "stem",
    "3x3 in blocks": ".conv",
    "1x1 shortcuts": ".shortcut",
    "dense": "class",
}


def experiment_name(experiment: Experiment) -> str:
    return f"{dataset_name(experiment.configuration)}, `{experiment.study}`"


@dataclass(frozen=True)
class Answer:
    sentence: str
    rows: Sequence["AnswerRow"]


class AnswerRow(NamedTuple):
    experiment: str
    second_lr: str
    mask: str  # accuracies of the last epoch, in %
    weights: str
    mix: str
    control: str
    adds: str  # mix, to the control


def answer(
    main: Sequence[Experiment], differences: Sequence[Difference]
) -> Answer | None:
    """Return the answer, or None if no comparison has several seeds."""
    mix_control = tally(differences, ("mix", CONTROL))
    if not mix_control:
        return None
    return Answer(
        sentence=mix_control.sentence(
            "weights trained under a frozen supermask",
            "weights trained equally long without one",
        ),
        rows=list(_answer_rows(main)),
    )


def _answer_rows(main: Iterable[Experiment]) -> Iterator[AnswerRow]:
    """Yield a row per experiment and learning rate of its second phase."""
    for experiment in main:
        for phase in experiment.phases():
            runs = {c.arm: found for c, found in phase.groups.items()}
            second_lrs = {c.mix_lr for c in phase.groups if c.mix_lr}
            compared = [one.last for one in phase.differences([("mix", CONTROL)])]
            yield AnswerRow(
                experiment_name(experiment),
                f"{min(second_lrs):g}" if second_lrs else NOTHING,
                mask=_accuracy(runs.get("mask", [])),
                weights=_accuracy(runs.get("weights", [])),
                mix=_accuracy(runs.get("mix", [])),
                control=_accuracy(runs.get(CONTROL, [])),
                adds=compared[0].in_words if compared else NOTHING,
            )


def _accuracy(runs: Iterable[Result]) -> str:
    return spread(map(final_accuracy, runs), digits=1, times=100)


class TableRow(NamedTuple):
    experiment: str
    arm: str
    epochs: str
    outcomes: str  # several cells
    recalibrated: str
    blogs_best: str
    blogs_last: str


def table_rows(experiments: Iterable[Experiment]) -> Iterator[TableRow]:
    """Yield a row per arm and learning rate, with the blog's numbers if comparable."""
    for experiment in experiments:
        published = experiment.published
        for configuration, runs in experiment.groups.items():
            blogs_lr = configuration.mix_lr in (None, configuration.as_published.mix_lr)
            compares = blogs_lr and configuration.arm in published.get("accuracy", {})
            recalibrated = [
                run.recalibrated["last"] for run in runs if run.recalibrated
            ]
            blogs_best = blogs_last = NOTHING
            if compares:
                blogs_best = f"{100 * published['best_val'][configuration.arm]:.1f}"
                blogs_last = f"{100 * published['final_val'][configuration.arm]:.1f}"
            yield TableRow(
                experiment_name(experiment),
                arm_and_lr(configuration),
                _epochs(configuration),
                outcomes(runs),
                spread(recalibrated, times=100),
                blogs_best,
                blogs_last,
            )


def arm_and_lr(configuration: Configuration) -> str:
    if configuration.mix_lr is None:
        return f"`{configuration.arm}`"
    return f"`{configuration.arm}`, lr {configuration.mix_lr:g}"


def _epochs(configuration: Configuration) -> str:
    if configuration.start is None:
        return str(configuration.epochs)
    return f"{configuration.epochs} after {configuration.start.epochs}"


class SecondPhase(NamedTuple):
    experiment: str
    arm: str
    as_measured: str
    recalibrated: str


def second_phases(main: Iterable[Experiment]) -> Iterator[SecondPhase]:
    """Yield what each second phase adds to the best epoch it starts from, in points.

    Only where every seed's start has recalibrated accuracies.
    """
    for experiment in main:
        for configuration, runs in experiment.groups.items():
            first = configuration.start
            if first is None or first not in experiment.groups:
                continue
            starts = _recalibrated_starts(experiment.groups[first], runs)
            if len(starts) < len(runs) or not all(run.recalibrated for run in runs):
                continue
            measured_before = mean(start.best.test_accuracy for start, _ in starts)
            measured_after = mean(run.last.test_accuracy for run in runs)
            recalibrated_before = mean(accuracy for _, accuracy in starts)
            recalibrated_after = mean(run.final_accuracy for run in runs)
            yield SecondPhase(
                experiment_name(experiment),
                arm_and_lr(configuration),
                points(measured_after - measured_before),
                points(recalibrated_after - recalibrated_before),
            )


def _recalibrated_starts(
    starts: Iterable[Result], runs: Iterable[Result]
) -> list[tuple[Result, float]]:
    """Return the starts of these runs, each with its recalibrated best accuracy."""
    seeds = {run.configuration.seed for run in runs}
    found = []
    for start in starts:
        accuracy = (start.recalibrated or {}).get("best")
        if accuracy is not None and start.configuration.seed in seeds:
            found.append((start, accuracy))
    return found


def masked_by_kind(main: Sequence[Experiment]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (data set, whose masks, masked fraction of each kind of layer)."""
    for dataset in sorted({one.configuration.dataset for one in main}):
        name = DATASET_NAMES[dataset]
        published = published_numbers(dataset)
        if published:
            yield name, "the blog", _shares_by_kind([published["layers"]])
        for experiment in main:
            if experiment.configuration.dataset != dataset:
                continue
            for configuration, runs in experiment.groups.items():
                if configuration.arm == "mask":
                    shares = _shares_by_kind([run.utilisation for run in runs])
                    yield name, f"`{experiment.study}`", shares


def _shares_by_kind(runs: Sequence[Sequence[Layer]]) -> list[str]:
    return [
        spread(
            [
                masked_fraction([x for x in layers if part in x.layer])
                for layers in runs
            ],
            digits=1,
            times=100,
        )
        for part in LAYER_KINDS.values()
    ]
