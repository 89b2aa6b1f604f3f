"""Sources of frames: image and video files, folders, patterns, lists, cameras, streams, the screen, standard input."""

from __future__ import annotations

import glob
import io
import logging
import math
import os
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

import cv2
import numpy as np

from utils.decode import decode
from utils.files import REPO
from utils.images import IMAGE_SUFFIXES, imread
from utils.predict.animations import count_frames, read_animation, warn_of_pages
from utils.predict.download import download
from utils.predict.frames import Broken, Frame, is_text, media_path, misses_bytes, too_large, video_info
from utils.predict.streams import (
    LONGEST_IO,
    is_camera,
    is_url,
    read_screen,
    read_streams,
    stream_name,
    time_limits,
    without_secrets,
)
from utils.predict.threads import END_WAIT, GRACE, DecoderThread, Outcome
from utils.reading import kind_of, lines_of, read_text
from utils.runs import LIST_OF_FILES
from utils.text import clean, counted, first

LOGGER = logging.getLogger(__name__)
VIDEO_SUFFIXES = {".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}
Frames: TypeAlias = Generator[Frame | Broken, None, None]  # closing it stops threads and closes files
READ_AHEAD = 4  # frames that are decoded while the network works on an earlier one
COUNT_ERROR = 0.02  # a container may be wrong about its number of frames by this fraction
RATE_FRAMES = 8  # at the start of a video, from which its frame rate is checked


def open_source(source: str, vid_stride: int = 1, stream_timeout: float = 60) -> Frames:
    """Frames of what `source` names; an input that cannot be read gives a `Broken` and the next one follows.

    An image, video, folder, glob pattern, .txt list of files, webcam number, stream URL, .streams list of both,
    'screen [monitor] [left top width height]', or '-': standard input, a path a line. Files come sorted, those of a
    list in its order, each once. Names are checked now, files are opened when their turn comes; a video is decoded a
    few frames ahead of the reader and never held whole.

    Args:
        vid_stride: every Nth frame of a video or stream.
        stream_timeout: seconds without a frame after which a stream is closed; 0: never.

    Raises:
        FileNotFoundError, ValueError: nothing there; a file of an unknown kind.
    """
    if vid_stride < 1:
        raise ValueError(f"--vid-stride {vid_stride}: expected at least 1")
    if stream_timeout < 0:
        raise ValueError(f"--stream-timeout {stream_timeout}: expected seconds, or 0 to wait forever")
    if source == "-":
        return read_ahead(read_files(standard_input(), vid_stride))
    if source.split(maxsplit=1)[:1] == ["screen"] and not os.path.exists(source):
        return read_screen(source, vid_stride)
    suffix = Path(urlsplit(source).path).suffix.lower() if is_url(source) else ""
    if suffix in IMAGE_SUFFIXES and source.lower().startswith(("http://", "https://")):
        name = stream_name(source).name
        path = Path(name[: -len(suffix)] + suffix)
        return read_ahead(read_image_url(source, path, stream_timeout), 1, stream_timeout, path)
    if suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES:  # a file, to be read to its end
        path = stream_name(source)
        return read_ahead(read_video(source, path, vid_stride, stream_timeout), READ_AHEAD, stream_timeout, path)
    if is_url(source) or (is_camera(source) and not os.path.exists(source)):
        return read_streams([source], vid_stride, stream_timeout)
    if source.lower().endswith(".streams"):
        return read_streams(read_stream_list(Path(source)), vid_stride, stream_timeout)
    return read_ahead(read_files(list_files(source), vid_stride))


def source_files(source: str) -> list[Path]:
    """The files that a source reads, as far as they are known now; those of standard input are not."""
    if source in ("", "-") or is_url(source) or source.split(maxsplit=1)[:1] == ["screen"]:
        return []
    if (is_camera(source) and not os.path.exists(source)) or source.lower().endswith(".streams"):
        return []
    return list_files(source, quiet=True)


def standard_input() -> Iterator[Path]:
    """The paths in the lines of standard input, as bytes of any encoding; files of AppleDouble are left out."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding=sys.getfilesystemencoding(), errors=sys.getfilesystemencodeerrors())
    for line in sys.stdin:
        text = line.rstrip("\r\n")
        path = Path(text if text and os.path.exists(text) else text.strip())
        if path.name.startswith("._"):
            LOGGER.warning(f"{first([path])}: left out, holds the attributes of a file (AppleDouble), not an image")
        elif text.strip():
            yield path


def stripped(lines: Iterable[str]) -> Iterator[str]:
    """Lines without the white space around them, empty ones left out."""
    return (text for line in lines if (text := line.strip()))


def read_stream_list(path: Path) -> list[str]:
    """The URLs and camera numbers in a .streams file, one a line; lines that start with # are comments."""
    if not path.is_file():
        raise FileNotFoundError(f"source '{path}' not found, expected a list of stream URLs, one a line")
    return [line for line in stripped(lines_of(read_text(path, "list of images"))) if not line.startswith("#")]


def list_files(source: str, quiet: bool = False) -> list[Path]:
    """The images and videos that `source` names; folders and patterns leave other files out, which is logged.

    A relative name is looked for in the working folder, then in the repository.

    Args:
        quiet: nothing is logged.

    Raises:
        FileNotFoundError, ValueError: nothing there; a file of an unknown kind.
    """
    known = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    path = next((p for p in (Path(source), REPO / source) if source and os.path.exists(p)), None)
    if path and path.is_dir():
        found, what = sorted(path.iterdir()), "folder"
    elif path and path.is_file():
        files = read_list(path) if path.suffix.lower() == ".txt" else [path]
        for file in files:
            if file.suffix.lower() not in known:
                suffix = clean(file.suffix, 20)
                raise ValueError(
                    f"{first([file])}: unknown suffix '{suffix}', expected one of: {' '.join(sorted(known))}"
                )
        return files
    elif path and (kind := kind_of(path)):
        raise ValueError(f"source '{clean(source)}' is {kind}, expected a file; for a webcam give its number")
    elif glob.has_magic(source):
        found, what = sorted(Path(p) for p in glob.glob(source, recursive=True)), "pattern"
    else:
        raise FileNotFoundError(
            f"source '{clean(without_secrets(source))}' not found, expected an image, video, folder, glob pattern, "
            "list.txt, webcam number, stream URL, list.streams, screen, or - for paths from standard input"
        )
    entries = [p for p in dict.fromkeys(found) if not p.is_dir() and p.name != LIST_OF_FILES]
    hidden = [p for p in entries if p.name.startswith("._" if what == "pattern" else ".")]
    files = [p for p in entries if p.suffix.lower() in known and p not in set(hidden)]
    source = clean(without_secrets(source))
    if not quiet:
        others = [p for p in entries if p not in set(files) | set(hidden)]
        report_left_out(source, hidden, others, sum(p.is_dir() for p in found) if what == "folder" else 0)
    if not files:
        raise FileNotFoundError(f"{source}: no file of the {what} is one of: {' '.join(sorted(known))}")
    return files


def report_left_out(source: str, hidden: Sequence[Path], others: Sequence[Path], folders: int) -> None:
    """Log what of a folder or a pattern is not read: a line for hidden files, one for suffixes and sub-folders."""
    if hidden:
        LOGGER.warning(f"{source}: {counted(len(hidden), 'hidden file')} left out: {first([p.name for p in hidden])}")
    counts = Counter(clean(p.suffix.lower(), 20) or "no suffix" for p in others).most_common()
    words = [f"{count} {suffix}" for suffix, count in counts[:10]]
    words += [f"{sum(count for _, count in counts[10:])} others"] if len(counts) > 10 else []
    words += [counted(folders, "sub-folder")] if folders else []
    if words:
        LOGGER.warning(f"{source}: left out, not images or videos that can be read here: {', '.join(words)}")


def read_list(path: Path) -> list[Path]:
    """The files named in a text file, one a line, relative to the working folder or to the list's folder.

    Raises:
        FileNotFoundError, ValueError: a line names no file; there is no line; it is not text.
    """
    files = []
    for number, line in enumerate(lines_of(read_text(path, "list of images")), start=1):
        if not (name := line.strip()):
            continue
        file = next((p for p in (Path(name), path.parent / name) if os.path.isfile(p)), None)
        if file is None:
            raise FileNotFoundError(f"{path}: line {number}: '{clean(name)}' not found, here or beside the list")
        files.append(file)
    if not files:
        raise FileNotFoundError(f"{path}: the list is empty, expected one file name a line")
    return list(dict.fromkeys(files))


def read_files(files: Iterable[Path], vid_stride: int) -> Frames:
    """Frames of images and videos, file after file; animated images are videos."""
    for path in files:
        if kind := kind_of(path):
            yield Broken(path, f"{path}: is {kind}, expected a file")
            continue
        frames = count_frames(path)
        if frames > 1 or (frames and path.suffix.lower() in VIDEO_SUFFIXES):
            yield from read_animation(path, frames, vid_stride)
            continue
        if path.suffix.lower() in VIDEO_SUFFIXES and is_text(path):
            yield Broken(path, f"{path}: not a readable video: it is text")
            continue
        if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
            yield from read_video(media_path(path), path, vid_stride)
            continue
        warn_of_pages(path)
        try:
            frame = Frame(imread(path), path)
        except (OSError, ValueError) as error:
            yield Broken(path, str(error))
        else:
            yield frame


def read_image_url(url: str, path: Path, timeout: float) -> Frames:
    """The image at a http or https URL, decoded as a file is; `path` names it, without a password the URL may hold.

    Args:
        timeout: seconds that the download may take; 0: no limit.
    """
    try:
        data = download(url, timeout)
    except ValueError as error:
        yield Broken(path, f"{path}: not downloaded: {without_secrets(str(error))}")
        return
    try:
        frame = Frame(decode(data, path).image, path)
    except ValueError as error:
        yield Broken(path, str(error))
    else:
        yield frame


def read_video(target: str, path: Path, vid_stride: int, timeout: float = 0) -> Frames:
    """Every `vid_stride`-th frame of a video file or URL; `path` names it.

    A `Broken` follows if it cannot be opened, or is cut short: see ends_early.

    Args:
        timeout: seconds that opening a URL and each of its frames may take; 0: the longest that is allowed.
    """
    # Of a URL, other backends would log the login that it may hold.
    limits = time_limits(timeout or math.inf, timeout or math.inf)
    from_web, start = isinstance(target, str) and is_url(target), time.monotonic()
    capture = cv2.VideoCapture(target, cv2.CAP_FFMPEG, limits) if from_web else cv2.VideoCapture(target, cv2.CAP_ANY)
    try:
        if size := too_large(capture):
            yield Broken(path, f"{path}: frames of {size} pixels are too large")
            return
        number, video, seconds = 0, None, 0.0
        grabbed = GrabbedFrames(capture, vid_stride, time.monotonic() - start)
        rest = iter(grabbed)
        first_ones = list(islice(rest, RATE_FRAMES))
        times = [seconds for seconds, _ in first_ones]
        for number, (seconds, bgr) in enumerate(chain(first_ones, rest), start=1):
            if bgr is not None:
                video = video or video_info(capture, bgr, times=times)
                yield Frame(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), path, number, video, seconds)
        if from_web and grabbed.waited > 0.9 * min(timeout or math.inf, LONGEST_IO):
            yield Broken(path, f"{path}: no frame for {grabbed.waited:.1f} s, closed after {counted(number, 'frame')}")
        elif video is None:
            yield Broken(path, f"{path}: not a readable video")
        elif ends_early(path, number, seconds * capture.get(cv2.CAP_PROP_FPS) + 1, video.frames):
            stated = f" of {video.frames}" if video.frames > number else ""
            yield Broken(path, f"{path}: the video is cut short, it ends after {number}{stated} frames")
    except cv2.error:  # memory for a frame, most of all
        yield Broken(path, f"{path}: a frame that cannot be decoded, the video ends here")
    finally:
        capture.release()


class GrabbedFrames:
    """The time in seconds of each frame, and every `vid_stride`-th frame itself, (H, W, 3) uint8 BGR, else None.

    Attributes:
        waited: seconds that the last frame, or the end instead of it, took.
    """

    def __init__(self, capture: cv2.VideoCapture, vid_stride: int, waited: float):
        self.capture, self.vid_stride, self.waited = capture, vid_stride, waited

    def __iter__(self) -> Iterator[tuple[float, np.ndarray | None]]:
        number = 0
        while self.grab():
            bgr = None
            if number % self.vid_stride == 0:
                ok, bgr = self.capture.retrieve()
                if not ok:
                    return
            number += 1
            seconds = self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            yield seconds if math.isfinite(seconds) else 0.0, bgr

    def grab(self) -> bool:
        """Whether there is another frame."""
        if not self.capture.isOpened():
            return False
        start = time.monotonic()
        found = self.capture.grab()
        self.waited = time.monotonic() - start
        return found


def ends_early(path: Path, read: int, reached: float, stated: int) -> bool:
    """Whether a video of `stated` frames (0: unknown) was cut short.

    The number is often computed from the length and the rate. So a video whose frames are fewer, but reach to its end,
    is whole, and so is a Matroska file of the size that it states, whose length may count a late start.

    Args:
        read: frames read. reached: the frame number at the time of the last one, had all the stated rate.
    """
    missing = misses_bytes(path)
    return missing or (missing is None and max(read, reached) < stated * (1 - COUNT_ERROR) - 1)


def read_ahead(frames: Frames, depth: int = READ_AHEAD, timeout: float = 0, path: Path = Path()) -> Frames:
    """The items of `frames`, made in a thread up to `depth` of them early; closing the generator ends the thread.

    Args:
        timeout: seconds without an item after which `frames` are given up, with a Broken; 0: never. path: their name.
    """
    items: queue.Queue[Frame | Broken | BaseException | None] = queue.Queue(depth)  # None: the end
    stopped = threading.Event()

    def offer(item: Frame | Broken | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                items.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        with Outcome(offer), closing(frames):
            for frame in frames:
                if not offer(frame):
                    return

    thread = DecoderThread("decoder", work)
    thread.start()
    try:
        while (item := items.get(timeout=timeout + GRACE if timeout else None)) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    except queue.Empty:
        yield Broken(path, f"{path}: no frame for {timeout:g} s, closed")
    finally:
        stopped.set()
        thread.join(timeout=END_WAIT)
