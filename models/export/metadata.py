"""Metadata of exported files: names, sizes and the form of the output, so that a file needs no YAML beside it."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from models.cost import ARGUMENTS, MAX_GRID, check_arguments, check_number
from models.heads import HEADS
from models.rows import shown
from models.yolo import DetectionModel
from utils.classes import class_names
from utils.files import VERSION
from utils.images import POSITIONS
from utils.nms import NmsSettings
from utils.plain_data import limit, load_json, over, plain_data
from utils.text import clean, first
from utils.thresholds import Thresholds

LICENSE = "Apache-2.0 (the code; weights have the license of their training)"
FORMS = ("decoded", "raw", "nms")
DYNAMIC = ("none", "batch", "size")
MEMBER = "metadata.json"
MAX_SIDE = 8_192  # pixels of an image
MAX_BATCH = 4_096  # images
MAX_DETECTIONS = 100_000  # of one image


@dataclass(frozen=True)
class Metadata:
    """Facts a runtime needs to use a file.

    Attributes:
        names: class index -> name.
        stride: pixels per cell of the coarsest level. grid: both sides of an input must be multiples of it.
        imgsz: (height, width) of the input. batch: images in it. dynamic: which of them may change.
        form: of the output: "decoded" (B, N, 5+nc), see Head.forward; "raw" (B, C, h, w) for each level;
            "nms" boxes (B, D, 4) xyxy pixels, scores (B, D), classes (B, D), count (B,), see ExportHead.
        anchors: (levels, A, 2) pixels, empty without anchors. strides: of each level. head: name of the head's class.
        head_settings: see Head.settings. These decode the raw form.
        letterbox: where an image lies on its canvas, one of utils.images.POSITIONS.
        conf_thres, iou_thres, max_det: settings of the NMS in the file; 0 where there is none.
        precision: float32, float16, or int8 and what is computed in it.
        thresholds: the confidence thresholds of the checkpoint, for programs that use the file; None: it has none.
    """

    names: dict[int, str]
    stride: int
    grid: int
    imgsz: tuple[int, int]
    batch: int
    anchors: list[list[list[float]]]
    strides: list[int]
    dynamic: str = "none"
    form: str = "decoded"
    conf_thres: float = 0.0
    iou_thres: float = 0.0
    max_det: int = 0
    precision: str = "float32"
    task: str = "detect"
    version: str = VERSION
    license: str = LICENSE
    head: str = "Detect"
    head_settings: dict[str, Any] = field(default_factory=dict)
    letterbox: str = "center"
    thresholds: Thresholds | None = None

    @classmethod
    def of(cls, model: DetectionModel, imgsz: tuple[int, int], batch: int, **more: Any) -> Metadata:
        """The metadata of `model` at an input size; `more` are other attributes."""
        strides = [int(s) for s in model.stride]
        head = model.head
        anchors = [] if head.anchors is None else head.anchors.tolist()
        more |= {"head": type(head).__name__, "head_settings": head.settings(), "letterbox": model.letterbox}
        return cls(dict(model.names), max(strides), model.grid, imgsz, batch, anchors, strides, **more)

    @property
    def nms(self) -> NmsSettings | None:
        """Settings of the NMS in the file; None: it has none."""
        return NmsSettings(self.conf_thres, self.iou_thres, self.max_det) if self.form == "nms" else None

    def checked(self) -> Metadata:
        """The same metadata, its values checked.

        Raises:
            ValueError: a number out of range or an unknown word.
        """
        for name, most in (("stride", MAX_GRID), ("grid", MAX_GRID), ("batch", MAX_BATCH)):
            if not positive(getattr(self, name), most):
                raise ValueError(f"{name} {shown(getattr(self, name))}, expected a number above 0, at most {most:,}")
        if len(self.imgsz) != 2 or not all(positive(side, MAX_SIDE) for side in self.imgsz):
            raise ValueError(f"imgsz {shown(self.imgsz)}, expected height and width, at most {MAX_SIDE:,}")
        if not isinstance(self.strides, list) or not all(positive(stride, MAX_GRID) for stride in self.strides):
            raise ValueError(f"strides {shown(self.strides)}, expected numbers above 0, at most {MAX_GRID:,}")
        if self.anchors and len(self.anchors) != len(self.strides):
            raise ValueError(f"{len(self.anchors)} levels of anchors, {len(self.strides)} strides")
        check_number("anchors", self.anchors, ARGUMENTS["anchors"], 3)
        check_number("classes", len(self.names), ARGUMENTS["nc"])
        for name, known in (("form", FORMS), ("dynamic", DYNAMIC), ("head", HEADS), ("letterbox", POSITIONS)):
            if not isinstance(getattr(self, name), str) or getattr(self, name) not in known:
                raise ValueError(f"{name} {shown(getattr(self, name))}, expected one of {', '.join(known)}")
        if not isinstance(self.head_settings, dict):
            raise ValueError(f"head_settings {shown(self.head_settings)}, expected a mapping")
        check_arguments(self.head, self.head_settings)
        if self.form == "nms" and not positive(self.max_det, MAX_DETECTIONS):
            raise ValueError("NMS without max_det: an older export.py wrote it")
        if self.form == "nms":
            NmsSettings(self.conf_thres, self.iou_thres, self.max_det)  # raises an error out of 0..1
        return self

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    def to_strings(self) -> dict[str, str]:
        """One string per key: strings as they are, all else as JSON; for formats that store pairs of strings."""
        return {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, text: str | bytes, where: str | Path) -> Metadata:
        """The inverse of `to_json`.

        Raises:
            ValueError: not metadata that this project wrote; names `where`.
        """
        try:
            values = plain_data(load_json(text, "its metadata"), "its metadata")
            values["names"] = class_names(values["names"], "it", strict=False)
            values["imgsz"] = tuple(values["imgsz"])
            if values.get("thresholds") is not None:
                values["thresholds"] = Thresholds.from_dict(values["thresholds"], "it")
            return cls(**values).checked()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = clean(error, 240)
            raise ValueError(
                f"{first([where])}: no metadata of this project in it ({reason}), expected a file written by export.py"
            ) from None

    @classmethod
    def from_strings(cls, pairs: Mapping[str, str], where: str | Path) -> Metadata:
        """The inverse of `to_strings`; other keys are ignored.

        Raises:
            ValueError: see from_json.
        """
        texts = {name for name, field in cls.__dataclass_fields__.items() if field.type == "str"}
        try:
            values = {
                k: pairs[k] if k in texts else load_json(pairs[k], "its metadata")
                for k in cls.__dataclass_fields__
                if k in pairs
            }
            values = plain_data(values, "its metadata")
        except ValueError as error:
            reason = clean(error, 240)
            raise ValueError(
                f"{first([where])}: metadata that is not JSON ({reason}), expected a file written by export.py"
            ) from None
        return cls.from_json(json.dumps(values), where)


def positive(value: Any, most: int) -> bool:
    """Whether a value is a whole number from 1 to `most`."""
    return type(value) is int and 0 < value <= most


def append_metadata(path: Path, meta: Metadata) -> None:
    """Add a zip archive with the metadata at the end of a flatbuffer, which its readers ignore."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(MEMBER, meta.to_json())


def appended_metadata(path: Path) -> Metadata:
    """The metadata that `append_metadata` wrote.

    Raises:
        ValueError: there is none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = archive.getinfo(MEMBER).file_size
            if size > limit("json"):
                raise over(first([path]), (MEMBER,), "json", f"has {size:,} characters")
            text = archive.read(MEMBER)
    except (zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError, RuntimeError, EOFError):
        raise ValueError(f"{first([path])}: no metadata in it, expected a file written by export.py") from None
    return Metadata.from_json(text, path)
