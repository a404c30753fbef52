"""One run over the processes that torchrun has started; with a single process all of it is void."""

import copy
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks import BenchmarkError


def rank() -> int:
    return dist.get_rank() if size() > 1 else 0


def size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def processes(device: str) -> Iterator[None]:
    """Join the others, where torchrun started this process; the first speaks for all."""
    if not dist.is_available() or not dist.is_torchelastic_launched():
        yield
        return
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda else "gloo")
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere if rank() else sys.stdout):
        yield
        gc.collect()  # DDP's reference cycles, which outlive the group and stop Python's shutdown
        dist.destroy_process_group()


def over_all(model: nn.Module) -> nn.Module:
    """What trains the parameters of `model` with the means of all processes' gradients. On GPUs
    batch norm has the statistics of the global batch, on CPUs each process those of its part."""
    if size() == 1:
        return model
    if next(model.parameters()).is_cuda:
        shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
        twin = copy.deepcopy(model, shared)
        model = nn.SyncBatchNorm.convert_sync_batchnorm(twin)  # type: ignore[no-untyped-call]
    return DistributedDataParallel(model)


def part(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, float]:
    """This process's images of a global batch, and how its mean loss weighs among the others'."""
    count, processes = len(labels), size()
    if count < processes:
        raise BenchmarkError(
            f"Each of {processes} processes needs an image of every batch; found a batch of "
            f"{count}. Start fewer, or change --batch-size or --train-images."
        )
    mine, classes = (x.tensor_split(processes)[rank()] for x in (inputs, labels))
    return mine, classes, len(mine) * processes / count


def add_up(totals: Tensor) -> Tensor:
    """The sums over all processes."""
    if size() > 1:
        dist.all_reduce(totals)
    return totals


def same_buffers(model: nn.Module) -> None:
    """Give all processes the first one's running averages."""
    for buffer in model.buffers() if size() > 1 else ():
        dist.broadcast(buffer, 0)
