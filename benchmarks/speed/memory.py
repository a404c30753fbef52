"""The peak memory of a training step, in bytes per masked entry."""

import gc
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiment.networks import kernels
from benchmarks.speed.steps import NETWORKS, Case, training_step
from benchmarks.speed.timing import alone

CASES = Case("MLP 4x2048", 128), Case("WRN-28-8", 4)
CONTESTED = ("plain", "threshold", "bernoulli", "intermediate", "textbook")
# Each tensor of more than 64 kB is a mapping of its own, given back when it is freed: what is
# resident is what is alive.
EXACT = {"MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_ARENA_MAX": "1"}


def measure(case: Case, device: torch.device) -> dict[str, Any]:
    """By contestant, how far one process grows over its network, optimiser and two steps."""
    sizes = [weight.numel() for weight in kernels(NETWORKS[case.network][0]())]
    grown = {name: alone(peak, case, name, device, variables=EXACT) for name in CONTESTED}
    return {
        "network": case.network,
        "batch": case.batch,
        "masked": sum(sizes),
        "largest_layer": max(sizes),
        "bytes_per_entry": {name: bytes_ / sum(sizes) for name, bytes_ in grown.items()},
    }


def peak(case: Case, contestant: str, device: torch.device) -> int:
    """Bytes at the peak of two training steps, above what was in use before there was a model."""
    torch.set_flush_denormal(True)
    training_step(Case("LeNet-300-100", 2), contestant, device)()  # loads what steps need
    gc.collect()
    before = _in_use("VmRSS", device)
    step = training_step(case, contestant, device)
    step()
    step()
    return _in_use("VmHWM", device) - before


def _in_use(what: str, device: torch.device) -> int:
    """Bytes now (VmRSS) or at the peak (VmHWM, since there is this process; `ru_maxrss` begins with
    the peak of the parent). On a CPU Linux alone says so."""
    if device.type == "cuda":
        peak = what == "VmHWM"
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith(what))
    return 1024 * int(line.split()[1])
