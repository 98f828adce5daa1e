"""One process or many: under torchrun, processes share each update as if they were one with all of their batches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn.parallel import DistributedDataParallel

from runtime.errors import DeviceError


@contextmanager
def group() -> Iterator[torch.device]:
    """Join the group that torchrun made, where it did; this process's device. Raises DeviceError."""
    kind, local = "cuda" if torch.cuda.is_available() else "cpu", int(os.environ.get("LOCAL_RANK", 0))
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield torch.device(kind)
        return
    if not {"RANK", "LOCAL_RANK", "MASTER_ADDR"} <= os.environ.keys():
        raise DeviceError("WORLD_SIZE is set but not RANK, LOCAL_RANK and MASTER_ADDR", "start several processes with torchrun")
    if kind == "cuda":
        if local >= torch.cuda.device_count():
            raise DeviceError(f"process {local + 1} of this machine has no GPU of {torch.cuda.device_count()}", "start fewer")
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield torch.device("cuda", local) if kind == "cuda" else torch.device("cpu")
    finally:
        dist.destroy_process_group()


def place() -> tuple[int, int]:
    """This process's number among how many."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def anywhere(flag: bool) -> bool:
    """Whether the flag is set in any process; all must ask."""
    if not dist.is_initialized():
        return flag
    flags = torch.tensor(int(flag), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags.item())


def shared(network: nn.Module) -> nn.Module:
    """The network as it is called in training: its gradients, and its batch norms' statistics, are those of all processes."""
    if not dist.is_initialized():
        return network
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = _SharedBatchNorm  # the same parameters, buffers and names
    return DistributedDataParallel(network)


class _SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the batches of all processes, of one size each. torch's own, SyncBatchNorm, wants a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        rank, world = place()
        return super().forward(torch.cat(all_gather(x.contiguous()))).chunk(world)[rank]
