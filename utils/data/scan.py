"""One look at every image and label of a data set, kept in a cache while no file changes."""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from utils.data.annotations import ImageLabels, LabelReader
from utils.data.labels import TextLabels

LOGGER = logging.getLogger(__name__)
CACHE_VERSION = 2  # raise it when the meaning of the cached arrays changes
SHOWN = 10  # messages about labels that are written out
EXIF_ORIENTATION, EXIF_SIDEWAYS = 0x0112, {5, 6, 7, 8}
NOT_AN_IMAGE = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
DAMAGED = (OSError, ValueError, TypeError, AttributeError, LookupError, EOFError, zipfile.BadZipFile, zlib.error)
THREADS = min(16, os.cpu_count() or 1)


class Truth(NamedTuple):
    """What an image really shows: labels (n, 5) class, cx, cy, w, h in 0..1; crowd (n,) bool, labels that are not
    judged; areas (n,) square pixels."""

    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray


@dataclass(frozen=True)
class Scan:
    """What a data set holds, as arrays (a list of objects would be copied into every worker, page by page).

    paths (N,) str; sizes (N, 2) int32 upright height, width; labels (M, 5) float32 class, cx, cy, w, h in 0..1,
    those of image i in rows offsets[i] to offsets[i + 1]; offsets (N + 1,) int64; crowd (M,) bool and areas (M,)
    float32 as in ImageLabels.
    """

    paths: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def labels_of(self, i: int) -> np.ndarray:
        """(n, 5) class, cx, cy, w, h in 0..1 of image `i`, without crowds."""
        rows = slice(self.offsets[i], self.offsets[i + 1])
        return self.labels[rows][~self.crowd[rows]]

    def truth_of(self, i: int) -> Truth:
        """All labels of image `i`."""
        rows = slice(self.offsets[i], self.offsets[i + 1])
        labels, areas = self.labels[rows], self.areas[rows]
        h, w = self.sizes[i]
        return Truth(labels, self.crowd[rows], np.where(np.isnan(areas), labels[:, 3] * w * labels[:, 4] * h, areas))

    def subset(self, rows: np.ndarray) -> Scan:
        """The images `rows` (k,) alone, in that order."""
        own = [np.arange(self.offsets[i], self.offsets[i + 1]) for i in rows]
        offsets = np.cumsum([0, *(len(kept) for kept in own)], dtype=np.int64)
        kept = np.concatenate([np.empty(0, dtype=np.int64), *own])
        labels, crowd, areas = self.labels[kept], self.crowd[kept], self.areas[kept]
        return Scan(self.paths[rows], self.sizes[rows], labels, offsets, crowd, areas)


SCANNED = tuple(f.name for f in fields(Scan))


class _Checked(NamedTuple):
    """What one image and its label file gave; `bad` says why the image is left out."""

    size: tuple[int, int]
    labels: ImageLabels
    bad: str


def scan(images: Sequence[str | Path], nc: int, reader: LabelReader | None = None) -> Scan:
    """Check every image and label file; the result is kept beside the labels while no file changes, see cache_file.

    Unreadable images are left out with a warning each.

    Args:
        reader: where the labels are; None: label files with classes below `nc`.

    Raises:
        ValueError: labels with errors (the first ones and their number), or no readable image.
    """
    if not images:
        raise ValueError("no images to scan")
    reader = reader or TextLabels(nc)
    first = reader.file(Path(images[0]))
    where = first if first.suffix == ".json" else first.parent
    cache, key = cache_file(images, reader), _fingerprint(images, reader)
    held = _load_cache(cache, key)
    if held is None:
        held = _scan_files(images, reader)
        _save_cache(cache, key, held)
    result = Scan(**{name: held[name] for name in SCANNED})
    for message in [*held["bad"], *held["warnings"][:SHOWN]]:
        LOGGER.warning(str(message))
    if len(held["warnings"]) > SHOWN:
        LOGGER.warning(f"... and {len(held['warnings']) - SHOWN} more warnings about labels")
    if not len(result):
        raise ValueError(f"{Path(images[0]).parent}: none of {len(images)} images is readable")
    background = int((np.diff(result.offsets) == 0).sum())
    if background == len(result):
        LOGGER.warning(f"no labels found, looked for files such as {reader.file(Path(result.paths[0]))}")
    LOGGER.info(
        f"{where}: {len(result)} images, {background} of them background, {len(result.labels)} boxes, "
        f"{len(held['bad'])} bad images"
    )
    return result


def cache_file(images: Sequence[str | Path], reader: LabelReader) -> Path:
    """Where a scan of these images is kept: splits that share a labels folder have a file each."""
    folder = reader.file(Path(images[0])).parent
    names = hashlib.sha256("\n".join(str(image) for image in images).encode()).hexdigest()[:8]
    return folder.with_name(f"{folder.name}.{names}.cache.npz")


def _scan_files(images: Sequence[str | Path], reader: LabelReader) -> dict[str, np.ndarray]:
    """The arrays of a `Scan`, and the messages as `bad` and `warnings`; raises ValueError for label errors."""
    with ThreadPoolExecutor(THREADS) as pool:
        work = pool.map(lambda image: _check(image, reader), images)
        found = list(tqdm(work, total=len(images), desc="scanning", leave=False, disable=None))
    errors = [error for item in found for error in item.labels.errors]
    if errors:
        shown = "".join(f"\n  {error}" for error in errors[:SHOWN])
        more = f"\n  ... and {len(errors) - SHOWN} more" if len(errors) > SHOWN else ""
        raise ValueError(f"{len(errors)} label error(s):{shown}{more}")
    good = [i for i, item in enumerate(found) if not item.bad]
    labels = [found[i].labels for i in good]
    return {
        "paths": np.array([str(images[i]) for i in good], dtype=np.str_),
        "sizes": np.array([found[i].size for i in good], dtype=np.int32).reshape(-1, 2),
        "labels": np.concatenate([ImageLabels().boxes, *(item.boxes for item in labels)]),
        "offsets": np.cumsum([0, *(len(item.boxes) for item in labels)], dtype=np.int64),
        "crowd": np.concatenate([ImageLabels().crowd, *(item.crowd for item in labels)]),
        "areas": np.concatenate([ImageLabels().areas, *(item.areas for item in labels)]),
        "bad": np.array([item.bad for item in found if item.bad], dtype=np.str_),
        "warnings": np.array([w for item in found for w in item.labels.warnings], dtype=np.str_),
    }


def _check(image: str | Path, reader: LabelReader) -> _Checked:
    """Decode one image, JPEGs at an eighth of their size, and read its labels."""
    size, bad = (0, 0), ""
    try:
        with Image.open(image) as picture:
            width, height = picture.size
            sideways = picture.getexif().get(EXIF_ORIENTATION) in EXIF_SIDEWAYS
            picture.draft("RGB", (1, 1))
            picture.load()
            size = (width, height) if sideways else (height, width)
    except NOT_AN_IMAGE as error:
        bad = f"{image}: left out, not a readable image: {error}"
    labels = reader.read(Path(image), size) if not bad or isinstance(reader, TextLabels) else ImageLabels()
    return _Checked(size, labels, bad or labels.absent)


def _fingerprint(images: Sequence[str | Path], reader: LabelReader) -> str:
    """A hash that changes with the files, the size or time of any of them, the classes and the cache's version."""
    digest = hashlib.sha256(f"{CACHE_VERSION} {reader.key}".encode())
    for image in images:
        for file in (Path(image), reader.file(Path(image))):
            try:
                stat = file.stat()
                state = f"{stat.st_size} {stat.st_mtime_ns}"
            except OSError:
                state = "missing"
            digest.update(f"\n{file}\0{state}".encode())
    return digest.hexdigest()


def _load_cache(file: Path, key: str) -> dict[str, np.ndarray] | None:
    """The arrays saved under `key`; None if there are none, they are of another key, or the file is damaged."""
    wanted = (*SCANNED, "bad", "warnings")
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as saved:
            return {name: saved[name] for name in wanted} if str(saved["key"]) == key else None
    except FileNotFoundError:
        return None
    except DAMAGED as error:
        LOGGER.info(f"{file}: not a usable cache, scanning again ({error})")
        return None


def _save_cache(file: Path, key: str, arrays: dict[str, np.ndarray]) -> None:
    """Write the arrays so that no reader ever sees half a file; a folder that cannot be written to means no cache."""
    part = ""
    try:
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as stream:
            part = stream.name
            np.savez(stream, key=np.array(key), **arrays)  # type: ignore[arg-type]
        os.replace(part, file)
    except OSError as error:
        LOGGER.info(f"{file}: labels are not cached: {error}")
        if part:
            Path(part).unlink(missing_ok=True)
