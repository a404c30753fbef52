"""Draw the mask and the gradient of each estimator over the score.

`python docs/figures/estimators.py` writes estimator-*.svg next to this file; names
of `CASES` as arguments draw these alone.
"""

import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

import masktorch
from masktorch import Estimator

SCORES = torch.linspace(-4, 4, 161)
DRAWS = 4000
CASES: dict[str, tuple[str, Estimator]] = {
    "threshold": ("Threshold()", masktorch.Threshold()),
    "bernoulli": ("Bernoulli()", masktorch.Bernoulli()),
    "intermediate": ("IntermediateSampling()", masktorch.IntermediateSampling()),
    "topk": ("TopK(0.5) among scores from -4 to 4", masktorch.TopK(0.5)),
    "movement": ("TopK(0.5, absolute=False)", masktorch.TopK(0.5, absolute=False)),
    "nofm": ("NOfM(2, 4) among three normal scores", masktorch.NOfM(2, 4)),
    "piggyback": ("Piggyback()", masktorch.Piggyback()),
    "hardconcrete": ("HardConcrete()", masktorch.HardConcrete()),
    "concrete": ("Concrete()", masktorch.Concrete()),
    "soft": ("Concrete(hard=False)", masktorch.Concrete(hard=False)),
}

# Stand-ins that the file replaces by variables, so that it suits light and dark pages.
INK, LINE, DOT, STILL = "#010101", "#020202", "#030303", "#040404"
STYLE = """<style>
:root { --ink: #1f2937; --line: #1d5fb4; --dot: #d97706; --still: #6b7280 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e5e7eb; --line: #7fb2f7; --dot: #fbbf24; --still: #9ca3af }
}
</style>
"""


def computed(estimator: Estimator) -> tuple[Tensor, Tensor, Tensor]:
    """The mask of training, its gradient for dL/dm = 1 and the mask of evaluation.

    Each row is a draw.
    """
    rows = DRAWS if getattr(estimator, "draws", True) else 1
    scores = SCORES.repeat(rows, 1)
    if isinstance(
        estimator, masktorch.NOfM
    ):  # each score is the first of a group of four
        scores = torch.randn(DRAWS, len(SCORES), 4)
        scores[:, :, 0] = SCORES
        scores = scores.flatten(0, 1)
    scores.requires_grad_()
    mask = estimator(scores)
    (gradient,) = torch.autograd.grad(mask.sum(), scores)
    found = mask.detach(), gradient, estimator.mode(scores.detach()).float()
    if isinstance(estimator, masktorch.NOfM):
        found = tuple(values[:, 0].view(DRAWS, -1) for values in found)
    return found


def figure(title: str, estimator: Estimator) -> Figure:
    mask, gradient, mode = computed(estimator)
    drawn, axes = plt.subplots(1, 2, figsize=(5.2, 1.9), layout="constrained")
    for axis, values, name in zip(
        axes, (mask, gradient), ("mask", "dL/ds"), strict=True
    ):
        x, mean = SCORES, values.mean(0)
        drawn_anew = not torch.equal(values[0], values[-1])
        if drawn_anew and not isinstance(estimator, masktorch.NOfM):
            axis.plot(x, values[0], ".", color=DOT, markersize=3)
        axis.plot(x, mean, color=LINE, linewidth=1.8)
        axis.set(xlabel="score s", title=name, xlim=(-4, 4))
    low, high = axes[1].get_ylim()
    axes[1].set(ylim=(min(low, -0.05 * high), 1.1 * high if low > 0.5 else high))
    if not torch.equal(mode.mean(0), mask.mean(0)):
        axes[0].plot(SCORES, mode.mean(0), "--", color=STILL, linewidth=1)
    axes[0].set(ylim=(-0.08, 1.08))
    drawn.suptitle(title, family="monospace", fontsize=9.5)
    return drawn


def write(drawn: Figure, path: Path) -> None:
    """The figure without its date, its colours as variables."""
    drawn.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(drawn)
    svg = path.read_text(encoding="utf-8")
    for colour, name in ((INK, "ink"), (LINE, "line"), (DOT, "dot"), (STILL, "still")):
        svg = svg.replace(colour, f"var(--{name})")
    svg = re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.4g}", svg)
    svg = re.sub(
        r"<\?xml.*?(?=<svg)|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL
    )
    svg = re.sub(r"\s*\n\s*", " ", svg)
    path.write_text(
        re.sub(r"(<svg[^>]*>)", r"\1" + STYLE, svg, count=1) + "\n", encoding="utf-8"
    )


def main() -> None:
    names = sys.argv[1:] or CASES
    plt.rcParams.update(
        {
            "svg.hashsalt": "masktorch",
            "font.size": 8.5,
            "axes.titlesize": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            **dict.fromkeys(
                [
                    "text.color",
                    "axes.labelcolor",
                    "axes.edgecolor",
                    "xtick.color",
                    "ytick.color",
                ],
                INK,
            ),
        }
    )
    for name in names:
        title, estimator = CASES[name]
        torch.manual_seed(0)  # each figure is the same drawn alone
        path = Path(__file__).with_name(f"estimator-{name}.svg")
        write(figure(title, estimator), path)


if __name__ == "__main__":
    main()
