"""How many of the detections like a given one have a label, by which a detection without one is judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from utils.boxes import Boxes, Truth, areas

IMAGE_PRIOR = 4.0  # trusted detections by which the mean of all images counts in that of one
RIDGE = 1.0  # pull of each weight towards its prior: the confidence is right, nothing else matters
STEPS = 20  # of Newton's method; a handful is enough
TINY = 1e-4  # keeps logarithms finite


class Image(Protocol):
    """See utils.evaluate.suspects.Compared."""

    @property
    def found(self) -> Boxes: ...
    @property
    def truth(self) -> Truth: ...
    @property
    def trusted(self) -> np.ndarray: ...
    @property
    def best(self) -> np.ndarray: ...
    @property
    def match(self) -> np.ndarray: ...
    @property
    def iou(self) -> np.ndarray: ...
    @property
    def crowded(self) -> np.ndarray: ...


def labeled_shares(images: Sequence[Image]) -> list[np.ndarray]:
    """Of each image (n,): the share of the detections like each that match a label, 0..1, by logistic regression.

    Alike are those with a similar confidence, in images as completely labeled, of a size as usual for their class, that
    overlap other labels as much. An object without a label is suspicious where all others have one, less so in an image
    whose objects were labeled in part, which is a habit.
    """
    counted = [image.best & ~image.crowded for image in images]
    complete = completeness(images, counted)
    usual = usual_sizes(images)
    tables = [features(image, own, usual) for image, own in zip(images, complete, strict=True)]
    offsets = [log_odds(image.found.score) for image in images]
    rows = np.concatenate([table[rows] for table, rows in zip(tables, counted, strict=True)])
    offset = np.concatenate([part[rows] for part, rows in zip(offsets, counted, strict=True)])
    labeled = np.concatenate([(image.match >= 0)[rows] for image, rows in zip(images, counted, strict=True)])
    center, spread = (rows.mean(axis=0), rows.std(axis=0) + 1e-9) if len(rows) else (0.0, 1.0)
    weights = fit((rows - center) / spread, offset, labeled.astype(np.float64))
    return [
        sigmoid(offset + with_ones((table - center) / spread) @ weights)
        for table, offset in zip(tables, offsets, strict=True)
    ]


def completeness(images: Sequence[Image], counted: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Of each image (n,): the share of its other trusted detections that have a label, with a prior of all images."""
    weights = [np.where(rows, image.trusted**2, 0) for image, rows in zip(images, counted, strict=True)]
    labeled = [np.where(image.match >= 0, weight, 0) for image, weight in zip(images, weights, strict=True)]
    total = sum(float(part.sum()) for part in weights)
    mean = sum(float(part.sum()) for part in labeled) / total if total else 1.0
    return [
        (own.sum() - own + IMAGE_PRIOR * mean) / (weight.sum() - weight + IMAGE_PRIOR)
        for own, weight in zip(labeled, weights, strict=True)
    ]


def usual_sizes(images: Sequence[Image]) -> dict[int, float]:
    """Class -> median of its labels' square root of area, pixels."""
    label = np.concatenate([image.truth.label for image in images])
    size = np.sqrt(np.concatenate([areas(image.truth.xyxy) for image in images]))
    return {int(c): max(float(np.median(size[label == c])), 1e-3) for c in np.unique(label)}


def features(image: Image, complete: np.ndarray, usual: Mapping[int, float]) -> np.ndarray:
    """(n, 4) log-odds of the confidence and of completeness, distance from the usual size, IoU with other labels."""
    found = image.found
    size = np.maximum(np.sqrt(areas(found.xyxy)), 1e-3)
    deviation = np.array([abs(np.log(s / usual.get(c, s))) for c, s in zip(found.label.tolist(), size, strict=True)])
    others = image.iou.copy()
    matched = np.flatnonzero(image.match >= 0)
    others[matched, image.match[matched]] = 0
    columns = (log_odds(found.score), log_odds(complete), deviation, others.max(axis=1, initial=0))
    return np.column_stack(columns).reshape(len(found), len(columns))


def fit(rows: np.ndarray, offset: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(k+1,) weights, the constant first, of a logistic regression of `right` (n,) on `rows` (n, k) and `offset`."""
    table = with_ones(rows)
    weights = np.zeros(table.shape[1])
    for _ in range(STEPS):
        p = sigmoid(offset + table @ weights)
        gradient = table.T @ (right - p) - RIDGE * weights
        curvature = (table * (p * (1 - p))[:, None]).T @ table + RIDGE * np.eye(len(weights))
        step = np.linalg.solve(curvature, gradient)
        weights += step
        if np.abs(step).max() < 1e-6:
            break
    return weights


def with_ones(rows: np.ndarray) -> np.ndarray:
    """(n, k+1) the rows with a constant first."""
    return np.column_stack([np.ones(len(rows)), rows])


def log_odds(share: np.ndarray) -> np.ndarray:
    """Log-odds of shares, kept finite."""
    safe = np.clip(share.astype(np.float64), TINY, 1 - TINY)
    odds: np.ndarray = np.log(safe / (1 - safe))
    return odds


def sigmoid(odds: np.ndarray) -> np.ndarray:
    """The inverse of log_odds."""
    share: np.ndarray = 1 / (1 + np.exp(-np.clip(odds, -50, 50)))
    return share
