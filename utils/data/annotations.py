"""Labels that are not in label files: a COCO JSON file, or a folder of Pascal VOC XML files."""

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

OUTSIDE = 0.01  # part of the image by which a box may leave it without a warning


@dataclass
class ImageLabels:
    """The labels of one image.

    boxes (n, 5) float32 class, cx, cy, w, h in 0..1; crowd (n,) bool, labels that detections may overlap freely;
    areas (n,) float32 square pixels, NaN where the box decides. Messages start with their place; an error makes
    the data set unusable, `absent` says why the image alone is.
    """

    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 5), np.float32))
    crowd: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    areas: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    absent: str = ""


class LabelReader(Protocol):
    """Where the labels of images are; `key` names all that changes their meaning."""

    key: str

    def file(self, image: Path) -> Path:
        """The file that holds the labels of `image`."""
        ...

    def read(self, image: Path, size: tuple[int, int]) -> ImageLabels:
        """The labels of an image of `size` (height, width)."""
        ...


@dataclass(frozen=True)
class _Object:
    """One annotated object: corner pixels, and where the file says so."""

    where: str
    name: str
    xyxy: tuple[float, ...]
    crowd: bool
    area: float = math.nan


def _labels(objects: Sequence[_Object], size: tuple[float, float], classes: dict[str, int]) -> ImageLabels:
    """Boxes clipped to an image of `size` (height, width) pixels; those without area are dropped with a warning."""
    out = ImageLabels()
    h, w = size
    rows, kept = [], []
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
        if outside > OUTSIDE:
            out.warnings.append(f"{item.where}: box reaches {outside:.1%} of the image beyond its edge, clipped")
        rows.append([classes[item.name], (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
        kept.append(item)
    out.boxes = np.array(rows, dtype=np.float32).reshape(-1, 5)
    out.crowd = np.array([item.crowd for item in kept], dtype=bool)
    out.areas = np.array([item.area for item in kept], dtype=np.float32)
    return out


class CocoLabels:
    """Labels of a COCO annotation file; `iscrowd` objects are crowd, `area` is that of the file.

    An image is found by its `file_name`, which may hold folders: the longest one that the path ends with.

    Raises:
        ValueError: not such a file; one of its categories in use is not among `names` (when images are read).
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
        """The file's entry of an image."""
        path = "/" + image.as_posix()
        fitting = [i for i in self.by_name.get(image.name, []) if path.endswith("/" + Path(i["file_name"]).as_posix())]
        return max(fitting, key=lambda i: len(i["file_name"])) if fitting else None

    def category_ids(self) -> dict[int, int]:
        """Class index -> the id it has in the file."""
        return {self.classes[name]: i for i, name in self.categories.items() if name in self.classes}

    def file(self, image: Path) -> Path:
        return self.path

    def read(self, image: Path, size: tuple[int, int]) -> ImageLabels:
        entry = self.entry(image)
        if entry is None:
            return ImageLabels(absent=f"{image}: left out, {self.path} does not name it")
        annotated = (float(entry.get("height") or size[0]), float(entry.get("width") or size[1]))
        return _labels(self.objects[int(entry["id"])], annotated, self.classes)


class VocLabels:
    """Labels of a folder of Pascal VOC XML files, `<stem>.xml` for each image; objects marked difficult are crowd.

    Coordinates are taken as they are, pixels from the left and upper edge. An image without a file is background.
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
            annotated = tuple(float(root.findtext(f"size/{side}") or 0) for side in ("height", "width"))
        except FileNotFoundError:
            return ImageLabels()
        except (ElementTree.ParseError, UnicodeDecodeError, OSError) as error:
            return ImageLabels(errors=[f"{path}: not XML: {error}"])
        except ValueError as error:
            return ImageLabels(errors=[f"{path}: {error}, expected numbers in size and bndbox"])
        return _labels(objects, annotated if min(annotated) > 0 else size, self.classes)  # type: ignore[arg-type]

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
    """The text of a Pascal VOC file: an object a row of `xyxy` (n, 4), pixels of an image of `size` (height, width)."""
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
