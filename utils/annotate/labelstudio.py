"""Label Studio: tasks with predictions and the labeling interface for them; its JSON and JSON-MIN exports read back.

Coordinates are percent of the image's width and height, from its left and top edge.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from utils.annotate.exported import (
    NO_CLASS,
    NOT_LABELED,
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
)
from utils.annotate.proposal import Proposal
from utils.data.objects import AnnotatedObject
from utils.images import IMAGE_SUFFIXES
from utils.text import clean

TAG, IMAGE = "label", "image"  # of RectangleLabels and Image in the labeling interface
LOCAL_FILES = "/data/local-files/?d="  # how Label Studio names files below its document root
OWN_KEYS = {"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement"}  # of JSON-MIN
ROTATED = "images that were rotated in Label Studio while they were labeled, left out"


def tasks_text(proposals: Sequence[Proposal], names: Mapping[int, str], root: Path) -> str:
    """JSON of tasks to import, each with one prediction; `root` is Label Studio's folder of local files."""
    return json.dumps([_task(item, names, root) for item in proposals], indent=1) + "\n"


def _task(item: Proposal, names: Mapping[int, str], root: Path) -> dict[str, Any]:
    h, w = item.size
    result = []
    for k, (name, score, (x1, y1, x2, y2)) in enumerate(item.rows(names), start=1):
        value = {"x": 100 * x1 / w, "y": 100 * y1 / h, "width": 100 * (x2 - x1) / w, "height": 100 * (y2 - y1) / h}
        region = {"id": f"box{k}", "type": "rectanglelabels", "from_name": TAG, "to_name": IMAGE}
        frame = {"original_width": w, "original_height": h, "image_rotation": 0}
        result.append(region | frame | {"score": score, "value": value | {"rotation": 0, "rectanglelabels": [name]}})
    mean = float(item.boxes.score.mean()) if result else 0.0
    prediction = {"model_version": "yolov5-mobilevit", "score": mean, "result": result}
    place = Path(os.path.relpath(os.path.abspath(item.path), root)).as_posix()
    return {"data": {IMAGE: LOCAL_FILES + quote(place)}, "predictions": [prediction]}


def interface_text(names: Mapping[int, str]) -> str:
    """The labeling interface, XML for the code view of a project's settings."""
    view = Element("View")
    SubElement(view, "Image", name=IMAGE, value=f"${IMAGE}", zoom="true")
    labels = SubElement(view, "RectangleLabels", name=TAG, toName=IMAGE)
    for name in names.values():
        SubElement(labels, "Label", value=name)
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def read_label_studio(path: Path, tasks: Sequence[Any], ledger: Ledger) -> Export:
    """The images of an export as JSON or JSON-MIN; the classes are those in use, in alphabetical order."""
    export, used = Export(), set[str]()
    for place, task in enumerate(tasks, start=1):
        where = f"{path.name}: task {clean(task['id'], 40) if isinstance(task, dict) and 'id' in task else place}"
        if not isinstance(task, dict):
            ledger.add(UNREADABLE, where)
            continue
        item = _read_task(task, where, ledger)
        if item is not None:
            export.images.append(item)
            used |= {box.name for box in item.objects}
    export.names = sorted(used)
    return export


def _read_task(task: dict[str, Any], where: str, ledger: Ledger) -> Exported | None:
    """The image of a task; None if it is not labeled, or cannot be used."""
    full = isinstance(task.get("data"), dict)
    reference = _reference(task["data"] if full else task)
    if not reference:
        ledger.add("tasks without an image, left out", where)
        return None
    item = Exported(f"{where} ({reference})", spellings(reference))
    results = _submitted(task, where, ledger) if full else _least(task, item.where, ledger)
    if results is None:
        ledger.add(NOT_LABELED, where)
        return None
    if any(_turn(result) for result in results):
        ledger.add(ROTATED, where)
        return None
    for region in _regions(results, ledger, item.where):
        try:
            _add_region(region, item, ledger)
        except ValueError as error:
            ledger.add(UNREADABLE, f"{item.where}: {error}")
    return item


def _reference(data: dict[str, Any]) -> str:
    """The path or URL of a task's image; '' if it has none."""
    texts = {key: value for key, value in data.items() if isinstance(value, str) and key not in OWN_KEYS}
    images = [text for text in texts.values() if _is_image(text) or _is_image(text.partition("?")[0])]
    return (images or [texts.get(IMAGE, "")])[0]


def _is_image(reference: str) -> bool:
    return Path(unquote(reference)).suffix.lower() in IMAGE_SUFFIXES


def spellings(reference: str) -> tuple[str, ...]:
    """The paths that a URL may stand for, the likeliest first."""
    if "local-files/?d=" in reference:
        local = reference.partition("local-files/?d=")[2]
        return unquote(local), local
    if "://" in reference or reference.startswith("/data/upload/"):
        path = reference.partition("://")[2] or reference
        return unquote(path.partition("?")[0]), path
    return reference, unquote(reference)


def _submitted(task: dict[str, Any], where: str, ledger: Ledger) -> list[dict[str, Any]] | None:
    """The results of the newest annotation that was submitted, not skipped; None if there is none."""
    given = task.get("annotations", task.get("completions"))
    rows = [row for row in given if isinstance(row, dict)] if isinstance(given, list) else []
    done = [row for row in rows if not row.get("was_cancelled") and not row.get("skipped")]
    if not done:
        return None
    if len(done) > 1:
        ledger.add("images with several annotations, the newest is used", where)
    newest = max(done, key=lambda row: str(row.get("updated_at") or row.get("created_at") or ""))
    results = newest.get("result")
    return [result for result in results if isinstance(result, dict)] if isinstance(results, list) else []


def _least(task: dict[str, Any], where: str, ledger: Ledger) -> list[dict[str, Any]] | None:
    """The results in an item of JSON-MIN, in the form that they have in JSON; None if nobody has labeled it."""
    if "annotation_id" in task and task["annotation_id"] is None:
        return None
    results = list[dict[str, Any]]()
    for key, value in task.items():
        if key in OWN_KEYS or not isinstance(value, list):
            continue
        if any(not isinstance(region, dict) for region in value):
            ledger.add(f"results '{clean(key, 40)}', which are no boxes, left out", where)
        results += [region | {"value": region} for region in value if isinstance(region, dict)]
    return results


def _turn(result: dict[str, Any]) -> bool:
    """Whether the image was shown rotated when the result was drawn."""
    turn = result.get("image_rotation", 0)
    return isinstance(turn, int | float) and turn % 360 != 0


def _regions(results: Sequence[dict[str, Any]], ledger: Ledger, where: str) -> Iterator[dict[str, Any]]:
    """The shapes: results of one id belong together, such as a Rectangle and its Labels; others are counted."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for k, result in enumerate(results):
        groups[str(result.get("id", f"number {k}"))].append(result)
    for group in groups.values():
        values = [result["value"] for result in group if isinstance(result.get("value"), dict)]
        shaped = [value for value in values if {"x", "points", "rle", "sequence"} & value.keys()]
        if not shaped:
            kinds = {clean(result.get("type") or result.get("from_name") or "no type", 40) for result in group}
            ledger.add(f"results '{', '.join(sorted(kinds))}', which are no boxes, left out", where)
            continue
        names = [value[key] for value in values for key in value if key.endswith("labels")]
        words = [word for value in names if isinstance(value, list) for word in value if isinstance(word, str)]
        sizes = [(result.get("original_width"), result.get("original_height")) for result in group]
        yield {"value": shaped[0], "classes": list(dict.fromkeys(words)), "size": sizes[0]}


def _add_region(region: dict[str, Any], item: Exported, ledger: Ledger) -> None:
    """Add the box of a region to its image, once for each of its classes. Raises ValueError."""
    value = region["value"]
    xyxy = _corners(value, region["size"], item.where, ledger)
    if xyxy is None:
        kinds = [key for key in value if key.endswith("labels")] or ["without labels"]
        ledger.add(f"Label Studio's shapes '{clean(kinds[0], 40)}', which have no box, left out", item.where)
        return
    names = [name.strip() for name in region["classes"] if name.strip()]
    if not names:
        ledger.add(NO_CLASS, item.where)
    item.objects += [AnnotatedObject(item.where, name, xyxy, crowd=False) for name in names]


def _corners(value: dict[str, Any], size: tuple[Any, Any], where: str, ledger: Ledger) -> Corners | None:
    """The corners, in 0..1, of the box around a shape; None for shapes without one. Raises ValueError."""

    def values(*keys: str) -> list[float]:
        return [number(value[key], key) / 100 for key in keys]

    if "points" in value:
        ledger.add(POLYGONS, where)
        if not isinstance(value["points"], list) or not value["points"]:
            raise ValueError("points, expected a list of x, y")
        pairs = [pair if isinstance(pair, list) and len(pair) == 2 else ["", ""] for pair in value["points"]]
        return around([(number(x, "x") / 100, number(y, "y") / 100) for x, y in pairs])
    degrees = number(value.get("rotation") or 0, "rotation")
    turned = degrees % 360 != 0
    w, h = (number(side, "original_width or original_height") for side in size) if turned else (1.0, 1.0)
    if min(w, h) <= 0:
        raise ValueError(f"original_width {w:g}, original_height {h:g}")
    if {"x", "y", "radiusX", "radiusY"} <= value.keys():
        ledger.add(POLYGONS, where)
        x, y, rx, ry = values("x", "y", "radiusX", "radiusY")
        xyxy = around_ellipse((x * w, y * h), (rx * w, ry * h), degrees)
    elif {"x", "y", "width", "height"} <= value.keys():
        x, y, width, height = values("x", "y", "width", "height")
        xyxy = x * w, y * h, (x + width) * w, (y + height) * h
        if turned:
            ledger.add(TURNED, where)
            xyxy = around_turned(xyxy, degrees, xyxy[:2])  # about the upper left corner
    else:
        return None
    return xyxy[0] / w, xyxy[1] / h, xyxy[2] / w, xyxy[3] / h
