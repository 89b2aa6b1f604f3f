"""Live sources: cameras and network streams, each read by a thread that keeps the newest frame, and the screen."""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import cv2
import numpy as np

from utils.predict.frames import DEFAULT_FPS, Broken, Frame, VideoInfo, too_large, video_info
from utils.predict.threads import END_WAIT, GRACE, DecoderThread
from utils.text import clean

if TYPE_CHECKING:
    from mss import MSS

LOGGER = logging.getLogger(__name__)
SCHEMES = {"http", "https", "rtmp", "rtsp", "rtsps"}
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before the first attempt to reconnect; at most before later ones
LONGEST_IO = 10.0  # seconds that opening a stream or waiting for its next frame may take
MAX_URL = 4096  # characters
MAX_STREAMS = 256  # threads
POLL = 0.5  # seconds after which a reader without a new frame checks whether it should stop
LOGIN = re.compile(r"(^|[\s'/])[^\s'/]*:(?!//)[^\s']*@")  # user:password@, either may hold a slash or another @
HOST = re.compile(r"(\[[^\]]*\]|[^/?:@]*)(:\d+)?([/?]|$)")  # of a URL without user and password
SECRET_VALUE = re.compile(
    r"((?:user|usr|login|pass|password|passwd|pwd|psw|token|key|auth|secret)=)(?:(?!_[^_=]+=)[^&/;\s'])*", re.IGNORECASE
)
Region = dict[str, int]  # left, top, width, height in pixels


def is_url(source: str) -> bool:
    return "://" in source


def is_camera(source: str) -> bool:
    return source.isascii() and source.isdigit()


def without_secrets(text: str) -> str:
    """`text` with *** in place of the user and password of URLs, and of values such as password=... and token=..."""
    return SECRET_VALUE.sub(r"\1***", LOGIN.sub(r"\1***@", text))


def stream_name(source: str) -> Path:
    """A file name for a camera or a stream, without a login or password that its URL may hold.

    Raises:
        ValueError: a scheme that is not in SCHEMES, or neither a URL nor a camera's number.
    """
    if is_camera(source):
        return Path(f"webcam{source}")
    shown = clean(without_secrets(source), 100)
    if len(source) > MAX_URL or not source.isprintable() or " " in source:
        raise ValueError(f"source '{shown}': not a URL, it has spaces, control characters or over {MAX_URL} characters")
    try:
        parts = urlsplit(source)
    except ValueError as error:  # whose text may have a password
        raise ValueError(f"source '{shown}': not a URL") from error
    if not is_url(source) or parts.scheme.lower() not in SCHEMES:
        known = ", ".join(sorted(SCHEMES))
        scheme = f"scheme '{parts.scheme[:20]}://'" if is_url(source) else f"'{shown}' is not a URL"
        raise ValueError(f"source {scheme}, expected one of: {known}, or the number of a webcam")
    place = source.partition("://")[2]
    if "@" in place.partition("?")[0] or not HOST.match(place):  # a password may hold / ? and @
        place = place.rpartition("@")[2]
    parts = urlsplit(without_secrets("//" + place))
    return Path(re.sub(r"\W+", "_", f"{parts.hostname or ''}{parts.path}").strip("_")[:100] or "stream")


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


class Stream(DecoderThread):
    """Reads one stream until `stopped` is set, keeps its newest frame, and reconnects after ever longer waits.

    Args:
        source: URL or camera number. path: its name in frames and messages.
        changed: notified when there is a new frame or the stream is closed.
        vid_stride: every Nth frame is kept.
        timeout: seconds without a frame after which the stream is closed; 0: never.
    """

    def __init__(self, source: str, path: Path, changed: threading.Condition, vid_stride: int, timeout: float):
        super().__init__(str(path))
        self.source, self.path, self.changed, self.vid_stride, self.timeout = source, path, changed, vid_stride, timeout
        self.stopped = threading.Event()
        self.newest: Frame | None = None
        self.number = 0
        self.failure = ""
        self.last_time = time.monotonic()  # of a frame

    def open(self) -> cv2.VideoCapture:
        """The capture of the camera or URL, which may be closed: then it has no frames."""
        if is_camera(self.source):
            return cv2.VideoCapture(int(self.source))
        left = self.timeout - self.silent() if self.timeout else math.inf
        return cv2.VideoCapture(self.source, cv2.CAP_FFMPEG, time_limits(left, self.timeout or math.inf))

    def silent(self) -> float:
        """Seconds since the last frame."""
        return time.monotonic() - self.last_time

    def fail(self, reason: str) -> None:
        """Close the stream, for a reason that is reported."""
        with self.changed:
            self.failure = self.failure or f"{self.path}: {reason}, stream closed"
            self.changed.notify_all()

    def run(self) -> None:
        """Read connection after connection; a camera that has never given a frame is tried once."""
        wait = FIRST_WAIT
        while not self.stopped.is_set():
            if self.read_connection():
                wait = FIRST_WAIT
            silent = self.silent()
            if self.stopped.is_set() or self.failure:
                break
            if (self.timeout and silent >= self.timeout) or (is_camera(self.source) and not self.number):
                self.fail(f"no frame for {silent:.0f} s")
                break
            pause = min(wait, self.timeout - silent) if self.timeout else wait
            LOGGER.warning(f"{self.path}: no frame, reconnecting in {pause:.2g} s")
            self.stopped.wait(pause)
            wait = min(2 * wait, LONGEST_WAIT)

    def read_connection(self) -> bool:
        """Keep the newest frame until the connection ends; returns whether there was a frame."""
        capture, video = self.open(), None
        try:
            if size := too_large(capture):
                self.fail(f"frames of {size} pixels are too large")
            while not self.stopped.is_set() and not self.failure and capture.grab():
                self.number += 1
                if video and (self.number - 1) % self.vid_stride:
                    self.last_time = time.monotonic()
                    continue
                ok, bgr = capture.retrieve()
                if not ok:  # data, but no frame: the first one of each connection is decoded to know
                    break
                self.last_time = time.monotonic()
                video = video or video_info(capture, bgr, live=True)
                frame = Frame(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), self.path, self.number, video)
                with self.changed:
                    self.newest = frame
                    self.changed.notify_all()
        except cv2.error:  # memory for a frame, most of all
            LOGGER.warning(f"{self.path}: a frame that cannot be decoded")
        finally:
            capture.release()
        return video is not None

    def pop(self) -> Frame | None:
        """The newest frame, each only once; None if there is no new one."""
        with self.changed:
            frame, self.newest = self.newest, None
        return frame


def time_limits(opening: float, reading: float) -> list[int]:
    """Options of cv2.VideoCapture: the seconds that opening a URL, and waiting for a frame, may take."""
    first, later = (int(1000 * min(max(seconds, 0.1), LONGEST_IO)) for seconds in (opening, reading))
    return [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, first, cv2.CAP_PROP_READ_TIMEOUT_MSEC, later]


def read_streams(sources: Sequence[str], vid_stride: int, timeout: float) -> Generator[Frame | Broken, None, None]:
    """The newest frames of cameras and streams, in turn, until all are closed; closing the generator stops them.

    Args:
        timeout: seconds without a frame after which a stream is closed, which yields a `Broken`; 0: never.

    Raises:
        ValueError: see stream_name; no sources.
    """
    if not sources:
        raise ValueError("no streams, expected a URL or a camera number a line")
    if len(sources) > MAX_STREAMS:
        raise ValueError(f"{len(sources)} streams, expected at most {MAX_STREAMS}")
    changed = threading.Condition()
    named = zip(sources, unique_names(sources), strict=True)
    return _newest_frames([Stream(source, name, changed, vid_stride, timeout) for source, name in named], changed)


def _newest_frames(streams: list[Stream], changed: threading.Condition) -> Generator[Frame | Broken, None, None]:
    """Start the streams and yield their frames; stops them at the end. A generator starts at its first frame."""
    running = list(streams)
    for stream in streams:
        stream.start()
    try:
        while running:
            yield from [frame for stream in running if (frame := stream.pop())]
            for stream in running:
                if stream.timeout and stream.silent() > stream.timeout + GRACE:  # its thread is inside the decoder
                    stream.fail(f"no frame for {stream.silent():.0f} s")
            for stream in [s for s in running if s.failure and s.newest is None]:
                running.remove(stream)
                yield Broken(stream.path, stream.failure)
            with changed:
                if not any(s.newest or s.failure for s in running):
                    changed.wait(POLL)
    finally:
        for stream in streams:
            stream.stopped.set()
        end = time.monotonic() + END_WAIT
        for stream in streams:
            stream.join(timeout=max(end - time.monotonic(), 0))


def parse_screen(source: str) -> tuple[int, Region | None]:
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
    """Endless frames of the screen, see parse_screen, each grabbed when it is asked for.

    Raises:
        ImportError: mss is not installed. ValueError: no such monitor; no screen.
    """
    monitor, region = parse_screen(source)
    try:
        import mss
    except ImportError as error:
        raise ImportError("the source 'screen' needs the package mss: pip install mss") from error
    try:
        grabber = mss.MSS()
    except mss.ScreenShotError as error:
        raise ValueError(f"source '{source}': no screen found: {error}") from error
    if not 0 <= monitor < len(grabber.monitors):
        raise ValueError(f"source '{source}': monitor {monitor}, expected 0..{len(grabber.monitors) - 1}")
    base = grabber.monitors[monitor]
    if region:
        region = region | {"left": base["left"] + region["left"], "top": base["top"] + region["top"]}
    return _screen_frames(grabber, region or base, vid_stride)


def _screen_frames(grabber: MSS, region: Region, vid_stride: int) -> Generator[Frame, None, None]:
    with grabber:
        number = 1
        while True:
            bgra = np.asarray(grabber.grab(region))
            image = np.ascontiguousarray(bgra[..., 2::-1])
            video = VideoInfo(DEFAULT_FPS, 0, (image.shape[0], image.shape[1]), live=True)
            yield Frame(image, Path("screen"), number, video)
            number += vid_stride
