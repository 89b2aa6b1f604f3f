"""Annotated objects in pixels to the labels of an image, and the match of images with the names in annotation files."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from utils.decode import turned_boxes
from utils.text import clean

MAX_OUTSIDE = 0.01  # fraction of the image by which a box may reach beyond its edge without a warning
MAX_ASPECT = 0.02  # fraction by which the aspect ratios of an image and of its annotation may differ without one
NO_AREA = 1e-12  # fraction of the image that a side must exceed
MAX_LINES = 100  # messages of one kind that are kept of one file
MAX_LEVELS = 64  # of folders that are compared, from the end of a path
WHOLE = 0.01  # pixels by which a number may differ from a whole one


@dataclass
class ImageLabels:
    """The labels of one image from a label file or an annotation file.

    Attributes:
        label: (n,) int64, class index. xywhn: (n, 4) float32, center and size in 0..1 of the image.
        crowd: (n,) bool, boxes that detections may overlap without being right or wrong.
        area: (n,) float32 square pixels; NaN: that of the box.
        warnings, errors: each starts with file and line; an error makes the data set unusable. Of more than MAX_LINES
            of a file only the first are listed, and a last one counts the others.
        unlisted: how many warnings and errors these last lines stand for.
        skip_reason: why this image is left out; None if it is used.
    """

    label: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    xywhn: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    crowd: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    area: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    skip_reason: str | None = None
    unlisted: tuple[int, int] = (0, 0)


class FirstLines(list[str]):
    """The first MAX_LINES messages about a file; the others are only counted, so that a bad file stays small."""

    def __init__(self) -> None:
        super().__init__()
        self.more = 0

    def full(self) -> bool:
        """Count one more message if there is no room for it; True if so, and its text need not be made."""
        if len(self) < MAX_LINES:
            return False
        self.more += 1
        return True

    def lines(self, where: object, what: str) -> list[str]:
        """The messages, and a line with the number of the others, if there are any."""
        return [*self, *([f"{where}: {self.more:,} more {what}"] if self.more else [])]


class LabelReader(Protocol):
    """Finds and reads the labels of images; a cache of them is valid as long as `key` is the same."""

    key: str

    def match(self, images: Sequence[Path]) -> list[str]:
        """Assign label files or entries to all images of a data set; one line about each kind of oddity."""
        ...

    def file(self, image: Path) -> Path:
        """The file that holds the labels of `image`."""
        ...

    def read(self, image: Path, size: tuple[int, int], orientation: int = 1) -> ImageLabels:
        """The labels of an upright image of `size` (height, width), whose file has this EXIF orientation."""
        ...


class AnnotatedObject(NamedTuple):
    """One annotated object: its class's name, corner pixels, and its place in the files for messages."""

    where: str
    name: str
    xyxy: tuple[float, ...]
    crowd: bool
    area: float = math.nan


class Frame(NamedTuple):
    """The frame that boxes were drawn in, and the image that it is now.

    Attributes:
        where: the annotation, for messages. annotated: (height, width) that it states.
        size: (height, width) of the upright image. orientation: EXIF orientation of its file.
        fractions: the program that wrote the boxes stated fractions of the upright image in pixels of the camera's
            frame (Label Studio does); None: not known.
    """

    where: str
    annotated: tuple[float, float]
    size: tuple[int, int]
    orientation: int = 1
    fractions: bool | None = None

    def upright(self, xyxy: np.ndarray, warnings: list[str]) -> np.ndarray:
        """(n, 4) corners in 0..1 of the upright image, from those in pixels as annotated; adds to `warnings`."""
        (high, wide), (h, w) = self.annotated, self.size
        edges = xyxy / np.array([wide, high, wide, high])
        if not len(xyxy) or min(h, w) < 1 or (high, wide) == (h, w):
            return edges
        made = f"{self.where}: made for {wide:g} x {high:g} pixels, but the image has {w} x {h}"
        if self.orientation > 4 and (high, wide) == (w, h):
            scaled = self.fractions
            if scaled is None:
                scaled = _whole(edges * np.array([w, h, w, h])) and not _whole(xyxy)
            how = "boxes are scaled, as Label Studio writes them" if scaled else "boxes are turned with the image"
            warnings.append(f"{made} when turned as EXIF says: {how}")
            return edges if scaled else turned_boxes(edges, self.orientation)
        if abs(high * w / (wide * h) - 1) > MAX_ASPECT:
            warnings.append(f"{made}, which is another shape: boxes are scaled, check them")
        return edges


def share(fraction: float) -> str:
    """A fraction in percent for a message: '3.5%', also of huge ones in a few characters."""
    return f"{fraction:.1%}" if fraction < 1e4 else f"{fraction * 100:.2g}%"


def _whole(values: np.ndarray) -> bool:
    return bool((np.abs(values - values.round()) < WHOLE).all())


def labels_of(objects: Sequence[AnnotatedObject], frame: Frame, classes: dict[str, int]) -> ImageLabels:
    """The labels of an image: clipped to it; boxes without area, and equal ones, are dropped with a warning."""
    known, errors, warnings = list[AnnotatedObject](), FirstLines(), FirstLines()
    names = ", ".join(list(classes)[:50])
    for item in objects:
        if item.name in classes and all(math.isfinite(v) for v in item.xyxy):
            known.append(item)
        elif errors.full():
            continue
        elif item.name in classes:
            errors.append(f"{item.where}: box {item.xyxy}, expected finite numbers")
        else:
            errors.append(f"{item.where}: class '{clean(item.name, 60)}', expected one of the names: {clean(names)}")
    xyxy = np.array([item.xyxy for item in known], dtype=np.float64).reshape(-1, 4)
    if len(known) and min(frame.annotated) > 8 and xyxy.max() <= 1 and xyxy.min() >= 0 and xyxy.any():
        errors.append(f"{known[0].where}: box {known[0].xyxy} looks like fractions of the image, expected pixels")
    frame_notes = list[str]()
    kept, rows, seen = list[AnnotatedObject](), list[list[float]](), dict[tuple[object, ...], str]()
    for item, edges in zip(known, frame.upright(xyxy, frame_notes).tolist(), strict=True):
        outside = max(-min(edges), max(edges) - 1)
        x1, y1, x2, y2 = (min(max(edge, 0.0), 1.0) for edge in edges)
        key = (item.name, item.xyxy, item.crowd)
        if min(x2 - x1, y2 - y1) <= NO_AREA:
            if not warnings.full():
                warnings.append(f"{item.where}: box without area, dropped")
            continue
        if key in seen:
            if not warnings.full():
                warnings.append(f"{item.where}: the same box as in {seen[key]}, dropped")
            continue
        seen[key] = item.where
        if outside > MAX_OUTSIDE and not warnings.full():
            warnings.append(f"{item.where}: box reaches {share(outside)} of the image beyond its edge, clipped")
        rows.append([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
        kept.append(item)
    return ImageLabels(
        label=np.array([classes[item.name] for item in kept], dtype=np.int64),
        xywhn=np.array(rows, dtype=np.float32).reshape(-1, 4),
        crowd=np.array([item.crowd for item in kept], dtype=bool),
        area=np.array([item.area for item in kept], dtype=np.float32),
        warnings=[*frame_notes, *warnings.lines(frame.where, "warnings")],
        errors=errors.lines(frame.where, "errors"),
        unlisted=(warnings.more, errors.more),
    )


class Matches(NamedTuple):
    """Which name belongs to which image.

    Attributes:
        found: index of the image -> index of the name. by_end: those of them whose folders differ.
        unclear: index of the image -> indices of the names that fit equally well, or that fit other images as well.
    """

    found: dict[int, int]
    by_end: list[int]
    unclear: dict[int, list[int]]


def match_ends(images: Sequence[tuple[str, ...]], names: Sequence[tuple[str, ...]]) -> Matches:
    """The name that belongs to each image, both as parts of paths.

    First the longest name that the image's path ends with; then, among the names and images that are left, those with
    most parts in common from the end, if there is one such pair only.
    """
    whole: dict[tuple[str, ...], int] = {}  # name -> its first index
    for k, parts in enumerate(names):
        whole.setdefault(parts, k)
    claims: dict[int, list[int]] = defaultdict(list)
    for i, image in enumerate(images):
        if (name := next((end for end in _ends(image) if end in whole), None)) is not None:
            claims[whole[name]].append(i)
    found = {claimed[0]: k for k, claimed in claims.items() if len(claimed) == 1}
    unclear = {i: [k] for k, claimed in claims.items() if len(claimed) > 1 for i in claimed}
    left: dict[tuple[str, ...], list[int]] = defaultdict(list)  # end of a name -> the names that nobody claims
    for k, parts in enumerate(names):
        for end in _ends(parts) if k not in claims else ():
            left[end].append(k)
    best: dict[int, list[int]] = {}
    wanted: dict[tuple[str, ...], list[int]] = defaultdict(list)  # end of a name -> the images that go no further
    for i, image in enumerate(images):
        if i in found or i in unclear:
            continue
        if (shared := next((end for end in _ends(image) if end in left), None)) is not None:
            best[i] = left[shared]
            wanted[shared].append(i)
    by_end = []
    for i, options in best.items():
        rivals = next(wanted[end] for end in _ends(names[options[0]]) if end in wanted)
        if len(options) == 1 and rivals == [i]:
            found[i] = options[0]
            by_end.append(i)
        else:
            unclear[i] = options
    return Matches(found, by_end, unclear)


def _ends(parts: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The ends of a path, the longest first."""
    return (parts[k:] for k in range(max(len(parts) - MAX_LEVELS, 0), len(parts)))
