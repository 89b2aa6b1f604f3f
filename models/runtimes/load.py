"""Weights of any supported format behind one callable."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from models.runtimes import exported as runtimes
from models.weights.checkpoint import SUFFIXES, build_model, load_checkpoint

LOGGER = logging.getLogger(__name__)


class Backend(Protocol):
    """What runs a detector: float (B, 3, H, W) in 0..1 -> decoded rows (B, N, 5+nc), see Detect.forward.

    Attributes:
        names: class index -> name. nc: classes.
        stride: pixels a cell of the coarsest level. grid: both sides of an input must be multiples of it.
    """

    names: dict[int, str]
    nc: int
    stride: int
    grid: int

    def __call__(self, images: Tensor) -> Tensor: ...


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
        self.model = build_model(load_checkpoint(weights)).fuse().to(device).requires_grad_(False)
        if half:
            self.model.half()
        self.device, self.dtype = device, torch.float16 if half else torch.float32
        self.names = dict(self.model.names)
        self.nc = self.model.nc
        self.stride = int(self.model.stride.max())
        self.grid = self.model.grid
        self.forward = compile_model(self.model, device) if compiled else self.model

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 -> decoded (B, N, 5+nc), float32 whatever the model computes in."""
        decoded, _ = self.forward(images.to(self.device, self.dtype))
        return decoded.float()


def compile_model(model: nn.Module, device: torch.device) -> Callable[[Tensor], tuple[Tensor, list[Tensor]]]:
    """`model` by torch.compile, which starts at the first input and again at every new shape.

    Raises:
        ValueError: no C++ compiler, on the CPU.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and not (shutil.which(compiler) or shutil.which("clang++")):
        raise ValueError(f"--compile needs a C++ compiler on the CPU, {compiler} was not found; leave it out")
    LOGGER.info("--compile: the first picture of every size takes a minute or more, the following ones are faster")
    return torch.compile(model, dynamic=False)


LOADERS: dict[str, Callable[..., Backend]] = {
    **{suffix: TorchBackend for suffix in SUFFIXES},
    ".torchscript": runtimes.TorchScriptBackend,
    ".pt2": runtimes.ExportedProgramBackend,
    ".onnx": runtimes.OnnxBackend,
    ".xml": runtimes.OpenVinoBackend,
    ".param": runtimes.NcnnBackend,
    ".tflite": runtimes.LiteRtBackend,
    ".pte": runtimes.ExecuTorchBackend,
    ".mlpackage": runtimes.no_coreml,
}
FOLDERS: dict[str, Callable[..., Backend]] = {
    "_openvino_model": runtimes.OpenVinoBackend,
    "_ncnn_model": runtimes.NcnnBackend,
}  # by how the name ends


def load_backend(
    weights: str | Path, device: torch.device, half: bool = False, threads: int = 0, compiled: bool = False
) -> Backend:
    """The backend for the suffix of `weights`, or the ending of a folder's name.

    Args:
        half: compute in half precision, .pt on a GPU only. threads: of the CPU; 0 leaves the choice to the runtime.
        compiled: run through torch.compile, .pt only.

    Raises:
        FileNotFoundError, ValueError: no such file; a suffix or a content that does not work.
        ImportError: the runtime is not installed; says what to type.
    """
    path = Path(weights)
    ending = next((end for end in FOLDERS if path.name.endswith(end)), None)
    loader = FOLDERS[ending] if ending else LOADERS.get(path.suffix.lower())
    if loader is None:
        known = ", ".join([*LOADERS, *FOLDERS])
        raise ValueError(f"{path}: weights with suffix '{path.suffix}', expected one of: {known}")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such weights file")
    if path.suffix.lower() in SUFFIXES:
        return TorchBackend(path, device, half, threads, compiled)
    if compiled:
        raise ValueError(f"{path}: --compile is for .pt weights; an exported file is compiled already")
    return loader(path, device, half, threads)
