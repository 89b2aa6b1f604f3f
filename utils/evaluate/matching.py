"""Matching of detections with ground truth: for precision and recall, their curves, and the confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from faster_coco_eval import mask

from utils.boxes import Boxes, pairwise_iou, xyxy2ltwh

MATCH_IOU = 0.5  # least IoU of a detection with its label, for precision and recall
RECALLS = np.linspace(0, 1, 101)  # COCO's, at which precision is read
STEPS = 1000  # confidences 0..1 at which the curves are drawn


class ClassMatches(NamedTuple):
    """One class: number of labels, (n,) scores of its detections, best first, (n,) whether each matches a label."""

    labels: int
    scores: np.ndarray
    hits: np.ndarray


def covered(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) largest fraction of each box of `a` (n, 4) that lies in one box of `b` (m, 4), xyxy; n, m may be 0."""
    fraction = mask.iou(xyxy2ltwh(a), xyxy2ltwh(b), [True] * len(b))  # COCO's overlap with crowds
    return np.reshape(fraction, (len(a), len(b))).max(axis=1, initial=0)


def match_greedily(boxes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(n,) row of the label that each box matches, -1: none. In order, each takes the free label it overlaps most.

    Args:
        boxes: (n, 4) xyxy, best score first. truth: (m, 4) xyxy of labels in the same frame; m may be 0.
    """
    matched = np.full(len(boxes), -1)
    if not len(truth):
        return matched
    iou = pairwise_iou(boxes, truth)
    for i in np.flatnonzero(iou.max(axis=1) >= MATCH_IOU):
        last = len(truth) - 1 - int(iou[i, ::-1].argmax())  # of equal overlaps COCO takes the last
        if iou[i, last] >= MATCH_IOU:
            matched[i] = last
            iou[:, last] = -1
    return matched


def average_precision(hits: np.ndarray, total: int) -> float:
    """AP of one class by COCO's rule: the mean at 101 recalls of the best precision at that recall or above.

    Args:
        hits: (n,) whether each detection matches one of the `total` labels (at least 1), best score first.
    """
    return float(precision_at_recalls(np.flatnonzero(hits) + 1, total).mean())


def precision_at_recalls(counts: np.ndarray, total: int) -> np.ndarray:
    """(101,) best precision at each of RECALLS or above, by COCO's rule.

    Args:
        counts: (n,) detections down to each right one, itself included. total: labels, at least 1.
    """
    right = np.arange(1, len(counts) + 1)
    envelope = np.append(np.maximum.accumulate((right / counts)[::-1])[::-1], 0.0)  # between right ones it only falls
    return envelope[np.searchsorted(right / total, RECALLS, side="left")]


def best_confidence(scores: list[np.ndarray], hits: list[np.ndarray], totals: list[int]) -> float:
    """The confidence where the mean F1 over classes is best (the highest of equal ones); inf without detections.

    Args:
        scores, hits: for each class (n,) scores, best first, and whether each matches a label. totals: its labels.
    """
    gains = []  # by how much each detection changes the F1 of its class
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
    """Curves of the classes that have labels, one row a class; all values in 0..1, at IoU 0.5.

    Attributes:
        names, classes: k names and indices. confidence: (STEPS,). precision, recall, f1: (k, STEPS), of the detections
            with at least that confidence; precision is NaN where there are none.
        recall_points: (101,). envelope: (k, 101) precision by COCO's rule at those recalls, whose mean is AP50.
    """

    names: list[str]
    classes: list[int]
    confidence: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    recall_points: np.ndarray
    envelope: np.ndarray


def confidence_curves(scores: np.ndarray, hits: np.ndarray, total: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1, each (STEPS,), of one class over confidences from 0 to 1.

    Args:
        scores, hits: (n,) best first, and whether each matches one of the `total` labels.
    """
    kept = np.searchsorted(-scores, -np.linspace(0, 1, STEPS), side="right")  # detections at or above each
    right = np.append(0, hits.cumsum())[kept]
    with np.errstate(invalid="ignore"):
        precision = right / kept
    return precision, right / total, 2 * right / (kept + total)


def confusion_pairs(found: Boxes, truth: Boxes, iou_thres: float) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of one image for a confusion matrix: (k,) rows of `found`, (k,) rows of `truth`, each at most once.

    Whatever their classes, the pairs that overlap most come first.

    Args:
        iou_thres: least IoU of a pair.
    """
    iou = pairwise_iou(found.xyxy, truth.xyxy)
    detection, label = np.nonzero(iou >= iou_thres)
    order = (-iou[detection, label]).argsort(kind="stable")
    pairs: list[tuple[int, int]] = []
    free_detection, free_label = np.ones(len(found), dtype=bool), np.ones(len(truth), dtype=bool)
    for i, j in zip(detection[order].tolist(), label[order].tolist(), strict=True):
        if free_detection[i] and free_label[j]:
            free_detection[i] = free_label[j] = False
            pairs.append((i, j))
    both = np.array(pairs, dtype=int).reshape(-1, 2)
    return both[:, 0], both[:, 1]
