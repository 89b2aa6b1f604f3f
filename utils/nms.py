"""Non-maximum suppression of decoded predictions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from utils.boxes import xywh2xyxy

MAX_CANDIDATES = 30_000  # boxes an image that enter NMS, the best by score


def non_max_suppression(
    prediction: Tensor,
    conf_thres: float = 0.25,
    iou_thres: float = 0.45,
    classes: Sequence[int] | None = None,
    agnostic: bool = False,
    multi_label: bool = False,
    max_det: int = 300,
) -> list[Tensor]:
    """Final boxes of each image, best first: a list of B tensors (n, 6) xyxy, score, class; n may be 0.

    Args:
        prediction: (B, N, 5+nc) cx, cy, w, h, objectness, class probabilities; not modified.
        conf_thres, iou_thres: 0..1. A score is objectness times class probability.
        classes: keep only these. agnostic: suppress across classes.
        multi_label: a box counts once for every class above the threshold, else for its best one.

    Raises:
        ValueError: a threshold outside 0..1.
    """
    for name, value in (("conf_thres", conf_thres), ("iou_thres", iou_thres)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}, expected 0..1")
    results = []
    for rows in prediction:
        rows = rows[rows[:, 4] > conf_thres].float()
        scores = rows[:, 5:] * rows[:, 4:5]
        if multi_label and scores.shape[1] > 1:
            box, label = (scores > conf_thres).nonzero(as_tuple=True)
            score = scores[box, label]
        else:
            score, label = scores.max(dim=1)
            box = (score > conf_thres).nonzero().flatten()
            score, label = score[box], label[box]
        if classes is not None:
            wanted = torch.isin(label, torch.tensor(list(classes), device=label.device, dtype=label.dtype))
            box, label, score = box[wanted], label[wanted], score[wanted]
        order = score.argsort(descending=True, stable=True)[:MAX_CANDIDATES]
        box, label, score = box[order], label[order], score[order]
        xyxy = xywh2xyxy(rows[box, :4])
        keep = batched_nms(xyxy, score, torch.zeros_like(label) if agnostic else label, iou_thres)[:max_det]
        results.append(torch.cat([xyxy[keep], score[keep, None], label[keep, None].to(xyxy.dtype)], dim=1))
    return results
