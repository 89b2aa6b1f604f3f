"""The video file that detect.py writes: its frames in real time, and the check that it reached the disk."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import cv2
import numpy as np

from utils.predict.frames import Frame, media_path

LATE = 1.5  # frames that an output may lag behind its source before a frame is repeated
LONGEST_STEP = 600.0  # seconds between two frames; a longer step is one of the clock, not of the scene
CHECK_EVERY = 64  # frames, after which the free space is looked at
LEAST_SPACE = 1 << 20  # bytes


class VideoFile:
    """An .mp4 file being written. The frame rate is kept: 29.97 stays 29.97.

    A frame is repeated until the time of the next one, so that a video of a variable rate keeps its length; none is
    left out. The file has a hidden name until it is complete.

    Args:
        path: None writes no file. frame: the first one.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path | None, frame: Frame, vid_stride: int):
        info = frame.video
        assert info is not None
        self.path, self.source, self.size, self.live = path, frame.path, info.size, info.live
        self.writer: cv2.VideoWriter | None = None
        self.count, self.start, self.end = 0, frame.seconds or 0.0, frame.seconds or 0.0  # frames; seconds
        self.last: np.ndarray | None = None
        fps = info.fps / vid_stride
        self.fps = round(fps, 3 if fps < 65 else 2)  # MPEG-4 holds a rate as a fraction of 16-bit numbers
        if path is not None:
            self.partial = path.with_name(f".{os.getpid()}.{path.name}")
            self.partial.unlink(missing_ok=True)  # of a run that was killed; OpenCV would write through a link
            size = info.size[::-1]
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self.writer = cv2.VideoWriter(media_path(self.partial), codec, self.fps, size)
            if not self.writer.isOpened():
                self.partial.unlink(missing_ok=True)
                raise OSError(f"{path}: could not start an mp4 video of {size[0]}x{size[1]} at {self.fps} fps")

    def add(self, frame: Frame, image: np.ndarray) -> None:
        """Append `image` (H, W, 3) RGB at the time of `frame`, resized if a stream changed its size.

        Raises:
            OSError: the disk is full.
        """
        if self.writer is None:
            return
        if image.shape[:2] != self.size:
            image = cv2.resize(image, self.size[::-1])
        if frame.seconds is not None:
            self.hold(frame.seconds)
            self.end = frame.seconds + frame.shown
        self.last = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        self.write(self.last)

    def hold(self, seconds: float) -> None:
        """Repeat the last frame until a time of the source."""
        if not -1 < seconds - self.end < LONGEST_STEP:  # the clock was set; go on as if it had not
            self.start += seconds - self.end
        late = (seconds - self.start) * self.fps - self.count
        if self.last is not None and late >= LATE:
            for _ in range(round(late)):
                self.write(self.last)

    def write(self, bgr: np.ndarray) -> None:
        assert self.writer is not None and self.path is not None
        if self.count % CHECK_EVERY == 0 and shutil.disk_usage(self.path.parent).free < LEAST_SPACE:
            raise OSError(errno.ENOSPC, "No space left on device; the video ends here", str(self.path))
        self.writer.write(bgr)
        self.count += 1

    def close(self) -> None:
        """Complete the file.

        Raises:
            OSError: not all of it reached the disk, which OpenCV does not report; nothing is left of it.
        """
        if self.writer is None or self.path is None:
            return
        try:
            self.hold(self.end)
        finally:
            self.writer.release()
            self.writer = None
            whole = self.count == 0 or holds_frames(self.partial, self.count)
            if whole and self.count:
                os.replace(self.partial, self.path)
            else:
                self.partial.unlink(missing_ok=True)
        if not whole:
            free = shutil.disk_usage(self.path.parent).free >> 20
            raise OSError(f"{self.path}: the video could not be written, not saved; {free} MB are free on its disk")


def holds_frames(path: Path, count: int) -> bool:
    """Whether a video file has `count` frames, of which the last one can be decoded."""
    capture = cv2.VideoCapture(media_path(path))
    try:
        if round(capture.get(cv2.CAP_PROP_FRAME_COUNT)) != count:
            return False
        capture.set(cv2.CAP_PROP_POS_FRAMES, count - 1)
        return bool(capture.read()[0])
    finally:
        capture.release()
