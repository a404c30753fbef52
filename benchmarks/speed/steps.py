"""Training steps and inference of the plain network, masktorch and its rivals."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks.experiment.networks import CLASSES
from benchmarks.speed.contestants import CONTESTANTS, NETWORKS
from benchmarks.speed.timing import Call, alone, ratios, side_by_side

SECONDS, AT_LEAST = 12.0, 15  # of rounds per case, after the warm-up

# glibc returns large freed blocks to the system; with these it keeps them.
_4_GIB = str(2**32)
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": _4_GIB, "MALLOC_TRIM_THRESHOLD_": _4_GIB}

# Who takes part in each mode: compiled without the most distant rivals, eager without
# `unwrapped`, which is the plain network.
CONTESTANTS_BY_MODE = {
    "eager": tuple(name for name in CONTESTANTS if name != "unwrapped"),
    "compiled": (
        "plain",
        "threshold",
        "bernoulli",
        "intermediate",
        "topk",
        "frozen mask",
        "textbook",
    ),
    "inference": ("plain", "frozen mask", "frozen top-k", "unwrapped"),
}


@dataclass(frozen=True)
class Case:
    network: str
    batch: int
    precision: str = "float32"
    mode: str = "eager"
    keeps_memory: bool = False  # in its own process, with KEEP_MEMORY

    def __str__(self) -> str:
        malloc = ", malloc keeps memory" if self.keeps_memory else ""
        return f"{self.network} at {self.batch}, {self.precision}, {self.mode}{malloc}"

    @property
    def contestants(self) -> tuple[str, ...]:
        """Who takes part.

        `prune` masks in a hook before forward. Attention never calls the hook of its
        `out_proj`, so the second backward fails (pytorch#69353).
        """
        names = CONTESTANTS_BY_MODE[self.mode]
        if self.network.startswith("Transformer"):
            return tuple(name for name in names if name != "prune")
        return names


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
GPU_CASES = (
    Case("WRN-28-8", 128, precision="bfloat16"),
    Case("WRN-28-8", 512, precision="bfloat16"),
    *(
        case if case.mode == "inference" else replace(case, batch=128)
        for case in CPU_CASES
        if not case.keeps_memory
    ),
)
CASES = {"cpu": CPU_CASES, "cuda": GPU_CASES}  # by type of device


def measure(case: Case, device: torch.device) -> dict[str, Any]:
    """Return the case with median seconds per step, and ratios to the plain step."""
    if case.keeps_memory:
        times = alone(_measure, case, device, variables=KEEP_MEMORY)
    else:
        times = _measure(case, device)
    return {**asdict(case), **times}


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
    """Return a function that does one training step, or for inference one forward.

    Network, inputs and labels are the same for every contestant and in every step.
    """
    torch.manual_seed(0)
    network = NETWORKS[case.network]
    model = network.make()
    inputs = torch.randn(case.batch, *network.input_shape, device=device)
    labels = torch.randint(CLASSES, (case.batch,), device=device)
    if inputs.dim() == 4:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    model = CONTESTANTS[contestant](model.to(device))
    if case.mode == "inference":
        model.eval().requires_grad_(False)
        return torch.no_grad()(lambda: model(inputs))
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(trainable, fused=True)
    forward = torch.compile(model) if case.mode == "compiled" else model
    in_bfloat16 = case.precision == "bfloat16"

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=in_bfloat16):
            logits = forward(inputs)
        cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return step
