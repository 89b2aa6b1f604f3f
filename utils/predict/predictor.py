"""Prediction: images to detections in their pixels by letterbox, network and NMS, with large images cut into tiles."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from utils.backend import Backend, input_size, rows_above, warn_of_nms
from utils.boxes import Boxes
from utils.classes import plain, short
from utils.images import Letterbox, Size, fit_canvas, letterbox, to_input
from utils.nms import DEFAULTS, NmsSettings, non_max_suppression
from utils.tiles import is_cut, merge, tiles, uncut

LOGGER = logging.getLogger(__name__)
ClassesLike: TypeAlias = "str | int | float | np.ndarray | Tensor | Iterable[str | int | float | Tensor]"
BATCH = 8  # images or tiles per forward pass


@dataclass(frozen=True)
class Prediction:
    """Detections of one image.

    Attributes:
        boxes: float32, in pixels of the image. canvas: (height, width) of the network's input.
        times: milliseconds of letterbox, network, NMS: this image's share of its batch.
    """

    boxes: Boxes
    canvas: tuple[int, int]
    times: tuple[float, float, float]


def class_indices(wanted: ClassesLike, names: Mapping[int, str]) -> tuple[int, ...]:
    """The indices of classes that are given by index or by name: one, an array or tensor, or any collection.

    Text of digits is an index; a warning says if another class has this name.

    Raises:
        ValueError: the model has no such class; something that is neither an index nor a name.
    """
    if isinstance(wanted, np.ndarray | np.generic | Tensor):
        wanted = wanted.tolist()  # a list, or one number
    items = [wanted] if isinstance(wanted, str) or not isinstance(wanted, Iterable) else list(wanted)
    found = list[int]()
    for item in items:
        word: object = item.tolist() if isinstance(item, np.ndarray | np.generic | Tensor) else item
        own = [i for i, name in names.items() if isinstance(word, str) and plain(name) == plain(word)]
        if isinstance(word, str) and word.isdecimal() and int(word) in names:
            index = int(word)
            if own and index not in own:
                other = f"'{word}' is also the name of class {own[0]}"
                LOGGER.warning(f"--classes {word}: using index {index}, '{names[index]}'; {other}")
            own = [index]
        elif isinstance(word, int | float) and not isinstance(word, bool) and word in names:
            own = [int(word)]
        if not own:
            known = short(names.values())
            raise ValueError(f"--classes {word!s:.40}: expected a name or 0..{len(names) - 1} ({known})")
        found += own
    return tuple(dict.fromkeys(found))


@dataclass
class Predictor:
    """Detects objects in images with one backend.

    Args:
        imgsz: size that the network's input fits in, pixels, rounded up to the grid: one number, or height and width;
            empty: that of the weights. A file of a fixed size keeps it.
        half: half-precision input. rect: the input has the image's aspect ratio, else it is square.
        tile: larger images are also cut into overlapping tiles of this side, pixels. 0: never.

    Attributes:
        size: (height, width) of the largest input.

    Raises:
        ValueError: a size that is not positive.
    """

    backend: Backend
    device: torch.device
    imgsz: int | Sequence[int] = ()
    nms: NmsSettings = DEFAULTS
    half: bool = False
    rect: bool = True
    tile: int = 0
    size: Size = field(init=False)
    full: bool = field(init=False, default=False)  # warn_if_full has warned
    lock: threading.Lock = field(init=False, default_factory=threading.Lock)  # of it: threads may share a predictor

    def __post_init__(self) -> None:
        self.size = input_size(self.imgsz, self.backend.limits, self.backend.grid)
        warn_of_nms(self.backend, self.nms)
        if self.tile < 0:
            raise ValueError(f"--tile {self.tile}: expected pixels, or 0 for none")

    def clock(self) -> float:
        """Milliseconds, once the GPU has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() * 1000

    def canvas(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the network's input for an image of `size` (height, width)."""
        own_shape = self.rect and not self.backend.limits.fixed
        return fit_canvas(size, self.size, self.backend.grid) if own_shape else self.size

    def __call__(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Images (H, W, 3) uint8 RGB of any sizes -> their detections, best first."""
        if self.tile:
            return [
                self.tiled(image) if is_cut(image.shape[:2], self.tile) else self.whole([image])[0] for image in images
            ]
        return self.whole(images)

    def whole(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Detections without tiles; images that share a canvas go through the network together."""
        groups: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            groups.setdefault(self.canvas(image_size(image)), []).append(i)
        found: dict[int, Prediction] = {}
        for canvas, members in groups.items():
            for start in range(0, len(members), BATCH):
                batch = members[start : start + BATCH]
                found.update(zip(batch, self.batch([images[i] for i in batch], canvas), strict=True))
        return [found[i] for i in range(len(images))]

    def input(self, images: Sequence[np.ndarray], canvas: tuple[int, int]) -> tuple[Tensor, list[Letterbox]]:
        """The network's input for images of one canvas, and where each of them lies on it."""
        padded, places = zip(
            *(letterbox(image, canvas, position=self.backend.letterbox) for image in images), strict=True
        )
        pixels = torch.from_numpy(np.ascontiguousarray(np.stack(padded).transpose(0, 3, 1, 2)))
        return to_input(pixels, self.device, self.half), list(places)

    def batch(self, images: Sequence[np.ndarray], canvas: tuple[int, int]) -> list[Prediction]:
        """Detections in images of one canvas, from one forward pass."""
        start = self.clock()
        batch, places = self.input(images, canvas)
        ready = self.clock()
        decoded = rows_above(self.backend, batch, self.nms.conf_thres)
        done = self.clock()
        self.warn_if_full(decoded)
        boxes = []
        for found, place in zip(non_max_suppression(decoded, self.nms), places, strict=True):
            own = found.at(place.to_image(found.xyxy))
            boxes.append(own[np.all(own.xyxy[:, 2:] > own.xyxy[:, :2], axis=1)])  # without those inside the border
        end, n = self.clock(), len(images)
        times = (ready - start) / n, (done - ready) / n, (end - done) / n
        return [Prediction(own, canvas, times) for own in boxes]

    def warn_if_full(self, decoded: Sequence[Tensor]) -> None:
        """Warn, once, that a file with NMS inside gave as many boxes as it can hold, and more were asked for."""
        limits = self.backend.limits
        if self.full or limits.nms is None or not self.nms.max_det > limits.nms.max_det:
            return
        most = limits.nms.max_det
        with self.lock:
            full = not self.full and any(len(rows) == most and bool((rows[:, 4] > 0).all()) for rows in decoded)
            self.full |= full
        if full:
            LOGGER.warning(
                f"{limits.file} holds {limits.nms.max_det} boxes per image and one has so many: others may be missing; "
                "export it with a larger --max-det"
            )

    def tiled(self, image: np.ndarray) -> Prediction:
        """Detections of the whole image and of its tiles, merged by NMS.

        A box cut by the edge of a tile is dropped: a small object is whole in the next tile, a large one in the
        whole image.
        """
        places = list(tiles(image_size(image), self.tile))
        whole, *parts = self.whole([image, *(image[rows, columns] for rows, columns in places)])
        boxes = [whole.boxes]
        for (rows, columns), part in zip(places, parts, strict=True):
            boxes.append(uncut(part.boxes, rows, columns, image_size(image)))
        first, second, third = (sum(p.times[k] for p in (whole, *parts)) for k in range(3))
        return Prediction(merge(boxes, self.nms), whole.canvas, (first, second, third))


def image_size(image: np.ndarray) -> tuple[int, int]:
    """(height, width) of an image (H, W, 3)."""
    return image.shape[0], image.shape[1]
