"""Live sources: cameras and network streams, a thread each, and the screen. Only the newest picture is kept."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np

from utils.predict.frames import USUAL_FPS, Broken, Frame, VideoInfo, describe

LOGGER = logging.getLogger(__name__)
SCHEMES = {"http", "https", "rtmp", "rtsp", "tcp"}
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before the first and the latest attempts to connect again
IO_TIMEOUT = 10_000  # milliseconds that opening a stream or waiting for its next picture may take
POLL = 0.5  # seconds after which a reader without news looks whether it should stop


def is_url(source: str) -> bool:
    return "://" in source


def is_camera(source: str) -> bool:
    return source.isascii() and source.isdigit()


def stream_name(source: str) -> Path:
    """A file name for a camera or a stream, without the password its URL may hold.

    Raises:
        ValueError: a scheme that is not in SCHEMES, or neither a URL nor a camera's number.
    """
    if is_camera(source):
        return Path(f"webcam{source}")
    parts = urlsplit(source)
    if not is_url(source) or parts.scheme.lower() not in SCHEMES:
        known = ", ".join(sorted(SCHEMES))
        scheme = f"scheme '{parts.scheme}://'" if is_url(source) else f"'{source}' is no URL"
        raise ValueError(f"source {scheme}, expected one of: {known}, or the number of a webcam")
    return Path(re.sub(r"\W+", "_", f"{parts.hostname or ''}{parts.path}").strip("_") or "stream")


def unique_names(sources: Sequence[str]) -> list[Path]:
    """A name for each stream; those that would be equal are numbered -2, -3, ..."""
    names: list[Path] = []
    for name in map(stream_name, sources):
        copy, number = name, 1
        while copy in names:
            number += 1
            copy = Path(f"{name}-{number}")
        names.append(copy)
    return names


class Stream(threading.Thread):
    """Reads one stream until `stop` is called and keeps its newest frame; connects again, waiting longer each time.

    Args:
        source: URL or camera number. path: its name in frames and messages. news: notified when something changed.
        vid_stride: every how manieth picture is kept.
        patience: seconds without a picture after which it is given up; 0: never.
    """

    def __init__(self, source: str, path: Path, news: threading.Condition, vid_stride: int, patience: float):
        super().__init__(name=str(path), daemon=True)
        self.source, self.path, self.news, self.vid_stride, self.patience = source, path, news, vid_stride, patience
        self.stopped = threading.Event()
        self.newest: Frame | None = None
        self.number = 0
        self.failure = ""
        self.last_picture = time.monotonic()

    def open(self) -> cv2.VideoCapture:
        if is_camera(self.source):
            return cv2.VideoCapture(int(self.source))
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, IO_TIMEOUT, cv2.CAP_PROP_READ_TIMEOUT_MSEC, IO_TIMEOUT]
        return cv2.VideoCapture(self.source, cv2.CAP_FFMPEG, limits)

    def run(self) -> None:
        wait = FIRST_WAIT
        while not self.stopped.is_set():
            if self.read_connection():
                wait = FIRST_WAIT
            silent = time.monotonic() - self.last_picture
            if self.stopped.is_set():
                break
            if (self.patience and silent >= self.patience) or (is_camera(self.source) and not self.number):
                with self.news:
                    self.failure = f"{self.path}: no picture for {silent:.0f} s, given up"
                    self.news.notify_all()
                break
            LOGGER.warning(f"{self.path}: no picture, connecting again in {wait:g} s")
            self.stopped.wait(min(wait, self.patience - silent) if self.patience else wait)
            wait = min(2 * wait, LONGEST_WAIT)

    def read_connection(self) -> bool:
        """Keep pictures until the connection ends; tells whether there was one."""
        capture, video = self.open(), None
        try:
            while not self.stopped.is_set() and capture.grab():
                self.number += 1
                self.last_picture = time.monotonic()
                if (self.number - 1) % self.vid_stride:
                    continue
                ok, bgr = capture.retrieve()
                if not ok:
                    break
                video = video or describe(capture, bgr, live=True)
                frame = Frame(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), self.path, self.number, video)
                with self.news:
                    self.newest = frame
                    self.news.notify_all()
        finally:
            capture.release()
        return video is not None

    def take(self) -> Frame | None:
        """The newest frame, once."""
        with self.news:
            frame, self.newest = self.newest, None
        return frame


def read_streams(sources: Sequence[str], vid_stride: int, patience: float) -> Generator[Frame | Broken, None, None]:
    """The newest frames of cameras and streams, in turn, until all are given up; closing the iterator stops them.

    Raises:
        ValueError: see stream_name; no sources.
    """
    if not sources:
        raise ValueError("no streams, expected a URL or a camera number a line")
    news = threading.Condition()
    names = unique_names(sources)
    return _newest_frames(
        [Stream(source, name, news, vid_stride, patience) for source, name in zip(sources, names, strict=True)], news
    )


def _newest_frames(streams: list[Stream], news: threading.Condition) -> Generator[Frame | Broken, None, None]:
    waiting = list(streams)
    for stream in streams:
        stream.start()
    try:
        while waiting:
            fresh = [frame for stream in waiting if (frame := stream.take())]
            yield from fresh
            for stream in [s for s in waiting if s.failure and s.newest is None]:
                waiting.remove(stream)
                yield Broken(stream.path, stream.failure)
            with news:
                if not any(s.newest or s.failure for s in waiting):
                    news.wait(POLL)
    finally:
        for stream in streams:
            stream.stopped.set()
        for stream in streams:
            stream.join(timeout=IO_TIMEOUT / 1000)


def parse_screen(source: str) -> tuple[int, dict[str, int] | None]:
    """'screen [monitor] [left top width height]' -> (monitor, 0 being all of them together; region or None).

    Raises:
        ValueError: other words.
    """
    words = source.split()[1:]
    if not all(re.fullmatch(r"-?\d+", word) for word in words) or len(words) not in (0, 1, 4, 5):
        raise ValueError(f"source '{source}', expected 'screen [monitor] [left top width height]' in whole pixels")
    numbers = [int(word) for word in words]
    monitor = numbers.pop(0) if len(numbers) in (1, 5) else 0
    region = dict(zip(("left", "top", "width", "height"), numbers, strict=True)) if numbers else None
    if region and min(region["width"], region["height"]) < 1:
        raise ValueError(f"source '{source}': width and height must be positive")
    return monitor, region


def read_screen(source: str, vid_stride: int) -> Generator[Frame, None, None]:
    """Pictures of the screen, see parse_screen, as fast as they are asked for, without an end.

    Raises:
        ImportError: mss is not installed. ValueError: no such monitor; no screen.
    """
    monitor, region = parse_screen(source)
    try:
        import mss
    except ImportError as error:
        raise ImportError("the source 'screen' needs the package mss: pip install mss") from error
    try:
        camera = mss.MSS()
    except mss.ScreenShotError as error:
        raise ValueError(f"source '{source}': no screen to look at: {error}") from error
    if not 0 <= monitor < len(camera.monitors):
        raise ValueError(f"source '{source}': monitor {monitor}, expected 0..{len(camera.monitors) - 1}")
    base = camera.monitors[monitor]
    if region:
        region = region | {"left": base["left"] + region["left"], "top": base["top"] + region["top"]}
    return _screen_frames(camera, region or base, vid_stride)


def _screen_frames(camera: Any, region: dict[str, int], vid_stride: int) -> Generator[Frame, None, None]:
    with camera:
        number = 1
        while True:
            bgra = np.asarray(camera.grab(region))
            image = np.ascontiguousarray(bgra[..., 2::-1])
            video = VideoInfo(USUAL_FPS, 0, image.shape[:2], live=True)
            yield Frame(image, Path("screen"), number, video)
            number += vid_stride
