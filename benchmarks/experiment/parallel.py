"""One run on the processes that torchrun started; a no-op with one process."""

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
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return 1


@contextmanager
def processes(device: str) -> Iterator[None]:
    """Join the other processes if torchrun started this one; only the first prints."""
    if not dist.is_available() or not dist.is_torchelastic_launched():
        yield
        return
    on_gpus = device != "cpu" and torch.cuda.is_available()
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpus else "gloo")
    with open(os.devnull, "w") as nowhere:
        with redirect_stdout(nowhere if rank() > 0 else sys.stdout):
            yield
        # DDP has reference cycles, which outlive the group and stop Python's shutdown.
        gc.collect()
        dist.destroy_process_group()


def distribute(model: nn.Module) -> nn.Module:
    """Return a module that trains `model` with the mean gradients of all processes.

    On GPUs batch norm has the statistics of the global batch; on CPUs, for which
    PyTorch has no such layer, each process has those of its part.
    """
    if size() == 1:
        return model
    if next(model.parameters()).is_cuda:
        model = _with_global_batch_norm(model)
    return DistributedDataParallel(model)


def _with_global_batch_norm(model: nn.Module) -> nn.Module:
    """Return a twin with `SyncBatchNorm` that shares all parameters and buffers."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    return nn.SyncBatchNorm.convert_sync_batchnorm(twin)  # type: ignore[no-any-return, no-untyped-call]


def part(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return this process's part of a global batch, and the weight of its mean loss."""
    count, processes = len(labels), size()
    if count < processes:
        raise BenchmarkError(
            f"Each of {processes} processes needs an image of every batch; found a "
            f"batch of {count}. Start fewer, or change --batch-size or --train-images."
        )
    own_inputs = inputs.tensor_split(processes)[rank()]
    own_labels = labels.tensor_split(processes)[rank()]
    return own_inputs, own_labels, len(own_inputs) * processes / count


def add_up(totals: Tensor) -> Tensor:
    """Sum over all processes, in place."""
    if size() > 1:
        dist.all_reduce(totals)
    return totals


def wait_for_all(device: torch.device) -> None:
    """Return when every process has come here."""
    add_up(torch.zeros(1, device=device))


def synchronise_buffers(model: nn.Module) -> None:
    """Give all processes the running averages of the first one."""
    if size() == 1:
        return
    for buffer in model.buffers():
        dist.broadcast(buffer, 0)
