"""Checkpoint files: tensors and plain data only, so that loading one cannot run code; YOLOv5's are read as data."""

from __future__ import annotations

import io
import json
import logging
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from models.weights.safe_pickle import PICKLE_ERRORS
from models.weights.torch_file import read
from models.weights.transfer import BUILD_ERRORS, check_fit
from models.weights.yolov5 import holds_yolov5, import_yolov5
from models.weights.yolox import holds_yolox, import_yolox
from models.yolo import DetectionModel
from utils.classes import class_names
from utils.files import missing_weights, write_atomic

LOGGER = logging.getLogger(__name__)
VERSION = 1
REQUIRED = ("version", "yaml", "names", "model")  # keys of every checkpoint
SUFFIXES = (".pt", ".pth", ".safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file; tensors are on the CPU.

    Attributes:
        yaml: the model mapping, of which the rows are built. names: class index -> name.
        model: state dict. ema: state dict of the averaged weights, where `model` has those that are trained.
        anchors, stride, grid: of the model, for programs that only read the file.
        epoch: index of the last epoch. fitness, metrics: of its validation.
        hyp, opt: hyperparameters and flags of the run.
        training: the state that a resumed run needs, see TrainState; None if the file has only weights.
    """

    yaml: dict[str, Any]
    names: dict[int, str]
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None = None
    anchors: list[list[float]] | None = None
    stride: list[float] | None = None
    grid: int | None = None
    epoch: int | None = None
    fitness: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    hyp: dict[str, float] = field(default_factory=dict)
    opt: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] | None = None

    @classmethod
    def of(cls, model: DetectionModel) -> Checkpoint:
        """What rebuilds `model` anywhere; its tensors are copied."""
        return cls(
            yaml=model.yaml,
            names=dict(model.names),
            model={k: v.detach().cpu().clone() for k, v in model.state_dict().items()},
            anchors=None if model.head.anchors is None else model.head.anchors.flatten(1).tolist(),
            stride=model.stride.tolist(),
            grid=model.grid,
        )

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], path: Path) -> Checkpoint:
        """The checkpoint that `as_dict` wrote; other keys are ignored.

        Raises:
            ValueError: a required key is missing, or holds something else than it should.
        """
        check_content(path, content)
        content = {**content, "names": class_names(content["names"], str(path), strict=False)}
        return cls(**{f.name: content[f.name] for f in fields(cls) if content.get(f.name) is not None})

    def as_dict(self) -> dict[str, Any]:
        """Plain data and tensors under the keys of the file; without fields that are None or empty."""
        known = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"version": VERSION} | {k: v for k, v in known.items() if v is not None and v != {}}

    @property
    def weights(self) -> dict[str, Tensor]:
        """The state dict to detect with: the averaged weights where there are some."""
        return self.ema or self.model


def save_checkpoint(path: Path, checkpoint: Checkpoint, previous: Path | None = None) -> None:
    """Write a checkpoint so that a kill or a full disk leaves the previous file unchanged.

    Args:
        previous: where the previous file is kept; None: nowhere.

    Raises:
        ValueError: it holds something that `load_checkpoint` would refuse.
    """
    buffer = io.BytesIO()
    torch.save(checkpoint.as_dict(), buffer)
    try:
        torch.load(io.BytesIO(buffer.getbuffer()), weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: a checkpoint may hold only tensors and plain data ({error})") from error
    write_atomic(path, buffer.getbuffer(), previous=previous)


def save_safetensors(path: Path, checkpoint: Checkpoint) -> None:
    """Write the averaged weights as safetensors; the plain data is JSON in the file's metadata. Atomic."""
    content = replace(checkpoint, model=checkpoint.weights, ema=None, training=None).as_dict()
    state = {name: t.contiguous() for name, t in content.pop("model").items()}
    write_atomic(path, safetensors.torch.save(state, {"checkpoint": json.dumps(content)}))


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of this project (.pt, .safetensors), of YOLOv5 v5 to v7 or of YOLOX.

    Nothing in the file is run. From one of YOLOv5 the averaged weights are read if it has them.

    Raises:
        FileNotFoundError, ValueError: no such file; not such a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(missing_weights(path))
    content = load_safetensors(path) if path.suffix == ".safetensors" else load_archive(path)
    return Checkpoint.from_dict(content, path)


def check_content(path: Path, content: Mapping[str, Any]) -> None:
    """Raise ValueError unless the required keys are there and hold what they should."""
    if any(key not in content for key in REQUIRED):
        raise ValueError(f"{path}: not a checkpoint of this project, expected the keys {', '.join(REQUIRED)}")
    if content["version"] != VERSION:
        raise ValueError(f"{path}: checkpoint version {content['version']!r:.20}, expected {VERSION}")
    for key in ("model", "ema"):
        state = content.get(key) or {}
        if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
            raise ValueError(f"{path}: '{key}' of the checkpoint holds something other than tensors")
    for key in ("yaml", "names", "metrics", "hyp", "opt"):
        if not isinstance(content.get(key, {}), dict):
            raise ValueError(
                f"{path}: '{key}' of the checkpoint is a {type(content[key]).__name__}, expected a mapping"
            )
    names, nc = class_names(content["names"], str(path), strict=False), content["yaml"].get("nc")
    if len(names) != nc:
        raise ValueError(f"{path}: the checkpoint has {len(names)} names for {nc} classes")


def load_archive(path: Path) -> dict[str, Any]:
    """The content of a file that torch.save wrote, under the keys of this project.

    Raises:
        ValueError: neither this project's nor YOLOv5's nor YOLOX's.
    """
    try:
        content = read(path)  # refuses everything that could harm torch.load below
        if holds_yolov5(content):
            checkpoint = {"version": VERSION} | import_yolov5(content)
            LOGGER.info(f"{path}: a YOLOv5 checkpoint, read without running it")
            return checkpoint
        if holds_yolox(content):
            checkpoint = {"version": VERSION} | import_yolox(content)
            LOGGER.info(f"{path}: a YOLOX checkpoint")
            return checkpoint
        if not isinstance(content, dict) or not content.keys() >= {*REQUIRED}:
            raise ValueError(f"expected the keys {', '.join(REQUIRED)}, a pickled YOLOv5 model or a YOLOX state dict")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (ValueError, RuntimeError, pickle.UnpicklingError, *PICKLE_ERRORS) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: not a usable checkpoint, nothing in it was run: {reason}") from error


def load_safetensors(path: Path) -> dict[str, Any]:
    """The content of a file that `save_safetensors` wrote.

    Raises:
        ValueError: not such a file.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            content = json.loads((file.metadata() or {})["checkpoint"])
            content["model"] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (safetensors.SafetensorError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a checkpoint of this project in safetensors ({error})") from error
    return content


def build_model(checkpoint: Checkpoint) -> DetectionModel:
    """The model of a checkpoint, in eval mode: the averaged weights where it has them.

    Raises:
        ValueError: its weights do not fit its rows.
    """
    check_fit(checkpoint.yaml, checkpoint.weights)
    try:
        model = DetectionModel(checkpoint.yaml)
        model.load_state_dict(checkpoint.weights)
    except BUILD_ERRORS as error:
        raise ValueError(f"the checkpoint's model cannot be built ({str(error).splitlines()[0][:200]})") from error
    model.names = dict(checkpoint.names)
    return model.eval()
