"""What a folder of results holds, for the terminal; of the demo's folder, the answer too."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.experiment.results import Result
from benchmarks.pages.comparison import CONTROL, comparisons
from benchmarks.pages.figures import curves, save, title
from benchmarks.pages.render import outcomes, render, table


def overview(results: Sequence[Result], folder: Path) -> str:
    """A row per configuration, its seeds together."""
    found = list(comparisons(folder.name, results))
    rows = (
        {"": title(comparison), "arm": arm, **outcomes(list(runs.values()))}
        for comparison in found
        for arm, runs in comparison.arms.items()
    )
    return f"{table(rows, 'simple')}\n\nDrawn: {save(curves(found), folder / 'curves.png')}"


IMAGES = 359  # the digits that are test images


def show(results: Sequence[Result], output: Path) -> str:
    (comparison,) = comparisons("demo", results)
    last = {
        arm: next(iter(runs.values())).last.test_accuracy for arm, runs in comparison.arms.items()
    }
    mask, without = last["mix"], last[CONTROL]
    noise = 1.96 * ((mask * (1 - mask) + without * (1 - without)) / IMAGES) ** 0.5
    figure = curves([comparison])
    figure.suptitle(
        f"Is a mask a better start? In the end {100 * mask:.1f} % right with it, "
        f"{100 * without:.1f} % without"
    )
    rows = ({"arm": arm, **outcomes(list(runs.values()))} for arm, runs in comparison.arms.items())
    return render(
        "demo.txt",
        table=table(rows, "simple"),
        mask=100 * mask,
        without=100 * without,
        noise=100 * noise,
        images=IMAGES,
        epochs=len(comparison.results[0].epochs),
        figure=save(figure, output / "demo.png"),
    )
