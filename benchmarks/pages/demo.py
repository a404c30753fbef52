"""What a folder of results holds, for the terminal; of the demo's folder, the answer too."""

from pathlib import Path

from tyro.conf import Positional

from benchmarks.pages.comparison import experiments
from benchmarks.pages.figures import curves, save
from benchmarks.pages.render import render

IMAGES = 359  # the digits that are test images


def overview(folder: Positional[Path] = Path("runs")) -> str:
    """Print the results of a folder as a table and draw their curves.

    Args:
        folder: Folder with the result files (*.json).
    """
    found = [phase for one in experiments(folder.name, folder) for phase in one.phases()]
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no result (*.json). Make some with `python -m benchmarks run "
            f"--output {folder}`, or name another folder."
        )
    return render("show.txt", found=found, figure=save(curves(found), folder / "curves.png"))


def show(folder: Path) -> str:
    (demo,) = experiments("demo", folder)
    arms = {of.arm: runs for of, runs in demo.groups.items()}
    figure = save(curves([demo]), folder / "demo.png")
    return render("demo.txt", arms=arms, images=IMAGES, figure=figure)
