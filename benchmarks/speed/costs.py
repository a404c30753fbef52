"""What `wrap`, `save_masks` and their like cost, as multiples of a plain pass over the weights; and
mask files: how near their size is to the entropy, what writing and reading them takes."""

import io
import math
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
import torch
from torch import nn

import masktorch
from benchmarks.speed.memory import fits
from benchmarks.speed.timing import Call, turn

LAYERS = 10  # square, bfloat16
MOST_ALIVE = 10  # bytes an entry that are alive at once, at most
REPETITIONS, ENTRIES = 5, 5 * 10**7  # so many, if they are of no more entries in all; else one
SIDE, DENSITIES = 2000, (0.01, 0.05, 0.08, 0.16, 0.3, 0.5)  # of files


def sizes(device: torch.device) -> list[int]:
    """Entries, about."""
    return [10**n for n in range(6, 10) if fits(10**n * MOST_ALIVE)]


def measure(size: int, device: torch.device) -> dict[str, Any]:
    """Medians: seconds of each function, and multiples of the pass of the same repetition."""
    repetitions = REPETITIONS if REPETITIONS * size <= ENTRIES else 1
    times = pd.DataFrame([repetition(size, device) for _ in range(repetitions)])
    return {
        "size": size,
        "repetitions": repetitions,
        "seconds": times.median().to_dict(),
        "multiple": times.div(times["pass"], axis=0).median().to_dict(),
    }


def repetition(size: int, device: torch.device) -> dict[str, float]:
    """Seconds of an out-of-place add of the weights, and of each function on one model, in the
    order of its life."""
    torch.manual_seed(0)
    model = network(size, device)
    weights = [parameter.detach() for parameter in model.parameters()]
    times: dict[str, float] = {}

    def timed(name: str, call: Call) -> None:
        times[name] = turn(call, device)

    def using() -> None:
        with masktorch.using(model, others):
            pass

    def overall() -> None:
        masktorch.set_estimator(model, masktorch.TopK(0.5))
        masktorch.budget.overall(model, 0.5)
        masktorch.set_estimator(model, masktorch.Threshold())

    def add() -> None:
        for weight in weights:
            torch.add(weight, weight)

    add()
    timed("pass", add)
    timed("wrap", lambda: masktorch.wrap(model))
    for scores in masktorch.mask_parameters(model):  # half of each mask, at random: the most that
        nn.init.uniform_(scores, -1, 1)  # a file can have to hold
    timed("masks", lambda: masktorch.masks(model))
    timed("report", lambda: masktorch.report(model))
    timed("budget.overall", overall)
    again = masktorch.masks(model)
    others = {name: ~mask for name, mask in again.items()}
    timed("set_masks, learning", lambda: masktorch.set_masks(model, others))
    timed("using", using)
    timed("freeze_mask", lambda: masktorch.freeze_mask(model))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "masks.npz"
        timed("save_masks", lambda: masktorch.save_masks(model, path))
        timed("load_masks", lambda: masktorch.load_masks(model, path))
    timed("unwrap", lambda: masktorch.unwrap(model))
    timed("set_masks on a plain model", lambda: masktorch.set_masks(model, others))
    timed("set_masks, given", lambda: masktorch.set_masks(model, again))
    return times


def network(size: int, device: torch.device) -> nn.Module:
    """Square linear layers with weights that are all one half, quickly made."""
    width = round((size / LAYERS) ** 0.5)
    with torch.device("meta"):
        square = [nn.Linear(width, width, False, dtype=torch.bfloat16) for _ in range(LAYERS)]
    model = nn.Sequential(*square).to_empty(device=device)
    for weight in model.parameters():
        nn.init.constant_(weight, 0.5)
    return model


def measure_file(density: float, device: torch.device) -> dict[str, Any]:
    """Medians of nanoseconds an entry, of a random mask of exactly this density."""
    torch.manual_seed(0)
    model = nn.Linear(SIDE, SIDE, bias=False, dtype=torch.bfloat16, device=device)
    scores, file = torch.rand(SIDE, SIDE, device=device), io.BytesIO()
    masktorch.set_masks(model, masktorch.keep_largest({"weight": scores}, density))

    def save() -> None:
        file.seek(0)
        masktorch.save_masks(model, file)

    def load() -> None:
        masktorch.load_masks(model, io.BytesIO(file.getvalue()))

    times = [
        {"save, ns": turn(save, device), "load, ns": turn(load, device)} for _ in range(REPETITIONS)
    ]
    entropy = -density * math.log2(density) - (1 - density) * math.log2(1 - density)
    return {
        "size": scores.numel(),
        "density": density,
        "bytes / entropy": len(file.getvalue()) / (entropy * scores.numel() / 8),
        **(pd.DataFrame(times).median() / scores.numel() * 1e9).to_dict(),
    }
