"""A stand-in for a trained model: it finds white rectangles in a dark image, whatever their size and place."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from data_sets import rectangles, to_boxes, write_set

from utils.backend import ModelLimits


class BlobBackend:
    """One box for each white area, class 0 for wide and 1 for high ones; at most `limit` pixels in the input."""

    names, nc, stride, grid, letterbox = {0: "wide", 1: "high"}, 2, 32, 32, "center"
    limits = ModelLimits()

    def __init__(self, least=3.0, limit=10_000):
        self.least, self.limit, self.seen = least, limit, []

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(images.shape))
        out = torch.zeros(len(images), 40, 7)
        for rows, image in zip(out, images, strict=True):
            mask = (image.mean(dim=0) > 0.75).numpy().astype(np.uint8)
            _, _, stats, _ = cv2.connectedComponentsWithStats(mask)
            boxes = [s for s in stats[1:].tolist() if self.least <= min(s[2:4]) and max(s[2:4]) <= self.limit]
            for row, (x, y, w, h, _) in zip(rows, boxes, strict=False):
                row[:] = torch.tensor([x + w / 2, y + h / 2, w, h, 1, 0.9 * (w >= h), 0.9 * (w < h)])
        return out


def draw(size, boxes) -> np.ndarray:
    """(h, w, 3) uint8: white rectangles x1, y1, x2, y2 on dark gray."""
    return rectangles(size, to_boxes(*([0, *box] for box in boxes)))


def make_set(root: Path, count=6) -> Path:
    """A data set of images with one or two white rectangles in `root`; returns its data YAML."""
    rng, boxes = np.random.default_rng(3), []
    for i in range(count):
        corners = [[8, 10, 8 + rng.integers(20, 30), 40], [50, 50, 70, 50 + rng.integers(24, 36)]][: 1 + i % 2]
        boxes.append(to_boxes(*([int(x2 - x1 < y2 - y1), x1, y1, x2, y2] for x1, y1, x2, y2 in corners)))
    images = [rectangles((96, 128) if i % 2 else (120, 90), own) for i, own in enumerate(boxes)]
    return write_set(root, images, boxes, ["wide", "high"])
