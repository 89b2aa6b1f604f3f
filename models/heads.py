"""Detection heads: feature maps to raw predictions, raw predictions to boxes, and the loss that each is trained with.

A new head is a subclass of `Head` here and its name in `HEADS`; see docs/heads.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.common import Conv, SeparableConv
from utils.hyp import NO_FACTORS, HeadFactors, Hyp
from utils.loss import AllReduce, Criterion, DetectionLoss, local_sum, loss_gains
from utils.loss_simota import SimOtaLoss
from utils.loss_tal import TaskAlignedLoss
from utils.text import clean

START = 2.0  # strides from the center of a cell to the sides of its box, before training
SLACK = 1e-6  # of a confidence: more than a sigmoid in float32 can be off
MANY = 0.25  # share of a level's rows above which all are decoded, which then takes less time
LANES, SERIAL = 64, 16384  # numbers that every CPU handles in whole vectors, and that no operator spreads over threads


class Head(nn.Module):
    """What all heads have in common: one raw map per level, decoded in the graph in eval mode.

    Args:
        nc: classes. levels: number of feature maps.

    Attributes:
        stride: (levels,) pixels per cell, set by `DetectionModel`.
        anchors: (levels, A, 2) width, height in pixels; None for heads without anchors.
        recipe: what its recipe differs in from that of `Detect`.
    """

    joins = True  # takes a list of maps
    recipe: HeadFactors = NO_FACTORS
    stride: Tensor
    anchors: Tensor | None

    def __init__(self, nc: int, levels: int):
        super().__init__()
        self.nc = nc
        self.register_buffer("stride", torch.zeros(levels))

    def forward(self, x: list[Tensor], least: float | None = None) -> list[Tensor] | tuple[Any, list[Tensor]]:
        """Training: what the loss takes, per level. Eval: (decoded (B, N, 5+nc), the same).

        A decoded row is cx, cy, w, h in pixels of the input, objectness, class probabilities. Heads without objectness
        give it as 1, so that a score is objectness times class probability everywhere.

        Args:
            least: in eval mode, decode as `decode_above` does: a list of (n, 5+nc) in place of (B, N, 5+nc).
        """
        maps = self.maps(x)
        raw = [self.raw(level) for level in maps]
        if self.training:
            return raw
        return self.decode_all(maps) if least is None else self.decode_above(maps, least), raw

    def maps(self, x: list[Tensor]) -> list[Tensor]:
        """Feature maps -> raw map (B, C, h, w) of each level, the "raw" form of an exported file."""
        raise NotImplementedError

    def raw(self, level: Tensor) -> Tensor:
        """A raw map as the loss takes it."""
        return level

    def decode(self, level: Tensor, i: int) -> Tensor:
        """Raw map of level `i` -> decoded rows (B, n, 5+nc), float32; rank 4 at most, for exporters."""
        raise NotImplementedError

    def decode_all(self, maps: list[Tensor]) -> Tensor:
        """Raw maps of all levels -> decoded rows (B, N, 5+nc), the levels one after another."""
        return torch.cat([self.decode(level, i) for i, level in enumerate(maps)], dim=1)

    def confidence(self, level: Tensor) -> Tensor | None:
        """(B, n) float32, at least the best score of every row of a raw map, without decoding; None: not known."""
        return None

    def decode_rows(self, level: Tensor, i: int, image: Tensor, row: Tensor) -> Tensor:
        """Decoded rows (k, 5+nc): rows `row` (k,) of images `image` (k,) of `decode(level, i)`, but only they."""
        raise NotImplementedError

    def decode_above(self, maps: list[Tensor], least: float) -> list[Tensor]:
        """Of each image the decoded rows (n, 5+nc) that can score above `least`, in the order of `decode_all`.

        Some others may be among them. Rows are those of `decode_all` to the bit, but for the last numbers of a level on
        the CPU: PyTorch rounds what is left over by whole vectors, at most LANES / 2 numbers, otherwise.
        """
        found: list[list[Tensor]] = [[] for _ in maps[0]]
        for i, level in enumerate(maps):
            confidence = self.confidence(level)
            above = None if confidence is None else ~(confidence <= least - SLACK)  # not a number is not below
            if above is None or above.count_nonzero() > MANY * above.numel():
                parts = self.decode(level, i).unbind()
            else:
                image, row = above.nonzero(as_tuple=True)
                parts = self.decode_rows(level, i, image, row).split(above.sum(dim=1).tolist())
            for own, part in zip(found, parts, strict=True):
                own.append(part)
        return [torch.cat(own) for own in found]

    def criterion(self, hyp: Hyp, imgsz: int, smooth: float = 0.0, all_reduce_sum: AllReduce = local_sum) -> Criterion:
        """The loss to train with.

        Args:
            imgsz: image size, pixels. smooth: label smoothing, 0..1. all_reduce_sum: see Criterion.
        """
        raise NotImplementedError

    def prior_bias(self) -> None:
        """Set biases so that training starts from rare objects."""
        raise NotImplementedError

    def class_rows(self) -> Iterator[tuple[nn.Conv2d, Tensor]]:
        """The convolutions that depend on the classes, each with the class of every output channel; -1: of none."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """The keyword arguments, besides nc and anchors, on which the decoding depends; plain data."""
        return {}

    @staticmethod
    def cells(h: int, w: int, like: Tensor) -> Tensor:
        """(h*w, 2) x, y of each cell's corner less one half, row by row."""
        y, x = torch.meshgrid(
            torch.arange(h, device=like.device, dtype=like.dtype),
            torch.arange(w, device=like.device, dtype=like.dtype),
            indexing="ij",
        )
        return torch.stack([x, y], dim=-1).view(-1, 2) - 0.5


def rounded_alike(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function` of every number of `x`, with the bits that it has within a large tensor.

    On the CPU vectors and what is left over by them are computed by different code, one unit in the last place apart.
    """
    flat = F.pad(x.flatten(), (0, -x.numel() % LANES))
    return torch.cat([function(part) for part in flat.split(SERIAL)])[: x.numel()].view(x.shape)


class Detect(Head):
    """YOLOv5's anchor-based head: a 1x1 convolution per level.

    Args:
        nc: classes. anchors: per level a flat list w, h, w, h, ... in pixels of the input image.
        ch: input channels of each level.
    """

    anchors: Tensor

    def __init__(self, nc: int, anchors: list[list[float]], ch: list[int]):
        super().__init__(nc, len(ch))
        wrong = f"Detect: anchors {clean(anchors, 80)}, expected {len(ch)} rows of positive w, h, w, h, ... pixels"
        try:
            sizes = torch.tensor(anchors, dtype=torch.float32, device="cpu")  # values are needed even on "meta"
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(wrong) from error
        if sizes.ndim != 2 or sizes.shape[1] % 2 or len(sizes) != len(ch) or (sizes <= 0).any():
            raise ValueError(wrong)
        self.no = nc + 5
        self.register_buffer("anchors", sizes.view(len(ch), -1, 2))  # (levels, A, 2) pixels
        self.m = nn.ModuleList(nn.Conv2d(c, self.no * self.na, 1) for c in ch)

    @property
    def na(self) -> int:
        """Anchors per cell."""
        return self.anchors.shape[1]

    def maps(self, x: list[Tensor]) -> list[Tensor]:
        """(B, A*(5+nc), h, w) of each level."""
        return [conv(level) for conv, level in zip(self.m, x, strict=True)]

    def raw(self, level: Tensor) -> Tensor:
        """(B, A, h, w, 5+nc)."""
        return self.rows(level).view(level.shape[0], self.na, *level.shape[-2:], self.no)

    def rows(self, level: Tensor) -> Tensor:
        """(B, A*(5+nc), h, w) -> (B, A, h*w, 5+nc)."""
        return level.reshape(level.shape[0], self.na, self.no, -1).transpose(2, 3)

    def decode(self, level: Tensor, i: int) -> Tensor:
        """See Head.decode; the rows of one anchor after another."""
        h, w = level.shape[-2:]
        y = self.rows(level).float().sigmoid()  # half precision would round coordinates beyond 512 to 0.5 px
        return self.boxes(y, self.cells(h, w, y), self.anchors[i].unsqueeze(1), i).flatten(1, 2)

    def boxes(self, y: Tensor, cells: Tensor, anchors: Tensor, i: int) -> Tensor:
        """Sigmoids (..., 5+nc) of level `i` -> decoded rows, given their cells and anchors (..., 2)."""
        center = (y[..., 0:2] * 2 + cells) * self.stride[i]
        half = y[..., 2:4] * 2
        size = half * half * anchors  # q*q, not **2: mobile converters refuse pow
        return torch.cat([center, size, y[..., 4:]], dim=-1)

    def confidence(self, level: Tensor) -> Tensor:
        return level.unflatten(1, (self.na, self.no))[:, :, 4].float().sigmoid().flatten(1)

    def decode_rows(self, level: Tensor, i: int, image: Tensor, row: Tensor) -> Tensor:
        h, w = level.shape[-2:]
        anchor, cell = row // (h * w), row % (h * w)
        y = rounded_alike(torch.sigmoid, self.rows(level)[image, anchor, cell].float())
        return self.boxes(y, self.cells(h, w, y)[cell], self.anchors[i][anchor], i)

    def criterion(
        self, hyp: Hyp, imgsz: int, smooth: float = 0.0, all_reduce_sum: AllReduce = local_sum
    ) -> DetectionLoss:
        gains = loss_gains(hyp, self.nc, imgsz, len(self.stride), smooth)
        return DetectionLoss(self.anchors, self.stride, self.nc, gains, all_reduce_sum)

    def prior_bias(self) -> None:
        """Rare objects: about 8 in a 640 px image, 0.6 spread over the classes."""
        with torch.no_grad():
            for conv, stride in zip(self.m, self.stride.tolist(), strict=True):
                bias = cast(Tensor, conv.bias).view(self.na, self.no)
                bias[:, 4] += math.log(8 / (640 / stride) ** 2)
                bias[:, 5:] += math.log(0.6 / (self.nc - 0.99999))

    def class_rows(self) -> Iterator[tuple[nn.Conv2d, Tensor]]:
        rows = torch.cat([torch.full((5,), -1), torch.arange(self.nc)]).repeat(self.na)
        for conv in self.m:
            yield cast(nn.Conv2d, conv), rows


class Decoupled(Head):
    """YOLOX's anchor-free head: per level a 1x1 Conv, then two 3x3 for the class and two for box and objectness.

    Args:
        nc: classes. ch: input channels of each level. width: of the towers; None is that of the finest level.
        depthwise: depthwise pairs instead of 3x3 convolutions.
        l1: in the closing epochs, those without mosaic, the loss has YOLOX's L1 part, too.

    Raises:
        ValueError: l1 that is not true or false.

    Source: Ge et al. 2021, arXiv:2107.08430.
    """

    anchors = None

    def __init__(self, nc: int, ch: list[int], width: int | None = None, depthwise: bool = False, l1: bool = False):
        super().__init__(nc, len(ch))
        if not isinstance(l1, bool):
            raise ValueError(f"Decoupled: l1 {clean(l1, 80)}, expected true or false")
        self.l1 = l1
        conv = SeparableConv if depthwise else Conv
        width = width or ch[0]
        self.stems = nn.ModuleList(Conv(c, width, 1) for c in ch)
        self.class_towers, self.box_towers = (
            nn.ModuleList(nn.Sequential(conv(width, width, 3), conv(width, width, 3)) for _ in ch) for _ in range(2)
        )
        self.classes, self.boxes, self.objectness = (
            nn.ModuleList(nn.Conv2d(width, outputs, 1) for _ in ch) for outputs in (nc, 4, 1)
        )

    def maps(self, x: list[Tensor]) -> list[Tensor]:
        """(B, 5+nc, h, w) of each level: box, objectness, classes."""
        out = []
        for i, level in enumerate(x):
            level = self.stems[i](level)
            box, label = self.box_towers[i](level), self.class_towers[i](level)
            out.append(torch.cat([self.boxes[i](box), self.objectness[i](box), self.classes[i](label)], dim=1))
        return out

    def decode(self, level: Tensor, i: int) -> Tensor:
        """See Head.decode: centers from the cell's corner and logarithms of sizes, both in strides."""
        h, w = level.shape[-2:]
        y = level.flatten(2).transpose(1, 2).float()
        center = (y[..., 0:2] + (self.cells(h, w, y) + 0.5)) * self.stride[i]
        size = y[..., 2:4].exp() * self.stride[i]
        return torch.cat([center, size, y[..., 4:].sigmoid()], dim=-1)

    def confidence(self, level: Tensor) -> Tensor:
        return level[:, 4].float().sigmoid().flatten(1)

    def decode_rows(self, level: Tensor, i: int, image: Tensor, row: Tensor) -> Tensor:
        h, w = level.shape[-2:]
        y = level.flatten(2).transpose(1, 2)[image, row].float()
        center = (y[:, 0:2] + (self.cells(h, w, y)[row] + 0.5)) * self.stride[i]
        size = rounded_alike(torch.exp, y[:, 2:4]) * self.stride[i]
        return torch.cat([center, size, rounded_alike(torch.sigmoid, y[:, 4:])], dim=-1)

    def criterion(self, hyp: Hyp, imgsz: int, smooth: float = 0.0, all_reduce_sum: AllReduce = local_sum) -> SimOtaLoss:
        return SimOtaLoss(self.stride, self.nc, hyp, smooth, all_reduce_sum, self.l1)

    def prior_bias(self) -> None:
        """Every class and objectness starts at a probability of 0.01."""
        with torch.no_grad():
            for conv in [*self.classes, *self.objectness]:
                cast(Tensor, conv.bias).fill_(-math.log(99))

    def class_rows(self) -> Iterator[tuple[nn.Conv2d, Tensor]]:
        for conv in self.classes:
            yield cast(nn.Conv2d, conv), torch.arange(self.nc)


class DetectV8(Head):
    """The anchor-free head that people know from YOLOv8: no objectness, one box per cell by distances to its sides.

    Args:
        nc: classes. ch: input channels of each level.
        reg_max: bins of the distribution of each distance, 0..reg_max-1 strides; 1: the distance itself, no bins.
        depthwise: depthwise pairs in the class tower.
        width: of the class tower; None is that of the finest level, whatever nc is, so that it can be fine-tuned.
        enlarge: boxes shorter than this many strides of the finest level are that long when cells are chosen for them.

    Raises:
        ValueError: reg_max below 1, enlarge below 0.

    Sources: Li et al. 2020, arXiv:2006.04388 (distribution of distances); Feng et al. 2021, arXiv:2108.07755.
    """

    anchors = None
    bins: Tensor

    def __init__(
        self,
        nc: int,
        ch: list[int],
        reg_max: int = 16,
        depthwise: bool = False,
        width: int | None = None,
        enlarge: float = 0.0,
    ):
        super().__init__(nc, len(ch))
        if type(reg_max) is not int or reg_max < 1:
            raise ValueError(f"DetectV8: reg_max {reg_max!r}, expected an int of at least 1")
        if isinstance(enlarge, bool) or not isinstance(enlarge, int | float) or enlarge < 0:
            raise ValueError(f"DetectV8: enlarge {enlarge!r}, expected a number of strides of at least 0")
        self.reg_max, self.enlarge = reg_max, enlarge
        box_width, class_width = max(16, ch[0] // 4, 4 * reg_max), width or ch[0]
        conv = SeparableConv if depthwise else Conv
        self.box_towers = nn.ModuleList(
            nn.Sequential(Conv(c, box_width, 3), Conv(box_width, box_width, 3), nn.Conv2d(box_width, 4 * reg_max, 1))
            for c in ch
        )
        self.class_towers = nn.ModuleList(
            nn.Sequential(conv(c, class_width, 3), conv(class_width, class_width, 3), nn.Conv2d(class_width, nc, 1))
            for c in ch
        )
        # Not arange, which on the device "meta" imports torch._dynamo and sympy.
        self.register_buffer("bins", torch.tensor([float(i) for i in range(reg_max)]), persistent=False)

    def maps(self, x: list[Tensor]) -> list[Tensor]:
        """(B, 4*reg_max+nc, h, w) of each level: the bins of left, top, right, bottom, then the classes."""
        towers = zip(self.box_towers, self.class_towers, x, strict=True)
        return [torch.cat([box(level), label(level)], dim=1) for box, label, level in towers]

    def distances(self, boxes: Tensor, softplus: Callable[[Tensor], Tensor] = F.softplus) -> Tensor:
        """Box part of a raw map, (B, 4*reg_max, n) -> distances to left, top, right, bottom in strides (B, n, 4)."""
        if self.reg_max == 1:
            return softplus(boxes).transpose(1, 2)
        bins = boxes.reshape(boxes.shape[0], 4, self.reg_max, -1).transpose(2, 3)  # softmax on the last axis: WebGPU
        return (bins.softmax(dim=-1) * self.bins.to(bins.dtype)).sum(dim=-1).transpose(1, 2)

    def decode(self, level: Tensor, i: int) -> Tensor:
        """See Head.decode; distances count from the center of the cell."""
        h, w = level.shape[-2:]
        y = level.flatten(2).float()
        label = y[:, 4 * self.reg_max :].sigmoid().transpose(1, 2)
        return self.rows(self.distances(y[:, : 4 * self.reg_max]), self.cells(h, w, y), label, i)

    def rows(self, distances: Tensor, cells: Tensor, label: Tensor, i: int) -> Tensor:
        """Distances (..., 4), cells (..., 2), class probabilities (..., nc) of level `i` -> decoded rows."""
        near, far = distances.split(2, dim=-1)
        center = (cells + 1.0 + (far - near) / 2) * self.stride[i]
        return torch.cat([center, (near + far) * self.stride[i], torch.ones_like(label[..., :1]), label], dim=-1)

    def confidence(self, level: Tensor) -> Tensor:
        return level[:, 4 * self.reg_max :].amax(dim=1).float().sigmoid().flatten(1)

    def decode_rows(self, level: Tensor, i: int, image: Tensor, row: Tensor) -> Tensor:
        h, w = level.shape[-2:]
        y = level.flatten(2).transpose(1, 2)[image, row].float()
        columns = y[:, : 4 * self.reg_max].T.unsqueeze(0)
        distances = self.distances(columns, lambda x: rounded_alike(F.softplus, x))[0]
        label = rounded_alike(torch.sigmoid, y[:, 4 * self.reg_max :])
        return self.rows(distances, self.cells(h, w, y)[row], label, i)

    def criterion(
        self, hyp: Hyp, imgsz: int, smooth: float = 0.0, all_reduce_sum: AllReduce = local_sum
    ) -> TaskAlignedLoss:
        return TaskAlignedLoss(self.stride, self.nc, self.reg_max, self.enlarge, hyp, smooth, all_reduce_sum)

    def prior_bias(self) -> None:
        """Boxes of about 2 * START strides, and about 5 objects in a 640 px image.

        With equal bins the first boxes would be 15 strides long, which overlap small objects too little to learn them.
        """
        with torch.no_grad():
            bias = -self.bins / (START + 0.5) if self.reg_max > 1 else torch.full((1,), math.log(math.expm1(START)))
            for box, label, stride in zip(self.box_towers, self.class_towers, self.stride.tolist(), strict=True):
                cast(Tensor, last_conv(box).bias).copy_(bias.repeat(4))
                cast(Tensor, last_conv(label).bias).fill_(math.log(5 / self.nc / (640 / stride) ** 2))

    def class_rows(self) -> Iterator[tuple[nn.Conv2d, Tensor]]:
        for tower in self.class_towers:
            yield last_conv(tower), torch.arange(self.nc)

    def settings(self) -> dict[str, Any]:
        return {"reg_max": self.reg_max}


def last_conv(tower: nn.Module) -> nn.Conv2d:
    """The 1x1 convolution at the end of a tower."""
    return cast(nn.Conv2d, cast(nn.Sequential, tower)[-1])


HEADS: dict[str, type[Head]] = {cls.__name__: cls for cls in (Detect, Decoupled, DetectV8)}
