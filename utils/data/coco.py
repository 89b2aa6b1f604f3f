"""Labels from COCO annotation files."""

from __future__ import annotations

import json
import math
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from utils.data.json_rows import TwiceGiven, json_rows
from utils.data.objects import AnnotatedObject, FirstLines, Frame, ImageLabels, labels_of, match_ends
from utils.reading import number_of
from utils.text import clean, counted, first

TRUE, FALSE = {"1", "true", "yes"}, {"0", "false", "no", "", "none"}
BOX = "expected [x, y, width, height] in pixels"
LISTS = ("images", "annotations", "categories")
KEPT = ("id", "file_name", "width", "height")  # of an image's entry
MAX_ROWS = 20_000_000  # of a list; some 100 bytes each. Objects365 has 25 million boxes in several files
MAX_AREA = 1e30  # square pixels, well within 32 bits
MAX_NAME = 4096  # characters of a name
MAX_KEPT = 10_000  # messages about rows of a file
WHOLE = re.compile(r"-?[0-9]{1,19}")
NO_ID = -(1 << 63)  # of an annotation without a whole number as id


class CocoLabels:
    """Labels of a COCO annotation file, with its `iscrowd` and `area`.

    The entry of an image is the one with the longest `file_name`, folders included, that the image's path ends with;
    else the only one whose `file_name` has the same end, as exports name folders of another machine.

    Raises:
        OSError, ValueError: not such a file; an id that means two things; a category in use is not among `names`, or a
            row cannot be read (raised when images are read).
    """

    def __init__(self, path: Path, names: dict[int, str]):
        self.path, self.classes = path, {name: c for c, name in names.items()}
        self.key = f"coco {list(names.items())}"
        self.notes: list[str] = []
        self.errors: dict[int, FirstLines] = defaultdict(FirstLines)
        self.fractions: bool | None = None
        self.images: dict[int, dict[str, Any]] = {}
        self.categories: dict[int, str] = {}
        self._rows = _Rows(f"{path}: ")
        self._read()
        self._entries: dict[Path, dict[str, Any]] = {}
        self._unclear: set[Path] = set()

    def _read(self) -> None:
        """Read the file from its start to its end, row by row: the lists may stand in any order."""
        seen, counts = set[str](), Counter[str]()
        categories: dict[int, dict[str, Any]] = {}
        for key, row in json_rows(self.path, LISTS):
            seen.add(key)
            if key not in LISTS:
                studio = key == "info" and isinstance(row, dict) and isinstance(row.get("contributor"), str)
                self.fractions = True if studio and "label studio" in row["contributor"].lower() else self.fractions
                continue
            if row is None:
                continue
            counts[key] += 1
            if counts[key] > MAX_ROWS:
                raise ValueError(f"{self.path}: more than {MAX_ROWS:,} {key}, expected several files")
            if key == "annotations":
                self._rows.add(self.prepared(row, counts[key]), counts[key], self.errors)
            else:
                title, rows = ("file_name", self.images) if key == "images" else ("name", categories)
                self._add_by_id(row, counts[key], key, title, rows)
        for key in LISTS:
            if key not in seen:
                raise ValueError(f"{self.path}: not a COCO annotation file: no key '{key}'")
        self.categories = {i: row["name"] for i, row in categories.items()}
        for key, rows in (("categories", categories), ("images", self.images)):
            if repeated := counts[key] - len(rows):
                self.notes.append(f"{self.path}: {counted(repeated, 'row')} of {key} repeated, counted once")
        self._rows.close(set(self.images))
        for i in self.errors.keys() - self.images.keys():
            del self.errors[i]
        if self._rows.strangers.more or self._rows.strangers:
            what = counted(len(self._rows.strangers) + self._rows.strangers.more, "annotation")
            note = f"{what} of images that it does not list, left out: {first(self._rows.strangers)}"
            self.notes.append(f"{self.path}: {note}")
        if self._rows.repeated:
            what = counted(len(self._rows.repeated), "annotation id")
            self.notes.append(f"{self.path}: {what} used twice: {first(self._rows.repeated)}")

    def prepared(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        """A row of annotations, counted from 1, as it is to be read; for readers that accept more than COCO has."""
        return row

    def objects(self, image: int) -> list[AnnotatedObject]:
        """The objects of the image with this id, in the order of the file."""
        return self._rows.objects(image, self.categories)

    def _add_by_id(
        self, row: dict[str, Any], number: int, key: str, title: str, rows: dict[int, dict[str, Any]]
    ) -> None:
        """Add a row of `key` to `rows`; raises ValueError if its id is missing or stands for another title."""
        where = f"{self.path}: {key}, row {number}"
        if isinstance(row, TwiceGiven):
            raise ValueError(f"{where}: the key '{clean(row.key, 60)}' is given twice")
        i, name = _whole(row.get("id")), row.get(title)
        if i is None or not isinstance(name, str):
            missing = "id" if i is None else title
            raise ValueError(f"{where}: {missing} is {_shown(row.get(missing))}, expected a value")
        if len(name) > MAX_NAME:
            raise ValueError(f"{where}: {title} is '{clean(name, 60)}', expected {MAX_NAME} characters or fewer")
        if i in rows and rows[i][title] != name:
            both = f"'{first([rows[i][title]])}' and '{first([name])}'"
            raise ValueError(f"{self.path}: {key}: the id {i} stands for {both}, expected one id for each")
        scalar = {k: row[k] for k in KEPT if k in row and not isinstance(row[k], list | dict)}
        rows[i] = {**scalar, "id": i, title: name}

    def match(self, images: Sequence[Path]) -> list[str]:
        rows = list(self.images.values())
        on_disk = {image.name for image in images}
        matches = match_ends([image.parts for image in images], [_parts(row["file_name"], on_disk) for row in rows])
        self._entries |= {images[i]: rows[k] for i, k in matches.found.items()}
        self._unclear |= {images[i] for i in matches.unclear}
        notes, path, used = list(self.notes), self.path, set(matches.found.values())
        if matches.by_end:
            pairs = [f"{images[i]} -> {rows[matches.found[i]]['file_name']}" for i in matches.by_end]
            notes.append(f"{path}: {counted(len(pairs), 'image')} found by the end of file_name: {first(pairs, 1)}")
        if absent := [row["file_name"] for k, row in enumerate(rows) if k not in used]:
            what = counted(len(absent), "image")
            notes.append(f"{path}: {what} of the file not among the {len(images)} on disk: {first(absent)}")
        if unlisted := [image for i, image in enumerate(images) if i not in matches.found and i not in matches.unclear]:
            notes.append(f"{path}: has no entry for {counted(len(unlisted), 'image')}, left out: {first(unlisted)}")
        if matches.unclear:
            doubtful = [images[i] for i in matches.unclear]
            notes.append(f"{path}: {counted(len(doubtful), 'image')} fit several entries, left out: {first(doubtful)}")
        return notes

    def entry(self, image: Path) -> dict[str, Any] | None:
        """The entry of an image in the file; None if it has none, or it is not clear which."""
        if image not in self._entries and image not in self._unclear:
            self.match([image])
        return self._entries.get(image)

    def category_ids(self) -> dict[int, int]:
        """Class index -> category id in the file."""
        return {self.classes[name]: i for i, name in self.categories.items() if name in self.classes}

    def file(self, image: Path) -> Path:
        return self.path

    def read(self, image: Path, size: tuple[int, int], orientation: int = 1) -> ImageLabels:
        entry = self.entry(image)
        if entry is None:
            return ImageLabels(skip_reason=f"{image}: left out, {self.path} has no entry for it, or several")
        number = int(entry["id"])
        where = f"{self.path}: image {number} ({clean(image.name, 90)})"
        sides = {key: _number(entry.get(key)) for key in ("height", "width")}
        usable = all(side is not None and side > 0 for side in sides.values())
        stated = (sides["height"] or 0.0, sides["width"] or 0.0) if usable else size
        frame = Frame(where, stated, size, orientation, self.fractions)
        labels = labels_of(self.objects(number), frame, self.classes)
        if odd := [key for key, side in sides.items() if entry.get(key) not in (None, 0) and not (side and side > 0)]:
            values = " and ".join(f"{key} is {_shown(entry[key])}" for key in odd)
            labels.warnings.append(f"{where}: {values}, expected pixels: the size of the image file is used")
        if number in self.errors:
            errors = self.errors[number]
            labels.errors += errors.lines(where, "errors")
            labels.unlisted = labels.unlisted[0], labels.unlisted[1] + errors.more
        return labels


class _Rows:
    """The annotations of a file in 80 bytes each, and those of an image as objects.

    Attributes:
        strangers: those of images that the file does not list. repeated: ids of several annotations.
    """

    def __init__(self, where: str):
        self.where, self.kept = where, 0
        self.image, self.category, self.id = array("q"), array("q"), array("q")
        self.box, self.area, self.crowd = array("d"), array("d"), array("b")  # crowd -1: a row that cannot be read
        self.names: dict[int, str] = {}  # row -> its id, where that is no number
        self.strangers, self.repeated = FirstLines(), list[str]()

    def add(self, row: dict[str, Any], number: int, errors: dict[int, FirstLines]) -> None:
        """Add row `number`, counted from 1; one that cannot be read is added to the errors of its image.

        Raises:
            ValueError: it names no image.
        """
        own = row.get("id")
        plain = own if type(own) is int and abs(own) < -NO_ID else NO_ID
        self.id.append(plain)
        if "id" in row and plain == NO_ID:
            self.names[number - 1] = clean(own if isinstance(own, str | int | float) else _shown(own), 90)
        image = _whole(row.get("image_id"))
        if image is None:
            value = _shown(row.get("image_id"))
            raise ValueError(f"{self.where}{self.label(number - 1)}: image_id is {value}, expected the id of an image")
        self.image.append(image)
        try:
            category, box, crowd, area = _object(row)
        except ValueError as error:
            self.category.append(0)
            self.box.extend((0.0, 0.0, 0.0, 0.0))
            self.area.append(0.0)
            self.crowd.append(-1)
            lines = errors[image]
            if self.kept >= MAX_KEPT:
                lines.more += 1
            elif not lines.full():
                self.kept += 1
                lines.append(f"{self.where}{self.label(number - 1)}: {error}")
            return
        self.category.append(category)
        self.box.extend(box)
        self.area.append(area)
        self.crowd.append(crowd)

    def label(self, k: int) -> str:
        """The annotation in row `k`, counted from 0, in words."""
        if k in self.names:
            return f"annotation {self.names[k]}"
        return f"annotation {self.id[k]}" if self.id[k] != NO_ID else f"annotation in row {k + 1}"

    def close(self, images: set[int]) -> None:
        """Sort the rows by image, once all are added; `images` are the ids that the file lists."""
        of_image, crowd = np.array(self.image, np.int64), np.array(self.crowd, np.int8)
        listed = np.isin(of_image, np.fromiter(images, np.int64, len(images)))
        for k in np.flatnonzero(~listed).tolist():
            if not self.strangers.full():
                self.strangers.append(f"{self.label(k)} (image {self.image[k]})")
        good = np.flatnonzero(crowd >= 0)
        self.order = good[np.argsort(of_image[good], kind="stable")]
        self.sorted_images = of_image[self.order]
        ids = np.array(self.id, np.int64)
        values, starts, counts = np.unique(ids[ids != NO_ID], return_index=True, return_counts=True)
        again = values[counts > 1][np.argsort(starts[counts > 1], kind="stable")]
        self.repeated = [str(value) for value in again.tolist()]
        self.repeated += [name for name, count in Counter(self.names.values()).items() if count > 1]

    def objects(self, image: int, categories: dict[int, str]) -> list[AnnotatedObject]:
        """The objects of an image in the order of the file."""
        start = np.searchsorted(self.sorted_images, image, "left")
        stop = np.searchsorted(self.sorted_images, image, "right")
        found = []
        for k in self.order[start:stop].tolist():
            x, y, w, h = self.box[4 * k : 4 * k + 4]
            name = categories.get(self.category[k], f"category {self.category[k]}")
            where = f"{self.where}{self.label(k)}"
            found.append(AnnotatedObject(where, name, (x, y, x + w, y + h), self.crowd[k] == 1, self.area[k]))
        return found


def _object(row: dict[str, Any]) -> tuple[int, tuple[float, ...], bool, float]:
    """Category, box, crowd and area in a row; raises ValueError, without the file, if a value is wrong."""
    if isinstance(row, TwiceGiven):
        raise ValueError(f"the key '{clean(row.key, 60)}' is given twice")
    if "bbox" not in row:
        raise ValueError(f"no bbox, {BOX}")
    box = row["bbox"]
    values = [_number(value) for value in box] if isinstance(box, list) and len(box) == 4 else [None]
    if any(value is None for value in values):
        raise ValueError(f"bbox is {_shown(box)}, {BOX}")
    category = _whole(row.get("category_id"))
    if category is None:
        raise ValueError(f"category_id is {_shown(row.get('category_id'))}, expected a whole number")
    crowd = row.get("iscrowd", 0)
    word = "?" if isinstance(crowd, list | dict) else str(crowd).strip().lower().removesuffix(".0")
    if word not in TRUE | FALSE:
        raise ValueError(f"iscrowd is {_shown(crowd)}, expected 0 or 1")
    area = row.get("area")
    square = math.nan if area is None else _number(area)
    if square is None or abs(square) > MAX_AREA:
        raise ValueError(f"area is {_shown(area)}, expected square pixels")
    return category, tuple(value for value in values if value is not None), word in TRUE, square


def _whole(value: Any) -> int | None:
    """An id as a number of 64 bits; None if it is none. Some exports write ids as text."""
    if isinstance(value, str):
        value = int(value) if WHOLE.fullmatch(value.strip()) else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    usable = isinstance(value, int) and not isinstance(value, bool) and abs(value) < -NO_ID
    return value if usable else None


def _number(value: Any) -> float | None:
    """A finite number, or that which a text holds; None if it is none."""
    if type(value) is float:
        return value if value - value == 0 else None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = number_of(value) if isinstance(value, str) else float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _shown(value: Any, levels: int = 2) -> str:
    """A value of the file for a message, short; of lists in more levels only dots."""
    if isinstance(value, list):
        inner = [_shown(item, levels - 1) if levels else "..." for item in value[:5]]
        return clean(f"[{', '.join(inner)}{', ...' if len(value) > 5 else ''}]", 60)
    return "{...}" if isinstance(value, dict) else clean(json.dumps(value), 40)


def _parts(name: str, on_disk: set[str]) -> tuple[str, ...]:
    """The parts of a `file_name`: backslashes as slashes, without drive, `.` and `..`; URLs decoded if need be."""
    name = name.partition("?d=")[2] or name  # Label Studio: /data/local-files/?d=images/a.jpg
    parts = tuple(part for part in re.split(r"[/\\]+", name) if part not in ("", ".", "..") and part[1:] != ":")
    if parts and parts[-1] not in on_disk and "%" in name:
        parts = tuple(unquote(part) for part in parts)
    return parts
