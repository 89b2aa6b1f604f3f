"""Metrics: COCO's average precision and recall, precision and recall at the best F1, confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from utils.boxes import Boxes, Truth
from utils.evaluate.coco import CocoResult, coco_annotations, coco_evaluation, figures_without_detections
from utils.evaluate.groups import Matching, label_counts, match_all
from utils.evaluate.matching import (
    MATCH_IOU,
    STEPS,
    ClassMatches,
    Curves,
    best_confidence,
    confidence_curves,
    confusion_pairs,
    covered,
)
from utils.evaluate.thresholds import Calibration, calibration, choose_thresholds
from utils.loss import LossParts
from utils.thresholds import Thresholds

COLUMNS = ("Images", "Instances", "P", "R", "mAP50", "mAP50-95")


@dataclass(frozen=True)
class Scores:
    """Counts of images and labels, and fractions 0..1 (all 0 where there are no labels)."""

    images: int
    instances: int
    precision: float
    recall: float
    map50: float
    map50_95: float


@dataclass(frozen=True)
class ClassMetrics(Scores):
    """One class; `images` counts those with a label of it."""

    name: str


@dataclass(frozen=True)
class Metrics(Scores):
    """Means over the classes that have labels, fractions 0..1; `per_class` holds every class, in the order of names.

    Attributes:
        speed_ms: milliseconds per image of each stage. loss: validation loss, where one was computed.
        thresholds: the confidence thresholds near the best F1; None without right detections.
        calibration: of the confidences; None without detections.
        coco: COCO's figures: AP, AP50, AP75; APs, APm, APl of small, medium and large labels (see coco.AREAS); AR1,
            AR10 and AR of at most 1, 10 and max_det detections of a class in an image; ARs, ARm, ARl. -1: no such
            labels.
    """

    per_class: list[ClassMetrics]
    speed_ms: dict[str, float] = field(default_factory=dict)
    loss: LossParts | None = None
    coco: dict[str, float] = field(default_factory=dict)
    thresholds: Thresholds | None = None
    calibration: Calibration | None = None

    @property
    def fitness(self) -> float:
        """0.1 mAP50 + 0.9 mAP50-95, by which the best checkpoint is chosen."""
        return 0.1 * self.map50 + 0.9 * self.map50_95

    def table(self) -> str:
        """A header, the row 'all', and a row for every class with instances."""
        rows: list[tuple[str, Scores]] = [("all", self)]
        rows += [(c.name, c) for c in self.per_class if c.instances]
        width = max(len("Class"), *(len(name) for name, _ in rows))
        lines = [f"{'Class':>{width}}" + "".join(f"{column:>11}" for column in COLUMNS)]
        for name, m in rows:
            scores = "".join(f"{value:>11.3f}" for value in (m.precision, m.recall, m.map50, m.map50_95))
            lines.append(f"{name:>{width}}{m.images:>11}{m.instances:>11}{scores}")
        return "\n".join(lines)

    def coco_table(self) -> str:
        """Two lines of COCO's figures; a dash where no labels are of that size."""
        words = [f"{name} {value:.3f}" if value >= 0 else f"{name} -" for name, value in self.coco.items()]
        return "\n".join("  ".join(word for word in words if word.startswith(kind)) for kind in ("AP", "AR"))

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and dicts, for JSON; `per_class` is keyed by name."""
        keys = ("map50", "map50_95", "precision", "recall", "images", "instances")
        classes = [asdict(c) for c in self.per_class]
        return {key: getattr(self, key) for key in keys} | {
            "per_class": {c.pop("name"): c for c in classes},
            "speed_ms": dict(self.speed_ms),
            "coco": dict(self.coco),
            "thresholds": self.thresholds.as_dict() if self.thresholds else None,
            "calibration": self.calibration.as_dict() if self.calibration else None,
        }

    def on(self, split: str) -> Metrics:
        """The same, with the name of the split in its thresholds, see split_name."""
        return replace(self, thresholds=self.thresholds and replace(self.thresholds, data=split))


class DetectionMetrics:
    """Collects detections and labels image by image, then computes metrics, curves and the confusion matrix of all.

    Detections are matched with labels once, when the first of these is asked for.

    Args:
        names: class index -> name. max_det: of each class in an image only the best so many detections count.
    """

    def __init__(self, names: dict[int, str], max_det: int = 300):
        self.names = names
        self.max_det = max_det
        self.sizes: list[tuple[int, int]] = []
        self.found: list[Boxes] = []
        self.truth: list[Truth] = []

    def update(self, found: Boxes, truth: Truth, size: tuple[int, int]) -> None:
        """Add an image of `size` (height, width); all boxes in its pixels.

        Raises:
            RuntimeError: something was computed already.
        """
        if {"matching", "counts"} & vars(self).keys():
            raise RuntimeError("metrics were computed already, expected all images before")
        self.sizes.append((int(size[0]), int(size[1])))
        self.found.append(Boxes(found.xyxy.astype(np.float64), found.label, found.score.astype(np.float64)))
        self.truth.append(truth)

    def arrange(self, order: Sequence[int]) -> None:
        """Put the images in `order`, indices as they are now: COCO ranks equal scores by the order of the images."""
        self.sizes = [self.sizes[i] for i in order]
        self.found = [self.found[i] for i in order]
        self.truth = [self.truth[i] for i in order]

    def compute(self) -> Metrics:
        """The metrics of all images; zeros without labels or without detections."""
        ap50, ap = self.average_precision()
        precision, recall = self.precision_recall()
        per_class = []
        for k, name in enumerate(self.names.values()):
            count, images = (int(numbers[k]) for numbers in self.counts)
            p, r, at50, mean_ap = (float(values[k]) for values in (precision, recall, ap50, ap))
            per_class.append(ClassMetrics(images, count, p, r, at50, mean_ap, name=name))
        labeled = [c for c in per_class if c.instances]

        def mean(key: str) -> float:
            return float(np.mean([getattr(c, key) for c in labeled])) if labeled else 0.0

        return Metrics(
            images=len(self.sizes),
            instances=sum(c.instances for c in labeled),
            precision=mean("precision"),
            recall=mean("recall"),
            map50=mean("map50"),
            map50_95=mean("map50_95"),
            per_class=per_class,
            coco=self.coco_figures(),
            thresholds=self.thresholds(),
            calibration=self.calibration,
        )

    def thresholds(self, precision: float | None = None, recall: float | None = None) -> Thresholds | None:
        """The confidence thresholds near the best F1, or of a wanted precision or recall; see choose_thresholds."""
        return choose_thresholds(self.class_matches, list(self.names.values()), precision, recall)

    @cached_property
    def calibration(self) -> Calibration | None:
        """The calibration of the confidences; None without detections."""
        return calibration(self.class_matches)

    @cached_property
    def best_confidence(self) -> float:
        """The confidence of the best mean F1 at IoU 0.5 on these images; inf without detections. See thresholds."""
        classes = list(self.class_matches.values())
        return best_confidence([m.scores for m in classes], [m.hits for m in classes], [m.labels for m in classes])

    @cached_property
    def coco_result(self) -> CocoResult | None:
        """COCO's evaluation of all images; None without labels or without detections."""
        return coco_evaluation(self.matching, self.max_det)

    @cached_property
    def matching(self) -> Matching:
        """The detections of all images and what each matches."""
        return match_all(self.found, self.truth, self.names, self.max_det)

    @cached_property
    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """(nc,) labels of each class and (nc,) images that have one, in the order of names."""
        return label_counts(self.truth, self.names)

    def coco_annotations(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Labels and detections of all images as COCO's dicts, see utils.evaluate.coco."""
        return coco_annotations(self.truth, self.names), coco_annotations(self.found, self.names)

    def coco_figures(self) -> dict[str, float]:
        """COCO's figures by name, see Metrics.coco."""
        result = self.coco_result
        return figures_without_detections(self.truth, self.max_det) if result is None else result.figures()

    def average_precision(self) -> tuple[np.ndarray, np.ndarray]:
        """AP at IoU 0.50 and over 0.50:0.95, each (nc,), in the order of names; 0 for classes without labels."""
        if self.coco_result is None:
            return np.zeros(len(self.names)), np.zeros(len(self.names))
        per_iou = self.coco_result.precision[..., 0].mean(axis=1).clip(min=0)  # (IoU, class)
        return per_iou[0], per_iou.mean(axis=0)

    @cached_property
    def class_matches(self) -> dict[int, ClassMatches]:
        """Place in names -> matches of each class with labels; detections in a crowd label are left out."""
        matching, matches = self.matching, {}
        for k in np.flatnonzero(self.counts[0]).tolist():
            found, rows, order = matching.of_class(k)
            hit, counts = np.zeros(len(order), bool), np.ones(len(order), bool)
            overlapping = matching.rows[rows] - found.start
            hit[overlapping], counts[overlapping] = matching.hit[rows, 0, 0], matching.valid[rows, 0, 0]
            order = order[counts[order]]
            matches[k] = ClassMatches(int(self.counts[0][k]), matching.score[found][order], hit[order])
        return matches

    def precision_recall(self) -> tuple[np.ndarray, np.ndarray]:
        """Precision and recall at IoU 0.5 and the confidence of the best mean F1, each (nc,), in the order of names."""
        matches, confidence = self.class_matches, self.best_confidence
        precision, recall = np.zeros(len(self.names)), np.zeros(len(self.names))
        for k, m in matches.items():
            kept = m.hits[m.scores >= confidence]
            precision[k] = kept.mean() if len(kept) else 0.0
            recall[k] = kept.sum() / m.labels
        return precision, recall

    def curves(self) -> Curves:
        """Precision, recall and F1 over confidence, and precision over recall; no rows without labels."""
        matches = self.class_matches
        rows = [confidence_curves(m.scores, m.hits, m.labels) for m in matches.values()]
        precision, recall, f1 = (np.array([row[i] for row in rows]).reshape(-1, STEPS) for i in range(3))
        envelope = np.zeros((len(matches), 101))
        if self.coco_result is not None:
            envelope = self.coco_result.precision[0, :, list(matches), 0].clip(min=0)
        classes = [(c, name) for k, (c, name) in enumerate(self.names.items()) if k in matches]
        steps = np.linspace(0, 1, STEPS)
        names, indices = [name for _, name in classes], [c for c, _ in classes]
        return Curves(names, indices, steps, precision, recall, f1, np.linspace(0, 1, 101), envelope)

    def confusion_matrix(self, conf_thres: float = 0.25, iou_thres: float = 0.45) -> np.ndarray:
        """(nc+1, nc+1) counts: rows are predicted classes, columns labeled ones, the last of both is background.

        Args:
            conf_thres: detections below are left out. iou_thres: least IoU of a pair.
        """
        place = {c: k for k, c in enumerate(self.names)}
        background = len(place)
        counts = np.zeros((background + 1, background + 1), dtype=np.int64)
        for found, truth in zip(self.found, self.truth, strict=True):
            crowds, single = truth[truth.crowd], truth[~truth.crowd]
            found = found[found.score >= conf_thres]
            paired, true = confusion_pairs(found, single, iou_thres)
            extra = np.setdiff1d(np.arange(len(found)), paired)
            extra = extra[covered(found.xyxy[extra], crowds.xyxy) < MATCH_IOU]
            missed = np.setdiff1d(np.arange(len(single)), true)
            predicted = np.array([place.get(c, background) for c in found.label.tolist()], dtype=int)
            labeled = np.array([place.get(c, background) for c in single.label.tolist()], dtype=int)
            np.add.at(counts, (predicted[paired], labeled[true]), 1)
            np.add.at(counts, (predicted[extra], background), 1)
            np.add.at(counts, (background, labeled[missed]), 1)
        return counts
