"""What a folder of results holds, for the terminal; of the demo's folder, the answer too."""

from pathlib import Path

from tyro.conf import Positional

from benchmarks.pages.comparison import CONTROL, experiments
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
    mask, without = (arms[arm][0].last.test_accuracy for arm in ("mix", CONTROL))
    noise = 1.96 * ((mask * (1 - mask) + without * (1 - without)) / IMAGES) ** 0.5
    figure = curves([demo])
    figure.suptitle(
        f"Is a mask a better start? In the end {100 * mask:.1f} % right with it, "
        f"{100 * without:.1f} % without"
    )
    return render(
        "demo.txt",
        arms=arms,
        mask=100 * mask,
        without=100 * without,
        noise=100 * noise,
        images=IMAGES,
        figure=save(figure, folder / "demo.png"),
    )
