"""The backend that runs checkpoints with PyTorch."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from models.weights.checkpoint import Checkpoint, build_model, load_checkpoint
from utils.backend import ModelLimits
from utils.images import as_size

LOGGER = logging.getLogger(__name__)
MAX_IMGSZ = 8192  # a training size above it is not used: a damaged file must not fill the memory


class TorchBackend:
    """A checkpoint run by PyTorch: fused, in eval mode, without gradients.

    Raises:
        ValueError: half precision on a CPU; no C++ compiler for `compiled`.
    """

    def __init__(
        self, weights: Path, device: torch.device, half: bool = False, threads: int = 0, compiled: bool = False
    ):
        if half and device.type == "cpu":
            raise ValueError("--half on a CPU: expected a GPU; leave --half out")
        if threads:
            torch.set_num_threads(threads)
        checkpoint = load_checkpoint(weights)
        self.model = build_model(checkpoint).fuse().to(device).requires_grad_(False)
        if half:
            self.model.half()
        self.device, self.dtype = device, torch.float16 if half else torch.float32
        self.names = dict(self.model.names)
        self.nc = self.model.nc
        self.stride = int(self.model.stride.max())
        self.grid, self.letterbox = self.model.grid, self.model.letterbox
        self.limits = checkpoint_limits(weights, checkpoint)
        self.forward = compile_model(self.model, device) if compiled else self.model

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 -> decoded (B, N, 5+nc), always float32."""
        decoded, _ = self.forward(images.to(self.device, self.dtype))
        return decoded.float()

    @torch.inference_mode()
    def rows_above(self, images: Tensor, least: float) -> list[Tensor]:
        """See SparseBackend; all rows where the model is compiled, whose decoding is part of the compiled code."""
        if self.forward is not self.model:
            return list(self(images))
        found, _ = self.model(images.to(self.device, self.dtype), least)
        return [rows.float() for rows in found]


def checkpoint_limits(path: Path, checkpoint: Checkpoint) -> ModelLimits:
    """The size at which a checkpoint was trained, where its flags are in it, and the thresholds stored in it."""
    limits = ModelLimits(path.name, thresholds=checkpoint.thresholds)
    try:
        size = as_size(checkpoint.opt.get("imgsz", ()))
    except (ValueError, TypeError):  # no size, or something else under that key
        return limits
    return replace(limits, imgsz=size) if max(size) <= MAX_IMGSZ else limits


def compile_model(model: nn.Module, device: torch.device) -> Callable[[Tensor], tuple[Tensor, list[Tensor]]]:
    """`model` run by torch.compile, which compiles at the first input of every shape.

    Raises:
        ValueError: no C++ compiler, on the CPU.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and not (shutil.which(compiler) or shutil.which("clang++")):
        raise ValueError(f"--compile needs a C++ compiler on the CPU, {compiler} was not found; leave --compile out")
    LOGGER.info("--compile: the first image of every size takes a minute or more, the following ones are faster")
    compiled, lock = torch.compile(model, dynamic=False), threading.Lock()

    def forward(images: Tensor) -> tuple[Tensor, list[Tensor]]:
        with lock:  # compiling is not for several threads at once
            return compiled(images)

    return forward
