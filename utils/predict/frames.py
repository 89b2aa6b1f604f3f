"""Frames: what a source yields, and inputs that could not be read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

DEFAULT_FPS = 30.0  # of videos and cameras that do not report a frame rate


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
    """

    image: np.ndarray
    path: Path
    number: int = 0
    video: VideoInfo | None = None


@dataclass(frozen=True)
class Broken:
    """An input that could not be read, or not to its end; `reason` names it."""

    path: Path
    reason: str


def video_info(capture: cv2.VideoCapture, frame: np.ndarray, live: bool = False) -> VideoInfo:
    """The properties of an open capture; the size is that of a decoded frame (H, W, 3)."""
    fps, frames = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    h, w = frame.shape[:2]
    return VideoInfo(
        fps=fps if math.isfinite(fps) and 0 < fps <= 1000 else DEFAULT_FPS,
        frames=int(frames) if math.isfinite(frames) and frames > 0 and not live else 0,
        size=(h, w),
        live=live,
    )
