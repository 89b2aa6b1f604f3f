"""Training augmentations as pure functions, which are random only through `rng`.

An image is (H, W, 3) uint8 RGB; its boxes are in its pixels, float64, and may be none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from utils.boxes import Boxes, areas, clip_xyxy
from utils.hyp import Hyp
from utils.images import PAD

MIN_SIDE = 2.0  # pixels; smaller boxes are dropped
MIN_AREA = 0.1  # fraction of its area; boxes of which less is left in the image are dropped
MAX_ASPECT = 100.0  # ratio of long to short side; boxes with a larger one are dropped
MAX_COVER = 0.3  # fraction of any other box that a pasted box may hide
WHOLE = 0.25  # share of the large images that are trained whole, with tiles: detection sees the whole image, too
NEAR = 0.5  # share of the tiles that hold the center of a box which is drawn at random; the others lie anywhere
MIN_DEPTH = 1e-3  # homogeneous w below which a corner is behind the camera


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
    side = 2 * imgsz
    canvas = np.full((side, side, 3), PAD, dtype=np.uint8)
    cx, cy = (int(v) for v in rng.uniform(0.5 * imgsz, 1.5 * imgsz, size=2))
    placed = []
    for tile, (image, tile_boxes) in enumerate(zip(images, boxes, strict=True)):
        bottom, right = divmod(tile, 2)
        h, w = image.shape[:2]
        x, y = cx - (0 if right else w), cy - (0 if bottom else h)
        cut_x, cut_y = max(-x, 0), max(-y, 0)
        crop = image[cut_y : side - y, cut_x : side - x]
        canvas[y + cut_y : y + cut_y + crop.shape[0], x + cut_x : x + cut_x + crop.shape[1]] = crop
        placed.append(tile_boxes.at(tile_boxes.xyxy + np.array([x, y, x, y], dtype=np.float64)))
    merged = Boxes.join(placed)
    return canvas, _clip_and_drop(merged, (side, side), areas(merged.xyxy))


def random_affine(
    image: np.ndarray, boxes: Boxes, out_size: tuple[int, int], hyp: Hyp, rng: np.random.Generator
) -> tuple[np.ndarray, Boxes]:
    """Random perspective, rotation, zoom, shear and translation about the image's center, in one warp.

    Args:
        out_size: (height, width) of the result.

    Returns:
        The warped image, and the boxes around the warped boxes in its pixels, clipped. Boxes of which too little is
        left are dropped, see MIN_AREA.
    """
    matrix, zoom = _random_matrix(image.shape[:2], out_size, hyp, rng)
    # The origin of box coordinates is the corner of the first pixel; that of OpenCV's warps is its center.
    pixels = _shift(-0.5, -0.5) @ matrix @ _shift(0.5, 0.5)
    gray, size = (PAD, PAD, PAD), out_size[::-1]
    if hyp.perspective:
        warped = cv2.warpPerspective(image, pixels, size, borderMode=cv2.BORDER_CONSTANT, borderValue=gray)
    else:
        warped = cv2.warpAffine(image, pixels[:2], size, borderMode=cv2.BORDER_CONSTANT, borderValue=gray)
    moved, visible = _warp(boxes.xyxy, matrix)
    full_area = areas(boxes.xyxy) * zoom**2
    return warped, _clip_and_drop(boxes.at(moved)[visible], out_size, full_area[visible])


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
    return part, _clip_and_drop(moved, (part.shape[0], part.shape[1]), areas(boxes.xyxy))


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


def hsv(image: np.ndarray, gains: tuple[float, float, float], rng: np.random.Generator) -> np.ndarray:
    """The image with hue, saturation and value multiplied by random factors in 1 +/- `gains`."""
    if not any(gains):
        return image
    factors = 1 + rng.uniform(-1, 1, size=3) * np.array(gains)
    ramp = np.arange(256) * factors[:, None]
    table = np.stack([ramp[0] % 180, ramp[1].clip(0, 255), ramp[2].clip(0, 255)], axis=-1).astype(np.uint8)
    shifted = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), table[None])
    return cv2.cvtColor(shifted, cv2.COLOR_HSV2RGB)


def flip(image: np.ndarray, boxes: Boxes, axis: int) -> tuple[np.ndarray, Boxes]:
    """The mirror image: `axis` 0 swaps top and bottom, 1 swaps left and right."""
    low, high = (0, 2) if axis == 1 else (1, 3)
    mirrored = boxes.xyxy.copy()
    mirrored[:, [low, high]] = image.shape[axis] - boxes.xyxy[:, [high, low]]
    return np.flip(image, axis), boxes.at(mirrored)


def _shift(x: float, y: float) -> np.ndarray:
    """The 3x3 matrix of a translation by x, y pixels."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def _random_matrix(
    size: tuple[int, ...], out_size: tuple[int, int], hyp: Hyp, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """A random 3x3 matrix that maps an image of `size` (height, width) to one of `out_size`, and its zoom factor."""
    perspective = np.eye(3)
    perspective[2, :2] = rng.uniform(-1, 1, size=2) * hyp.perspective
    angle = math.radians(rng.uniform(-1, 1) * hyp.degrees)
    zoom = 1 + rng.uniform(-1, 1) * hyp.scale
    shear_x, shear_y = np.tan(np.radians(rng.uniform(-1, 1, size=2) * hyp.shear))
    move_x, move_y = 0.5 + rng.uniform(-1, 1, size=2) * hyp.translate
    cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
    rotation = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
    shear = np.array([[1.0, shear_x, 0.0], [shear_y, 1.0, 0.0], [0.0, 0.0, 1.0]])
    center = _shift(-size[1] / 2, -size[0] / 2)
    return _shift(move_x * out_size[1], move_y * out_size[0]) @ shear @ rotation @ perspective @ center, zoom


def _warp(xyxy: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, 4) boxes around the corners that a 3x3 `matrix` maps, and (n,) whether all of them are before the camera."""
    corners = np.ones((len(xyxy), 4, 3))
    corners[..., :2] = xyxy[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]
    moved = corners @ matrix.T
    depth = moved[..., 2:]
    points = moved[..., :2] / np.maximum(depth, MIN_DEPTH)
    return np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1), (depth[..., 0] > MIN_DEPTH).all(axis=1)


def _clip_and_drop(boxes: Boxes, size: tuple[int, int], full_area: np.ndarray) -> Boxes:
    """Boxes clipped to an image of `size` (height, width), without those of which too little is left.

    Args:
        full_area: (n,) square pixels of the boxes before clipping.
    """
    clipped = clip_xyxy(boxes.xyxy, size)
    sides = clipped[:, 2:] - clipped[:, :2]
    short, long = sides.min(axis=1), sides.max(axis=1)
    keep = (short >= MIN_SIDE) & (long <= MAX_ASPECT * short) & (areas(clipped) >= MIN_AREA * full_area)
    return boxes.at(clipped)[keep]
