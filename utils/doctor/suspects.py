"""Suspects of label noise: where a detector's predictions and the labels of an image contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils.boxes import Boxes, areas, pairwise_iou
from utils.classes import ClassMatch
from utils.doctor.findings import WARNING, Example, Finding, finding, share
from utils.doctor.survey import ImageRecord
from utils.text import counted

LOWEST = 0.05  # confidence of a prediction that still supports a label
CONFIDENT = 0.5  # least confidence of a prediction that speaks against the labels
INSIDE = 0.8  # part of a prediction that lies in a label of its class from which on it is a part of that object
NEAR, SAME = 0.3, 0.6  # IoU below which boxes have nothing to do with each other, from which on they are one object


@dataclass(frozen=True)
class Contradictions:
    """Where predictions and labels of one image contradict each other.

    Attributes:
        missing: (k,) rows of the predictions that no label is near. unsupported: (k,) rows of the labels that no
            prediction is near. swapped: (k, 2) rows of labels and of predictions of another class.
    """

    missing: np.ndarray
    unsupported: np.ndarray
    swapped: np.ndarray


def contradictions(found: Boxes, truth: Boxes, crowd: np.ndarray, judged: np.ndarray) -> Contradictions:
    """The contradictions of one image, all boxes in its pixels.

    Args:
        found: predictions with a confidence of at least LOWEST. crowd: (n,) bool of the labels, which may stand for
        any number of objects. judged: (n,) bool of the labels: the detector knows their class.
    """
    iou = pairwise_iou(found.xyxy.astype(np.float64), truth.xyxy)
    confident = found.score >= CONFIDENT
    equal = found.label[:, None] == truth.label[None]
    part = covered(found.xyxy, truth.xyxy)
    explained = (part >= INSIDE) & equal | (part >= 0.5) & crowd[None]
    missing = confident & (iou.max(axis=1, initial=0) < NEAR) & ~explained.any(axis=1)
    unsupported = judged & ~crowd & (iou.max(axis=0, initial=0) < NEAR)
    agreed = ((iou >= NEAR) & equal).any(axis=0)
    rivals = np.where(confident[:, None] & ~equal & (iou >= SAME), found.score[:, None], 0)
    swapped = np.flatnonzero(judged & ~crowd & ~agreed & (rivals.max(axis=0, initial=0) > 0))
    best = rivals[:, swapped].argmax(axis=0) if len(swapped) else np.zeros(0, np.int64)
    return Contradictions(
        apart(found, np.flatnonzero(missing)), np.flatnonzero(unsupported), np.column_stack([swapped, best])
    )


def covered(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n, m) the part of each box (n, 4), 0..1, that lies in each of the others (m, 4), xyxy."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.prod(np.clip(high - low, 0, None), axis=2) / np.maximum(areas(boxes), 1e-9)[:, None]


def apart(found: Boxes, rows: np.ndarray) -> np.ndarray:
    """Those of the predictions `rows` that are not mostly in, or around, a more confident one of them."""
    kept = list[int]()
    for i in rows[np.argsort(-found.score[rows], kind="stable")].tolist():
        box, others = found.xyxy[i : i + 1], found.xyxy[kept]
        if not (np.maximum(covered(box, others), covered(others, box).T) >= INSIDE).any():
            kept.append(i)
    return np.array(kept, dtype=np.int64)


@dataclass
class Suspects:
    """The contradictions of all images.

    Attributes:
        labels, supported: number of labels that were judged, and of those that a prediction is near.
        missing, unsupported, swapped: (rank, example), the most striking ones have the highest rank.
    """

    labels: int = 0
    supported: int = 0
    missing: list[tuple[float, Example]] = field(default_factory=list)
    unsupported: list[tuple[float, Example]] = field(default_factory=list)
    swapped: list[tuple[float, Example]] = field(default_factory=list)

    def add(self, record: ImageRecord, found: Boxes, names: Mapping[int, str], known: set[int]) -> None:
        """Add one image; `found` has class indices of the data set, `known` are those that the detector has."""
        truth, crowd = record.boxes(), record.labels.crowd
        judged = np.isin(truth.label, list(known))
        result = contradictions(found, truth, crowd, judged)
        where, image = str(record.path), (record.path,)
        self.labels += int((judged & ~crowd).sum())
        self.supported += int((judged & ~crowd).sum()) - len(result.unsupported)
        for i in result.missing.tolist():
            text = f"{where}: {names[int(found.label[i])]} {found.score[i]:.2f}, but no label"
            self.missing.append((float(found.score[i]), Example(text, image, found.xyxy[i : i + 1])))
        for j in result.unsupported.tolist():
            box = truth.xyxy[j : j + 1]
            text = f"{where}: {names[int(truth.label[j])]}, but nothing was found near it"
            self.unsupported.append(
                (float(areas(box)[0]) / (record.size[0] * record.size[1]), Example(text, image, box))
            )
        for j, i in result.swapped.tolist():
            score, (own, other) = float(found.score[i]), (names[int(b)] for b in (truth.label[j], found.label[i]))
            text = f"{where}: labeled {own}, found {other} {score:.2f}"
            self.swapped.append((score, Example(text, image, truth.xyxy[j : j + 1])))

    def findings(self, weights: str) -> Iterator[Finding]:
        """At most one finding for each kind of contradiction."""
        kinds = (
            (self.swapped, "class swaps", "with a confident prediction of another class instead", "label"),
            (
                self.missing,
                "missing labels",
                f"of confidence {CONFIDENT} or more without a label nearby",
                "prediction",
            ),
            (self.unsupported, "unsupported labels", "without a prediction nearby", "label"),
        )
        found = f"{Path(weights).name} finds {share(self.supported, self.labels)} of the labels"
        for rows, check, text, noun in kinds:
            if rows:
                best = sorted(rows, key=lambda row: -row[0])
                advice = f"Look at them, the most striking ones first; {found}, so some are its own mistakes."
                examples = (example for _, example in best)
                yield finding(check, WARNING, f"{counted(len(rows), noun)} {text}", advice, examples, len(rows))


def classes_by_name(model: Mapping[int, str], data: Mapping[int, str]) -> dict[int, int]:
    """Class index of the model -> of the data set, for the names that both have.

    Raises:
        ValueError: they have no name in common.
    """
    match = ClassMatch(model, data)
    common = {of_model: of_data for of_data, of_model in match.index.items()}
    if not common:
        raise ValueError(f"--weights: {match.difference('the model', 'the data')}; expected common names")
    return common


def in_data_classes(found: Boxes, common: Mapping[int, int]) -> Boxes:
    """The predictions of classes that the data set has, with its indices."""
    kept = found[np.isin(found.label, list(common))]
    label = np.array([common[c] for c in kept.label.tolist()], dtype=np.int64)
    return Boxes(kept.xyxy, label, kept.score)
