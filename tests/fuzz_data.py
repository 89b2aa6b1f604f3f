"""Fuzzers of what a data set consists of: one damaged file each, read, and held against a law.

Each is called with a generator of random numbers and a folder that it may write into, and raises AssertionError, or
whatever escapes the readers, where a law is broken: what is read is right or is named in a line; errors are ValueError
or OSError of one line of fewer than 400 characters.
"""

from __future__ import annotations

import copy
import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from test_label_fuzz import FORMS, coco_text, mutate, verdict

from utils.data import scan as scanning
from utils.data.label_cache import load
from utils.data.labels import TextLabels
from utils.decode import decode, probe
from utils.image_header import MAX_PIXELS

# Values that programs and people put where others belong.
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 0.5, -0.0, 1e-300, 1e300, 10**18, 10**20, -(10**25), 10**400, 10**4000),
    *(float("nan"), float("inf"), -float("inf"), "", "1", "0_1", "\uff11", "nan", "-5", "--5", "²", "1e400", "true"),
    *("x" * 5000, "\x1b[2J\x07", "\u202e\u2028", "\ud800", "a\nb", [], {}, [[]], [[[[]]]], {"id": 1}, [1, 2, 3, 4]),
    *([1, 2, 3], ["10", "10", "20", "20"], [1e308] * 4, [0, 0, 1e-300, 1], [-5, -5, 1e9, 1e9], list(range(1000))),
]
SAVED = {
    "jpg": {"format": "JPEG"},
    "progressive.jpg": {"format": "JPEG", "progressive": True},
    "png": {"format": "PNG"},
    "gif": {"format": "GIF"},
    "tif": {"format": "TIFF"},
    "lzw.tif": {"format": "TIFF", "compression": "tiff_lzw"},
    "jpeg.tif": {"format": "TIFF", "compression": "jpeg"},
    "webp": {"format": "WEBP"},
    "bmp": {"format": "BMP"},
    "ppm": {"format": "PPM"},
    "tga": {"format": "TGA", "compression": "tga_rle"},
    "pcx": {"format": "PCX"},
    "ico": {"format": "ICO"},
    "jp2": {"format": "JPEG2000"},
    "avif": {"format": "AVIF"},
}


def one_line(error: Exception) -> None:
    """Check that an error is one line, short, and clean."""
    text = str(error)
    assert text and "\n" not in text and len(text) < 400 and "\x1b" not in text, repr(error)


def labels(rng: random.Random, folder: Path) -> None:
    """A label file with numbers, lines or characters changed."""
    _differential("yolo", rng, folder)


def voc(rng: random.Random, folder: Path) -> None:
    """A VOC file with numbers, tags or characters changed."""
    _differential("voc", rng, folder)


def coco(rng: random.Random, folder: Path) -> None:
    """A COCO file with characters changed, or with values of other types at any place of the tree."""
    if rng.random() < 0.3:
        _differential("coco", rng, folder)
        return
    content = json.loads(coco_text(rng))
    for _ in range(rng.randint(1, 2)):
        _edit(content, rng)
    path = folder / "a.json"
    path.write_bytes(json.dumps(content).encode("utf-8", "surrogatepass"))
    found = FORMS["coco"][2](path)
    assert np.isfinite(found.xywhn).all() and (found.xywhn[:, 2:] > 0).all(), path
    messages = [*found.warnings, *found.errors]
    for message in messages:
        one_line(ValueError(message))
    if all(isinstance(content.get(key), list) and content[key] for key in ("images", "annotations", "categories")):
        judged = FORMS["coco"][3](path.read_bytes())
        plain = [
            box if re.fullmatch("annotation -?[0-9]+", box.place) else box._replace(place="annot")
            for box in judged or []
        ]
        problem = verdict(found, plain if judged is not None else None)
        assert not problem or (messages and "lost" not in problem), f"{problem}\n{content}"[:3000]


def _differential(form: str, rng: random.Random, folder: Path) -> None:
    file, text, read, judge = FORMS[form]
    data = mutate(text(rng), rng)
    (folder / file).write_bytes(data)
    problem = verdict(read(folder / file), judge(data))
    assert not problem, f"{problem}\n{data!r}"


def _edit(content: Any, rng: random.Random) -> None:
    """Put an odd value at a random place of a tree, take one away, or add a key."""
    places = list(_places(content))
    parent, key = rng.choice(places)
    kind = rng.randrange(6)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(rng.choice(ODD)))
    elif kind == 1:
        parent[rng.choice(["id", "bbox", "image_id", "file_name", "width", "info", "\x1b"])] = copy.deepcopy(
            rng.choice(ODD)
        )
    elif kind == 2:
        value: Any = rng.choice([0, [], "x"])
        for _ in range(rng.choice([3, 50, 300])):
            value = [value] if rng.random() < 0.5 else {"a": value}
        parent[key] = value
    else:
        parent[key] = copy.deepcopy(rng.choice(ODD))


def _places(tree: Any) -> Any:
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)


def image_bytes(kind: str, size: tuple[int, int] = (24, 36), seed: int = 0) -> bytes:
    """An image of noise and lines, of one of SAVED."""
    noise = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    noise[:: max(size[0] // 4, 1)] = 40
    out = io.BytesIO()
    Image.fromarray(noise).save(out, **SAVED[kind])
    return out.getvalue()


def images(rng: random.Random, folder: Path) -> None:
    """An image of any kind with bytes changed, cut, doubled, or large numbers in its header."""
    kind = rng.choice(list(SAVED))
    data = bytearray(image_bytes(kind, seed=rng.randrange(3)))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(len(data), 64) if rng.random() < 0.4 else len(data))
        change = rng.randrange(5)
        if change == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            data[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\0\x7f\xff"])
        elif change == 2:
            del data[at + 1 :]
        elif change == 3:
            data[at:at] = data[at : at + rng.randrange(200)]
        else:
            data[at : at + 30] = rng.randbytes(30)
    results: list[tuple[int, ...] | None] = []
    for reader in (decode, probe):
        try:
            found = reader(bytes(data), "x.jpg")
        except ValueError as error:
            one_line(error)
            assert str(error).startswith("x.jpg: "), error
            results.append(None)
        else:
            image = getattr(found, "image", None)
            size = found.size if image is None else image.shape[:2]  # type: ignore[union-attr]
            assert image is None or (image.dtype == np.uint8 and image.shape[2:] == (3,))
            assert min(size) > 0 and size[0] * size[1] <= MAX_PIXELS
            results.append((*size, found.orientation))
    assert None in results or results[0] == results[1], (kind, results)


def label_cache(rng: random.Random, folder: Path) -> None:
    """A label cache with bits flipped, cut, extended, or of another version: never loaded, or the same."""
    whole, key, expected = _cached(folder)
    data = bytearray(whole)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        at, change = rng.randrange(len(data)), rng.randrange(6)
        if change <= 2:
            data[at] ^= 1 << rng.randrange(8)
        elif change == 3:
            del data[at:]
        elif change == 4:
            data += rng.randbytes(rng.randint(1, 40))
        else:
            data[at : at + 8] = bytes(8)
        if not data:
            break
    file = folder / "damaged.cache"
    file.write_bytes(data)
    found = load(file, key)
    assert found is None or (bytes(data) == whole and _same(found, expected)), "a damaged cache was used"


def _cached(folder: Path) -> tuple[bytes, str, Any]:
    """The bytes of a cache, its key and its content, made in `folder` the first time."""
    (folder / "images").mkdir(exist_ok=True)
    paths = [folder / "images" / f"{i}.jpg" for i in range(4)]
    for i, path in enumerate(paths):
        if not path.exists():
            path.write_bytes(image_bytes("jpg", seed=i) if i else b"no image")
            path.with_suffix(".txt").write_text(f"{i % 2} 0.5 0.5 0.{i + 1} 0.2\n1 0.5 0.5 1.2 0.1\n")
    reader = TextLabels(2)
    reader.match(paths)
    file, key = scanning.cache_file(paths, reader), scanning._fingerprint(paths, reader)
    if not file.exists():
        scanning.scan(paths, 2)
    expected = load(file, key)
    assert expected is not None
    return file.read_bytes(), key, expected


def _same(a: Any, b: Any) -> bool:
    return a[1] == b[1] and all(np.array_equal(a[0][k], b[0][k], equal_nan=True) for k in a[0].keys() | b[0].keys())


FUZZERS: dict[str, Callable[[random.Random, Path], None]] = {
    "labels": labels,
    "coco": coco,
    "voc": voc,
    "images": images,
    "label_cache": label_cache,
}
