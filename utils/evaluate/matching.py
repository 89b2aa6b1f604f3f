"""Which detection found which label: overlaps, greedy matching, curves over confidence, the confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MATCH_IOU = 0.5  # a detection is right from this overlap on, for precision and recall
STEPS = 1000  # confidences 0..1 at which the curves are drawn


def overlap(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n, m) shared areas of (n, 4) and (m, 4) xyxy boxes in one frame, and the areas (n,), (m,) of both."""
    corner = np.maximum(a[:, None, :2], b[None, :, :2])
    shared = (np.minimum(a[:, None, 2:], b[None, :, 2:]) - corner).clip(min=0).prod(axis=2)
    area_a, area_b = ((box[:, 2:] - box[:, :2]).clip(min=0).prod(axis=1) for box in (a, b))
    return shared, area_a, area_b


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 0 where `whole` is 0."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def pairwise_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, m) overlaps of (n, 4) and (m, 4) xyxy boxes in one frame; 0 where both are empty."""
    shared, area_a, area_b = overlap(a, b)
    return ratio(shared, area_a[:, None] + area_b[None] - shared)


def covered(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) largest part of each box of `a` that lies in one box of `b`; 0 without any."""
    shared, area_a, _ = overlap(a, b)
    return ratio(shared, np.broadcast_to(area_a[:, None], shared.shape)).max(axis=1, initial=0)


def match_greedily(boxes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(n,) bool: which boxes found a true one. Boxes choose in order, each the free one it overlaps most.

    Args:
        boxes: (n, 4) xyxy, best score first. truth: (m, 4) xyxy in the same frame.
    """
    found = np.zeros(len(boxes), dtype=bool)
    if not len(truth):
        return found
    iou = pairwise_iou(boxes, truth)
    for i in np.flatnonzero(iou.max(axis=1) >= MATCH_IOU):
        last = len(truth) - 1 - int(iou[i, ::-1].argmax())  # of equal overlaps COCO takes the last
        if iou[i, last] >= MATCH_IOU:
            found[i] = True
            iou[:, last] = -1
    return found


def best_confidence(scores: list[np.ndarray], hits: list[np.ndarray], totals: list[int]) -> float:
    """The confidence where the mean F1 over classes is best (the highest of equal ones); inf without detections.

    Args:
        scores, hits: for each class (n,) scores, best first, and whether each found a label. totals: its labels.
    """
    gains = []  # each detection changes the F1 of its class by so much
    for hit, total in zip(hits, totals, strict=True):
        f1 = 2 * np.cumsum(hit) / (np.arange(1, len(hit) + 1) + total)
        gains.append(np.diff(f1, prepend=0.0))
    score = np.concatenate(scores) if scores else np.empty(0)
    if not len(score):
        return float("inf")
    order = (-score).argsort(kind="stable")
    score, f1 = score[order], np.concatenate(gains)[order].cumsum().round(10)
    ends = np.flatnonzero(np.append(score[1:] != score[:-1], True))  # equal scores enter together
    return float(score[ends[f1[ends].argmax()]])


@dataclass(frozen=True)
class Curves:
    """Curves of the classes that have labels, one row a class; everything in 0..1, at IoU 0.5.

    confidence: (STEPS,). precision, recall, f1: (k, STEPS), of the detections with at least that confidence
    (precision is NaN where none is left). recall_points: (101,). envelope: (k, 101) precision by COCO's rule
    at those recalls, whose mean is AP50.
    """

    names: list[str]
    confidence: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    recall_points: np.ndarray
    envelope: np.ndarray


def confidence_curves(scores: np.ndarray, hits: np.ndarray, total: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1, each (STEPS,), of one class over confidences from 0 to 1.

    Args:
        scores, hits: (n,) best first, and whether each found one of the `total` labels.
    """
    kept = np.searchsorted(-scores, -np.linspace(0, 1, STEPS), side="right")  # detections at or above each
    right = np.append(0, hits.cumsum())[kept]
    with np.errstate(invalid="ignore"):
        precision = right / kept
    return precision, right / total, 2 * right / (kept + total)


def confusion(boxes: np.ndarray, labels: np.ndarray, iou_thres: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of one image for a confusion matrix: (k,) rows of `boxes` and (k,) rows of `labels`, each at most once.

    Whatever their classes, the pairs that overlap most come first.

    Args:
        boxes: (n, 4+) xyxy first. labels: (m, 5) class, xyxy. iou_thres: pairs overlap at least so much.
    """
    iou = pairwise_iou(boxes[:, :4], labels[:, 1:])
    found, true = np.nonzero(iou >= iou_thres)
    order = (-iou[found, true]).argsort(kind="stable")
    pairs: list[tuple[int, int]] = []
    free_box, free_label = np.ones(len(boxes), dtype=bool), np.ones(len(labels), dtype=bool)
    for i, j in zip(found[order].tolist(), true[order].tolist(), strict=True):
        if free_box[i] and free_label[j]:
            free_box[i] = free_label[j] = False
            pairs.append((i, j))
    both = np.array(pairs, dtype=int).reshape(-1, 2)
    return both[:, 0], both[:, 1]
