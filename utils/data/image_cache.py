"""Decoded images cached for training, in memory or in one file."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.device import cpu_count
from utils.progress import Progress

LOGGER = logging.getLogger(__name__)
LAYOUT = 2  # to be raised when the bytes of a cache file mean something else
MAX_SHARE = 0.8  # of the free memory or disk space, for one cache
THREADS = min(16, cpu_count())


class ImageCache:
    """Images (h, w, 3) uint8 by index, in one buffer that worker processes share.

    A list of arrays would be copied into every worker, page by page, because reference counts are written into it.

    Args:
        buffer: (bytes,) uint8, in shared memory or a mapped file; the last N bytes are 1 where an image could be read.
        sizes: (N, 2) height, width.
    """

    def __init__(self, buffer: Tensor, sizes: np.ndarray):
        self.buffer, self.sizes = buffer, sizes
        self.readable = buffer[len(buffer) - len(sizes) :]
        self.offsets = np.concatenate([[0], np.cumsum(3 * sizes.astype(np.int64).prod(axis=1))])

    def __getitem__(self, i: int) -> np.ndarray | None:
        """A view of image `i`, not to be written to; None if it could not be read."""
        return self.view(i) if self.readable[i] else None

    def view(self, i: int) -> np.ndarray:
        """The place of image `i`."""
        return self.buffer[self.offsets[i] : self.offsets[i + 1]].numpy().reshape(*self.sizes[i], 3)


def cache_images(
    kind: str, sizes: np.ndarray, read: Callable[[int], np.ndarray | None], free: int, stem: Path, files: Iterable[str]
) -> ImageCache | None:
    """A cache of all images; None, with a warning, if they do not fit.

    Args:
        kind: 'ram', or 'disk': a file `<stem>.pixels-<key>`, which is reused while images and sizes are the same.
        sizes: (N, 2) height, width of the image that `read(i)` returns, unless it returns None.
        free: free memory in bytes. files: paths of the N images.
    """
    needed = int(3 * sizes.astype(np.int64).prod(axis=1).sum()) + len(sizes)
    if kind == "disk":
        file = stem.with_name(f"{stem.name}.pixels-{_key(sizes, files)}")
        try:
            return _on_disk(file, needed, sizes, read)
        except OSError as error:
            LOGGER.warning(f"--cache disk is off: {file}: {error}")
            return None
    if needed > MAX_SHARE * free:
        LOGGER.warning(f"--cache ram is off: the images need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
        return None
    cache = ImageCache(torch.empty(needed, dtype=torch.uint8).share_memory_(), sizes)
    _fill(cache, read)
    LOGGER.info(f"{len(sizes)} images cached in memory, {needed / 1e9:.2f} GB")
    return cache


def _on_disk(file: Path, needed: int, sizes: np.ndarray, read: Callable[[int], np.ndarray | None]) -> ImageCache:
    """The cache in `file`, which is written if it does not exist; raises OSError if it cannot be."""
    if not file.exists():
        free = shutil.disk_usage(file.parent).free
        if needed > MAX_SHARE * free:
            raise OSError(f"the images need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
        partial = file.with_name(f"{file.name}.{os.getpid()}.part")
        try:
            with partial.open("wb") as stream:
                if hasattr(os, "posix_fallocate"):  # writing to a mapped file on a full disk would end the process
                    os.posix_fallocate(stream.fileno(), 0, needed)
            _fill(ImageCache(torch.from_file(str(partial), shared=True, size=needed, dtype=torch.uint8), sizes), read)
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)
        LOGGER.info(f"{len(sizes)} images cached in {file}, {needed / 1e9:.2f} GB")
    return ImageCache(torch.from_file(str(file), shared=True, size=needed, dtype=torch.uint8), sizes)


def _fill(cache: ImageCache, read: Callable[[int], np.ndarray | None]) -> None:
    """Write every image into the buffer of `cache`."""

    def fill_one(i: int) -> None:
        image = read(i)
        cache.readable[i] = image is not None
        if image is not None:
            cache.view(i)[:] = image

    with ThreadPoolExecutor(THREADS) as pool:
        count = len(cache.sizes)
        list(Progress(pool.map(fill_one, range(count)), count, lambda: "caching images"))


def _key(sizes: np.ndarray, files: Iterable[str]) -> str:
    """A hash of the layout, the sizes, and the path, file size and time of every image."""
    digest = hashlib.sha256(f"{LAYOUT} ".encode() + sizes.astype(np.int64).tobytes())
    for file in files:
        try:
            stat = os.stat(file)
            state = f"{stat.st_size}\0{stat.st_mtime_ns}"
        except OSError:
            state = "missing"
        digest.update(f"{file}\0{state}\n".encode())
    return digest.hexdigest()[:12]
