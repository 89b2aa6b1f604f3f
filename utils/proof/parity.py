"""Parity: largest differences between the outputs of an exported file and of PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from utils.boxes import Boxes, pairwise_iou
from utils.nms import DEFAULTS, NmsSettings, non_max_suppression

MIN_SCORE = 0.01  # of rows whose boxes are compared
MIN_ROWS = 100  # per image whose boxes are compared, whatever their score


@dataclass(frozen=True)
class Limits:
    """Allowed differences.

    Attributes:
        box_px: of a side or center, pixels. score: of a score. same: least share of equal final detections, 0..1.
    """

    box_px: float
    score: float
    same: float


LIMITS = {"float32": Limits(0.1, 1e-3, 1.0), "float16": Limits(4.0, 0.03, 0.9)}


@dataclass(frozen=True)
class Parity:
    """Largest differences over all images, and how many final detections are the `same`, of `total`."""

    box_px: float
    score: float
    same: int
    total: int

    def within(self, limits: Limits) -> bool:
        """Whether the differences are allowed; NaN is not."""
        same = self.same >= limits.same * self.total
        return same and self.box_px <= limits.box_px and self.score <= limits.score


def compare(expected: Tensor, got: Tensor, limits: Limits, nms: NmsSettings = DEFAULTS) -> Parity:
    """The differences between decoded rows (B, N, 5+nc) of PyTorch and of a file.

    The file's may also be the rows of its final boxes (B, D, 5+nc). With equally many rows, scores of all of them are
    compared, and boxes of those with MIN_SCORE and of the best MIN_ROWS; otherwise those of final detections that pair
    up. A detection without partner whose score is within the limit of the confidence threshold is not counted.
    """
    final = [non_max_suppression(rows, nms) for rows in (expected, got)]
    pairs = [pair_up(a, b, limits, nms.conf_thres) for a, b in zip(*final, strict=True)]
    same, total = sum(p.same for p in pairs), sum(p.total for p in pairs)
    if expected.shape == got.shape:
        box, score = row_errors(expected, got)
    else:
        box, score = max((p.box_px for p in pairs), default=0.0), max((p.score for p in pairs), default=0.0)
    return Parity(box, score, same, total)


def row_errors(expected: Tensor, got: Tensor) -> tuple[float, float]:
    """(pixels, score): the largest differences of rows, see compare."""
    scores = expected[..., 5:] * expected[..., 4:5]
    score = (got[..., 5:] * got[..., 4:5] - scores).abs().max()
    best = scores.amax(dim=2)
    least = best.topk(min(MIN_ROWS, best.shape[1]), dim=1).values[:, -1:].clamp(max=MIN_SCORE)
    box = (got[..., :4] - expected[..., :4]).abs()[best >= least].max()
    return float(box), float(score)


def pair_up(a: Boxes, b: Boxes, limits: Limits, conf_thres: float) -> Parity:
    """The parity of final detections of one image, paired by class and overlap, the largest overlap first."""
    near = np.abs(a.xyxy[:, None] - b.xyxy[None]).max(axis=2) <= limits.box_px  # boxes without area have no overlap
    overlap = pairwise_iou(a.xyxy, b.xyxy) + near * (1 - np.abs(a.score[:, None] - b.score[None]))
    overlap *= a.label[:, None] == b.label[None]
    box = score = 0.0
    same, single_a, single_b = 0, set(range(len(a))), set(range(len(b)))
    for flat in (-overlap).flatten().argsort(kind="stable").tolist():
        i, j = divmod(flat, len(b))
        if overlap[i, j] < 0.5:
            break
        if i not in single_a or j not in single_b:
            continue
        single_a.discard(i)
        single_b.discard(j)
        box_error, score_error = float(np.abs(a.xyxy[i] - b.xyxy[j]).max()), float(abs(a.score[i] - b.score[j]))
        box, score = max(box, box_error), max(score, score_error)
        same += box_error <= limits.box_px and score_error <= limits.score
    paired, certain = len(a) - len(single_a), conf_thres + limits.score
    unpaired = sum(int((own.score[list(single)] > certain).sum()) for own, single in ((a, single_a), (b, single_b)))
    return Parity(box, score, same, paired + unpaired)
