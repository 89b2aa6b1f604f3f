"""Lines, zones and their counts, drawn on frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.fonts import DEJAVU
from utils.track.counting import AreaCounter, Counts

BRIGHT, DARK = (255, 220, 0), (24, 24, 24)  # RGB of areas, and of their edges
SHOWN = 8  # classes of an area


def draw_areas(image: np.ndarray, counters: Sequence[AreaCounter], names: Mapping[int, str]) -> np.ndarray:
    """A copy of `image` (H, W, 3) uint8 RGB with the areas, and their counts by class in the upper left corner.

    An arrow at the middle of a line points to the side that counts as in.
    """
    width = max(round(max(image.shape[:2]) / 320), 2)
    drawn = image.copy()
    for counter in counters:
        corners = counter.points.round().astype(np.int32)
        for color, line in ((DARK, width + 2), (BRIGHT, width)):
            cv2.polylines(drawn, [corners], counter.area.kind == "zone", color, line, cv2.LINE_AA)
            if counter.area.kind == "line":
                start, end = arrow(counter.points, 12 * width)
                cv2.arrowedLine(drawn, start, end, color, line, cv2.LINE_AA, tipLength=0.4)
    return draw_text(drawn, [count_text(counter, names) for counter in counters])


def arrow(points: np.ndarray, length: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Both ends, in whole pixels, of an arrow from the middle of a line to its right-hand side."""
    middle, (dx, dy) = points.mean(axis=0), points[1] - points[0]
    (x1, y1), (x2, y2) = middle, middle + length * np.array([-dy, dx]) / np.hypot(dx, dy)
    return (round(x1), round(y1)), (round(x2), round(y2))


def count_text(counter: AreaCounter, names: Mapping[int, str]) -> str:
    """'line 1: car 3 in 1 out, truck 0 in 1 out', for a zone also how many are inside."""
    text = f"{counter.area.name}: {class_counts(counter.counts, names)}"
    return text if counter.area.kind == "line" else f"{text}; inside {counter.inside()}"


def class_counts(counts: Counts, names: Mapping[int, str]) -> str:
    """'car 3 in 1 out, truck 0 in 1 out', in the order of class indices; of none '0 in 0 out'."""
    labels = sorted({label for label, _ in counts})
    texts = [f"{names.get(k, str(k))} {counts[k, 'in']} in {counts[k, 'out']} out" for k in labels[:SHOWN]]
    return ", ".join([*texts, "..."] if labels[SHOWN:] else texts) or "0 in 0 out"


@lru_cache(maxsize=8)
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib."""
    return ImageFont.truetype(DEJAVU, size)


def draw_text(image: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """A copy of `image` with lines of text on a dark patch in its upper left corner, smaller where they are long."""
    h, w = image.shape[:2]
    size = max(round(max(h, w) / 45), 12)
    longest = max(font(size).getlength(line) for line in lines)
    size = max(min(size, int(size * (w - size) / max(longest, 1))), 8)
    high = round(1.3 * size)
    wide = round(max(font(size).getlength(line) for line in lines)) + size
    drawn = Image.fromarray(image)
    draw = ImageDraw.Draw(drawn)
    draw.rectangle((0, 0, wide, high * len(lines) + size // 2), fill=DARK)
    for number, line in enumerate(lines):
        draw.text((size // 2, number * high + size // 4), line, fill=BRIGHT, font=font(size))
    return np.array(drawn)
