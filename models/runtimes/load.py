"""Loading weights of any supported format as a backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from models.runtimes import exported
from models.runtimes.ensemble import Augmented, Ensemble
from models.runtimes.torch_backend import TorchBackend
from models.weights.checkpoint import SUFFIXES
from utils.backend import Backend
from utils.files import missing_weights

LOADERS: dict[str, Callable[..., Backend]] = {
    **{suffix: TorchBackend for suffix in SUFFIXES},
    ".torchscript": exported.TorchScriptBackend,
    ".pt2": exported.ExportedProgramBackend,
    ".onnx": exported.OnnxBackend,
    ".xml": exported.OpenVinoBackend,
    ".param": exported.NcnnBackend,
    ".tflite": exported.LiteRtBackend,
    ".pte": exported.ExecuTorchBackend,
    ".mlpackage": exported.refuse_coreml,
}
FOLDERS: dict[str, Callable[..., Backend]] = {
    "_openvino_model": exported.OpenVinoBackend,
    "_ncnn_model": exported.NcnnBackend,
}  # by the end of the folder's name


def load_backend(
    weights: str | Path, device: torch.device, half: bool = False, threads: int = 0, compiled: bool = False
) -> Backend:
    """The backend for the suffix of `weights`, or for the end of a folder's name.

    Args:
        half: compute in half precision, .pt on a GPU only. threads: CPU threads (0: runtime default).
        compiled: run through torch.compile, .pt only.

    Raises:
        FileNotFoundError, ValueError: no such file; an unknown suffix or damaged content.
        ImportError: the runtime is not installed.
    """
    path = Path(weights)
    ending = next((end for end in FOLDERS if path.name.endswith(end)), None)
    loader = FOLDERS[ending] if ending else LOADERS.get(path.suffix.lower())
    if loader is None:
        known = ", ".join([*LOADERS, *FOLDERS])
        raise ValueError(f"{path}: weights with suffix '{path.suffix}', expected one of: {known}")
    if not path.exists():
        raise FileNotFoundError(missing_weights(path))
    if path.suffix.lower() in SUFFIXES:
        return TorchBackend(path, device, half, threads, compiled)
    if compiled:
        raise ValueError(f"{path}: --compile is for .pt weights, expected an exported file without it")
    return loader(path, device, half, threads)


def load_model(
    weights: str | Path | Sequence[str],
    device: torch.device,
    half: bool = False,
    augment: bool = False,
    threads: int = 0,
    compiled: bool = False,
) -> Backend:
    """One weights file, or several as an ensemble, with test-time augmentation if `augment`; see load_backend.

    Raises:
        ValueError: no weights.
    """
    paths = [weights] if isinstance(weights, str | Path) else list(weights)
    if not paths or not all(str(path) for path in paths):
        raise ValueError("--weights is missing, expected a checkpoint such as runs/train/exp/weights/best.pt")
    backends = [load_backend(path, device, half, threads, compiled) for path in paths]
    model: Backend = backends[0] if len(backends) == 1 else Ensemble(backends)
    return Augmented(model) if augment else model
