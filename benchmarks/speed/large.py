"""The life of a model of up to 10^9 weights in bfloat16, in a process of its own.

It is wrapped, learns its masks for three steps of SGD with momentum, is reported on,
saved, loaded and unwrapped. With a score for each weight, a step holds 14 bytes per
weight at its peak: 2 weights, 4 scores, 4 their gradients and 4 momentum. The masked
weights and the masks (3 bytes) live from the forward to the backward, which frees them
as it makes the gradients. The weights have no gradients, since they are frozen.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import masktorch
from benchmarks.speed.memory import EXACT_MEMORY, bytes_at_peak
from benchmarks.speed.timing import Call, alone, turn

LAYERS = 60
BLOCK = (128, 128)
STEPS, BATCH = 3, 4
ESTIMATORS: dict[str, Callable[[], masktorch.Estimator]] = {
    "topk": lambda: masktorch.TopK(0.5),
    "blocks of topk": lambda: masktorch.Blocks(masktorch.TopK(0.5), BLOCK),
    "blocks of hard concrete": lambda: masktorch.Blocks(
        masktorch.HardConcrete(), BLOCK
    ),
}


class Case(NamedTuple):
    method: str  # a key of ESTIMATORS
    size: int

    def __str__(self) -> str:
        return f"{self.method}, {self.size:,} weights"


def cases(size: int) -> list[Case]:
    return [Case(method, size) for method in ESTIMATORS]


def measure(case: Case, device: torch.device) -> dict[str, Any]:
    """Return a fresh process's peak, the seconds of each call, and the file's size."""
    numbers = alone(live, case, device, variables=EXACT_MEMORY)
    return {"method": case.method, "numbers": numbers, "size": numbers.pop("size")}


def live(case: Case, device: torch.device) -> dict[str, Any]:
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    seconds: dict[str, float] = {}

    def timed(name: str, call: Call) -> None:
        seconds[f"{name}, s"] = turn(call, device)

    model = network(case.size, device)
    size = sum(weight.numel() for weight in model.parameters())
    timed("wrap", lambda: masktorch.wrap(model, ESTIMATORS[case.method]()))
    timed("3 steps", lambda: learn(model, device))
    timed("report", lambda: masktorch.report(model))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "masks.npz"
        timed("save", lambda: masktorch.save_masks(model, path))
        timed("load", lambda: masktorch.load_masks(model, path))
        file_bytes = path.stat().st_size
    timed("unwrap", lambda: masktorch.unwrap(model))
    return {
        "size": size,
        "peak, GiB": bytes_at_peak(device) / 2**30,
        "file, MB": file_bytes / 1e6,
        **seconds,
    }


def network(size: int, device: torch.device) -> nn.Module:
    """Return square linear layers whose sides are multiples of the block's."""
    blocks = max(1, round((size / LAYERS) ** 0.5 / BLOCK[0]))
    side = BLOCK[0] * blocks
    make_layer = partial(
        nn.utils.skip_init, nn.Linear, bias=False, device=device, dtype=torch.bfloat16
    )
    layers = [make_layer(side, side) for _ in range(LAYERS)]
    bound = (6 / side) ** 0.5  # keeps the size of activations, with half of the weights
    for layer in layers:
        nn.init.uniform_(layer.weight, -bound, bound)
    return nn.Sequential(*layers)


def learn(model: nn.Module, device: torch.device) -> None:
    side = next(model.parameters()).shape[1]
    inputs = torch.randn(BATCH, side, device=device, dtype=torch.bfloat16)
    scores = masktorch.mask_parameters(model)
    optimiser = torch.optim.SGD(scores, lr=0.1, momentum=0.9, fused=True)
    for _ in range(STEPS):
        optimiser.zero_grad()
        model(inputs).float().square().mean().backward()
        optimiser.step()
    optimiser.zero_grad()
