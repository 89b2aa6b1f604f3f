"""Target assignment (SimOTA) and loss of the decoupled anchor-free head, as in YOLOX.

Sources: Ge et al. 2021, arXiv:2107.08430 (SimOTA, the loss); Ge et al. 2021, arXiv:2103.14259 (OTA).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.boxes import Targets, paired_iou, xywh2xyxy
from utils.hyp import Hyp
from utils.loss import AllReduce, Criterion, LossParts, bce, cell_grid, local_sum, relative_gains

RADIUS = 1.5  # strides around the center of a box in which cells are candidates
MOST_CELLS = 10  # of a box
IOU_WEIGHT, OUTSIDE = 3.0, 1e6  # in the cost of a cell
BOX_GAIN = 5.0


class Assignment(NamedTuple):
    """The k cells of an image that are responsible for a box."""

    cell: Tensor  # (k,) index over all levels
    box: Tensor  # (k,) index of the box
    iou: Tensor  # (k,) of the predicted box with it


@torch.no_grad()
def assign_simota(
    rows: Tensor, xyxy: Tensor, truth: Tensor, label: Tensor, centers: Tensor, stride: Tensor
) -> Assignment:
    """The cells of one image that are responsible for its boxes: for each box those that predict it best.

    Args:
        rows: (N, 5+nc) logits. xyxy: (N, 4) their boxes, pixels. truth: (n, 4) xyxy pixels. label: (n,) class.
        centers: (N, 2) of the cells, pixels. stride: (N,) pixels.
    """
    offset = (centers[None] - ((truth[:, :2] + truth[:, 2:]) / 2)[:, None]).abs().amax(dim=2)  # (n, N)
    near = offset < RADIUS * stride
    cells = near.any(dim=0).nonzero().flatten()
    if not len(truth) or not len(cells):
        return Assignment(cells[:0], cells[:0], xyxy[:0, 0])
    from torchvision.ops import box_iou  # slow to import, and only training needs it

    iou = box_iou(truth, xyxy[cells])
    cost = class_cost(rows[cells], label) - IOU_WEIGHT * (iou + 1e-8).log() + OUTSIDE * ~near[:, cells]
    best = iou.topk(min(MOST_CELLS, len(cells)), dim=1).values
    wanted = best.sum(dim=1).int().clamp(min=1)
    rank = cost.argsort(dim=1, stable=True).argsort(dim=1)
    chosen = rank < wanted[:, None]
    cheapest = cost.masked_fill(~chosen, torch.inf).argmin(dim=0)  # of the boxes that want a cell
    taken = chosen.any(dim=0).nonzero().flatten()
    box = cheapest[taken]
    return Assignment(cells[taken], box, iou[box, taken])


def class_cost(rows: Tensor, label: Tensor) -> Tensor:
    """(n, k) binary cross-entropy of the scores of k cells (rows of logits) with one-hot vectors of n labels."""
    log_p = (F.logsigmoid(rows[:, 5:]) + F.logsigmoid(rows[:, 4:5])) / 2  # of the root of class times objectness
    log_not = torch.log1p(-log_p.exp()).clamp(min=-100)
    return (log_not - log_p.clamp(min=-100))[:, label].T - log_not.sum(dim=1)


def raw_distance(raw: Tensor, truth: Tensor, centers: Tensor, stride: Tensor) -> Tensor:
    """(k,) the absolute error of a cell's four raw numbers, summed: YOLOX's L1 loss.

    Args:
        raw: (k, 4) offset of the center from the cell's corner and logarithm of the size, strides.
        truth: (k, 4) xyxy pixels. centers: (k, 2) of the cells, pixels. stride: (k, 1) pixels.
    """
    near, far = truth.split(2, dim=1)
    offset = ((near + far) / 2 - centers) / stride + 0.5
    size = ((far - near) / stride + 1e-8).log()
    return (raw - torch.cat([offset, size], dim=1)).abs().sum(dim=1)


class SimOtaLoss(Criterion):
    """Box, objectness and class loss of raw maps, each a sum over cells divided by the number of responsible cells.

    With `l1` there is a fourth part: 0, and in the closing epochs (see Criterion) `raw_distance`.

    Args:
        stride: (levels,) pixels per cell. nc: number of classes. hyp, smooth: see `relative_gains`; box is also for l1.
        all_reduce_sum: see Criterion.
    """

    def __init__(
        self,
        stride: Tensor,
        nc: int,
        hyp: Hyp,
        smooth: float = 0.0,
        all_reduce_sum: AllReduce = local_sum,
        l1: bool = False,
    ):
        names = ("box", "obj", "cls", "l1") if l1 else ("box", "obj", "cls")
        super().__init__(names, nc, relative_gains(hyp, smooth), all_reduce_sum)
        self.stride = stride
        self.nominal_batch = hyp.nominal_batch

    def __call__(self, preds: list[Tensor], targets: Targets) -> tuple[Tensor, LossParts]:
        """See Criterion; the scalar is the sum of the parts times batch size / nominal batch.

        Args:
            preds: (B, 5+nc, h, w) of each level: box, objectness, classes.
        """
        g = self.gains
        grid = cell_grid(preds, self.stride)
        targets = targets.to(grid.centers.device)
        rows = torch.cat([level.flatten(2) for level in preds], dim=2).transpose(1, 2).float()
        stride = grid.stride[:, None]
        center = grid.centers + (rows[..., :2] - 0.5) * stride  # offsets count from the corner of a cell
        xyxy = xywh2xyxy(torch.cat([center, rows[..., 2:4].exp() * stride], dim=-1))
        truth = xywh2xyxy(targets.xywhn * grid.size)
        images, cells, boxes, ious = [], [], [], []
        for i in range(len(rows)):
            own = (targets.image == i).nonzero().flatten()
            found = assign_simota(
                rows[i].detach(), xyxy[i].detach(), truth[own], targets.label[own], grid.centers, grid.stride
            )
            images.append(torch.full_like(found.cell, i))
            cells.append(found.cell)
            boxes.append(own[found.box])
            ious.append(found.iou)
        image, cell, box = torch.cat(images), torch.cat(cells), torch.cat(boxes)
        count, batch = self.all_reduce_sum(rows.new_tensor([len(cell), len(rows)])).tolist()
        objectness = torch.zeros_like(rows[..., 4])
        objectness[image, cell] = 1.0
        matched = rows[image, cell]
        iou = paired_iou(xyxy[image, cell], truth[box])
        label = self.class_targets(matched[:, 5:], targets.label[box]) * torch.cat(ious)[:, None]
        sums = {
            "box": BOX_GAIN * g.box * (1 - iou * iou).sum(),
            "obj": g.obj * bce(rows[..., 4], objectness, g.obj_pw, g.fl_gamma),
            "cls": g.cls * bce(matched[:, 5:], label, g.cls_pw, g.fl_gamma),
        }
        if "l1" in self.names:
            l1 = raw_distance(matched[:, :4], truth[box], grid.centers[cell], stride[cell])
            sums["l1"] = g.box * l1.sum() * float(self.closing)
        parts = {name: part / max(count, 1) for name, part in sums.items()}
        loss = sum(parts.values()) * (batch / self.nominal_batch)
        return loss, {name: part.detach() for name, part in parts.items()}
