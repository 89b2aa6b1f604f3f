"""Decoded training pictures kept at hand, in memory or in one file."""

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
from tqdm import tqdm

LOGGER = logging.getLogger(__name__)
KINDS = ("", "ram", "disk")
MARGIN = 0.8  # of what is free a cache may take so much
THREADS = min(16, os.cpu_count() or 1)


class PixelCache:
    """Images (h, w, 3) uint8 by number, end to end in one buffer: one object, which worker processes share.

    A list of arrays would be copied into every worker, page by page, as Python counts the references to each.

    Args:
        buffer: (bytes,) uint8 in shared memory or mapped from a file. sizes: (N, 2) height, width.
    """

    def __init__(self, buffer: Tensor, sizes: np.ndarray):
        self.buffer, self.sizes = buffer, sizes
        self.offsets = np.concatenate([[0], np.cumsum(3 * sizes.astype(np.int64).prod(axis=1))])

    def __getitem__(self, i: int) -> np.ndarray:
        """A view of image `i`; do not write into it."""
        return self.buffer[self.offsets[i] : self.offsets[i + 1]].numpy().reshape(*self.sizes[i], 3)


def cache_pixels(
    kind: str, sizes: np.ndarray, read: Callable[[int], np.ndarray], room: int, stem: Path, files: Iterable[str]
) -> PixelCache | None:
    """All images read once; None, with a line that says why, where they do not fit.

    Args:
        kind: 'ram', or 'disk': a file `<stem>.pixels-<key>`, used again while images and sizes are the same.
        sizes: (N, 2) height, width of what `read(i)` returns.
        room: bytes of memory that are free. files: the N images.
    """
    needed = int(3 * sizes.astype(np.int64).prod(axis=1).sum())
    if kind == "disk":
        file = stem.with_name(f"{stem.name}.pixels-{_key(sizes, files)}")
        try:
            return _on_disk(file, needed, sizes, read)
        except OSError as error:
            LOGGER.warning(f"--cache disk is off: {file}: {error}")
            return None
    if needed > MARGIN * room:
        LOGGER.warning(f"--cache ram is off: the images need {needed / 1e9:.1f} GB, {room / 1e9:.1f} GB are free")
        return None
    cache = PixelCache(torch.empty(needed, dtype=torch.uint8).share_memory_(), sizes)
    _fill(cache, read)
    LOGGER.info(f"{len(sizes)} images kept in memory, {needed / 1e9:.2f} GB")
    return cache


def _on_disk(file: Path, needed: int, sizes: np.ndarray, read: Callable[[int], np.ndarray]) -> PixelCache:
    """The file as a cache, made first if it is not there; raises OSError where it cannot be."""
    if not file.exists():
        free = shutil.disk_usage(file.parent).free
        if needed > MARGIN * free:
            raise OSError(f"the images need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
        partial = file.with_name(f"{file.name}.{os.getpid()}.part")
        try:
            with partial.open("wb") as whole:
                if hasattr(os, "posix_fallocate"):  # a mapped file that meets a full disk would end the process
                    os.posix_fallocate(whole.fileno(), 0, needed)
            _fill(PixelCache(torch.from_file(str(partial), shared=True, size=needed, dtype=torch.uint8), sizes), read)
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)
        LOGGER.info(f"{len(sizes)} images kept in {file}, {needed / 1e9:.2f} GB")
    return PixelCache(torch.from_file(str(file), shared=True, size=needed, dtype=torch.uint8), sizes)


def _fill(cache: PixelCache, read: Callable[[int], np.ndarray]) -> None:
    def one(i: int) -> None:
        cache[i][:] = read(i)

    with ThreadPoolExecutor(THREADS) as pool:
        count = len(cache.sizes)
        list(tqdm(pool.map(one, range(count)), total=count, desc="caching images", leave=False, disable=None))


def _key(sizes: np.ndarray, files: Iterable[str]) -> str:
    """Changes with the sizes and with the name, length or time of any image."""
    digest = hashlib.sha256(sizes.astype(np.int64).tobytes())
    for file in files:
        stat = os.stat(file)
        digest.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]
