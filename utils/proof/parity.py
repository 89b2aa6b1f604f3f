"""How far the output of an exported file is from PyTorch's."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torchvision.ops import box_iou

from utils.nms import non_max_suppression

LIKELY = 0.01  # score of a row whose box is compared; at least BEST rows a picture are
BEST = 100


@dataclass(frozen=True)
class Limits:
    """The most that may differ: pixels, score; the least share of final detections that must be the same."""

    box_px: float
    score: float
    same: float


LIMITS = {"float32": Limits(0.1, 1e-3, 1.0), "float16": Limits(4.0, 0.03, 0.9)}


@dataclass(frozen=True)
class Parity:
    """Largest differences over all pictures, and how many final detections are `same` of those in `all`."""

    box_px: float
    score: float
    same: int
    all: int

    def within(self, limits: Limits) -> bool:
        return (
            self.box_px <= limits.box_px and self.score <= limits.score and self.same >= limits.same * self.all
        )  # NaN fails


def compare(
    expected: Tensor, got: Tensor, limits: Limits, conf_thres: float = 0.25, iou_thres: float = 0.45, max_det: int = 300
) -> Parity:
    """PyTorch's decoded rows (B, N, 5+nc) against a file's, or against the rows of its final boxes (B, D, 5+nc).

    With equally many rows the scores of all of them are compared, and the boxes of those that are likely or among the
    best. Otherwise scores and boxes of the final detections that pair up.
    A detection whose score is so close to `conf_thres` that `limits` lets it fall on the other side counts for neither.
    """
    final = [non_max_suppression(rows, conf_thres, iou_thres, max_det=max_det) for rows in (expected, got)]
    pairs = [match(a, b, limits, conf_thres) for a, b in zip(*final, strict=True)]
    same, total = sum(p.same for p in pairs), sum(p.all for p in pairs)
    if expected.shape == got.shape:
        box, score = row_errors(expected, got)
    else:
        box, score = max((p.box_px for p in pairs), default=0.0), max((p.score for p in pairs), default=0.0)
    return Parity(box, score, same, total)


def row_errors(expected: Tensor, got: Tensor) -> tuple[float, float]:
    """(pixels, score) by which rows differ at most."""
    scores = expected[..., 5:] * expected[..., 4:5]
    score = (got[..., 5:] * got[..., 4:5] - scores).abs().max()
    best = scores.amax(dim=2)
    least = best.topk(min(BEST, best.shape[1]), dim=1).values[:, -1:].clamp(max=LIKELY)
    box = (got[..., :4] - expected[..., :4]).abs()[best >= least].max()
    return float(box), float(score)


def match(a: Tensor, b: Tensor, limits: Limits, conf_thres: float) -> Parity:
    """Final detections (n, 6) of one picture paired by class and overlap, the best overlap first."""
    sure_a, sure_b = (d[:, 4] > conf_thres + limits.score for d in (a, b))
    near = (a[:, None, :4] - b[None, :, :4]).abs().amax(dim=2) <= limits.box_px  # boxes without area overlap nothing
    near = near * (1 - (a[:, None, 4] - b[None, :, 4]).abs())
    iou = (box_iou(a[:, :4], b[:, :4]).nan_to_num(0.0) + near) * (a[:, None, 5] == b[None, :, 5])
    box = score = 0.0
    same, left_a, left_b = 0, set(range(len(a))), set(range(len(b)))
    order = iou.flatten().argsort(descending=True)[: len(a) * len(b)].tolist() if iou.numel() else []
    for flat in order:
        i, j = divmod(flat, len(b))
        if iou[i, j] < 0.5:
            break
        if i not in left_a or j not in left_b:
            continue
        left_a.discard(i)
        left_b.discard(j)
        box_error, score_error = float((a[i, :4] - b[j, :4]).abs().max()), float((a[i, 4] - b[j, 4]).abs())
        box, score = max(box, box_error), max(score, score_error)
        same += box_error <= limits.box_px and score_error <= limits.score
    paired = len(a) - len(left_a)
    lost = sum(bool(sure_a[i]) for i in left_a) + sum(bool(sure_b[j]) for j in left_b)
    return Parity(box, score, same, paired + lost)
