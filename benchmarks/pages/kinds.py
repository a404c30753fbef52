"""Masked fractions by kind of layer of a wide residual network."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import mean

from benchmarks.experiment.results import Layer, overall_masked_fraction
from benchmarks.pages.settings import Setting

KINDS: dict[str, Callable[[str], bool]] = {
    "all layers": lambda layer: True,
    "stem": lambda layer: layer == "stem",
    "3x3 in blocks": lambda layer: ".conv" in layer,
    "1x1 shortcuts": lambda layer: layer.endswith(".shortcut"),
    "dense": lambda layer: layer == "classifier",
}


def mean_of_seeds(setting: Setting, arm: str) -> list[Layer]:
    """The layers of an arm's masks, each with the mean of its seeds."""
    runs = [result.utilisation for result in setting.arms[arm].values()]
    return [
        replace(same[0], masked=mean(layer.masked for layer in same))
        for same in zip(*runs, strict=True)
    ]


def shares(layers: Sequence[Layer]) -> Iterator[str]:
    """Per kind the masked share of its parameters, and the range of its layers."""
    for belongs in KINDS.values():
        kind = [layer for layer in layers if belongs(layer.layer)]
        share = f"{100 * overall_masked_fraction(kind):.1f} %" if kind else "-"
        yield share if len(kind) < 2 else f"{share} ({layer_range(kind)})"


def layer_range(layers: Sequence[Layer]) -> str:
    low, high = (100 * pick(layer.masked for layer in layers) for pick in (min, max))
    return f"{low:.1f} to {high:.1f}"


def small_and_large(layers: Sequence[Layer]) -> tuple[float, float]:
    """The masked fraction of the small layers (1x1 shortcuts and the dense layer together) and of
    the 3x3 convolutions in the blocks."""
    small, large = ("1x1 shortcuts", "dense"), ("3x3 in blocks",)
    small_fraction, large_fraction = (
        overall_masked_fraction(
            [layer for layer in layers if any(KINDS[kind](layer.layer) for kind in kinds)]
        )
        for kinds in (small, large)
    )
    return small_fraction, large_fraction
