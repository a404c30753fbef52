"""The experiment of "Super-Masks: Are They Good Initializations?", run with masktorch.

Without a command: the demo, the blog's arms made small on built-in data.
"""

import sys
from pathlib import Path
from typing import Annotated

import torch
from tyro.conf import OmitArgPrefixes, Positional, arg
from tyro.extras import SubcommandApp

from benchmarks import Location, check_names
from benchmarks.encoder import experiments as encoder
from benchmarks.experiment import parallel, runner
from benchmarks.experiment.arms import ARMS
from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.data import download
from benchmarks.experiment.results import RESULTS
from benchmarks.files import command_line
from benchmarks.pages import reproduction as reproduction_page
from benchmarks.pages import speed as speed_page
from benchmarks.pages import summary
from benchmarks.pages.render import render
from benchmarks.speed import costs
from benchmarks.studies import catalogue, categorical
from benchmarks.studies import study as studies

app = SubcommandApp()
COMMITTED = Location(output=RESULTS)
ARMS_HELP = (
    "Some of these, with commas between them; an arm that another starts from "
    "runs too. " + " ".join(f"{arm.name}: {arm.help}." for arm in ARMS.values())
)


@app.command
def demo(output: Path = Path("runs")) -> str:
    """Run the blog's arms, made small, on scikit-learn's digits; print the answer.

    Args:
        output: Folder of the folder demo.
    """
    print(render("demo_start.txt", run=catalogue.SMALL.for_arm("mix")))
    # A second thread hardly helps so small a network, and waits for it on a busy
    # machine.
    torch.set_num_threads(1)
    for _ in studies.run(catalogue.DEMO, Location(output=output, device="cpu")):
        pass
    return show(output / catalogue.DEMO.name)


@app.command
def run(
    configuration: OmitArgPrefixes[Configuration],
    location: OmitArgPrefixes[Location],
    arms: Annotated[str, arg(help=ARMS_HELP)] = "mask,weights,mix",
) -> None:
    """Run arms of the experiment; the defaults are the blog's.

    Each arm appends one line to results.jsonl in the output folder. An arm that has its
    result there is skipped. A run that was stopped resumes after its last complete
    epoch, with the same numbers.
    """
    chosen = arms.split(",")
    check_names("--arms", chosen, ARMS)
    with parallel.processes(location.device):
        for result in runner.run(configuration, chosen, location, command_line()):
            print(result.configuration.name)


@app.command
def study(
    name: Positional[str],
    location: OmitArgPrefixes[Location] = COMMITTED,
    dry_run: bool = False,
    cluster: bool = False,
    cpus: float = 1,
    gpus: float = 0,
    minutes: float | None = None,
    at_once: int = 1,
) -> None:
    """Run what has no result yet in a study, one run after the other.

    Args:
        name: The study; an unknown name prints all names.
        dry_run: Print the commands and their expected times, and run nothing.
        cluster: Run each as a job of the Ray cluster of this machine, or of a small one
            that is started here. docs/cluster.md explains it.
        cpus: Per job.
        gpus: Per job; 0.5 puts two on one.
        minutes: Stop after this time, on a machine that is rented by the minute. The
            same command resumes.
        at_once: With --minutes, how many runs share this machine or its GPU.
    """
    check_names("study", [name], catalogue.STUDIES)
    chosen = catalogue.STUDIES[name]
    if dry_run:
        _print_missing(chosen, location)
        return
    if minutes is not None:
        studies.run_against_the_clock(chosen, location, minutes, at_once)
        return
    if cluster:
        results = studies.run_on_cluster(chosen, location, cpus=cpus, gpus=gpus)
    else:
        results = studies.run(chosen, location)
    for result in results:
        print(result.configuration.name)


def _print_missing(chosen: studies.Study, location: Location) -> None:
    total = 0.0
    missing = chosen.missing(location.output)
    for configuration in missing:
        minutes = studies.expected_seconds(configuration) / 60
        total += minutes
        line = studies.command(configuration, location.output / chosen.name)
        print(f"{minutes:6.1f} min  {line}")
    print(f"{total / 60:.1f} hours for {len(missing)} runs; more may follow theirs.")


@app.command
def show(folder: Positional[Path] = Path("runs")) -> str:
    """Print a folder's results as a table with their answer, and draw their curves.

    Args:
        folder: Folder with results.jsonl.
    """
    return summary.show(folder)


@app.command
def speed(only: str = ",".join(costs.USUAL), output: Path = Path("runs/speed")) -> str:
    """Measure speed and memory against plain training: 15 minutes.

    On a GPU if there is one.

    Args:
        only: Some of these, with commas between them. steps: training steps and
            inference, of masktorch and of alternatives. floor: the estimators alone.
            memory: peaks. costs: wrap, set_masks and so on. files: mask files of
            several densities. calls: the calls of a mask where layers are small, and
            its kernels. large: the life of a model of 10^9 weights, which takes 14 GiB
            and runs only if it is named here.
        output: Folder for speed.json.
    """
    parts = only.split(",")
    check_names("--only", parts, costs.PARTS)
    content, path = costs.measure(parts, output, command_line())
    return f"{speed_page.measured(content)}Written to {path}"


app.command(download)
app.command(name="categorical")(categorical.run)
app.command(name="encoder")(encoder.run)
app.command(name="reproduction")(reproduction_page.write)
app.command(name="speed-page")(speed_page.write)


def main() -> None:
    command = sys.argv[1:] or ["demo"]
    try:
        result = app.cli(prog="python -m benchmarks", description=__doc__, args=command)
    except (ValueError, FileNotFoundError) as error:  # from here and from masktorch
        sys.exit(f"error: {error}")
    if result is not None:
        print(f"Written to {result}" if isinstance(result, Path) else result.rstrip())


if __name__ == "__main__":
    main()
