"""Where pictures come from: files, folders, patterns, lists, videos, webcams and streams, as one row of frames."""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np

from utils.images import IMAGE_SUFFIXES, imread

VIDEO_SUFFIXES = {".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".webm"}
SCHEMES = {"http", "https", "rtmp", "rtsp", "tcp"}
USUAL_FPS = 30.0  # for videos and cameras that do not tell theirs


@dataclass(frozen=True)
class VideoInfo:
    """fps: pictures a second of the file. frames: how many it says it has, 0 if unknown. size: (height, width)."""

    fps: float
    frames: int
    size: tuple[int, int]


@dataclass(frozen=True)
class Frame:
    """One picture.

    image: (H, W, 3) uint8 RGB. path: its file; for a camera or a stream a name made for it.
    number: 0 for a picture, 1, 2, ... in a video, skipped frames counted. video: None for a picture.
    """

    image: np.ndarray
    path: Path
    number: int = 0
    video: VideoInfo | None = None


def open_source(source: str, vid_stride: int = 1) -> Iterator[Frame]:
    """Frames of a picture, video, folder, glob pattern, list file (.txt), webcam index or stream URL.

    Files come sorted, those of a list in its order, each once. What `source` names is checked at once, files are
    opened when their turn comes; a video is read frame by frame and released at its end.

    Args:
        vid_stride: of a video, every how manieth frame.

    Raises:
        FileNotFoundError, ValueError: nothing there; a file of an unknown kind or one that cannot be read.
    """
    if vid_stride < 1:
        raise ValueError(f"--vid-stride {vid_stride}: expected at least 1")
    if source.isascii() and source.isdigit():
        return read_video(int(source), Path(f"webcam{source}"), vid_stride)
    if "://" in source:
        return read_video(source, stream_name(source), vid_stride)
    return read_files(list_files(source), vid_stride)


def stream_name(url: str) -> Path:
    """A file name for a stream, without the password its URL may hold.

    Raises:
        ValueError: a scheme that is not in SCHEMES.
    """
    parts = urlsplit(url)
    if parts.scheme.lower() not in SCHEMES:
        raise ValueError(f"source scheme '{parts.scheme}://', expected one of: {', '.join(sorted(SCHEMES))}")
    return Path(re.sub(r"\W+", "_", f"{parts.hostname or ''}{parts.path}").strip("_") or "stream")


def list_files(source: str) -> list[Path]:
    """The pictures and videos that `source` names; folders and patterns leave other files out."""
    path, known = Path(source), IMAGE_SUFFIXES | VIDEO_SUFFIXES
    if source and path.is_dir():
        found, what = sorted(path.iterdir()), "folder"
    elif path.is_file():
        files = read_list(path) if path.suffix.lower() == ".txt" else [path]
        for file in files:
            if file.suffix.lower() not in known:
                raise ValueError(f"{file}: unknown suffix '{file.suffix}', expected one of: {' '.join(sorted(known))}")
        return files
    elif glob.has_magic(source):
        found, what = sorted(Path(p) for p in glob.glob(source, recursive=True)), "pattern"
    else:
        raise FileNotFoundError(
            f"source '{source}' not found, expected a picture, video, folder, glob pattern, list.txt, webcam index "
            "or stream URL"
        )
    files = [p for p in dict.fromkeys(found) if p.suffix.lower() in known and p.is_file()]
    if not files:
        raise FileNotFoundError(f"{source}: no file of the {what} is one of: {' '.join(sorted(known))}")
    return files


def read_list(path: Path) -> list[Path]:
    """The files named in a text file, one a line, relative to the working directory or to the list's folder.

    Raises:
        FileNotFoundError, ValueError: a line names no file; there is no line; it is not text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text, expected one file name a line") from error
    files = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not (name := line.strip()):
            continue
        file = next((p for p in (Path(name), path.parent / name) if p.is_file()), None)
        if file is None:
            raise FileNotFoundError(f"{path}: line {number}: '{name}' not found, here or beside the list")
        files.append(file)
    if not files:
        raise FileNotFoundError(f"{path}: the list is empty, expected one file name a line")
    return list(dict.fromkeys(files))


def read_files(files: list[Path], vid_stride: int) -> Iterator[Frame]:
    """Frames of pictures and videos, file after file."""
    for path in files:
        if path.suffix.lower() in VIDEO_SUFFIXES:
            yield from read_video(str(path), path, vid_stride)
        else:
            yield Frame(imread(path), path)


def read_video(target: str | int, path: Path, vid_stride: int) -> Iterator[Frame]:
    """Every `vid_stride`-th frame of a video file, camera index or stream URL; `path` names it in frames and errors.

    Raises:
        ValueError: it cannot be opened, or holds no readable frame.
    """
    capture = cv2.VideoCapture(target)
    try:
        number, video = 0, None
        while capture.grab():
            number += 1
            if (number - 1) % vid_stride:
                continue
            ok, bgr = capture.retrieve()
            if not ok:
                break
            video = video or describe(capture, bgr)
            yield Frame(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), path, number, video)
        if video is None:
            raise ValueError(f"{path}: not a readable video, camera or stream")
    finally:
        capture.release()


def describe(capture: cv2.VideoCapture, frame: np.ndarray) -> VideoInfo:
    """What an open capture says of itself; the size is that of a decoded frame (H, W, 3)."""
    fps, frames = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    h, w = frame.shape[:2]
    return VideoInfo(
        fps=fps if math.isfinite(fps) and 0 < fps <= 1000 else USUAL_FPS,
        frames=int(frames) if math.isfinite(frames) and frames > 0 else 0,
        size=(h, w),
    )
