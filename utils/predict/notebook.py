"""Results in a notebook: a few small images as HTML or PNG, and whether there is a viewer for images at all."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Sequence
from html import escape

import cv2
import numpy as np

PREVIEWED = 12  # images
SIDE, SHEET = 800, 1600  # pixels: longest side of an image, of all of them beside each other
LINES = 20  # of text below the images
GAP = 4  # pixels


def smaller(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """An image (H, W, 3), shrunk if a side is longer than `side` pixels."""
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    size = [max(round(length * scale), 1) for length in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def encoded(image: np.ndarray, suffix: str) -> bytes:
    """An image (H, W, 3) uint8 RGB as the bytes of a file."""
    return cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def html(images: Sequence[np.ndarray], count: int, text: str) -> str:
    """The images and the first lines of a text; says how many of `count` images are not shown."""
    sources = [base64.b64encode(encoded(image, ".jpg")).decode() for image in images]
    shown_images = "".join(
        f'<img src="data:image/jpeg;base64,{source}" style="max-width:100%;margin:2px">' for source in sources
    )
    lines = text.splitlines()
    shown = [*lines[:LINES], "..."] if len(lines) > LINES else lines
    more = f"<p>The first {len(images)} of {count} images.</p>" if count > len(images) else ""
    return f"<div>{shown_images}{more}<pre>{escape(chr(10).join(shown))}</pre></div>"


def png(images: Sequence[np.ndarray]) -> bytes | None:
    """The images on one sheet of square cells, at most SHEET pixels wide; None without images."""
    if not images:
        return None
    columns = int(np.ceil(np.sqrt(len(images))))
    rows = -(-len(images) // columns)
    cell = min(max(max(image.shape[:2]) for image in images), SHEET // columns)
    sheet = np.full((rows * (cell + GAP), columns * (cell + GAP), 3), 255, np.uint8)
    for k, image in enumerate(images):
        part = smaller(image, cell)
        top, left = k // columns * (cell + GAP), k % columns * (cell + GAP)
        sheet[top : top + part.shape[0], left : left + part.shape[1]] = part
    return encoded(sheet[:, : sheet.shape[1] - GAP][: sheet.shape[0] - GAP], ".png")


def has_viewer() -> bool:
    """Whether an image can be shown: in a notebook, or on a screen of this machine."""
    if "ipykernel" in sys.modules or os.name == "nt" or sys.platform == "darwin":
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
