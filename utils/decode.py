"""Image files to pixels: the one decoder of the scan, the loaders, detect.py and the Python API.

JPEG, PNG, BMP and WebP are decoded by OpenCV, other formats by Pillow; each stands in for the other where it fails.
"""

from __future__ import annotations

import importlib
import io
import re
import struct
import zlib
from functools import cache
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "WEBP", "TIFF", "GIF", "PPM", "TGA", "PCX", "ICO", "JPEG2000", "AVIF")
PLUGINS = {"pillow_heif": "HEIF", "pillow_jxl": "JXL"}  # package -> the format that it adds to Pillow
ORIENTATION = 0x0112  # the tag of EXIF and TIFF
TURN_MARKS = (b"Exif", b"eXIf", b"EXIF", b"Orientation", b"XML:com.adobe.xmp", b"Raw profile type")
PILLOW_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, ArithmeticError, RuntimeError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
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
        ValueError: neither OpenCV nor Pillow can decode it.
    """
    if not data:
        raise ValueError(f"{where}: not a readable image: the file is empty")
    reason = ""
    for reader in (_by_opencv, _by_pillow) if _is_plain(data) else (_by_pillow, _by_opencv):
        try:
            return reader(data)
        except DECODE_ERRORS as error:
            if reader is _by_pillow:
                reason = _reason(error, data)
    raise ValueError(f"{where}: not a readable image: {reason}")


def probe(data: bytes, where: object) -> ImageInfo:
    """The size of the image that `decode` gives, and its orientation; the whole image is checked.

    A JPEG is decoded at an eighth of its size, which reads every byte of it and fails where the full size would.

    Raises:
        ValueError: `decode` would fail.
    """
    if data.startswith(b"\xff\xd8"):
        try:
            with Image.open(io.BytesIO(data), formats=("JPEG", "MPO")) as file:
                (width, height), turn = file.size, _orientation_of(file)
                file.draft("RGB", (1, 1))
                file.load()
            return ImageInfo((width, height) if turn > 4 else (height, width), turn)
        except PILLOW_ERRORS:
            pass  # OpenCV may read it
    image, turn = decode(data, where)
    return ImageInfo((image.shape[0], image.shape[1]), turn)


def from_pillow(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB, upright, of a Pillow image of any mode: the same as from its file."""
    image.load()  # which turns a TIFF
    turn = _orientation_of(image)
    if image.mode.startswith("I") or image.mode == "F":
        gray = to_uint8(np.asarray(image))
        return turned(np.repeat(gray[..., None], 3, axis=2), turn)
    return turned(np.array(image.convert("RGB")), turn)


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
    numbers = values.astype(np.float64)
    finite = np.isfinite(numbers)
    low, high = (float(f(numbers[finite])) if finite.any() else 0.0 for f in (np.min, np.max))
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        numbers = numbers * 255
    elif low >= 0 and high <= 255:
        pass
    elif values.dtype.kind in "iu" and low >= 0 and high <= 65535:
        numbers = numbers // 256
    else:
        numbers = (numbers - low) * (255 / max(high - low, 1e-300))
    return np.where(finite, numbers, 0).round().clip(0, 255).astype(np.uint8)


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


def _by_opencv(data: bytes) -> Decoded:
    flags, turn = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION, 1
    if not _is_plain(data):
        flags |= cv2.IMREAD_ANYDEPTH
    elif any(mark in data for mark in TURN_MARKS):
        try:
            with Image.open(io.BytesIO(data), formats=pillow_formats()) as file:
                turn = _orientation_of(file)
        except PILLOW_ERRORS:
            flags = cv2.IMREAD_COLOR  # OpenCV turns it
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # the error is the message
    try:
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    finally:
        cv2.utils.logging.setLogLevel(level)
    if bgr is None:
        raise ValueError("OpenCV cannot decode it")
    return Decoded(turned(cv2.cvtColor(to_uint8(bgr), cv2.COLOR_BGR2RGB), turn), turn)


def _by_pillow(data: bytes) -> Decoded:
    with Image.open(io.BytesIO(data), formats=pillow_formats()) as file:
        turn = _orientation_of(file)
        return Decoded(from_pillow(file), turn)


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
    text = " ".join(str(error).split()) or type(error).__name__
    return text.split(", could be decompression bomb")[0][:200]
