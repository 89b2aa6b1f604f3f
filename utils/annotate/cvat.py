"""CVAT's format "CVAT for images 1.1": XML with pre-annotations, and reading it back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from utils.annotate.exported import (
    NO_CLASS,
    POLYGONS,
    TURNED,
    UNREADABLE,
    Corners,
    Export,
    Exported,
    Ledger,
    around,
    around_ellipse,
    around_turned,
    number,
    safe_xml,
)
from utils.annotate.proposal import Proposal
from utils.data.objects import AnnotatedObject

SCORE = "score"  # the attribute with the confidence, for whoever corrects the boxes
SIDES = ("xtl", "ytl", "xbr", "ybr")


def cvat_xml(proposals: Sequence[Proposal], names: Mapping[int, str]) -> str:
    """The text of annotations.xml: corners in pixels with two decimals, the confidence as an attribute."""
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    labels = SubElement(SubElement(SubElement(root, "meta"), "task"), "labels")
    for name in names.values():
        label = SubElement(labels, "label")
        SubElement(label, "name").text = name
        attribute = SubElement(SubElement(label, "attributes"), "attribute")
        for key, text in (("name", SCORE), ("mutable", "False"), ("input_type", "text"), ("default_value", "")):
            SubElement(attribute, key).text = text
    for number_, item in enumerate(proposals):
        h, w = item.size
        image = SubElement(root, "image", id=str(number_), name=item.name, width=str(w), height=str(h))
        for name, score, xyxy in item.rows(names):
            corners = {side: f"{value:.2f}" for side, value in zip(SIDES, xyxy, strict=True)}
            about = {"label": name, "source": "auto", "occluded": "0"}
            box = SubElement(image, "box", about | corners | {"z_order": "0"})
            SubElement(box, "attribute", name=SCORE).text = f"{score:.4f}"
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def cvat_labels(names: Mapping[int, str]) -> str:
    """JSON for the field Raw of CVAT's label editor: the classes, each with a text attribute for the confidence."""
    score = {"name": SCORE, "input_type": "text", "mutable": False, "default_value": "", "values": [""]}
    return json.dumps([{"name": name, "attributes": [score]} for name in names.values()], indent=1) + "\n"


def read_cvat(path: Path, ledger: Ledger) -> Export:
    """The images of an XML file "CVAT for images 1.1".

    Raises:
        ValueError: not XML; of another kind, such as that for videos. Names the file.
    """
    root = safe_xml(path)
    if root.find("track") is not None:
        raise ValueError(f"{path}: is 'CVAT for video 1.1', expected an export as 'CVAT for images 1.1'")
    export = Export()
    for label in root.iterfind("meta//label"):
        name = (label.findtext("name") or "").strip()
        if name and name not in export.names:
            export.names.append(name)
    for image in root.iter("image"):
        where = f"{path.name}: {image.get('name') or 'image without a name'}"
        try:
            size = tuple(number(image.get(side), side) for side in ("height", "width"))
            if not image.get("name") or min(size) <= 0:
                raise ValueError("expected a name and a size")
        except ValueError as error:
            ledger.add(UNREADABLE, f"{where}: {error}")
            continue
        item = Exported(where, (str(image.get("name")),), [], (size[0], size[1]), pixels=True)
        for element in image:
            _add_shape(element, item, ledger)
        export.images.append(item)
    return export


def _add_shape(element: Element, item: Exported, ledger: Ledger) -> None:
    """Add the box of a shape, or of what it encloses, to its image."""
    name = (element.get("label") or "").strip()
    try:
        xyxy = _corners(element, item, ledger)
    except ValueError as error:
        ledger.add(UNREADABLE, f"{item.where}: {element.tag}: {error}")
        return
    if xyxy is None:
        ledger.add(f"CVAT's shapes of the kind '{element.tag}', which have no box, left out", item.where)
        return
    if not name:
        ledger.add(NO_CLASS, item.where)
        return
    item.objects.append(AnnotatedObject(item.where, name, xyxy, crowd=False))
    for attribute in element.iterfind("attribute"):
        if attribute.get("name") != SCORE:
            ledger.add(f"attributes '{attribute.get('name')}', which YOLO labels cannot hold, left out", item.where)


def _corners(element: Element, item: Exported, ledger: Ledger) -> Corners | None:
    """The corners of the box around a shape, in pixels; None for shapes without one. Raises ValueError."""

    def values(*keys: str) -> list[float]:
        return [number(element.get(key), key) for key in keys]

    degrees = number(element.get("rotation", "0"), "rotation")
    if element.tag == "box":
        x1, y1, x2, y2 = values(*SIDES)
        if degrees % 360 == 0:
            return x1, y1, x2, y2
        ledger.add(TURNED, item.where)
        return around_turned((x1, y1, x2, y2), degrees, ((x1 + x2) / 2, (y1 + y2) / 2))
    if element.tag == "polygon":
        pairs = [pair.split(",") for pair in (element.get("points") or "").split(";")]
        if min(map(len, pairs)) != 2 or max(map(len, pairs)) != 2:
            raise ValueError("points, expected x,y;x,y;...")
        xyxy = around([(number(x, "x"), number(y, "y")) for x, y in pairs])
    elif element.tag == "ellipse":
        cx, cy, rx, ry = values("cx", "cy", "rx", "ry")
        xyxy = around_ellipse((cx, cy), (rx, ry), degrees)
    elif element.tag == "mask":
        left, top, width, height = values("left", "top", "width", "height")
        xyxy = left, top, left + width, top + height
    else:
        return None
    ledger.add(POLYGONS, item.where)
    return xyxy
