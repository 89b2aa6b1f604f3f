"""Non-maximum suppression of decoded predictions, and its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from utils.boxes import Boxes, xywh2xyxy

MAX_CANDIDATES = 30_000  # boxes per image that enter NMS, the best by score


@dataclass(frozen=True)
class NmsSettings:
    """Settings of NMS.

    Attributes:
        conf_thres: confidence threshold, 0..1; a score is objectness times class probability.
        iou_thres: IoU threshold, 0..1: of two boxes of a class that overlap more, the one with the lower score is
            dropped.
        max_det: maximum boxes per image.
        classes: keep only these class indices; None keeps all.
        agnostic: boxes suppress those of other classes too.
        multi_label: a box counts once for every class above the threshold, not only for its best one.

    Raises:
        ValueError: a threshold outside of 0..1, or max_det below 1.
    """

    conf_thres: float = 0.25
    iou_thres: float = 0.45
    max_det: int = 300
    classes: tuple[int, ...] | None = None
    agnostic: bool = False
    multi_label: bool = False

    def __post_init__(self) -> None:
        for name in ("conf_thres", "iou_thres"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0..1")
        if self.max_det < 1:
            raise ValueError(f"max_det is {self.max_det}, expected at least 1")


DEFAULTS = NmsSettings()


def non_max_suppression(decoded: Tensor | Sequence[Tensor], settings: NmsSettings = DEFAULTS) -> list[Boxes]:
    """Final boxes of each image in pixels of the network's input, best score first.

    Args:
        decoded: (B, N, 5+nc), or of each image (n, 5+nc): center x, y, width, height, objectness, class probabilities;
            not modified.
    """
    return [_suppress(rows, settings) for rows in decoded]


def _suppress(rows: Tensor, settings: NmsSettings) -> Boxes:
    """Final boxes of one image from its decoded rows (N, 5+nc)."""
    rows = rows[rows[:, 4] > settings.conf_thres].float()
    scores = rows[:, 5:] * rows[:, 4:5]
    if settings.multi_label and scores.shape[1] > 1:
        box, label = (scores > settings.conf_thres).nonzero(as_tuple=True)
        score = scores[box, label]
    else:
        score, label = scores.max(dim=1)
        box = (score > settings.conf_thres).nonzero().flatten()
        score, label = score[box], label[box]
    if settings.classes is not None:
        wanted = torch.isin(label, torch.tensor(settings.classes, device=label.device, dtype=label.dtype))
        box, label, score = box[wanted], label[wanted], score[wanted]
    order = score.argsort(descending=True, stable=True)[:MAX_CANDIDATES]
    box, label, score = box[order], label[order], score[order]
    xyxy = xywh2xyxy(rows[box, :4])
    group = torch.zeros_like(label) if settings.agnostic else label
    keep = batched_nms(xyxy, score, group, settings.iou_thres)[: settings.max_det]
    return Boxes(xyxy[keep].cpu().numpy(), label[keep].cpu().numpy(), score[keep].cpu().numpy())
