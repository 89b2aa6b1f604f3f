"""What the losses of all heads share; target assignment and loss of the anchor-based head, as in YOLOv5."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.boxes import Targets, paired_ciou, xywh2xyxy
from utils.hyp import Hyp

AllReduce = Callable[[Tensor], Tensor]
BALANCE = {2: (4.0, 1.0), 3: (4.0, 1.0, 0.4), 4: (4.0, 1.0, 0.25, 0.06), 5: (4.0, 1.0, 0.25, 0.06, 0.02)}


@dataclass(frozen=True)
class LossGains:
    """Weights of the loss parts, scaled to a run.

    Attributes:
        box, obj, cls: gains of the parts. cls_pw, obj_pw, anchor_t, fl_gamma: as in Hyp.
        smooth: label smoothing, 0..1.
    """

    box: float
    obj: float
    cls: float
    cls_pw: float = 1.0
    obj_pw: float = 1.0
    anchor_t: float = 4.0
    fl_gamma: float = 0.0
    smooth: float = 0.0


def loss_gains(hyp: Hyp, nc: int, imgsz: int, levels: int = 3, smooth: float = 0.0) -> LossGains:
    """The gains of `hyp`, which are for 80 classes, 640 px and 3 levels, scaled to a run."""
    per_level = 3 / levels
    return LossGains(
        box=hyp.box * per_level,
        obj=hyp.obj * per_level * (imgsz / 640) ** 2,
        cls=hyp.cls * per_level * nc / 80,
        cls_pw=hyp.cls_pw,
        obj_pw=hyp.obj_pw,
        anchor_t=hyp.anchor_t,
        fl_gamma=hyp.fl_gamma,
        smooth=smooth,
    )


def relative_gains(hyp: Hyp, smooth: float = 0.0) -> LossGains:
    """The gains of `hyp` as multiples of their defaults, for losses with gains of their own."""
    usual = Hyp()
    return LossGains(
        box=hyp.box / usual.box,
        obj=hyp.obj / usual.obj,
        cls=hyp.cls / usual.cls,
        cls_pw=hyp.cls_pw,
        obj_pw=hyp.obj_pw,
        fl_gamma=hyp.fl_gamma,
        smooth=smooth,
    )


LossParts = dict[str, Tensor]  # weighted parts of the loss of a batch by name; detached scalars


class Matches(NamedTuple):
    """The k cells of one level that are responsible for a box."""

    image: Tensor  # (k,) index in the batch
    anchor: Tensor  # (k,) index of the anchor
    row: Tensor  # (k,) cell
    column: Tensor  # (k,) cell
    xywh: Tensor  # (k, 4) the box in cells, its center relative to the cell's corner
    anchor_wh: Tensor  # (k, 2) cells
    label: Tensor  # (k,) class


def assign_targets(targets: Targets, anchors: Tensor, size: tuple[int, int], anchor_t: float) -> Matches:
    """The cells and anchors of one level that are responsible for the boxes of a batch.

    A box takes every anchor from which no side differs by more than the factor `anchor_t`, in its own cell and in the
    nearest neighbor across and down (three cells, fewer at the map's edge).

    Args:
        anchors: (A, 2) width, height in cells. size: (height, width) of the map in cells.
    """
    h, w = size
    unit = targets.xywhn.new_tensor([w, h])
    center, wh = targets.xywhn[:, :2] * unit, targets.xywhn[:, 2:] * unit
    ratio = wh[None] / anchors[:, None]  # (A, n, 2)
    fits = torch.maximum(ratio, 1 / ratio).amax(dim=2) < anchor_t
    anchor, box = fits.nonzero(as_tuple=True)

    center, from_far = center[box], unit - center[box]
    # the neighbor lies on the side to which the center leans, unless that is outside the map
    left, above = ((center % 1 < 0.5) & (center > 1)).T
    right, below = ((from_far % 1 < 0.5) & (from_far > 1)).T
    chosen = torch.stack([torch.ones_like(left), left, above, right, below])  # (5, k)
    offset = targets.xywhn.new_tensor([[0, 0], [0.5, 0], [0, 0.5], [-0.5, 0], [0, -0.5]])
    which, match = chosen.nonzero(as_tuple=True)
    cell = (center[match] - offset[which]).long()
    column, row = cell.T
    box = box[match]
    return Matches(
        image=targets.image[box],
        anchor=anchor[match],
        row=row.clamp(0, h - 1),
        column=column.clamp(0, w - 1),
        xywh=torch.cat([center[match] - cell, wh[box]], dim=1),
        anchor_wh=anchors[anchor[match]],
        label=targets.label[box],
    )


def bce(logits: Tensor, target: Tensor, pos_weight: float, gamma: float) -> Tensor:
    """Summed binary cross-entropy; focal with alpha 0.25 when gamma > 0.

    Source: Lin et al. 2017, arXiv:1708.02002.
    """
    loss = F.binary_cross_entropy_with_logits(
        logits, target, pos_weight=logits.new_tensor(pos_weight), reduction="none" if gamma > 0 else "sum"
    )
    if gamma <= 0:
        return loss
    p = logits.sigmoid()
    error = target * (1 - p) + (1 - target) * p
    alpha = 0.25 * target + 0.75 * (1 - target)
    return (alpha * error**gamma * loss).sum()


class CellGrid(NamedTuple):
    """The N cells of all levels, row by row."""

    centers: Tensor  # (N, 2) x, y, pixels
    stride: Tensor  # (N,) pixels
    size: Tensor  # (4,) width, height, width, height of the image, pixels


def cell_grid(preds: list[Tensor], stride: Tensor) -> CellGrid:
    """The cells of raw maps (B, C, h, w) of levels with `stride` (levels,) pixels."""
    centers, strides = [], []
    for level, s in zip(preds, stride.tolist(), strict=True):
        h, w = level.shape[-2:]
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        centers.append((torch.stack([x, y], dim=-1).view(-1, 2) + 0.5) * s)
        strides.append(torch.full((h * w,), s))
    h, w = preds[0].shape[-2:]
    size = torch.tensor([w, h, w, h]) * stride[0].item()
    device = preds[0].device
    return CellGrid(torch.cat(centers).to(device), torch.cat(strides).to(device), size.to(device))


def local_sum(values: Tensor) -> Tensor:
    """The sum over the processes of a run with one process: `values`."""
    return values


class Criterion:
    """The loss of a head, which its `criterion` method builds.

    Args:
        names: of the loss parts, as the progress line and results.csv show them.
        nc: number of classes. gains: weights of the parts and settings of the class loss.
        all_reduce_sum: sums a tensor over the processes that share a batch. The losses that the processes return sum up
            to what one process would compute for the whole batch.

    Attributes:
        closing: whether the run is in its last epochs, those without mosaic (--close-mosaic); some losses add a part.
    """

    def __init__(self, names: tuple[str, ...], nc: int, gains: LossGains, all_reduce_sum: AllReduce = local_sum):
        self.names = names
        self.nc = nc
        self.gains = gains
        self.all_reduce_sum = all_reduce_sum
        self.closing = False

    def __call__(self, preds: list[Tensor], targets: Targets) -> tuple[Tensor, LossParts]:
        """The scalar to minimize, which is proportional to the batch size, and its parts, which are not.

        Args:
            preds: the raw maps of each level, as the head returns them in training.
        """
        raise NotImplementedError

    def for_one_process(self) -> Self:
        """The same loss for batches that are not shared with other processes."""
        other = copy.copy(self)
        other.all_reduce_sum = local_sum
        return other

    def class_targets(self, like: Tensor, label: Tensor) -> Tensor:
        """(k, nc) of the type of `like`: 1 - smooth/2 at the label, smooth/2 elsewhere."""
        off = 0.5 * self.gains.smooth
        target = torch.full_like(like, off)
        target[torch.arange(len(label), device=label.device), label] = 1 - off
        return target


class DetectionLoss(Criterion):
    """Box, objectness and class loss of the anchor-based head.

    Args:
        anchors: (levels, A, 2) width, height in pixels. stride: (levels,) pixels per cell.
        nc, gains, all_reduce_sum: see Criterion and `loss_gains`.
    """

    def __init__(
        self,
        anchors: Tensor,
        stride: Tensor,
        nc: int,
        gains: LossGains,
        all_reduce_sum: AllReduce = local_sum,
    ):
        super().__init__(("box", "obj", "cls"), nc, gains, all_reduce_sum)
        self.anchors = anchors / stride.view(-1, 1, 1)  # cells
        self.balance = BALANCE[len(anchors)] if len(anchors) > 1 else (1.0,)

    def __call__(self, preds: list[Tensor], targets: Targets) -> tuple[Tensor, LossParts]:
        """The scalar loss times the batch size, and its weighted parts.

        Args:
            preds: logits (B, A, h, w, 5+nc) of each level.
        """
        g = self.gains
        device = preds[0].device
        targets = targets.to(device)
        levels = [
            assign_targets(targets, anchors, (pred.shape[2], pred.shape[3]), g.anchor_t)
            for pred, anchors in zip(preds, self.anchors.to(device), strict=True)
        ]
        counts = [len(m.image) for m in levels] + [len(preds[0])]
        *matches, images = self.all_reduce_sum(targets.xywhn.new_tensor(counts)).tolist()
        box = obj = cls = torch.zeros((), device=device)
        for pred, m, count, weight in zip(preds, levels, matches, self.balance, strict=True):
            objectness = torch.zeros_like(pred[..., 4])
            if len(m.image):
                matched = pred[m.image, m.anchor, m.row, m.column]
                iou = self.box_iou(matched, m)
                box = box + (1 - iou).sum() / count
                objectness[m.image, m.anchor, m.row, m.column] = iou.detach().clamp(min=0).to(objectness.dtype)
                if self.nc > 1:
                    one_hot = self.class_targets(matched[:, 5:], m.label)
                    cls = cls + bce(matched[:, 5:], one_hot, g.cls_pw, g.fl_gamma) / (count * self.nc)
            cells = objectness[0].numel() * images
            obj = obj + weight * bce(pred[..., 4], objectness, g.obj_pw, g.fl_gamma) / cells
        parts = {"box": box * g.box, "obj": obj * g.obj, "cls": cls * g.cls}
        return sum(parts.values()) * images, {name: part.detach() for name, part in parts.items()}

    @staticmethod
    def box_iou(matched: Tensor, m: Matches) -> Tensor:
        """(k,) complete IoU, in fp32, of the boxes that the logits (k, 5+nc) of the matched cells predict."""
        y = matched[:, :4].float().sigmoid()
        predicted = torch.cat([y[:, :2] * 2 - 0.5, (y[:, 2:] * 2) ** 2 * m.anchor_wh], dim=1)
        return paired_ciou(xywh2xyxy(predicted), xywh2xyxy(m.xywh))
