"""Data sets in YOLO's layout: the data YAML, its images, and samples for training and validation."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from utils.boxes import xywhn2xyxy, xyxy2xywhn
from utils.config import Hyp, find, read_yaml
from utils.data.annotations import LabelReader, annotation_reader
from utils.data.augmentations import copy_paste, flip, hsv, mixup, mosaic, random_affine
from utils.data.image_cache import PixelCache, cache_pixels
from utils.data.labels import TextLabels, label_path
from utils.data.scan import Scan, Truth, scan
from utils.device import free_memory, local_processes
from utils.images import IMAGE_SUFFIXES, Letterbox, fit_canvas, imread, paste, place, resize

LOGGER = logging.getLogger(__name__)
SPLITS = ("train", "val", "test")


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
            self._held = cache_pixels(
                cache, sizes, self._read, free_memory(torch.device("cpu")) // local_processes(), stem, paths
            )

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
