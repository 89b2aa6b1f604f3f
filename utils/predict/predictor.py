"""From pictures to boxes in their pixels: letterbox, network, NMS; large pictures in overlapping tiles."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from utils.images import Letterbox, check_imgsz, fit_canvas, letterbox, to_input
from utils.nms import non_max_suppression

OVERLAP = 0.25  # of neighbouring tiles, part of their side
BATCH = 8  # pictures or tiles in one pass of the network
EDGE = 2.0  # pixels: a box that comes so close to the cut edge of a tile was cut there


@dataclass(frozen=True)
class NmsOptions:
    """What non_max_suppression keeps; see there."""

    conf_thres: float = 0.25
    iou_thres: float = 0.45
    max_det: int = 1000
    classes: tuple[int, ...] = ()
    agnostic: bool = False
    multi_label: bool = False

    def __call__(self, decoded: Tensor) -> list[Tensor]:
        return non_max_suppression(
            decoded,
            self.conf_thres,
            self.iou_thres,
            classes=self.classes or None,
            agnostic=self.agnostic,
            multi_label=self.multi_label,
            max_det=self.max_det,
        )


@dataclass(frozen=True)
class Found:
    """boxes: (n, 6) float32 xyxy in pixels of the picture, score, class. canvas: (height, width) of the input.

    times: milliseconds of letterbox, network, NMS, this picture's share of its batch.
    """

    boxes: np.ndarray
    canvas: tuple[int, int]
    times: tuple[float, float, float]


def class_indices(wanted: Sequence[str | int], names: dict[int, str]) -> tuple[int, ...]:
    """Class indices from indices and names.

    Raises:
        ValueError: the model has no such class.
    """
    known = {name: index for index, name in names.items()}
    found = []
    for word in map(str, wanted):
        index = int(word) if word.isdigit() else known.get(word, -1)
        if index not in names:
            shown = ", ".join(list(known)[:10]) + (", ..." if len(known) > 10 else "")
            raise ValueError(f"--classes {word}: the model knows 0..{len(names) - 1} ({shown})")
        found.append(index)
    return tuple(dict.fromkeys(found))


def tiles(size: tuple[int, int], side: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of square tiles that cover a picture of `size` (height, width) and overlap by OVERLAP or more.

    A picture smaller than a tile gives one, as large as the picture.
    """
    starts = []
    for length in size:
        count = max(-(-(length - side) // max(round(side * (1 - OVERLAP)), 1)), 0) + 1
        starts.append(np.linspace(0, max(length - side, 0), count).round().astype(int).tolist())
    for top in starts[0]:
        for left in starts[1]:
            yield slice(top, top + side), slice(left, left + side)


@dataclass
class Predictor:
    """Boxes of pictures by one backend.

    Args:
        backend: float (B, 3, H, W) in 0..1 -> decoded (B, N, 5+nc), with `names` and `grid`.
        imgsz: long side of the input; rounded up to the grid.
        rect: the input takes the picture's shape, else it is square.
        tile: pixels; larger pictures are also cut into overlapping tiles of this side. 0: never.

    Raises:
        ValueError: a size that is not positive.
    """

    backend: Any
    device: torch.device
    imgsz: int = 640
    nms: NmsOptions = field(default_factory=NmsOptions)
    half: bool = False
    rect: bool = True
    tile: int = 0

    def __post_init__(self) -> None:
        self.imgsz = check_imgsz(self.imgsz, self.backend.grid)
        if self.tile < 0:
            raise ValueError(f"--tile {self.tile}: expected pixels, or 0 for none")

    def clock(self) -> float:
        """Milliseconds, after all that the GPU has to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() * 1000

    def canvas(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the input for a picture of `size` (height, width)."""
        return fit_canvas(size, self.imgsz, self.backend.grid) if self.rect else (self.imgsz, self.imgsz)

    def __call__(self, images: Sequence[np.ndarray]) -> list[Found]:
        """Pictures (H, W, 3) uint8 RGB of any sizes -> their boxes, best first."""
        if self.tile:
            return [
                self.tiled(image) if max(image.shape[:2]) > self.tile else self.plain([image])[0] for image in images
            ]
        return self.plain(images)

    def plain(self, images: Sequence[np.ndarray]) -> list[Found]:
        """Without tiles; pictures that share a canvas go through the network together."""
        groups: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            groups.setdefault(self.canvas(image.shape[:2]), []).append(i)
        found: dict[int, Found] = {}
        for canvas, members in groups.items():
            for start in range(0, len(members), BATCH):
                run = members[start : start + BATCH]
                found.update(zip(run, self.batch([images[i] for i in run], canvas), strict=True))
        return [found[i] for i in range(len(images))]

    def input(self, images: Sequence[np.ndarray], canvas: tuple[int, int]) -> tuple[Tensor, list[Letterbox]]:
        """The network's input for pictures of one canvas, and where each of them lies on it."""
        padded, places = zip(*(letterbox(image, canvas) for image in images), strict=True)
        pixels = torch.from_numpy(np.ascontiguousarray(np.stack(padded).transpose(0, 3, 1, 2)))
        return to_input(pixels, self.device, self.half), list(places)

    def batch(self, images: Sequence[np.ndarray], canvas: tuple[int, int]) -> list[Found]:
        start = self.clock()
        batch, places = self.input(images, canvas)
        ready = self.clock()
        decoded = self.backend(batch)
        done = self.clock()
        boxes = []
        for kept, place in zip(self.nms(decoded), places, strict=True):
            kept = kept.cpu()
            rows = torch.cat([place.to_image(kept[:, :4]), kept[:, 4:]], dim=1).numpy()
            boxes.append(rows[(rows[:, 2:4] > rows[:, :2]).all(axis=1)])  # what lay on the border alone is gone
        times = tuple(t / len(images) for t in (ready - start, done - ready, self.clock() - done))
        return [Found(rows, canvas, times) for rows in boxes]  # type: ignore[arg-type]

    def tiled(self, image: np.ndarray) -> Found:
        """Boxes of the whole picture and of its tiles, merged by NMS.

        A box at the cut edge of a tile is dropped: a small object is whole in the next tile, a large one in the
        whole picture.
        """
        places = list(tiles(image.shape[:2], self.tile))
        whole, *parts = self.plain([image, *(image[rows, columns] for rows, columns in places)])
        boxes = [whole.boxes]
        for (rows, columns), part in zip(places, parts, strict=True):
            boxes.append(uncut(part.boxes, rows, columns, image.shape[:2]))
        merged = torch.from_numpy(np.concatenate(boxes))
        labels = torch.zeros_like(merged[:, 5]) if self.nms.agnostic else merged[:, 5]
        kept = batched_nms(merged[:, :4], merged[:, 4], labels, self.nms.iou_thres)[: self.nms.max_det]
        times = tuple(sum(found.times[k] for found in (whole, *parts)) for k in range(3))
        return Found(merged[kept].numpy(), whole.canvas, times)  # type: ignore[arg-type]


def uncut(boxes: np.ndarray, rows: slice, columns: slice, size: tuple[int, int]) -> np.ndarray:
    """Boxes (n, 6) of a tile in pixels of the picture of `size` (height, width), without those cut by the tile."""
    moved = boxes.copy()
    moved[:, :4] += [columns.start, rows.start, columns.start, rows.start]
    edges = [columns.start, rows.start, columns.stop, rows.stop]
    inner = np.array([columns.start > 0, rows.start > 0, columns.stop < size[1], rows.stop < size[0]])
    cut = (np.abs(moved[:, :4] - np.array(edges)) < EDGE) & inner
    return moved[~cut.any(axis=1)]
