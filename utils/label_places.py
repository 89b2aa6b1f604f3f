"""Places of labels: each at its box, all inside the image, none over another."""

from __future__ import annotations

import numpy as np

# Cost of a place; a place that covers all of another box costs 1 more, half of it 0.5 more.
ABOVE, BELOW, INSIDE, BESIDE, SLIDE, AWAY = 0.0, 0.15, 0.2, 0.25, 0.1, 0.6
STOPS = np.array([0.0, 1.0, 0.25, 0.5, 0.75])  # along a side of the box, as a fraction of the way
RINGS = 4  # label heights that a label may be away from its box


def place_labels(boxes: np.ndarray, sizes: np.ndarray, frame: tuple[int, int]) -> np.ndarray:
    """(n, 2) int left and top of each label; (-1, -1) where there is no room for it.

    In order, each label gets the cheapest free place: above its box, below it, in it, beside it, or a little away. So
    the first ones get the best places and the last ones none if it is too crowded.

    Args:
        boxes: (n, 4) xyxy pixels, inside the image. sizes: (n, 2) width and height of the labels, whole pixels.
        frame: height and width of the image.
    """
    places = np.full((len(boxes), 2), -1)
    used, count = np.zeros((len(boxes), 4)), 0
    areas = np.maximum(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), 1)
    for i, (box, (width, height)) in enumerate(zip(boxes, sizes, strict=True)):
        if width > frame[1] or height > frame[0]:
            continue
        corners, cost = candidates(box, width, height, frame)
        rects = np.concatenate([corners, corners + (width, height)], axis=1)
        free = ~(overlap(rects, used[:count]) > 0).any(axis=1)
        if not free.any():
            continue
        rects, cost = rects[free], cost[free]
        share = overlap(rects, boxes) / areas
        share[:, i] = 0
        best = int((cost + share.max(axis=1, initial=0)).argmin())
        places[i], used[count] = rects[best, :2], rects[best]
        count += 1
    return places


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, m) area in pixels that boxes `a` (n, 4) and `b` (m, 4), xyxy, have in common."""
    wide = np.minimum(a[:, None, 2], b[None, :, 2]) - np.maximum(a[:, None, 0], b[None, :, 0])
    high = np.minimum(a[:, None, 3], b[None, :, 3]) - np.maximum(a[:, None, 1], b[None, :, 1])
    return np.maximum(wide, 0) * np.maximum(high, 0)


def candidates(box: np.ndarray, width: int, height: int, frame: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(k, 2) int left and top of the places of a label of `width` x `height` pixels, and (k,) their costs."""
    x1, y1, x2, y2 = box
    along, slide = STOPS * (x2 - x1 - width), SLIDE * (STOPS > 0)
    rows = [(x1 + along, np.full(5, y), cost + slide) for y, cost in ((y1 - height, ABOVE), (y2, BELOW))]
    rows += [(x1 + along, np.full(5, y), INSIDE + cost + slide) for y, cost in ((y1, 0), (y2 - height, SLIDE))]
    down = y1 + STOPS * (y2 - y1 - height)
    rows += [(np.full(5, x), down, BESIDE + slide) for x in (x2, x1 - width)]
    for ring in range(1, RINGS + 1):
        cost, step = np.full(5, AWAY * ring) + slide, ring * height
        rows += [(x1 + along, np.full(5, y), cost) for y in (y1 - height - step, y2 + step)]
        rows += [(np.full(5, x), down, cost) for x in (x2 + step, x1 - width - step)]
    x, y, cost = (np.concatenate(column) for column in zip(*rows, strict=True))
    corners = np.stack([x, y], axis=1).round().clip(0, [frame[1] - width, frame[0] - height])
    return corners.astype(int), cost
