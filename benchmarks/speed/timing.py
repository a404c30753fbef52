"""Calls timed side by side: they take turns, so what disturbs one disturbs all."""

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

SHORTEST_TURN = 0.02  # seconds: a faster call is repeated within its turn
SLOW = 4.0  # a call this many times slower than the fastest sits rounds out ...
MOST_SAT_OUT = 5  # ... but joins every fifth

Call = Callable[[], object]


@dataclass(frozen=True)
class Timings:
    """Seconds a call took, by name and round; a slow one has fewer rounds."""

    rounds: dict[str, dict[int, float]]

    def median(self, name: str) -> float:
        return float(np.median(list(self.rounds[name].values())))

    def ratio(self, name: str, to: str) -> list[float]:
        """Quartiles (first, median, third) of the ratios of two calls of one round."""
        other = self.rounds[to]
        ratios = [seconds / other[number] for number, seconds in self.rounds[name].items()]
        return [float(q) for q in np.percentile(ratios, [25, 50, 75])]


def side_by_side(
    calls: Mapping[str, Call], *, seconds: float, at_least: int, device: torch.device
) -> Timings:
    """Rounds, in each of which every call has a turn, in random order, for about these seconds and
    for `at_least` rounds. Every call is warmed up by two turns before."""
    for call in calls.values():
        _turn(call, 1, device)
    first = {name: _turn(call, 1, device) for name, call in calls.items()}
    fastest = min(first.values())
    repeats = {name: math.ceil(SHORTEST_TURN / took) for name, took in first.items()}
    every = {
        name: min(math.ceil(took / (SLOW * fastest)), MOST_SAT_OUT) for name, took in first.items()
    }
    rounds: dict[str, dict[int, float]] = {name: {} for name in calls}
    order, shuffler = list(calls), random.Random(0)
    number, end = 0, time.perf_counter() + seconds
    while number < at_least or time.perf_counter() < end:
        shuffler.shuffle(order)
        for name in order:
            if number % every[name] == 0:
                rounds[name][number] = _turn(calls[name], repeats[name], device)
        number += 1
    return Timings(rounds)


def _turn(call: Call, repeats: int, device: torch.device) -> float:
    """Seconds a call."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / repeats
