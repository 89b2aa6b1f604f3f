"""Task-aligned assignment and loss of the anchor-free head that predicts distances (TOOD, GFL).

Sources: Feng et al. 2021, arXiv:2108.07755 (assignment); Li et al. 2020, arXiv:2006.04388 (distribution focal loss).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.boxes import Targets, paired_ciou, xywh2xyxy
from utils.hyp import Hyp
from utils.loss import AllReduce, CellGrid, Criterion, LossParts, bce, cell_grid, local_sum, relative_gains

ALPHA, BETA = 0.5, 6.0  # exponents of class probability and IoU in the alignment
MOST_CELLS = 10  # of a box
BOX_GAIN, DISTANCE_GAIN, CLASS_GAIN = 7.5, 1.5, 0.5
LAST_BIN = 1.01  # distances are less than reg_max - LAST_BIN: the last bin of a distribution only has a share in them


class Assignment(NamedTuple):
    """The k cells of an image that are responsible for a box."""

    cell: Tensor  # (k,) index over all levels
    box: Tensor  # (k,) index of the box
    weight: Tensor  # (k,) 0..1: the class target, the box's best IoU at its best cell


@torch.no_grad()
def assign_task_aligned(
    p: Tensor, xyxy: Tensor, truth: Tensor, label: Tensor, grid: CellGrid, reach: float, least: float = 0.0
) -> Assignment:
    """The cells of one image that are responsible for its boxes: those inside that predict class and box best.

    Args:
        p: (N, nc) class probabilities. xyxy: (N, 4) predicted boxes, pixels.
        truth: (n, 4) xyxy pixels. label: (n,) class.
        reach: largest distance from a cell to a side, strides.
        least: shorter boxes are this long in the test which cells lie inside, pixels.
    """
    empty = torch.zeros(0, dtype=torch.int64, device=p.device)
    if not len(truth):
        return Assignment(empty, empty, p[:0, 0])
    inside = cells_inside(truth, grid, reach, least)
    from torchvision.ops import complete_box_iou  # slow to import, and only training needs it

    iou = complete_box_iou(truth, xyxy).nan_to_num(0.0).clamp(min=0)  # (n, N); NaN for boxes without sides
    alignment = p[:, label].T ** ALPHA * iou**BETA
    ranked = alignment.masked_fill(~inside, 0.0).topk(min(MOST_CELLS, len(p)), dim=1)
    chosen = torch.zeros_like(inside).scatter(1, ranked.indices, ranked.values > 0)
    without = ~chosen.any(dim=1)
    nearest = iou.argmax(dim=1)
    chosen[without, nearest[without]] = True
    owner = iou.masked_fill(~chosen, -1.0).argmax(dim=0)
    cell = chosen.any(dim=0).nonzero().flatten()
    box = owner[cell]
    kept = torch.zeros_like(chosen)
    kept[box, cell] = True
    best = alignment.masked_fill(~kept, 0.0).amax(dim=1)
    best_iou = iou.masked_fill(~kept, 0.0).amax(dim=1)
    weight = alignment[box, cell] / (best[box] + 1e-9) * best_iou[box]
    return Assignment(cell, box, weight)


def cells_inside(truth: Tensor, grid: CellGrid, reach: float, least: float) -> Tensor:
    """(n, N): whether the center of a cell lies in a box, and no side is farther away than `reach` strides."""
    middle, half = (truth[:, :2] + truth[:, 2:]) / 2, (truth[:, 2:] - truth[:, :2]) / 2
    half = half.clamp(min=least / 2)
    near, far = grid.centers - (middle - half)[:, None], (middle + half)[:, None] - grid.centers
    sides = torch.cat([near, far], dim=2) / grid.stride[:, None]  # (n, N, 4)
    return (sides.amin(dim=2) > 0) & (sides.amax(dim=2) < reach)


class TaskAlignedLoss(Criterion):
    """Box, distance and class loss of raw maps, each weighted by the class targets and divided by their sum.

    The distance loss is that of the distributions ("dfl"); for a head without bins it is the mean absolute error of the
    four distances in units of the box's mean half side ("l1").

    Args:
        stride: (levels,) pixels per cell. nc: number of classes.
        reg_max, enlarge: see models.heads.DetectV8. hyp, smooth: see `relative_gains`; box is also for distances.
        all_reduce_sum: see Criterion.
    """

    def __init__(
        self,
        stride: Tensor,
        nc: int,
        reg_max: int,
        enlarge: float,
        hyp: Hyp,
        smooth: float = 0.0,
        all_reduce_sum: AllReduce = local_sum,
    ):
        names = ("box", "dfl" if reg_max > 1 else "l1", "cls")
        super().__init__(names, nc, relative_gains(hyp, smooth), all_reduce_sum)
        self.stride = stride
        self.reg_max = reg_max
        self.least = enlarge * float(stride.min())
        self.nominal_batch = hyp.nominal_batch

    def __call__(self, preds: list[Tensor], targets: Targets) -> tuple[Tensor, LossParts]:
        """See Criterion; the scalar is the sum of the parts times batch size / nominal batch.

        Args:
            preds: (B, 4*reg_max+nc, h, w) of each level: bins of left, top, right, bottom, classes.
        """
        g, names = self.gains, self.names
        grid = cell_grid(preds, self.stride)
        targets = targets.to(grid.centers.device)
        rows = torch.cat([level.flatten(2) for level in preds], dim=2).transpose(1, 2).float()  # (B, N, ...)
        sides, classes = rows.split([4 * self.reg_max, self.nc], dim=2)
        bins = sides.unflatten(2, (4, self.reg_max))
        distances = distances_of(bins)
        scaled = distances * grid.stride[:, None]
        xyxy = torch.cat([grid.centers - scaled[..., :2], grid.centers + scaled[..., 2:]], dim=2)
        truth = xywh2xyxy(targets.xywhn * grid.size)
        image, cell, box, weight = self.assign(classes.detach().sigmoid(), xyxy.detach(), truth, targets, grid)

        class_target = torch.zeros_like(classes)
        class_target[image, cell] = self.class_targets(classes[image, cell], targets.label[box]) * weight[:, None]
        total, batch = self.all_reduce_sum(torch.stack([weight.sum(), weight.new_tensor(len(rows))])).tolist()
        stride = grid.stride[cell][:, None]
        near, far = grid.centers[cell] - truth[box, :2], truth[box, 2:] - grid.centers[cell]
        wanted = (torch.cat([near, far], dim=1) / stride).clamp(0, self.reach)  # (k, 4) strides
        ciou = paired_ciou(xyxy[image, cell], truth[box])
        if self.reg_max > 1:
            distance = bin_loss(bins[image, cell], wanted)
        else:
            half_side = wanted.mean(dim=1, keepdim=True)
            distance = ((distances[image, cell] - wanted).abs() / half_side.clamp(min=0.1)).mean(dim=1)
        sums = {
            names[0]: BOX_GAIN * g.box * ((1 - ciou) * weight).sum(),
            names[1]: DISTANCE_GAIN * g.box * (distance * weight).sum(),
            names[2]: CLASS_GAIN * g.cls * bce(classes, class_target, g.cls_pw, g.fl_gamma),
        }
        parts = {name: part / max(total, 1.0) for name, part in sums.items()}
        loss = sum(parts.values()) * (batch / self.nominal_batch)
        return loss, {name: part.detach() for name, part in parts.items()}

    @property
    def reach(self) -> float:
        """The largest distance that a cell can predict, strides."""
        return self.reg_max - LAST_BIN if self.reg_max > 1 else math.inf

    def assign(
        self, p: Tensor, xyxy: Tensor, truth: Tensor, targets: Targets, grid: CellGrid
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The k responsible cells of a batch: index of image, cell and box (of all boxes), weight; see Assignment.

        Args:
            p: (B, N, nc) probabilities. xyxy: (B, N, 4) pixels. truth: (M, 4) xyxy pixels of `targets`.
        """
        found = []
        for i in range(len(p)):
            own = (targets.image == i).nonzero().flatten()
            cell, box, weight = assign_task_aligned(
                p[i], xyxy[i], truth[own], targets.label[own], grid, self.reach, self.least
            )
            found.append((torch.full_like(cell, i), cell, own[box], weight))
        image, cell, box, weight = (torch.cat(part) for part in zip(*found, strict=True))
        return image, cell, box, weight


def distances_of(bins: Tensor) -> Tensor:
    """Raw bins (..., 4, reg_max) -> distances (..., 4) in strides: the expectation of the bins, or softplus of one."""
    if bins.shape[-1] == 1:
        return F.softplus(bins).squeeze(-1)
    places = torch.arange(bins.shape[-1], device=bins.device, dtype=bins.dtype)
    return (bins.softmax(dim=-1) * places).sum(dim=-1)  # not a product of matrices, which autocast would round


def bin_loss(bins: Tensor, wanted: Tensor) -> Tensor:
    """(k,) distribution focal loss of raw bins (k, 4, reg_max) for distances (k, 4), the mean of the four sides."""
    low = wanted.long()
    share = wanted - low  # of the bin above
    log_p = bins.log_softmax(dim=-1)
    below, above = (log_p.gather(2, i[..., None]).squeeze(-1) for i in (low, low + 1))
    return -(below * (1 - share) + above * share).mean(dim=1)
