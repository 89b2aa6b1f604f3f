"""The device of a run and its random state."""

from __future__ import annotations

import random

import numpy as np
import torch


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


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, and choose deterministic cuDNN kernels."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
