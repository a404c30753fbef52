"""What a folder of results holds, for the terminal."""

from pathlib import Path

from tyro.conf import Positional

from benchmarks.pages.comparison import experiments
from benchmarks.pages.figures import curves, save
from benchmarks.pages.render import render

IMAGES = {"digits": 359, "mnist": 10_000, "cifar10": 10_000}  # of the test sets


def show(folder: Positional[Path] = Path("runs")) -> str:
    """Print the results of a folder as a table, with what they answer, and draw their curves.

    Args:
        folder: Folder with the result files (*.json).
    """
    found = [phase for one in experiments(folder.name, folder) for phase in one.phases()]
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no result (*.json). Make some with `python -m benchmarks run "
            f"--output {folder}`, or name another folder."
        )
    figure = save(curves(found), folder / f"{folder.name}.png")
    return render("show.txt", found=found, images=IMAGES, figure=figure)
