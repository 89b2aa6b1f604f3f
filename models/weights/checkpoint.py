"""Checkpoint files: tensors and plain data only, so that loading one cannot run code; YOLOv5's are read as data."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from models.plan import ModelPlan
from models.weights.safe_pickle import PICKLE_ERRORS
from models.weights.torch_file import read, read_bytes
from models.weights.transfer import check_fit
from models.weights.yolov5 import holds_yolov5, import_yolov5
from models.weights.yolox import holds_yolox, import_yolox
from models.yolo import BUILD_ERRORS, DetectionModel, plan_model
from utils.classes import class_names, shown
from utils.files import missing_weights, write_atomic
from utils.plain_data import limit, load_json, over, plain_data, state_dict
from utils.text import clean, first
from utils.thresholds import Thresholds

LOGGER = logging.getLogger(__name__)
VERSION = 1
REQUIRED = ("version", "yaml", "names", "model")  # keys of every checkpoint
KINDS: dict[str, type | tuple[type, ...]] = {  # of the other keys
    "yaml": dict,
    "metrics": dict,
    "hyp": dict,
    "opt": dict,
    "training": dict,
    "anchors": list,
    "stride": list,
    "grid": int,
    "epoch": int,
    "fitness": (float, int),
}
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
        thresholds: the confidence thresholds that a validation of these weights chose.
        training: the state that a resumed run needs, see TrainState; None if the file has only weights.
        plan: of the network, where reading the file needed it.
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
    thresholds: Thresholds | None = None
    training: dict[str, Any] | None = None
    plan: ModelPlan | None = field(default=None, repr=False, compare=False)

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
        """The checkpoint that `as_dict` wrote, its data checked and copied; other keys are ignored.

        Raises:
            ValueError: a required key is missing, or holds something else than it should, or more than is allowed.
        """
        return cls(**check_content(content, first([path])))

    def as_dict(self) -> dict[str, Any]:
        """Plain data and tensors under the keys of the file; without fields that are None or empty."""
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "plan"}
        known["thresholds"] = self.thresholds and self.thresholds.as_dict()
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
        check_content(read_bytes(buffer.getbuffer()), "it")
    except ValueError as error:
        raise ValueError(f"{path}: a checkpoint may hold only tensors and plain data ({error})") from error
    write_atomic(path, buffer.getbuffer(), previous=previous)


def save_safetensors(path: Path, checkpoint: Checkpoint) -> None:
    """Write the averaged weights as safetensors; the plain data is JSON in the file's metadata. Atomic."""
    content = replace(checkpoint, model=checkpoint.weights, ema=None, training=None).as_dict()
    state = {name: t.contiguous() for name, t in content.pop("model").items()}
    write_atomic(path, safetensors.torch.save(state, {"checkpoint": json.dumps(content)}))


def store_thresholds(path: Path, thresholds: Thresholds | None) -> None:
    """Write thresholds into a checkpoint of this project, of which all else stays; atomic.

    Raises:
        ValueError: not a checkpoint of this project.
    """
    check_storable(path)
    save = save_safetensors if path.suffix == ".safetensors" else save_checkpoint
    save(path, replace(load_checkpoint(path), thresholds=thresholds))


def check_storable(path: Path) -> None:
    """Raise a ValueError unless `path` is a checkpoint of this project, in which thresholds can be stored.

    Raises:
        FileNotFoundError: no such file.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"{path}: an exported file keeps the thresholds that it was made with; store them in the .pt checkpoint "
            "and export it again"
        )
    if not path.is_file():
        raise FileNotFoundError(missing_weights(path))
    if path.suffix == ".safetensors":
        return
    try:
        content = read(path)
    except (ValueError, RuntimeError, *PICKLE_ERRORS) as error:
        raise ValueError(f"{path}: not a usable checkpoint ({clean(error, 240)})") from error
    if not isinstance(content, dict) or not content.keys() >= {*REQUIRED}:
        raise ValueError(
            f"{path}: a checkpoint of another project, which is not changed; make one of this project: "
            f"python tools/convert.py {path}"
        )


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
    checkpoint = Checkpoint.from_dict(content, path)
    return checkpoint if checkpoint.plan is not None else with_plan(checkpoint, first([path]))


def with_plan(checkpoint: Checkpoint, where: str) -> Checkpoint:
    """The checkpoint with the plan of its network, which its weights fit; nothing of the network's size is allocated.

    Raises:
        ValueError: its rows build no network, or one that costs too much; its weights do not fit it.
    """
    try:
        plan = plan_model(checkpoint.yaml)
        check_fit(plan, checkpoint.weights)
    except ValueError as error:
        raise ValueError(f"{where}: {clean(error, 280)}") from error
    return replace(checkpoint, plan=plan)


def check_content(content: Any, where: str) -> dict[str, Any]:
    """The fields of a checkpoint, each checked: the one gate for what a reader returned, whatever the format.

    Raises:
        ValueError: a required key is missing, or holds something else than it should, or more than is allowed.
    """
    if not isinstance(content, Mapping) or any(key not in content for key in REQUIRED):
        raise ValueError(f"{where}: not a checkpoint of this project, expected the keys {', '.join(REQUIRED)}")
    if type(content["version"]) is not int or content["version"] != VERSION:
        raise ValueError(f"{where}: checkpoint version {shown(content['version'])}, expected {VERSION}")
    known: dict[str, Any] = {"plan": content.get("plan")}
    for key in ("model", "ema"):
        if content.get(key) is not None:
            known[key] = state_dict(content[key], where, key)
    for key, kind in KINDS.items():
        if content.get(key) is None:
            continue
        if not isinstance(content[key], kind) or isinstance(content[key], bool):
            raise ValueError(
                f"{where}: '{key}' of the checkpoint is a {type(content[key]).__name__}, expected {words(kind)}"
            )
        tensors = key == "training"
        known[key] = plain_data({key: content[key]}, where, finite=key == "yaml", tensors=tensors)[key]
    if content.get("thresholds") is not None:
        known["thresholds"] = Thresholds.from_dict(content["thresholds"], where)
    known["names"] = class_names(plain_data({"names": content["names"]}, where)["names"], where, strict=False)
    nc = known.get("yaml", {}).get("nc")
    if len(known["names"]) != nc:
        raise ValueError(f"{where}: the checkpoint has {len(known['names'])} names for {shown(nc)} classes")
    return known


def words(kind: type | tuple[type, ...]) -> str:
    """A type in words."""
    return "a mapping" if kind is dict else "a list" if kind is list else "a number"


def load_archive(path: Path) -> dict[str, Any]:
    """The content of a file that torch.save wrote, under the keys of this project.

    Raises:
        ValueError: neither this project's nor YOLOv5's nor YOLOX's.
    """
    where = first([path])
    try:
        content = read(path)
        if holds_yolov5(content):
            checkpoint = {"version": VERSION} | import_yolov5(content)
            LOGGER.info(f"{where}: a YOLOv5 checkpoint, read without running it")
            return checkpoint
        if holds_yolox(content):
            checkpoint = {"version": VERSION} | import_yolox(content)
            LOGGER.info(f"{where}: a YOLOX checkpoint")
            return checkpoint
        if not isinstance(content, dict) or not content.keys() >= {*REQUIRED}:
            raise ValueError(f"expected the keys {', '.join(REQUIRED)}, a pickled YOLOv5 model or a YOLOX state dict")
    except (ValueError, RuntimeError, *PICKLE_ERRORS) as error:
        reason = clean(str(error).partition("\n")[0], 240)
        raise ValueError(f"{where}: not a usable checkpoint, nothing in it was run: {reason}") from error
    return {key: value for key, value in content.items() if key != "plan"}


def load_safetensors(path: Path) -> dict[str, Any]:
    """The content of a file that `save_safetensors` wrote.

    Raises:
        ValueError: not such a file.
    """
    where = first([path])
    try:
        check_header(path, "it")
        with safetensors.safe_open(path, "pt") as file:
            names = list(file.keys())
            if len(names) > limit("tensors"):
                raise over("it", ("model",), "tensors", f"has {len(names):,} tensors")
            metadata = file.metadata() or {}
            if "checkpoint" not in metadata:
                raise ValueError("no key 'checkpoint' in its metadata")
            content = load_json(metadata["checkpoint"], "its metadata")
            if not isinstance(content, dict):
                raise TypeError("the metadata is no mapping")
            content = {key: value for key, value in content.items() if key not in ("plan", "ema")}
            content["model"] = {name: file.get_tensor(name) for name in names}
    except (safetensors.SafetensorError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = clean(error, 240)
        raise ValueError(f"{where}: not a checkpoint of this project in safetensors ({reason})") from error
    return content


def check_header(path: Path, where: str) -> None:
    """Raise ValueError where the header of a safetensors file is longer than one of this project can be."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > limit("json"):
        raise over(where, ("header",), "json", f"has {size:,} characters")


def build_model(checkpoint: Checkpoint) -> DetectionModel:
    """The model of a checkpoint, in eval mode: the averaged weights where it has them.

    Raises:
        ValueError: its weights do not fit its rows.
    """
    plan = checkpoint.plan
    if plan is None or plan.yaml != checkpoint.yaml:
        plan = plan_model(checkpoint.yaml)
    check_fit(plan, checkpoint.weights)
    try:
        model = DetectionModel(plan)
        model.load_state_dict(checkpoint.weights)
    except BUILD_ERRORS as error:
        reason = clean(str(error).partition("\n")[0])
        raise ValueError(f"the checkpoint's model cannot be built ({reason})") from error
    model.names = dict(checkpoint.names)
    return model.eval()
