"""Non-maximum suppression of decoded predictions, and its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from utils.boxes import Boxes, xywh2xyxy
from utils.torchvision_ops import batched_nms, nms

MAX_CANDIDATES = 30_000  # boxes per image that enter NMS, the best by score
FIRST = 9  # times max_det boxes are looked at before all of them
SHIFTED = 1000  # up to so many torchvision moves classes apart, which rounds; above it takes one class after another


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


@torch.inference_mode()
def non_max_suppression(decoded: Tensor | Sequence[Tensor], settings: NmsSettings = DEFAULTS) -> list[Boxes]:
    """Final boxes of each image in pixels of the network's input, best score first.

    Args:
        decoded: (B, N, 5+nc), or of each image (n, 5+nc): center x, y, width, height, objectness, class probabilities;
            not modified.
    """
    return [_suppress(rows, settings) for rows in decoded]


def _suppress(rows: Tensor, settings: NmsSettings) -> Boxes:
    """Final boxes of one image from its decoded rows (N, 5+nc)."""
    above = _above(rows[:, 4], settings.conf_thres)
    if len(above) < len(rows) / 2:
        rows = rows[above]
    rows = rows.float()
    box, label, score = _candidates(rows, settings)
    order = _best(score)[:MAX_CANDIDATES]
    box, label, score = box[order], label[order], score[order]
    xyxy = xywh2xyxy(rows[box, :4])
    group = torch.zeros_like(label) if settings.agnostic else label
    if len(score) > SHIFTED and score.device.type == "cpu":
        keep = _nms_by_group(xyxy, score, group, settings)
    else:
        keep = batched_nms(xyxy, score, group, settings.iou_thres)[: settings.max_det]
    return Boxes(xyxy[keep].cpu().numpy(), label[keep].cpu().numpy(), score[keep].cpu().numpy())


def _candidates(rows: Tensor, settings: NmsSettings) -> tuple[Tensor, Tensor, Tensor]:
    """Row, class and score, each (n,), of the boxes above the threshold, in the order of the rows (N, 5+nc)."""
    objectness = rows[:, 4:5]
    scores = rows[:, 5:] * objectness.where(objectness > settings.conf_thres, 0)
    if settings.multi_label and scores.shape[1] > 1:
        flat = _above(scores.flatten(), settings.conf_thres)
        box = flat // scores.shape[1]
        label, score = flat - box * scores.shape[1], scores.flatten()[flat]
    else:
        score, label = scores.max(dim=1)
        box = _above(score, settings.conf_thres)
        score, label = score[box], label[box]
    if settings.classes is not None:
        wanted = torch.isin(label, torch.tensor(settings.classes, device=label.device, dtype=label.dtype))
        box, label, score = box[wanted], label[wanted], score[wanted]
    return box, label, score


def _above(values: Tensor, threshold: float) -> Tensor:
    """The indices of the values (n,) above a threshold; on the CPU by NumPy, which needs a fifth of PyTorch's time."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(values.numpy() > threshold))
    return (values > threshold).nonzero().flatten()


def _best(score: Tensor) -> Tensor:
    """The order of positive scores (n,) float32, best first, equal ones as they come."""
    if score.device.type != "cpu":
        return score.argsort(descending=True, stable=True)
    # Bits of positive floats sort as the floats do. With the index behind them no two keys are equal, so that the
    # fastest sort, which is not stable, gives the stable order.
    keys = (-score.numpy().view(np.int32).astype(np.int64) << 32) | np.arange(len(score))
    keys.sort()
    return torch.from_numpy(keys & 0xFFFFFFFF)


def _nms_by_group(xyxy: Tensor, score: Tensor, group: Tensor, settings: NmsSettings) -> Tensor:
    """The indices of the best boxes that NMS within each group keeps; as torchvision's batched_nms of many, to the bit.

    Boxes come best first. Whether one is kept depends on better ones alone, so that often the first ones are enough.
    """
    for count in (FIRST * settings.max_det, len(score)):
        place = torch.from_numpy(np.argsort(group[:count].numpy().astype(np.uint16), kind="stable"))
        counts = group[place].unique_consecutive(return_counts=True)[1].tolist()
        parts = zip(*(t.split(counts) for t in (xyxy[place], score[place], place)), strict=True)
        keep = torch.cat([i[nms(b, s, settings.iou_thres)] if len(i) > 1 else i for b, s, i in parts]).sort().values
        enough = score[torch.cat([keep, place.max()[None]])[: settings.max_det + 1]]
        if count >= len(score):
            break
        if len(keep) >= settings.max_det and (enough[1:] < enough[:-1]).all():
            return keep[: settings.max_det]
    return keep[score[keep].sort(descending=True).indices][: settings.max_det]  # which orders equal scores
