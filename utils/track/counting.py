"""Counts of objects that cross a line, and that enter and leave a zone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from utils.boxes import Tracked

MARGIN = 0.1  # of a box's shorter side, that its center must be past an edge: boxes of an object at rest tremble
MAX_POINTS = 1000  # of a zone
Counts = Counter[tuple[int, str]]  # (class index, "in" or "out") -> objects


@dataclass(frozen=True)
class Area:
    """A line or a zone.

    Attributes:
        kind: "line" or "zone". name: "line 1". points: x, y of the two ends, or of the corners. fractions: whether they
            are fractions of the image's width and height, else pixels.
    """

    kind: str
    name: str
    points: tuple[tuple[float, float], ...]
    fractions: bool

    def pixels(self, size: tuple[int, int]) -> np.ndarray:
        """(k, 2) pixels in an image of `size` (height, width)."""
        return np.array(self.points) * ([size[1], size[0]] if self.fractions else [1, 1])

    def __str__(self) -> str:
        """'line 1 (0,0.5 1,0.5, fractions)'."""
        points = " ".join(f"{x:g},{y:g}" for x, y in self.points[:8]) + (" ..." if len(self.points) > 8 else "")
        return f"{self.name} ({points}, {'fractions of the image' if self.fractions else 'pixels'})"


def parse_areas(kind: str, texts: Sequence[str]) -> list[Area]:
    """Areas of one kind from texts 'x1,y1,x2,y2[,...]'; those of numbers up to 1 are fractions of the image.

    Raises:
        ValueError: not such numbers, a line without length, a zone without area; names the flag.
    """
    return [parse_area(kind, f"{kind} {number}", text) for number, text in enumerate(texts, start=1)]


def parse_area(kind: str, name: str, text: str) -> Area:
    """See parse_areas."""
    is_line, flag = kind == "line", f"--count-{kind} {text[:60]}"
    expected = "x1,y1,x2,y2" if is_line else "x1,y1,x2,y2,x3,y3,... of three corners or more"
    try:
        numbers = np.array([float(word) for word in text.split(",")])
    except ValueError:
        raise ValueError(f"{flag}: expected {expected}, pixels or fractions of the image") from None
    count = len(numbers)
    if count % 2 or (count != 4 if is_line else not 6 <= count <= 2 * MAX_POINTS):
        raise ValueError(f"{flag}: {count} numbers, expected {expected}")
    if not (np.isfinite(numbers).all() and (numbers >= 0).all()):
        raise ValueError(f"{flag}: expected numbers from 0")
    fractions = bool((numbers <= 1).all())
    if not fractions and ((numbers > 0) & (numbers < 1)).any():
        raise ValueError(f"{flag}: fractions and pixels are mixed; expected all of them up to 1, or pixels")
    points = numbers.reshape(-1, 2)
    if is_line and (points[0] == points[1]).all():
        raise ValueError(f"{flag}: both ends are the same point, expected a line")
    if not is_line and cv2.contourArea(points.astype(np.float32)) == 0:
        raise ValueError(f"{flag}: the zone has no area")
    return Area(kind, name, tuple((x, y) for x, y in points.tolist()), fractions)


@dataclass
class Passage:
    """Where an object is with respect to an area.

    Attributes:
        side: 1 inside, or on the side that counts as in; -1 the other one; 0 not known yet.
        center: (x, y) of its box in the last frame. distance: of that, see AreaCounter.distance.
        sign: of the last distance that was not 0. through: whether it last crossed the line between the line's ends.
    """

    center: np.ndarray
    distance: float = 0.0
    side: int = 0
    sign: int = 0
    through: bool = True


class AreaCounter:
    """Counts the objects of one video at one area, by class.

    An object is where the center of its box is. It counts when its center is past the edge by MARGIN of the box, so
    that one that touches the edge or trembles on it does not count. On a line, going from its first to its second end,
    the right-hand side is in; a line from left to right counts objects that go down as in. An object that goes around
    an end of the line, that appears inside a zone, or vanishes in one, does not count. An object counts every time that
    it crosses.

    Attributes:
        counts: objects so far. points: of the area, (k, 2) pixels of the last frame.
    """

    def __init__(self, area: Area):
        self.area, self.points = area, np.zeros((0, 2))
        self.counts: Counts = Counter()
        self.passages: dict[int, Passage] = {}

    def __call__(self, boxes: Tracked, size: tuple[int, int], alive: np.ndarray) -> None:
        """Count in one frame.

        Args:
            size: (height, width) of the frame. alive: the identities that are not forgotten.
        """
        self.points = self.area.pixels(size)
        xyxy = boxes.xyxy.astype(np.float64)
        centers, margins = (xyxy[:, :2] + xyxy[:, 2:]) / 2, MARGIN * (xyxy[:, 2:] - xyxy[:, :2]).min(axis=1)
        rows = zip(boxes.identity.tolist(), boxes.label.tolist(), centers, margins.tolist(), strict=True)
        for identity, label, center, margin in rows:
            passage = self.passages.setdefault(identity, Passage(center))
            if direction := self.move(passage, center, margin):
                self.counts[label, direction] += 1
        known = set(alive.tolist())
        self.passages = {identity: passage for identity, passage in self.passages.items() if identity in known}

    def move(self, passage: Passage, center: np.ndarray, margin: float) -> str:
        """Take an object on to where it is now; returns "in" or "out" if it counts, else ""."""
        distance = self.distance(center)
        sign = int(np.sign(distance))
        if self.area.kind == "line" and sign and sign != passage.sign:
            share = passage.distance / (passage.distance - distance)
            passage.through = self.between_ends(passage.center + share * (center - passage.center))
        passage.center, passage.distance, passage.sign = center, distance, sign or passage.sign
        if abs(distance) <= margin or sign == passage.side:
            return ""
        counts = passage.side != 0 and passage.through
        passage.side = sign
        return ("in" if sign > 0 else "out") if counts else ""

    def distance(self, center: np.ndarray) -> float:
        """Pixels from the line, without its ends, or from the zone's edge; above 0 inside, or on the side of in."""
        if self.area.kind == "zone":
            x, y = center.tolist()
            return float(cv2.pointPolygonTest(self.points.astype(np.float32), (x, y), True))
        (dx, dy), (x, y) = self.points[1] - self.points[0], center - self.points[0]
        return float((dx * y - dy * x) / np.hypot(dx, dy))

    def between_ends(self, point: np.ndarray) -> bool:
        """Whether a point on the line is between its ends."""
        along = self.points[1] - self.points[0]
        return bool(0 <= np.dot(point - self.points[0], along) <= np.dot(along, along))

    def inside(self) -> int:
        """Objects in a zone now, those that are out of sight for a moment too."""
        return sum(passage.side > 0 for passage in self.passages.values())
