"""The command line: `python -m benchmarks --help`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from benchmarks import categorical as toy
from benchmarks import reproduction as page
from benchmarks import speed as side_by_side
from benchmarks import speed_page, table
from benchmarks.atomic import replacing
from benchmarks.configuration import ARMS, Configuration
from benchmarks.download import download as fetch
from benchmarks.experiment import rebuild as rebuild_network
from benchmarks.experiment import run as run_arms
from benchmarks.figures import draw
from benchmarks.results import command_line, read_results
from benchmarks.speed_figure import draw as draw_speed
from benchmarks.sweep import markdown
from benchmarks.sweep import sweep as run_sweep

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

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
Folder = Annotated[Path, typer.Argument(help="Folder with the result files (*.json).")]
Network = Literal["wrn", "lenet-300-100", "conv-2", "conv-4", "conv-6"]
Weights = Literal["glorot", "signed-constant"]
DataDir = Annotated[Path, typer.Option(help="Folder of the data sets.")]


@app.callback(invoke_without_command=True)
def default(context: typer.Context) -> None:
    """The experiment of "Super-Masks: Are They Good Initializations?", run with masktorch.

    Without a command: the demo, the blog's three arms made small on built-in data, about a minute
    and a half on two cores.
    """
    if context.invoked_subcommand is None:
        demo()


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for results and figures.")] = Path(
        "runs/demo"
    ),
) -> None:
    """The blog's three arms, small, on scikit-learn's digits: train, then print and draw."""
    print(DEMO_TEXT)
    # A network this small gains little from a second thread, and on a busy machine waits for it.
    torch.set_num_threads(1)
    run_arms(DEMO, DEMO_ARMS, Path("data"), output, "cpu")
    _show(output)


@app.command()
def run(
    dataset: Annotated[
        Literal["digits", "mnist", "cifar10"],
        typer.Option(help="digits come with scikit-learn; for the others see `download`."),
    ],
    arms: Annotated[
        str,
        typer.Option(
            metavar="ARM,...",
            help="mask: scores train, weights stay random. weights: the reverse, no mask. mix: "
            "weights train under the frozen mask of mask's best epoch. weights-then-weights: "
            "weights' best epoch trains on as mix does. An arm that another starts from runs too.",
        ),
    ] = "mask,weights,mix",
    estimator: Annotated[
        Literal["threshold", "bernoulli", "intermediate"],
        typer.Option(help="How the mask follows from its scores (arms mask and mix)."),
    ] = "threshold",
    init: Annotated[
        float | None, typer.Option(help="Where scores start.", show_default="the estimator's own")
    ] = None,
    rescale: Annotated[
        bool,
        typer.Option("--rescale", help="Divide the weights under the mask by its density."),
    ] = False,
    network: Annotated[
        Network, typer.Option(help="wrn: the blog's wide residual network.")
    ] = "wrn",
    depth: Annotated[int, typer.Option(help="Of the wrn: 6n + 4 layers.")] = 28,
    width: Annotated[int, typer.Option(min=1, help="Of the wrn: channels / 16.")] = 8,
    weights: Annotated[
        Weights,
        typer.Option(help="Random; signed-constant: sign(W) * std(W) of each glorot kernel W."),
    ] = "glorot",
    epochs: Annotated[int, typer.Option(min=1, help="Per arm.")] = 30,
    batch_size: Annotated[int, typer.Option(min=1)] = 128,
    lr: Annotated[float, typer.Option(min=0, help="Adam's, arms mask and weights.")] = 1e-2,
    score_lr: Annotated[
        float | None, typer.Option(min=0, help="Of the scores, arm mask.", show_default="lr")
    ] = None,
    mix_lr: Annotated[
        float, typer.Option(min=0, help="Adam's, arms mix and weights-then-weights.")
    ] = 1e-5,
    schedule: Annotated[
        Literal["plateau", "cosine"],
        typer.Option(help="plateau: Keras's, on the training accuracy. cosine: down to 0."),
    ] = "plateau",
    seed: Annotated[int, typer.Option(min=0, help="Of all randomness.")] = 0,
    precision: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="bfloat16: autocast, faster.")
    ] = "float32",
    train_images: Annotated[
        int | None, typer.Option(help="Train on the first so many only.", show_default="all")
    ] = None,
    held_out: Annotated[
        int | None,
        typer.Option(
            help="Measure on so many of the last training images, and do not train on them.",
            show_default="on the test set",
        ),
    ] = None,
    faithful_scaling: Annotated[
        bool,
        typer.Option(
            "--faithful-scaling",
            help="MNIST as the blog's code has it: 2x - 1 of the bytes, -1 to 509, not -1 to 1.",
        ),
    ] = False,
    augmentation: Annotated[
        bool, typer.Option(help="Flip, rotate and shift the training images as the blog does.")
    ] = True,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1, ...; auto: cuda where there is one.")
    ] = "auto",
    data_dir: DataDir = Path("data"),
    output: Annotated[Path, typer.Option(help="Folder for results and checkpoints.")] = Path(
        "runs"
    ),
) -> None:
    """Run arms of the experiment; the defaults are the blog's.

    Each arm leaves one JSON file in the output folder. An arm that has its result is skipped, a
    run that was stopped goes on after its last whole epoch, to the same numbers.
    """
    chosen = arms.split(",")
    if unknown := [arm for arm in chosen if arm not in ARMS]:
        raise typer.BadParameter(
            f"{', '.join(map(repr, unknown))} is no arm; choose from {', '.join(ARMS)}, with "
            f"commas between them.",
            param_hint="--arms",
        )
    if faithful_scaling and dataset != "mnist":
        raise typer.BadParameter(
            f"is about MNIST alone; found --dataset {dataset}. Leave it out.",
            param_hint="--faithful-scaling",
        )
    options = Configuration(
        dataset=dataset,
        network=network,
        depth=depth,
        width=width,
        weights=weights,
        estimator=estimator,
        init=init,
        rescale=rescale,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        score_lr=score_lr,
        mix_lr=mix_lr,
        schedule=schedule,
        seed=seed,
        precision=precision,
        train_images=train_images,
        held_out=held_out,
        faithful_scaling=faithful_scaling,
        augmentation=augmentation,
    )
    for path in run_arms(options, chosen, data_dir, output, device):
        print(path)


@app.command()
def rebuild(
    masks: Annotated[Path, typer.Argument(help="A *.masks.npz file of the mask arm.")],
    dataset: Annotated[Literal["digits", "mnist", "cifar10"], typer.Option()],
    network: Annotated[Network, typer.Option()] = "lenet-300-100",
    weights: Annotated[Weights, typer.Option(help="The run's.")] = "glorot",
    seed: Annotated[int, typer.Option(min=0, help="The run's.")] = 0,
    data_dir: DataDir = Path("data"),
) -> None:
    """Make a masked network from its seed and its mask file alone, and evaluate it."""
    configuration = Configuration(dataset=dataset, network=network, weights=weights, seed=seed)
    accuracy = rebuild_network(configuration, masks, data_dir)
    print(f"test accuracy {accuracy:.4f} from seed {seed} and {masks.stat().st_size:,} bytes")


@app.command("table")
def show_table(folder: Folder = Path("runs")) -> None:
    """Print the results of a folder as a Markdown table and write it there as table.md."""
    text = table.markdown(read_results(folder))
    path = folder / "table.md"
    with replacing(path) as partial:
        partial.write_text(text)
    print(text)
    print(f"Written to {path}")


@app.command("figures")
def draw_figures(
    folder: Folder = Path("runs"),
    output: Annotated[
        Path | None, typer.Option(help="Where to write.", show_default="the results' folder")
    ] = None,
) -> None:
    """Draw training curves and mask utilisation from the results of a folder."""
    for path in draw(read_results(folder), output or folder):
        print(f"Drawn: {path}")


@app.command()
def download(
    dataset: Annotated[Literal["mnist", "cifar10"], typer.Argument()],
    data_dir: DataDir = Path("data"),
    base_url: Annotated[
        str | None,
        typer.Option(help="A mirror, with its last slash.", show_default="the canonical one"),
    ] = None,
) -> None:
    """Fetch MNIST (12 MB) or CIFAR-10 (170 MB) and check the published MD5s."""
    print(f"{dataset} is in {fetch(dataset, data_dir, base_url)}")


@app.command()
def sweep(
    which: Annotated[
        Literal["lenet", "wrn", "literature", "finalists"],
        typer.Option(
            help="lenet: LeNet-300-100 on MNIST. wrn: WRN-16-1 on a part of CIFAR-10. "
            "literature: as lenet, with Zhou et al.'s additions. finalists: its best, longer.",
        ),
    ] = "lenet",
    data_dir: DataDir = Path("data"),
    output: Annotated[Path, typer.Option(help="Folder for WHICH.json.")] = Path("runs"),
) -> None:
    """Compare settings of the estimators, mask only, on held-out training images."""
    path = run_sweep(which, data_dir, output, command_line())
    print(markdown(path))
    print(f"Written to {path}")


@app.command()
def categorical(
    output: Annotated[Path, typer.Option(help="Folder for categorical.json.")] = Path("runs"),
    figures: Annotated[
        Path | None, typer.Option(help="Folder for the figure.", show_default="the output folder")
    ] = None,
) -> None:
    """Recover a distribution from single draws: intermediate sampling against Gumbel-softmax."""
    path = toy.run(output, command_line())
    descents = toy.read(path)
    print(toy.markdown(descents))
    print(f"Written to {path}")
    print(f"Drawn: {toy.draw(descents, figures or output)}")


@app.command()
def reproduction() -> None:
    """Write docs/reproduction.md and its figures from the results in benchmarks/results."""
    print(f"Written to {page.write(page.RESULTS, page.DOCS)}")


@app.command()
def speed(
    only: Annotated[
        str,
        typer.Option(
            metavar="PART,...",
            help="steps: training steps, masktorch beside its rivals. floor: the estimators alone. "
            "memory: peaks. costs: wrap, save_masks and their like.",
        ),
    ] = ",".join(side_by_side.PARTS),
    output: Annotated[Path, typer.Option(help="Folder for speed.json and the figure.")] = Path(
        "runs/speed"
    ),
) -> None:
    """Measure speed and memory beside plain training, on a GPU where there is one.

    About ten minutes on two idle cores.
    """
    path = side_by_side.measure(only.split(","), output, command_line())
    content = json.loads(path.read_text())
    print(speed_page.tables(content))
    print(f"Written to {path}")
    print(f"Drawn: {draw_speed(content, output / 'speed.png')}")


@app.command("speed-page")
def write_speed_page() -> None:
    """Write docs/speed.md and its figures from the results in benchmarks/results/speed."""
    print(f"Written to {speed_page.write(speed_page.RESULTS, speed_page.DOCS)}")


def _show(folder: Path) -> None:
    show_table(folder)
    draw_figures(folder, None)
    print(f"Results, best states, table and figures are in {folder}")


def main() -> None:
    try:
        app(prog_name="python -m benchmarks")
    except (ValueError, FileNotFoundError) as error:  # the benchmarks' own and masktorch's
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
