"""Training steps and inference, side by side: the plain network, masktorch, its rivals; and the
peak memory of a step, in bytes per masked entry."""

import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import masktorch
from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.networks import CLASSES, build, kernels
from benchmarks.speed import rivals
from benchmarks.speed.timing import Call, alone, ratios, side_by_side

SECONDS, AT_LEAST = 12.0, 15  # of rounds a case, after the warm-up
# glibc gives large blocks back to the system when they are freed; told so, it keeps them.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**32)}


def mlp() -> nn.Module:
    hidden = [module for _ in range(4) for module in (nn.Linear(2048, 2048), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(2048, CLASSES))


def transformer() -> nn.Module:
    """An encoder, the mean over its positions, a linear layer."""
    layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
    mean = nn.AdaptiveAvgPool2d((1, None))
    return nn.Sequential(encoder, mean, nn.Flatten(), nn.Linear(256, CLASSES))


WRN, COLOURS = Configuration("cifar10"), (3, 32, 32)
LENET, GREY = Configuration("mnist", network="lenet-300-100"), (1, 28, 28)
# How each is made, and the shape of one input.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "WRN-28-8": (lambda: build(WRN, COLOURS), COLOURS),
    "WRN-28-2": (lambda: build(replace(WRN, width=2), COLOURS), COLOURS),
    "MLP 4x2048": (mlp, (2048,)),
    "LeNet-300-100": (lambda: build(LENET, GREY), GREY),
    "Transformer 6x256": (transformer, (32, 256)),
}


def _wrapped(estimator: masktorch.Estimator) -> Callable[[nn.Module], nn.Module]:
    return partial(masktorch.wrap, estimator=estimator, init=torch.randn_like)


def _frozen(estimator: masktorch.Estimator) -> Callable[[nn.Module], nn.Module]:
    return lambda model: masktorch.freeze_weights(
        masktorch.freeze_mask(_wrapped(estimator)(model)), False
    )


# What each does to a network; scores start standard normal, so that about half is masked.
CONTESTANTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda model: model,
    "threshold": _wrapped(masktorch.Threshold()),
    "bernoulli": _wrapped(masktorch.Bernoulli()),
    "intermediate": _wrapped(masktorch.IntermediateSampling()),
    "topk": _wrapped(masktorch.TopK(0.5)),
    "hard concrete": _wrapped(masktorch.HardConcrete()),
    "concrete": _wrapped(masktorch.Concrete()),
    "frozen mask": _frozen(masktorch.Threshold()),
    "frozen top-k": _frozen(masktorch.TopK(0.5)),
    "unwrapped": lambda model: masktorch.unwrap(_frozen(masktorch.Threshold())(model)),
    "textbook": partial(rivals.parametrized, mask_of=rivals.threshold),
    "textbook bernoulli": partial(rivals.parametrized, mask_of=rivals.bernoulli),
    "edge-popup": partial(rivals.parametrized, mask_of=rivals.edge_popup),
    "prune": rivals.pruned,
}
# By the mode of a case; compiled without those that only compare, eager without what is plain.
ENTERED = {
    "eager": tuple(name for name in CONTESTANTS if name != "unwrapped"),
    "compiled": ("plain", "threshold", "bernoulli", "intermediate", "topk", "frozen mask",
                 "textbook"),
    "inference": ("plain", "frozen mask", "frozen top-k", "unwrapped"),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    network: str
    batch: int
    precision: str = "float32"
    mode: str = "eager"
    keeps_memory: bool = False  # in a process of its own, whose malloc is told to

    def __str__(self) -> str:
        malloc = ", malloc keeps memory" if self.keeps_memory else ""
        return f"{self.network} at {self.batch}, {self.precision}, {self.mode}{malloc}"

    @property
    def contestants(self) -> tuple[str, ...]:
        # prune masks in a hook before forward, and attention never calls that of its out_proj:
        # the second backward fails (pytorch#69353).
        unable = {"prune"} if self.network.startswith("Transformer") else set()
        return tuple(name for name in ENTERED[self.mode] if name not in unable)


CPU_CASES = (
    Case("WRN-28-8", 4),
    Case("WRN-28-2", 16),
    Case("WRN-28-2", 16, precision="bfloat16"),
    Case("MLP 4x2048", 128),
    Case("MLP 4x2048", 128, keeps_memory=True),
    Case("MLP 4x2048", 128, precision="bfloat16"),
    Case("MLP 4x2048", 128, mode="compiled"),
    Case("LeNet-300-100", 128),
    Case("LeNet-300-100", 128, mode="compiled"),
    Case("Transformer 6x256", 16),
    Case("WRN-28-2", 1, mode="inference"),
    Case("MLP 4x2048", 1, mode="inference"),
    Case("LeNet-300-100", 1, mode="inference"),
)
CASES = {
    "cpu": CPU_CASES,
    "cuda": (
        Case("WRN-28-8", 128, precision="bfloat16"),
        Case("WRN-28-8", 512, precision="bfloat16"),
        *(case if case.mode == "inference" else replace(case, batch=128)
          for case in CPU_CASES if not case.keeps_memory),
    ),
}  # fmt: skip
MEMORY_CASES = Case("MLP 4x2048", 128), Case("WRN-28-8", 4)
CONTESTED = ("plain", "threshold", "bernoulli", "intermediate", "textbook")
# Each tensor of more than 64 kB is a mapping of its own, given back when it is freed: what is
# resident is what is alive.
EXACT = {"MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_ARENA_MAX": "1"}


def measure(case: Case, device: torch.device) -> dict[str, Any]:
    """The case with its medians: seconds a step, and ratios to the plain step of the same round."""
    measured = partial(alone, _measure, variables=KEEP_MEMORY) if case.keeps_memory else _measure
    return asdict(case) | measured(case, device)


def _measure(case: Case, device: torch.device) -> dict[str, Any]:
    torch.set_flush_denormal(True)
    torch.compiler.reset()
    steps = {name: training_step(case, name, device) for name in case.contestants}
    times = side_by_side(steps, seconds=SECONDS, at_least=AT_LEAST, device=device)
    return {
        "seconds": times.median().to_dict(),
        "ratio": ratios(times, "plain").to_dict("list"),
        "rounds": times.count().to_dict(),
    }


def training_step(case: Case, contestant: str, device: torch.device) -> Call:
    """One step of training, or for inference a forward, on a batch that stays the same; every
    contestant gets the same."""
    torch.manual_seed(0)
    make, shape = NETWORKS[case.network]
    model = make()
    inputs = torch.randn(case.batch, *shape, device=device)
    labels = torch.randint(CLASSES, (case.batch,), device=device)
    if inputs.dim() == 4:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    model = CONTESTANTS[contestant](model.to(device))
    if case.mode == "inference":
        model.eval().requires_grad_(False)
        return torch.no_grad()(lambda: model(inputs))
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], fused=True)
    forward = torch.compile(model) if case.mode == "compiled" else model
    low = case.precision == "bfloat16"

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
            logits = forward(inputs)
        cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return step


def measure_memory(case: Case, device: torch.device) -> dict[str, Any]:
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
