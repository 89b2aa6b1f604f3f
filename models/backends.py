"""Weights of any supported format behind one callable."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from models import runtimes
from models.checkpoint import SUFFIXES, build_model, load_checkpoint


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
        ValueError: half precision on a CPU.
    """

    def __init__(self, weights: Path, device: torch.device, half: bool = False, threads: int = 0):
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

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 -> decoded (B, N, 5+nc), float32 whatever the model computes in."""
        decoded, _ = self.model(images.to(self.device, self.dtype))
        return decoded.float()


LOADERS = {suffix: TorchBackend for suffix in SUFFIXES} | {
    ".torchscript": runtimes.TorchScriptBackend,
    ".pt2": runtimes.ExportedProgramBackend,
    ".onnx": runtimes.OnnxBackend,
    ".xml": runtimes.OpenVinoBackend,
    ".param": runtimes.NcnnBackend,
    ".tflite": runtimes.LiteRtBackend,
    ".pte": runtimes.ExecuTorchBackend,
    ".mlpackage": runtimes.CoreMlBackend,
}
FOLDERS = {"_openvino_model": runtimes.OpenVinoBackend, "_ncnn_model": runtimes.NcnnBackend}  # by how the name ends


def load_backend(weights: str | Path, device: torch.device, half: bool = False, threads: int = 0) -> Backend:
    """The backend for the suffix of `weights`, or the ending of a folder's name.

    Args:
        half: compute in half precision, .pt on a GPU only. threads: of the CPU; 0 leaves the choice to the runtime.

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
    return loader(path, device, half, threads)
