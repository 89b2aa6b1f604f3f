"""YOLOv5's detection loss: which cells answer for which box, and what they are told."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.boxes import paired_ciou, xywh2xyxy
from utils.config import Hyp

BALANCE = {2: (4.0, 1.0), 3: (4.0, 1.0, 0.4), 4: (4.0, 1.0, 0.25, 0.06), 5: (4.0, 1.0, 0.25, 0.06, 0.02)}


@dataclass(frozen=True)
class LossGains:
    """Weights of the loss, after scaling; `anchor_t`, `fl_gamma`, `*_pw` as in Hyp; `smooth` is label smoothing."""

    box: float
    obj: float
    cls: float
    cls_pw: float = 1.0
    obj_pw: float = 1.0
    anchor_t: float = 4.0
    fl_gamma: float = 0.0
    smooth: float = 0.0


def loss_gains(hyp: Hyp, nc: int, imgsz: int, levels: int = 3, smooth: float = 0.0) -> LossGains:
    """Hyp's gains are for 80 classes, 640 px and 3 levels; scale them to this run."""
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


class LossParts(NamedTuple):
    """The three parts of the loss of a batch, weighted, a mean over its images; detached scalars."""

    box: Tensor
    obj: Tensor
    cls: Tensor


class Matches(NamedTuple):
    """The k cells of one level that answer for a box."""

    image: Tensor  # (k,) index in the batch
    anchor: Tensor  # (k,) index of the anchor
    row: Tensor  # (k,) cell
    column: Tensor  # (k,) cell
    xywh: Tensor  # (k, 4) the box in cells, its centre relative to the cell's corner
    anchor_wh: Tensor  # (k, 2) cells
    label: Tensor  # (k,) class


def assign_targets(targets: Tensor, anchors: Tensor, size: tuple[int, int], anchor_t: float) -> Matches:
    """Match boxes with anchors and cells of one level.

    A box takes every anchor from which no side differs by more than the factor `anchor_t`, in its own cell and in the
    nearest neighbour across and down (three cells, fewer at the map's edge).

    Args:
        targets: (n, 6) image, class, cx, cy, w, h in 0..1; n may be 0.
        anchors: (A, 2) width, height in cells. size: (height, width) of the map in cells.
    """
    h, w = size
    unit = targets.new_tensor([w, h])
    centre, wh = targets[:, 2:4] * unit, targets[:, 4:6] * unit
    ratio = wh[None] / anchors[:, None]  # (A, n, 2)
    fits = torch.maximum(ratio, 1 / ratio).amax(dim=2) < anchor_t
    anchor, box = fits.nonzero(as_tuple=True)

    centre, from_far = centre[box], unit - centre[box]
    # the neighbour lies on the side to which the centre leans, unless that is outside the map
    left, above = ((centre % 1 < 0.5) & (centre > 1)).T
    right, below = ((from_far % 1 < 0.5) & (from_far > 1)).T
    chosen = torch.stack([torch.ones_like(left), left, above, right, below])  # (5, k)
    step = targets.new_tensor([[0, 0], [0.5, 0], [0, 0.5], [-0.5, 0], [0, -0.5]])
    which, match = chosen.nonzero(as_tuple=True)
    cell = (centre[match] - step[which]).long()
    column, row = cell.T
    box = box[match]
    return Matches(
        image=targets[box, 0].long(),
        anchor=anchor[match],
        row=row.clamp(0, h - 1),
        column=column.clamp(0, w - 1),
        xywh=torch.cat([centre[match] - cell, wh[box]], dim=1),
        anchor_wh=anchors[anchor[match]],
        label=targets[box, 1].long(),
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
    miss = target * (1 - p) + (1 - target) * p  # how far the answer is off
    alpha = 0.25 * target + 0.75 * (1 - target)
    return (alpha * miss**gamma * loss).sum()


def alone(counts: Tensor) -> Tensor:
    """The sum over the processes of a run that has one."""
    return counts


class DetectionLoss:
    """Box, objectness and class loss of raw head maps.

    Args:
        anchors: (levels, A, 2) width, height in pixels. stride: (levels,) pixels a cell. nc: classes.
        gains: see `loss_gains`.
        total: sums a tensor over the processes that share a batch. Each then returns its part of the loss of the whole
            batch, so that the sum over the processes is what one process would have computed.
    """

    def __init__(
        self, anchors: Tensor, stride: Tensor, nc: int, gains: LossGains, total: Callable[[Tensor], Tensor] = alone
    ):
        self.anchors = anchors / stride.view(-1, 1, 1)  # cells
        self.nc = nc
        self.gains = gains
        self.total = total
        self.balance = BALANCE[len(anchors)] if len(anchors) > 1 else (1.0,)

    def __call__(self, preds: list[Tensor], targets: Tensor) -> tuple[Tensor, LossParts]:
        """(scalar loss times batch size, weighted parts).

        Args:
            preds: per level (B, A, h, w, 5+nc), logits.
            targets: (n, 6) image, class, cx, cy, w, h in 0..1; n may be 0.
        """
        g = self.gains
        targets = targets.to(preds[0].device)
        levels = [
            assign_targets(targets, anchors, (pred.shape[2], pred.shape[3]), g.anchor_t)
            for pred, anchors in zip(preds, self.anchors.to(targets.device), strict=True)
        ]
        counts = [len(m.image) for m in levels] + [len(preds[0])]
        *matches, images = self.total(targets.new_tensor(counts)).tolist()
        box = obj = cls = torch.zeros((), device=preds[0].device)
        for pred, m, count, weight in zip(preds, levels, matches, self.balance, strict=True):
            objectness = torch.zeros_like(pred[..., 4])
            if len(m.image):
                answers = pred[m.image, m.anchor, m.row, m.column]
                iou = self.box_iou(answers, m)
                box = box + (1 - iou).sum() / count
                objectness[m.image, m.anchor, m.row, m.column] = iou.detach().clamp(min=0).to(objectness.dtype)
                if self.nc > 1:
                    wanted = self.class_targets(answers[:, 5:], m.label)
                    cls = cls + bce(answers[:, 5:], wanted, g.cls_pw, g.fl_gamma) / (count * self.nc)
            cells = objectness[0].numel() * images
            obj = obj + weight * bce(pred[..., 4], objectness, g.obj_pw, g.fl_gamma) / cells
        parts = LossParts(box * g.box, obj * g.obj, cls * g.cls)
        return sum(parts) * images, LossParts(*(p.detach() for p in parts))

    def alone(self) -> DetectionLoss:
        """The same loss for a batch that no other process shares."""
        other = copy.copy(self)
        other.total = alone
        return other

    @staticmethod
    def box_iou(answers: Tensor, m: Matches) -> Tensor:
        """(k,) complete IoU of the answering cells' boxes with their targets, in fp32."""
        y = answers[:, :4].float().sigmoid()
        predicted = torch.cat([y[:, :2] * 2 - 0.5, (y[:, 2:] * 2) ** 2 * m.anchor_wh], dim=1)
        return paired_ciou(xywh2xyxy(predicted), xywh2xyxy(m.xywh))

    def class_targets(self, like: Tensor, label: Tensor) -> Tensor:
        """(k, nc): 1 - smooth/2 at the label, smooth/2 elsewhere."""
        off = 0.5 * self.gains.smooth
        target = torch.full_like(like, off)
        target[torch.arange(len(label), device=label.device), label] = 1 - off
        return target
