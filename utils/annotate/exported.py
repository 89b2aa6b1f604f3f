"""What an export of an annotation tool holds, what of it was left out, and boxes around turned ones and polygons."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from utils.data.objects import AnnotatedObject
from utils.data.voc import read_xml
from utils.text import clean, first

Corners = tuple[float, float, float, float]
MAX_ELEMENTS = 5_000_000  # of an XML file; a box has one, or one for each attribute more
TURNED = "rotated boxes, the upright box around each is used"
POLYGONS = "polygons, ellipses and masks, the box around each is used"
NO_CLASS = "boxes without a class, left out"
UNREADABLE = "annotations that cannot be read, left out"
NOT_LABELED = "images that nobody has labeled (no submitted annotation), left out"


@dataclass
class Exported:
    """An image in an export.

    Attributes:
        where: its place in the export, for messages. names: the spellings of its path, the likeliest first.
        stem: the last part of the names is without suffix.
        objects: with corners in pixels of `size`, or without it in 0..1 of the upright image.
        size: (height, width) that the export states; None: corners are in 0..1.
        pixels: corners are pixels for certain, however small, as CVAT writes them.
        fractions: see Frame in utils/data/objects.py.
    """

    where: str
    names: tuple[str, ...]
    objects: list[AnnotatedObject] = field(default_factory=list)
    size: tuple[float, float] | None = None
    stem: bool = False
    pixels: bool = False
    fractions: bool | None = None


class Ledger:
    """What was left out or changed: for each kind of thing its places."""

    def __init__(self) -> None:
        self.places: dict[str, list[str]] = defaultdict(list)
        self.notes: list[str] = []

    def add(self, what: str, where: object) -> None:
        """Count one thing of the kind `what`, a plural with what was done to it."""
        self.places[what].append(str(where))

    @property
    def lines(self) -> list[str]:
        """A line for each kind, with the count and the first places; then notes."""
        counts = [
            f"{what}: {len(where):,} ({first(list(dict.fromkeys(where)))})" for what, where in self.places.items()
        ]
        return [*counts, *(clean(note, 400) for note in self.notes)]


@dataclass
class Export:
    """All images of an export, and its class names in its order, those without boxes too."""

    images: list[Exported] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


def number(value: Any, what: str) -> float:
    """A finite number from a file.

    Raises:
        ValueError: it is none; `what` names it.
    """
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        found = float(value)
    except (ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"{what} is {clean(value, 40)}, expected a number")
    return found


def around(points: Sequence[tuple[float, float]]) -> Corners:
    """The corners of the smallest upright box around points."""
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def around_turned(box: Corners, degrees: float, pivot: tuple[float, float]) -> Corners:
    """The upright box around a box that is turned clockwise about a point, in pixels: x to the right, y down."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x1, y1, x2, y2 = box
    corners = [(x - pivot[0], y - pivot[1]) for x in (x1, x2) for y in (y1, y2)]
    return around([(pivot[0] + x * cos - y * sin, pivot[1] + x * sin + y * cos) for x, y in corners])


def around_ellipse(center: tuple[float, float], radii: tuple[float, float], degrees: float = 0.0) -> Corners:
    """The upright box around an ellipse that is turned about its center, in pixels."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    half = math.hypot(radii[0] * cos, radii[1] * sin), math.hypot(radii[0] * sin, radii[1] * cos)
    return center[0] - half[0], center[1] - half[1], center[0] + half[0], center[1] + half[1]


def safe_xml(path: Path) -> Element:
    """The root of an XML file, which may not declare entities: they can stand for other files and for gigabytes.

    Raises:
        ValueError: it has a document type; it is not XML. Names the file.
    """
    try:
        return read_xml(path, "annotation export", attributes=True, elements=MAX_ELEMENTS)[0]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
