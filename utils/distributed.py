"""The processes of a training run: device, rank, collective operations, synchronized batch norm."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.device import select_device

T = TypeVar("T")
STEP_TIMEOUT = timedelta(minutes=10)  # for collective operations within a step
EPOCH_TIMEOUT = timedelta(days=7)  # for broadcasts, which wait while rank 0 validates


@dataclass(frozen=True)
class Dist:
    """This process among those of the run.

    Attributes:
        device: of this process. rank: its number; only rank 0 logs and writes files. world: the number of processes.
        cpu_group: the process group of broadcasts, whose timeout outlasts a validation; None with one process.
    """

    device: torch.device
    rank: int = 0
    world: int = 1
    cpu_group: dist.ProcessGroup | None = None

    def wrap(self, model: nn.Module, sync_bn: bool = False) -> nn.Module:
        """`model` for training: itself in a single process, else averaging its gradients over all of them."""
        if self.world == 1:
            return model
        if sync_bn:
            model = sync_batchnorm(model, self.device)
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices)

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over the processes, without gradient; a new tensor."""
        values = values.detach().clone()
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def broadcast(self, value: T) -> T:
        """The `value` of rank 0 (plain data), for which the other ranks wait up to EPOCH_TIMEOUT."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.cpu_group)
        return box[0]

    @contextmanager
    def rank_zero_first(self) -> Iterator[None]:
        """A barrier: the block runs in rank 0, then in all others, which find the caches that rank 0 wrote to disk."""
        if self.rank:
            self.broadcast(None)
        yield
        if not self.rank:
            self.broadcast(None)

    @contextmanager
    def gradient_sync(self, model: nn.Module, enabled: bool) -> Iterator[None]:
        """Forward and backward passes of `model`; without `enabled` the gradients stay in this process.

        Of the batches that are accumulated only the last needs an all-reduce: it averages the sums.
        """
        with nullcontext() if enabled or not isinstance(model, DistributedDataParallel) else model.no_sync():
            yield

    def close(self) -> None:
        if self.world > 1:
            dist.destroy_process_group()


def connect(device: str) -> Dist:
    """This process among those of the run, see setup_device; those other than the first log errors only.

    Raises:
        ConnectionError: the processes do not find each other.
    """
    try:
        dist = setup_device(device)
    except RuntimeError as error:
        raise ConnectionError(f"the processes of the run cannot connect: {error}") from error
    if dist.rank:
        logging.getLogger().setLevel(logging.ERROR)
    return dist


def setup_device(text: str = "") -> Dist:
    """The device and, under torchrun, the process group. Only this module reads what torchrun sets.

    Args:
        text: as in `select_device`; under torchrun also GPU numbers '0,1', one for each process of this machine.

    Raises:
        ValueError: several GPUs without torchrun, fewer GPUs than processes, or a device that does not exist.
    """
    world, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    listed = text.split(",") if "," in text else []
    if world == 1:
        if listed:
            command = f"torchrun --nproc_per_node {len(listed)} train.py ... --device {text}"
            raise ValueError(f"--device {text}: one process uses one GPU, for several run: {command}")
        device = select_device(text)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        return Dist(device)
    if text.isdigit() and local_processes() > 1:
        raise ValueError(f"--device {text}: one GPU for {local_processes()} processes, expected a list such as 0,1")
    if listed:
        if local >= len(listed):
            raise ValueError(f"--device {text}: {len(listed)} GPUs for {local + 1} or more processes")
        text = listed[local]
    elif text == "" and torch.cuda.device_count():
        text = str(local)
    device = select_device(text)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # torchrun's, to a process that waits for one that has ended
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=STEP_TIMEOUT)
    cpu_group = dist.new_group(backend="gloo", timeout=EPOCH_TIMEOUT)
    return Dist(device, dist.get_rank(), world, cast(dist.ProcessGroup, cpu_group))


def local_processes() -> int:
    """Number of processes of the run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


class AllReduceSum(torch.autograd.Function):
    """The sum of a tensor over the processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


class CPUSyncBatchNorm(nn.BatchNorm2d):
    """Batch norm over the batches of all processes; torch's own does not run on CPUs."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        wide = x.double()
        sums = torch.cat([wide.sum((0, 2, 3)), (wide * wide).sum((0, 2, 3)), wide.new_tensor([x[:, 0].numel()])])
        sums = AllReduceSum.apply(sums)
        count = sums[-1]
        mean, square = (sums[:-1] / count).chunk(2)
        variance = square - mean * mean
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.float(), self.momentum)
            self.running_var.lerp_((variance * count / (count - 1)).float(), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps).float()
        shift = self.bias - mean.float() * scale
        return (x.float() * scale[:, None, None] + shift[:, None, None]).to(x.dtype)


def sync_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """`model`, changed in place, with batch norms whose statistics are over the batches of all processes."""
    if device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = CPUSyncBatchNorm  # same parameters, buffers and names: nothing to copy
    return model
