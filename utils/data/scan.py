"""The scan of a data set: checks every image and label once; the result is cached until a file changes."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.boxes import Boxes, Truth, xywhn2xyxy
from utils.data.labels import TextLabels, label_path
from utils.data.objects import ImageLabels, LabelReader
from utils.decode import ImageInfo, probe
from utils.device import cpu_count
from utils.files import write_atomic
from utils.progress import Progress
from utils.text import counted

LOGGER = logging.getLogger(__name__)
CACHE_VERSION = 4  # to be raised when the meaning of the cached arrays changes
MAX_MESSAGES = 10  # of one kind, in the log or in an error
CACHE_ERRORS = (OSError, ValueError, TypeError, AttributeError, LookupError, EOFError, zipfile.BadZipFile, zlib.error)
THREADS = min(16, cpu_count())


@dataclass(frozen=True)
class Scan:
    """The images and labels of a data set.

    They are arrays: a list of objects would be copied into every worker, page by page, by its reference counts.

    Attributes:
        paths: (N,) str. sizes: (N, 2) int32, upright height and width.
        label, xywhn, crowd, area: of all M boxes, see ImageLabels.
        offsets: (N + 1,) int64; the boxes of image i are those from offsets[i] to offsets[i + 1].
    """

    paths: np.ndarray
    sizes: np.ndarray
    label: np.ndarray
    xywhn: np.ndarray
    offsets: np.ndarray
    crowd: np.ndarray
    area: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def box_count(self) -> int:
        """The number of boxes in all images, M."""
        return len(self.label)

    def size(self, i: int) -> tuple[int, int]:
        """(height, width) of image `i`, upright."""
        h, w = self.sizes[i]
        return int(h), int(w)

    def training_boxes(self, i: int, size: tuple[int, int]) -> Boxes:
        """The boxes of image `i` without crowds, in pixels of the image scaled to `size` (height, width)."""
        rows = slice(self.offsets[i], self.offsets[i + 1])
        keep = ~self.crowd[rows]
        return Boxes.labeled(xywhn2xyxy(self.xywhn[rows][keep].astype(np.float64), size), self.label[rows][keep])

    def truth(self, i: int) -> Truth:
        """The ground truth of image `i`, crowds included, in its pixels."""
        rows = slice(self.offsets[i], self.offsets[i + 1])
        xywhn, area, (h, w) = self.xywhn[rows], self.area[rows], self.sizes[i]
        boxes = Boxes.labeled(xywhn2xyxy(xywhn.astype(np.float64), self.size(i)), self.label[rows])
        area = np.where(np.isnan(area), xywhn[:, 2] * w * xywhn[:, 3] * h, area)
        return Truth(boxes.xyxy, boxes.label, boxes.score, self.crowd[rows], area)

    def subset(self, images: np.ndarray) -> Scan:
        """The scan of the images with the indices `images` (k,), in that order."""
        boxes_of = [np.arange(self.offsets[i], self.offsets[i + 1]) for i in images]
        offsets = np.cumsum([0, *(len(rows) for rows in boxes_of)], dtype=np.int64)
        rows = np.concatenate([np.empty(0, dtype=np.int64), *boxes_of])
        boxes = self.label[rows], self.xywhn[rows], offsets, self.crowd[rows], self.area[rows]
        return Scan(self.paths[images], self.sizes[images], *boxes)

    def as_single_class(self) -> Scan:
        """The same images and boxes, all of class 0."""
        return replace(self, label=np.zeros_like(self.label))


SCAN_FIELDS = tuple(f.name for f in fields(Scan))


class _Checked(NamedTuple):
    """The size and labels of one image; `bad` says why it cannot be read, None if it can be."""

    size: tuple[int, int]
    labels: ImageLabels
    bad: str | None


def scan(images: Sequence[str | Path], nc: int, reader: LabelReader | None = None, notes: Sequence[str] = ()) -> Scan:
    """The images and labels of a data set, checked; the result is cached beside the labels, see cache_file.

    Images that cannot be read are left out with a warning. The log accounts for every file: `notes` of the search for
    images, what the reader says about files that do not match, and a line with the totals.

    Args:
        reader: reads the labels; None: label files with classes below `nc`.

    Raises:
        ValueError: errors in labels (the first MAX_MESSAGES of them; a file has all), or no readable image.
    """
    if not images:
        raise ValueError("no images to scan")
    reader = reader or TextLabels(nc)
    notes = [*notes, *reader.match([Path(image) for image in images])]
    first = label_path(images[0]) if isinstance(reader, TextLabels) else reader.file(Path(images[0]))
    where = first if first.suffix == ".json" else first.parent
    cache, key = cache_file(images, reader), _fingerprint(images, reader)
    arrays = _load_cache(cache, key)
    if arrays is None:
        arrays = _scan_files(images, reader, _log_file(cache))
        _save_cache(cache, key, arrays)
    result = Scan(**{name: arrays[name] for name in SCAN_FIELDS})
    bad, warnings, unlisted = arrays["bad"].tolist(), arrays["warnings"].tolist(), arrays["unlisted"].tolist()
    for message in _shortened([*bad, *warnings], "messages about images and labels", _log_file(cache)):
        LOGGER.warning(message)
    if not len(result):
        reason = f"{bad[0] if bad else unlisted[0]}"
        notes = "".join(f"; {note}" for note in notes)
        raise ValueError(f"{Path(images[0]).parent}: none of {len(images)} images can be used: {reason}{notes}"[:399])
    background = int((np.diff(result.offsets) == 0).sum())
    for note in notes:
        LOGGER.warning(note)
    if background == len(result):
        LOGGER.warning(f"no labels found, looked for files such as {reader.file(Path(result.paths[0]))}")
    elif result.crowd.all():
        LOGGER.warning(f"{where}: all {result.box_count} boxes are crowds or difficult objects: none can be learned")
    left_out = f", {len(unlisted)} left out" if unlisted else ""
    LOGGER.info(
        f"{where}: {len(result)} images, {background} of them background, {result.box_count} boxes, "
        f"{len(bad)} bad images{left_out}"
    )
    return result


def _shortened(messages: Sequence[str], what: str, file: Path) -> list[str]:
    """The first MAX_MESSAGES messages, and a line that counts the others and names `file`, which has all of them."""
    if len(messages) <= MAX_MESSAGES:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
        return list(messages)
    more = f"... and {len(messages) - MAX_MESSAGES} more {what}"
    try:
        write_atomic(file, "".join(f"{message}\n" for message in messages), sync=False)
    except OSError:
        return [*messages[:MAX_MESSAGES], more]
    return [*messages[:MAX_MESSAGES], f"{more}, all in {file}"]


def cache_file(images: Sequence[str | Path], reader: LabelReader) -> Path:
    """The cache of a scan of these images, in the parent of the labels folder, one for each list of images."""
    first = Path(images[0])
    own = label_path(first) if isinstance(reader, TextLabels) else reader.file(first)  # not where a link leads to
    folder = own.parent
    names = hashlib.sha256("\n".join(str(image) for image in images).encode()).hexdigest()[:8]
    return folder.with_name(f"{folder.name}.{names}.cache.npz")


def _log_file(cache: Path) -> Path:
    """The file of all messages of a scan, if they are many."""
    return cache.with_name(f"{cache.name.removesuffix('.cache.npz')}.messages.txt")


def _scan_files(images: Sequence[str | Path], reader: LabelReader, log_file: Path) -> dict[str, np.ndarray]:
    """The arrays of a Scan, and messages: `bad` and `unlisted` images, `warnings` about labels.

    Raises:
        ValueError: errors in labels; `log_file` has all if they are many.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        work = pool.map(lambda image: _check(image, reader), images)
        found = list(Progress(work, len(images), lambda: "scanning labels"))
    errors = [error for item in found for error in item.labels.errors]
    if errors:
        shown = "".join(f"\n  {line}" for line in _shortened(errors, "label errors", log_file))
        raise ValueError(f"{counted(len(errors), 'label error')}:{shown}")
    good = [i for i, item in enumerate(found) if item.bad is None and item.labels.skip_reason is None]
    labels = [found[i].labels for i in good]
    return {
        "paths": np.array([str(images[i]) for i in good], dtype=np.str_),
        "sizes": np.array([found[i].size for i in good], dtype=np.int32).reshape(-1, 2),
        "label": np.concatenate([ImageLabels().label, *(item.label for item in labels)]),
        "xywhn": np.concatenate([ImageLabels().xywhn, *(item.xywhn for item in labels)]),
        "offsets": np.cumsum([0, *(len(item.label) for item in labels)], dtype=np.int64),
        "crowd": np.concatenate([ImageLabels().crowd, *(item.crowd for item in labels)]),
        "area": np.concatenate([ImageLabels().area, *(item.area for item in labels)]),
        "bad": np.array([item.bad for item in found if item.bad is not None], dtype=np.str_),
        "unlisted": np.array([t for item in found if (t := item.labels.skip_reason) is not None], dtype=np.str_),
        "warnings": np.array([warning for item in found for warning in item.labels.warnings], dtype=np.str_),
    }


def _check(image: str | Path, reader: LabelReader) -> _Checked:
    """Check that one image can be decoded, and read its labels."""
    path, info, bad = Path(image), ImageInfo((0, 0)), None
    try:
        info = probe(path.read_bytes(), path)
    except OSError as error:
        bad = f"{path}: left out, not a readable image: {error.strerror or error}"
    except ValueError as error:
        bad = f"{path}: left out, {str(error).removeprefix(f'{path}: ')}"
    needs_size = not isinstance(reader, TextLabels)
    labels = ImageLabels() if bad and needs_size else reader.read(path, *info)
    return _Checked(info.size, labels, bad)


def _fingerprint(images: Sequence[str | Path], reader: LabelReader) -> str:
    """A hash of the paths, sizes and times of all files, the reader's key and the version of the cache."""
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
    """The arrays that were saved with `key`; None if there is no such file, its key differs or it is damaged."""
    wanted = (*SCAN_FIELDS, "bad", "unlisted", "warnings")
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as saved:
            return {name: saved[name] for name in wanted} if str(saved["key"]) == key else None
    except FileNotFoundError:
        return None
    except CACHE_ERRORS as error:
        LOGGER.info(f"{file}: not a usable cache, scanning again ({error})")
        return None


def _save_cache(file: Path, key: str, arrays: dict[str, np.ndarray]) -> None:
    """Write the arrays atomically; if the folder cannot be written to there is no cache."""
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
