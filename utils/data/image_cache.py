"""Decoded images cached for training, in memory or in one file."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from utils.device import cpu_count
from utils.files import partial_path
from utils.progress import Progress
from utils.text import counted

LOGGER = logging.getLogger(__name__)
CACHES = ("", "ram", "disk")
LAYOUT = 4  # to be raised when the bytes of a cache file mean something else
MAX_SHARE = 0.8  # of the free memory or disk space, for one cache
THREADS = min(16, cpu_count())
BLOCK = 4096  # bytes, see checksum
ENTRY = np.dtype([("checksum", "<u4"), ("readable", "u1")])  # of each image, after the images
Read = Callable[[int], np.ndarray | None]


class ImageCache(Protocol):
    """Images (h, w, 3) uint8 by index, None where one could not be read; not to be written to."""

    def __getitem__(self, i: int) -> np.ndarray | None: ...


class MemoryCache:
    """Images in one buffer that worker processes share.

    A list of arrays would be copied into every worker, page by page, because reference counts are written into it.

    Args:
        sizes: (N, 2) height, width. read: gives image `i`, of that size.
    """

    def __init__(self, sizes: np.ndarray, read: Read):
        self.sizes, self.offsets = sizes, offsets_of(sizes)
        self.buffer = torch.empty(int(self.offsets[-1]), dtype=torch.uint8).share_memory_()
        self.readable: Tensor = torch.zeros(len(sizes), dtype=torch.bool).share_memory_()

        def fill(i: int) -> None:
            image = read(i)
            if image is not None:
                self.view(i)[:] = image
                self.readable[i] = True

        for_each(len(sizes), fill)

    def __getitem__(self, i: int) -> np.ndarray | None:
        return self.view(i) if self.readable[i] else None

    def view(self, i: int) -> np.ndarray:
        """The place of image `i`."""
        return self.buffer[self.offsets[i] : self.offsets[i + 1]].numpy().reshape(*self.sizes[i], 3)


class RecentImages:
    """The images that this process read last, by any key, up to `limit` bytes; not to be written to.

    Mosaics read every image four times an epoch: a data set that fits is decoded once.
    """

    def __init__(self, limit: int):
        self.limit, self.held = limit, 0
        self.images: dict[Hashable, np.ndarray] = {}

    def get(self, key: Hashable) -> np.ndarray | None:
        """The image of a key; None if it is not held."""
        return self.images.get(key)

    def keep(self, key: Hashable, image: np.ndarray) -> None:
        """Hold an image; those that are held longest make room for it."""
        self.images[key] = image
        self.held += image.nbytes
        while self.held > self.limit:
            self.held -= self.images.pop(next(iter(self.images))).nbytes


class DiskCache:
    """Images in a file: their bytes, an ENTRY of each, and a SHA-256 of `key` and the entries.

    The file is read and not mapped, and each image is compared with its checksum each time: a file that is cut or
    changed while it is used costs time, but neither ends the process nor gives other images.

    Args:
        key: stands for the images and their sizes; a file of another key is not used.

    Raises:
        ValueError: the file is damaged, or of another key. OSError: it cannot be read.
    """

    def __init__(self, file: Path, sizes: np.ndarray, key: str):
        self.file, self.sizes, self.offsets = file, sizes, offsets_of(sizes)
        self._reported = torch.zeros(1, dtype=torch.bool).share_memory_()  # for all workers
        expected, found = size_on_disk(sizes), file.stat().st_size
        if found != expected:
            raise ValueError(f"{found:,} bytes, expected {expected:,}")
        with file.open("rb") as stream:
            stream.seek(self.offsets[-1])
            table, seal = stream.read(len(sizes) * ENTRY.itemsize), stream.read()
        if seal != seal_of(key, table):
            raise ValueError("damaged, or of other images")
        self.entries = np.frombuffer(table, ENTRY)

    def __getitem__(self, i: int) -> np.ndarray | None:
        if not self.entries["readable"][i]:
            return None
        image = np.empty((*self.sizes[i], 3), np.uint8)
        try:
            with self.file.open("rb", buffering=0) as stream:
                stream.seek(self.offsets[i])
                whole = stream.readinto(image.data) == image.nbytes  # type: ignore[arg-type]
            problem = "" if whole and checksum(image) == self.entries["checksum"][i] else "it is damaged"
        except OSError as error:
            problem = f"it cannot be read ({error.strerror})"
        if problem:
            self._give_up(problem)
            return None
        return image

    def _give_up(self, problem: str) -> None:
        """Log once that the file is not as it was written, and remove it, so that the next run writes it anew."""
        if not self._reported[0]:
            self._reported[0] = True
            LOGGER.warning(f"{self.file}: {problem}; using the image files, the next run will cache them again")
            with contextlib.suppress(OSError):
                self.file.unlink()


def cache_images(
    kind: str, sizes: np.ndarray, read: Read, free: int, stem: Path, files: Iterable[str], form: str = ""
) -> ImageCache | None:
    """A cache of all images; None, with a warning, if they do not fit.

    Args:
        kind: 'ram', or 'disk': a file `<stem>.pixels-<key>`, which is reused while images and sizes are the same.
        sizes: (N, 2) height, width of the image that `read(i)` returns, unless it returns None.
        free: free memory in bytes. files: paths of the N images. form: names how `read` reads them.
    """
    needed = size_on_disk(sizes)
    if kind == "disk":
        key = key_of(sizes, files, form)
        file = stem.with_name(f"{stem.name}.pixels-{key[:12]}")
        try:
            return open_or_write(file, sizes, key, read)
        except OSError as error:
            LOGGER.warning(f"--cache disk is off: {file}: {error}")
            return None
    if needed > MAX_SHARE * free:
        LOGGER.warning(f"--cache ram is off: the images need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
        return None
    cache = MemoryCache(sizes, read)
    LOGGER.info(f"{counted(len(sizes), 'image')} cached in memory, {needed / 1e9:.2f} GB")
    return cache


def open_or_write(file: Path, sizes: np.ndarray, key: str, read: Read) -> DiskCache:
    """The cache in `file`, which is written if it does not exist or is not usable.

    Raises:
        OSError: it cannot be written.
    """
    if file.exists():
        try:
            return DiskCache(file, sizes, key)
        except (OSError, ValueError) as error:
            LOGGER.warning(f"{file}: not a usable cache, caching the images again ({error})")
            file.unlink()
    needed, free = size_on_disk(sizes), shutil.disk_usage(file.parent).free
    if needed > MAX_SHARE * free:
        raise OSError(f"the images need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
    partial = partial_path(file)
    try:
        write(partial, sizes, key, read)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
    LOGGER.info(f"{counted(len(sizes), 'image')} cached in {file}, {needed / 1e9:.2f} GB")
    try:
        return DiskCache(file, sizes, key)
    except ValueError as error:
        raise OSError(f"{error}, just after it was written") from error


def write(file: Path, sizes: np.ndarray, key: str, read: Read) -> None:
    """Write all images, their entries and the seal; raises OSError if they do not fit on the disk."""
    offsets, entries = offsets_of(sizes), np.zeros(len(sizes), ENTRY)

    def fill(i: int) -> None:
        image = read(i)
        if image is not None:
            with file.open("r+b") as stream:
                stream.seek(offsets[i])
                stream.write(np.ascontiguousarray(image).data)
            entries[i] = checksum(image), True

    with file.open("wb") as stream:
        if hasattr(os, "posix_fallocate"):  # a disk that is too small says so now
            os.posix_fallocate(stream.fileno(), 0, size_on_disk(sizes))
    for_each(len(sizes), fill)
    with file.open("r+b") as end:
        end.seek(offsets[-1])
        end.write(entries.tobytes() + seal_of(key, entries.tobytes()))


def for_each(count: int, work: Callable[[int], None]) -> None:
    """Call `work` for each index below `count`, in several threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        list(Progress(pool.map(work, range(count)), count, lambda: "caching images"))


def offsets_of(sizes: np.ndarray) -> np.ndarray:
    """(N + 1,) int64: where each image of (N, 2) height, width begins, and where the last one ends, in bytes."""
    return np.concatenate([[0], np.cumsum(3 * sizes.astype(np.int64).prod(axis=1))])


def size_on_disk(sizes: np.ndarray) -> int:
    """The length of a DiskCache's file in bytes."""
    return int(offsets_of(sizes)[-1]) + len(sizes) * ENTRY.itemsize + hashlib.sha256().digest_size


def checksum(image: np.ndarray) -> int:
    """The CRC-32 of the sums of 512 words each (64 bits) of an image, and of the bytes after them.

    A word that is changed changes it, as does a block of another place; it takes a tenth of the time of a CRC-32 of
    all bytes, which would cost a fifth of the time of a mosaic.
    """
    pixels = np.ascontiguousarray(image).reshape(-1)
    end = len(pixels) // BLOCK * BLOCK
    sums = pixels[:end].view(np.uint64).reshape(-1, BLOCK // 8).sum(axis=1)
    return zlib.crc32(pixels[end:].data, zlib.crc32(sums.data))


def seal_of(key: str, table: bytes) -> bytes:
    """The SHA-256 at the end of a DiskCache's file."""
    return hashlib.sha256(key.encode() + table).digest()


def key_of(sizes: np.ndarray, files: Iterable[str], form: str = "") -> str:
    """A hash of the layout, the form, the sizes, and the path, file size and time of every image."""
    digest = hashlib.sha256(f"{LAYOUT} {form} ".encode() + sizes.astype(np.int64).tobytes())
    for file in files:
        try:
            stat = os.stat(file)
            state = f"{stat.st_size}\0{stat.st_mtime_ns}"
        except OSError:
            state = "missing"
        digest.update(f"{file}\0{state}\n".encode())
    return digest.hexdigest()
