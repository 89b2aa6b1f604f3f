"""Suspected label errors: where detections and labels contradict each other, the most suspicious first.

The idea of scoring each label by the best detection that supports or contradicts it is that of Tkachenko et al. 2023,
arXiv:2309.00832; the scores are this project's. How strong a contradiction must be depends on the detector and the
data, so it is read from them: a contradiction is suspicious if a label error would look like this and little else does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from utils.boxes import Boxes, Truth, pairwise_iou
from utils.evaluate.labeled import labeled_shares
from utils.evaluate.matching import MATCH_IOU, covered
from utils.evaluate.verdicts import matched_labels

MISSING, SWAPPED, SHIFTED, UNSUPPORTED = "missing label", "other class", "shifted box", "unsupported label"
LOWEST = 0.05  # least confidence of a detection that is compared with labels
APART, SAME = 0.4, 0.7  # IoU up to which boxes are two objects, from which on they are one
NEAR = 0.2  # least IoU of a detection that supports a label at all
INSIDE = 0.8  # part of a detection that lies in a label of its class from which on it is a part of that object
PRIOR = 5  # detections by which the scores themselves count among those of right detections
# The share of labels that is assumed to have each error. Only their ratios decide the order; a label that nothing
# supports is more often an object that the detector misses.
RATE = {SWAPPED: 0.02, SHIFTED: 0.02, MISSING: 0.02, UNSUPPORTED: 0.01}
BAND = 0.1  # contradictions whose strengths differ less are alike
FEW = 0.01  # of the labels: right ones that are contradicted at any strength, where none were seen


@dataclass(frozen=True)
class Suspect:
    """A label, or a place without one, that detections contradict.

    Attributes:
        score: how suspicious it is, 0..1: the chance of an error, see judged. strength: of the contradiction itself,
            0..1, however common it is. kind: one of the four above. image: index of the image.
        row: row of the label; -1: a missing one. label: its class; -1 likewise. suggested: class that was found; -1:
            none. xyxy: (4,) corner pixels of the label, or of the detection. found: those of the detection, or None.
    """

    score: float
    strength: float
    kind: str
    image: int
    row: int
    label: int
    suggested: int
    xyxy: np.ndarray
    found: np.ndarray | None


def find_suspects(found: Sequence[Boxes], truth: Sequence[Truth], names: Mapping[int, str]) -> list[Suspect]:
    """Every label of all images, and detections without one, the most suspicious first; none without detections.

    Args:
        found: detections of each image, with a confidence threshold of at most LOWEST. truth: labels of each image, in
            the same frame.
    """
    if not any((boxes.score >= LOWEST).any() for boxes in found):
        return []
    usual = usual_scores(found, truth, names)
    images = [Compared.of(boxes, labels, usual) for boxes, labels in zip(found, truth, strict=True)]
    shares = labeled_shares(images)
    pairs = enumerate(zip(images, shares, strict=True))
    contradictions = [suspect for k, (image, share) in pairs for suspect in image.suspects(k, share)]
    count = sum(int((~labels.crowd).sum()) for labels in truth)
    return sorted(judged(contradictions, count), key=lambda suspect: -suspect.score)


def judged(contradictions: Sequence[Suspect], labels: int) -> list[Suspect]:
    """The same, with the chance of an error as score instead of what it is made from, see Compared.suspects.

    The odds are the number of errors with this strength over that of right labels with it. Errors are assumed to be
    RATE of the labels. Strengths of those that contradict labels have the density 2 * strength, since half of all right
    detections are trusted by 0.7 or more; right labels are as the other contradictions of the kind are. Detections
    without a label have the odds of being labeled themselves, which is the ratio of both.
    """
    score = np.array([suspect.score for suspect in contradictions])
    kinds = np.array([suspect.kind for suspect in contradictions])
    odds = np.zeros(len(score))
    for kind, rate in RATE.items():
        own = score[kinds == kind]
        if kind == MISSING:
            odds[kinds == kind] = rate * own / np.maximum(1 - own, 1e-6)
            continue
        ordered = np.sort(own)
        alike = np.searchsorted(ordered, own + BAND, side="right") - np.searchsorted(ordered, own - BAND, side="left")
        width = np.minimum(own + BAND, 1) - np.maximum(own - BAND, 0)
        density = (alike - 1) / width / max(labels, 1)
        odds[kinds == kind] = rate * 2 * own / (density + FEW)
    chance = odds / (1 + odds)
    return [replace(suspect, score=float(p)) for suspect, p in zip(contradictions, chance, strict=True)]


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


@dataclass(frozen=True)
class Compared:
    """The n detections and m labels of one image.

    Attributes:
        found: with at least LOWEST, best first. truth: labels. trusted: (n,) see trust. best: (n,) see best_of_object.
        match: (n,) row of the label that each detection matches, see matched_labels; -1: none.
        iou: (n, m). crowded: (n,) whether it lies in a crowd label.
    """

    found: Boxes
    truth: Truth
    trusted: np.ndarray
    best: np.ndarray
    match: np.ndarray
    iou: np.ndarray
    crowded: np.ndarray

    @classmethod
    def of(cls, found: Boxes, truth: Truth, usual: Mapping[int, np.ndarray]) -> Self:
        """From the detections of an image, in any order and with any score."""
        found = found[found.score >= LOWEST]
        found = found[(-found.score).argsort(kind="stable")]
        iou = pairwise_iou(found.xyxy.astype(np.float64), truth.xyxy.astype(np.float64))
        crowded = covered(found.xyxy, truth.xyxy[truth.crowd]) >= MATCH_IOU
        match = matched_labels(found, truth)
        return cls(found, truth, trust(found, usual), best_of_object(found), match, iou, crowded)

    def suspects(self, image: int, share: np.ndarray) -> Iterator[Suspect]:
        """The labels, their score the strength, and the detections without one, their score the share of labeled ones.

        Args:
            share: (n,) of the detections like each, those that have a label.
        """
        explained = set[int]()
        for suspect, row in self.labels(image):
            if row >= 0 and suspect.row not in self.match:
                explained.add(row)
            yield suspect
        for i in np.flatnonzero(self.alone()).tolist():
            if i not in explained:
                box, label = self.found.xyxy[i], int(self.found.label[i])
                apart = 1 - min(max((self.iou[i].max(initial=0) - 0.1) / (APART - 0.1), 0), 1)
                strength = float(self.trusted[i] * apart)
                yield Suspect(float(share[i]), strength, MISSING, image, -1, -1, label, box, box)

    def labels(self, image: int) -> Iterator[tuple[Suspect, int]]:
        """Each label, and the row of the detection that contradicts it; -1: none."""
        found, truth, iou, trusted = self.found, self.truth, self.iou, self.trusted[:, None]
        same = found.label[:, None] == truth.label[None]
        agreed, own = agreement(iou), np.where(same, iou, 0)
        nearest = own.max(axis=1, initial=0)[:, None] == own  # a detection speaks for the place of one label only
        swapped = trusted * (self.best[:, None] & ~same) * agreed
        shifted = trusted * (self.best[:, None] & same & nearest & (iou >= 0.1)) * (1 - agreed)
        supported = (trusted * same * agreed).max(axis=0, initial=0)
        near = (trusted * (iou >= NEAR)).max(axis=0, initial=0)
        for j in np.flatnonzero(~truth.crowd).tolist():
            doubt = 1 - supported[j]
            strengths = {
                SWAPPED: swapped[:, j].max(initial=0) * doubt,
                SHIFTED: shifted[:, j].max(initial=0) * doubt,
                UNSUPPORTED: (1 - near[j]) * doubt,
            }
            kind = max(strengths, key=lambda key: strengths[key] * RATE[key])
            row = -1 if kind == UNSUPPORTED else int((swapped if kind == SWAPPED else shifted)[:, j].argmax())
            suggested, place = (-1, None) if row < 0 else (int(found.label[row]), found.xyxy[row])
            label, strength = int(truth.label[j]), float(strengths[kind])
            yield Suspect(strength, strength, kind, image, j, label, suggested, truth.xyxy[j], place), row

    def alone(self) -> np.ndarray:
        """(n,) whether a detection is the best of an object that has no label."""
        found, truth = self.found, self.truth
        alone = self.best & (self.iou.max(axis=1, initial=0) < APART) & ~self.crowded
        for c in np.unique(found.label).tolist():  # a part of a labeled object is no other object
            own = found.label == c
            alone[own] &= covered(found.xyxy[own], truth.xyxy[truth.label == c]) < INSIDE
        return alone


def best_of_object(found: Boxes) -> np.ndarray:
    """(n,) bool: whether no better detection, of any class, overlaps this one by half; `found` is best first."""
    iou = pairwise_iou(found.xyxy.astype(np.float64), found.xyxy.astype(np.float64))
    best = np.ones(len(found), dtype=bool)
    for i in range(len(found)):
        best[i] = not (iou[i, :i][best[:i]] >= MATCH_IOU).any()
    return best
