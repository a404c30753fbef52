"""What `wrap`, `save_masks` and their like cost, as multiples of a plain pass over the weights."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import masktorch
from benchmarks.speed.memory import physical_bytes
from benchmarks.speed.timing import Call

LAYERS = 10  # square, bfloat16
SIZES = (10**6, 10**7, 10**8, 10**9)  # entries, about
MOST_ALIVE = 10  # bytes an entry that are alive at once, at most
REPETITIONS, ENTRIES = 5, 5 * 10**7  # so many, if they are of no more entries in all; else one


def sizes(device: torch.device) -> tuple[int, ...]:
    """None that would fill half of the machine's memory."""
    return tuple(size for size in SIZES if size * MOST_ALIVE <= physical_bytes() / 2)


def measure(size: int, device: torch.device) -> dict[str, Any]:
    """Medians: seconds of each function, and multiples of the pass of the same repetition."""
    repetitions = REPETITIONS if REPETITIONS * size <= ENTRIES else 1
    times = [repetition(size, device) for _ in range(repetitions)]
    multiples = [{name: took / each["pass"] for name, took in each.items()} for each in times]
    return {
        "size": size,
        "repetitions": repetitions,
        "seconds": {name: statistics.median(each[name] for each in times) for name in times[0]},
        "multiple": {
            name: statistics.median(each[name] for each in multiples) for name in times[0]
        },
    }


def repetition(size: int, device: torch.device) -> dict[str, float]:
    """Seconds of an out-of-place add of the weights, and of each function on one model, in the
    order of its life."""
    torch.manual_seed(0)
    model = network(size, device)
    weights = [parameter.detach() for parameter in model.parameters()]

    def randomise() -> None:  # half of each mask, at random: the most that a file can have to hold
        for scores in masktorch.mask_parameters(model):
            nn.init.uniform_(scores, -1, 1)

    def add() -> None:
        for weight in weights:
            torch.add(weight, weight)

    def using(masks: dict[str, torch.Tensor]) -> None:
        with masktorch.using(model, masks):
            pass

    def overall() -> None:
        masktorch.set_estimator(model, masktorch.TopK(0.5))
        masktorch.budget.overall(model, 0.5)
        masktorch.set_estimator(model, masktorch.Threshold())

    add()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "masks.npz"
        life: dict[str, Call] = {
            "pass": add,
            "wrap": lambda: masktorch.wrap(model),
            "randomise": randomise,
            "masks": lambda: masktorch.masks(model),
            "report": lambda: masktorch.report(model),
            "budget.overall": overall,
            "set_masks, learning": lambda: masktorch.set_masks(model, others),
            "using": lambda: using(others),
            "freeze_mask": lambda: masktorch.freeze_mask(model),
            "save_masks": lambda: masktorch.save_masks(model, path),
            "load_masks": lambda: masktorch.load_masks(model, path),
            "unwrap": lambda: masktorch.unwrap(model),
            "set_masks on a plain model": lambda: masktorch.set_masks(model, others),
            "set_masks, given": lambda: masktorch.set_masks(model, again),
        }
        times = {}
        for name, call in life.items():
            if name == "set_masks, learning":
                others = {n: ~mask for n, mask in masktorch.masks(model).items()}
                again = {n: ~mask for n, mask in others.items()}
            times[name] = _seconds(call, device)
    del times["randomise"]
    return times


def network(size: int, device: torch.device) -> nn.Module:
    """Square linear layers with weights that are all one half, quickly made."""
    width = round((size / LAYERS) ** 0.5)
    layers = [
        nn.Linear(width, width, bias=False, dtype=torch.bfloat16, device="meta")
        for _ in range(LAYERS)
    ]
    model = nn.Sequential(*layers).to_empty(device=device)
    for weight in model.parameters():
        nn.init.constant_(weight, 0.5)
    return model


def _seconds(call: Call, device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
