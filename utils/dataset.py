"""Data sets in YOLO's layout: the data YAML, the label files, one scan with a cache, and samples for training."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from utils.annotations import OUTSIDE, ImageLabels, LabelReader, annotation_reader
from utils.augmentations import copy_paste, flip, hsv, mixup, mosaic, random_affine
from utils.boxes import xywhn2xyxy, xyxy2xywhn
from utils.config import Hyp, find, read_yaml
from utils.images import IMAGE_SUFFIXES, Letterbox, fit_canvas, imread, paste, place, resize
from utils.pixels import PixelCache, cache_pixels
from utils.torch_utils import free_memory

LOGGER = logging.getLogger(__name__)
SPLITS = ("train", "val", "test")
CACHE_VERSION = 2  # raise it when the meaning of the cached arrays changes
SHOWN = 10  # messages about labels that are written out
EXIF_ORIENTATION, EXIF_SIDEWAYS = 0x0112, {5, 6, 7, 8}
NOT_AN_IMAGE = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
DAMAGED = (OSError, ValueError, TypeError, AttributeError, LookupError, EOFError, zipfile.BadZipFile, zlib.error)
THREADS = min(16, os.cpu_count() or 1)


@dataclass(frozen=True)
class Data:
    """A data YAML: `names` by class number, and the folders, .txt lists or images of each split.

    annotations: split -> a COCO .json file or a folder of Pascal VOC .xml files, where there are no label files.
    """

    yaml: str
    names: dict[int, str]
    splits: dict[str, list[Path]]
    annotations: dict[str, Path] = field(default_factory=dict)

    @property
    def nc(self) -> int:
        return len(self.names)

    def split(self, name: str) -> list[Path]:
        """The sources of split `name`.

        Raises:
            ValueError: the YAML has no such split.
        """
        if name not in self.splits:
            raise ValueError(f"{self.yaml}: no '{name}:', it has {', '.join(self.splits)}")
        return self.splits[name]

    def reader(self, name: str) -> LabelReader:
        """What reads the labels of split `name`."""
        path = self.annotations.get(name)
        return TextLabels(self.nc) if path is None else annotation_reader(path, self.names)


def scan_split(data: Data, name: str) -> Scan:
    """The scanned images and labels of a split, whatever form the labels have; see `scan`."""
    return scan(list_images(data.split(name)), data.nc, data.reader(name))


def read_data_yaml(path: str | Path) -> Data:
    """Read a data YAML: path, train, val, test, names, and optionally nc and annotations.

    A relative `path` is looked for beside the YAML, then in the working folder; without `path` the splits are.
    A missing `test` is only an error once it is read, as few people download it.

    Raises:
        FileNotFoundError, ValueError: one line with the file, what is wrong, and what was expected or tried.
    """
    file = find(str(path), "data")
    values = read_yaml(file)
    names = _read_names(values, file)
    roots = [file.resolve().parent, Path.cwd()]
    if values.get("path") is not None:
        roots = [_first_existing(str(values["path"]), roots, f"{file}: path")]
    splits: dict[str, list[Path]] = {}
    for key in SPLITS:
        value = values.get(key)
        if value is None or value == "" or value == []:
            continue
        entries: list[Any] = value if isinstance(value, list) else [value]
        if not all(isinstance(entry, str) for entry in entries):
            raise ValueError(f"{file}: {key} is {value!r}, expected a folder, a .txt list, or a list of these")
        splits[key] = [_first_existing(e, roots, f"{file}: {key}", must_exist=key != "test") for e in entries]
    if not splits:
        raise ValueError(f"{file}: no images, expected at least one of the keys {', '.join(SPLITS)}")
    return Data(str(file), names, splits, _read_annotations(values, roots, file))


def _read_annotations(values: dict[str, Any], roots: Sequence[Path], file: Path) -> dict[str, Path]:
    """The annotation file or folder of each split that has one; raises as read_data_yaml."""
    given = values.get("annotations") or {}
    if (
        not isinstance(given, dict)
        or not set(given) <= set(SPLITS)
        or not all(isinstance(v, str) for v in given.values())
    ):
        raise ValueError(
            f"{file}: annotations is {given!r}, expected split: COCO .json file or folder of VOC .xml files"
        )
    return {
        key: _first_existing(value, roots, f"{file}: annotations of {key}", must_exist=key != "test")
        for key, value in given.items()
    }


def _read_names(values: dict[str, Any], file: Path) -> dict[int, str]:
    """Class names by number; raises ValueError unless they are numbered 0..n-1 and agree with `nc`."""
    names = values.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{file}: names is {names!r}, expected a list of class names or a mapping 0: name, 1: ...")
    if set(names) != set(range(len(names))):
        raise ValueError(f"{file}: names has the keys {list(names)}, expected 0..{len(names) - 1}")
    nc = values.get("nc")
    if nc is not None and nc != len(names):
        raise ValueError(f"{file}: nc is {nc!r}, but names has {len(names)} entries, expected nc: {len(names)} or none")
    return {i: str(names[i]) for i in range(len(names))}


def _first_existing(entry: str, roots: Sequence[Path], what: str, must_exist: bool = True) -> Path:
    """`entry` below the first of `roots` where it exists (or as it is, if absolute).

    Raises:
        FileNotFoundError: nowhere, and it must exist; the message starts with `what`.
    """
    tries = list(dict.fromkeys(root / Path(entry).expanduser() for root in roots))
    for candidate in tries:
        if candidate.exists():
            return candidate
    if must_exist:
        places = ", ".join(str(t) for t in tries)
        raise FileNotFoundError(f"{what} is '{entry}', expected an existing folder or file, tried: {places}")
    return tries[0]


def list_images(sources: Iterable[str | Path]) -> list[Path]:
    """The images in folders (recursive), in .txt lists (one a line) and among `sources` themselves; sorted, each once.

    A line of a list is relative to the list's folder, or else to the working folder.

    Raises:
        FileNotFoundError, ValueError: a source does not exist; no images.
    """
    images: set[Path] = set()
    places = [Path(source) for source in sources]
    for source in places:
        if source.is_dir():
            images.update(p for p in source.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        elif not source.is_file():
            raise FileNotFoundError(f"{source}: no such file, expected a folder, a .txt list or an image")
        elif source.suffix.lower() == ".txt":
            lines = (line.strip() for line in source.read_text(encoding="utf-8-sig").splitlines())
            roots = [source.parent, Path.cwd()]
            images.update(_first_existing(line, roots, str(source), must_exist=False) for line in lines if line)
        else:
            images.add(source)
    if not images:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise ValueError(f"{', '.join(str(p) for p in places)}: no images, expected files ending in {suffixes}")
    return sorted(images)


def label_path(image: str | Path) -> Path:
    """The label file of an image: its last folder called `images` becomes `labels`; without one, beside the image."""
    file = Path(image).with_suffix(".txt")
    parts = list(file.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts)


def read_labels(path: str | Path, nc: int) -> tuple[np.ndarray, list[str], list[str]]:
    """Read a label file; one that is missing or empty is a picture of background.

    Returns:
        (n, 5) float32 class, cx, cy, w, h in 0..1 of the image, polygons made boxes; warnings; errors.
        Every message starts with 'file:line:'; a line with an error gives no box.
    """
    boxes: dict[tuple[float, ...], int] = {}
    warnings: list[str] = []
    errors: list[str] = []
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        lines = []
    except (UnicodeDecodeError, OSError) as error:
        lines, errors = [], [f"{path}:1: not readable as text: {error}"]
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        try:
            values = _parse_line(words, nc)
        except ValueError as error:
            errors.append(f"{path}:{number}: {error}")
            continue
        box, outside = _clip_label(values)
        if outside > OUTSIDE:
            warnings.append(f"{path}:{number}: box reaches {outside:.1%} of the image beyond its edge, clipped")
        if box[3] <= 0 or box[4] <= 0:
            warnings.append(f"{path}:{number}: box without area, dropped")
        elif box in boxes:
            warnings.append(f"{path}:{number}: the same box as in line {boxes[box]}, dropped")
        else:
            boxes[box] = number
    return np.array(list(boxes), dtype=np.float32).reshape(-1, 5), warnings, errors


def _parse_line(words: list[str], nc: int) -> list[float]:
    """Class, cx, cy, w, h in 0..1 from the words of a label line; raises ValueError saying what is wrong."""
    try:
        values = [float(word) for word in words]
    except ValueError as error:
        raise ValueError(f"'{' '.join(words)[:60]}' is not a row of numbers") from error
    if not all(math.isfinite(value) for value in values):
        raise ValueError("NaN or infinity among the numbers")
    count = len(values)
    if count != 5 and (count < 7 or count % 2 == 0):
        expected = "5 (class cx cy w h) or a class and 3 or more x y points"
        raise ValueError(f"{count} numbers, expected {expected}")
    label = values[0]
    if label != int(label):
        raise ValueError(f"class {words[0]} is not an integer")
    if not 0 <= label < nc:
        raise ValueError(f"class {int(label)}, but data.yaml has {nc} classes (0..{nc - 1})")
    if count == 5:
        return values
    xs, ys = values[1::2], values[2::2]
    left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
    return [label, (left + right) / 2, (top + bottom) / 2, right - left, bottom - top]


def _clip_label(values: list[float]) -> tuple[tuple[float, ...], float]:
    """Class, cx, cy, w, h clipped to 0..1 and how far, in image sides, the farthest edge was outside."""
    label, cx, cy, w, h = values
    edges = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
    outside = max(max(-min(edges), max(edges) - 1), 0.0)
    if outside > 0:
        x1, y1, x2, y2 = (min(max(edge, 0.0), 1.0) for edge in edges)
        cx, cy, w, h = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
    return (label, cx, cy, w, h), outside


class TextLabels:
    """The reader of label files."""

    def __init__(self, nc: int):
        self.nc, self.key = nc, str(nc)

    def file(self, image: Path) -> Path:
        return label_path(image)

    def read(self, image: Path, size: tuple[int, int]) -> ImageLabels:
        boxes, warnings, errors = read_labels(self.file(image), self.nc)
        return ImageLabels(boxes, np.zeros(len(boxes), bool), np.full(len(boxes), np.nan, np.float32), warnings, errors)


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


class Sample(NamedTuple):
    """One image (3, H, W) uint8 RGB with targets (n, 6) float32: 0, class, cx, cy, w, h in 0..1 of the canvas."""

    image: Tensor
    targets: Tensor
    path: str
    letterbox: Letterbox | None  # None when augmented
    index: int  # type: ignore[assignment]  # hides tuple.index


class DetectionDataset(Dataset):  # type: ignore[type-arg]
    """Samples of a scanned data set, by key (epoch, index): a key always gives the same sample, in any process.

    Args:
        scan: the images and labels.
        imgsz: long side of the images in pixels, a multiple of `grid`.
        grid: canvas sides are multiples of this.
        hyp: strengths of the augmentations; None does not augment.
        rect: images in order of their aspect ratio, each run of `batch_size` on the smallest canvas that holds it.
        single_cls: every class is 0.
        cache: 'ram' or 'disk' keeps the images, scaled to `imgsz`, at hand.
        no_mosaic_from: from this epoch on there are no mosaics (and no mixup).
    """

    def __init__(
        self,
        scan: Scan,
        imgsz: int,
        grid: int,
        *,
        hyp: Hyp | None = None,
        rect: bool = False,
        batch_size: int = 16,
        seed: int = 0,
        single_cls: bool = False,
        cache: str = "",
        no_mosaic_from: int | None = None,
    ) -> None:
        self.scan, self.imgsz, self.grid, self.hyp = scan, imgsz, grid, hyp
        self.rect, self.batch_size, self.seed, self.single_cls = rect, batch_size, seed, single_cls
        self.order = np.arange(len(scan))  # dataset index -> row of the scan
        self.canvases = np.full((len(scan), 2), imgsz, dtype=np.int32)  # (height, width) by dataset index
        if rect:
            self.order = np.argsort(scan.sizes[:, 0] / scan.sizes[:, 1], kind="stable")
            fits = np.array([fit_canvas((int(h), int(w)), imgsz, grid) for h, w in scan.sizes[self.order]])
            for start in range(0, len(scan), batch_size):
                run = slice(start, start + batch_size)
                self.canvases[run] = fits[run].max(axis=0)
        self.no_mosaic_from = math.inf if no_mosaic_from is None else no_mosaic_from
        self._held: PixelCache | None = None
        if cache:
            sizes = np.array([self._place(i).resized for i in range(len(self))], dtype=np.int32)
            paths = [self.path_of(i) for i in range(len(self))]
            stem = label_path(paths[0]).parent
            self._held = cache_pixels(cache, sizes, self._read, free_memory(torch.device("cpu")), stem, paths)

    def __len__(self) -> int:
        return len(self.order)

    def row_of(self, i: int) -> int:
        """The place in the scan of image `i`: rect changes the order."""
        return int(self.order[i])

    def path_of(self, i: int) -> str:
        return str(self.scan.paths[self.order[i]])

    def labels_of(self, i: int) -> np.ndarray:
        """(n, 5) float32 class, cx, cy, w, h in 0..1 of image `i`, without crowds; a new array."""
        labels = self.scan.labels_of(self.order[i]).copy()
        if self.single_cls:
            labels[:, 0] = 0
        return labels

    def truth_of(self, i: int) -> Truth:
        """All labels of image `i`, crowds too."""
        truth = self.scan.truth_of(self.order[i])
        if not self.single_cls:
            return truth
        labels = truth.labels.copy()
        labels[:, 0] = 0
        return truth._replace(labels=labels)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = (int(k) for k in key)
        if self.hyp is None:
            image, boxes, placed = self._letterboxed(index)
        else:
            rng = np.random.default_rng((self.seed, epoch, index))
            image, boxes = self._augmented(index, self.hyp, rng, tiles=epoch < self.no_mosaic_from)
            placed = None
        targets = np.zeros((len(boxes), 6), dtype=np.float32)
        targets[:, 1] = boxes[:, 0]
        targets[:, 2:] = xyxy2xywhn(boxes[:, 1:], image.shape[:2])
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return Sample(pixels, torch.from_numpy(targets), self.path_of(index), placed, index)

    def _place(self, i: int) -> Letterbox:
        """Where image `i` lies on its canvas."""
        h, w, rows, columns = (int(v) for v in (*self.scan.sizes[self.order[i]], *self.canvases[i]))
        return place((h, w), (rows, columns))

    def _read(self, i: int) -> np.ndarray:
        """Image `i` (H, W, 3) as its place wants it, from its file.

        Raises:
            ValueError: the file is no longer the image that was scanned.
        """
        image, placed = imread(self.path_of(i)), self._place(i)
        if image.shape[:2] != placed.image:
            raise ValueError(f"{self.path_of(i)}: {image.shape[:2]} pixels, but {placed.image} when it was scanned")
        return resize(image, placed.resized)

    def _load(self, i: int) -> tuple[np.ndarray, np.ndarray, Letterbox]:
        """Scaled image, its boxes (n, 5) class + xyxy in its pixels, and its place on its canvas."""
        image, placed = self._held[i] if self._held else self._read(i), self._place(i)
        labels = self.labels_of(i).astype(np.float64)
        boxes = np.concatenate([labels[:, :1], xywhn2xyxy(labels[:, 1:], placed.resized)], axis=1)
        return image, boxes, placed

    def _letterboxed(self, i: int) -> tuple[np.ndarray, np.ndarray, Letterbox]:
        """Image `i` on its canvas, its boxes (n, 5) class + xyxy in canvas pixels, and its place."""
        image, boxes, placed = self._load(i)
        shift = np.array([0, placed.left, placed.top, placed.left, placed.top])
        return paste(image, placed), boxes + shift, placed

    def _augmented(
        self, i: int, hyp: Hyp, rng: np.random.Generator, tiles: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Image `i` after all augmentations, and its boxes (n, 5) class + xyxy in canvas pixels."""
        if tiles and not self.rect and rng.random() < hyp.mosaic:
            image, boxes = self._mosaic(i, hyp, rng)
            if rng.random() < hyp.mixup:
                image, boxes = mixup(image, boxes, *self._mosaic(int(rng.integers(len(self))), hyp, rng), rng)
        else:
            image, boxes, placed = self._letterboxed(i)
            image, boxes = random_affine(image, boxes, placed.canvas, hyp, rng)
        image, boxes = hsv(image, boxes, (hyp.hsv_h, hyp.hsv_s, hyp.hsv_v), rng)
        for axis, probability in enumerate((hyp.flipud, hyp.fliplr)):
            if rng.random() < probability:
                image, boxes = flip(image, boxes, axis)
        return image, boxes

    def _mosaic(self, i: int, hyp: Hyp, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A mosaic of image `i` and three others drawn from `rng`, warped to (imgsz, imgsz)."""
        chosen = [i, *(int(k) for k in rng.integers(len(self), size=3))]
        images, boxes, _ = zip(*(self._load(k) for k in chosen), strict=True)
        image, merged = mosaic(images, boxes, self.imgsz, rng)
        if hyp.copy_paste:
            image, merged = copy_paste(image, merged, hyp.copy_paste, rng)
        return random_affine(image, merged, (self.imgsz, self.imgsz), hyp, rng)
