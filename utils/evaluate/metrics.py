"""How good detections are: COCO's average precision and recall, precision and recall at the best F1, the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from torch import Tensor

from utils.evaluate.matching import (
    MATCH_IOU,
    STEPS,
    Curves,
    best_confidence,
    confidence_curves,
    confusion,
    covered,
    match_greedily,
)
from utils.loss import LossParts

COLUMNS = ("Images", "Instances", "P", "R", "mAP50", "mAP50-95")
AREAS = {"": (0.0, 1e10), "s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e10)}  # COCO's, square pixels


@dataclass(frozen=True)
class Scores:
    """How many images and labels were judged, and fractions 0..1 (all 0 where there are no labels)."""

    images: int
    instances: int
    precision: float
    recall: float
    map50: float
    map50_95: float


@dataclass(frozen=True)
class ClassMetrics(Scores):
    """One class; `images` counts those that show it."""

    name: str


@dataclass(frozen=True)
class Metrics(Scores):
    """Means over the classes that have labels, fractions 0..1; `per_class` holds every class, in the order of names.

    Attributes:
        speed_ms: milliseconds an image of each stage. loss: validation loss, where one was computed.
        coco: COCO's figures: AP, AP50, AP75; APs, APm, APl of small, medium and large labels (see AREAS); AR1, AR10 and
            AR of at most 1, 10 and max_det detections of a class in an image; ARs, ARm, ARl. -1: no such labels.
    """

    per_class: list[ClassMetrics]
    speed_ms: dict[str, float] = field(default_factory=dict)
    loss: LossParts | None = None
    coco: dict[str, float] = field(default_factory=dict)

    @property
    def fitness(self) -> float:
        """What the best checkpoint is chosen by, 0..1."""
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
        }


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
        self.crowds: list[np.ndarray] = []
        self.areas: list[np.ndarray] = []

    def update(
        self,
        boxes: Tensor,
        labels: Tensor,
        size: tuple[int, int],
        crowd: np.ndarray | None = None,
        areas: np.ndarray | None = None,
    ) -> None:
        """Add an image of `size` (height, width).

        Args:
            boxes: (n, 6) xyxy, score, class; pixels of the image; n may be 0.
            labels: (m, 5) class, xyxy in the same pixels; m may be 0.
            crowd: (m,) bool, labels of which detections are neither right nor wrong; None: no label is.
            areas: (m,) square pixels that decide what is small, medium and large; None: those of the boxes.
        """
        rows = labels.detach().cpu().double().numpy().reshape(-1, 5)
        self.sizes.append((int(size[0]), int(size[1])))
        self.boxes.append(boxes.detach().cpu().double().numpy().reshape(-1, 6))
        self.labels.append(rows)
        self.crowds.append(np.zeros(len(rows), dtype=bool) if crowd is None else np.asarray(crowd, dtype=bool))
        self.areas.append((rows[:, 3:] - rows[:, 1:3]).prod(axis=1) if areas is None else np.asarray(areas))

    def arrange(self, order: Sequence[int]) -> None:
        """Put the images into `order`, places as they are now: COCO ranks equal scores by the order of the images."""
        columns: tuple[list[Any], ...] = (self.sizes, self.boxes, self.labels, self.crowds, self.areas)
        for column in columns:
            column[:] = [column[i] for i in order]

    def compute(self) -> Metrics:
        """The metrics of everything so far; zeros without labels or without detections."""
        ap50, ap, figures = self.average_precision()
        precision, recall = self.precision_recall()
        judged_labels = [rows[~crowd, 0] for rows, crowd in zip(self.labels, self.crowds, strict=True)]
        classes = np.concatenate([np.empty(0), *judged_labels])
        per_class = []
        for k, (c, name) in enumerate(self.names.items()):
            shown = sum(bool((rows == c).any()) for rows in judged_labels)
            p, r, at50, mean_ap = (float(values[k]) for values in (precision, recall, ap50, ap))
            per_class.append(ClassMetrics(shown, int((classes == c).sum()), p, r, at50, mean_ap, name=name))
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
            coco=figures,
        )

    def judge(self) -> dict[str, np.ndarray] | None:
        """COCO's arrays, classes in the order of names: precision (10 IoU, 101 recalls, class, 4 areas, limits) and
        recall (10 IoU, class, 4 areas, limits), -1 where a class has no such labels; None without labels or boxes.

        Source: COCO's evaluation, computed by faster-coco-eval.
        """
        truth, found = self.coco_annotations()
        if not found or all(row["iscrowd"] for row in truth):
            return None
        images = [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(self.sizes)]
        shared = {"images": images, "categories": [{"id": c, "name": name} for c, name in self.names.items()]}
        judge = COCOeval_faster(
            COCO(shared | {"annotations": truth}),
            COCO(shared | {"annotations": found}),
            iouType="bbox",
            print_function=lambda *_: None,
        )
        judge.params.maxDets = self.limits()
        judge.params.areaRng, judge.params.areaRngLbl = [list(r) for r in AREAS.values()], list(AREAS)
        judge.evaluate()
        judge.accumulate()
        column = {c: k for k, c in enumerate(judge.params.catIds)}
        order = [column[c] for c in self.names]
        precision, recall = (np.asarray(judge.eval[key]) for key in ("precision", "recall"))
        return {"precision": precision[:, :, order], "recall": recall[:, order]}

    def limits(self) -> list[int]:
        """Most detections of a class in an image, for COCO's AR1, AR10 and all other figures."""
        return sorted({n for n in (1, 10, self.max_det) if n <= self.max_det})

    def average_precision(self) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        """AP at IoU 0.50 and over 0.50:0.95, each (nc,), 0 for classes without labels; COCO's figures by name."""
        judged = self.judge()
        if judged is None:
            return np.zeros(len(self.names)), np.zeros(len(self.names)), self.figures_of_nothing()
        precision, recall = judged["precision"], judged["recall"]

        def mean(values: np.ndarray) -> float:
            known = values[values > -1]
            return float(known.mean()) if len(known) else -1.0

        figures = {"AP": mean(precision[..., 0, -1]), "AP50": mean(precision[0, ..., 0, -1])}
        figures |= {"AP75": mean(precision[5, ..., 0, -1])}
        figures |= {f"AP{size}": mean(precision[..., k, -1]) for k, size in enumerate(AREAS) if size}
        figures |= {f"AR{n}": mean(recall[..., 0, k]) for k, n in enumerate(self.limits())}
        figures |= {f"AR{size}": mean(recall[..., k, -1]) for k, size in enumerate(AREAS) if size}
        curves = precision[..., 0, -1].mean(axis=1).clip(min=0)  # (IoU, class)
        return curves[0], curves.mean(axis=0), figures

    def figures_of_nothing(self) -> dict[str, float]:
        """COCO's figures where there are no detections: 0, or -1 without labels of that size."""
        areas = np.concatenate([np.empty(0), *(a[~c] for a, c in zip(self.areas, self.crowds, strict=True))])
        value = {size: 0.0 if ((areas >= low) & (areas <= high)).any() else -1.0 for size, (low, high) in AREAS.items()}
        names = ["AP", "AP50", "AP75", "APs", "APm", "APl", *(f"AR{n}" for n in self.limits()), "ARs", "ARm", "ARl"]
        return {name: value.get(name[2:], value[""]) for name in names}

    def coco_annotations(self) -> tuple[list[dict], list[dict]]:
        """Labels and detections as COCO's dicts: bbox is x, y, width, height in pixels, ids count from 1."""
        truth: list[dict] = []
        found: list[dict] = []
        for image, (boxes, labels) in enumerate(zip(self.boxes, self.labels, strict=True)):
            known = [{"iscrowd": int(c), "area": a} for c, a in zip(self.crowds[image], self.areas[image], strict=True)]
            scored = [{"score": s} for s in boxes[:, 4].tolist()]
            rows = [(truth, labels[:, 1:], labels[:, 0], known), (found, boxes[:, :4], boxes[:, 5], scored)]
            for out, xyxy, classes, more in rows:
                xywh = np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1)
                for box, label, extra in zip(xywh.tolist(), classes.tolist(), more, strict=True):
                    if int(label) not in self.names:
                        continue
                    row = {"id": len(out) + 1, "image_id": image, "category_id": int(label), "bbox": box}
                    out.append(row | {"area": box[2] * box[3], "iscrowd": 0} | extra)
        return truth, found

    def labelled(self) -> dict[int, tuple[int, np.ndarray, np.ndarray]]:
        """Place in names -> (labels, scores, hits) of each class with labels; see `matches`."""
        found = {}
        for k, c in enumerate(self.names):
            pairs = zip(self.labels, self.crowds, strict=True)
            total = sum(int((rows[~crowd, 0] == c).sum()) for rows, crowd in pairs)
            if total:
                found[k] = (total, *self.matches(c))
        return found

    def precision_recall(self) -> tuple[np.ndarray, np.ndarray]:
        """Each (nc,), in the order of names, at the one confidence that `best_confidence` finds; IoU 0.5."""
        classes = self.labelled()
        rows = classes.values()
        confidence = best_confidence([row[1] for row in rows], [row[2] for row in rows], [row[0] for row in rows])
        precision, recall = np.zeros(len(self.names)), np.zeros(len(self.names))
        for k, (total, score, hit) in classes.items():
            kept = hit[score >= confidence]
            precision[k] = kept.mean() if len(kept) else 0.0
            recall[k] = kept.sum() / total
        return precision, recall

    def matches(self, c: int) -> tuple[np.ndarray, np.ndarray]:
        """(n,) scores of the detections of class `c`, best first, and (n,) whether each found a label.

        Detections that found none and lie for the most part in a crowd label of their class are left out.
        """
        scores, hits = [np.empty(0)], [np.empty(0, dtype=bool)]
        for boxes, labels, crowd in zip(self.boxes, self.labels, self.crowds, strict=True):
            mine = boxes[boxes[:, 5] == c]
            if not len(mine):
                continue
            mine = mine[(-mine[:, 4]).argsort(kind="stable")[: self.max_det]]
            same = labels[:, 0] == c
            hit = match_greedily(mine[:, :4], labels[same & ~crowd, 1:])
            counts = hit | (covered(mine[:, :4], labels[same & crowd, 1:]) < MATCH_IOU)
            scores.append(mine[counts, 4])
            hits.append(hit[counts])
        score, hit = np.concatenate(scores), np.concatenate(hits)
        order = (-score).argsort(kind="stable")
        return score[order], hit[order]

    def curves(self) -> Curves:
        """What the pictures of curves show; no rows without labels."""
        classes, judged = self.labelled(), self.judge()
        rows = [confidence_curves(score, hit, total) for total, score, hit in classes.values()]
        precision, recall, f1 = (np.array([row[i] for row in rows]).reshape(-1, STEPS) for i in range(3))
        envelope = np.zeros((len(classes), 101))
        if judged is not None:
            envelope = judged["precision"][0, :, list(classes), 0, -1].clip(min=0)
        names = [name for k, name in enumerate(self.names.values()) if k in classes]
        steps = np.linspace(0, 1, STEPS)
        return Curves(names, steps, precision, recall, f1, np.linspace(0, 1, 101), envelope)

    def confusion_matrix(self, conf_thres: float = 0.25, iou_thres: float = 0.45) -> np.ndarray:
        """(nc+1, nc+1) counts: rows what was detected, columns what was labelled, the last of both is background.

        Args:
            conf_thres: detections below are left out. iou_thres: from this overlap on a pair is one object.
        """
        place = {c: k for k, c in enumerate(self.names)}
        background = len(place)
        counts = np.zeros((background + 1, background + 1), dtype=np.int64)
        for boxes, labels, crowd in zip(self.boxes, self.labels, self.crowds, strict=True):
            crowds, judged = labels[crowd], labels[~crowd]
            boxes = boxes[boxes[:, 4] >= conf_thres]
            found, true = confusion(boxes, judged, iou_thres)
            extra = np.setdiff1d(np.arange(len(boxes)), found)
            extra = extra[covered(boxes[extra, :4], crowds[:, 1:]) < MATCH_IOU]
            missed = np.setdiff1d(np.arange(len(judged)), true)
            of_box = np.array([place.get(int(c), background) for c in boxes[:, 5]], dtype=int)
            of_label = np.array([place.get(int(c), background) for c in judged[:, 0]], dtype=int)
            np.add.at(counts, (of_box[found], of_label[true]), 1)
            np.add.at(counts, (of_box[extra], background), 1)
            np.add.at(counts, (background, of_label[missed]), 1)
        return counts
