"""What learned supermasks reach on the networks of the literature, the published numbers beside."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.results import Result, read_results
from benchmarks.pages.table import origins, spread

PUBLISHED = {  # test accuracy in %, one column per entry of SOURCES
    "lenet-300-100": ("98.0", "-", "-", "97.48", "97.43"),
    "conv-2": ("66.0", "65", "70", "68.37", "68.79"),
    "conv-4": ("72.5", "74", "79", "77.40", "74.50"),
    "conv-6": ("76.5", "77", "82", "79.17", "75.91"),
}
SOURCES = ("Zhou et al.", "edge-popup", "biprop", "signed supermask", "trained weights")
HEADER = (
    "| # | network | our setting | seeds | epochs | our accuracy | masked fraction | "
    + " | ".join(SOURCES)
    + " |"
)
NOTES = """
Test accuracy in %, ours after the last epoch with nothing selected on the test set: the mean of the
seeds (lowest to highest); the masked fraction is of the best epoch's mask. LeNet-300-100 is on
MNIST, a Conv network on CIFAR-10. Settings were compared on held-out training images alone
(`benchmarks/results/sweep/literature.json` and `finalists.json`). Zhou et al.: their best learned
mask (arXiv 1905.01067, with rescaling and signed constants). Edge-popup (arXiv 1911.13299) and
biprop (arXiv 2103.09377): as the authors of signed supermasks quote them. Signed supermask, and the
weights trained as its baseline: arXiv 2201.13361.

What differs from the publications: Adam with a cosine, where Zhou et al. train with SGD; one
deterministic mask is measured, where they average ten drawn ones; scores start at a constant, with
every weight kept; no image is augmented. Biprop also scales and signed supermasks also flip
weights, so both choose among more networks than a mask alone.
"""


def markdown(folder: Path) -> str:
    """A row per configuration in a folder of results, its seeds together, then the commands."""
    groups: dict[Configuration, list[Result]] = {}
    for result in read_results(folder):
        groups.setdefault(replace(result.configuration, seed=0), []).append(result)
    networks = list(PUBLISHED)
    ordered = sorted(groups.values(), key=lambda g: networks.index(g[0].configuration.network))
    rows = [_row(number, group) for number, group in enumerate(ordered, start=1)]
    separator = "|" + " --- |" * (HEADER.count("|") - 1)
    return "\n".join([HEADER, separator, *rows, NOTES, origins(ordered), ""])


def setting(configuration: Configuration) -> str:
    """What a run differs in from the blog's, in words."""
    parts = [
        configuration.estimator,
        f"{configuration.weights} weights",
        "rescaled" if configuration.rescale else None,
        f"learning rate {configuration.lr:g}, {configuration.schedule}",
        f"scores from {configuration.init:g}" if configuration.init is not None else None,
        f"batches of {configuration.batch_size}",
        configuration.precision,
    ]
    return ", ".join(part for part in parts if part)


def _row(number: int, group: Sequence[Result]) -> str:
    configuration = group[0].configuration
    cells = [
        str(number),
        configuration.network_name,
        setting(configuration),
        str(len(group)),
        str(configuration.epochs),
        spread([100 * result.last.test_accuracy for result in group], 2),
        spread([m for result in group if (m := result.masked_fraction) is not None], 2),
        *PUBLISHED[configuration.network],
    ]
    return f"| {' | '.join(cells)} |"
