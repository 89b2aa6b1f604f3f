"""Suspected label errors: where confident detections and labels contradict each other, the most suspicious first.

The idea of scoring each label by the best detection that supports or contradicts it is that of Tkachenko et al. 2023,
arXiv:2309.00832; the scores are this project's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from utils.boxes import Boxes, Truth, pairwise_iou
from utils.evaluate.matching import MATCH_IOU, covered

MISSING, SWAPPED, SHIFTED, UNSUPPORTED = "missing label", "other class", "shifted box", "unsupported label"
LOWEST = 0.05  # least confidence of a detection that is compared with labels
APART, SAME = 0.4, 0.7  # IoU up to which boxes are two objects, from which on they are one
NEAR = 0.2  # least IoU of a detection that supports a label at all
INSIDE = 0.8  # part of a detection that lies in a label of its class from which on it is a part of that object
PRIOR = 5  # detections by which the scores themselves count among those of right detections
# How much a contradiction weighs: detectors find objects that nobody labeled on purpose, and miss small ones, more
# often than they find another class or place for a labeled object.
WEIGHT = {SWAPPED: 1.0, SHIFTED: 1.0, MISSING: 0.4, UNSUPPORTED: 0.3}


@dataclass(frozen=True)
class Suspect:
    """A label, or a place without one, that detections contradict.

    Attributes:
        score: how suspicious it is, 0..1. kind: one of the four above. image: index of the image.
        row: row of the label; -1: a missing one. label: its class; -1 likewise. suggested: class that was found; -1:
            none. xyxy: (4,) corner pixels of the label, or of the detection. found: those of the detection, or None.
    """

    score: float
    kind: str
    image: int
    row: int
    label: int
    suggested: int
    xyxy: np.ndarray
    found: np.ndarray | None


def find_suspects(found: Sequence[Boxes], truth: Sequence[Truth], names: Mapping[int, str]) -> list[Suspect]:
    """Every label of all images, and every detection without one, the most suspicious first.

    Args:
        found: detections of each image, with a confidence threshold of at most LOWEST. truth: labels of each image, in
            the same frame.
    """
    usual = usual_scores(found, truth, names)
    suspects = [
        suspect
        for image, (boxes, labels) in enumerate(zip(found, truth, strict=True))
        for suspect in image_suspects(image, boxes, labels, usual)
    ]
    return sorted(suspects, key=lambda suspect: -suspect.score)


def usual_scores(found: Sequence[Boxes], truth: Sequence[Truth], names: Mapping[int, str]) -> dict[int, np.ndarray]:
    """Class -> ascending scores of the best detections of labels of that class, by which a score is called high."""
    best: dict[int, list[float]] = {c: [] for c in names}
    for boxes, labels in zip(found, truth, strict=True):
        iou = pairwise_iou(boxes.xyxy.astype(np.float64), labels.xyxy.astype(np.float64))
        for j, c in enumerate(labels.label.tolist()):
            support = boxes.score[(boxes.label == c) & (iou[:, j] >= MATCH_IOU)]
            if len(support) and c in best:
                best[c].append(float(support.max()))
    return {c: np.sort(np.array(scores)) for c, scores in best.items()}


def trust(boxes: Boxes, usual: Mapping[int, np.ndarray]) -> np.ndarray:
    """(n,) 0..1: how high a score is among those of right detections of its class; the score itself if there are none.

    The square root of the share of them that are lower: half of all right detections are trusted by 0.7 or more. Of few
    of them the score itself is a part.
    """
    shares = [
        (np.searchsorted(usual[c], score, side="right") + PRIOR * score) / (len(usual[c]) + PRIOR)
        if len(usual.get(c, ()))
        else score**2
        for c, score in zip(boxes.label.tolist(), boxes.score.tolist(), strict=True)
    ]
    return np.sqrt(np.array(shares, dtype=np.float64))


def agreement(iou: np.ndarray) -> np.ndarray:
    """0 where boxes are two objects, 1 where they are one, linear between."""
    return np.clip((iou - APART) / (SAME - APART), 0, 1)


def image_suspects(image: int, found: Boxes, truth: Truth, usual: Mapping[int, np.ndarray]) -> Iterator[Suspect]:
    """The labels of one image, and the detections without one."""
    found = found[found.score >= LOWEST]
    found = found[(-found.score).argsort(kind="stable")]
    trusted, best = trust(found, usual), best_of_object(found)
    iou = pairwise_iou(found.xyxy.astype(np.float64), truth.xyxy.astype(np.float64))
    same = found.label[:, None] == truth.label[None]
    agreed, own = agreement(iou), np.where(same, iou, 0)
    nearest = own.max(axis=1, initial=0)[:, None] == own  # a detection speaks for the place of one label only
    swapped = trusted[:, None] * (best[:, None] & ~same) * agreed
    shifted = trusted[:, None] * (best[:, None] & same & nearest & (iou >= 0.1)) * (1 - agreed)
    supported = (trusted[:, None] * same * agreed).max(axis=0, initial=0)
    near = (trusted[:, None] * (iou >= NEAR)).max(axis=0, initial=0)
    explained = set[int]()
    for j in np.flatnonzero(~truth.crowd).tolist():
        doubt = 1 - supported[j]
        scores = {
            SWAPPED: WEIGHT[SWAPPED] * swapped[:, j].max(initial=0) * doubt,
            SHIFTED: WEIGHT[SHIFTED] * shifted[:, j].max(initial=0) * doubt,
            UNSUPPORTED: WEIGHT[UNSUPPORTED] * (1 - near[j]) * doubt,
        }
        kind = max(scores, key=lambda key: scores[key])
        row = None if kind == UNSUPPORTED else int((swapped if kind == SWAPPED else shifted)[:, j].argmax())
        if row is not None:
            explained.add(row)
        suggested, place = (-1, None) if row is None else (int(found.label[row]), found.xyxy[row])
        yield Suspect(float(scores[kind]), kind, image, j, int(truth.label[j]), suggested, truth.xyxy[j], place)
    alone = best & (iou.max(axis=1, initial=0) < APART)
    alone &= covered(found.xyxy, truth.xyxy[truth.crowd]) < MATCH_IOU
    for c in np.unique(found.label).tolist():  # a part of a labeled object is no other object
        own = found.label == c
        alone[own] &= covered(found.xyxy[own], truth.xyxy[truth.label == c]) < INSIDE
    for i in np.flatnonzero(alone).tolist():
        if i not in explained:
            apart = 1 - np.clip((iou[i].max(initial=0) - 0.1) / (APART - 0.1), 0, 1)
            score = WEIGHT[MISSING] * trusted[i] * apart
            yield Suspect(float(score), MISSING, image, -1, -1, int(found.label[i]), found.xyxy[i], found.xyxy[i])


def best_of_object(found: Boxes) -> np.ndarray:
    """(n,) bool: whether no better detection, of any class, overlaps this one by half; `found` is best first."""
    iou = pairwise_iou(found.xyxy.astype(np.float64), found.xyxy.astype(np.float64))
    best = np.ones(len(found), dtype=bool)
    for i in range(len(found)):
        best[i] = not (iou[i, :i][best[:i]] >= MATCH_IOU).any()
    return best
