"""Image files to pixels: the one decoder of the scan, the loaders, detect.py and the Python API.

The content decides, not the suffix. JPEG, PNG, BMP, WebP and TIFF are decoded by OpenCV or Pillow, each standing in
for the other where it fails; the other formats of FORMATS by Pillow; nothing else is. The size in the header is checked
before anything is decoded, see image_header.
"""

from __future__ import annotations

import importlib
import io
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from utils.image_header import (
    MODE_WEIGHTS,
    PROGRESSIVE,
    WEIGHTS,
    Header,
    TooLarge,
    check_scans,
    check_size,
    header_of,
    jpeg_head,
)
from utils.text import clean

# Raster images only: EPS and WMF start programs, others hold drawings or films.
FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "WEBP", "TIFF", "GIF", "PPM", "TGA", "PCX", "ICO", "JPEG2000", "AVIF")
PLUGINS = {"pillow_heif": "HEIF", "pillow_jxl": "JXL"}  # package -> the format that it adds to Pillow
ORIENTATION = 0x0112  # the tag of EXIF and TIFF
PNG_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT"}  # that change pixels
MAX_CHUNKS = 1_000_000  # of a PNG; 8 GB at the usual 8 KiB
REDUCED = {8: cv2.IMREAD_REDUCED_GRAYSCALE_8, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2}
BAND = 1 << 22  # pixels that are converted at a time
TURN_MARKS = (b"Exif", b"eXIf", b"EXIF", b"Orientation", b"XML:com.adobe.xmp", b"Raw profile type")
PILLOW_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, ArithmeticError, RuntimeError),
    *(AttributeError, AssertionError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError),
)
DECODE_ERRORS = (*PILLOW_ERRORS, cv2.error)


class Decoded(NamedTuple):
    """(H, W, 3) uint8 RGB, upright, and the EXIF orientation, 1..8, that the file had."""

    image: np.ndarray
    orientation: int


class ImageInfo(NamedTuple):
    """(height, width) of an upright image, and the EXIF orientation, 1..8, of its file."""

    size: tuple[int, int]
    orientation: int = 1


def decode(data: bytes, where: object) -> Decoded:
    """The image in the bytes of a file; `where` names it in errors.

    It is turned as the EXIF or TIFF tag says, or XMP where there is neither. See to_uint8 for 16 bits and more.

    Raises:
        ValueError: neither OpenCV nor Pillow can decode it; it is too large.
    """
    if not data:
        raise ValueError(f"{where}: not a readable image: the file is empty")
    header, reason = header_of(data), ""
    readers = (_by_opencv, _by_pillow) if _is_plain(data) else (_by_pillow, _by_opencv)
    try:
        if header:
            check_size(header)
            check_scans(data, header)
        for reader in readers if header else (_by_pillow,):
            try:
                return reader(data)
            except DECODE_ERRORS as error:
                if reader is _by_pillow:
                    reason = _reason(error, data)
    except TooLarge as error:
        reason = str(error)
    raise ValueError(f"{where}: not a readable image: {reason}")


def decode_small(data: bytes, where: object, least: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """The image as `decode` gives it, or a smaller one of at least `least` (height, width), and its full size.

    A JPEG is decoded at 1/8, 1/4 or 1/2 of its size if that has `least`: a pixel is the mean of its block, which is
    computed in the frequency domain. Other formats, and images needed at more than half their size, are whole.

    Raises:
        ValueError: see decode.
    """
    header = header_of(data) if data.startswith(b"\xff\xd8") else None
    if header is not None and (turn := _turn_of(data)) is not None:
        size = (header.width, header.height) if turn > 4 else (header.height, header.width)
        for factor, flag in REDUCED.items():
            if any(-(-side // factor) < wanted for side, wanted in zip(size, least, strict=True)):
                continue
            try:
                check_size(header)
                check_scans(data, header)
                return _by_opencv(data, flag).image, size
            except (TooLarge, *DECODE_ERRORS):
                break  # decode reads it another way, or says what is wrong
    image = decode(data, where).image
    return image, (image.shape[0], image.shape[1])


def probe(data: bytes, where: object) -> ImageInfo:
    """The size of the image that `decode` gives, and its orientation; the whole image is checked.

    A JPEG is decoded at an eighth of its size, which reads every byte of it and fails where the full size would.

    Raises:
        ValueError: `decode` would fail.
    """
    if data.startswith(b"\xff\xd8"):
        try:
            with _opened(data) as file:
                (width, height), turn = file.size, _orientation_of(file)
                file.draft("RGB", (1, 1))
                file.load()
            return ImageInfo((width, height) if turn > 4 else (height, width), turn)
        except (TooLarge, *PILLOW_ERRORS):
            pass  # OpenCV may read it, or decode says what is wrong
    image, turn = decode(data, where)
    return ImageInfo((image.shape[0], image.shape[1]), turn)


def from_pillow(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB, upright, of a Pillow image of any mode: the same as from its file."""
    image.load()  # which turns a TIFF
    turn = _orientation_of(image)
    if image.mode.startswith("I") or image.mode == "F":
        gray = to_uint8(np.asarray(image))
        return turned(np.repeat(gray[..., None], 3, axis=2), turn)
    width, height = image.size
    rows = max(BAND // max(width, 1), 1)
    if height <= rows:
        return turned(np.array(image.convert("RGB")), turn)
    rgb = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):  # the whole image at once would be in memory four times
        band = image.crop((0, top, width, min(top + rows, height)))
        rgb[top : top + rows] = np.asarray(band.convert("RGB"))
    return turned(rgb, turn)


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Pixels of any number type as uint8, by one rule, which looks at the whole image.

    16-bit integers: the upper byte. 32-bit integers: those in 0..255 as they are, those in 0..65535 by their upper
    byte. Floats: those in 0..1 times 255, those in 0..255 rounded. Everything else: lowest to highest value become 0 to
    255. NaN and infinity are black.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if values.dtype.itemsize == 2 and values.dtype.kind == "u":
        return (values >> 8).astype(np.uint8)
    rows = max(BAND // max(values[:1].size, 1), 1)
    bands = [values[top : top + rows] for top in range(0, len(values), rows)]  # as float64 all of it would be too much
    ranges = [(float(f.min()), float(f.max())) for band in bands if (f := _finite(band)).size]
    if values.size and not ranges:
        raise ValueError("no pixel is a finite number")
    low, high = min((r[0] for r in ranges), default=0.0), max((r[1] for r in ranges), default=0.0)
    kind, out = values.dtype.kind, np.empty(values.shape, np.uint8)
    for k, band in enumerate(bands):
        numbers = band.astype(np.float64)
        finite = np.isfinite(numbers)
        if kind == "f" and low >= 0 and high <= 1:
            numbers = numbers * 255
        elif low >= 0 and high <= 255:
            pass
        elif kind in "iu" and low >= 0 and high <= 65535:
            numbers = numbers // 256
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                numbers = (numbers - low) * (255 / max(high - low, 1e-300))
        out[k * rows : (k + 1) * rows] = np.where(finite, numbers, 0).round().clip(0, 255).astype(np.uint8)
    return out


def _finite(values: np.ndarray) -> np.ndarray:
    numbers = values.astype(np.float64)
    return np.asarray(numbers[np.isfinite(numbers)])


def turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, C) in the camera's frame, made upright as its EXIF `orientation` says."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def turned_boxes(xyxyn: np.ndarray, orientation: int) -> np.ndarray:
    """(n, 4) corners in 0..1 of the camera's frame -> of the upright image; the law of `turned`."""
    x1, y1, x2, y2 = xyxyn.T
    if orientation in (5, 6, 7, 8):
        x1, y1, x2, y2 = y1, x1, y2, x2
    if orientation in (2, 3, 6, 7):
        x1, x2 = 1 - x2, 1 - x1
    if orientation in (3, 4, 7, 8):
        y1, y2 = 1 - y2, 1 - y1
    return np.stack([x1, y1, x2, y2], axis=1)


def _is_plain(data: bytes) -> bool:
    """Whether OpenCV decodes it first: a JPEG, BMP or WebP, or a PNG that is not cut before its last chunk."""
    if data.startswith(b"\x89PNG"):
        return b"IEND" in data[-4096:] or b"IEND" in data
    return data.startswith((b"\xff\xd8", b"BM")) or (data.startswith(b"RIFF") and data[8:12] == b"WEBP")


def _by_opencv(data: bytes, reduced: int = 0) -> Decoded:
    """See decode. `reduced`: a value of REDUCED, for a JPEG."""
    plain, turn = _is_plain(data), _turn_of(data)
    flags = reduced | (cv2.IMREAD_COLOR_RGB if plain else cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if turn is not None:
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    with _SILENCE.kept():  # the error is the message
        image = cv2.imdecode(np.frombuffer(_pixels_of_png(data), np.uint8), flags)
    if image is None:
        raise ValueError("OpenCV cannot decode it")
    image, turn = to_uint8(image), turn or 1
    return Decoded(turned(image if plain else cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image), turn), turn)


def _turn_of(data: bytes) -> int | None:
    """The orientation of a file that OpenCV decodes, 1..8; None: OpenCV has to find it, Pillow cannot."""
    if not _is_plain(data):
        return 1
    head = data[: jpeg_head(data)] if data.startswith(b"\xff\xd8") else data
    if not any(mark in head for mark in TURN_MARKS):
        return 1
    try:
        with _opened(data) as file:
            return _orientation_of(file)
    except PILLOW_ERRORS:
        return None


def _by_pillow(data: bytes) -> Decoded:
    with _opened(data) as file:
        turn = _orientation_of(file)
        return Decoded(from_pillow(file), turn)


def _opened(data: bytes) -> Image.Image:
    """The image as Pillow opens it, not decoded.

    Raises:
        TooLarge, PILLOW_ERRORS: it is larger than is decoded here; Pillow cannot read its header.
    """
    file = Image.open(io.BytesIO(data), formats=pillow_formats())
    kind = file.format or ""
    bands = len(file.getbands()) / 4 if kind == "JPEG2000" else 1.0
    weight = max(WEIGHTS.get(kind, 1.0) * bands, MODE_WEIGHTS.get(file.mode, 1.0))
    header = Header(PROGRESSIVE if "progressive" in file.info else kind, *file.size, weight)
    check_size(header)
    check_scans(data, header)
    return file


def _pixels_of_png(data: bytes) -> bytes:
    """A PNG without the chunks that do not change its pixels: libpng prints a line about each damaged one."""
    if not data.startswith(b"\x89PNG"):
        return data
    parts, at, kept = [data[:8]], 8, True
    while at + 8 <= len(data):
        if len(parts) > MAX_CHUNKS:
            raise ValueError(f"more than {MAX_CHUNKS:,} chunks")
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end - at > len(data) + 12:
            raise ValueError("a chunk that is longer than the file")  # for which OpenCV would reserve memory
        kind = data[at + 4 : at + 8]
        kept = kept and kind in PNG_CHUNKS
        parts.append(data[at:end] if kind in PNG_CHUNKS else b"")
        at = end
    return data if kept else b"".join(parts)


class _Silence:
    """OpenCV's log is one for all threads: it is silent as long as any of them decodes, and then as before."""

    def __init__(self) -> None:
        self.lock, self.users, self.level = threading.Lock(), 0, 0

    @contextmanager
    def kept(self) -> Iterator[None]:
        """A block in which OpenCV logs nothing."""
        with self.lock:
            if not self.users:
                self.level = cv2.utils.logging.getLogLevel()
                cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
            self.users += 1
        try:
            yield
        finally:
            with self.lock:
                self.users -= 1
                if not self.users:
                    cv2.utils.logging.setLogLevel(self.level)


_SILENCE = _Silence()


@cache
def pillow_formats() -> tuple[str, ...]:
    """The formats that Pillow may decode: raster images only, none that starts a program; plug-ins where installed."""
    found = list(FORMATS)
    for package, name in PLUGINS.items():
        try:
            module = importlib.import_module(package)
        except ImportError:
            continue
        if package == "pillow_heif":
            module.register_heif_opener()
        found.append(name)
    Image.init()
    # Pillow warns of large and damaged files; here they are errors of one line, or read. Filters of the user win.
    warnings.filterwarnings("ignore", module=r"PIL\.", append=True)
    return tuple(name for name in found if name in Image.OPEN)


def _orientation_of(image: Image.Image) -> int:
    """The orientation of a Pillow image, 1..8, from EXIF or TIFF, else from XMP; 1 if they say none."""
    value = image.getexif().get(ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _reason(error: Exception, data: bytes) -> str:
    """Why Pillow cannot decode the bytes of a file, in one line."""
    if isinstance(error, Image.UnidentifiedImageError):
        brand = data[4:12]
        if brand[:4] == b"ftyp" and re.match(rb"hei[cfsmx]|hev[cx]|mif1|msf1", brand[4:]):
            return "a HEIC image, which needs: pip install pillow-heif"
        if data.startswith((b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")):
            return "a JPEG XL image, which needs: pip install pillow-jxl-plugin"
        return "of no known format, or its header is damaged"
    if isinstance(error, MemoryError):
        return "not enough memory"
    return clean(str(error).split(", could be decompression bomb")[0]) or type(error).__name__
