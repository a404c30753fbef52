"""The experiment of "Super-Masks: Are They Good Initializations?", run with masktorch. Without a
command: the demo, the blog's arms made small on built-in data."""

import sys
from functools import partial
from pathlib import Path

import torch
from tyro.conf import OmitArgPrefixes, Positional
from tyro.extras import SubcommandApp

from benchmarks import Place, check_names
from benchmarks.experiment import arms as experiment
from benchmarks.experiment import parallel
from benchmarks.experiment.configuration import ARMS, Configuration
from benchmarks.experiment.data import download
from benchmarks.experiment.results import RESULTS
from benchmarks.files import command_line
from benchmarks.pages import figures
from benchmarks.pages import reproduction as reproduction_page
from benchmarks.pages import speed as speed_page
from benchmarks.pages.comparison import experiments
from benchmarks.pages.render import render
from benchmarks.speed import costs
from benchmarks.studies import catalogue, categorical
from benchmarks.studies import study as studies

app = SubcommandApp()
COMMITTED = Place(output=RESULTS)


@app.command
def demo(output: Path = Path("runs")) -> str:
    """The blog's arms, small, on scikit-learn's digits: train, then print and draw.

    Args:
        output: Folder of the folder demo.
    """
    print(render("demo_start.txt", run=catalogue.SMALL.for_arm("mix")))
    # A network this small gains little from a second thread, and on a busy machine waits for it.
    torch.set_num_threads(1)
    list(studies.run(catalogue.DEMO, Place(output=output, device="cpu")))
    return show(output / catalogue.DEMO.name)


@app.command
def run(
    configuration: OmitArgPrefixes[Configuration],
    place: OmitArgPrefixes[Place],
    arms: str = "mask,weights,mix",
) -> None:
    """Run arms of the experiment; the defaults are the blog's.

    Each arm leaves one JSON file in the output folder. An arm that has its result is skipped, a
    run that was stopped goes on after its last whole epoch, to the same numbers.

    Args:
        arms: Some of these, with commas between them; an arm that another starts from runs too.
            mask: scores train, weights stay random. weights: the reverse, no mask. mix: weights
            train under the frozen mask of mask's best epoch. weights-then-weights: weights' best
            epoch trains on as mix does. ticket: from the start again, under the mask of the
            largest weights. random-mix, random-ticket: likewise, under a mask as dense, but random.
    """
    chosen = arms.split(",")
    check_names("--arms", chosen, ARMS)
    with parallel.processes(place.device):
        for path in experiment.run(configuration, chosen, place, command_line()):
            print(path)


@app.command
def study(
    name: Positional[str],
    place: OmitArgPrefixes[Place] = COMMITTED,
    dry_run: bool = False,
    cluster: bool = False,
    cpus: float = 1,
    gpus: float = 0,
) -> None:
    """Run whatever of a study has no result yet, one run after the other.

    Args:
        name: Of the study; an unknown one prints them all.
        dry_run: Print the commands and how long each should take, and run nothing.
        cluster: Each run a job of the Ray cluster this machine is in, or else of a small one of
            its own. docs/cluster.md has how.
        cpus: Of each job.
        gpus: Of each job; 0.5 puts two on one.
    """
    check_names("study", [name], catalogue.STUDIES)
    chosen = catalogue.STUDIES[name]
    if dry_run:
        minutes = []
        for missing in chosen.missing(place.output):
            minutes.append(studies.expected_seconds(missing) / 60)
            print(f"{minutes[-1]:6.1f} min  {studies.command(missing, place.output / name)}")
        print(f"{sum(minutes) / 60:.1f} hours for {len(minutes)} runs; more may follow theirs.")
        return
    make = partial(studies.run_on_cluster, cpus=cpus, gpus=gpus) if cluster else studies.run
    for path in make(chosen, place):
        print(path)


@app.command
def show(folder: Positional[Path] = Path("runs")) -> str:
    """Print the results of a folder as a table, with what they answer, and draw their curves.

    Args:
        folder: Folder with the result files (*.json).
    """
    found = [phase for one in experiments(folder) for phase in one.phases()]
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no result (*.json). Make some with `python -m benchmarks run`."
        )
    figure = figures.save(figures.curves(found), folder / f"{folder.resolve().name}.png")
    return render("show.txt", found=found, figure=figure)


@app.command
def speed(only: str = ",".join(costs.PARTS), output: Path = Path("runs/speed")) -> str:
    """Measure speed and memory beside plain training, on a GPU where there is one: 15 minutes.

    Args:
        only: Some of these, with commas between them. steps: training steps and inference,
            masktorch beside its rivals. floor: the estimators alone. memory: peaks. costs: wrap,
            set_masks and so on. files: mask files of several densities.
        output: Folder for speed.json.
    """
    parts = only.split(",")
    check_names("--only", parts, costs.PARTS)
    content, path = costs.measure(parts, output, command_line())
    return f"{speed_page.measured(content)}Written to {path}"


app.command(download)
app.command(name="categorical")(categorical.run)
app.command(name="reproduction")(reproduction_page.write)
app.command(name="speed-page")(speed_page.write)


def main() -> None:
    command = sys.argv[1:] or ["demo"]
    try:
        result = app.cli(prog="python -m benchmarks", description=__doc__, args=command)
    except (ValueError, FileNotFoundError) as error:  # the benchmarks' own and masktorch's
        sys.exit(f"error: {error}")
    if result is not None:
        print(f"Written to {result}" if isinstance(result, Path) else result.rstrip())


if __name__ == "__main__":
    main()
