"""Views of a gray canvas with images on it: one resize or warp brings what a training sample sees to its size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from utils.boxes import Boxes, areas, clip_xyxy
from utils.hyp import Hyp
from utils.images import PAD, Size

MIN_SIDE = 2.0  # pixels; smaller boxes are dropped
MIN_AREA = 0.1  # fraction of its area; boxes of which less is left in the image are dropped
MAX_ASPECT = 100.0  # ratio of long to short side; boxes with a larger one are dropped
MIN_DEPTH = 1e-3  # homogeneous w below which a corner is behind the camera
MAX_WINDOW = 2.0  # sides of a view's window in those of the sample; larger ones are warped


class Region(NamedTuple):
    """A rectangle of a canvas, in whole pixels; it may reach beyond the canvas."""

    left: int
    top: int
    width: int
    height: int


class Canvas(NamedTuple):
    """Images on a gray canvas, painted only where it is looked at.

    Attributes:
        size: (height, width). images: (H, W, 3) uint8 RGB. corners: left, top of each, whole pixels; later images cover
            earlier ones.
    """

    size: Size
    images: Sequence[np.ndarray]
    corners: Sequence[tuple[int, int]]

    def paint(self, region: Region | None = None) -> np.ndarray:
        """The pixels of a region, or of the whole canvas, (height, width, 3) uint8; not to be written to."""
        at = region or Region(0, 0, self.size[1], self.size[0])
        out: np.ndarray | None = None
        for image, (left, top) in zip(self.images, self.corners, strict=True):
            x1, x2 = max(at.left, left, 0), min(at.left + at.width, left + image.shape[1], self.size[1])
            y1, y2 = max(at.top, top, 0), min(at.top + at.height, top + image.shape[0], self.size[0])
            if x1 >= x2 or y1 >= y2:
                continue
            part = image[y1 - top : y2 - top, x1 - left : x2 - left]
            if len(self.images) == 1 and (x2 - x1, y2 - y1) == at[2:]:
                return part
            if out is None:
                out = np.full((at.height, at.width, 3), PAD, np.uint8)
            out[y1 - at.top : y2 - at.top, x1 - at.left : x2 - at.left] = part
        return np.full((at.height, at.width, 3), PAD, np.uint8) if out is None else out


class View(NamedTuple):
    """The map from a canvas to a sample.

    Attributes:
        size: (height, width) of the sample. matrix: 3x3, pixels of the canvas to those of the sample.
        zoom: the factor of areas.
        window: the part of the canvas that is resized to the sample; None: the canvas is warped.
    """

    size: Size
    matrix: np.ndarray
    zoom: float
    window: Region | None

    def shows(self, corner: tuple[int, int], size: Size) -> bool:
        """Whether any pixel of an image of `size` (height, width) at `corner` (left, top) may be seen."""
        if self.window is None:
            return True
        left, top, width, height = self.window
        return (
            left < corner[0] + size[1]
            and corner[0] < left + width
            and top < corner[1] + size[0]
            and (corner[1] < top + height)
        )

    def of(self, canvas: Canvas, boxes: Boxes) -> tuple[np.ndarray, Boxes]:
        """The sample, and the boxes around the moved boxes in its pixels, clipped; see MIN_AREA for those dropped.

        Args:
            boxes: in pixels of the canvas.
        """
        if self.window is not None:
            image = canvas.paint(self.window)
            if image.shape[:2] != self.size:
                image = cv2.resize(image, self.size[::-1], interpolation=cv2.INTER_LINEAR)
        else:
            image = self._warped(canvas.paint())
        moved, visible = _warp(boxes.xyxy, self.matrix)
        full_area = areas(boxes.xyxy) * self.zoom
        if not visible.all():
            moved, boxes, full_area = moved[visible], boxes[visible], full_area[visible]
        return image, clip_and_drop(boxes.at(moved), self.size, full_area)

    def _warped(self, image: np.ndarray) -> np.ndarray:
        """A painted canvas as the matrix moves it."""
        # The origin of box coordinates is the corner of the first pixel; that of OpenCV's warps is its center.
        pixels = _shift(-0.5, -0.5) @ self.matrix @ _shift(0.5, 0.5)
        size, gray = self.size[::-1], (PAD, PAD, PAD)
        if self.matrix[2, :2].any():
            return cv2.warpPerspective(image, pixels, size, borderMode=cv2.BORDER_CONSTANT, borderValue=gray)
        return cv2.warpAffine(image, pixels[:2], size, borderMode=cv2.BORDER_CONSTANT, borderValue=gray)


def random_view(canvas: Size, size: Size, hyp: Hyp, rng: np.random.Generator) -> View:
    """Random perspective, rotation, zoom, shear and translation about the center of a canvas.

    Without perspective, rotation and shear the sample is a window of the canvas in whole pixels, resized, which is much
    faster than a warp. Its edges are those of the random view, rounded to whole pixels; the boxes follow the window.

    Args:
        canvas, size: (height, width) of the canvas and of the sample.
    """
    perspective = np.eye(3)
    perspective[2, :2] = rng.uniform(-1, 1, size=2) * hyp.perspective
    angle = math.radians(rng.uniform(-1, 1) * hyp.degrees)
    zoom = 1 + rng.uniform(-1, 1) * hyp.scale
    shears = rng.uniform(-1, 1, size=2) * hyp.shear
    move_x, move_y = 0.5 + rng.uniform(-1, 1, size=2) * hyp.translate
    if not (hyp.perspective or hyp.degrees or hyp.shear) and zoom * MAX_WINDOW >= 1:
        width, height = (max(round(side / zoom), 1) for side in size[::-1])
        left = round(canvas[1] / 2 - move_x * size[1] / zoom + (size[1] / zoom - width) / 2)
        top = round(canvas[0] / 2 - move_y * size[0] / zoom + (size[0] / zoom - height) / 2)
        x, y = size[1] / width, size[0] / height
        matrix = np.array([[x, 0.0, -left * x], [0.0, y, -top * y], [0.0, 0.0, 1.0]])
        return View(size, matrix, x * y, Region(left, top, width, height))
    cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
    rotation = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
    shear_x, shear_y = np.tan(np.radians(shears))
    shear = np.array([[1.0, shear_x, 0.0], [shear_y, 1.0, 0.0], [0.0, 0.0, 1.0]])
    center = _shift(-canvas[1] / 2, -canvas[0] / 2)
    matrix = _shift(move_x * size[1], move_y * size[0]) @ shear @ rotation @ perspective @ center
    return View(size, matrix, zoom**2, None)


def clip_and_drop(boxes: Boxes, size: Size, full_area: np.ndarray) -> Boxes:
    """Boxes clipped to an image of `size` (height, width), without those of which too little is left.

    Args:
        full_area: (n,) square pixels of the boxes before clipping.
    """
    clipped = clip_xyxy(boxes.xyxy, size)
    sides = clipped[:, 2:] - clipped[:, :2]
    short, long = sides.min(axis=1), sides.max(axis=1)
    keep = (short >= MIN_SIDE) & (long <= MAX_ASPECT * short) & (areas(clipped) >= MIN_AREA * full_area)
    return boxes.at(clipped)[keep]


def _shift(x: float, y: float) -> np.ndarray:
    """The 3x3 matrix of a translation by x, y pixels."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def _warp(xyxy: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, 4) boxes around the corners that a 3x3 `matrix` maps, and (n,) whether all of them are before the camera."""
    if not (matrix[0, 1] or matrix[1, 0] or matrix[2, :2].any()):  # boxes stay boxes
        scale, shift = (np.array([v[0], v[1], v[0], v[1]]) for v in (matrix.diagonal(), matrix[:2, 2]))
        return xyxy * scale + shift, np.ones(len(xyxy), bool)
    corners = np.ones((len(xyxy), 4, 3))
    corners[..., :2] = xyxy[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]
    moved = corners @ matrix.T
    depth = moved[..., 2:]
    points = moved[..., :2] / np.maximum(depth, MIN_DEPTH)
    return np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1), (depth[..., 0] > MIN_DEPTH).all(axis=1)
