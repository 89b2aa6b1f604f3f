"""Reading files whole: regular files only, of bounded size. Nothing waits for a pipe, a device or a socket."""

from __future__ import annotations

import codecs
import os
import stat
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

from utils.text import clean

MIB = 1 << 20
# The largest files that are read, in bytes, with the reason for each number.
LIMITS = {
    "image": 1024 * MIB,  # 134 million pixels (see image_header.MAX_PIXELS) of 16 bits a color, not compressed: 805 MB
    "label file": 256 * MIB,  # a million polygons of 15 points
    "list of images": 256 * MIB,  # a million lines of 256 characters; COCO's longest has 118,287 of some 60
    "table of suspects": 256 * MIB,  # suspects.csv, a million lines
    "annotation file": 16 * MIB,  # VOC XML of one image: 50,000 objects
    "annotation export": 512 * MIB,  # CVAT XML of all images of a project: some three million boxes
    "COCO file": 8192 * MIB,  # read in pieces; Objects365 has 5 GB for 1.7 million images
    "label cache": 4096 * MIB,  # 100 million boxes
}
PIECE = 1 << 20  # bytes that are read at a time where a file is not read whole
PIECES = 1 << 26  # and where it is, after a first reading that did not give all
LONG = 1 << 20  # characters of a text that is not split into all of its lines at once
KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_file(path: str | Path, what: str) -> int:
    """The size in bytes of a regular file that may be read as `what`, a key of LIMITS; it is not opened.

    Raises:
        OSError: there is no such file, or it cannot be reached. ValueError: it is no regular file, or too large.
    """
    try:
        state = os.stat(path)
    except ValueError as error:  # a null character
        raise ValueError(f"{clean(path)}: not the name of a file") from error
    return _check(path, state, what)


def kind_of(path: str | Path) -> str:
    """What is there instead of a regular file: 'a folder', 'a named pipe', 'a device'; '' for a file and for nothing.

    Whoever opens a pipe or a device may wait forever.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return ""
    return "" if stat.S_ISREG(mode) else _kind(mode)


def is_file(path: str | Path) -> bool:
    """Whether there is a regular file of this name; False too for names that no file can have."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def exists(path: str | Path) -> bool:
    """Whether there is something of this name; False too for names that no file can have."""
    try:
        os.stat(path)
    except (OSError, ValueError):
        return False
    return True


def read_bytes(path: str | Path, what: str) -> bytes:
    """The content of a regular file, as `what`, a key of LIMITS. What is no regular file is not even opened.

    Raises:
        OSError, ValueError: see check_file; names the file.
    """
    check_file(path, what)
    # O_NONBLOCK: a pipe that took the file's place in this moment is seen by the second check and not waited for.
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        size = _check(path, os.fstat(number), what)
        data = os.read(number, size + 1)
        if len(data) != size:  # a file that is being written, or whose system says less, or one of over 2 GiB
            pieces = [data]
            while (read := sum(map(len, pieces))) <= LIMITS[what] and (piece := os.read(number, PIECES)):
                pieces.append(piece)
            data = b"".join(pieces)
            _check_size(path, read, what)
        return data
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(number)


def _check(path: str | Path, state: os.stat_result, what: str) -> int:
    if not stat.S_ISREG(state.st_mode):
        raise ValueError(f"{path}: {_kind(state.st_mode)}, expected a file")
    return _check_size(path, state.st_size, what)


def _kind(mode: int) -> str:
    return next((name for is_kind, name in KINDS if is_kind(mode)), "something else")


def _check_size(path: str | Path, size: int, what: str) -> int:
    if size > LIMITS[what]:
        raise ValueError(f"{path}: {size / MIB:,.0f} MiB, more than the {LIMITS[what] // MIB:,} MiB of any {what}")
    return size


def read_text(path: Path, what: str = "label file") -> str:
    """The text of a UTF-8 or UTF-16 file, with or without a byte order mark (UTF-16 needs one).

    Raises:
        OSError, ValueError: see read_bytes; it is neither; names the file.
    """
    data = read_bytes(path, what)
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def lines_of(text: str) -> Iterator[str]:
    """The lines of a text without their ends, which are \\n, \\r\\n and \\r only, so that editors count them alike.

    str.splitlines also ends lines at form feeds, U+0085 and U+2028.
    """
    if len(text) > LONG:
        return (line.rstrip("\n") for line in StringIO(text, newline=None))
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return iter(text.split("\n"))


def number_of(text: str) -> float:
    """The number that a text holds, as programs print it: ASCII digits, a point, an exponent. See is_printed.

    Raises:
        ValueError: it holds something else, NaN and infinity included; without the file.
    """
    number = text.strip()
    if not is_printed(number):
        raise ValueError(f"'{clean(text, 40)}' is not a number")
    value = float(number)
    if value - value != 0:  # NaN and infinity
        raise ValueError(f"{clean(number, 40)} is not a finite number")
    return value


def is_printed(text: str) -> bool:
    """Whether digits are written as programs print them; float() also reads 0_1 and the digits of other scripts."""
    return text.isascii() and "_" not in text
