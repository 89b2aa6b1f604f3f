"""Data sets with one fault each, and the line that each of them must lead to.

`python tests/bad_data.py` prints the table: fault, line, seconds of CPU time, and megabytes that the scan adds.
"""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import re
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the run as a program

from utils.data.data_yaml import read_data_yaml

NAMES = ["cat", "dog"]
ROW = "0 0.5 0.5 0.2 0.2\n"


class Fault(NamedTuple):
    """A fault: writes into the folder of a healthy set; `says` is a pattern that its output must match."""

    make: Callable[[Path], None]
    says: str


def healthy(root: Path) -> None:
    """A set of one image and one box, of cats and dogs."""
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    Image.new("RGB", (64, 48), (90, 120, 60)).save(root / "images/a.jpg")
    (root / "labels/a.txt").write_text(ROW)
    write_yaml(root)


def write_yaml(root: Path, **keys: object) -> None:
    """The data YAML, which is JSON too."""
    content = {"train": "images", "val": "images", "names": NAMES, **keys}
    (root / "data.yaml").write_text(json.dumps(content), encoding="utf-8")


# ---- images: images/x.jpg, beside a healthy one --------------------------------------------------------------------


def image(content: bytes | Callable[[], bytes], says: str) -> Fault:
    def make(root: Path) -> None:
        (root / "images/x.jpg").write_bytes(content() if callable(content) else content)

    return Fault(make, says)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, extra: bytes = b"", rows: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def small_png(extra: bytes) -> bytes:
    return png(8, 8, extra, (b"\0" + bytes(24)) * 8)


def saved(kind: str, size: tuple[int, int] = (40, 30), **options: object) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def patched(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new, 1)


def many_scans() -> bytes:
    """A progressive JPEG of 8000 x 8000 whose last scan stands in it 4,000 times."""
    out = io.BytesIO()
    Image.new("L", (8000, 8000), 128).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * 4000 + b"\xff\xd9"


def special(make: Callable[[Path], object], says: str, name: str = "images/x.jpg") -> Fault:
    def put(root: Path) -> None:
        (root / name).unlink(missing_ok=True)
        make(root / name)

    return Fault(put, says)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)  # the name of a socket has 107 bytes or fewer
        server.bind(path.name)
        os.chdir(here)


LEFT_OUT = r"x\.jpg: left out, not a readable image: "
UNKNOWN = LEFT_OUT + "of no known format"
PIXELS = LEFT_OUT + r"[\d,]+ x [\d,]+ pixels, more than the limit of "
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n{} loop\n%%EOF\n"
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>'
DDS = (
    b"DDS "
    + struct.pack("<7I", 124, 0x1007, 8, 8, 0, 0, 0)
    + bytes(44)
    + struct.pack("<2I4s5I", 32, 4, b"ZZZZ", *[0] * 5)
)
IMAGES = {
    "EPS named .jpg": image(EPS, UNKNOWN),
    "SVG named .jpg": image(SVG, UNKNOWN),
    "WMF named .jpg": image(b"\xd7\xcd\xc6\x9a" + bytes(200), UNKNOWN),
    "PSD named .jpg": image(b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3) + bytes(900), UNKNOWN),
    "DDS named .jpg": image(DDS + bytes(99), UNKNOWN),
    "BLP named .jpg": image(b"BLP2" + struct.pack("<I4B2I", 1, 9, 9, 9, 9, 8, 8) + bytes(999), UNKNOWN),
    "Radiance HDR named .jpg": image(b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 8 +X 8\n" + bytes(256), UNKNOWN),
    "Sun raster named .jpg": image(struct.pack(">8I", 0x59A66A95, 8, 8, 24, 192, 1, 0, 0) + bytes(192), UNKNOWN),
    "PDF named .jpg": image(b"%PDF-1.7\n" + bytes(100), UNKNOWN),
    "empty image": image(b"", LEFT_OUT + "the file is empty"),
    "AVIF cut": image(lambda: saved("AVIF")[:-60], LEFT_OUT),
    "JPEG 2000 damaged": image(lambda: saved("JPEG2000")[:300], LEFT_OUT),
    "PNG bomb": image(png(60_000, 60_000, rows=bytes(1000)), PIXELS),
    "GIF bomb": image(lambda: patched(saved("GIF"), struct.pack("<HH", 40, 30), b"\xff" * 4), LEFT_OUT + ".*pixels"),
    "BMP bomb": image(
        lambda: patched(saved("BMP"), struct.pack("<ii", 40, 30), struct.pack("<ii", 50000, 50000)), PIXELS
    ),
    "TIFF bomb": image(
        lambda: patched(
            saved("TIFF"), struct.pack("<HHI", 256, 4, 1) + b"\x28\0", struct.pack("<HHI", 256, 4, 1) + b"\0\xf0"
        ).replace(struct.pack("<HHI", 257, 4, 1) + b"\x1e\0", struct.pack("<HHI", 257, 4, 1) + b"\0\xf0"),
        PIXELS,
    ),
    "WebP bomb": image(b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\xff\x00" * 2 + bytes(8), PIXELS),
    "JPEG bomb": image(lambda: patched(saved("JPEG"), struct.pack(">HH", 30, 40), b"\xff\xdc\xff\xdc"), PIXELS),
    "JPEG 2000 bomb": image(
        lambda: saved("JPEG2000").replace(struct.pack(">II", 40, 30), struct.pack(">II", 40000, 30000)), LEFT_OUT
    ),
    "PPM bomb": image(b"P6 40000 40000 255\n" + bytes(99), LEFT_OUT + ".*pixels"),
    "PCX bomb": image(lambda: patched(saved("PCX"), struct.pack("<HH", 39, 29), b"\xff\xff\xff\xff"), LEFT_OUT),
    "JPEG of 4,000 scans": image(many_scans, LEFT_OUT + r"4,\d+ scans of 8,000 x 8,000 pixels"),
    "PNG text of 200 MB": image(
        lambda: small_png(chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200 << 20), 9))), "2 images, 1 of them"
    ),
    "PNG profile of 200 MB": image(
        lambda: small_png(chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(200 << 20), 9))), "2 images, 1 of them"
    ),
    "PNG of 100,000 bad chunks": image(
        lambda: small_png(b"".join(chunk(b"gAMA", b"too long") for _ in range(100_000))), "2 images, 1 of them"
    ),
    "EXIF of 60 kB of noise": image(
        lambda: saved("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0" + np.random.default_rng(1).bytes(60_000)), "2 images, 1"
    ),
    "PNG of 100 million pixels": image(
        lambda: png(10_000, 10_000, rows=(b"\0" + bytes(30_000)) * 10_000), "2 images, 1 of them"
    ),
    "named pipe x.jpg": special(lambda path: os.mkfifo(path), r"x\.jpg: left out, a named pipe, expected a file"),
    "socket x.jpg": special(make_socket, r"x\.jpg: left out, a socket, expected a file"),
    "link to /dev/zero": special(lambda path: path.symlink_to("/dev/zero"), r"x\.jpg: left out, a device, expected"),
    "link to /dev/tty": special(lambda path: path.symlink_to("/dev/tty"), r"x\.jpg: left out, a device, expected"),
    "folder x.jpg": special(lambda path: path.mkdir(), "1 image, 0 of them"),
    "link to itself": special(lambda path: path.symlink_to("x.jpg"), LEFT_OUT + "Too many levels of symbolic links"),
    "link to nothing": special(lambda path: path.symlink_to("gone"), LEFT_OUT + "No such file"),
    "2 GB of nothing": special(
        lambda path: sparse(path, 2 << 30), r"x\.jpg: left out, 2,048 MiB, more than the 1,024 MiB"
    ),
    "escapes in a file name": special(
        lambda path: path.with_name("x\x1b[2J\n.jpg").write_bytes(b"?"), r"x \[2J \.jpg: left out"
    ),
    "1,200 folders in each other": special(lambda path: deep(path.parent), "1 image,"),
}


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def deep(folder: Path) -> None:
    here = os.getcwd()
    os.chdir(folder)
    for _ in range(1200):
        os.mkdir("d")
        os.chdir("d")
    os.chdir(here)


# ---- label files: labels/a.txt -------------------------------------------------------------------------------------


def label(text: str | bytes | Callable[[], str], says: str) -> Fault:
    def make(root: Path) -> None:
        content = text() if callable(text) else text
        (root / "labels/a.txt").write_bytes(content if isinstance(content, bytes) else content.encode())

    return Fault(make, says)


def rows(count: int) -> str:
    """`count` different boxes."""
    return "".join(f"0 0.{k:07} 0.5 0.2 0.2\n" for k in range(2_000_000, 2_000_000 + count))


LABELS = {
    "0_1 in a label file": label("0 0.5 0_1 0.2 0.2\n", r"a\.txt:1: '0_1' is not a number as programs write it"),
    "digits of other scripts": label("0 0.5 \uff11 0.2 0.2\n", r"a\.txt:1: .* is not a number as programs write it"),
    "1e400": label("0 0.5 1e400 0.2 0.2\n", r"a\.txt:1: NaN or infinity among the numbers: 1e400"),
    "nan": label("0 0.5 nan 0.2 0.2\n", r"a\.txt:1: NaN or infinity among the numbers: nan"),
    "0x1": label("0x1 0.5 0.5 0.2 0.2\n", r"a\.txt:1: '0x1 .*' is not a row of numbers"),
    "form feed before line 2": label(f"{ROW}\x0c\n\x0cx\n", r"a\.txt:3: 'x' is not a row of numbers"),
    "U+2028 and U+0085 in line 1": label("0 0.5 0.5 0.2\u2028 0.2\u0085\nx\n", r"a\.txt:2: 'x'"),
    "lines that end with \\r": label("0 0.5 0.5 0.2 0.2\r1 .4 .4 .1 .1\rx\r", r"a\.txt:3: 'x'"),
    "escapes in a label file": label("\x1b[2J\x07 1 2 3 4\n", r"a\.txt:1: '\[2J 1 2 3 4' is not a row"),
    "zeros for a label file": label(bytes(100_000), r"a\.txt:1: .* is not a row of numbers"),
    "UTF-16 without a mark": label(ROW.encode("utf-16-le"), r"a\.txt:1: .* is not a row of numbers"),
    "class 1e300": label("1e300 0.5 0.5 0.2 0.2\n", r"a\.txt:1: class 1e300, but data.yaml has 2 classes"),
    "width 1e-300": label("0 0.5 0.5 1e-300 0.2\n", r"a\.txt:1: box without area, dropped"),
    "width 1e300": label("0 0.5 0.5 1e300 0.2\n", r"a\.txt:1: box .* is far outside the image"),
    "a line of 10 MB": label(lambda: "0 " + "0.5 " * 2_500_000, r"a\.txt:1: more than 20,001 numbers"),
    "a million equal rows": label(lambda: ROW * 1_000_000, r"a\.txt:2: the same box as in line 1, dropped"),
    "a million bad rows": label(lambda: "x 1 2 3 4\n" * 1_000_000, r"^.*1,000,000 label errors:"),
    "a million different rows": label(lambda: rows(1_000_000), "1 image, 0 of them background, 1,000,000 boxes"),
    "more than a million rows": label(lambda: rows(1_000_001), r"a\.txt:1000001: more than the 1,000,000 lines"),
    "named pipe a.txt": special(lambda path: os.mkfifo(path), r"a\.txt:1: .*a named pipe, expected", "labels/a.txt"),
    "folder a.txt": special(lambda path: path.mkdir(), r"a\.txt:1: .*a folder, expected a file", "labels/a.txt"),
    "a.txt links to nothing": special(lambda path: path.symlink_to("gone"), r"a\.txt:1: gone since", "labels/a.txt"),
    "a.txt links to itself": special(lambda path: path.symlink_to("a.txt"), r"a\.txt:1: .*Too many", "labels/a.txt"),
}

# ---- lists and data YAMLs ------------------------------------------------------------------------------------------


def listed(text: bytes | Callable[[], bytes], says: str) -> Fault:
    def make(root: Path) -> None:
        (root / "list.txt").write_bytes(text() if callable(text) else text)
        write_yaml(root, train="list.txt")

    return Fault(make, says)


def keys(says: str, **values: object) -> Fault:
    return Fault(lambda root: write_yaml(root, **values), says)


LISTS = {
    "list of a user's home": listed(b"~nobody/x.jpg\n", r"list\.txt: none of its 1 lines is a file, such as '~nobody"),
    "list with a null character": listed(b"a\0b.jpg\n", r"list\.txt: 'a b\.jpg' is not the name of a file"),
    "list of /": listed(b"/\n", r"list\.txt: '/' is not the name of a file"),
    "list with a line of 5 MB": listed(b"a" * 5_000_000, r"list\.txt: 'a+\.\.\.' is not the name of a file"),
    "list that is no text": listed(bytes(range(256)), r"list\.txt: not UTF-8 text"),
    "list of 50,000 missing images": listed(
        lambda: b"".join(b"some/where/%d.jpg\n" % k for k in range(50_000)), "none of its 50000 lines is a file"
    ),
    "list that is a named pipe": Fault(
        lambda root: (os.mkfifo(root / "list.txt"), write_yaml(root, train="list.txt"))[1],
        "a named pipe, expected a file",
    ),
    "path of a user's home": keys("path is '~nobody'.*expected an existing folder", path="~nobody"),
    "name of 5,000 characters": keys("train is 'a+\\.\\.\\.', expected an existing folder", train="a" * 5000),
    "train of 3,000 numbers": keys("train is '0', expected an existing folder", train=list(range(3_000))),
}

# ---- VOC -----------------------------------------------------------------------------------------------------------

BOX = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
CAT = f"<object><name>cat</name>{BOX}</object>"


def voc(text: str | bytes | Callable[[], str], says: str) -> Fault:
    def make(root: Path) -> None:
        (root / "voc").mkdir()
        content = text() if callable(text) else text
        (root / "voc/a.xml").write_bytes(content if isinstance(content, bytes) else content.encode())
        write_yaml(root, annotations={"train": "voc"})

    return Fault(make, says)


LAUGHS = "".join(f'<!ENTITY l{k} "{f"&l{k - 1};" * 10}">' for k in range(1, 12))
VOC = {
    "billion laughs": voc(
        f'<!DOCTYPE a [<!ENTITY l0 "ha">{LAUGHS}]><a>&l11;</a>', r"a\.xml: not read: it has a document"
    ),
    "entity of a file": voc('<!DOCTYPE a [<!ENTITY f SYSTEM "/etc/passwd">]><a>&f;</a>', "not read: it has a document"),
    "DTD elsewhere": voc('<!DOCTYPE a SYSTEM "http://localhost:1/a.dtd"><a/>', "not read: it has a document type"),
    "entity that is not declared": voc("<a>&x;</a>", r"a\.xml: not XML: undefined entity"),
    "a million levels": voc(lambda: "<a>" * 1_000_000, r"a\.xml: not read: more than 32 levels"),
    "a million elements": voc(lambda: f"<a>{'<b/>' * 1_000_000}</a>", r"not read: more than 32 levels or 200,000"),
    "20 MB of XML": voc(
        lambda: f"<a>{' ' * (20 << 20)}</a>", r"a\.xml: 20 MiB, more than the 16 MiB of any annotation"
    ),
    "name of 10 MB": voc(
        lambda: f"<a><object><name>{'x' * 10_000_000}</name>{BOX}</object></a>", "object 1: class 'x+\\.\\.\\.'"
    ),
    "escapes in XML": voc(
        f"<a><object><name>\u202e\u2028é</name>{BOX}</object></a>", "object 1: class 'é', expected one"
    ),
    "namespaces": voc(
        f'<v:a xmlns:v="u"><!-- c --><?p q?>{CAT.replace("<", "<v:").replace("<v:/", "</v:")}</v:a>', "1 box,"
    ),
    "encoding punycode": voc(
        f'<?xml version="1.0" encoding="punycode"?><a>{CAT}</a>', "encoding 'punycode' is not known"
    ),
    "encoding zlib": voc(
        f'<?xml version="1.0" encoding="zlib_codec"?><a>{CAT}</a>', "encoding 'zlib_codec' is not known"
    ),
    "width of nan": voc(
        f"<a><size><width>nan</width><height>9</height></size>{CAT}</a>", "<width> is 'nan', expected a"
    ),
    "xmin of 0_1": voc(f"<a>{CAT.replace('>1<', '>0_1<', 1)}</a>", "object 1: <xmin> is '0_1', expected a number"),
    "10,000 bad objects": voc(lambda: f"<a>{'<object/>' * 10_000}</a>", r"10,000 label errors"),
    "named pipe a.xml": Fault(
        lambda root: (voc("", "").make(root), (root / "voc/a.xml").unlink(), os.mkfifo(root / "voc/a.xml"))[0],
        r"a\.xml: a named pipe, expected a file",
    ),
}

# ---- COCO ----------------------------------------------------------------------------------------------------------


def coco(change: Callable[[dict], object] | bytes | Callable[[], bytes], says: str) -> Fault:
    def make(root: Path) -> None:
        content: dict = {
            "images": [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}],
            "annotations": [{"id": 7, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 20], "iscrowd": 0}],
            "categories": [{"id": 1, "name": "cat"}],
        }
        if isinstance(change, bytes):
            data = change
        else:
            made = change(content)  # type: ignore[call-arg, arg-type]
            data = made if isinstance(made, bytes) else json.dumps(content).encode()
        (root / "a.json").write_bytes(data)
        write_yaml(root, annotations={"train": "a.json"})

    return Fault(make, says)


def put(place: str, value: object) -> Callable[[dict], object]:
    """Set `value` at `list.key` of the first row."""
    part, _, key = place.partition(".")
    return lambda content: content[part][0].__setitem__(key, value) if key else content.__setitem__(part, value)


def million(content: dict) -> bytes:
    """A million rows with polygons, of ten images, as a file of 200 MB."""
    row = (
        '{"id": %d, "image_id": %d, "category_id": 1, "bbox": [%.5f, 2, 3, 4], "segmentation": [['
        + "1.5, " * 20
        + "1]]}"
    )
    text = ",".join(row % (k, k % 10 + 1, k / 50_000) for k in range(1_000_000))
    content["images"] += [{"id": k, "file_name": f"{k}.jpg"} for k in range(2, 11)]
    return json.dumps(content | {"annotations": ["HERE"]}).replace('"HERE"', text).encode()


NAN, INF = float("nan"), float("inf")
COCO = {
    "width of NaN": coco(
        put("images.width", NAN), r"image 1 \(a\.jpg\): width is NaN, expected pixels: the size of the"
    ),
    "width of 1e999": coco(put("images.width", INF), "width is Infinity, expected pixels: the size of the image"),
    "width below 0": coco(put("images.width", -5), "width is -5, expected pixels: the size of the image file is used"),
    "box of NaN": coco(
        put("annotations.bbox", [NAN, 1, 2, 3]), r"annotation 7: bbox is \[NaN, 1, 2, 3\], expected \[x"
    ),
    "box of 4,000 digits": coco(
        put("annotations.bbox", [10**4000, 1, 2, 3]), r"annotation 7: bbox is \[10+.*, expected \[x"
    ),
    "id of 4,000 digits": coco(put("images.id", 10**4000), "images, row 1: id is 10+.*, expected a value"),
    "number of 5,000 digits": coco(b'{"images": ' + b"9" * 5000, "not JSON: line 1: a number of too many digits"),
    "box below 0": coco(put("annotations.bbox", [5, 5, -3, -3]), "annotation 7: box without area, dropped"),
    "box of 1e300": coco(
        put("annotations.bbox", [0, 0, 1e300, 5]), "annotation 7: box reaches .*% of the image beyond"
    ),
    "box of 0_1": coco(put("annotations.bbox", ["0_1", 1, 2, 3]), "annotation 7: bbox is .*, expected"),
    "id of superscripts": coco(put("annotations.image_id", "\u00b2"), "annotation 7: image_id is .*, expected the id"),
    "iscrowd of a list": coco(
        put("annotations.iscrowd", [[1]]), r"annotation 7: iscrowd is \[\[1\]\], expected 0 or 1"
    ),
    "area of 1e300": coco(put("annotations.area", 1e300), r"annotation 7: area is 1e\+300, expected square pixels"),
    "true for a number": coco(put("annotations.bbox", [True, 1, 2, 3]), r"annotation 7: bbox is \[true, 1, 2, 3\]"),
    "a list for a row": coco(
        put("images", [[]]), r"a\.json: not a COCO annotation file: images is not a list of mappings"
    ),
    "null for a list": coco(put("annotations", None), "annotations is not a list of mappings"),
    "a key twice in a row": coco(
        lambda c: json.dumps(c).replace('"bbox"', '"bbox": [0, 0, 9, 9], "bbox"').encode(),
        "annotation 7: the key 'bbox' is given twice",
    ),
    "a list twice": coco(
        lambda c: (json.dumps(c)[:-1] + ', "images": []}').encode(), "the key 'images' is given twice"
    ),
    "100,000 levels": coco(
        b'{"images": ' + b"[" * 100_000, r"a\.json: not JSON: near line 1: lists or mappings in too many"
    ),
    "levels beside the lists": coco(
        lambda c: (json.dumps(c)[:-1] + ', "x": ' + '{"a":' * 50_000 + "1" + "}" * 50_000 + "}").encode(),
        "in too many levels",
    ),
    "cut in the middle": coco(lambda c: json.dumps(c, indent=1).encode()[:200], r"a\.json: not JSON: line \d+: "),
    "latin-1": coco(
        lambda c: json.dumps(c).replace("cat", "\u00e9").encode("latin-1"), "not JSON: near line 1: not UTF-8 text"
    ),
    "file name of 1 MB": coco(
        put("images.file_name", "x" * 1_000_000), "images, row 1: file_name is 'x+\\.\\.\\.', expected"
    ),
    "escapes in names": coco(
        put("categories.name", "\x1b[2J\u202e"), r"annotation 7: class '\[2J', expected one of the names"
    ),
    "a number instead of a file": coco(b"12", "not a COCO annotation file: a int, expected a mapping"),
    "a million rows of 200 MB": coco(million, "1 image, 0 of them background, 100,000 boxes"),
    "a million bad rows of COCO": coco(
        lambda c: (
            json.dumps(c | {"annotations": ["HERE"]})
            .replace('"HERE"', ",".join(['{"id":1,"image_id":1}'] * 1_000_000))
            .encode()
        ),
        r"1,000,000 label errors",
    ),
    "named pipe a.json": Fault(
        lambda root: (coco(b"", "").make(root), (root / "a.json").unlink(), os.mkfifo(root / "a.json"))[0],
        r"a\.json: a named pipe, expected a file",
    ),
}
FAULTS = {**IMAGES, **LABELS, **LISTS, **VOC, **COCO}
# Seconds or more on a busy machine: in the table, not in the tests.
LARGE = {
    *("a million different rows", "more than a million rows", "a million rows of 200 MB", "a million bad rows of COCO"),
    *("PNG of 100 million pixels", "a million equal rows", "a million bad rows", "JPEG of 4,000 scans"),
    *("PNG text of 200 MB", "PNG profile of 200 MB", "list of 50,000 missing images"),
}


def output(root: Path) -> str:
    """What the scan of the set in `root` prints, and its error, if there is one."""
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    logger = logging.getLogger("utils")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        read_data_yaml(root / "data.yaml").scan("train")
    except (OSError, ValueError) as error:
        lines.write(str(error))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return lines.getvalue()


def report(text: str, says: str) -> str:
    """The line of the output that `says` matches; '' if none does."""
    return next((line.strip() for line in text.splitlines() if re.search(says, line)), "")


def measured(root: Path) -> tuple[str, float, float]:
    """What the scan of the set in `root` prints, its CPU seconds and added megabytes, in a process of its own."""
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=measure, args=(root, theirs))
    child.start()
    answer: tuple[str, float, float] = ours.recv()
    child.join()
    return answer


def measure(root: Path, answer: Connection) -> None:
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    text = output(root)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    answer.send((text, time.process_time() - began, peak / 1024))


def main() -> None:
    """Print the table of all faults, or of those named."""
    print("| fault | line | CPU s | MB |\n|---|---|---|---|")
    for name in sys.argv[1:] or FAULTS:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder, "set")
            healthy(root)
            FAULTS[name].make(root)
            text, seconds, peak = measured(root)
            line = report(text, FAULTS[name].says).replace(str(root), "SET") or f"NOT SAID: {text[:300]!r}"
            print(f"| {name} | {line[:150].replace('|', '/')} | {seconds:.1f} | {peak:.0f} |", flush=True)
            subprocess.run(["rm", "-rf", str(root)], check=True)  # also a thousand folders in each other


if __name__ == "__main__":
    main()
