"""The data set: samples for training and validation from a scan."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from utils.boxes import Boxes, Targets, Truth, xyxy2xywhn
from utils.data.augmentations import (
    copy_paste,
    finished,
    hsv_factors,
    mirrored,
    mixup,
    mosaic,
    mosaic_center,
    on_canvas,
    random_affine,
    random_tile,
    tile_corner,
)
from utils.data.image_cache import ImageCache, RecentImages, cache_images
from utils.data.labels import label_path
from utils.data.scan import Scan
from utils.data.views import Canvas, random_view
from utils.device import free_memory
from utils.distributed import local_processes
from utils.hyp import Hyp
from utils.images import PAD, Letterbox, Size, as_size, fit_canvas, imread, imread_small, place, resize
from utils.tiles import is_cut

LOGGER = logging.getLogger(__name__)
# A JPEG that is decoded at a fraction of its size keeps this many times the pixels a side that are needed: resized from
# fewer, it is smoother than the same image in validation and detection, which costs mAP (docs/training.md).
SHARP = 2
RECENT, RECENT_SHARE = 256 << 20, 1 / 16  # bytes of decoded images that each process keeps; at most, of the free memory
Loaded: TypeAlias = tuple[np.ndarray, Boxes, Letterbox]  # an image, its boxes, its place on the canvas


class Sample(NamedTuple):
    """One image as the network sees it.

    Attributes:
        image: (3, H, W) uint8 RGB. targets: its boxes without crowds, relative to the canvas.
        row: index of the image in the scan.
        letterbox: the place of the image on the canvas. truth: all its boxes in pixels of the file's image.
            Both are None if the sample is augmented.
    """

    image: Tensor
    targets: Targets
    path: str
    row: int
    letterbox: Letterbox | None
    truth: Truth | None


def file_state(path: str) -> tuple[int, int]:
    """The size and time of a file; zeros if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def recent_limit() -> int:
    """Bytes of decoded images that each process keeps: RECENT, or less where memory is short."""
    try:
        return min(RECENT, int(RECENT_SHARE * free_memory(torch.device("cpu"))))
    except ValueError:  # the system does not report it
        return RECENT


def on_place(boxes: Boxes, placed: Letterbox) -> Boxes:
    """Boxes in pixels of a resized image -> in those of its canvas."""
    return boxes.at(boxes.xyxy + np.array([placed.left, placed.top, placed.left, placed.top]))


def letterboxed(image: np.ndarray, placed: Letterbox) -> Tensor:
    """(3, H, W) uint8: a gray canvas with `image` (h, w, 3), already resized, at its place."""
    out = torch.full((3, *placed.canvas), PAD, dtype=torch.uint8)
    rows, columns = (slice(at, at + side) for at, side in zip((placed.top, placed.left), placed.resized, strict=True))
    cv2.split(image, list(out.numpy()[:, rows, columns]))  # written in place
    return out


@dataclass(frozen=True)
class Augmentation:
    """How the images of a training are changed.

    Attributes:
        hyp: hyperparameters. seed: of what is drawn at random.
        no_mosaic_from: the epoch from which on there is no mosaic and no mixup; None: never.
        tile: of images larger than this side in pixels a random part is used, see random_tile; 0: never.
    """

    hyp: Hyp
    seed: int = 0
    no_mosaic_from: int | None = None
    tile: int = 0


class DetectionDataset(Dataset):  # type: ignore[type-arg]
    """Samples of a scan by key (epoch, index): a key gives the same sample at any time, in any process.

    With `augment`, JPEGs of twice the size that is needed or more are decoded at 1/2, 1/4 or 1/8, see decode_small;
    without it they are decoded whole, as everywhere else: what is measured does not depend on it.

    Args:
        scan: the images and labels.
        imgsz: (height, width) that hold every image, pixels, multiples of `grid`; one number: a square.
        grid: canvas sides are multiples of this.
        augment: None: the images are not changed.
        rect: sort the images by aspect ratio; each `batch_size` of them share the smallest canvas that holds them.
        cache: 'ram' or 'disk': cache the images, scaled to `imgsz`; '': no cache.
        letterbox: where an image lies on its canvas, one of utils.images.POSITIONS.

    Raises:
        ValueError: rectangular batches of tiles.
    """

    def __init__(
        self,
        scan: Scan,
        imgsz: int | Size,
        grid: int,
        *,
        augment: Augmentation | None = None,
        rect: bool = False,
        batch_size: int = 16,
        cache: str = "",
        letterbox: str = "center",
    ) -> None:
        self.augment, self.tile = augment, augment.tile if augment else 0
        if self.tile and rect:
            raise ValueError(f"tile {self.tile}: random tiles are square, expected no rectangular batches")
        largest = as_size(imgsz)
        self.largest, self.grid = largest, grid
        self.scan, self.imgsz = scan, max(largest)  # mosaics are square
        self.rect, self.batch_size = rect, batch_size
        self.letterbox = letterbox
        self.order = np.arange(len(scan))  # dataset index -> row of the scan
        self.canvases = np.full((len(scan), 2), largest, dtype=np.int32)  # (height, width) by dataset index
        if rect:
            self.order = np.argsort(scan.sizes[:, 0] / scan.sizes[:, 1], kind="stable")
            fits = np.array([fit_canvas(scan.size(row), largest, grid) for row in self.order.tolist()])
            for start in range(0, len(scan), batch_size):
                batch = slice(start, start + batch_size)
                self.canvases[batch] = fits[batch].max(axis=0)
        self._reported = torch.zeros(len(scan), dtype=torch.bool).share_memory_()  # by index, for all workers
        self._replaced = torch.zeros(1, dtype=torch.bool).share_memory_()  # whether it was reported, for all workers
        self._states = np.array([file_state(path) for path in map(self.path_of, range(len(scan)))], dtype=np.int64)
        self._cache: ImageCache | None = None
        self._recent = RecentImages(recent_limit() if augment and not cache else 0)
        if cache:
            sizes = np.array([self._kept_size(i) for i in range(len(self))], dtype=np.int32)
            paths = [self.path_of(i) for i in range(len(self))]
            free = free_memory(torch.device("cpu")) // local_processes()
            labels = label_path(paths[0]).parent
            folder = labels if labels.parent.is_dir() else Path(paths[0]).parent  # annotations need no labels folder
            # A split that is train and val is then read in two ways.
            large = (scan.sizes[self.order] + 1) // 2 >= SHARP * sizes
            form = "small" if augment and large.all(axis=1).any() else ""
            self._cache = cache_images(cache, sizes, self._read_or_report, free, folder, paths, form)

    def __len__(self) -> int:
        return len(self.order)

    def path_of(self, i: int) -> str:
        """The path of image `i`."""
        return str(self.scan.paths[self.order[i]])

    def __getitem__(self, key: tuple[int, int]) -> Sample | None:
        """The sample of a key; None, without augmentation, if its image cannot be read any more."""
        epoch, index = (int(k) for k in key)
        row = int(self.order[index])
        placed, truth = None, None
        if self.augment is None:
            loaded = self._own(index)
            if loaded is None:
                return None
            image, boxes, placed = loaded
            boxes = on_place(boxes, placed)
            pixels, size = letterboxed(image, placed), placed.canvas
            truth = self.scan.truth(row)
        else:
            rng, last = np.random.default_rng((self.augment.seed, epoch, index)), self.augment.no_mosaic_from
            pixels, boxes = self._augmented(index, self.augment.hyp, rng, mosaics=last is None or epoch < last)
            size = (pixels.shape[1], pixels.shape[2])
        xywhn = xyxy2xywhn(boxes.xyxy, size).astype(np.float32)
        label = torch.from_numpy(np.ascontiguousarray(boxes.label))
        targets = Targets(torch.zeros_like(label), label, torch.from_numpy(xywhn))
        return Sample(pixels, targets, self.path_of(index), row, placed, truth)

    def _place(self, i: int) -> Letterbox:
        """The place of image `i` on its canvas."""
        height, width = (int(side) for side in self.canvases[i])
        return place(self.scan.size(self.order[i]), (height, width), position=self.letterbox)

    def _kept_size(self, i: int) -> Size:
        """(height, width) that image `i` is scaled to and cached at: that on its canvas, or so that a tile fits there.

        Then it is not enlarged.
        """
        size = self.scan.size(self.order[i])
        if not is_cut(size, self.tile):
            return self._place(i).resized
        ratio = min(self.imgsz / self.tile, 1.0)
        return max(round(size[0] * ratio), 1), max(round(size[1] * ratio), 1)

    def _read(self, i: int) -> np.ndarray:
        """Image `i` (H, W, 3) from its file, at _kept_size.

        Raises:
            ValueError: its size is not that of the scan: the file has changed.
        """
        placed = self._place(i)
        if self.augment is not None:
            height, width = self._kept_size(i)
            image, size = imread_small(self.path_of(i), (SHARP * height, SHARP * width))
        else:
            image = imread(self.path_of(i))
            size = (image.shape[0], image.shape[1])
        if size != placed.image:
            raise ValueError(f"{self.path_of(i)}: {size} pixels, but {placed.image} when it was scanned")
        if not self._replaced[0] and tuple(self._states[i]) != file_state(self.path_of(i)):
            self._replaced[0] = True
            LOGGER.warning(f"{self.path_of(i)}: this image, and perhaps others, was replaced while the run uses it")
        return resize(image, self._kept_size(i))

    def _read_or_report(self, i: int) -> np.ndarray | None:
        """Image `i`, see _read; None if it cannot be read, which is logged once for all epochs and workers."""
        try:
            return self._read(i)
        except (OSError, ValueError) as error:
            if not self._reported[i]:
                self._reported[i] = True
                what = "skipped" if self.augment is None else "replaced by the next image"
                reason = str(error).removeprefix(f"{self.path_of(i)}: ")
                LOGGER.warning(f"{self.path_of(i)}: {what}, it has changed since the scan: {reason}")
            return None

    def _own(self, i: int, rng: np.random.Generator | None = None) -> Loaded | None:
        """Image `i`, scaled for its canvas, its boxes in pixels of the scaled image, and its place on the canvas.

        A large image is a random tile with `tile`, drawn from `rng`. None if the image cannot be read any more.
        """
        image = self._cache[i] if self._cache else None
        if image is None:
            key = (i, file_state(self.path_of(i)))
            image = self._recent.get(key)
            if image is None and (image := self._read_or_report(i)) is not None:
                self._recent.keep(key, image)
        if image is None:
            return None
        boxes, placed = self.scan.training_boxes(self.order[i], self._kept_size(i)), self._place(i)
        if rng is not None and is_cut(placed.image, self.tile):
            image, boxes = random_tile(image, boxes, min(self.tile, self.imgsz), rng)
            size = image.shape[0], image.shape[1]
            placed = place(size, placed.canvas, position=self.letterbox)
            scale = np.array(placed.resized[::-1] * 2) / np.array(size[::-1] * 2)
            image, boxes = resize(image, placed.resized), boxes.at(boxes.xyxy * scale)
        return image, boxes, placed

    def _load(self, i: int, rng: np.random.Generator) -> Loaded:
        """Image `i`, see _own; if it cannot be read any more, the next one that can be, in its place.

        Raises:
            ValueError: none can be read.
        """
        loaded = self._own(i, rng)
        for k in (j % len(self) for j in range(i + 1, i + len(self))):
            if loaded is not None:
                break
            other = self._own(k, rng)
            if self.tile:  # its canvas is the same
                loaded = other
            elif other is not None:
                height, width = (int(side) for side in self.canvases[i])
                placed = place(self.scan.size(self.order[k]), (height, width), position=self.letterbox)
                boxes = self.scan.training_boxes(self.order[k], placed.resized)
                loaded = resize(other[0], placed.resized), boxes, placed
        if loaded is None:
            raise ValueError(f"{self.path_of(i)}: this and all other images of the data set cannot be read any more")
        return loaded

    def _augmented(self, i: int, hyp: Hyp, rng: np.random.Generator, mosaics: bool) -> tuple[Tensor, Boxes]:
        """Image `i` after the augmentations, (3, H, W), and its boxes in its pixels."""
        if mosaics and not self.rect and rng.random() < hyp.mosaic:
            image, boxes = self._mosaic(i, hyp, rng)
            if rng.random() < hyp.mixup:
                image, boxes = mixup(image, boxes, *self._mosaic(int(rng.integers(len(self))), hyp, rng), rng)
        else:
            image, boxes, placed = self._load(i, rng)
            canvas = Canvas(placed.canvas, [image], [(placed.left, placed.top)])
            image, boxes = random_view(placed.canvas, placed.canvas, hyp, rng).of(canvas, on_place(boxes, placed))
        factors = hsv_factors((hyp.hsv_h, hyp.hsv_s, hyp.hsv_v), rng)
        axes = [axis for axis, probability in enumerate((hyp.flipud, hyp.fliplr)) if rng.random() < probability]
        for axis in axes:
            boxes = mirrored(boxes, (image.shape[0], image.shape[1]), axis)
        return finished(image, factors, axes), boxes

    def _mosaic(self, i: int, hyp: Hyp, rng: np.random.Generator) -> tuple[np.ndarray, Boxes]:
        """A view (imgsz, imgsz) of a mosaic of image `i` and three others drawn from `rng`."""
        chosen = [i, *(int(k) for k in rng.integers(len(self), size=3))]
        size, side = (self.imgsz, self.imgsz), 2 * self.imgsz
        if hyp.copy_paste:  # may copy what is not in view into it
            images, boxes, _ = zip(*(self._load(k, rng) for k in chosen), strict=True)
            image, merged = copy_paste(*mosaic(images, boxes, self.imgsz, rng), hyp.copy_paste, rng)
            return random_affine(image, merged, size, hyp, rng)
        center = mosaic_center(self.imgsz, rng)
        view = random_view((side, side), size, hyp, rng)
        seen, boxes_seen, corners = [], [], []
        for tile, k in enumerate(chosen):
            expected = self._place(k).resized
            # The others are not even read. The size of a random part is known when it is drawn.
            if self.tile or view.shows(tile_corner(tile, expected, center), expected):
                image, own, placed = self._load(k, rng)
                seen.append(image)
                boxes_seen.append(own)
                corners.append(tile_corner(tile, placed.resized, center))
        return view.of(Canvas((side, side), seen, corners), on_canvas((side, side), boxes_seen, corners))
