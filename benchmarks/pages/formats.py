"""How pages and figures write numbers and settings."""

from collections.abc import Iterable, Sequence

from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.results import Result

DATASET_NAMES = {"cifar10": "CIFAR-10", "mnist": "MNIST", "digits": "digits"}
NOTHING = "-"  # in a cell without a number


def dataset_name(configuration: Configuration) -> str:
    return DATASET_NAMES[configuration.dataset]


def title(configuration: Configuration) -> str:
    """Return what a figure calls the runs of this configuration."""
    parts = [dataset_name(configuration), configuration.network_name.upper()]
    if configuration.image_size is not None:
        parts.append(f"{configuration.image_size}x{configuration.image_size}")
    if configuration.train_images is not None:
        parts.append(f"{configuration.train_images:,} images")
    if configuration.mix_lr is not None:
        parts.append(f"then lr {configuration.mix_lr:g}")
    return ", ".join(parts)


def method_name(configuration: Configuration) -> str:
    """Return an estimator with its density, if that is fixed: topk 0.3."""
    if configuration.density is None:
        return str(configuration.estimator)
    return f"{configuration.estimator} {configuration.density:g}"


def spread(values: Iterable[float | None], digits: int = 2, times: float = 1) -> str:
    """Return the mean and, of several values, the range: 71.67 (70.00 to 73.00)."""
    known = [value for value in values if value is not None]
    if not known:
        return NOTHING
    average = f"{times * (sum(known) / len(known)):.{digits}f}"
    if len(known) == 1:
        return average
    lowest, highest = times * min(known), times * max(known)
    return f"{average} ({lowest:.{digits}f} to {highest:.{digits}f})"


def points(difference: float, digits: int = 1) -> str:
    """Return a difference of accuracies in signed percentage points; never -0.0."""
    return f"{round(100 * difference, digits) + 0.0:+.{digits}f}"


def outcomes(runs: Sequence[Result]) -> str:
    """Return the cells `seeds | best | last | masked`, in %."""
    cells = (
        str(len(runs)),
        spread([run.best.test_accuracy for run in runs], times=100),
        spread([run.last.test_accuracy for run in runs], times=100),
        masked(runs),
    )
    return " | ".join(cells)


def masked(runs: Sequence[Result]) -> str:
    """Return the masked fraction in %, with its range: 30.1 (29.9 to 30.2)."""
    return spread([run.masked_fraction for run in runs], digits=1, times=100)
