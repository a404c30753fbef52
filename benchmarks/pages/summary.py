"""`show`: the results of one folder for the terminal, with an answer and a figure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.experiment.arms import CONTROL
from benchmarks.experiment.results import FILE_NAME
from benchmarks.pages import figures
from benchmarks.pages.comparison import Experiment, read_experiments
from benchmarks.pages.render import render

TEST_IMAGES = {"digits": 359, "mnist": 10_000, "cifar10": 10_000}
NORMAL_QUANTILE = 1.96  # of a 95 % interval


def show(folder: Path) -> str:
    """Return the results of a folder as text; draw their curves into the folder."""
    phases = [
        phase
        for experiment in read_experiments(folder)
        for phase in experiment.phases()
    ]
    if not phases:
        raise FileNotFoundError(
            f"{folder} holds no result ({FILE_NAME}). Make some with "
            f"`python -m benchmarks run`."
        )
    figure = folder / f"{folder.resolve().name}.png"
    figures.save(figures.curves(phases), figure)
    return render(
        "show.txt", phases=phases, answers=list(answers(phases)), figure=figure
    )


@dataclass(frozen=True)
class Answer:
    """Is a mask a better start, as far as one run can tell? Accuracies in %."""

    epochs: int
    with_mask: float
    without_mask: float
    test_images: int

    @property
    def chance(self) -> float:
        """The difference that chance explains: a normal 95 % interval of two shares."""
        variances = sum(
            accuracy * (100 - accuracy) / self.test_images
            for accuracy in (self.with_mask, self.without_mask)
        )
        return NORMAL_QUANTILE * float(variances**0.5)

    @property
    def verdict(self) -> str:
        difference = self.with_mask - self.without_mask
        if difference > self.chance:
            return "Yes, in this run"
        if -difference > self.chance:
            return "No, in this run"
        return "This run cannot tell"


def answers(experiments: Sequence[Experiment]) -> Iterator[Answer]:
    """Yield an answer per experiment that has one seed of `mix` and of its control."""
    for experiment in experiments:
        for difference in experiment.differences([("mix", CONTROL)]):
            runs = experiment.groups[difference.configuration]
            if len(runs) > 1:
                continue
            with_mask = runs[0].last.test_accuracy
            yield Answer(
                epochs=len(runs[0].epochs),
                with_mask=100 * with_mask,
                without_mask=100 * with_mask - 100 * difference.last.mean,
                test_images=TEST_IMAGES[difference.configuration.dataset],
            )
