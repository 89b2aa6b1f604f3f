"""Damaged label files against an independent reading: no box is lost or moved without a line, and nothing is raised.

More of them: `python tests/test_label_fuzz.py 10000`.
"""

from __future__ import annotations

import json
import math
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from xml.dom import minidom
from xml.parsers.expat import ExpatError

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the run as a program

from utils.data.coco import CocoLabels
from utils.data.labels import read_labels
from utils.data.objects import ImageLabels
from utils.data.voc import VocLabels

NAMES = ["cat", "dog", "Größe"]
SIZE = (480, 640)  # height, width
VALUES = [
    "0",
    "1",
    "-1",
    "0.5",
    "1.02",
    "1.5",
    "7",
    "320",
    "1e9",
    "1e-9",
    "nan",
    "inf",
    "-inf",
    "x",
    "",
    "0x1",
    "1,5",
    "٣",
    "0_1",
    "\uff11",
    "1e400",
    "infinity",
]
BYTES = [
    "\x0b",
    "\x0c",
    "\x1d",
    "_",
    "\x00",
    "\ufeff",
    '"',
    "<",
    ">",
    "&",
    "{",
    "]",
    ",",
    "\n",
    "\r",
    "\t",
    " ",
    "-",
    "e",
    "\x85",
    "\u2028",
    "é",
    "#",
]
SMALL = 0.011  # fraction of the image beyond the edge that needs no line


class Box(NamedTuple):
    """A box that the independent reading found, and the words by which a message names its place."""

    place: str
    label: int
    edges: tuple[float, ...]  # x1, y1, x2, y2 in 0..1, not clipped


def mutate(text: str, rng: random.Random) -> bytes:
    """`text` with one to three of: a number, a word, a line or a character changed; cut; in another encoding."""
    for _ in range(rng.randint(1, 3)):
        kind, at = rng.randrange(9), rng.randrange(len(text) + 1)
        lines = text.split("\n")
        row = rng.randrange(len(lines))
        if kind <= 2:  # a number
            spans = [k for k in range(len(text)) if text[k].isdigit() and (k == 0 or not (text[k - 1].isdigit()))]
            if spans:
                start = end = rng.choice(spans)
                while end < len(text) and (text[end].isdigit() or text[end] == "."):
                    end += 1
                text = text[:start] + rng.choice(VALUES) + text[end:]
        elif kind == 3:
            text = text[:at] + rng.choice(BYTES) + text[at:]
        elif kind == 4:
            text = text[:at] + text[at + rng.randint(1, 9) :]
        elif kind == 5:
            text = "\n".join([*lines[:row], lines[row], *lines[row:]])  # a line twice
        elif kind == 6:
            text = "\n".join(lines[:row] + lines[row + 1 :])
        elif kind == 7:
            text = text[:at] if rng.random() < 0.3 else text
        elif text:
            other = rng.randrange(len(text))
            text = text[:at] + text[other : other + rng.randint(1, 12)] + text[at:]
    encoding = rng.choices(["utf-8", "utf-8-sig", "utf-16", "latin-1"], [20, 1, 1, 1])[0]
    return text.encode(encoding, errors="replace")


def number(text: object) -> float:
    """The number as programs print it; NaN for everything else that Python reads, such as 0_1 and ٣."""
    printed = re.fullmatch(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", str(text).strip())
    return float(printed[0]) if printed else math.nan


def edges_of(left: float, top: float, right: float, bottom: float) -> tuple[float, ...]:
    return left / SIZE[1], top / SIZE[0], right / SIZE[1], bottom / SIZE[0]


# ---- the three forms: a file, this project's reading, an independent one ---------------------------------------------


def yolo_text(rng: random.Random) -> str:
    rows = []
    for _ in range(rng.randint(1, 5)):
        if rng.random() < 0.2:
            points = [f"{rng.random():.4f}" for _ in range(2 * rng.randint(3, 9))]
            rows.append(f"{rng.randrange(3)} {' '.join(points)}")
        else:
            w, h = rng.uniform(0.05, 0.4), rng.uniform(0.05, 0.4)
            values = rng.uniform(w / 2, 1 - w / 2), rng.uniform(h / 2, 1 - h / 2), w, h
            rows.append(f"{rng.randrange(3)} {' '.join(f'{value:.6f}' for value in values)}")
    return "\n".join(rows) + "\n"


def read_yolo(path: Path) -> ImageLabels:
    return read_labels(path, len(NAMES), SIZE)


def judge_yolo(data: bytes) -> list[Box] | None:
    """The boxes of all lines that have numbers of a box or a polygon; None: the file needs a message."""
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        return None
    boxes = []
    for row, line in enumerate(re.split("\r\n|\r|\n", text), 1):
        values = [number(word) for word in line.split()]
        if len(values) == 5:
            _, x, y, w, h = values
            edges = x - w / 2, y - h / 2, x + w / 2, y + h / 2
        elif len(values) > 5 and len(values) % 2:  # a class and pairs
            edges = min(values[1::2]), min(values[2::2]), max(values[1::2]), max(values[2::2])
        else:
            edges = (math.nan,) * 4
        if not values:
            continue
        if not all(map(math.isfinite, values)):
            edges = (math.nan,) * 4
        label = int(values[0]) if float(values[0]).is_integer() else -1
        boxes.append(Box(f":{row}: ", label, edges))
    return boxes


def coco_text(rng: random.Random) -> str:
    rows = []
    for k in range(rng.randint(1, 5)):
        w, h = rng.randint(10, 200), rng.randint(10, 200)
        box = [rng.randint(0, SIZE[1] - w), rng.randint(0, SIZE[0] - h), w, h]
        row = {"id": k + 900, "image_id": 77, "category_id": rng.randint(1, 3), "bbox": box, "iscrowd": 0}
        rows.append(row | ({"area": w * h} if rng.random() < 0.5 else {}))
    images = [{"id": 77, "file_name": "a.jpg", "width": SIZE[1], "height": SIZE[0]}]
    categories = [{"id": c + 1, "name": name} for c, name in enumerate(NAMES)]
    return json.dumps({"images": images, "annotations": rows, "categories": categories}, indent=1)


def read_coco(path: Path) -> ImageLabels:
    try:
        reader = CocoLabels(path, dict(enumerate(NAMES)))
    except ValueError as error:
        return ImageLabels(errors=[str(error)])
    notes = reader.match([Path("images/a.jpg")])
    labels = reader.read(Path("images/a.jpg"), SIZE)
    labels.warnings += notes
    return labels


def judge_coco(data: bytes) -> list[Box] | None:
    try:
        content: Any = json.loads(data.decode("utf-8-sig"))
        rows, categories = content["annotations"], {number(c["id"]): c["name"] for c in content["categories"]}
        image = content["images"][0]
        if (image.get("width", SIZE[1]), image.get("height", SIZE[0])) != (SIZE[1], SIZE[0]):
            return []  # another frame: its own law
        boxes = []
        for k, row in enumerate(rows, 1):
            x, y, w, h = (number(value) for value in row["bbox"])
            name = categories.get(number(row["category_id"]))
            label = NAMES.index(name) if name in NAMES else -1
            place = f"annotation {row['id']}"[:80] if "id" in row else f"annotation in row {k}"  # long ones are cut
            if number(row["image_id"]) != number(image["id"]):
                place, label = "of images that it does not list", -1  # a count
            boxes.append(Box(place, label, edges_of(x, y, x + w, y + h)))
        return boxes
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return None


def voc_text(rng: random.Random) -> str:
    objects = ""
    for _ in range(rng.randint(1, 4)):
        x, y = rng.randint(1, 300), rng.randint(1, 200)
        corners = {"xmin": x, "ymin": y, "xmax": x + rng.randint(5, 300), "ymax": y + rng.randint(5, 200)}
        fields = "".join(f"<{key}>{value}</{key}>\n" for key, value in corners.items())
        objects += (
            f"<object><name>{rng.choice(NAMES)}</name>\n<difficult>0</difficult><bndbox>{fields}</bndbox></object>\n"
        )
    size = f"<size><width>{SIZE[1]}</width><height>{SIZE[0]}</height><depth>3</depth></size>"
    head = rng.choice(["", '<?xml version="1.0" encoding="utf-8"?>'])
    return f"{head}<annotation><filename>a.jpg</filename>\n{size}\n{objects}</annotation>"


def read_voc(path: Path) -> ImageLabels:
    return VocLabels(path.parent, dict(enumerate(NAMES))).read(Path("a.jpg"), SIZE)


def judge_voc(data: bytes) -> list[Box] | None:
    try:
        document = minidom.parseString(data)
    except (ExpatError, ValueError, LookupError):
        try:  # the first line may name an encoding that only Python knows, such as 'utf-'
            document = minidom.parseString(re.sub(rb"^(\xef\xbb\xbf)?<\?xml[^>]*\?>", b"", data))
        except (ExpatError, ValueError, LookupError):
            return None

    def text_of(node: Any, tag: str) -> str:
        found = [child for child in node.childNodes if getattr(child, "tagName", "") == tag]
        return "".join(n.data for n in found[0].childNodes if n.nodeType in (3, 4)).strip() if found else ""

    def child(node: Any, tag: str) -> Any:
        return next((c for c in node.childNodes if getattr(c, "tagName", "") == tag), None)

    size = child(document.documentElement, "size")
    stated = [number(text_of(size, key)) for key in ("height", "width")] if size else list(SIZE)
    if stated != list(SIZE):
        return []  # another frame: its own law
    boxes = []
    for k, item in enumerate(document.getElementsByTagName("object"), 1):
        corners, name = child(item, "bndbox"), text_of(item, "name")
        values = [number(text_of(corners, key)) if corners else math.nan for key in ("xmin", "ymin", "xmax", "ymax")]
        boxes.append(Box(f"object {k}:", NAMES.index(name) if name in NAMES else -1, edges_of(*values)))
    return boxes


FORMS: dict[str, tuple[str, Callable[[random.Random], str], Callable[[Path], ImageLabels], Callable[[bytes], Any]]] = {
    "yolo": ("a.txt", yolo_text, read_yolo, judge_yolo),
    "coco": ("a.json", coco_text, read_coco, judge_coco),
    "voc": ("a.xml", voc_text, read_voc, judge_voc),
}


def verdict(labels: ImageLabels, judged: list[Box] | None) -> str:
    """'' if every judged box is among the labels or named in a message, and every label is a judged box."""
    messages = [*labels.warnings, *labels.errors, *([labels.skip_reason] if labels.skip_reason else [])]
    if any("\n" in message or len(message) >= 400 for message in messages):
        return f"a message of several lines, or too long: {messages}"
    if judged is None:
        return "" if messages else "unreadable, without a line"
    if judged == [] or labels.skip_reason or (not len(labels.label) and labels.errors):
        return ""  # a frame or file that is refused as a whole
    x, y, w, h = labels.xywhn.T.astype(float)
    left = list(zip(labels.label.tolist(), zip(x - w / 2, y - h / 2, x + w / 2, y + h / 2, strict=True), strict=True))
    all_named = any("of this file)" in message for message in messages)

    def named(box: Box) -> bool:
        return all_named or any(box.place in message for message in messages)

    for box in sorted(judged, key=named):  # a box that was dropped with a line may equal one that was kept
        clipped = [min(max(edge, 0.0), 1.0) for edge in box.edges]
        apart = [(max(abs(a - b) for a, b in zip(o[1], clipped, strict=True)), o) for o in left if o[0] == box.label]
        distance, nearest = min(apart, default=(1.0, None))
        same = nearest is not None and distance < 2e-5
        beyond = max(-min(box.edges), max(box.edges) - 1) > SMALL
        if same:
            left.remove(nearest)
        if (not same or beyond) and not named(box):
            return f"{box} {'moved' if same else 'lost'} without a line: {messages}"
    return f"labels from nowhere: {left}" if left else ""


def fuzz(form: str, count: int, seed: int = 0) -> dict[str, int]:
    """Counts of damaged files by what became of them; fails on the first one that breaks the law."""
    file, text, read, judge = FORMS[form]
    totals = {"files": 0, "boxes": 0, "labels": 0, "with a line": 0, "refused": 0}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, file)
        for k in range(count):
            rng = random.Random(f"{form} {seed} {k}")
            data = mutate(text(rng), rng)
            path.write_bytes(data)
            labels, judged = read(path), judge(data)
            problem = verdict(labels, judged)
            assert not problem, f"{form} {k}: {problem}\n{data!r}"
            totals["files"] += 1
            totals["boxes"] += len(judged or [])
            totals["labels"] += len(labels.label)
            totals["with a line"] += bool(labels.warnings or labels.errors or labels.skip_reason)
            totals["refused"] += bool(labels.errors)
    return totals


@pytest.mark.parametrize("form", FORMS)
def test_no_box_is_lost_or_moved_without_a_line(form: str) -> None:
    totals = fuzz(form, 300, seed=1)
    assert totals["files"] == 300 and totals["labels"] > 100 and totals["refused"] > 50


def test_the_judge_sees_a_lost_a_moved_and_an_invented_box() -> None:
    whole = read_labels_of("0 0.5 0.5 0.2 0.2\n")
    assert not verdict(whole, judge_yolo(b"0 0.5 0.5 0.2 0.2\n"))
    assert "lost" in verdict(whole, judge_yolo(b"0 0.5 0.5 0.2 0.2\n1 0.3 0.3 0.1 0.1\n"))
    assert "lost" in verdict(whole, judge_yolo(b"0 0.5 0.51 0.2 0.2\n"))
    assert "lost" in verdict(whole, judge_yolo(b"1 0.5 0.5 0.2 0.2\n"))
    assert "nowhere" in verdict(read_labels_of("0 .5 .5 .2 .2\n1 .5 .5 .2 .2\n"), judge_yolo(b"0 .5 .5 .2 .2\n"))


def test_a_box_dropped_as_a_duplicate_takes_no_kept_box_with_it(tmp_path: Path) -> None:
    """The judge itself: the second row is dropped with a line, the third differs from it by less than its tolerance."""
    data = b"1 0.361788 0.586034 0.373256 0.189486\n" * 2 + b"1 0.361788 0.58605034 0.373256 0.189486\n"
    file, _, read, judge = FORMS["yolo"]
    (tmp_path / file).write_bytes(data)
    assert verdict(read(tmp_path / file), judge(data)) == ""
    assert "lost" in verdict(read(tmp_path / file), judge(data + b"1 0.2 0.2 0.1 0.1\n"))


def read_labels_of(text: str) -> ImageLabels:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.txt")
        path.write_text(text)
        return read_yolo(path)


if __name__ == "__main__":
    for name in FORMS:
        began = time.perf_counter()
        print(name, fuzz(name, int(sys.argv[1]) if len(sys.argv) > 1 else 1000), f"{time.perf_counter() - began:.1f} s")
