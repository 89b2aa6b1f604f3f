"""Small data sets for tests: images of rectangles or noise, label files and a data YAML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from utils.boxes import Boxes, xyxy2xywhn
from utils.images import imwrite

WHITE = (255, 255, 255)


def to_boxes(*rows: Sequence[float]) -> Boxes:
    """Ground-truth boxes from rows of class, x1, y1, x2, y2; there may be none."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    return Boxes.labeled(table[:, 1:], table[:, 0].astype(np.int64))


def rectangles(
    size: tuple[int, int], boxes: Boxes, colors: Sequence[Sequence[int]] = (WHITE,), gray: int = 30
) -> np.ndarray:
    """(height, width, 3) uint8 RGB: filled boxes of whole pixels, class c in colors[c] or the last one, on gray."""
    image = np.full((*size, 3), gray, np.uint8)
    for (x1, y1, x2, y2), label in zip(boxes.xyxy.astype(int), boxes.label, strict=True):
        image[y1:y2, x1:x2] = colors[min(label, len(colors) - 1)]
    return image


def noise(size: tuple[int, int], seed: int, high: int = 256) -> np.ndarray:
    """(height, width, 3) uint8 RGB noise below `high`, the same for the same seed."""
    return np.random.default_rng(seed).integers(0, high, (*size, 3), dtype=np.uint8)


def write_set(
    root: Path,
    images: Sequence[np.ndarray],
    boxes: Sequence[Boxes],
    names: Sequence[str],
    split: str = "",
    suffix: str = ".png",
) -> Path:
    """Write a data set of which all images are in the train and the val split; returns its data YAML.

    Images are images/<split>/000000.png and so on; labels/<split> has a file for each one with boxes.

    Args:
        boxes: of each image, in its pixels.
    """
    for kind in ("images", "labels"):
        (root / kind / split).mkdir(parents=True)
    for i, (image, own) in enumerate(zip(images, boxes, strict=True)):
        imwrite(root / "images" / split / f"{i:06}{suffix}", image)
        if len(own):
            rows = np.column_stack([own.label, xyxy2xywhn(own.xyxy, image.shape[:2])])
            text = "".join(f"{int(row[0])} {' '.join(map(str, row[1:].tolist()))}\n" for row in rows)
            (root / "labels" / split / f"{i:06}.txt").write_text(text)
    folder = f"images/{split}" if split else "images"
    content = {"path": ".", "train": folder, "val": folder, "names": list(names)}
    (root / "data.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return root / "data.yaml"
