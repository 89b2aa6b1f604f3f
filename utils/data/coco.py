"""Labels from COCO annotation files."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from utils.data.listing import counted, first
from utils.data.objects import AnnotatedObject, Frame, ImageLabels, labels_of, match_ends

TRUE, FALSE = {"1", "true", "yes"}, {"0", "false", "no", "", "none"}
BOX = "expected [x, y, width, height] in pixels"


class CocoLabels:
    """Labels of a COCO annotation file, with its `iscrowd` and `area`.

    The entry of an image is the one with the longest `file_name`, folders included, that the image's path ends with;
    else the only one whose `file_name` has the same end, as exports name folders of another machine.

    Raises:
        ValueError: not such a file; an id that means two things; a category in use is not among `names`, or a row
            cannot be read (raised when images are read).
    """

    def __init__(self, path: Path, names: dict[int, str]):
        self.path, self.classes = path, {name: c for c, name in names.items()}
        self.key = f"coco {list(names.items())}"
        self.notes: list[str] = []
        content = self._content()
        self.categories = {i: str(row.get("name")) for i, row in self._by_id(content, "categories", "name").items()}
        self.images = self._by_id(content, "images", "file_name")
        self.objects: dict[int, list[AnnotatedObject]] = defaultdict(list)
        self.errors: dict[int, list[str]] = defaultdict(list)
        self._read_annotations(content["annotations"])
        author = content.get("info")
        studio = isinstance(author, dict) and "label studio" in str(author.get("contributor")).lower()
        self.fractions = True if studio else None
        self._entries: dict[Path, dict[str, Any]] = {}
        self._unclear: set[Path] = set()

    def _content(self) -> dict[str, Any]:
        """The mapping in the file, with its three lists of mappings."""
        try:
            content = json.loads(self.path.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.path}: not JSON: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{self.path}: not a COCO annotation file: a {type(content).__name__}, expected a mapping")
        for key in ("images", "annotations", "categories"):
            if key not in content:
                raise ValueError(f"{self.path}: not a COCO annotation file: no key '{key}'")
            rows = content[key]
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise ValueError(f"{self.path}: not a COCO annotation file: {key} is not a list of mappings")
        return content

    def _by_id(self, content: dict[str, Any], key: str, title: str) -> dict[int, dict[str, Any]]:
        """The rows of `key` by id; raises ValueError if an id is missing or stands for rows with different titles."""
        rows: dict[int, dict[str, Any]] = {}
        for number, row in enumerate(content[key], 1):
            i = _whole(row.get("id"))
            if i is None or not isinstance(row.get(title), str):
                missing = "id" if i is None else title
                value = json.dumps(row.get(missing))[:40]
                raise ValueError(f"{self.path}: {key}, row {number}: {missing} is {value}, expected a value")
            if i in rows and rows[i][title] != row[title]:
                both = f"'{first([rows[i][title]])}' and '{first([row[title]])}'"
                raise ValueError(f"{self.path}: {key}: the id {i} stands for {both}, expected one id for each")
            rows[i] = row
        if repeated := len(content[key]) - len(rows):
            self.notes.append(f"{self.path}: {counted(repeated, 'row')} of {key} repeated, counted once")
        return rows

    def _read_annotations(self, rows: Sequence[dict[str, Any]]) -> None:
        """Sort the objects by their image; rows that cannot be read become errors of it."""
        strangers, seen = list[str](), Counter[str]()
        for number, row in enumerate(rows, 1):
            label = f"annotation {first([row['id']])}" if "id" in row else f"annotation in row {number}"
            image = _whole(row.get("image_id"))
            if image is None:
                value = json.dumps(row.get("image_id"))[:40]
                raise ValueError(f"{self.path}: {label}: image_id is {value}, expected the id of an image")
            if "id" in row:
                seen[str(row["id"])] += 1
            if image not in self.images:
                strangers.append(f"{label} (image {image})")
                continue
            try:
                self.objects[image].append(self._object(row, f"{self.path}: {label}"))
            except ValueError as error:
                self.errors[image].append(f"{self.path}: {label}: {error}")
        if strangers:
            what = counted(len(strangers), "annotation")
            self.notes.append(f"{self.path}: {what} of images that it does not list, left out: {first(strangers)}")
        if repeated := [i for i, count in seen.items() if count > 1]:
            self.notes.append(f"{self.path}: {counted(len(repeated), 'annotation id')} used twice: {first(repeated)}")

    def _object(self, row: dict[str, Any], where: str) -> AnnotatedObject:
        """The object in a row; raises ValueError, without the file, if a value is not what it should be."""
        if "bbox" not in row:
            raise ValueError(f"no bbox, {BOX}")
        box = row["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
            raise ValueError(f"bbox is {json.dumps(box)[:60]}, {BOX}")
        category = _whole(row.get("category_id"))
        if category is None:
            raise ValueError(f"category_id is {json.dumps(row.get('category_id'))[:40]}, expected a whole number")
        crowd = str(row.get("iscrowd", 0)).strip().lower().removesuffix(".0")
        if crowd not in TRUE | FALSE:
            raise ValueError(f"iscrowd is {json.dumps(row['iscrowd'])[:40]}, expected 0 or 1")
        area = row.get("area")
        if area is not None and not _is_number(area):
            raise ValueError(f"area is {json.dumps(area)[:40]}, expected square pixels")
        x, y, w, h = (float(value) for value in box)
        name = self.categories.get(category, f"category {category}")
        square = math.nan if area is None else float(area)
        return AnnotatedObject(where, name, (x, y, x + w, y + h), crowd in TRUE, square)

    def match(self, images: Sequence[Path]) -> list[str]:
        rows = list(self.images.values())
        on_disk = {image.name for image in images}
        matches = match_ends([image.parts for image in images], [_parts(row["file_name"], on_disk) for row in rows])
        self._entries |= {images[i]: rows[k] for i, k in matches.found.items()}
        self._unclear |= {images[i] for i in matches.unclear}
        notes, path = list(self.notes), self.path
        if matches.by_end:
            pairs = [f"{images[i]} -> {rows[matches.found[i]]['file_name']}" for i in matches.by_end]
            notes.append(f"{path}: {counted(len(pairs), 'image')} found by the end of file_name: {first(pairs, 1)}")
        if absent := [row["file_name"] for k, row in enumerate(rows) if k not in set(matches.found.values())]:
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
        sides = [entry.get(key) for key in ("height", "width")]
        stated = (float(sides[0]), float(sides[1])) if all(_is_number(side) for side in sides) else size  # type: ignore[arg-type]
        stated = stated if min(stated) > 0 and all(map(math.isfinite, stated)) else size
        frame = Frame(f"{self.path}: image {number} ({image.name})", stated, size, orientation, self.fractions)
        labels = labels_of(self.objects.get(number, []), frame, self.classes)
        labels.errors += self.errors.get(number, [])
        return labels


def _whole(value: Any) -> int | None:
    """An id as a number; None if it is none. Some exports write ids as text."""
    if isinstance(value, str) and value.strip().lstrip("-").isdigit():
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _is_number(value: Any) -> bool:
    """Whether a value is a number, or text that holds one."""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return False
    try:
        float(value)
    except (ValueError, OverflowError):
        return False
    return True


def _parts(name: str, on_disk: set[str]) -> tuple[str, ...]:
    """The parts of a `file_name`: backslashes as slashes, without drive, `.` and `..`; URLs decoded if need be."""
    name = name.partition("?d=")[2] or name  # Label Studio: /data/local-files/?d=images/a.jpg
    parts = tuple(part for part in re.split(r"[/\\]+", name) if part not in ("", ".", "..") and part[1:] != ":")
    if parts and parts[-1] not in on_disk and "%" in name:
        parts = tuple(unquote(part) for part in parts)
    return parts
