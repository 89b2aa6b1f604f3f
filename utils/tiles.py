"""Tiles: the overlapping squares that a large image is cut into, and the boxes that were found in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from utils.boxes import Boxes
from utils.nms import NmsSettings
from utils.torchvision_ops import batched_nms

OVERLAP = 0.25  # of neighboring tiles, fraction of their side
EDGE = 2.0  # pixels; a box this close to an inner edge of a tile counts as cut by it


def is_cut(size: tuple[int, ...], side: int) -> bool:
    """Whether an image of `size` (height, width) is cut into tiles of this side, pixels; 0: no image is."""
    return side > 0 and max(size) > side


def tiles(size: tuple[int, int], side: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of square tiles that cover an image of `size` (height, width) and overlap by OVERLAP or more.

    An image smaller than a tile gives one, as large as the image.
    """
    starts = []
    for length in size:
        count = max(-(-(length - side) // max(round(side * (1 - OVERLAP)), 1)), 0) + 1
        starts.append(np.linspace(0, max(length - side, 0), count).round().astype(int).tolist())
    for top in starts[0]:
        for left in starts[1]:
            yield slice(top, top + side), slice(left, left + side)


def uncut(boxes: Boxes, rows: slice, columns: slice, size: tuple[int, int]) -> Boxes:
    """The boxes of a tile in pixels of the image of `size` (height, width), without those cut by the tile.

    Args:
        boxes: in pixels of the tile. rows, columns: of the image, where the tile lies.
    """
    edges = np.array([columns.start, rows.start, columns.stop, rows.stop])
    moved = boxes.at(boxes.xyxy + edges[[0, 1, 0, 1]].astype(boxes.xyxy.dtype))
    inner = np.array([columns.start > 0, rows.start > 0, columns.stop < size[1], rows.stop < size[0]])
    cut = (np.abs(moved.xyxy - edges) < EDGE) & inner
    return moved[~cut.any(axis=1)]


def merge(parts: Sequence[Boxes], nms: NmsSettings) -> Boxes:
    """The detections of a whole image and of its tiles, all in pixels of the image, merged by NMS, best first."""
    merged = Boxes.join(parts)
    label = torch.from_numpy(merged.label)
    group = torch.zeros_like(label) if nms.agnostic else label
    score, xyxy = torch.from_numpy(merged.score), torch.from_numpy(merged.xyxy)
    return merged[batched_nms(xyxy, score, group, nms.iou_thres)[: nms.max_det].numpy()]
