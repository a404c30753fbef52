"""What is measured, by part; and some parts that are not training steps.

floor: the estimators alone, against what memory bandwidth allows. costs: `wrap`,
`save_masks` and so on, against a pass over the weights. files: mask files of several
densities.
"""

import gc
import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd  # type: ignore[import-untyped]
import torch
from torch import nn

import masktorch
from benchmarks.experiment.estimators import MEASURED, Product
from benchmarks.experiment.training import progress_bar
from benchmarks.files import environment, write_text
from benchmarks.speed import calls, large, memory, rivals, steps
from benchmarks.speed.timing import Call, ratios, side_by_side, turn

SECONDS, AT_LEAST = 2.0, 3  # of rounds per case, after the warm-up

# A masked tensor has to move 12 bytes per entry in the forward (weight, score, product)
# and 16 in the backward (gradient, weight, score, gradient of the score), in float32.
# The floor is the time of moving these 28 bytes at the rate of a plain add, which moves
# 12 (two operands, a result).
ADD_BYTES, FLOOR_BYTES = 12, 28
BYTES_ALLOCATED = 40  # per entry, by the measurement of the floor
LONGEST_SORT = 10**7  # entries
PRODUCTS: dict[str, Product] = {
    **{name: kind.product for name, kind in MEASURED.items() if kind.product},
    "textbook": lambda scores, weight: weight * rivals.threshold(scores),
}

# The model of `costs`: square layers in bfloat16.
LAYERS = 10
MODEL_BYTES_ALLOCATED = 10  # per entry
REPETITIONS = 5
REPEATED_ENTRIES = 5 * 10**7  # if all repetitions have more, there is one

LARGE = 10**9  # weights of the part `large`

SIDE = 2000  # of the square mask in a file
DENSITIES = (0.01, 0.05, 0.08, 0.16, 0.3, 0.5)


def sizes(smallest: int, largest: int, bytes_: int) -> list[int]:
    """Return the powers of ten whose entries fit in half of the machine's memory.

    Args:
        smallest: The first exponent.
        largest: The last exponent.
        bytes_: Bytes that each entry needs.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    powers = [10**exponent for exponent in range(smallest, largest + 1)]
    return [size for size in powers if size * bytes_ <= memory / 2]


def measure_floor(case: tuple[str, int], device: torch.device) -> dict[str, Any]:
    """Return forward and backward in nanoseconds per entry and in multiples."""
    torch.compiler.reset()
    torch.manual_seed(0)
    mode, size = case
    weight, gradient = torch.randn(2, size, device=device)
    scores = torch.randn(size, device=device, requires_grad=True)
    plain_scores, out = scores.detach(), torch.empty_like(weight)

    def forward_and_backward(function: Product) -> Call:
        return lambda: torch.autograd.grad(function(scores, weight), scores, gradient)

    operations: dict[str, Call] = {
        "add": lambda: torch.add(weight, plain_scores, out=out)
    }
    for name, function in PRODUCTS.items():
        used = torch.compile(function) if mode == "compiled" else function
        operations[name] = forward_and_backward(used)
    if mode == "eager" and size <= LONGEST_SORT:
        operations["sort alone"] = lambda: torch.sort(plain_scores)
    times = side_by_side(operations, seconds=SECONDS, at_least=AT_LEAST, device=device)
    median = times.median()
    of_floor = ADD_BYTES / FLOOR_BYTES * ratios(times, "add")
    return {
        "mode": mode,
        "size": size,
        "gigabytes_per_second": ADD_BYTES * size / median["add"] / 1e9,
        "nanoseconds": (median / size * 1e9).to_dict(),
        "multiple": of_floor.to_dict("list"),
    }


def measure_functions(size: int, device: torch.device) -> dict[str, Any]:
    """Return each function in median seconds and in multiples of a pass."""
    repetitions = REPETITIONS if REPETITIONS * size <= REPEATED_ENTRIES else 1
    times = pd.DataFrame(
        [time_every_function(size, device) for _ in range(repetitions)]
    )
    return {
        "size": size,
        "repetitions": repetitions,
        "seconds": times.median().to_dict(),
        "multiple": times.div(times["pass"], axis=0).median().to_dict(),
    }


def time_every_function(size: int, device: torch.device) -> dict[str, float]:
    """Return seconds of an out-of-place add of the weights, and of each function.

    All are called once on one model, in the order of its life.
    """
    torch.manual_seed(0)
    model = network(size, device)
    weights = [parameter.detach() for parameter in model.parameters()]
    times: dict[str, float] = {}

    def measured(name: str, call: Call) -> None:
        times[name] = turn(call, device)

    def add() -> None:
        for weight in weights:
            torch.add(weight, weight)

    def overall() -> None:
        masktorch.set_estimator(model, masktorch.TopK(0.5))
        masktorch.budget.overall(model, 0.5)
        masktorch.set_estimator(model, masktorch.Threshold())

    def using() -> None:
        with masktorch.using(model, others):
            pass

    add()  # warms up
    measured("pass", add)
    measured("wrap", lambda: masktorch.wrap(model))
    _mask_a_random_half(model)
    measured("masks", lambda: masktorch.masks(model))
    measured("report", lambda: masktorch.report(model))
    measured("budget.overall", overall)
    current = masktorch.masks(model)
    others = {name: ~mask for name, mask in current.items()}
    measured("set_masks, learning", lambda: masktorch.set_masks(model, others))
    measured("using", using)
    measured("freeze_mask", lambda: masktorch.freeze_mask(model))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "masks.npz"
        measured("save_masks", lambda: masktorch.save_masks(model, path))
        measured("load_masks", lambda: masktorch.load_masks(model, path))
    measured("unwrap", lambda: masktorch.unwrap(model))
    measured("set_masks on a plain model", lambda: masktorch.set_masks(model, others))
    measured("set_masks, given", lambda: masktorch.set_masks(model, current))
    return times


def _mask_a_random_half(model: nn.Module) -> None:
    """Such a mask has the largest entropy, so a file of it is the largest."""
    for scores in masktorch.mask_parameters(model):
        nn.init.uniform_(scores, -1, 1)


def network(size: int, device: torch.device) -> nn.Module:
    """Return square linear layers; all weights are 0.5, which is quickly made."""
    width = round((size / LAYERS) ** 0.5)
    make_layer = partial(
        nn.utils.skip_init,
        nn.Linear,
        bias=False,
        device=device,
        dtype=torch.bfloat16,
    )
    model = nn.Sequential(*(make_layer(width, width) for _ in range(LAYERS)))
    for weight in model.parameters():
        nn.init.constant_(weight, 0.5)
    return model


def measure_file(density: float, device: torch.device) -> dict[str, Any]:
    """Return size and median nanoseconds per entry of a random mask of this density."""
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
        {"save, ns": turn(save, device), "load, ns": turn(load, device)}
        for _ in range(REPETITIONS)
    ]
    entropy_bytes = _entropy_bits(density) * scores.numel() / 8
    nanoseconds = pd.DataFrame(times).median() / scores.numel() * 1e9
    return {
        "size": scores.numel(),
        "density": density,
        "bytes / entropy": len(file.getvalue()) / entropy_bytes,
        **nanoseconds.to_dict(),
    }


def _entropy_bits(density: float) -> float:
    """Return the entropy of an entry that is kept with this probability."""
    return -density * math.log2(density) - (1 - density) * math.log2(1 - density)


class Part(NamedTuple):
    """What is measured together: the rows of one table."""

    cases: Callable[[torch.device], Sequence[Any]]  # what a device can measure
    measure: Callable[..., dict[str, Any]]  # (case, device) -> row


# A new part is one entry here, and one in `TABLES` of pages/speed.py.
PARTS = {
    "steps": Part(lambda device: steps.CASES[device.type], steps.measure),
    "floor": Part(
        lambda device: list(
            product(("eager", "compiled"), sizes(4, 8, BYTES_ALLOCATED))
        ),
        measure_floor,
    ),
    "memory": Part(lambda device: memory.CASES, memory.measure),
    "costs": Part(lambda device: sizes(6, 9, MODEL_BYTES_ALLOCATED), measure_functions),
    "files": Part(lambda device: DENSITIES, measure_file),
    "calls": Part(lambda device: list(calls.CASES), calls.measure),
    "large": Part(lambda device: large.cases(LARGE), large.measure),
}
# `large` needs 14 GiB of memory, so it has to be asked for.
USUAL = tuple(name for name in PARTS if name != "large")


def measure(
    only: Sequence[str], output: Path, command: str
) -> tuple[dict[str, Any], Path]:
    """Measure these parts, on a GPU if there is one; write `output`/speed.json."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_flush_denormal(True)  # before other threads start, which inherit it
    content: dict[str, Any] = {"command": command, "environment": environment(device)}
    todo = [(name, case) for name in only for case in PARTS[name].cases(device)]
    bar = progress_bar(todo, unit="row")
    for name, case in bar:
        bar.set_description(f"{name}: {case}")
        row = PARTS[name].measure(case, device)
        content.setdefault(name, []).append(row)
        gc.collect()
    text = json.dumps(content, indent=1) + "\n"
    return content, write_text(text, output / "speed.json")
