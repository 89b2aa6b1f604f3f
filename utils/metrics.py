"""How good detections are: average precision by COCO's rule, precision and recall at the best F1, the table."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from torch import Tensor

from utils.loss import LossParts

COLUMNS = ("Images", "Instances", "P", "R", "mAP50", "mAP50-95")
MATCH_IOU = 0.5  # a detection is right from this overlap on, for precision and recall


@dataclass(frozen=True)
class ClassMetrics:
    """One class: images that show it, its labels, and fractions 0..1 (all 0 where it has no labels)."""

    name: str
    images: int
    instances: int
    precision: float
    recall: float
    map50: float
    map50_95: float


@dataclass(frozen=True)
class Metrics:
    """Means over the classes that have labels, fractions 0..1; `per_class` holds every class, in the order of names.

    Attributes:
        images, instances: how many were judged.
        speed_ms: milliseconds an image of each stage. loss: validation loss, where one was computed.
    """

    images: int
    instances: int
    precision: float
    recall: float
    map50: float
    map50_95: float
    per_class: list[ClassMetrics]
    speed_ms: dict[str, float] = field(default_factory=dict)
    loss: LossParts | None = None

    @property
    def fitness(self) -> float:
        """What the best checkpoint is chosen by, 0..1."""
        return 0.1 * self.map50 + 0.9 * self.map50_95

    def table(self) -> str:
        """A header, the row 'all', and a row for every class with instances."""
        rows: list[tuple[str, Metrics | ClassMetrics]] = [("all", self)]
        rows += [(c.name, c) for c in self.per_class if c.instances]
        width = max(len("Class"), *(len(name) for name, _ in rows))
        lines = [f"{'Class':>{width}}" + "".join(f"{column:>11}" for column in COLUMNS)]
        for name, m in rows:
            scores = "".join(f"{value:>11.3f}" for value in (m.precision, m.recall, m.map50, m.map50_95))
            lines.append(f"{name:>{width}}{m.images:>11}{m.instances:>11}{scores}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and dicts, for JSON; `per_class` is keyed by name."""
        keys = ("map50", "map50_95", "precision", "recall", "images", "instances")
        classes = [asdict(c) for c in self.per_class]
        return {key: getattr(self, key) for key in keys} | {
            "per_class": {c.pop("name"): c for c in classes},
            "speed_ms": dict(self.speed_ms),
        }


def pairwise_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, m) overlaps of (n, 4) and (m, 4) xyxy boxes in one frame; 0 where both are empty."""
    corner = np.maximum(a[:, None, :2], b[None, :, :2])
    shared = (np.minimum(a[:, None, 2:], b[None, :, 2:]) - corner).clip(min=0).prod(axis=2)
    area_a, area_b = ((box[:, 2:] - box[:, :2]).clip(min=0).prod(axis=1) for box in (a, b))
    union = area_a[:, None] + area_b[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


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


class DetectionMetrics:
    """Collects detections and labels image by image.

    Args:
        names: class index -> name. max_det: of each class in an image only so many detections count, the best.
    """

    def __init__(self, names: dict[int, str], max_det: int = 300):
        self.names = names
        self.max_det = max_det
        self.sizes: list[tuple[int, int]] = []
        self.boxes: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []

    def update(self, boxes: Tensor, labels: Tensor, size: tuple[int, int]) -> None:
        """Add an image of `size` (height, width).

        Args:
            boxes: (n, 6) xyxy, score, class; pixels of the image; n may be 0.
            labels: (m, 5) class, xyxy in the same pixels; m may be 0.
        """
        self.sizes.append((int(size[0]), int(size[1])))
        self.boxes.append(boxes.detach().cpu().double().numpy().reshape(-1, 6))
        self.labels.append(labels.detach().cpu().double().numpy().reshape(-1, 5))

    def compute(self) -> Metrics:
        """The metrics of everything so far; zeros without labels or without detections."""
        ap50, ap = self.average_precision()
        precision, recall = self.precision_recall()
        classes = np.concatenate([np.empty(0), *(rows[:, 0] for rows in self.labels)])
        per_class = []
        for k, (c, name) in enumerate(self.names.items()):
            shown = sum(bool((rows[:, 0] == c).any()) for rows in self.labels)
            scores = (float(values[k]) for values in (precision, recall, ap50, ap))
            per_class.append(ClassMetrics(name, shown, int((classes == c).sum()), *scores))
        judged = [c for c in per_class if c.instances]

        def mean(key: str) -> float:
            return float(np.mean([getattr(c, key) for c in judged])) if judged else 0.0

        return Metrics(
            images=len(self.sizes),
            instances=sum(c.instances for c in judged),
            precision=mean("precision"),
            recall=mean("recall"),
            map50=mean("map50"),
            map50_95=mean("map50_95"),
            per_class=per_class,
        )

    def average_precision(self) -> tuple[np.ndarray, np.ndarray]:
        """AP at IoU 0.50 and averaged over 0.50:0.95, each (nc,) in the order of names; 0 for classes without labels.

        Source: COCO's evaluation (101 recall points, all areas), computed by faster-coco-eval.
        """
        zeros = np.zeros(len(self.names))
        truth, found = self.coco_annotations()
        if not truth or not found:
            return zeros, zeros
        images = [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(self.sizes)]
        shared = {"images": images, "categories": [{"id": c, "name": name} for c, name in self.names.items()]}
        judge = COCOeval_faster(
            COCO(shared | {"annotations": truth}),
            COCO(shared | {"annotations": found}),
            iouType="bbox",
            print_function=lambda *_: None,
        )
        judge.params.maxDets = [self.max_det]
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.evaluate()
        judge.accumulate()
        curves = np.asarray(judge.eval["precision"])[:, :, :, 0, 0].mean(axis=1)  # (IoU, class), -1 without labels
        column = {c: k for k, c in enumerate(judge.params.catIds)}
        curves = curves[:, [column[c] for c in self.names]].clip(min=0)
        return curves[0], curves.mean(axis=0)

    def coco_annotations(self) -> tuple[list[dict], list[dict]]:
        """Labels and detections as COCO's dicts: bbox is x, y, width, height in pixels, ids count from 1."""
        truth: list[dict] = []
        found: list[dict] = []
        for image, (boxes, labels) in enumerate(zip(self.boxes, self.labels, strict=True)):
            rows = [(truth, labels[:, 1:], labels[:, 0], None), (found, boxes[:, :4], boxes[:, 5], boxes[:, 4])]
            for out, xyxy, classes, scores in rows:
                xywh = np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1)
                for k, (box, label) in enumerate(zip(xywh.tolist(), classes.tolist(), strict=True)):
                    if int(label) not in self.names:
                        continue
                    row = {"id": len(out) + 1, "image_id": image, "category_id": int(label), "bbox": box}
                    row |= {"area": box[2] * box[3], "iscrowd": 0}
                    out.append(row if scores is None else row | {"score": float(scores[k])})
        return truth, found

    def precision_recall(self) -> tuple[np.ndarray, np.ndarray]:
        """Each (nc,), in the order of names, at the one confidence that `best_confidence` finds; IoU 0.5."""
        totals = [sum(int((rows[:, 0] == c).sum()) for rows in self.labels) for c in self.names]
        matched = {k: self.matches(c) for k, c in enumerate(self.names) if totals[k]}
        scores, hits = ([pair[i] for pair in matched.values()] for i in (0, 1))
        confidence = best_confidence(scores, hits, [totals[k] for k in matched])
        precision, recall = np.zeros(len(totals)), np.zeros(len(totals))
        for k, (score, hit) in matched.items():
            kept = hit[score >= confidence]
            precision[k] = kept.mean() if len(kept) else 0.0
            recall[k] = kept.sum() / totals[k]
        return precision, recall

    def matches(self, c: int) -> tuple[np.ndarray, np.ndarray]:
        """(n,) scores of the detections of class `c`, best first, and (n,) whether each found a label."""
        scores, hits = [np.empty(0)], [np.empty(0, dtype=bool)]
        for boxes, labels in zip(self.boxes, self.labels, strict=True):
            mine = boxes[boxes[:, 5] == c]
            if not len(mine):
                continue
            mine = mine[(-mine[:, 4]).argsort(kind="stable")[: self.max_det]]
            scores.append(mine[:, 4])
            hits.append(match_greedily(mine[:, :4], labels[labels[:, 0] == c, 1:]))
        score, hit = np.concatenate(scores), np.concatenate(hits)
        order = (-score).argsort(kind="stable")
        return score[order], hit[order]
