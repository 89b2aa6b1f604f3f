"""COCO's evaluation: average precision and recall over IoU, classes and object sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.boxes import Boxes, Truth, xyxy2ltwh
from utils.evaluate.groups import AREAS, IOUS, Matching
from utils.evaluate.matching import RECALLS, precision_at_recalls


@dataclass(frozen=True)
class CocoResult:
    """COCO's arrays, classes in the order of names, -1 where a class has no labels of that size.

    Attributes:
        precision: (10 IoU, 101 recalls, class, 4 areas) at the largest limit. recall: (10 IoU, class, 4 areas, limit).
        limits: most detections of a class in an image: of 1, 10 and max_det those that are at most max_det.
    """

    precision: np.ndarray
    recall: np.ndarray
    limits: list[int]

    def figures(self) -> dict[str, float]:
        """COCO's figures by name, see Metrics.coco; -1: no labels of that size."""
        precision, recall = self.precision, self.recall
        sizes = [(size, k) for k, size in enumerate(AREAS) if size]
        figures = {
            "AP": known_mean(precision[..., 0]),
            "AP50": known_mean(precision[0, ..., 0]),
            "AP75": known_mean(precision[5, ..., 0]),
        }
        figures |= {f"AP{size}": known_mean(precision[..., k]) for size, k in sizes}
        figures |= {f"AR{n}": known_mean(recall[..., 0, k]) for k, n in enumerate(self.limits)}
        return figures | {f"AR{size}": known_mean(recall[..., k, -1]) for size, k in sizes}


def known_mean(values: np.ndarray) -> float:
    """The mean of the entries of a COCO array that are not -1; -1 if there are none."""
    known = values[values > -1]
    return float(known.mean()) if len(known) else -1.0


def detection_limits(max_det: int) -> list[int]:
    """Most detections of a class in an image, for COCO's AR1, AR10 and all other figures."""
    return sorted({n for n in (1, 10, max_det) if n <= max_det})


def coco_evaluation(matching: Matching, max_det: int) -> CocoResult | None:
    """COCO's arrays of the detections of all images; None without labels or without detections."""
    if not len(matching.score) or not matching.labels[:, 0].any():
        return None
    limits, shape = detection_limits(max_det), matching.labels.shape
    # Classes are outermost in memory, where sums over recalls are rounded least.
    precision = np.full((shape[0], len(IOUS), len(RECALLS), shape[1]), -1.0).transpose(1, 2, 0, 3)
    recall = np.full((len(IOUS), *shape, len(limits)), -1.0)
    for k in np.flatnonzero(matching.labels.any(axis=1)).tolist():
        found, rows, order = matching.of_class(k)
        counted = matching.inside[found][order].cumsum(axis=0)  # as if none of `rows` did otherwise
        position = np.empty(len(order), np.int64)
        position[order] = np.arange(len(order))
        at = position[matching.rows[rows] - found.start]
        best = at.argsort()
        at, hit, valid = at[best], matching.hit[rows][best], matching.valid[rows][best]
        otherwise = valid.astype(np.int64) - matching.inside[found][order][at][:, None]
        counted = counted[at][:, None] + otherwise.cumsum(axis=0)  # (rows, IoU, area)
        rank = matching.rank[matching.rows[rows]][best]
        for area in np.flatnonzero(matching.labels[k]).tolist():
            total = int(matching.labels[k, area])
            for i in range(len(IOUS)):
                right = np.flatnonzero(hit[:, i, area])
                precision[i, :, k, area] = precision_at_recalls(counted[right, i, area], total)
            for j, limit in enumerate(limits):
                recall[:, k, area, j] = hit[rank < limit, :, area].sum(axis=0) / total
    return CocoResult(precision, recall, limits)


def figures_without_detections(truth: Sequence[Truth], max_det: int) -> dict[str, float]:
    """COCO's figures where there are no detections: 0, or -1 without labels of that size."""
    area = np.concatenate([np.empty(0), *(own.area[~own.crowd] for own in truth)])
    value = {size: 0.0 if ((area >= low) & (area <= high)).any() else -1.0 for size, (low, high) in AREAS.items()}
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    names += [*(f"AR{n}" for n in detection_limits(max_det)), "ARs", "ARm", "ARl"]
    return {name: value.get(name[2:], value[""]) for name in names}


def coco_annotations(images: Sequence[Boxes], names: Mapping[int, str]) -> list[dict[str, Any]]:
    """Labels (Truth) or detections (Boxes) of all images as COCO's dicts; classes that are not in `names` are left out.

    bbox is left, top, width, height in pixels; ids count from 1; image_id counts images from 0.
    """
    rows: list[dict[str, Any]] = []
    for image, boxes in enumerate(images):
        ltwh = xyxy2ltwh(boxes.xyxy)
        columns = {"bbox": ltwh, "category_id": boxes.label}
        if isinstance(boxes, Truth):
            columns |= {"area": boxes.area, "iscrowd": boxes.crowd.astype(int)}
        else:
            columns |= {"area": np.prod(ltwh[:, 2:], axis=1), "score": boxes.score}
        for values in zip(*(column.tolist() for column in columns.values()), strict=True):
            row = dict(zip(columns, values, strict=True))
            if row["category_id"] in names:
                rows.append({"id": len(rows) + 1, "image_id": image, "iscrowd": 0} | row)
    return rows
