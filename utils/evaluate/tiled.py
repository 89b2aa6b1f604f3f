"""Detections of tiles for a validation: what val.py adds to those of the whole image with --tile."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from utils.boxes import Boxes
from utils.data.loader import Batch
from utils.images import Size, fit_canvas, imread, letterbox
from utils.nms import NmsSettings
from utils.tiles import is_cut, merge, tiles, uncut

LOGGER = logging.getLogger(__name__)
BATCH = 8  # tiles per forward pass


@dataclass(frozen=True)
class TileDetector:
    """Adds the detections of tiles to those of whole images, as detect.py does.

    Args:
        detect: uint8 (B, 3, H, W) -> final boxes of each image, in pixels of the input.
        side: of a tile, pixels. size: (height, width) that the input fits in. grid: its sides are multiples of this.
        rect: the input has the tile's shape, else it is `size`. position: of a tile on its canvas.
    """

    detect: Callable[[Tensor], list[Boxes]]
    nms: NmsSettings
    side: int
    size: Size
    grid: int
    rect: bool
    position: str

    def add(self, batch: Batch, found: Sequence[Boxes]) -> list[Boxes]:
        """The detections of a batch's images, whole (`found`) and in tiles, merged; all in canvas pixels.

        An image that cannot be read again keeps those of the whole image, with a warning.
        """
        merged = []
        for path, placed, whole in zip(batch.paths, batch.letterboxes, found, strict=True):
            if placed is None:
                raise ValueError("the data set augments its images; expected one without hyp")
            if not is_cut(placed.image, self.side):
                merged.append(whole)
                continue
            try:
                image = imread(path)
                if image.shape[:2] != placed.image:
                    raise ValueError(f"{image.shape[:2]} pixels, but {placed.image} when it was scanned")
            except (OSError, ValueError) as error:
                reason = str(error).removeprefix(f"{path}: ")
                LOGGER.warning(f"{path}: no tiles, it has changed since the scan: {reason}")
                merged.append(whole)
                continue
            boxes = merge([visible(whole.at(placed.to_image(whole.xyxy))), *self.in_tiles(image)], self.nms)
            merged.append(boxes.at(placed.to_canvas(boxes.xyxy)))
        return merged

    def in_tiles(self, image: np.ndarray) -> list[Boxes]:
        """The uncut boxes of each tile of an image (H, W, 3), in pixels of the image."""
        height, width = image.shape[:2]
        places, found = list(tiles((height, width), self.side)), list[Boxes]()
        for start in range(0, len(places), BATCH):
            crops = [image[rows, columns] for rows, columns in places[start : start + BATCH]]
            shape = crops[0].shape[0], crops[0].shape[1]  # all tiles of an image have it
            canvas = fit_canvas(shape, self.size, self.grid) if self.rect else self.size
            padded, on_canvas = zip(*(letterbox(crop, canvas, position=self.position) for crop in crops), strict=True)
            pixels = torch.from_numpy(np.ascontiguousarray(np.stack(padded).transpose(0, 3, 1, 2)))
            for boxes, place in zip(self.detect(pixels), on_canvas, strict=True):
                found.append(visible(boxes.at(place.to_image(boxes.xyxy))))
        return [uncut(boxes, *place, (height, width)) for boxes, place in zip(found, places, strict=True)]


def visible(boxes: Boxes) -> Boxes:
    """The boxes with an area: those inside the border of a letterbox have none in the image."""
    return boxes[np.all(boxes.xyxy[:, 2:] > boxes.xyxy[:, :2], axis=1)]
