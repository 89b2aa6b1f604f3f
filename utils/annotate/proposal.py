"""The boxes that a model proposes in an image, and their text in the forms YOLO, Pascal VOC and COCO."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from utils.boxes import Boxes, xyxy2ltwh, xyxy2xywhn
from utils.data.labels import label_line


@dataclass(frozen=True)
class Proposal:
    """The boxes proposed in one image.

    Attributes:
        path: the image's file. name: its path in the folder of all images, with forward slashes.
        size: (height, width), upright. boxes: in pixels.
    """

    path: Path
    name: str
    size: tuple[int, int]
    boxes: Boxes

    def rows(self, names: Mapping[int, str]) -> Iterator[tuple[str, float, list[float]]]:
        """Class name, confidence and corner pixels of each box."""
        boxes = self.boxes
        for label, score, xyxy in zip(boxes.label.tolist(), boxes.score.tolist(), boxes.xyxy.tolist(), strict=True):
            yield names.get(label, str(label)), score, xyxy

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return self.name[: len(self.name) - len(Path(self.name).suffix)]


def yolo_text(item: Proposal) -> str:
    """Lines 'class cx cy w h' in 0..1; confidences have no place in this form."""
    rows = zip(item.boxes.label.tolist(), xyxy2xywhn(item.boxes.xyxy, item.size).tolist(), strict=True)
    return "".join(label_line(label, box) for label, box in rows)


def voc_text(item: Proposal, names: Mapping[int, str]) -> str:
    """A Pascal VOC file: corners in pixels with two decimals; unlike voc_xml it keeps every name as it is."""
    root = Element("annotation")
    folder, _, file = item.name.rpartition("/")
    SubElement(root, "folder").text = folder
    SubElement(root, "filename").text = file
    size = SubElement(root, "size")
    for key, value in (("width", item.size[1]), ("height", item.size[0]), ("depth", 3)):
        SubElement(size, key).text = str(value)
    SubElement(root, "segmented").text = "0"
    for name, _, xyxy in item.rows(names):
        entry = SubElement(root, "object")
        for key, text in (("name", name), ("pose", "Unspecified"), ("truncated", "0"), ("difficult", "0")):
            SubElement(entry, key).text = text
        box = SubElement(entry, "bndbox")
        for key, edge in zip(("xmin", "ymin", "xmax", "ymax"), xyxy, strict=True):
            SubElement(box, key).text = f"{edge:.2f}"
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def coco_text(proposals: Sequence[Proposal], names: Mapping[int, str]) -> str:
    """A COCO annotation file: boxes in pixels with three decimals, and `score`; ids count from 1."""
    annotations, images = list[dict[str, Any]](), list[dict[str, Any]]()
    for image, item in enumerate(proposals, start=1):
        images.append({"id": image, "file_name": item.name, "width": item.size[1], "height": item.size[0]})
        boxes = xyxy2ltwh(item.boxes.xyxy).tolist()
        for ltwh, label, score in zip(boxes, item.boxes.label.tolist(), item.boxes.score.tolist(), strict=True):
            x, y, w, h = (round(value, 3) for value in ltwh)
            row = {"id": len(annotations) + 1, "image_id": image, "category_id": label + 1, "bbox": [x, y, w, h]}
            more = {"area": round(w * h, 3), "iscrowd": 0, "segmentation": [], "score": round(score, 4)}
            annotations.append(row | more)
    categories = [{"id": label + 1, "name": name, "supercategory": ""} for label, name in names.items()]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories}) + "\n"
