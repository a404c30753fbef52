"""Calls timed side by side: they take turns, so what disturbs one disturbs all."""

import math
import os
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch

import pandas as pd  # type: ignore[import-untyped]
import torch

SHORTEST_TURN = 0.02  # seconds: a faster call is repeated within its turn
SLOW = 4.0  # a call this many times slower than the fastest sits rounds out ...
MOST_SAT_OUT = 5  # ... but joins every fifth

Call = Callable[[], object]


def side_by_side(
    calls: Mapping[str, Call], *, seconds: float, at_least: int, device: torch.device
) -> pd.DataFrame:
    """Seconds a call took, a row a round, a column a call. In a round every call has a turn, in
    random order; a slow one sits some out, and has no number there. Rounds go on for about these
    seconds, but for `at_least` so many. Every call is warmed up by two turns before."""
    for call in calls.values():
        turn(call, device)
    first = {name: turn(call, device) for name, call in calls.items()}
    slow = SLOW * min(first.values())
    repeats = {name: math.ceil(SHORTEST_TURN / took) for name, took in first.items()}
    every = {name: min(math.ceil(took / slow), MOST_SAT_OUT) for name, took in first.items()}
    rounds: list[dict[str, float]] = []
    order, shuffler = list(calls), random.Random(0)
    end = time.perf_counter() + seconds
    while len(rounds) < at_least or time.perf_counter() < end:
        shuffler.shuffle(order)
        names = [name for name in order if len(rounds) % every[name] == 0]
        rounds.append({name: turn(calls[name], device, repeats[name]) for name in names})
    return pd.DataFrame(rounds, columns=list(calls))


def turn(call: Call, device: torch.device, repeats: int = 1) -> float:
    """Seconds a call."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / repeats


def ratios(times: pd.DataFrame, to: str) -> pd.DataFrame:
    """Quartiles (first, median, third) of the ratios of two calls of one round."""
    return times.div(times[to], axis=0).quantile([0.25, 0.5, 0.75])


def alone(function: Callable[..., Any], *arguments: Any, variables: Mapping[str, str]) -> Any:
    """What a function returns in a fresh process: with environment variables that are read at its
    start, and memory that nothing else has touched."""
    fresh = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    with patch.dict(os.environ, variables), fresh:
        return fresh.submit(function, *arguments).result()
