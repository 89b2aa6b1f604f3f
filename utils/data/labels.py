"""Label files in YOLO format: finding and reading them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from utils.data.annotations import MAX_OUTSIDE, ImageLabels


def label_path(image: str | Path) -> Path:
    """The label file of an image: its last folder called `images` becomes `labels`; without one, beside the image."""
    file = Path(image).with_suffix(".txt")
    parts = list(file.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts)


def read_labels(path: str | Path, nc: int) -> ImageLabels:
    """The labels in a label file; polygons become boxes. A file that is missing or empty means a background image.

    Every warning and error starts with 'file:line:'; a line with an error gives no label.

    Args:
        nc: number of classes; a class index of `nc` or more is an error.
    """
    boxes: dict[tuple[float, ...], int] = {}  # class and box -> line
    warnings: list[str] = []
    errors: list[str] = []
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        lines = []
    except (UnicodeDecodeError, OSError) as error:
        lines, errors = [], [f"{path}:1: not readable as text: {error}"]
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        try:
            values = _parse_line(words, nc)
        except ValueError as error:
            errors.append(f"{path}:{number}: {error}")
            continue
        box, outside = _clip_label(values)
        if outside > MAX_OUTSIDE:
            warnings.append(f"{path}:{number}: box reaches {outside:.1%} of the image beyond its edge, clipped")
        if box[3] <= 0 or box[4] <= 0:
            warnings.append(f"{path}:{number}: box without area, dropped")
        elif box in boxes:
            warnings.append(f"{path}:{number}: the same box as in line {boxes[box]}, dropped")
        else:
            boxes[box] = number
    rows = np.array(list(boxes), dtype=np.float32).reshape(-1, 5)
    count = len(rows)
    areas = np.full(count, np.nan, np.float32)
    return ImageLabels(rows[:, 0].astype(np.int64), rows[:, 1:], np.zeros(count, bool), areas, warnings, errors)


def _parse_line(words: list[str], nc: int) -> list[float]:
    """Class, center x, y, width, height in 0..1 from the words of a line; raises ValueError without file and line."""
    try:
        values = [float(word) for word in words]
    except ValueError as error:
        raise ValueError(f"'{' '.join(words)[:60]}' is not a row of numbers") from error
    if not all(math.isfinite(value) for value in values):
        raise ValueError("NaN or infinity among the numbers")
    count = len(values)
    if count != 5 and (count < 7 or count % 2 == 0):
        expected = "5 (class cx cy w h) or a class and 3 or more x y points"
        raise ValueError(f"{count} numbers, expected {expected}")
    label = values[0]
    if label != int(label):
        raise ValueError(f"class {words[0]} is not an integer")
    if not 0 <= label < nc:
        raise ValueError(f"class {int(label)}, but data.yaml has {nc} classes (0..{nc - 1})")
    if count == 5:
        return values
    xs, ys = values[1::2], values[2::2]
    left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
    return [label, (left + right) / 2, (top + bottom) / 2, right - left, bottom - top]


def _clip_label(values: list[float]) -> tuple[tuple[float, ...], float]:
    """The values of a line clipped to 0..1, and the fraction of the image by which the box reached beyond its edge."""
    label, cx, cy, w, h = values
    edges = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
    outside = max(max(-min(edges), max(edges) - 1), 0.0)
    if outside > 0:
        x1, y1, x2, y2 = (min(max(edge, 0.0), 1.0) for edge in edges)
        cx, cy, w, h = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
    return (label, cx, cy, w, h), outside


class TextLabels:
    """Labels of label files in YOLO format, see label_path."""

    def __init__(self, nc: int):
        self.nc, self.key = nc, str(nc)

    def file(self, image: Path) -> Path:
        return label_path(image)

    def read(self, image: Path, size: tuple[int, int]) -> ImageLabels:
        return read_labels(self.file(image), self.nc)
