"""The device, CPU count, memory, precision and random state of this process."""

from __future__ import annotations

import os
import random
from typing import Any, cast

import numpy as np
import torch

from utils.text import counted


def select_device(text: str = "") -> torch.device:
    """The device that `text` names: 'cpu', 'mps' or a GPU number; '' is the first GPU, else the CPU.

    Raises:
        ValueError: this machine has no such device.
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
    if not text.isdigit():
        raise ValueError(f"--device {text}: expected cpu, mps or a GPU number")
    if not gpus:
        reason = "" if torch.version.cuda else f"; this PyTorch ({torch.__version__}) is built for CPUs only"
        raise ValueError(f"--device {text}: no GPU was found on this machine, expected cpu or no --device{reason}")
    if int(text) >= gpus:
        numbers = "0" if gpus == 1 else f"0 to {gpus - 1}"
        raise ValueError(f"--device {text}: {counted(gpus, 'GPU was', 'GPUs were')} found, expected {numbers}, or cpu")
    return torch.device(f"cuda:{text}")


def seed_everything(seed: int, device: torch.device) -> None:
    """Seed Python, NumPy and torch; choose deterministic cuDNN kernels, and on a CPU deterministic operators.

    Without them a CPU with several threads adds gradients of one cell in an order that differs from run to run.
    """
    torch.use_deterministic_algorithms(device.type == "cpu", warn_only=True)
    # Filling new tensors costs time, and no code reads them before they are written.
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
    """Set the generators to states of `random_states`; those of GPUs only if there are as many."""
    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def cpu_count() -> int:
    """Number of CPUs that this process may use: its affinity, which containers and batch systems set."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory(device: torch.device) -> int:
    """Free memory of `device` in bytes; for a CPU what the system calls available.

    Raises:
        ValueError: the system does not report it.
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
    raise ValueError("this system does not report its free memory, which --batch-size -1 and --cache ram need")


def amp_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """The data type of autocast that `amp` means on `device`; None: no mixed precision.

    Raises:
        ValueError: fp16 without CUDA, where half precision is slower and gradient scaling is not tested.
    """
    if amp == "bf16":
        return torch.bfloat16
    if amp == "fp16" and device.type != "cuda":
        raise ValueError(f"--amp fp16: not on {device.type}, expected bf16 or off")
    return torch.float16 if amp != "off" and device.type == "cuda" else None
