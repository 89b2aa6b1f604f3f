"""Training augmentations as pure functions, which are random only through `rng`.

An image is (H, W, 3) uint8 RGB; its boxes are in its pixels, float64, and may be none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from utils.boxes import Boxes, areas
from utils.data.views import Canvas, clip_and_drop, random_view
from utils.hyp import Hyp
from utils.images import Size

MAX_COVER = 0.3  # fraction of any other box that a pasted box may hide
WHOLE = 0.25  # share of the large images that are trained whole, with tiles: detection sees the whole image, too
NEAR = 0.5  # share of the tiles that hold the center of a box which is drawn at random; the others lie anywhere
HUES = 180  # of OpenCV's 8-bit HSV images
STEPS = 1024  # factors of hue, saturation and value come in parts of 1 / STEPS
STRIP = 64  # rows


def mosaic(
    images: Sequence[np.ndarray], boxes: Sequence[Boxes], imgsz: int, rng: np.random.Generator
) -> tuple[np.ndarray, Boxes]:
    """Four images around a random center of a gray canvas of twice `imgsz`, cropped at its edges.

    Args:
        images: four, no side longer than `imgsz`: upper left, upper right, lower left, lower right.
        boxes: of each image, in its pixels.

    Returns:
        The (2 * imgsz, 2 * imgsz, 3) canvas, and the boxes in its pixels.
    """
    center = mosaic_center(imgsz, rng)
    corners = [tile_corner(k, (image.shape[0], image.shape[1]), center) for k, image in enumerate(images)]
    canvas = Canvas((2 * imgsz, 2 * imgsz), images, corners)
    return canvas.paint(), on_canvas(canvas.size, boxes, corners)


def mosaic_center(imgsz: int, rng: np.random.Generator) -> tuple[int, int]:
    """x, y of the point where the four images of a mosaic meet, in pixels of its canvas of twice `imgsz`."""
    x, y = (int(v) for v in rng.uniform(0.5 * imgsz, 1.5 * imgsz, size=2))
    return x, y


def tile_corner(tile: int, size: Size, center: tuple[int, int]) -> tuple[int, int]:
    """left, top of the image of `size` (height, width) that is number `tile` of a mosaic, see mosaic."""
    bottom, right = divmod(tile, 2)
    return center[0] - (0 if right else size[1]), center[1] - (0 if bottom else size[0])


def on_canvas(size: Size, boxes: Sequence[Boxes], corners: Sequence[tuple[int, int]]) -> Boxes:
    """The boxes of images with these corners (left, top) in pixels of their canvas of `size`, clipped to it."""
    moved = [own.at(own.xyxy + np.array([x, y, x, y], np.float64)) for own, (x, y) in zip(boxes, corners, strict=True)]
    merged = Boxes.join([Boxes.labeled(np.zeros((0, 4)), np.zeros(0, np.int64)), *moved])
    return clip_and_drop(merged, size, areas(merged.xyxy))


def random_affine(
    image: np.ndarray, boxes: Boxes, out_size: Size, hyp: Hyp, rng: np.random.Generator
) -> tuple[np.ndarray, Boxes]:
    """Random perspective, rotation, zoom, shear and translation about the image's center; see views.random_view.

    Args:
        out_size: (height, width) of the result.

    Returns:
        The moved image, and the boxes around the moved boxes in its pixels, clipped; see View.of.
    """
    size = (image.shape[0], image.shape[1])
    return random_view(size, out_size, hyp, rng).of(Canvas(size, [image], [(0, 0)]), boxes)


def random_tile(image: np.ndarray, boxes: Boxes, side: int, rng: np.random.Generator) -> tuple[np.ndarray, Boxes]:
    """A random part of an image, at most `side` high and wide, and its boxes; or, by chance WHOLE, the whole image.

    Boxes are clipped: one that the edge cuts ends there, by which detection recognizes that it was cut (utils.tiles).
    Those of which too little is left are dropped, see MIN_AREA.
    """
    if rng.random() < WHOLE:
        return image, boxes
    room = np.maximum(np.array(image.shape[1::-1]) - side, 0)  # x, y
    low, high = np.zeros(2), room.astype(float)
    if len(boxes) and rng.random() < NEAR:
        box = boxes.xyxy[rng.integers(len(boxes))]
        center = (box[:2] + box[2:]) / 2
        low, high = np.clip(center - side, 0, room), np.clip(center, 0, room)
    left, top = np.clip(rng.uniform(low, high).round(), 0, room).astype(int).tolist()
    part = image[top : top + side, left : left + side]
    moved = boxes.at(boxes.xyxy - np.array([left, top, left, top], dtype=np.float64))
    return part, clip_and_drop(moved, (part.shape[0], part.shape[1]), areas(boxes.xyxy))


def mixup(
    image: np.ndarray, boxes: Boxes, other: np.ndarray, other_boxes: Boxes, rng: np.random.Generator
) -> tuple[np.ndarray, Boxes]:
    """The weighted mean of two images of one size, about half of each, with the boxes of both."""
    weight = float(rng.beta(32.0, 32.0))
    return cv2.addWeighted(image, weight, other, 1.0 - weight, 0.0), Boxes.join([boxes, other_boxes])


def copy_paste(
    image: np.ndarray, boxes: Boxes, probability: float, rng: np.random.Generator
) -> tuple[np.ndarray, Boxes]:
    """The image with mirrored copies of boxes, each chosen with `probability`, pasted at their mirrored places.

    The mirror is the image's vertical axis. A copy that would hide MAX_COVER or more of any box, earlier copies
    included, is left out.
    """
    result, pasted, width = image.copy(), boxes, image.shape[1]
    for i in np.flatnonzero(rng.random(len(boxes)) < probability):
        x1, y1, x2, y2 = boxes.xyxy[i]
        mirrored = np.array([width - x2, y1, width - x1, y2])
        low, high = np.maximum(mirrored[:2], pasted.xyxy[:, :2]), np.minimum(mirrored[2:], pasted.xyxy[:, 2:])
        hidden = np.prod(np.clip(high - low, 0, None), axis=1)
        if (hidden >= MAX_COVER * areas(pasted.xyxy)).any():
            continue
        left, top = max(math.floor(x1), 0), max(math.floor(y1), 0)
        right, bottom = min(math.ceil(x2), width), min(math.ceil(y2), image.shape[0])
        result[top:bottom, width - right : width - left] = image[top:bottom, left:right][:, ::-1]
        pasted = Boxes.join([pasted, Boxes.labeled(mirrored[None], boxes.label[[i]])])
    return result, pasted


def hsv_factors(gains: tuple[float, float, float], rng: np.random.Generator) -> np.ndarray | None:
    """(3,) random factors of hue, saturation and value in 1 +/- `gains`, in steps of 1 / STEPS; None if all are 1."""
    if not any(gains):
        return None
    factors: np.ndarray = np.round((1 + rng.uniform(-1, 1, size=3) * np.array(gains)) * STEPS) / STEPS
    return factors


def recolored(image: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """A new image with hue, saturation and value multiplied by `factors`, see hsv_factors, and rounded down."""
    shifted = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    if factors[0] * HUES < 256:  # OpenCV turns hues of HUES and more round
        # A quarter of the time of a table, and the same: OpenCV multiplies in whole parts of 1 / STEPS.
        h, s, v = factors
        cv2.transform(shifted, np.array([[h, 0, 0, -0.5], [0, s, 0, -0.5], [0, 0, v, -0.5]]), dst=shifted)
    else:
        ramp = np.arange(256) * factors[:, None]
        table = np.stack([ramp[0] % HUES, ramp[1].clip(0, 255), ramp[2].clip(0, 255)], axis=-1).astype(np.uint8)
        cv2.LUT(shifted, table[None], dst=shifted)
    return cv2.cvtColor(shifted, cv2.COLOR_HSV2RGB, dst=shifted)


def mirrored(boxes: Boxes, size: Size, axis: int) -> Boxes:
    """The boxes of the mirror image of one of `size` (height, width); `axis` as in finished."""
    low, high = (0, 2) if axis == 1 else (1, 3)
    xyxy = boxes.xyxy.copy()
    xyxy[:, [low, high]] = size[axis] - boxes.xyxy[:, [high, low]]
    return boxes.at(xyxy)


def finished(image: np.ndarray, factors: np.ndarray | None = None, axes: Sequence[int] = ()) -> Tensor:
    """(3, H, W) uint8: the image, `recolored` unless `factors` is None, mirrored along `axes`.

    It goes through all steps in strips, which stay in the processor's cache.

    Args:
        axes: 0 swaps top and bottom, 1 swaps left and right.
    """
    height, width = image.shape[:2]
    out = torch.empty((3, height, width), dtype=torch.uint8)
    planes = out.numpy()
    for top in range(0, height, STRIP):
        strip = image[top : top + STRIP]
        if factors is not None:
            strip = recolored(strip, factors)
        for axis in axes:
            strip = cv2.flip(strip, axis)
        start = height - top - len(strip) if 0 in axes else top
        cv2.split(strip, list(planes[:, start : start + len(strip)]))  # written in place
    return out
