"""Sources of frames: image and video files, folders, patterns, lists, cameras, streams, the screen, standard input."""

from __future__ import annotations

import base64
import glob
import queue
import sys
import threading
from collections.abc import Generator, Iterable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

import cv2

from utils.decode import decode
from utils.files import REPO
from utils.images import IMAGE_SUFFIXES, imread
from utils.predict.frames import Broken, Frame, video_info
from utils.predict.streams import is_camera, is_url, read_screen, read_streams, stream_name

VIDEO_SUFFIXES = {".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}
Frames: TypeAlias = Generator[Frame | Broken, None, None]  # closing it stops threads and closes files
URL_TIMEOUT = 30  # seconds without an answer
MAX_DOWNLOAD = 500_000_000  # bytes of an image at a URL
READ_AHEAD = 4  # frames that are decoded while the network works on an earlier one
COUNT_ERROR = 0.02  # a container may be wrong about its number of frames by this fraction


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
        return read_ahead(read_files((Path(line) for line in stripped(sys.stdin)), vid_stride))
    if source.split(maxsplit=1)[:1] == ["screen"] and not Path(source).exists():
        return read_screen(source, vid_stride)
    suffix = Path(urlsplit(source).path).suffix.lower() if is_url(source) else ""
    if suffix in IMAGE_SUFFIXES and source.lower().startswith(("http://", "https://")):
        name = stream_name(source).name
        return read_image_url(source, Path(name[: -len(suffix)] + suffix))
    if suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
        return read_ahead(read_video(source, stream_name(source), vid_stride))  # a file, to be read to its end
    if is_url(source) or is_camera(source):
        return read_streams([source], vid_stride, stream_timeout)
    if source.lower().endswith(".streams"):
        return read_streams(read_stream_list(Path(source)), vid_stride, stream_timeout)
    return read_ahead(read_files(list_files(source), vid_stride))


def stripped(lines: Iterable[str]) -> Iterator[str]:
    """Lines without the white space around them, empty ones left out."""
    return (text for line in lines if (text := line.strip()))


def read_stream_list(path: Path) -> list[str]:
    """The URLs and camera numbers in a .streams file, one a line; lines that start with # are comments."""
    if not path.is_file():
        raise FileNotFoundError(f"source '{path}' not found, expected a list of stream URLs, one a line")
    return [line for line in stripped(read_text(path).splitlines()) if not line.startswith("#")]


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text, expected one name a line") from error


def list_files(source: str) -> list[Path]:
    """The images and videos that `source` names; folders and patterns leave other files out.

    A relative name is looked for in the working folder, then in the repository.

    Raises:
        FileNotFoundError, ValueError: nothing there; a file of an unknown kind.
    """
    known = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    path = next((p for p in (Path(source), REPO / source) if source and p.exists()), None)
    if path and path.is_dir():
        found, what = sorted(path.iterdir()), "folder"
    elif path and path.is_file():
        files = read_list(path) if path.suffix.lower() == ".txt" else [path]
        for file in files:
            if file.suffix.lower() not in known:
                raise ValueError(f"{file}: unknown suffix '{file.suffix}', expected one of: {' '.join(sorted(known))}")
        return files
    elif glob.has_magic(source):
        found, what = sorted(Path(p) for p in glob.glob(source, recursive=True)), "pattern"
    else:
        raise FileNotFoundError(
            f"source '{source}' not found, expected an image, video, folder, glob pattern, list.txt, webcam number, "
            "stream URL, list.streams, screen, or - for paths from standard input"
        )
    files = [p for p in dict.fromkeys(found) if p.suffix.lower() in known and p.is_file()]
    if not files:
        raise FileNotFoundError(f"{source}: no file of the {what} is one of: {' '.join(sorted(known))}")
    return files


def read_list(path: Path) -> list[Path]:
    """The files named in a text file, one a line, relative to the working folder or to the list's folder.

    Raises:
        FileNotFoundError, ValueError: a line names no file; there is no line; it is not text.
    """
    files = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not (name := line.strip()):
            continue
        file = next((p for p in (Path(name), path.parent / name) if p.is_file()), None)
        if file is None:
            raise FileNotFoundError(f"{path}: line {number}: '{name}' not found, here or beside the list")
        files.append(file)
    if not files:
        raise FileNotFoundError(f"{path}: the list is empty, expected one file name a line")
    return list(dict.fromkeys(files))


def read_files(files: Iterable[Path], vid_stride: int) -> Frames:
    """Frames of images and videos, file after file."""
    for path in files:
        if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
            yield from read_video(str(path), path, vid_stride)
            continue
        try:
            frame = Frame(imread(path), path)
        except (OSError, ValueError) as error:
            yield Broken(path, str(error))
        else:
            yield frame


def read_image_url(url: str, path: Path) -> Frames:
    """The image at a http or https URL, decoded as a file is; `path` names it, without a password the URL may hold."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    request = Request(parts._replace(netloc=host, fragment="").geturl())
    if parts.username:
        password = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        request.add_header("Authorization", f"Basic {base64.b64encode(password.encode()).decode()}")
    try:
        with urlopen(request, timeout=URL_TIMEOUT) as answer:
            data = answer.read(MAX_DOWNLOAD + 1)
        if len(data) > MAX_DOWNLOAD:
            raise ValueError(f"{path}: the answer is larger than {MAX_DOWNLOAD / 1e6:.0f} MB, expected an image")
        frame = Frame(decode(data, path).image, path)
    except (OSError, ValueError, HTTPException) as error:  # OSError: also every answer that is not 200
        yield Broken(path, str(error) if str(path) in str(error) else f"{path}: not downloaded: {error}")
    else:
        yield frame


def read_video(target: str, path: Path, vid_stride: int) -> Frames:
    """Every `vid_stride`-th frame of a video file or URL; `path` names it.

    A `Broken` follows if it cannot be opened, or ends well before its stated number of frames.
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
            video = video or video_info(capture, bgr)
            yield Frame(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), path, number, video)
        if video is None:
            yield Broken(path, f"{path}: not a readable video")
        elif number < video.frames * (1 - COUNT_ERROR) - 1:
            yield Broken(path, f"{path}: the video ends after {number} of {video.frames} frames")
    finally:
        capture.release()


def read_ahead(frames: Frames, depth: int = READ_AHEAD) -> Frames:
    """The items of `frames`, made in a thread up to `depth` of them early; closing the generator ends the thread."""
    items: queue.Queue[Frame | Broken | Exception | None] = queue.Queue(depth)  # None: the end
    stopped = threading.Event()

    def offer(item: Frame | Broken | Exception | None) -> bool:
        while not stopped.is_set():
            try:
                items.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for frame in frames:
                if not offer(frame):
                    return
            offer(None)
        except Exception as error:  # whatever it is, the reader raises it
            offer(error)
        finally:
            frames.close()

    thread = threading.Thread(target=work, name="decoder", daemon=True)
    thread.start()
    try:
        while (item := items.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join(timeout=1)
