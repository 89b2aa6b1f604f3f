"""Images: reading, writing, letterbox, and the conversion to the network's input."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.boxes import clip_xyxy
from utils.decode import decode, decode_small
from utils.files import write_atomic
from utils.reading import read_bytes

LOGGER = logging.getLogger(__name__)
Size: TypeAlias = tuple[int, int]  # (height, width), pixels
PAD = 114  # gray of letterbox borders, as in YOLOv5
POSITIONS = ("center", "top-left")  # of an image on its canvas: YOLOv5's and YOLOX's
IMAGE_SUFFIXES = {
    *(".avif", ".bmp", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jxl", ".mpo"),
    *(".pgm", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
}


def imread(path: str | Path) -> np.ndarray:
    """The image in a file as (H, W, 3) uint8 RGB, upright; gray, RGBA, 16-bit and float files are converted.

    Raises:
        OSError, ValueError: no such file; a folder or a pipe; not an image that can be decoded, or too large.
    """
    return decode(read_bytes(path, "image"), path).image


def imread_small(path: str | Path, least: Size) -> tuple[np.ndarray, Size]:
    """The image in a file, or a smaller one of at least `least` (height, width), and its full size: see decode_small.

    Raises:
        OSError, ValueError: see imread.
    """
    return decode_small(read_bytes(path, "image"), path, least)


def imwrite(path: Path, image: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 RGB image in the format of the suffix.

    Raises:
        OSError: it could not be written; there is no encoder for the suffix. Names the file.
    """
    suffix, data = path.suffix or ".jpg", None
    try:
        ok, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error as error:
        side = max(image.shape[:2])
        raise OSError(f"{path}: no encoder for {suffix} images of {side} pixels, expected .jpg or .png") from error
    if not ok:
        raise OSError(f"{path}: could not encode the image")
    write_atomic(path, data.tobytes(), sync=False)


@dataclass(frozen=True)
class Letterbox:
    """The place of a resized image on its canvas, in whole pixels.

    Attributes:
        image, resized, canvas: (height, width) of the original image, of the resized one, and of the canvas.
        top, left: of the resized image on the canvas.
    """

    image: tuple[int, int]
    resized: tuple[int, int]
    canvas: tuple[int, int]
    top: int
    left: int

    def to_canvas(self, xyxy: np.ndarray) -> np.ndarray:
        """(n, 4) corner pixels of the image -> of the canvas; a new float array."""
        scale, shift = self.scale_shift()
        return xyxy * np.asarray(scale) + np.asarray(shift)

    def to_image(self, xyxy: np.ndarray) -> np.ndarray:
        """(n, 4) corner pixels of the canvas -> of the image, clipped to it; a new array of the same type."""
        scale, shift = (np.asarray(v, dtype=xyxy.dtype) for v in self.scale_shift())
        return clip_xyxy((xyxy - shift) / scale, self.image)

    def scale_shift(self) -> tuple[list[float], list[float]]:
        """Factors of x, y, x, y as the rounded sizes give them, and offsets in canvas pixels."""
        y, x = (new / old for new, old in zip(self.resized, self.image, strict=True))
        return [x, y, x, y], [self.left, self.top, self.left, self.top]


def place(image: tuple[int, int], canvas: tuple[int, int], enlarge: bool = True, position: str = "center") -> Letterbox:
    """The place of an image of this (height, width), scaled to fit `canvas` (height, width).

    Args:
        enlarge: False never scales up. position: one of POSITIONS.
    """
    h, w = image
    ratio = min(canvas[0] / h, canvas[1] / w)
    if not enlarge:
        ratio = min(ratio, 1.0)
    size = max(round(h * ratio), 1), max(round(w * ratio), 1)
    top, left = ((c - s) // 2 if position == "center" else 0 for c, s in zip(canvas, size, strict=True))
    return Letterbox((h, w), size, canvas, top, left)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`image` (H, W, 3) at `size` (height, width)."""
    return image if size == image.shape[:2] else cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def letterbox(
    image: np.ndarray, canvas: tuple[int, int], enlarge: bool = True, position: str = "center"
) -> tuple[np.ndarray, Letterbox]:
    """A gray canvas (height, width) with `image` (H, W, 3) resized on it, and its place there; see `place`."""
    placed = place((image.shape[0], image.shape[1]), canvas, enlarge, position)
    return paste(resize(image, placed.resized), placed), placed


def paste(image: np.ndarray, placed: Letterbox) -> np.ndarray:
    """A gray canvas with `image` (H, W, 3), already resized, at its place."""
    out = np.full((*placed.canvas, 3), PAD, dtype=np.uint8)
    h, w = placed.resized
    out[placed.top : placed.top + h, placed.left : placed.left + w] = image
    return out


def fit_canvas(image: Size, largest: Size, grid: int) -> Size:
    """The smallest (height, width) in multiples of `grid` for an image scaled to fit in `largest`, itself multiples."""
    ratio = min(most / side for most, side in zip(largest, image, strict=True))
    h, w = (max(-(-round(side * ratio) // grid), 1) * grid for side in image)
    return h, w


def as_size(imgsz: int | Sequence[int]) -> Size:
    """(height, width) from one number, which gives a square, or from two.

    Raises:
        ValueError: more or fewer numbers; a side that is no whole number above 0.
    """
    sides = imgsz if isinstance(imgsz, Sequence) else (imgsz,)
    whole = all(isinstance(side, int | np.integer) and not isinstance(side, bool) and side > 0 for side in sides)
    if isinstance(imgsz, str) or len(sides) not in (1, 2) or not whole:
        shown = " ".join(map(str, sides[:3]))
        raise ValueError(f"--imgsz {shown:.40}: expected one number, or height and width, in whole pixels above 0")
    return int(sides[0]), int(sides[-1])


def size_text(size: Size) -> str:
    """'320' for a square, else '192x320', for messages."""
    return f"{size[0]}" if size[0] == size[1] else f"{size[0]}x{size[1]}"


def check_imgsz(imgsz: int | Sequence[int], grid: int) -> Size:
    """(height, width) of `imgsz`, rounded up to multiples of `grid`; a warning names both sizes if they differ.

    Raises:
        ValueError: see as_size.
    """
    size = as_size(imgsz)
    h, w = (-(-side // grid) * grid for side in size)
    if (h, w) != size:
        LOGGER.warning(
            f"--imgsz {size_text(size)} is not a multiple of this model's grid of {grid}; using {size_text((h, w))}"
        )
    return h, w


def rect_or_square(asked: bool | None, grid: int, stride: int) -> bool:
    """Whether to use rectangular batches: never if the model's grid is coarser than its stride; warns if `asked` to.

    Args:
        asked: None: where the model allows it. grid, stride: of the model, pixels.
    """
    allowed = grid <= stride
    if asked and not allowed:
        LOGGER.warning(
            f"rect is off: this model's grid ({grid}) is coarser than its stride ({stride}); using square images"
        )
    return allowed if asked is None else asked and allowed


def to_input(images: Tensor, device: torch.device, half: bool = False) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 or float16 in 0..1 on `device`."""
    images = images.to(device, non_blocking=True)
    return (images.half() if half else images.float()) / 255


def rescale(images: Tensor, grid: int, rng: np.random.Generator) -> Tensor:
    """(B, 3, H, W) resized by a random factor of 0.5 to 1.5, both sides multiples of `grid`."""
    factor = rng.uniform(0.5, 1.5)
    size = [max(round(side * factor / grid), 1) * grid for side in images.shape[-2:]]
    return images if size == list(images.shape[-2:]) else F.interpolate(images, size, mode="bilinear")


def largest_side(side: int, grid: int) -> int:
    """The largest side that `rescale` can give to images of that side."""
    return math.ceil(1.5 * side / grid) * grid
