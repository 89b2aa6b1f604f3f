"""Images of several frames: animated GIF, PNG and WebP files as videos, and TIFF files of several pages."""

from __future__ import annotations

import logging
import struct
import warnings
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from utils.predict.frames import Broken, Frame, VideoInfo
from utils.text import first

LOGGER = logging.getLogger(__name__)
ANIMATED = ("GIF", "PNG", "WEBP")
HEADS = (b"GIF8", b"\x89PNG", b"RIFF", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # of ANIMATED and of TIFF
DEFAULT_STEP = 0.1  # seconds that a frame is shown whose file gives no time, or none that can be
SHORTEST_STEP = 0.01  # seconds; a shorter time is not meant, as browsers see it
RATE_FRAMES = 8  # at the start, which set the frame rate
NEW_SUBFILE_TYPE, REDUCED = 254, 1  # TIFF's tag, and its bit: a page that is a smaller copy of another one
# What Pillow raises for damaged files.
UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    struct.error,
    UnidentifiedImageError,
    Image.DecompressionBombError,
)


def open_image(path: Path) -> Image.Image | None:
    """The file as Pillow opens it, not decoded; None: not of a format that may hold several frames, or unreadable."""
    try:
        with path.open("rb") as file:
            if file.read(4) not in HEADS:
                return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a large size
            return Image.open(path, formats=[*ANIMATED, "TIFF"])
    except UNREADABLE:
        return None


def count_frames(path: Path) -> int:
    """The number of frames of a GIF, PNG or WebP file; 0: of another kind, or unreadable."""
    image = open_image(path)
    if image is None:
        return 0
    with image:
        try:
            return int(getattr(image, "n_frames", 1)) if image.format in ANIMATED else 0
        except UNREADABLE:
            return 0


def read_animation(path: Path, count: int, vid_stride: int) -> Iterator[Frame | Broken]:
    """Every `vid_stride`-th of `count` frames, without transparency; a `Broken` follows if they end early."""
    number, decoded = 0, decode(path, count)
    first = list(islice(decoded, RATE_FRAMES))
    if first:
        fps = 1 / min(shown for _, _, shown in first)
        video = VideoInfo(fps, count, (first[0][0].shape[0], first[0][0].shape[1]))
        for number, (image, seconds, shown) in enumerate(chain(first, decoded), start=1):
            if (number - 1) % vid_stride == 0:
                yield Frame(image, path, number, video, seconds, shown)
    if number < count:
        yield Broken(path, f"{path}: the animation ends after {number} of {count} frames")


def decode(path: Path, count: int) -> Iterator[tuple[np.ndarray, float, float]]:
    """Each readable frame as (H, W, 3) uint8 RGB, the second at which it is shown, and for how many."""
    image, seconds = open_image(path), 0.0
    if image is None:
        return
    with image:
        for number in range(count):
            try:
                image.seek(number)
                pixels = np.array(image.convert("RGB"))
            except UNREADABLE:
                return
            shown = float(image.info.get("duration") or 0) / 1000
            shown = shown if shown >= SHORTEST_STEP else DEFAULT_STEP
            yield pixels, seconds, shown
            seconds += shown


def warn_of_pages(path: Path) -> None:
    """Log how many pages of a TIFF file are left out: only the first one is read."""
    image = open_image(path)
    if image is None:
        return
    with image:
        if image.format != "TIFF":
            return
        others = 0
        try:
            for number in range(1, int(getattr(image, "n_frames", 1))):
                image.seek(number)
                others += not int(image.tag_v2.get(NEW_SUBFILE_TYPE, 0)) & REDUCED  # type: ignore[attr-defined]
        except UNREADABLE:
            pass  # the pages before a damaged one are counted
    if others:
        LOGGER.warning(f"{first([path])}: only the first of {others + 1} pages is read, {others} left out")
