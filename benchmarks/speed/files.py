"""Mask files: how near their size is to the entropy, and what writing and reading them takes."""

import io
import math
import statistics
import time
from typing import Any

import torch
from torch import nn

import masktorch

SIDE, REPETITIONS = 2000, 5  # 4 million entries
DENSITIES = (0.01, 0.05, 0.08, 0.16, 0.3, 0.5)


def cases(device: torch.device) -> tuple[float, ...]:
    return DENSITIES


def measure(density: float, device: torch.device) -> dict[str, Any]:
    """Medians of nanoseconds an entry, of a random mask of exactly this density."""
    torch.manual_seed(0)
    model = nn.Linear(SIDE, SIDE, bias=False, dtype=torch.bfloat16, device=device)
    scores = torch.rand(SIDE, SIDE, device=device)
    masktorch.set_masks(model, masktorch.keep_largest({"weight": scores}, density))
    times: dict[str, list[float]] = {"save, ns": [], "load, ns": []}
    for _ in range(REPETITIONS):
        file = io.BytesIO()
        start = time.perf_counter()
        masktorch.save_masks(model, file)
        saved = time.perf_counter()
        masktorch.load_masks(model, io.BytesIO(file.getvalue()))
        times["save, ns"].append((saved - start) / scores.numel() * 1e9)
        times["load, ns"].append((time.perf_counter() - saved) / scores.numel() * 1e9)
    entropy = -density * math.log2(density) - (1 - density) * math.log2(1 - density)
    size = len(file.getvalue())
    return {
        "size": scores.numel(),
        "density": density,
        "bytes / entropy": size / (entropy * scores.numel() / 8),
        **{name: statistics.median(each) for name, each in times.items()},
    }
