"""The .pt file: tensors and plain data only, so that loading one cannot run code; YOLOv5's are read as data too."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from models.weights.safe_pickle import FAULTS
from models.weights.torch_file import read
from models.weights.transfer import BUILD_FAULTS, check_fit
from models.weights.yolov5 import holds_yolov5, import_yolov5
from models.yolo import DetectionModel

LOGGER = logging.getLogger(__name__)
VERSION = 1
KEYS = ("version", "yaml", "names", "model")  # what every checkpoint holds
SUFFIXES = (".pt", ".pth", ".safetensors")


def model_state(model: DetectionModel) -> dict[str, Any]:
    """What rebuilds `model` anywhere: mapping, names, weights; anchors, stride and grid for those who only read."""
    return {
        "version": VERSION,
        "yaml": model.yaml,
        "names": dict(model.names),
        "anchors": model.head.anchors.flatten(1).tolist(),
        "stride": model.stride.tolist(),
        "grid": model.grid,
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
    write_bytes(path, buffer.getbuffer())


def save_safetensors(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write the weights as safetensors; the plain data is JSON in the file's metadata. Atomic, as `save_checkpoint`.

    The averaged weights are written where the checkpoint has them; optimizer state has no place in the format.
    """
    state = {name: t.contiguous() for name, t in (checkpoint.get("ema") or checkpoint["model"]).items()}
    plain = {k: v for k, v in checkpoint.items() if k not in ("model", "ema", "training")}
    write_bytes(path, safetensors.torch.save(state, {"checkpoint": json.dumps(plain)}))


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a file so that a reader sees the old one or the new one, whatever happens."""
    partial = path.with_name(path.name + ".part")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, f"{error.strerror}; not saved, an earlier file is still whole", str(path)) from error


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of this project (.pt, .safetensors) or of YOLOv5 v5 to v7; tensors on the CPU.

    Nothing in the file is run. One of YOLOv5 comes back as this project's, with the averaged weights if it has them.

    Raises:
        FileNotFoundError, ValueError: no such file; not such a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights '{path}' not found")
    checkpoint = load_safetensors(path) if path.suffix == ".safetensors" else load_archive(path)
    check_content(path, checkpoint)
    return checkpoint


def check_content(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Raise ValueError unless KEYS are there and hold what they should."""
    if any(key not in checkpoint for key in KEYS):
        raise ValueError(f"{path}: not a checkpoint of this project, expected the keys {', '.join(KEYS)}")
    if checkpoint["version"] != VERSION:
        raise ValueError(f"{path}: checkpoint version {checkpoint['version']!r:.20}, expected {VERSION}")
    for key in ("model", "ema"):
        state = checkpoint.get(key) or {}
        if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
            raise ValueError(f"{path}: '{key}' of the checkpoint does not hold tensors alone")
    names = checkpoint["names"]
    if not isinstance(checkpoint["yaml"], dict) or not isinstance(names, dict):
        raise ValueError(f"{path}: 'yaml' and 'names' of the checkpoint must be mappings")
    if sorted(names) != list(range(len(names))) or len(names) != checkpoint["yaml"].get("nc"):
        raise ValueError(
            f"{path}: the checkpoint's {len(names)} names do not fit its {checkpoint['yaml'].get('nc')} classes"
        )


def load_archive(path: Path) -> dict[str, Any]:
    """A checkpoint that torch.save wrote.

    Raises:
        ValueError: neither this project's nor YOLOv5's.
    """
    try:
        content = read(path)  # also refuses what would harm the reader below
        if holds_yolov5(content):
            checkpoint = {"version": VERSION} | import_yolov5(content)
            LOGGER.info(f"{path}: a YOLOv5 checkpoint, read without running it")
            return checkpoint
        if not isinstance(content, dict) or not content.keys() >= {*KEYS}:
            raise ValueError(f"expected the keys {', '.join(KEYS)}, or a pickled YOLOv5 model")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (ValueError, RuntimeError, pickle.UnpicklingError, *FAULTS) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: not a checkpoint that can be used, nothing in it was run: {reason}") from error


def load_safetensors(path: Path) -> dict[str, Any]:
    """A checkpoint that `save_safetensors` wrote.

    Raises:
        ValueError: not such a file.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            checkpoint = json.loads((file.metadata() or {})["checkpoint"])
            checkpoint["model"] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        checkpoint["names"] = {int(i): name for i, name in checkpoint["names"].items()}  # JSON keys are text
    except (safetensors.SafetensorError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a checkpoint of this project in safetensors ({error})") from error
    return checkpoint


def build_model(checkpoint: Mapping[str, Any]) -> DetectionModel:
    """The model of a checkpoint, in eval mode: the averaged weights where it has them.

    Raises:
        ValueError: its weights do not fit its rows.
    """
    state = checkpoint.get("ema") or checkpoint["model"]
    check_fit(checkpoint["yaml"], state)
    try:
        model = DetectionModel(checkpoint["yaml"])
        model.load_state_dict(state)
    except BUILD_FAULTS as error:
        raise ValueError(f"the checkpoint's model cannot be built ({str(error).splitlines()[0][:200]})") from error
    model.names = dict(checkpoint["names"])
    return model.eval()
