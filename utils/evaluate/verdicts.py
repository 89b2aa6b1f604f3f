"""A verdict on every label and every detection, and the mAP50 that correcting each kind of error would give.

Source of the kinds and of the corrections: Bolya et al. 2020, arXiv:2008.08115.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np

from utils.boxes import Boxes, Truth, pairwise_iou
from utils.evaluate.matching import MATCH_IOU, average_precision, covered, match_greedily
from utils.evaluate.metrics import DetectionMetrics

NEAR_IOU = 0.1  # a detection that overlaps a label less has nothing to do with it


class Verdict(IntEnum):
    """What a detection or a label is, at an IoU of 0.5."""

    RIGHT = 0  # a detection matches a label of its class
    WRONG_CLASS = 1  # at the place of a label of another class
    BADLY_PLACED = 2  # near a label of its class: IoU 0.1..0.5
    BOTH = 3  # near a label of another class
    DUPLICATE = 4  # at the place of a label that a better detection has matched
    BACKGROUND = 5  # near no label
    MISSED = 6  # a label that no detection is about
    IGNORED = 7  # a crowd label, or a detection in one


NAMES = {
    Verdict.RIGHT: "right",
    Verdict.WRONG_CLASS: "wrong class",
    Verdict.BADLY_PLACED: "badly placed",
    Verdict.BOTH: "wrong class and badly placed",
    Verdict.DUPLICATE: "duplicate",
    Verdict.BACKGROUND: "background",
    Verdict.MISSED: "missed",
    Verdict.IGNORED: "ignored",
}
ERRORS = tuple(verdict for verdict in Verdict if verdict not in (Verdict.RIGHT, Verdict.IGNORED))


@dataclass(frozen=True)
class ImageVerdicts:
    """The verdicts on one image.

    Attributes:
        detection: (n,) Verdict of each detection. about: (n,) row of the label that it is about; -1: none.
        label: (m,) Verdict of each label. by: (m,) row of the detection that decided it, the best one; -1: none.
    """

    detection: np.ndarray
    about: np.ndarray
    label: np.ndarray
    by: np.ndarray


def judge_image(found: Boxes, truth: Truth) -> ImageVerdicts:
    """The verdicts on one image, all boxes in one frame; detections compete class by class, best score first.

    Args:
        found, truth: n and m boxes; each may be none.
    """
    iou = pairwise_iou(found.xyxy.astype(np.float64), truth.xyxy.astype(np.float64))
    iou[:, truth.crowd] = 0
    same = found.label[:, None] == truth.label[None]
    own, other = np.where(same, iou, 0), np.where(same, 0, iou)
    about = matched_labels(found, truth)
    kinds = np.full(len(found), Verdict.BACKGROUND, dtype=np.int64)
    kinds[about >= 0] = Verdict.RIGHT
    rest = np.flatnonzero(about < 0)
    best_own, best_other = (side[rest].max(axis=1, initial=0) for side in (own, other))
    rules = (  # the first that holds
        (best_own >= MATCH_IOU, Verdict.DUPLICATE, own),
        (best_other >= MATCH_IOU, Verdict.WRONG_CLASS, other),
        (best_own >= NEAR_IOU, Verdict.BADLY_PLACED, own),
        (best_other >= NEAR_IOU, Verdict.BOTH, other),
    )
    for holds, verdict, overlap in reversed(rules):
        rows = rest[holds]
        kinds[rows], about[rows] = verdict, overlap[rows].argmax(axis=1) if len(rows) else -1
    for c in np.unique(truth.label[truth.crowd]).tolist():
        rows = rest[found.label[rest] == c]
        rows = rows[covered(found.xyxy[rows], truth.xyxy[truth.crowd & (truth.label == c)]) >= MATCH_IOU]
        kinds[rows], about[rows] = Verdict.IGNORED, -1
    return ImageVerdicts(kinds, about, *judge_labels(found, truth, kinds, about))


def matched_labels(found: Boxes, truth: Truth) -> np.ndarray:
    """(n,) row of the label that each detection matches at IoU 0.5 as COCO has it; -1: none."""
    about = np.full(len(found), -1)
    for c in np.unique(found.label).tolist():
        rows = np.flatnonzero(found.label == c)
        rows = rows[(-found.score[rows]).argsort(kind="stable")]
        labels = np.flatnonzero((truth.label == c) & ~truth.crowd)
        match = match_greedily(found.xyxy[rows], truth.xyxy[labels])
        about[rows[match >= 0]] = labels[match[match >= 0]]
    return about


def judge_labels(found: Boxes, truth: Truth, kinds: np.ndarray, about: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(m,) verdict of each label and (m,) row of the detection that decided it, see ImageVerdicts."""
    label, by = np.full(len(truth), Verdict.MISSED, dtype=np.int64), np.full(len(truth), -1)
    label[truth.crowd] = Verdict.IGNORED
    worst_first = (Verdict.BADLY_PLACED, Verdict.WRONG_CLASS, Verdict.RIGHT)
    for verdict in worst_first:
        rows = np.flatnonzero(kinds == verdict)
        rows = rows[found.score[rows].argsort(kind="stable")]  # the best last
        label[about[rows]], by[about[rows]] = verdict, rows
    return label, by


@dataclass(frozen=True)
class ErrorAnalysis:
    """The errors of a detector on a split.

    Attributes:
        names: class index -> name. found, truth: of each image, boxes in its pixels.
        confidence: detections below are no errors that a user sees; the corrections count all of them.
    """

    names: Mapping[int, str]
    found: Sequence[Boxes]
    truth: Sequence[Truth]
    confidence: float

    @classmethod
    def of(cls, detections: DetectionMetrics) -> ErrorAnalysis:
        """The errors at the confidence of the best F1, the one that is stored with the weights."""
        chosen = detections.thresholds()
        confidence = chosen.confidence if chosen else detections.best_confidence
        return cls(detections.names, detections.found, detections.truth, confidence)

    @cached_property
    def shown(self) -> list[Boxes]:
        """The detections of each image with at least `confidence`."""
        return [boxes[boxes.score >= self.confidence] for boxes in self.found]

    @cached_property
    def verdicts(self) -> list[ImageVerdicts]:
        """Of each image, on `shown` and its labels."""
        return [judge_image(found, truth) for found, truth in zip(self.shown, self.truth, strict=True)]

    @cached_property
    def all_verdicts(self) -> list[ImageVerdicts]:
        """Of each image, on all detections of any confidence and its labels."""
        return [judge_image(found, truth) for found, truth in zip(self.found, self.truth, strict=True)]

    def counts(self) -> dict[Verdict, tuple[int, int]]:
        """Verdict -> number of detections, number of labels."""
        sides = [np.concatenate([getattr(v, side) for v in self.verdicts] or [[]]) for side in ("detection", "label")]
        return {verdict: (int((sides[0] == verdict).sum()), int((sides[1] == verdict).sum())) for verdict in Verdict}

    def map50(self) -> float:
        """Mean AP at IoU 0.5 over the classes with labels; 0 without any."""
        return mean_ap(self.rows(None), self.totals())

    def gains(self) -> dict[Verdict, float]:
        """Verdict -> how much mAP50 would rise if all errors of this kind were corrected and the others stayed.

        A wrong class or place is corrected in the best detection about a label without a right one; others about the
        same label, duplicates and those near no label are removed; labels that are missed do not count.
        """
        base, totals = self.map50(), self.totals()
        gains: dict[Verdict, float] = {}
        for verdict in ERRORS:
            left = totals - self.missed() if verdict == Verdict.MISSED else totals
            gains[verdict] = mean_ap(self.rows(verdict), left) - base
        return gains

    def totals(self) -> np.ndarray:
        """(nc,) labels of each class, in the order of names."""
        labels = np.concatenate([truth.label[~truth.crowd] for truth in self.truth] or [[]])
        return np.array([(labels == c).sum() for c in self.names], dtype=np.int64)

    def missed(self) -> np.ndarray:
        """(nc,) labels of each class that no detection of any confidence is about."""
        pairs = zip(self.truth, self.all_verdicts, strict=True)
        labels = np.concatenate([truth.label[v.label == Verdict.MISSED] for truth, v in pairs] or [[]])
        return np.array([(labels == c).sum() for c in self.names], dtype=np.int64)

    def rows(self, corrected: Verdict | None) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each class (n,) scores, best first, and whether each is right, with one kind of error `corrected`."""
        parts: list[list[np.ndarray]] = [[], [], []]
        for found, truth, verdicts in zip(self.found, self.truth, self.all_verdicts, strict=True):
            for part, values in zip(parts, correct(found, truth, verdicts, corrected), strict=True):
                part.append(values)
        label, score, right = (np.concatenate(part or [np.zeros(0)]) for part in parts)
        order = (-score).argsort(kind="stable")
        label, score, right = label[order], score[order], right[order].astype(bool)
        return [(score[label == c], right[label == c]) for c in self.names]


def correct(found: Boxes, truth: Truth, verdicts: ImageVerdicts, kind: Verdict | None) -> Iterator[np.ndarray]:
    """Of the detections that are left: (n,) class, (n,) score, (n,) whether right, with errors of `kind` corrected."""
    wrong = (verdicts.detection == kind) & (kind is not None)
    label, right = found.label.copy(), verdicts.detection == Verdict.RIGHT
    keep = (verdicts.detection != Verdict.IGNORED) & ~wrong
    if kind in (Verdict.WRONG_CLASS, Verdict.BADLY_PLACED):
        rows = verdicts.by[(verdicts.label == kind)]  # the best about each label that has no right one
        keep[rows] = right[rows] = True
        label[rows] = truth.label[verdicts.about[rows]]
    yield from (label[keep], found.score[keep], right[keep])


def mean_ap(rows: Sequence[tuple[np.ndarray, np.ndarray]], totals: np.ndarray) -> float:
    """Mean over the classes with labels of their AP; 0 without any."""
    found = [average_precision(right, int(n)) for (_, right), n in zip(rows, totals.tolist(), strict=True) if n]
    return float(np.mean(found)) if found else 0.0
