"""Frames: what a source yields, and inputs that could not be read."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import cv2
import numpy as np

DEFAULT_FPS = 30.0  # of videos and cameras that do not report a frame rate
MAX_FRAME_PIXELS = 1 << 27  # of a frame of a video; one of 8K has 33 million
PLAUSIBLE_FPS = 240.0  # a higher rate is that of a container's clock, unless the frames follow each other so fast


@dataclass(frozen=True)
class VideoInfo:
    """What a video or live source reports about itself.

    Attributes:
        fps: frames per second. frames: their number, 0 if unknown. size: (height, width).
        live: a camera, a stream or the screen, of which only the newest frame is kept.
    """

    fps: float
    frames: int
    size: tuple[int, int]
    live: bool = False


@dataclass(frozen=True)
class Frame:
    """One image, or one frame of a video.

    Attributes:
        image: (H, W, 3) uint8 RGB. path: its file; for a camera or a stream a name made for it.
        number: 0 for an image, 1, 2, ... in a video, skipped frames counted. video: None for an image.
        seconds: when it is shown in a video file; None if unknown, and for live sources.
        shown: for how many seconds, where the file says so, else 0.
    """

    image: np.ndarray
    path: Path
    number: int = 0
    video: VideoInfo | None = None
    seconds: float | None = None
    shown: float = 0.0


@dataclass(frozen=True)
class Broken:
    """An input that could not be read, or not to its end; `reason` names it."""

    path: Path
    reason: str


def is_text(path: Path) -> bool:
    """Whether a video file begins like text: FFmpeg would take it for a playlist and open the files that it names.

    Every container has a control character in its first bytes, but AVI and GIF, whose sizes may have none.
    """
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return False
    return bool(start) and not start.startswith((b"RIFF", b"GIF8")) and all(b >= 32 or b in b"\t\n\r" for b in start)


def too_large(capture: cv2.VideoCapture) -> str:
    """'WxH' if the frames of an open capture would have more than MAX_FRAME_PIXELS, else ''."""
    width, height = capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
    return f"{width:.0f}x{height:.0f}" if width * height > MAX_FRAME_PIXELS else ""


def video_info(
    capture: cv2.VideoCapture, frame: np.ndarray, live: bool = False, times: Sequence[float] = ()
) -> VideoInfo:
    """The properties of an open capture; the size is that of a decoded frame (H, W, 3).

    Args:
        times: seconds of the first frames of a file, which show a rate that differs from the one stated.
    """
    fps, frames = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    h, w = frame.shape[:2]
    return VideoInfo(
        fps=frame_rate(fps, times),
        frames=int(frames) if math.isfinite(frames) and frames > 0 and not live else 0,
        size=(h, w),
        live=live,
    )


def frame_rate(stated: float, times: Sequence[float]) -> float:
    """Frames per second at which no frame need be left out: the stated rate, or a higher one that `times` show.

    Videos of a variable rate state their mean, and some containers the rate of their clock (1000).
    """
    steps = np.diff(times)
    steps = steps[steps > 0]
    measured = 1 / float(np.median(steps)) if len(steps) else 0.0
    if not math.isfinite(stated) or not 0 < stated <= 1000:
        stated = DEFAULT_FPS
    if stated > PLAUSIBLE_FPS and measured:
        stated = DEFAULT_FPS
    return min(measured, 1000.0) if measured > 1.1 * stated else stated


def media_path(path: Path) -> str:
    """A file's path as OpenCV's video functions take it: absolute, so that a colon in it is not read as a protocol.

    As bytes (called a str, as OpenCV declares it) where names are bytes: a str that is not UTF-8 crashes OpenCV.
    """
    name = os.path.abspath(path)
    return cast(str, os.fsencode(name)) if os.name == "posix" else name


def misses_bytes(path: Path) -> bool | None:
    """Whether a Matroska, WebM, MP4 or MOV file is shorter than it says; None: it says nothing.

    An MP4 file is only known to miss bytes, not to be whole: a fragment that is missing altogether leaves no trace.

    Source: RFC 8794 (EBML: the header and the segment); ISO/IEC 14496-12 (boxes).
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            file.seek(0)
            if head[:4] == b"\x1a\x45\xdf\xa3":
                return misses_segment(file, size)
            return misses_box(file, size) or None if head[4:] == b"ftyp" else None
    except OSError:
        return None


def misses_segment(file: BinaryIO, size: int) -> bool | None:
    """misses_bytes for EBML."""
    for last in (False, True):
        head = file.read(5)
        if len(head) < 5 or not head[4]:
            return True
        length = 9 - head[4].bit_length()  # of the size, bytes
        value = int.from_bytes(bytes([head[4] & (0xFF >> length)]) + file.read(length - 1))
        if last:
            return None if value == (1 << 7 * length) - 1 else file.tell() + value > size
        file.seek(file.tell() + value)
    return None


def misses_box(file: BinaryIO, size: int) -> bool:
    """misses_bytes for boxes."""
    start = 0
    while start + 8 <= size:
        file.seek(start)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4]), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:])
        if length < 8:  # 0: up to the end of the file
            return False
        start += length
        if start > size:
            return kind in (b"mdat", b"moov", b"moof")
    return False
