"""Memory of a training run: its peak, and the largest batch size that fits."""

from __future__ import annotations

import logging
import sys
from copy import deepcopy

import torch
from torch import Tensor, nn

from utils.device import free_memory
from utils.distributed import Dist

LOGGER = logging.getLogger(__name__)
MAX_BATCH = 256  # per process, for --batch-size -1
MEMORY_SHARE = 0.6  # of the free memory, for --batch-size -1


def peak_memory() -> float:
    """Peak memory in GB: of the GPU if one is used, else of this process without its workers; NaN on Windows."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e9
    if sys.platform == "win32":
        return float("nan")  # the module resource is missing there
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def activation_bytes(model: nn.Module, images: Tensor) -> int:
    """Bytes that `model` saves for the backward pass of `images`, each tensor counted once."""
    saved: dict[int, int] = {}  # address -> bytes

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        output = model(images)  # kept alive, so that no address is used twice
    del output
    return sum(size for address, size in saved.items() if address not in weights)


def choose_batch_size(model: nn.Module, side: int, dist: Dist) -> int:
    """The batch size over all processes: for each, the largest multiple of 8 that fits in MEMORY_SHARE.

    Args:
        model: not modified. side: of the largest input, pixels.
    """
    images = torch.zeros(2, 3, side, side, device=dist.device)
    probe = deepcopy(model).train()
    per_image = 1.5 * activation_bytes(probe, images) / 2  # half as much again for gradients and workspace
    free = free_memory(dist.device) / (dist.world if dist.device.type == "cpu" else 1)
    batch = min(max(int(MEMORY_SHARE * free / per_image) // 8 * 8, 1), MAX_BATCH)
    LOGGER.info(f"--batch-size -1: {batch} per process, {per_image / 1e9:.2f} GB per image, {free / 1e9:.1f} GB free")
    return batch * dist.world
