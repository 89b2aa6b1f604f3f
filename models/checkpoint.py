"""The .pt file: tensors and plain data only, so that loading one cannot run code."""

from __future__ import annotations

import io
import logging
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.yolo import DetectionModel

LOGGER = logging.getLogger(__name__)
VERSION = 1
KEYS = ("version", "yaml", "names", "model")  # what every checkpoint holds


def model_state(model: DetectionModel) -> dict[str, Any]:
    """What rebuilds `model` anywhere: its mapping, names and weights."""
    return {
        "version": VERSION,
        "yaml": model.yaml,
        "names": dict(model.names),
        "model": {k: v.detach().cpu().clone() for k, v in model.state_dict().items()},
    }


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint so that a kill or a full disk leaves the previous file whole.

    Raises:
        ValueError: it holds something that `load_checkpoint` would refuse.
    """
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    try:
        torch.load(io.BytesIO(buffer.getbuffer()), weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: a checkpoint may hold only tensors and plain data ({error})") from error
    partial = path.with_name(path.name + ".part")
    try:
        with partial.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, f"{error.strerror}; not saved, an earlier file is still whole", str(path)) from error


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint without running anything in it; tensors on the CPU.

    Raises:
        FileNotFoundError, ValueError: no such file; not one of this project's checkpoints.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights '{path}' not found")
    if not zipfile.is_zipfile(path):  # the older format of torch.save is never written here
        raise ValueError(f"{path}: not a checkpoint of this project (not a zip archive)")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: not a checkpoint of this project, nothing in it was run ({reason})") from error
    if not isinstance(checkpoint, dict) or any(key not in checkpoint for key in KEYS):
        raise ValueError(f"{path}: not a checkpoint of this project, expected the keys {', '.join(KEYS)}")
    if checkpoint["version"] != VERSION:
        raise ValueError(f"{path}: checkpoint version {checkpoint['version']}, expected {VERSION}")
    return checkpoint


def build_model(checkpoint: dict[str, Any]) -> DetectionModel:
    """The model of a checkpoint, in eval mode: the averaged weights where it has them."""
    model = DetectionModel(checkpoint["yaml"])
    model.load_state_dict(checkpoint.get("ema") or checkpoint["model"])
    model.names = dict(checkpoint["names"])
    return model.eval()


def transfer(model: nn.Module, state: dict[str, Tensor]) -> tuple[int, list[str]]:
    """Copy the tensors of `state` that fit by name and shape into `model` -> (how many, names left as they were)."""
    own = model.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    model.load_state_dict(fitting, strict=False)
    return len(fitting), [k for k in own if k not in fitting]
