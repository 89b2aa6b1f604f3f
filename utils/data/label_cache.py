"""The label cache: arrays and texts in one file with length and checksum. A damaged one is never used."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from utils.reading import read_bytes
from utils.text import clean

LOGGER = logging.getLogger(__name__)
MAGIC = b"labels of images, 5\n"  # the number is to be raised when the form or the meaning of the content changes
DIGEST = 32  # bytes of SHA-256
SEPARATOR = "\0"  # of texts, which hold paths and messages


def save(file: Path, key: str, arrays: Mapping[str, np.ndarray], texts: Mapping[str, Sequence[str]]) -> None:
    """Write arrays of numbers and lists of texts atomically; if the folder cannot be written to there is no cache.

    The file is MAGIC, the SHA-256 of all that follows, the length of the head (8 bytes), the head in JSON, and the
    bytes of the arrays and texts in its order.
    """
    blobs = [np.ascontiguousarray(array).tobytes() for array in arrays.values()]
    blobs += [SEPARATOR.join(lines).encode("utf-8", "surrogatepass") for lines in texts.values()]
    head = {
        "key": key,
        "arrays": [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()],
        "texts": [[name, len(lines), len(blobs[len(arrays) + i])] for i, (name, lines) in enumerate(texts.items())],
    }
    start = json.dumps(head).encode()
    parts = [len(start).to_bytes(8), start, *blobs]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    written = ""
    try:
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as stream:
            written = stream.name
            for part in (MAGIC, digest.digest(), *parts):
                stream.write(part)
        os.replace(written, file)
    except OSError as error:
        LOGGER.info(f"{file}: labels are not cached: {error.strerror}")
        if written:
            Path(written).unlink(missing_ok=True)


def load(file: Path, key: str) -> tuple[dict[str, np.ndarray], dict[str, list[str]]] | None:
    """The arrays and texts that were saved with `key`.

    None if there is no such file, or another key, which is a change of the data set; also, which is logged, if it is
    cut, damaged or of another version.
    """
    try:
        data = memoryview(read_bytes(file, "label cache"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        LOGGER.info(f"{file}: not a usable label cache, scanning again ({clean(error)})")
        return None
    start = len(MAGIC) + DIGEST
    if data[: len(MAGIC)] != MAGIC or hashlib.sha256(data[start:]).digest() != data[len(MAGIC) : start]:
        reason = "damaged" if data[: len(MAGIC)] == MAGIC else "of another version, or damaged"
        LOGGER.info(f"{file}: not a usable label cache, scanning again ({reason})")
        return None
    at = start + 8 + int.from_bytes(data[start : start + 8])
    head = json.loads(bytes(data[start + 8 : at]))
    if head["key"] != key:
        return None
    arrays, texts = dict[str, np.ndarray](), dict[str, list[str]]()
    for name, kind, shape in head["arrays"]:
        size = np.dtype(kind).itemsize * int(np.prod(shape))
        arrays[name] = np.frombuffer(data[at : at + size], kind).reshape(shape).copy()
        at += size
    for name, count, size in head["texts"]:
        text = bytes(data[at : at + size]).decode("utf-8", "surrogatepass")
        texts[name] = text.split(SEPARATOR) if count else []
        at += size
    return arrays, texts
