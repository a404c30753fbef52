"""The estimators alone, as multiples of the least that memory allows.

A masked tensor has to move 12 bytes an entry forward (weight, score, product) and 16 backward
(gradient, weight, score, gradient of the score). The floor is the time that a plain add of three
operands, 12 bytes an entry, would take for those 28 bytes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import masktorch
from benchmarks.speed import rivals
from benchmarks.speed.memory import fits
from benchmarks.speed.timing import Call, ratios, side_by_side

SECONDS, AT_LEAST = 2.0, 3  # of rounds a case, after the warm-up
ADD_BYTES, FLOOR_BYTES = 12, 28  # an entry, float32
MOST_ALIVE = 40  # bytes an entry that are alive at once, at most
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


class Case(NamedTuple):
    mode: str
    size: int  # entries


def cases(device: torch.device) -> list[Case]:
    sizes = [10**n for n in range(4, 9) if fits(10**n * MOST_ALIVE)]
    return [Case(mode, size) for mode in ("eager", "compiled") for size in sizes]


def measure(case: Case, device: torch.device) -> dict[str, Any]:
    """Nanoseconds an entry of forward and backward, and multiples of the floor of this size."""
    torch.compiler.reset()
    torch.manual_seed(0)
    mode, size = case
    weight, gradient = torch.randn(2, size, device=device)
    scores = torch.randn(size, device=device, requires_grad=True)
    out, plain_scores = torch.empty_like(weight), scores.detach()

    def passes(product: Product) -> Call:
        return lambda: torch.autograd.grad(product(scores, weight), scores, gradient)

    calls: dict[str, Call] = {"add": lambda: torch.add(weight, plain_scores, out=out)}
    for name, product in PRODUCTS.items():
        calls[name] = passes(torch.compile(product) if mode == "compiled" else product)
    if mode == "eager" and size <= LONGEST_SORT:
        calls["sort alone"] = lambda: torch.sort(plain_scores)
    times = side_by_side(calls, seconds=SECONDS, at_least=AT_LEAST, device=device)
    median = times.median()
    return {
        **case._asdict(),
        "gigabytes_per_second": ADD_BYTES * size / median["add"] / 1e9,
        "nanoseconds": (median / size * 1e9).to_dict(),
        "multiple": (ADD_BYTES / FLOOR_BYTES * ratios(times, "add")).to_dict("list"),
    }
