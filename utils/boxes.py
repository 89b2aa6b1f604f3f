"""Boxes: the types that hold them, conversion between coordinate frames, clipping, overlap.

A name carries its frame: xyxy is corner pixels, xywh center and size in pixels, xywhn center and size in 0..1, ltwh
the left upper corner and size in pixels, as in COCO's files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

SMALLEST = 1e-3  # pixels or cells; a predicted side below it has collapsed


@dataclass(frozen=True, eq=False)
class Boxes:
    """The boxes of one image.

    Attributes:
        xyxy: (n, 4) float, corner pixels; n may be 0.
        label: (n,) int64, class index.
        score: (n,) float, confidence in 0..1; 1 for ground truth.
    """

    xyxy: np.ndarray
    label: np.ndarray
    score: np.ndarray

    @classmethod
    def labeled(cls, xyxy: np.ndarray, label: np.ndarray) -> Boxes:
        """Ground-truth boxes: their score is 1."""
        return Boxes(xyxy, label, np.ones(len(xyxy), xyxy.dtype))

    @classmethod
    def empty(cls) -> Boxes:
        """No boxes."""
        return Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))

    @classmethod
    def join(cls, parts: Sequence[Boxes]) -> Boxes:
        """All boxes of `parts`, which are at least one, in order."""
        return Boxes(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Boxes)))

    def __len__(self) -> int:
        return len(self.xyxy)

    def __getitem__(self, rows: np.ndarray | slice) -> Self:
        """The boxes that `rows` selects: a mask, indices or a slice."""
        return type(self)(*(getattr(self, f.name)[rows] for f in fields(self)))

    def at(self, xyxy: np.ndarray) -> Self:
        """The same boxes with other corners (n, 4)."""
        return replace(self, xyxy=xyxy)

    def table(self) -> np.ndarray:
        """(n, 6) xyxy, score, label: the layout of YOLOv5's Python API."""
        return np.column_stack([self.xyxy, self.score, self.label]).astype(self.xyxy.dtype, copy=False)


@dataclass(frozen=True, eq=False)
class Truth(Boxes):
    """The ground truth of one image.

    Attributes:
        crowd: (n,) bool, regions of many objects: detections in them count neither as right nor as wrong.
        area: (n,) square pixels, which decide whether COCO calls an object small, medium or large.
    """

    crowd: np.ndarray
    area: np.ndarray


@dataclass(frozen=True, eq=False)
class Tracked(Boxes):
    """The boxes of one frame of a video, with the identities of their objects.

    Attributes:
        identity: (n,) int64, 1, 2, ...: the same object has the same number in all frames.
    """

    identity: np.ndarray


@dataclass(frozen=True, eq=False)
class Targets:
    """The ground truth of a batch, for the loss.

    Attributes:
        image: (M,) int64, index of the image in the batch. label: (M,) int64, class index.
        xywhn: (M, 4) float32, center and size in 0..1 of the canvas. M may be 0.
    """

    image: Tensor
    label: Tensor
    xywhn: Tensor

    @classmethod
    def join(cls, parts: Sequence[Targets]) -> Targets:
        """Targets of a batch from those of each image, whose `image` is replaced by its place in `parts`."""
        counts = torch.tensor([len(part) for part in parts])
        return cls(
            torch.repeat_interleave(torch.arange(len(parts)), counts),
            torch.cat([part.label for part in parts]),
            torch.cat([part.xywhn for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, rows: Tensor) -> Targets:
        """The targets that `rows` selects: a mask or indices."""
        return Targets(self.image[rows], self.label[rows], self.xywhn[rows])

    def to(self, device: torch.device) -> Targets:
        """The targets on `device`."""
        return Targets(*(t.to(device) for t in (self.image, self.label, self.xywhn)))

    def pin_memory(self) -> Targets:
        """Called by DataLoader, so that the copy to a GPU need not wait."""
        return Targets(*(t.pin_memory() for t in (self.image, self.label, self.xywhn)))


def xywh2xyxy(xywh: Tensor) -> Tensor:
    """(..., 4) center and size -> corners, in the same unit; a new tensor."""
    center, half = xywh[..., :2], xywh[..., 2:4] / 2
    return torch.cat([center - half, center + half], dim=-1)


def xywhn2xyxy(xywhn: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(n, 4) center and size in 0..1 -> corner pixels of an image of `size` (height, width)."""
    unit = np.array([size[1], size[0]], dtype=np.float64)
    center, half = xywhn[:, :2] * unit, xywhn[:, 2:4] * unit / 2
    return np.concatenate([center - half, center + half], axis=1)


def xyxy2xywhn(xyxy: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(n, 4) corner pixels of an image of `size` (height, width) -> center and size in 0..1."""
    unit = np.array([size[1], size[0]], dtype=np.float64)
    low, high = xyxy[:, :2], xyxy[:, 2:4]
    return np.concatenate([(low + high) / 2 / unit, (high - low) / unit], axis=1)


def xyxy2ltwh(xyxy: np.ndarray) -> np.ndarray:
    """(n, 4) corner pixels -> left, top, width, height."""
    return np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1)


def clip_xyxy(xyxy: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(n, 4) corner pixels cut at the edges of an image of `size` (height, width); a new array."""
    return np.clip(xyxy, 0, np.array([size[1], size[0], size[1], size[0]], dtype=xyxy.dtype))


def areas(xyxy: np.ndarray) -> np.ndarray:
    """(n,) square pixels of (n, 4) corner pixels."""
    return np.prod(xyxy[:, 2:] - xyxy[:, :2], axis=1)


def pairwise_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, m) intersection over union of (n, 4) and (m, 4) xyxy boxes in one frame; 0 where both are empty."""
    low = np.maximum(a[:, None, :2], b[:, :2])
    sides = np.maximum(np.minimum(a[:, None, 2:], b[:, 2:]) - low, 0)
    shared = sides[..., 0] * sides[..., 1]
    total = areas(a)[:, None] + areas(b) - shared
    iou = np.zeros(shared.shape, np.result_type(shared, np.float32))
    return np.divide(shared, total, out=iou, where=(total > 0) & (total < np.inf))


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """(n,) intersection over union of paired (n, 4) xyxy boxes in one frame; 0 where both are empty."""
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=1)
    total = (a[:, 2:] - a[:, :2]).prod(dim=1) + (b[:, 2:] - b[:, :2]).prod(dim=1) - shared
    return shared / total.clamp(min=1e-16)


def paired_ciou(a: Tensor, b: Tensor) -> Tensor:
    """Complete IoU of paired boxes, (n,): 1 for equal ones, down to about -1.5 for far, unlike ones.

    Value and gradient are finite for every finite box: sides of `a` below SMALLEST count as larger by it.

    Args:
        a, b: (n, 4) xyxy in one frame, x1 <= x2 and y1 <= y2, the sides of `b` above 0; n may be 0.

    Source: Zheng et al. 2020, arXiv:1911.08287; the weight of the aspect term is a constant in backward.
    """
    from torchvision.ops import complete_box_iou_loss  # half of the time to start, and only training needs it

    # The aspect term divides by the height. A small side is rounded to 0 when it is added to a center.
    low, high = a[:, :2], a[:, 2:]
    a = torch.cat([low, torch.where(high - low < SMALLEST, high + SMALLEST, high)], dim=1)
    return 1 - complete_box_iou_loss(a, b, reduction="none", eps=1e-7)
