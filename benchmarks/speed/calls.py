"""What the calls of a mask cost where layers are small, and the kernels it launches.

The arithmetic of 8x8 layers is almost free, so what a mask adds to a step is the time
of its calls: in Python, in autograd and in PyTorch's dispatcher. There are two
references. *hand-written* is a layer of research code: a subclass of `nn.Linear` whose
forward calls an autograd function. *textbook* is a parametrization of PyTorch.

On an accelerator each operation is a kernel to launch. They are counted on the meta
device, which computes nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.speed import rivals
from benchmarks.speed.contestants import CONTESTANTS
from benchmarks.speed.timing import Call, side_by_side

SIDE, LAYERS = 8, 40
SECONDS, AT_LEAST = 4.0, 15  # of rounds per case, after the warm-up

# Operations that compute nothing: views, and their kin.
NO_KERNEL = {"detach", "view", "alias", "expand", "flatten", "reshape", "t"}


class HandThreshold(torch.autograd.Function):
    """`1[sigma(s) > 0.5]`, backward the slope of `sigma`."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        p = torch.sigmoid(scores)
        ctx.save_for_backward(p)
        return (p > 0.5).to(p.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (p,) = ctx.saved_tensors
        return cast(Tensor, grad * p * (1 - p))


class HandBernoulli(HandThreshold):
    """A draw from Bernoulli(sigma(s)), backward the slope of `sigma`."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        p = torch.sigmoid(scores)
        ctx.save_for_backward(p)
        return torch.bernoulli(p)


class HandEdgePopup(torch.autograd.Function):
    """The larger half of the scores by a sort, backward the identity.

    This is `GetSubnet` of Ramanujan et al. (arXiv 1911.13299), line by line.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        out = scores.clone()
        _, order = scores.flatten().sort()
        dropped = int(0.5 * scores.numel())
        flat = out.flatten()
        flat[order[:dropped]] = 0
        flat[order[dropped:]] = 1
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


MaskOf = Callable[[Tensor], Tensor]


class HandLayer(nn.Linear):
    """A linear layer with scores, as research code writes it."""

    def __init__(self, mask_of: MaskOf) -> None:
        super().__init__(SIDE, SIDE)
        self.scores = nn.Parameter(torch.randn(SIDE, SIDE))
        self.weight.requires_grad_(False)
        self.mask_of = mask_of

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight * self.mask_of(self.scores), self.bias)


@dataclass(frozen=True)
class References:
    """What a contestant is compared with: the same method, or the nearest one."""

    by_hand: MaskOf
    textbook: MaskOf


THRESHOLD = References(cast(MaskOf, HandThreshold.apply), rivals.threshold)
BERNOULLI = References(cast(MaskOf, HandBernoulli.apply), rivals.bernoulli)
EDGE_POPUP = References(
    lambda scores: cast(MaskOf, HandEdgePopup.apply)(scores.abs()), rivals.edge_popup
)
CASES = {  # by contestant
    "threshold": THRESHOLD,
    "bernoulli": BERNOULLI,
    "intermediate": BERNOULLI,
    "hard concrete": BERNOULLI,
    "concrete": BERNOULLI,
    "topk": EDGE_POPUP,
    "frozen mask": THRESHOLD,
    "frozen top-k": EDGE_POPUP,
}


def measure(contestant: str, device: torch.device) -> dict[str, Any]:
    """Return the microseconds a masked layer adds to a step, with ratios and kernels.

    One thread computes, and subnormal numbers count as zero, as training would set it.
    """
    references = CASES[contestant]
    networks = {
        "plain": _plain(),
        "hand": nn.Sequential(*(HandLayer(references.by_hand) for _ in range(LAYERS))),
        "textbook": rivals.parametrized(_plain(), references.textbook),
        "masked": CONTESTANTS[contestant](_plain()),
    }
    steps = {name: step(network, device) for name, network in networks.items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = side_by_side(steps, seconds=SECONDS, at_least=AT_LEAST, device=device)
    finally:
        torch.set_num_threads(threads)
    added = times.sub(times["plain"], axis=0).div(LAYERS).mul(1e6)
    return {
        "method": contestant,
        "numbers": {
            "microseconds": added["masked"].median(),
            "of hand-written": (added["masked"] / added["hand"]).median(),
            "of textbook": (added["masked"] / added["textbook"]).median(),
            "kernels": kernels(CONTESTANTS[contestant]),
            "textbook's kernels": kernels(
                partial(rivals.parametrized, mask_of=references.textbook)
            ),
        },
    }


def _plain() -> nn.Module:
    return nn.Sequential(*(nn.Linear(SIDE, SIDE) for _ in range(LAYERS)))


def step(network: nn.Module, device: torch.device) -> Call:
    """Return a function that does a forward and a backward of one example."""
    network.to(device)
    x = torch.randn(1, SIDE, device=device)
    trained = [p for p in network.parameters() if p.requires_grad]

    def run() -> None:
        for parameter in trained:
            parameter.grad = None
        network(x).sum().backward()

    return run


class Kernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the operations that compute something."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        if operation.overloadpacket.__name__ not in NO_KERNEL:
            self.count += 1
        return operation(*arguments, **(options or {}))


def kernels(prepare: Callable[[nn.Module], nn.Module]) -> int:
    """Count those of one read of a masked weight, and of the backward from it."""
    network = prepare(nn.Sequential(nn.Linear(SIDE, SIDE, bias=False))).to("meta")
    (layer,) = cast(nn.Sequential, network)
    trained = [p for p in network.parameters() if p.requires_grad]
    gradient = torch.empty(SIDE, SIDE, device="meta")
    counted = Kernels()
    with counted:
        torch.autograd.grad(cast(Tensor, layer.weight), trained, gradient)
    return counted.count
