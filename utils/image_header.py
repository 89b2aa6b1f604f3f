"""The size of an image from the first bytes of its file, and the limits that keep a small file from filling memory."""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

# The most pixels of an image; 11,585 x 11,585. With the copies that decoding needs they take less than 1 GB. OpenCV's
# own variable changes it, as it changes OpenCV's limit.
SET = os.environ.get("OPENCV_IO_MAX_IMAGE_PIXELS", "")
MAX_PIXELS = int(SET) if SET.isdecimal() else 1 << 27
# Memory of a pixel while it is decoded, in that of an RGB one. JPEG 2000 is decoded in 4 bytes a color, AVIF in planes.
WEIGHTS = {"JPEG2000": 4.0, "AVIF": 2.0, "HEIF": 2.0, "JXL": 2.0}
MODE_WEIGHTS = {"I": 2.0, "F": 2.0}  # Pillow's modes of 32 bits
MAX_SCANS = 32  # of a progressive JPEG of MAX_PIXELS; the usual number is 10. Each goes over the whole image
SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # JPEG's markers of a frame
PROGRESSIVE, PROGRESSIVE_SOF = "progressive JPEG", {0xC2, 0xC6, 0xCA, 0xCE}
TIFF_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # field type -> struct's letter
WIDTH, HEIGHT, BITS, SAMPLES = 256, 257, 258, 277  # tags of TIFF


class TooLarge(Exception):
    """An image that would take too much memory or time; the message says why, without the file."""


class Header(NamedTuple):
    """What the header of an image file says: its format, width and height, and memory against that of RGB."""

    kind: str
    width: int
    height: int
    weight: float = 1.0


def header_of(data: bytes) -> Header | None:
    """The header of a JPEG, PNG, BMP, WebP or TIFF file; None for others, and where it is cut or damaged."""
    try:
        for magics, reader in READERS:
            if data.startswith(magics):
                return reader(data)
    except (struct.error, IndexError, KeyError, ValueError, OverflowError):
        pass
    return None


def check_size(header: Header) -> None:
    """Raise TooLarge for an image of more than MAX_PIXELS, or of fewer that take as much memory."""
    kind, width, height, weight = header
    if width * height * weight > MAX_PIXELS:
        limit = f"{int(MAX_PIXELS / weight):,} of {kind} images" if weight > 1 else f"{MAX_PIXELS:,}"
        advice = "cut it into tiles, or set OPENCV_IO_MAX_IMAGE_PIXELS"
        raise TooLarge(f"{width:,} x {height:,} pixels, more than the limit of {limit}; {advice}")


def check_scans(data: bytes, header: Header) -> None:
    """Raise TooLarge for a progressive JPEG whose many scans would take minutes to decode."""
    if header.kind != PROGRESSIVE:
        return
    scans = data.count(b"\xff\xda")
    if scans > MAX_SCANS and scans * header.width * header.height > MAX_SCANS * MAX_PIXELS:
        size = f"{header.width:,} x {header.height:,}"
        raise TooLarge(f"{scans:,} scans of {size} pixels, expected {MAX_SCANS} or fewer in a JPEG of this size")


def jpeg_head(data: bytes) -> int:
    """Where the first scan of a JPEG begins, after the segments with its tags; its length if damage hides that."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in (b"\xda", b"\xff", b""):
        at += 2 if 0xD0 <= data[at + 1] <= 0xD9 else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at if data[at : at + 2] == b"\xff\xda" else len(data)


def _jpeg(data: bytes) -> Header | None:
    at = 2
    while True:
        while data[at] != 0xFF:  # padding and damage between segments
            at = data.index(b"\xff", at)
        marker = data[at + 1]
        if marker in SOF:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return Header(PROGRESSIVE if marker in PROGRESSIVE_SOF else "JPEG", width, height)
        if marker == 0xDA:
            return None
        alone = marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9  # no length follows
        at += 1 if marker == 0xFF else 2 if alone else 2 + struct.unpack_from(">H", data, at + 2)[0]


def _png(data: bytes) -> Header | None:
    width, height = struct.unpack_from(">II", data, 16)
    return Header("PNG", width, height) if data[12:16] == b"IHDR" else None


def _bmp(data: bytes) -> Header:
    old = struct.unpack_from("<I", data, 14)[0] == 12
    width, height = struct.unpack_from("<HH" if old else "<ii", data, 18)
    return Header("BMP", abs(width), abs(height))


def _webp(data: bytes) -> Header | None:
    if data[8:12] != b"WEBP":
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        return None
    return Header("WebP", width, height)


def _tiff(data: bytes) -> Header:
    """The first page; its samples may have up to 64 bits. Source: TIFF 6.0; the BigTIFF file format."""
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
    start = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, 8 if big else 4)[0]
    count = struct.unpack_from(f"{order}{'Q' if big else 'H'}", data, start)[0]
    first, step, room = (start + 8, 20, 8) if big else (start + 2, 12, 4)
    values = {BITS: 1, SAMPLES: 1}
    for at in range(first, first + step * min(count, 4096), step):
        tag, kind = struct.unpack_from(f"{order}HH", data, at)
        if tag not in (WIDTH, HEIGHT, BITS, SAMPLES):
            continue
        letter = TIFF_TYPES[kind]
        number = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, at + 4)[0]
        place = at + step - room
        if number * struct.calcsize(letter) > room:  # bits of several samples: elsewhere
            place = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, place)[0]
        values[tag] = struct.unpack_from(f"{order}{letter}", data, place)[0]
    weight = max(values[BITS] * values[SAMPLES] / 32, 1.0)
    return Header("TIFF", values[WIDTH], values[HEIGHT], weight)


READERS = (
    ((b"\xff\xd8",), _jpeg),
    ((b"\x89PNG",), _png),
    ((b"BM",), _bmp),
    ((b"RIFF",), _webp),
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _tiff),
)
