"""A stand-in for a trained model: it finds white rectangles on a dark picture, whatever its size and place."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from utils.images import imwrite


class BlobBackend:
    """One box for each white area, class 0 for wide and 1 for high ones; at most `limit` pixels in the input."""

    names, nc, stride, grid = {0: "wide", 1: "high"}, 2, 32, 32

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
    """(h, w, 3) uint8: white rectangles x1, y1, x2, y2 on dark grey."""
    image = np.full((*size, 3), 30, np.uint8)
    for x1, y1, x2, y2 in np.asarray(boxes, dtype=int):
        image[y1:y2, x1:x2] = 255
    return image


def make_set(root: Path, count=6) -> dict[str, np.ndarray]:
    """Pictures of one or two rectangles in root/images, labels, and data.yaml; corner pixels by file name."""
    rng = np.random.default_rng(3)
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    truth = {}
    for i in range(count):
        h, w = (96, 128) if i % 2 else (120, 90)
        boxes = np.array([[8, 10, 8 + rng.integers(20, 30), 40], [50, 50, 70, 50 + rng.integers(24, 36)]])[: 1 + i % 2]
        imwrite(root / "images" / f"{i:06}.png", draw((h, w), boxes))
        lines = []
        for x1, y1, x2, y2 in boxes:
            label = int(x2 - x1 < y2 - y1)
            lines.append(f"{label} {(x1 + x2) / 2 / w} {(y1 + y2) / 2 / h} {(x2 - x1) / w} {(y2 - y1) / h}")
        (root / "labels" / f"{i:06}.txt").write_text("\n".join(lines))
        truth[f"{i:06}.png"] = boxes
    (root / "data.yaml").write_text("train: images\nval: images\nnames: [wide, high]\n")
    return truth
