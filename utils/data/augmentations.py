"""Training augmentations as pure functions: nothing is changed in place, all chance comes from the `rng` handed in.

An image is (H, W, 3) uint8 RGB; boxes are (n, 5) float: class, x1, y1, x2, y2 in pixels of that image, n may be 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from utils.boxes import clip_xyxy
from utils.config import Hyp
from utils.images import PAD

MIN_SIDE = 2.0  # px; smaller leftovers of a box are dropped
MIN_AREA = 0.1  # so are boxes that lost more than 90 % of their area
MAX_ASPECT = 100.0  # and slivers
MAX_COVER = 0.3  # a pasted box hides less than this part of every other one
MIN_DEPTH = 1e-3  # homogeneous w below which a corner is behind the camera


def mosaic(
    images: Sequence[np.ndarray], boxes: Sequence[np.ndarray], imgsz: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Four images around a random centre of a grey canvas of twice `imgsz`; what reaches past its edge is cut off.

    Args:
        images: four, no side longer than `imgsz`; in reading order, each touches the centre with one corner.
        boxes: those of each image, in its pixels.

    Returns:
        the (2 * imgsz, 2 * imgsz, 3) canvas and the (n, 5) boxes in its pixels.
    """
    side = 2 * imgsz
    canvas = np.full((side, side, 3), PAD, dtype=np.uint8)
    cx, cy = (int(v) for v in rng.uniform(0.5 * imgsz, 1.5 * imgsz, size=2))
    placed = []
    for tile, (image, own) in enumerate(zip(images, boxes, strict=True)):
        bottom, right = divmod(tile, 2)
        h, w = image.shape[:2]
        x, y = cx - (0 if right else w), cy - (0 if bottom else h)
        cut_x, cut_y = max(-x, 0), max(-y, 0)
        seen = image[cut_y : side - y, cut_x : side - x]
        canvas[y + cut_y : y + cut_y + seen.shape[0], x + cut_x : x + cut_x + seen.shape[1]] = seen
        placed.append(own + np.array([0, x, y, x, y], dtype=np.float64))
    return canvas, _clip_and_drop(np.concatenate(placed), (side, side))


def random_affine(
    image: np.ndarray, boxes: np.ndarray, out_size: tuple[int, int], hyp: Hyp, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Random perspective, rotation, zoom, shear and shift, in one warp about the image's centre.

    Args:
        out_size: (height, width) of the result; its centre is where the image's centre lands before the shift.

    Returns:
        the warped image, and the axis-parallel hulls of the warped boxes in its pixels, clipped; see `MIN_AREA`.
    """
    matrix, zoom = _random_matrix(image.shape[:2], out_size, hyp, rng)
    # Boxes measure from the corner of the first pixel, OpenCV's warps from its middle.
    pixels = _shift(-0.5, -0.5) @ matrix @ _shift(0.5, 0.5)
    grey, size = (PAD, PAD, PAD), out_size[::-1]
    if hyp.perspective:
        warped = cv2.warpPerspective(image, pixels, size, borderMode=cv2.BORDER_CONSTANT, borderValue=grey)
    else:
        warped = cv2.warpAffine(image, pixels[:2], size, borderMode=cv2.BORDER_CONSTANT, borderValue=grey)
    hulls, visible = _warp_boxes(boxes, matrix)
    areas = _areas(boxes) * zoom**2
    return warped, _clip_and_drop(hulls[visible], out_size, areas[visible])


def mixup(
    image: np.ndarray, boxes: np.ndarray, other: np.ndarray, other_boxes: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The blend of two images of one size, about half of each, with the boxes of both."""
    share = float(rng.beta(32.0, 32.0))
    return cv2.addWeighted(image, share, other, 1.0 - share, 0.0), np.concatenate([boxes, other_boxes])


def copy_paste(
    image: np.ndarray, boxes: np.ndarray, probability: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Each box, with `probability`, once more at its mirror place across the image's vertical axis, mirrored itself.

    A copy that would hide `MAX_COVER` or more of any box, earlier copies included, is left out.
    """
    result, found, width = image.copy(), boxes.astype(np.float64), image.shape[1]
    for box in boxes[rng.random(len(boxes)) < probability].astype(np.float64):
        label, x1, y1, x2, y2 = box
        twin = np.array([label, width - x2, y1, width - x1, y2])
        low, high = np.maximum(twin[1:3], found[:, 1:3]), np.minimum(twin[3:], found[:, 3:])
        hidden = np.prod(np.clip(high - low, 0, None), axis=1)
        if (hidden >= MAX_COVER * _areas(found)).any():
            continue
        left, top = max(math.floor(x1), 0), max(math.floor(y1), 0)
        right, bottom = min(math.ceil(x2), width), min(math.ceil(y2), image.shape[0])
        result[top:bottom, width - right : width - left] = image[top:bottom, left:right][:, ::-1]
        found = np.concatenate([found, twin[None]])
    return result, found


def hsv(
    image: np.ndarray, boxes: np.ndarray, gains: tuple[float, float, float], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Hue, saturation and value times random factors in 1 +/- `gains`; the boxes stay as they are."""
    if not any(gains):
        return image, boxes
    factors = 1 + rng.uniform(-1, 1, size=3) * np.array(gains)
    ramp = np.arange(256) * factors[:, None]
    table = np.stack([ramp[0] % 180, ramp[1].clip(0, 255), ramp[2].clip(0, 255)], axis=-1).astype(np.uint8)
    shifted = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), table[None])
    return cv2.cvtColor(shifted, cv2.COLOR_HSV2RGB), boxes


def flip(image: np.ndarray, boxes: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The mirror image: `axis` 0 swaps top and bottom, 1 swaps left and right."""
    low, high = (1, 3) if axis == 1 else (2, 4)
    mirrored = boxes.copy()
    mirrored[:, [low, high]] = image.shape[axis] - boxes[:, [high, low]]
    return np.flip(image, axis), mirrored


def _shift(x: float, y: float) -> np.ndarray:
    """The 3x3 matrix that moves points by x, y pixels."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def _random_matrix(
    size: tuple[int, ...], out_size: tuple[int, int], hyp: Hyp, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """A 3x3 matrix from points of an image of `size` (height, width) to those of the result, and its zoom factor."""
    tilt = np.eye(3)
    tilt[2, :2] = rng.uniform(-1, 1, size=2) * hyp.perspective
    angle = math.radians(rng.uniform(-1, 1) * hyp.degrees)
    zoom = 1 + rng.uniform(-1, 1) * hyp.scale
    lean_x, lean_y = np.tan(np.radians(rng.uniform(-1, 1, size=2) * hyp.shear))
    move_x, move_y = 0.5 + rng.uniform(-1, 1, size=2) * hyp.translate
    cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
    turn = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
    lean = np.array([[1.0, lean_x, 0.0], [lean_y, 1.0, 0.0], [0.0, 0.0, 1.0]])
    to_middle = _shift(-size[1] / 2, -size[0] / 2)
    return _shift(move_x * out_size[1], move_y * out_size[0]) @ lean @ turn @ tilt @ to_middle, zoom


def _warp_boxes(boxes: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The hulls (n, 5) of the boxes' corners under a 3x3 `matrix`, and (n,) whether all lie before the camera."""
    corners = np.ones((len(boxes), 4, 3))
    corners[..., :2] = boxes[:, [[1, 2], [3, 2], [3, 4], [1, 4]]]
    moved = corners @ matrix.T
    depth = moved[..., 2:]
    points = moved[..., :2] / np.maximum(depth, MIN_DEPTH)
    hulls = np.concatenate([boxes[:, :1], points.min(axis=1), points.max(axis=1)], axis=1)
    return hulls, (depth[..., 0] > MIN_DEPTH).all(axis=1)


def _areas(boxes: np.ndarray) -> np.ndarray:
    """(n,) square pixels of (n, 5) boxes."""
    return np.prod(boxes[:, 3:] - boxes[:, 1:3], axis=1)


def _clip_and_drop(boxes: np.ndarray, size: tuple[int, int], areas: np.ndarray | None = None) -> np.ndarray:
    """Boxes (n, 5) clipped to an image of `size` (height, width), without those of which too little is left.

    Args:
        areas: (n,) square pixels to compare with; by default those before clipping.
    """
    whole = _areas(boxes) if areas is None else areas
    clipped = np.concatenate([boxes[:, :1], clip_xyxy(boxes[:, 1:], size)], axis=1)
    sides = clipped[:, 3:] - clipped[:, 1:3]
    short, long = sides.min(axis=1), sides.max(axis=1)
    keep = (short >= MIN_SIDE) & (long <= MAX_ASPECT * short) & (_areas(clipped) >= MIN_AREA * whole)
    return clipped[keep]
