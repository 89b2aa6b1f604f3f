"""The device of a run, its processes, its random state and its memory."""

from __future__ import annotations

import os
import random
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

PATIENCE = timedelta(minutes=10)  # the longest that one process waits for another within a step
AMP = ("auto", "fp16", "bf16", "off")
LONG_PATIENCE = timedelta(days=7)  # and while rank 0 validates


def select_device(text: str = "") -> torch.device:
    """'' is the first GPU, else the CPU; 'cpu', 'mps' or a GPU number are taken at their word.

    Raises:
        ValueError: a device that is not here.
    """
    gpus = torch.cuda.device_count()
    if text == "":
        return torch.device("cuda:0" if gpus else "cpu")
    if text == "cpu":
        return torch.device("cpu")
    if text == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError("--device mps: not available on this machine, expected cpu or a GPU number")
        return torch.device("mps")
    if not text.isdigit() or int(text) >= gpus:
        raise ValueError(f"--device {text}: expected cpu, mps or a GPU number below {gpus} (GPUs found)")
    return torch.device(f"cuda:{text}")


@dataclass(frozen=True)
class Dist:
    """This process among those of the run: its device, its rank (0 writes the files), and how many there are."""

    device: torch.device
    rank: int = 0
    world: int = 1
    patient: Any = None  # a process group that outwaits a validation

    def wrap(self, model: nn.Module, sync_bn: bool = False) -> nn.Module:
        """`model` for training: itself in a single process, else averaging its gradients over all of them."""
        if self.world == 1:
            return model
        if sync_bn:
            model = sync_batchnorm(model, self.device)
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices)

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` over the processes, without gradient; a new tensor."""
        values = values.detach().clone()
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def agree(self, value: Any) -> Any:
        """Rank 0's `value` (plain data), once it has one; the others wait for it as long as it takes."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.patient)
        return box[0]

    def close(self) -> None:
        if self.world > 1:
            dist.destroy_process_group()


def setup_device(text: str = "") -> Dist:
    """The device and, under torchrun, the process group. Only this module reads what torchrun sets.

    Args:
        text: as in `select_device`; under torchrun also GPU numbers '0,1', one for each process of this machine.

    Raises:
        ValueError: several GPUs without torchrun, fewer GPUs than processes, or a device that is not here.
    """
    world, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    listed = text.split(",") if "," in text else []
    if world == 1:
        if listed:
            command = f"torchrun --nproc_per_node {len(listed)} train.py ... --device {text}"
            raise ValueError(f"--device {text}: one process uses one GPU, for several type: {command}")
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
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    patient = dist.new_group(backend="gloo", timeout=LONG_PATIENCE)
    return Dist(device, dist.get_rank(), world, patient)


def local_processes() -> int:
    """How many processes of the run share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


class _Total(torch.autograd.Function):
    """The sum over all processes; the gradient is the sum of their gradients."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return _Total.apply(gradient)


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
        sums = _Total.apply(sums)
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
    """`model`, changed in place, with every batch norm taking its statistics over all processes."""
    if device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = CPUSyncBatchNorm  # same parameters, buffers and names: nothing to copy
    return model


def seed_everything(seed: int, device: torch.device) -> None:
    """Seed Python, NumPy and torch; choose deterministic cuDNN kernels, and on a CPU deterministic operators.

    Without them a CPU with several threads adds gradients of one cell in an order that differs from run to run.
    """
    torch.use_deterministic_algorithms(device.type == "cpu", warn_only=True)
    # It costs time, and nothing reads such memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def random_states() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's generators as tensors and plain data."""
    kind, keys, *rest = cast(tuple, np.random.get_state())
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Undo what was drawn since `random_states`; GPU generators only if there are as many."""
    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def peak_memory() -> float:
    """Peak memory so far in GB: of the GPU if one is used, else of this process without its loader workers."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e9
    if sys.platform == "win32":
        return float("nan")  # Python has no portable way to ask
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on `device` now; on a CPU what the system calls available.

    Raises:
        ValueError: this system does not say.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    raise ValueError("this system does not tell its free memory; name a size instead")


def amp_type(amp: str, device: torch.device) -> torch.dtype | None:
    """The type of mixed precision that `amp` means on `device`; None: single precision throughout.

    Raises:
        ValueError: fp16 off CUDA, where half precision is slower and has no loss scaling that was tried.
    """
    if amp == "bf16":
        return torch.bfloat16
    if amp == "fp16" and device.type != "cuda":
        raise ValueError(f"--amp fp16: not on {device.type}, expected bf16 or off")
    return torch.float16 if amp != "off" and device.type == "cuda" else None


def activation_bytes(model: nn.Module, images: Tensor) -> int:
    """Bytes that `model` keeps for the backward pass of `images`, each tensor counted once."""
    held: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(images)  # kept alive, so that no address is used twice
    del output
    return sum(size for pointer, size in held.items() if pointer not in own)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or a CPU."""
    signs = ("can't allocate memory", "out of memory", "is killed by signal: Killed", "Bus error")
    kinds = MemoryError | torch.OutOfMemoryError
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs))


def is_lost_peer(error: BaseException) -> bool:
    """Whether an exception says that another process of the run has gone."""
    signs = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "remote process")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def explained(error: BaseException, batch_size: int, imgsz: int) -> BaseException:
    """`error`, or one that says in one line what to do: about memory, a lost process, or a file that a worker read."""
    if is_out_of_memory(error):
        smaller = max(batch_size // 2, 1)
        return ValueError(f"out of memory with --batch-size {batch_size} --imgsz {imgsz}: try --batch-size {smaller}")
    if is_lost_peer(error):
        reason = str(error).splitlines()[0]
        return ConnectionError(f"another process of this run has ended, so this one ends too ({reason})")
    if isinstance(error, ValueError | OSError) and "Original Traceback" in str(error):
        return ValueError(str(error).strip().splitlines()[-1].partition(": ")[2])
    return error
