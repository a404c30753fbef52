"""The parts of what is measured; and those that are no training steps: the estimators alone, beside
what memory allows, `wrap`, `save_masks` and so on, beside a pass over the weights, mask files."""

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
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn

import masktorch
from benchmarks.experiment.training import progress_bar
from benchmarks.files import environment, write_text
from benchmarks.speed import rivals, steps
from benchmarks.speed.timing import Call, ratios, side_by_side, turn

# Of the estimators. A masked tensor has to move 12 bytes an entry forward (weight, score, product)
# and 16 backward (gradient, weight, score, gradient of the score). The floor is the time that a
# plain add of three operands, 12 bytes an entry, would take for those 28 bytes.
ADD_BYTES, FLOOR_BYTES = 12, 28  # float32
SECONDS, AT_LEAST = 2.0, 3  # of rounds a case, after the warm-up
LONGEST_SORT = 10**7
Product = Callable[[Tensor, Tensor], Tensor]  # (scores, weight)
PRODUCTS: dict[str, Product] = {
    "threshold": lambda s, w: masktorch.functional.threshold(s, weight=w),
    "bernoulli": lambda s, w: masktorch.functional.bernoulli(s, weight=w),
    "intermediate": lambda s, w: masktorch.functional.intermediate(s, weight=w),
    "topk": lambda s, w: masktorch.functional.topk(s, 0.5, weight=w),
    "hard concrete": lambda s, w: masktorch.functional.hard_concrete(s, weight=w),
    "concrete": lambda s, w: masktorch.functional.concrete(s, weight=w),
    "textbook": lambda s, w: w * rivals.threshold(s),
}
LAYERS = 10  # of the model, square, bfloat16
REPETITIONS, ENTRIES = 5, 5 * 10**7  # so many, if they are of no more entries in all; else one
SIDE, DENSITIES = 2000, (0.01, 0.05, 0.08, 0.16, 0.3, 0.5)  # of files


def sizes(smallest: int, largest: int, bytes_: int) -> list[int]:
    """Powers of ten: entries of which each needs so many bytes, in half of the machine's memory."""
    half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
    return [10**n for n in range(smallest, largest + 1) if 10**n * bytes_ <= half]


def measure_floor(case: tuple[str, int], device: torch.device) -> dict[str, Any]:
    """Nanoseconds an entry of forward and backward, and multiples of the floor of this size."""
    torch.compiler.reset()
    torch.manual_seed(0)
    mode, size = case
    weight, gradient = torch.randn(2, size, device=device)
    scores = torch.randn(size, device=device, requires_grad=True)
    out, plain_scores = torch.empty_like(weight), scores.detach()

    def passes(function: Product) -> Call:
        return lambda: torch.autograd.grad(function(scores, weight), scores, gradient)

    calls: dict[str, Call] = {"add": lambda: torch.add(weight, plain_scores, out=out)}
    for name, function in PRODUCTS.items():
        calls[name] = passes(torch.compile(function) if mode == "compiled" else function)
    if mode == "eager" and size <= LONGEST_SORT:
        calls["sort alone"] = lambda: torch.sort(plain_scores)
    times = side_by_side(calls, seconds=SECONDS, at_least=AT_LEAST, device=device)
    median = times.median()
    return {
        "mode": mode,
        "size": size,
        "gigabytes_per_second": ADD_BYTES * size / median["add"] / 1e9,
        "nanoseconds": (median / size * 1e9).to_dict(),
        "multiple": (ADD_BYTES / FLOOR_BYTES * ratios(times, "add")).to_dict("list"),
    }


def measure_functions(size: int, device: torch.device) -> dict[str, Any]:
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
    make = partial(nn.utils.skip_init, nn.Linear, bias=False, device=device, dtype=torch.bfloat16)
    model = nn.Sequential(*(make(width, width) for _ in range(LAYERS)))
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


# By name: what can be measured on a device, and how.
PARTS: dict[str, tuple[Callable[[torch.device], Sequence[Any]], Callable[..., dict[str, Any]]]] = {
    "steps": (lambda device: steps.CASES[device.type], steps.measure),
    "floor": (
        lambda device: list(product(("eager", "compiled"), sizes(4, 8, bytes_=40))),
        measure_floor,
    ),
    "memory": (lambda device: steps.MEMORY_CASES, steps.measure_memory),
    "costs": (lambda device: sizes(6, 9, bytes_=10), measure_functions),
    "files": (lambda device: DENSITIES, measure_file),
}


def measure(only: Sequence[str], output: Path, command: str) -> tuple[dict[str, Any], Path]:
    """Measure these parts, on a GPU where there is one; every number is in `output`/speed.json."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_flush_denormal(True)  # before there is a second thread, which takes it over
    content: dict[str, Any] = {"command": command, "environment": environment(device)}
    todo = [(name, row) for name in only for row in PARTS[name][0](device)]
    for name, row in (bar := progress_bar(todo, unit="row")):
        bar.set_description(f"{name}: {row}")
        content.setdefault(name, []).append(PARTS[name][1](row, device))
        gc.collect()
    return content, write_text(json.dumps(content, indent=1) + "\n", output / "speed.json")
