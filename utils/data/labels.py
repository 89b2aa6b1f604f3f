"""Label files in YOLO format: finding, reading and writing them."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from utils.data.objects import MAX_OUTSIDE, NO_AREA, FirstLines, ImageLabels, share
from utils.images import IMAGE_SUFFIXES
from utils.reading import is_file, is_printed, lines_of, read_text
from utils.text import clean, counted, first

MAX_ROWS = 1_000_000  # lines of a label file; some 400 MB while it is read
MAX_WORDS = 20_001  # of a line: a class and a polygon of 10,000 points
NOT_FRACTIONS = 2.0  # a larger number cannot be a fraction of an image
NOT_LABELS = {"classes.txt", "labels.txt", "notes.txt", "predefined_classes.txt", "readme.txt", "requirements.txt"}
NOT_LABELS |= {"train.txt", "val.txt", "valid.txt", "test.txt", "readme.dataset.txt", "readme.roboflow.txt"}


def label_path(image: str | Path) -> Path:
    """The label file of an image: its last folder called `images` becomes `labels`; without one, beside the image."""
    file = Path(image).with_suffix(".txt")
    parts = list(file.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts)


def label_line(label: int, numbers: Sequence[float], *more: object) -> str:
    """The line of a box: class, center and size in 0..1 with eight decimals, 0.0001 pixels of the largest images.

    Args:
        numbers: center x and y, width, height; a confidence may follow. more: written after them as they are.
    """
    return f"{' '.join([str(label), *(f'{value:.8f}' for value in numbers), *map(str, more)])}\n"


def free_name(image: Path, used: set[str]) -> Path:
    """`image`, or a name like it whose label file is not in `used`, to which it is added; in any case of letters."""
    free, number = image, 1
    while str(label_path(free)).casefold() in used:
        number += 1
        free = image.with_name(f"{image.stem}-{number}{image.suffix}")
    used.add(str(label_path(free)).casefold())
    return free


def read_labels(path: str | Path, nc: int, size: tuple[int, int] = (0, 0)) -> ImageLabels:
    """The labels in a label file; polygons become boxes. A file that is missing or empty means a background image.

    Every warning and error starts with 'file:line:'; a line with an error gives no label. Lines end with \\n, \\r\\n
    or \\r only, as in editors.

    Args:
        nc: number of classes; a class index of `nc` or more is an error.
        size: (height, width) of the image, to say what numbers above 1 look like; (0, 0): not known.
    """
    boxes: dict[tuple[float, ...], int] = {}  # class and box -> line
    large = _Large()
    warnings, errors = FirstLines(), FirstLines()
    try:
        text = read_text(Path(path))
    except FileNotFoundError:
        text = ""
    except (ValueError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).removeprefix(f"{path}: ")
        text = ""
        errors.append(f"{path}:1: not readable as text: {reason}")
    for number, line in enumerate(lines_of(text), start=1):
        words = line.split(None, MAX_WORDS)
        if not words:
            continue
        if number > MAX_ROWS:
            errors.append(f"{path}:{number}: more than the {MAX_ROWS:,} lines of any label file, expected one a box")
            break
        try:
            values = _parse_line(words, nc)
        except ValueError as error:
            if not errors.full():
                errors.append(f"{path}:{number}: {error}")
            continue
        if max(values[1:]) > NOT_FRACTIONS:
            large.add(number, values[1:], size)
            continue
        box, outside = _clip_label(values)
        if outside > MAX_OUTSIDE and not warnings.full():
            warnings.append(f"{path}:{number}: box reaches {share(outside)} of the image beyond its edge, clipped")
        if min(box[3:]) <= NO_AREA:
            if not warnings.full():
                warnings.append(f"{path}:{number}: box without area, dropped")
        elif box not in boxes:
            boxes[box] = number
        elif not warnings.full():
            warnings.append(f"{path}:{number}: the same box as in line {boxes[box]}, dropped")
    more = warnings.more, errors.more
    listed = warnings.lines(path, "warnings"), errors.lines(path, "errors")
    if large.count:
        listed[1].append(f"{path}:{large.line}: {large.text()}")
    rows = np.array(list(boxes), dtype=np.float64).reshape(-1, 5)
    count = len(rows)
    areas = np.full(count, np.nan, np.float32)
    xywhn = rows[:, 1:].astype(np.float32)
    return ImageLabels(rows[:, 0].astype(np.int64), xywhn, np.zeros(count, bool), areas, *listed, unlisted=more)


class _Large:
    """The rows of a file with numbers that are no fractions: the first of them, and what all of them could be."""

    def __init__(self) -> None:
        self.count, self.line, self.fits, self.largest = 0, 0, True, 0.0
        self.first: Sequence[float] = ()

    def add(self, line: int, box: Sequence[float], size: tuple[int, int]) -> None:
        """Add a row: center and size, as written."""
        if not self.count:
            self.line, self.first = line, box
        (h, w), (cx, cy, bw, bh) = size, box
        self.count += 1
        self.fits = self.fits and cx + bw / 2 <= w * 1.01 and cy + bh / 2 <= h * 1.01
        self.largest = max(self.largest, *box)

    def text(self) -> str:
        """What the rows look like."""
        box = " ".join(f"{value:g}" for value in self.first)
        looks = ["pixels: divide by the image's width and height"] if self.fits else []
        if self.largest <= 100 * (1 + MAX_OUTSIDE):
            looks.append("percent: divide by 100")
        what = f"looks like {', or '.join(looks)}" if looks else "is far outside the image"
        lines = counted(self.count, "line")
        return f"box {box} {what}; expected center and size in 0..1 ({lines} of this file)"


def _parse_line(words: list[str], nc: int) -> list[float]:
    """Class, center x, y, width, height in 0..1 from the words of a line; raises ValueError without file and line."""
    if len(words) > MAX_WORDS:
        raise ValueError(f"more than {MAX_WORDS:,} numbers, expected 5, or a class and 3 or more x y points")
    try:
        values = [float(word) for word in words]
    except ValueError as error:
        raise ValueError(f"'{clean(' '.join(words), 60)}' is not a row of numbers") from error
    if not is_printed("".join(words)):
        odd = next(word for word in words if not is_printed(word))
        raise ValueError(f"'{clean(odd, 40)}' is not a number as programs write it: 0 to 9, a point, an exponent")
    if not all(math.isfinite(value) for value in values):
        odd = next(word for word, value in zip(words, values, strict=True) if not math.isfinite(value))
        raise ValueError(f"NaN or infinity among the numbers: {clean(odd, 40)}")
    count = len(values)
    if count != 5 and (count < 7 or count % 2 == 0):
        expected = "5 (class cx cy w h) or a class and 3 or more x y points"
        raise ValueError(f"{count} numbers, expected {expected}")
    label = values[0]
    if label != int(label):
        raise ValueError(f"class {clean(words[0], 40)} is not an integer")
    if not 0 <= label < nc:
        raise ValueError(f"class {clean(words[0], 40)}, but data.yaml has {nc} classes (0..{nc - 1})")
    if count == 5:
        return values
    if _is_face(values):
        raise ValueError("15 numbers that look like a box and 5 face landmarks; expected class cx cy w h, or a polygon")
    xs, ys = values[1::2], values[2::2]
    left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
    return [label, (left + right) / 2, (top + bottom) / 2, right - left, bottom - top]


def _is_face(values: list[float]) -> bool:
    """Whether a row is class, box and five landmarks (eyes, nose, corners of the mouth), not a polygon of 7 points.

    Landmarks that are not marked are -1. Eyes and mouth run in the same direction with the nose between them, which
    the edges of a convex polygon do not.
    """
    if len(values) != 15:
        return False
    _, cx, cy, w, h, *points = values
    if all(value == -1 for value in points) or points.count(-1) >= 4:
        return True
    xs, ys = points[::2], points[1::2]
    inside = all(abs(x - cx) <= 0.6 * w for x in xs) and all(abs(y - cy) <= 0.6 * h for y in ys)
    same_way = (xs[1] - xs[0]) * (xs[4] - xs[3]) > 0 and min(xs[0], xs[1]) <= xs[2] <= max(xs[0], xs[1])
    return inside and same_way and max(ys[0], ys[1]) < ys[2] < min(ys[3], ys[4])


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
    """Labels of label files in YOLO format, see label_path.

    Where that file does not exist, `match` also finds `a.jpg.txt`, names that differ in upper and lower case, files
    beside the image if there is no labels folder, and those of the image that a link leads to.
    """

    def __init__(self, nc: int):
        self.nc, self.key = nc, str(nc)
        self._files: dict[Path, Path] = {}
        self._listed: set[Path] = set()

    def match(self, images: Sequence[Path]) -> list[str]:
        own = {image: label_path(image) for image in images}
        folders = _Folders()
        used = {file for file in own.values() if file.name in folders.names(file.parent).get(file.name.lower(), [])}
        found: dict[Path, Path] = {}
        without = list[Path]()
        for image, file in own.items():
            if file in used:
                continue
            other = _other_spelling(image, file, folders)
            if other is None or other in used:
                without.append(image)
            else:
                found[image] = other
        sharing = Counter(found.values())
        self._files = {image: file for image, file in found.items() if sharing[file] == 1}
        without += [image for image, file in found.items() if sharing[file] > 1]
        self._listed = used | set(self._files.values())
        return self._notes(own, used, without, folders)

    def _notes(self, own: dict[Path, Path], used: set[Path], without: list[Path], folders: _Folders) -> list[str]:
        notes, moved = [], list(self._files.items())
        if moved:
            pairs = [f"{file} for {image}" for image, file in moved]
            notes.append(f"{counted(len(moved), 'label file')} found under another name or place: {first(pairs, 1)}")
        sharing = Counter(file for file in own.values() if file in used)
        if shared := [file for file, count in sharing.items() if count > 1]:
            notes.append(f"{counted(len(shared), 'label file')} used for several images of that name: {first(shared)}")
        taken = used | set(self._files.values())
        if orphans := _orphans(own, taken, folders):
            notes.append(f"{counted(len(orphans), 'label file')} without an image: {first(orphans)}")
        beside = [image for image in without if folders.labels(own[image].parent)]
        if without:
            what = f"{counted(len(without), 'image')} without a label file, read as background"
            where = f", {len(beside)} of them where other images have one" if beside else ""
            notes.append(f"{what}{where}: {first(beside or without)}")
        return notes

    def file(self, image: Path) -> Path:
        return self._files.get(image) or label_path(image)

    def read(self, image: Path, size: tuple[int, int], orientation: int = 1) -> ImageLabels:
        file = self.file(image)
        labels = read_labels(file, self.nc, size)
        if not len(labels.label) and file in self._listed and not is_file(file) and not labels.errors:
            labels.errors.append(f"{file}:1: gone since the files were listed, or a link to no file")
        return labels


class _Folders:
    """The names of the files in folders, each folder read once."""

    def __init__(self) -> None:
        self.names = cache(self._names)

    @staticmethod
    def _names(folder: Path) -> dict[str, list[str]]:
        """Lower-case name -> names of the files; empty if there is no such folder."""
        found: dict[str, list[str]] = {}
        try:
            names = os.listdir(folder)
        except OSError:
            return found
        for name in names:
            found.setdefault(name.lower(), []).append(name)
        return found

    def labels(self, folder: Path) -> list[str]:
        """The label files in a folder."""
        every = {name for names in self.names(folder).values() for name in names}
        return sorted(n for n in every if n.lower().endswith(".txt") and n.lower() not in NOT_LABELS and n[0] != ".")


def _other_spelling(image: Path, file: Path, folders: _Folders) -> Path | None:
    """The label file of an image whose own `file` does not exist; None if there is none, or several."""
    beside = image.parent if not folders.names(file.parent) else file.parent
    for folder in dict.fromkeys((file.parent, beside)):
        names = folders.names(folder)
        for wanted in (file.name, f"{image.name}.txt"):
            if len(same := names.get(wanted.lower(), [])) == 1:
                return folder / same[0]
    real = os.path.realpath(image)  # which, other than Path.resolve, bears links to themselves
    if real != os.path.abspath(image) and is_file(linked := label_path(real)):
        return linked
    return None


def _orphans(own: dict[Path, Path], taken: set[Path], folders: _Folders) -> list[Path]:
    """The label files, in folders where images of the data set have theirs, that belong to no image on disk."""
    orphans = []
    images_of: dict[Path, set[Path]] = {}
    for image, file in own.items():
        images_of.setdefault(file.parent, set()).add(image.parent)
    for folder, places in images_of.items():
        stems: set[str] = set()
        for place in places:
            for names in folders.names(place).values():
                stems |= {Path(name).stem for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES}
        left = (name for name in folders.labels(folder) if folder / name not in taken)
        orphans += [folder / name for name in left if Path(name).stem not in stems]
    return orphans
