"""Backends that combine backends: ensembles of models, test-time augmentation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.backend import Backend, ModelLimits, rows_above
from utils.classes import class_order
from utils.images import PAD, size_text

VIEWS = ((1.0, False), (0.83, True), (0.67, False))  # scale, mirrored: those of YOLOv5


class Reordered:
    """A model with its classes in another order.

    Args:
        order: for each class its index in `backend`. names: class index -> name, in the new order.
    """

    def __init__(self, backend: Backend, order: Sequence[int], names: Mapping[int, str]):
        self.backend, self.names, self.columns = backend, dict(names), [*range(5), *(5 + i for i in order)]
        self.nc, self.stride, self.grid = backend.nc, backend.stride, backend.grid
        self.letterbox, self.limits = backend.letterbox, backend.limits

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 -> decoded (B, N, 5+nc)."""
        return self.backend(images)[..., self.columns]

    def rows_above(self, images: Tensor, least: float) -> list[Tensor]:
        """See SparseBackend."""
        return [rows[:, self.columns] for rows in rows_above(self.backend, images, least)]


def in_order(backend: Backend, order: Sequence[int], names: Mapping[int, str]) -> Backend:
    """`backend` itself, or with its classes in another order; see Reordered."""
    return backend if list(order) == list(range(backend.nc)) else Reordered(backend, order, names)


class Ensemble:
    """The rows of several models one after another; NMS then merges boxes that overlap.

    Classes are those of the first model; the others may have them in another order.

    Raises:
        ValueError: the models differ in their classes, in the only size they take, or in the NMS inside them.
    """

    def __init__(self, backends: Sequence[Backend]):
        self.names, self.nc = backends[0].names, backends[0].nc
        orders = [
            class_order(other.names, self.names, f"model {i} of --weights", "the first")
            for i, other in enumerate(backends[1:], start=2)
        ]
        others = [in_order(other, order, self.names) for other, order in zip(backends[1:], orders, strict=True)]
        self.backends = [backends[0], *others]
        self.stride = max(b.stride for b in backends)
        self.grid = math.lcm(*(b.grid for b in backends))
        self.letterbox = backends[0].letterbox
        self.limits = joint_limits([b.limits for b in backends], self.grid)

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 -> decoded (B, N1 + N2 + ..., 5+nc)."""
        return torch.cat([backend(images) for backend in self.backends], dim=1)

    def rows_above(self, images: Tensor, least: float) -> list[Tensor]:
        """See SparseBackend."""
        each = [rows_above(backend, images, least) for backend in self.backends]
        return [torch.cat(parts) for parts in zip(*each, strict=True)]


def joint_limits(each: Sequence[ModelLimits], grid: int) -> ModelLimits:
    """What the members of an ensemble fix together; `grid` is that of all of them.

    Raises:
        ValueError: two of them need different sizes, or have different NMS inside.
    """
    fixed = {limits.imgsz: limits.file for limits in each if limits.fixed}
    nms = {limits.nms: limits.file for limits in each if limits.nms}
    for found, what in ((fixed, "input size"), (nms, "settings of the NMS inside")):
        if len(found) > 1:
            raise ValueError(f"--weights: expected files with the same {what}, {' and '.join(found.values())} differ")
    sizes = [limits.imgsz for limits in each if limits.imgsz and (limits.fixed or not fixed)]
    largest = (max(h for h, _ in sizes), max(w for _, w in sizes)) if sizes else None
    if fixed and largest and any(side % grid for side in largest):
        raise ValueError(
            f"--weights: {next(iter(fixed.values()))} takes {size_text(largest)} only, others need multiples of "
            f"{grid}; expected files that share a size"
        )
    return ModelLimits(", ".join(limits.file for limits in each), largest, bool(fixed), next(iter(nms), None))


class Augmented:
    """Test-time augmentation: the rows of three views of each image, scaled and mirrored (VIEWS)."""

    def __init__(self, backend: Backend):
        self.backend = backend
        self.names, self.nc, self.stride, self.grid = backend.names, backend.nc, backend.stride, backend.grid
        self.letterbox = backend.letterbox
        self.limits = backend.limits

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 -> decoded (B, N1 + N2 + N3, 5+nc) in pixels of `images`."""
        size = images.shape[-2:]
        return torch.cat([from_view(self.backend(self.view(images, *v)), size, *v) for v in VIEWS], dim=1)

    def rows_above(self, images: Tensor, least: float) -> list[Tensor]:
        """See SparseBackend."""
        size = images.shape[-2:]
        each = []
        for v in VIEWS:
            found = rows_above(self.backend, self.view(images, *v), least)
            each.append([from_view(rows, size, *v) for rows in found])
        return [torch.cat(parts) for parts in zip(*each, strict=True)]

    def view(self, images: Tensor, scale: float, mirrored: bool) -> Tensor:
        """The images scaled and mirrored, padded to the grid."""
        h, w = images.shape[-2:]
        small = scaled((h, w), scale)
        view = images.flip(-1) if mirrored else images
        if small != (h, w):
            view = F.interpolate(view, small, mode="bilinear", align_corners=False)
        pad_h, pad_w = (-side % self.grid for side in small)
        return F.pad(view, (0, pad_w, 0, pad_h), value=PAD / 255)


def scaled(size: Sequence[int], scale: float) -> tuple[int, int]:
    """(height, width) of a view of images of `size`."""
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def from_view(rows: Tensor, size: Sequence[int], scale: float, mirrored: bool) -> Tensor:
    """Decoded rows (..., 5+nc) of a view in pixels of the images, whose `size` is (height, width)."""
    (h, w), small = size, scaled(size, scale)
    x, y = rows.new_tensor(w / small[1]), rows.new_tensor(h / small[0])
    xywh = rows[..., :4] * torch.stack([x, y, x, y])
    if mirrored:
        xywh = torch.cat([w - xywh[..., :1], xywh[..., 1:]], dim=-1)
    return torch.cat([xywh, rows[..., 4:]], dim=-1)
