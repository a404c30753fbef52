"""The peak memory of training steps, in bytes per masked entry."""

import gc
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiment.networks import kernels
from benchmarks.speed.contestants import NETWORKS
from benchmarks.speed.steps import Case, training_step
from benchmarks.speed.timing import alone

CASES = (Case("MLP 4x2048", 128), Case("WRN-28-8", 4))
CONTESTANTS = ("plain", "threshold", "bernoulli", "intermediate", "textbook")

# Each tensor above 64 KiB gets a mapping of its own, which is returned when the tensor
# is freed: resident memory is then what is alive.
EXACT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_ARENA_MAX": "1"}


def measure(case: Case, device: torch.device) -> dict[str, Any]:
    """Return by how many bytes per masked entry a process grows for each contestant."""
    sizes = [weight.numel() for weight in kernels(NETWORKS[case.network].make())]
    grown = {
        name: alone(peak, case, name, device, variables=EXACT_MEMORY)
        for name in CONTESTANTS
    }
    return {
        "network": case.network,
        "batch": case.batch,
        "masked": sum(sizes),
        "largest_layer": max(sizes),
        "bytes_per_entry": {
            name: bytes_ / sum(sizes) for name, bytes_ in grown.items()
        },
    }


def peak(case: Case, contestant: str, device: torch.device) -> int:
    """Return the peak bytes of network, optimiser and two steps, above those before."""
    torch.set_flush_denormal(True)
    warm_up = training_step(Case("LeNet-300-100", 2), contestant, device)
    warm_up()  # loads the code that steps need
    del warm_up
    gc.collect()
    before = _bytes_now(device)
    step = training_step(case, contestant, device)
    step()
    step()
    return bytes_at_peak(device) - before


def _bytes_now(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated()
    return _from_proc_status("VmRSS")


def bytes_at_peak(device: torch.device) -> int:
    """Since this process began. `ru_maxrss` would start from the parent's peak."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return _from_proc_status("VmHWM")


def _from_proc_status(field: str) -> int:
    """Return a field of Linux's /proc/self/status in bytes."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith(field))
    kibibytes = int(line.split()[1])
    return 1024 * kibibytes
