"""The command line: `python -m benchmarks --help`."""

import json
import sys
from pathlib import Path
from typing import Literal

import torch
from tyro.conf import OmitArgPrefixes, Positional
from tyro.extras import SubcommandApp

from benchmarks.atomic import replacing
from benchmarks.experiment import arms as experiment
from benchmarks.experiment import parallel
from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.download import download as fetch
from benchmarks.experiment.results import read_results
from benchmarks.pages import reproduction as page
from benchmarks.pages import speed_page, sweeps, table, toy
from benchmarks.pages.figures import draw
from benchmarks.pages.speed_figure import draw as draw_speed
from benchmarks.provenance import command_line
from benchmarks.speed import measure as side_by_side
from benchmarks.studies import catalogue, categorical, sweep
from benchmarks.studies import study as studies
from benchmarks.studies.estimate import expected_seconds

# Small enough for two cores and a minute and a half; all else is the blog's.
DEMO = Configuration(dataset="digits", depth=10, width=1, epochs=30, batch_size=32, mix_lr=1e-3)
DEMO_ARMS = ("mask", "weights", "mix")
DEMO_TEXT = """\
The blog's three arms, made small: its WRN-28-8 is a WRN-10-1 here, its MNIST and CIFAR-10 are
1,438 digits of 8x8 pixels from scikit-learn, its batches of 128 are of 32, and its mix arm's
learning rate of 1e-5, too small for so few steps, is 1e-3. Augmentation, optimiser, schedule, 30
epochs per arm and learning rate of the other two are the blog's. Ctrl-C stops; the same command
resumes.
"""
DESCRIPTION = """\
The experiment of "Super-Masks: Are They Good Initializations?", run with masktorch. Without a
command: the demo, the blog's arms made small on built-in data.
"""

app = SubcommandApp()
RUNS, DATA = Path("runs"), Path("data")


@app.command
def demo(output: Path = Path("runs/demo")) -> None:
    """The blog's arms, small, on scikit-learn's digits: train, then print and draw.

    Args:
        output: Folder for results and figures.
    """
    print(DEMO_TEXT)
    # A network this small gains little from a second thread, and on a busy machine waits for it.
    torch.set_num_threads(1)
    experiment.run(DEMO, DEMO_ARMS, DATA, output, "cpu", command_line())
    show_table(output)
    draw_figures(output, None)
    print(f"Results, best states, table and figures are in {output}")


@app.command
def run(
    configuration: OmitArgPrefixes[Configuration],
    arms: str = "mask,weights,mix",
    device: str = "auto",
    data_dir: Path = DATA,
    output: Path = RUNS,
) -> None:
    """Run arms of the experiment; the defaults are the blog's.

    Each arm leaves one JSON file in the output folder. An arm that has its result is skipped, a
    run that was stopped goes on after its last whole epoch, to the same numbers.

    Args:
        configuration: what decides the numbers.
        arms: Some of these, with commas between them; an arm that another starts from runs too.
            mask: scores train, weights stay random. weights: the reverse, no mask. mix: weights
            train under the frozen mask of mask's best epoch. weights-then-weights: weights' best
            epoch trains on as mix does. ticket: from the start again, under the mask of the
            largest weights. random-mix, random-ticket: likewise, under a mask as dense, but random.
        device: cpu, cuda, cuda:1, ...; auto: cuda where there is one.
        data_dir: Folder of the data sets.
        output: Folder for results and checkpoints.
    """
    chosen = arms.split(",")
    with parallel.processes(device):
        for path in experiment.run(configuration, chosen, data_dir, output, device, command_line()):
            print(path)


@app.command
def study(
    name: Positional[str],
    dry_run: bool = False,
    cluster: bool = False,
    cpus: float = 1,
    gpus: float = 0,
    device: str = "auto",
    data_dir: Path = DATA,
    output: Path = studies.RESULTS,
) -> None:
    """Run whatever of a study has no result yet, one run after the other.

    Args:
        name: Of the study; an unknown one prints them all.
        dry_run: Print the commands and how long each should take, and run nothing.
        cluster: Each run a job of the Ray cluster this machine is in, or else of a small one of
            its own. docs/cluster.md has how.
        cpus: Of each job.
        gpus: Of each job; 0.5 puts two on one.
        device: cpu, cuda, cuda:1, ...; auto: cuda where there is one.
        data_dir: Folder of the data sets.
        output: Folder of the study's folder.
    """
    chosen = catalogue.study(name)
    if not dry_run:
        if cluster:
            from benchmarks.studies import cluster as engine  # asks for the extra `cluster`

            paths = engine.run(chosen, data_dir, output, device, cpus, gpus)
        else:
            paths = studies.run(chosen, data_dir, output, device)
        for path in paths:
            print(path)
        return
    missing = chosen.missing(output)
    minutes = [expected_seconds(configuration) / 60 for configuration in missing]
    for configuration, expected in zip(missing, minutes, strict=True):
        print(f"{expected:6.1f} min  {studies.command(configuration, output / chosen.name)}")
    print(f"{sum(minutes) / 60:.1f} hours for {len(missing)} runs; more may follow from theirs.")


@app.command
def rebuild(
    masks: Positional[Path],
    dataset: Literal["digits", "mnist", "cifar10"],
    network: Literal["lenet-300-100", "conv-2", "conv-4", "conv-6"] = "lenet-300-100",
    weights: Literal["glorot", "signed-constant"] = "glorot",
    seed: int = 0,
    data_dir: Path = DATA,
) -> None:
    """Make a masked network from its seed and its mask file alone, and evaluate it.

    Args:
        masks: A *.masks.npz file of the mask arm.
        dataset: The run's.
        network: The run's.
        weights: The run's.
        seed: The run's.
        data_dir: Folder of the data sets.
    """
    configuration = Configuration(dataset=dataset, network=network, weights=weights, seed=seed)
    accuracy = experiment.rebuild(configuration, masks, data_dir)
    print(f"test accuracy {accuracy:.4f} from seed {seed} and {masks.stat().st_size:,} bytes")


@app.command(name="table")
def show_table(folder: Positional[Path] = RUNS) -> None:
    """Print the results of a folder as a Markdown table and write it there as table.md.

    Args:
        folder: Folder with the result files (*.json).
    """
    text = table.markdown(read_results(folder))
    with replacing(folder / "table.md") as partial:
        partial.write_text(text)
    print(text)
    print(f"Written to {folder / 'table.md'}")


@app.command(name="figures")
def draw_figures(folder: Positional[Path] = RUNS, output: Path | None = None) -> None:
    """Draw training curves and mask utilisation from the results of a folder.

    Args:
        folder: Folder with the result files (*.json).
        output: Where to write. None: the results' folder.
    """
    for path in draw(read_results(folder), output or folder):
        print(f"Drawn: {path}")


@app.command
def download(
    dataset: Positional[Literal["mnist", "cifar10"]],
    data_dir: Path = DATA,
    base_url: str | None = None,
) -> None:
    """Fetch MNIST (12 MB) or CIFAR-10 (170 MB) and check the published MD5s.

    Args:
        dataset: Which.
        data_dir: Folder of the data sets.
        base_url: A mirror, with its last slash. None: the canonical one.
    """
    print(f"{dataset} is in {fetch(dataset, data_dir, base_url)}")


@app.command(name="sweep")
def run_sweep(
    which: Literal["lenet", "wrn", "literature", "finalists"] = "lenet",
    data_dir: Path = DATA,
    output: Path = RUNS,
) -> None:
    """Compare settings of the first three estimators, mask only, on held-out training images.

    Args:
        which: lenet: LeNet-300-100 on MNIST. wrn: WRN-16-1 on a part of CIFAR-10. literature: as
            lenet, with Zhou et al.'s additions. finalists: its best, longer.
        data_dir: Folder of the data sets.
        output: Folder for WHICH.json.
    """
    path = sweep.sweep(which, data_dir, output, command_line())
    print(sweeps.markdown(path))
    print(f"Written to {path}")


@app.command(name="categorical")
def run_toy(output: Path = RUNS, figures: Path | None = None) -> None:
    """Recover a distribution from single draws: intermediate sampling against Gumbel-softmax.

    Args:
        output: Folder for categorical.json.
        figures: Folder for the figure. None: the output folder.
    """
    path = categorical.run(output, command_line())
    descents = toy.read(path)
    print(toy.markdown(descents))
    print(f"Written to {path}")
    print(f"Drawn: {toy.draw(descents, figures or output)}")


@app.command
def reproduction() -> None:
    """Write docs/reproduction.md and its figures from the results in benchmarks/results."""
    print(f"Written to {page.write(page.RESULTS, page.DOCS)}")


@app.command
def speed(only: str = ",".join(side_by_side.PARTS), output: Path = Path("runs/speed")) -> None:
    """Measure speed and memory beside plain training, on a GPU where there is one.

    About ten minutes on two idle cores.

    Args:
        only: Some of these, with commas between them. steps: training steps, masktorch beside its
            rivals. floor: the estimators alone. memory: peaks. costs: wrap, save_masks and so on.
        output: Folder for speed.json and the figure.
    """
    path = side_by_side.measure(only.split(","), output, command_line())
    content = json.loads(path.read_text())
    print(speed_page.tables(content))
    print(f"Written to {path}")
    print(f"Drawn: {draw_speed(content, output / 'speed.png')}")


@app.command(name="speed-page")
def write_speed_page() -> None:
    """Write docs/speed.md and its figures from the results in benchmarks/results/speed."""
    print(f"Written to {speed_page.write(speed_page.RESULTS, speed_page.DOCS)}")


def main() -> None:
    try:
        app.cli(
            prog="python -m benchmarks",
            description=DESCRIPTION,
            args=sys.argv[1:] or ["demo"],
        )
    except (ValueError, FileNotFoundError) as error:  # the benchmarks' own and masktorch's
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
