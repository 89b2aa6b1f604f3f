"""The scan of a data set: checks every image and label once; the result is cached until a file changes."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.boxes import Boxes, Truth, xywhn2xyxy
from utils.data import label_cache
from utils.data.labels import TextLabels, label_path
from utils.data.objects import ImageLabels, LabelReader
from utils.decode import ImageInfo, probe
from utils.device import cpu_count
from utils.files import write_atomic
from utils.progress import Progress
from utils.reading import read_bytes
from utils.text import ErrorList, clean, counted, first

LOGGER = logging.getLogger(__name__)
MAX_MESSAGES = 10  # of one kind, in the log or in an error
MESSAGE = 390  # characters of a message
MAX_KEPT = 10_000  # messages of one kind that are kept, in memory, in the cache and in the file of all messages
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
KINDS = ("bad", "unlisted", "warnings")  # of messages: images that cannot be read or have no labels; about labels


class _Checked(NamedTuple):
    """The size and labels of one image; `bad` says why it cannot be read, None if it can be."""

    size: tuple[int, int]
    labels: ImageLabels
    bad: str | None


class Messages(NamedTuple):
    """The first MAX_KEPT messages of one kind, and the number of all."""

    lines: list[str]
    total: int

    @classmethod
    def of(cls, lines: Iterable[str], uncounted: int = 0) -> Messages:
        """Those of `lines`, and `uncounted` ones that they stand for."""
        kept, total = list[str](), uncounted
        for line in lines:
            total += 1
            if len(kept) < MAX_KEPT:
                kept.append(clean(line, MESSAGE))
        return cls(kept, total)


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
    labels = label_path(images[0]) if isinstance(reader, TextLabels) else reader.file(Path(images[0]))
    where = labels if labels.suffix == ".json" else labels.parent
    cache, key = cache_file(images, reader), _fingerprint(images, reader)
    known = _load_cache(cache, key)
    if known is None:
        known = _scan_files(images, reader, _log_file(cache))
        _save_cache(cache, key, *known)
    result, messages = known
    bad, unlisted, warnings = (messages[kind] for kind in KINDS)
    both = Messages([*bad.lines, *warnings.lines], bad.total + warnings.total)
    for message in _shortened(both, "messages about images and labels", _log_file(cache)):
        LOGGER.warning(message)
    if not len(result):
        reason = f"{(bad.lines or unlisted.lines)[0]}"
        notes = "".join(f"; {note}" for note in notes)
        raise ValueError(
            f"{Path(images[0]).parent}: none of {counted(len(images), 'image')} can be used: {reason}{notes}"[:399]
        )
    background = int((np.diff(result.offsets) == 0).sum())
    for note in notes:
        LOGGER.warning(clean(note, MESSAGE))
    if background == len(result):
        LOGGER.warning(f"no labels found, looked for files such as {reader.file(Path(result.paths[0]))}")
    elif result.crowd.all():
        LOGGER.warning(f"{where}: no box can be learned, all are crowds or difficult objects")
    left_out = f", {unlisted.total} left out" if unlisted.total else ""
    LOGGER.info(
        f"{where}: {counted(len(result), 'image')}, {background} of them background, "
        f"{counted(result.box_count, 'box', 'boxes')}, {counted(bad.total, 'bad image')}{left_out}"
    )
    return result


def warn_of_shared_images(train: Scan, val: Scan) -> None:
    """Log how many images are trained with and measured on: metrics of these say little about other images."""
    shared = sorted(set(train.paths.tolist()) & set(val.paths.tolist()))
    if shared:
        what = "all images of val" if len(shared) == len(val) else f"{counted(len(shared), 'image')} of val"
        LOGGER.warning(f"{what} are in train too, so metrics will be too good: {first(shared, 1)}")


def _shortened(messages: Messages, what: str, file: Path) -> list[str]:
    """The first MAX_MESSAGES messages, and a line that counts the others and names `file`, which has all of them.

    Of very many it has the first MAX_KEPT of each kind, and their number.
    """
    lines, count = messages
    if count <= MAX_MESSAGES:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
        return lines
    more = f"... and {count - min(len(lines), MAX_MESSAGES)} more {what}"
    rest = "" if count == len(lines) else f"... and {count - len(lines):,} more\n"
    try:
        write_atomic(file, "".join(f"{line}\n" for line in lines) + rest, sync=False)
    except OSError:
        return [*lines[:MAX_MESSAGES], more]
    return [*lines[:MAX_MESSAGES], f"{more}, {'the first ' + counted(len(lines), 'line') if rest else 'all'} in {file}"]


def cache_file(images: Sequence[str | Path], reader: LabelReader) -> Path:
    """The cache of a scan of these images, in the parent of the labels folder, one for each list of images."""
    image = Path(images[0])
    own = label_path(image) if isinstance(reader, TextLabels) else reader.file(image)  # not where a link leads to
    folder = own.parent
    text = "\n".join(str(image) for image in images)
    names = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return folder.with_name(f"{folder.name}.{names}.cache")


def _log_file(cache: Path) -> Path:
    """The file of all messages of a scan, if they are many."""
    return cache.with_name(f"{cache.name.removesuffix('.cache')}.messages.txt")


def _scan_files(images: Sequence[str | Path], reader: LabelReader, log_file: Path) -> tuple[Scan, dict[str, Messages]]:
    """The scan, and its messages of each of KINDS.

    Raises:
        ValueError: errors in labels; `log_file` has all if they are many.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        work = pool.map(lambda image: _check(image, reader), images)
        found = list(Progress(work, len(images), lambda: "scanning labels"))
    errors = Messages.of((e for item in found for e in item.labels.errors), _stood_for(found, 1))
    if errors.total:
        raise ErrorList(counted(errors.total, "label error"), _shortened(errors, "label errors", log_file))
    good = [i for i, item in enumerate(found) if item.bad is None and item.labels.skip_reason is None]
    labels = [found[i].labels for i in good]
    result = Scan(
        paths=np.array([str(images[i]) for i in good], dtype=np.str_),
        sizes=np.array([found[i].size for i in good], dtype=np.int32).reshape(-1, 2),
        label=np.concatenate([ImageLabels().label, *(item.label for item in labels)]),
        xywhn=np.concatenate([ImageLabels().xywhn, *(item.xywhn for item in labels)]),
        offsets=np.cumsum([0, *(len(item.label) for item in labels)], dtype=np.int64),
        crowd=np.concatenate([ImageLabels().crowd, *(item.crowd for item in labels)]),
        area=np.concatenate([ImageLabels().area, *(item.area for item in labels)]),
    )
    bad = Messages.of(item.bad for item in found if item.bad is not None)
    unlisted = Messages.of(t for item in found if (t := item.labels.skip_reason) is not None)
    warnings = Messages.of((w for item in found for w in item.labels.warnings), _stood_for(found, 0))
    return result, {"bad": bad, "unlisted": unlisted, "warnings": warnings}


def _stood_for(found: Sequence[_Checked], kind: int) -> int:
    """How many warnings (0) or errors (1) the last lines of the files stand for, besides themselves."""
    return sum(item.labels.unlisted[kind] - 1 for item in found if item.labels.unlisted[kind])


def _check(image: str | Path, reader: LabelReader) -> _Checked:
    """Check that one image can be decoded, and read its labels."""
    path, info, bad = Path(image), ImageInfo((0, 0)), None
    try:
        info = probe(read_bytes(path, "image"), path)
    except OSError as error:
        bad = f"{path}: left out, not a readable image: {error.strerror or error}"
    except ValueError as error:
        bad = f"{path}: left out, {str(error).removeprefix(f'{path}: ')}"
    needs_size = not isinstance(reader, TextLabels)
    labels = ImageLabels() if bad and needs_size else reader.read(path, *info)
    return _Checked(info.size, labels, bad)


def _fingerprint(images: Sequence[str | Path], reader: LabelReader) -> str:
    """A hash of the paths, sizes and times of all files, and of the reader's key."""
    digest = hashlib.sha256(reader.key.encode("utf-8", "surrogatepass"))
    for image in images:
        for file in (Path(image), reader.file(Path(image))):
            try:
                stat = file.stat()
                state = f"{stat.st_size} {stat.st_mtime_ns}"
            except OSError:
                state = "missing"
            digest.update(f"\n{file}\0{state}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _load_cache(file: Path, key: str) -> tuple[Scan, dict[str, Messages]] | None:
    """The scan that was saved with `key`, and its messages; None: see label_cache.load."""
    saved = label_cache.load(file, key)
    if saved is None:
        return None
    arrays, texts = saved
    counts = arrays.pop("counts").tolist()
    messages = {kind: Messages(texts[kind], count) for kind, count in zip(KINDS, counts, strict=True)}
    return Scan(paths=np.array(texts["paths"], dtype=np.str_), **arrays), messages


def _save_cache(file: Path, key: str, result: Scan, messages: dict[str, Messages]) -> None:
    arrays = {name: getattr(result, name) for name in SCAN_FIELDS if name != "paths"}
    arrays["counts"] = np.array([messages[kind].total for kind in KINDS], np.int64)
    texts = {"paths": [str(path) for path in result.paths], **{kind: messages[kind].lines for kind in KINDS}}
    label_cache.save(file, key, arrays, texts)
