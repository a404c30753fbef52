"""The toy of intermediate sampling: recover a categorical distribution from draws.

A step draws a target `t` from `pi_true` and a category `z` from `pi = softmax(logits)`,
both one-hot, and descends `KL(t || z)`, smoothed so that the loss of a miss is finite:

    L(z, t) = -log(<z, t> + EPSILON)

The loss matters. `E[L(z, t)]` is linear in `pi`, so its exact gradient leads to a
single category and not to `pi_true`. With this loss and `alpha = EPSILON`, intermediate
sampling has `pi_D = (z + t) / 2`, for a hit and for a miss, hence `E[pi - pi_D] = (pi -
pi_true) / 2`: half the gradient of `KL(pi_true || pi)` with respect to the logits.

Gumbel-softmax takes `z = softmax((logits + noise) / T)`. Its expected gradient, `(E[z]
- pi_true) / T`, is zero where `E[z] = pi_true`; `pi` equals `pi_true` there only in the
limit of T = 0.
"""

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.experiment.results import RESULTS
from benchmarks.files import command_line, environment, write_text

CATEGORIES = 10
RUNS = 20  # each with its own distribution; all methods see the same draws
STEPS = 30_000
STEP_SIZES = (0.1, 0.01, 0.001)  # of plain gradient descent on the logits
TEMPERATURES = (0.1, 1.0, 10.0)
EPSILON = 1e-100  # so small that no temperature's soft draw comes near it
SHOWN_STEPS = (100, 1_000, 10_000, STEPS)  # in the table
RECORDED_STEPS = 60  # evenly spaced on a logarithmic axis
METHODS = (
    "intermediate sampling",
    *(f"Gumbel-softmax, T = {temperature:g}" for temperature in TEMPERATURES),
)


class Intermediate(torch.autograd.Function):
    """Intermediate Loss Sampling (2019-10-14); the library has it for two categories.

    Forward: `z`, one-hot at the largest of `logits + noise`. With Gumbel noise it is a
        draw from
    `pi`. Backward, if the drawn category is `k`, the derivative of KL(pi_D || pi):

        delta = dL/dz - (dL/dz)[k]
        pi_D = h(z - alpha * delta),   h(v) = v / sum(v)
        dL/dlogits = pi - pi_D
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, noise: Tensor, alpha: float) -> Tensor:
        drawn = (logits + noise).argmax(-1, keepdim=True)
        z = torch.zeros_like(logits).scatter(-1, drawn, 1.0)
        ctx.save_for_backward(logits, drawn, z)
        ctx.alpha = alpha
        return z

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, drawn, z = ctx.saved_tensors
        delta = grad - grad.gather(-1, drawn)
        moved = z - ctx.alpha * delta
        pi_d = moved / moved.sum(-1, keepdim=True)
        return torch.softmax(logits, -1) - pi_d, None, None


def gumbel_softmax(logits: Tensor, noise: Tensor, temperature: Tensor) -> Tensor:
    """Return `softmax((logits + noise) / T)` (Jang et al., arXiv 1611.01144)."""
    return torch.softmax((logits + noise) / temperature, -1)


def recover(steps: int, runs: int, seed: int) -> Iterator[tuple[int, Tensor]]:
    """Descend with every method and step size at once.

    Yields after every step its number and KL(pi_true || pi), of shape (methods, step
    sizes, runs).
    """
    generator = torch.Generator().manual_seed(seed)
    weights = torch.empty(runs, CATEGORIES, dtype=torch.float64)
    weights.exponential_(generator=generator)
    truth = weights / weights.sum(-1, keepdim=True)  # uniform on the simplex
    temperatures = torch.tensor(TEMPERATURES, dtype=torch.float64).view(-1, 1, 1, 1)
    step_sizes = torch.tensor(STEP_SIZES, dtype=torch.float64).view(1, -1, 1, 1)
    shape = (len(METHODS), len(STEP_SIZES), runs, CATEGORIES)
    logits = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    for step in range(1, steps + 1):
        target = torch.multinomial(truth, 1, generator=generator).expand(*shape[:-1], 1)
        exponential = torch.empty_like(truth).exponential_(generator=generator)
        gumbel = -exponential.log()
        hard = Intermediate.apply(logits[:1], gumbel, EPSILON)  # type: ignore[no-untyped-call]
        soft = gumbel_softmax(logits[1:], gumbel, temperatures)
        loss = -(torch.cat([hard, soft]).gather(-1, target) + EPSILON).log()
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        with torch.no_grad():
            logits -= step_sizes * gradient
            log_ratio = truth.log() - torch.log_softmax(logits, -1)
            divergence = (truth * log_ratio).sum(-1)
        yield step, divergence


def run(
    output: Path = RESULTS / "categorical", steps: int = STEPS, seed: int = 0
) -> Path:
    """Recover a distribution from draws: intermediate sampling against Gumbel-softmax.

    Args:
        output: Folder for categorical.json, with each method's divergence over the
            steps.
    """
    origin = environment(torch.device("cpu"))
    recorded = _recorded_steps(steps)
    by_step = {
        step: divergence
        for step, divergence in recover(steps, RUNS, seed)
        if step in recorded
    }
    divergences = torch.stack(list(by_step.values()), -1).flatten(0, 1)
    content = {
        "command": command_line(),
        "seed": seed,
        "categories": CATEGORIES,
        "environment": origin,
        "steps": list(by_step),
        "methods": [
            {
                "method": method,
                "step_size": size,
                "divergence": runs.numpy().round(7).tolist(),
            }
            for (method, size), runs in zip(
                product(METHODS, STEP_SIZES), divergences, strict=True
            )
        ],
    }
    return write_text(json.dumps(content) + "\n", output / "categorical.json")


def _recorded_steps(steps: int) -> set[int]:
    spaced = np.geomspace(1, steps, RECORDED_STEPS).round().astype(int)
    return {*spaced.tolist(), *SHOWN_STEPS}
