"""Data sets that several test files train and measure on; each is written once and must not be changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_sets import noise, rectangles, to_boxes, write_set

SHAPES = {"square": (96, 96), "4:3": (96, 128), "16:9": (90, 160), "9:16": (160, 90)}  # height, width


@pytest.fixture(scope="session")
def shapes_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data YAML of eight images of four shapes, each with a red and a blue rectangle."""
    sizes = [*SHAPES.values()] * 2
    boxes = [
        to_boxes(*([c, int((x - 0.15) * w), h // 4, int((x + 0.15) * w), 3 * h // 4] for c, x in ((0, 0.3), (1, 0.7))))
        for h, w in sizes
    ]
    images = [rectangles(size, own, ((255, 0, 0), (0, 0, 255)), 90) for size, own in zip(sizes, boxes, strict=True)]
    return write_set(tmp_path_factory.mktemp("shapes"), images, boxes, ["red", "blue"], split="all")


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data YAML of eleven dark noise images of 64 x 64 pixels with up to two rectangles, of two classes."""
    rng = np.random.default_rng(0)
    images, boxes = [], []
    for i in range(11):
        corners = rng.integers(5, 30, (int(rng.integers(0, 3)), 2)).tolist()
        boxes.append(to_boxes(*([label, x, y, x + 25, y + 20] for label, (x, y) in enumerate(corners))))
        image = noise((64, 64), seed=i, high=90)
        drawn = rectangles((64, 64), boxes[i], ((255, 255, 0), (255, 0, 255)), gray=0)
        images.append(np.where(drawn.any(axis=2, keepdims=True), drawn, image))
    return write_set(tmp_path_factory.mktemp("small"), images, boxes, ["a", "b"], split="all")
