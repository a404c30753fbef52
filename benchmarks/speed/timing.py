"""Time calls side by side: they take turns, so a disturbance affects all of them."""

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
SLOW = 4.0  # a call this many times slower than the fastest skips rounds ...
MOST_SKIPPED = 5  # ... but takes part in every fifth
QUARTILES = [0.25, 0.5, 0.75]

Call = Callable[[], object]


def side_by_side(
    calls: Mapping[str, Call], *, seconds: float, at_least: int, device: torch.device
) -> pd.DataFrame:
    """Return seconds per call: a row per round, a column per call.

    In a round every call has a turn, in random order. A slow call skips some rounds and
    has no number there. Rounds go on for about `seconds`, and for `at_least` as many
    rounds. Two turns of each call warm up before.
    """
    for call in calls.values():
        turn(call, device)
    warm = {name: turn(call, device) for name, call in calls.items()}
    repeats = {name: math.ceil(SHORTEST_TURN / took) for name, took in warm.items()}
    period = _periods(warm)
    rounds: list[dict[str, float]] = []
    order, shuffler = list(calls), random.Random(0)
    end = time.perf_counter() + seconds
    while len(rounds) < at_least or time.perf_counter() < end:
        shuffler.shuffle(order)
        names = [name for name in order if len(rounds) % period[name] == 0]
        rounds.append(
            {name: turn(calls[name], device, repeats[name]) for name in names}
        )
    return pd.DataFrame(rounds, columns=list(calls))


def _periods(seconds: Mapping[str, float]) -> dict[str, int]:
    """Return in which rounds each call takes part: in every one, every second, ..."""
    slow = SLOW * min(seconds.values())
    return {
        name: min(math.ceil(took / slow), MOST_SKIPPED)
        for name, took in seconds.items()
    }


def turn(call: Call, device: torch.device, repeats: int = 1) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / repeats


def ratios(times: pd.DataFrame, to: str) -> pd.DataFrame:
    """Return the quartiles of every call's ratio to the call `to` in the same round."""
    return times.div(times[to], axis=0).quantile(QUARTILES)


def alone(
    function: Callable[..., Any], *arguments: Any, variables: Mapping[str, str]
) -> Any:
    """Return what a function returns in a fresh process.

    It starts with these environment variables, and with memory that nothing else has
    used.
    """
    fresh = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    with patch.dict(os.environ, variables), fresh:
        return fresh.submit(function, *arguments).result()
