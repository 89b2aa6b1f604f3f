"""Annotations in COCO JSON files and in folders of Pascal VOC XML files; writing VOC."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

MAX_OUTSIDE = 0.01  # fraction of the image by which a box may reach beyond its edge without a warning


@dataclass
class ImageLabels:
    """The labels of one image from a label file or an annotation file.

    Attributes:
        label: (n,) int64, class index. xywhn: (n, 4) float32, center and size in 0..1 of the image.
        crowd: (n,) bool, boxes that detections may overlap without being right or wrong.
        area: (n,) float32 square pixels; NaN: that of the box.
        warnings, errors: each starts with file and line; an error makes the data set unusable.
        skip_reason: why this image is left out; None if it is used.
    """

    label: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    xywhn: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    crowd: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    area: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    skip_reason: str | None = None


class LabelReader(Protocol):
    """Finds and reads the labels of images; a cache of them is valid as long as `key` is the same."""

    key: str

    def file(self, image: Path) -> Path:
        """The file that holds the labels of `image`."""
        ...

    def read(self, image: Path, size: tuple[int, int]) -> ImageLabels:
        """The labels of an image of `size` (height, width)."""
        ...


@dataclass(frozen=True)
class _Object:
    """One annotated object: corner pixels, and its place in the files for messages."""

    where: str
    name: str
    xyxy: tuple[float, ...]
    crowd: bool
    area: float = math.nan


def _labels(objects: Sequence[_Object], size: tuple[float, float], classes: dict[str, int]) -> ImageLabels:
    """Boxes clipped to an image of `size` (height, width) pixels; those without area are dropped with a warning."""
    out = ImageLabels()
    h, w = size
    rows, kept = list[list[float]](), list[_Object]()
    for item in objects:
        if item.name not in classes:
            out.errors.append(f"{item.where}: class '{item.name}', expected one of the names: {', '.join(classes)}")
            continue
        if not all(math.isfinite(v) for v in item.xyxy):
            out.errors.append(f"{item.where}: box {item.xyxy}, expected finite numbers")
            continue
        edges = [v / side for v, side in zip(item.xyxy, (w, h, w, h), strict=True)]
        outside = max(-min(edges), max(edges) - 1)
        x1, y1, x2, y2 = (min(max(edge, 0.0), 1.0) for edge in edges)
        if x2 <= x1 or y2 <= y1:
            out.warnings.append(f"{item.where}: box without area, dropped")
            continue
        if outside > MAX_OUTSIDE:
            out.warnings.append(f"{item.where}: box reaches {outside:.1%} of the image beyond its edge, clipped")
        rows.append([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
        kept.append(item)
    out.label = np.array([classes[item.name] for item in kept], dtype=np.int64)
    out.xywhn = np.array(rows, dtype=np.float32).reshape(-1, 4)
    out.crowd = np.array([item.crowd for item in kept], dtype=bool)
    out.area = np.array([item.area for item in kept], dtype=np.float32)
    return out


class CocoLabels:
    """Labels of a COCO annotation file, with its `iscrowd` and `area`.

    The entry of an image is the one with the longest `file_name`, folders included, that the image's path ends with.

    Raises:
        ValueError: not such a file; a category in use is not among `names` (raised when images are read).
    """

    def __init__(self, path: Path, names: dict[int, str]):
        self.path, self.classes = path, {name: c for c, name in names.items()}
        self.key = f"coco {list(names.items())}"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            self.categories = {int(c["id"]): str(c["name"]) for c in content["categories"]}
            self.images = {int(i["id"]): i for i in content["images"]}
            self.by_name: dict[str, list[dict[str, Any]]] = defaultdict(list)
            for image in self.images.values():
                self.by_name[Path(image["file_name"]).name].append(image)
            self.objects: dict[int, list[_Object]] = defaultdict(list)
            for row in content["annotations"]:
                self.objects[int(row["image_id"])].append(self._object(row))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not JSON: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            reason = f"no key {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path}: not a COCO annotation file: {reason}") from error

    def _object(self, row: dict[str, Any]) -> _Object:
        where = f"{self.path}: annotation {row.get('id')}"
        x, y, w, h = (float(v) for v in row["bbox"])
        name = self.categories.get(int(row["category_id"]), f"category {row['category_id']}")
        crowd, area = bool(row.get("iscrowd", 0)), float(row.get("area", math.nan))
        return _Object(where, name, (x, y, x + w, y + h), crowd, area)

    def entry(self, image: Path) -> dict[str, Any] | None:
        """The entry of an image in the file; None if it has none."""
        path = "/" + image.as_posix()
        same_name = self.by_name.get(image.name, [])
        found = [entry for entry in same_name if path.endswith("/" + Path(entry["file_name"]).as_posix())]
        return max(found, key=lambda entry: len(entry["file_name"]), default=None)

    def category_ids(self) -> dict[int, int]:
        """Class index -> category id in the file."""
        return {self.classes[name]: i for i, name in self.categories.items() if name in self.classes}

    def file(self, image: Path) -> Path:
        return self.path

    def read(self, image: Path, size: tuple[int, int]) -> ImageLabels:
        entry = self.entry(image)
        if entry is None:
            return ImageLabels(skip_reason=f"{image}: left out, {self.path} has no entry for it")
        annotated_size = (float(entry.get("height") or size[0]), float(entry.get("width") or size[1]))
        return _labels(self.objects[int(entry["id"])], annotated_size, self.classes)


class VocLabels:
    """Labels of a folder of Pascal VOC XML files, `<stem>.xml` for each image; difficult objects count as crowd.

    Coordinates are pixels from the left and top edge, counted from 0. An image without a file is background.
    """

    def __init__(self, folder: Path, names: dict[int, str]):
        self.folder, self.classes = folder, {name: c for c, name in names.items()}
        self.key = f"voc {list(names.items())}"

    def file(self, image: Path) -> Path:
        return self.folder / f"{image.stem}.xml"

    def read(self, image: Path, size: tuple[int, int]) -> ImageLabels:
        path = self.file(image)
        try:
            root = ElementTree.parse(path).getroot()
            objects = [self._object(item, f"{path}: object {k}") for k, item in enumerate(root.iter("object"), 1)]
            height, width = (float(root.findtext(f"size/{side}") or 0) for side in ("height", "width"))
        except FileNotFoundError:
            return ImageLabels()
        except (ElementTree.ParseError, UnicodeDecodeError, OSError) as error:
            return ImageLabels(errors=[f"{path}: not XML: {error}"])
        except ValueError as error:
            return ImageLabels(errors=[f"{path}: {error}, expected numbers in size and bndbox"])
        return _labels(objects, (height, width) if min(height, width) > 0 else size, self.classes)

    @staticmethod
    def _object(item: ElementTree.Element, where: str) -> _Object:
        corners = tuple(float(item.findtext(f"bndbox/{key}") or "nan") for key in ("xmin", "ymin", "xmax", "ymax"))
        name = (item.findtext("name") or "").strip()
        return _Object(where, name, corners, (item.findtext("difficult") or "0").strip() == "1")


def annotation_reader(path: Path, names: dict[int, str]) -> CocoLabels | VocLabels:
    """The reader of a COCO .json file or of a folder of VOC .xml files.

    Raises:
        ValueError: neither of the two.
    """
    if path.is_dir():
        if not any(path.glob("*.xml")):
            raise ValueError(f"{path}: no .xml files, expected Pascal VOC annotations")
        return VocLabels(path, names)
    if path.suffix.lower() != ".json":
        raise ValueError(f"{path}: expected a COCO .json file or a folder of Pascal VOC .xml files")
    return CocoLabels(path, names)


def voc_xml(file_name: str, size: tuple[int, int], names: Sequence[str], xyxy: np.ndarray) -> str:
    """The text of a Pascal VOC file for an image of `size` (height, width) with boxes `xyxy` (n, 4) in its pixels."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = file_name
    sides = ElementTree.SubElement(root, "size")
    for key, value in (("width", size[1]), ("height", size[0]), ("depth", 3)):
        ElementTree.SubElement(sides, key).text = str(value)
    for name, box in zip(names, xyxy.tolist(), strict=True):
        item = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(item, "name").text = name
        ElementTree.SubElement(item, "difficult").text = "0"
        corners = ElementTree.SubElement(item, "bndbox")
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            ElementTree.SubElement(corners, key).text = f"{value:.2f}"
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"
