"""COCO's evaluation: average precision and recall over IoU, classes and object sizes, computed by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from utils.boxes import Boxes, Truth, xyxy2ltwh

AREAS = {"": (0.0, 1e10), "s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e10)}  # COCO's, square pixels


@dataclass(frozen=True)
class CocoResult:
    """COCO's arrays, classes in the order of names, -1 where a class has no labels of that size.

    Attributes:
        precision: (10 IoU, 101 recalls, class, 4 areas, limit). recall: (10 IoU, class, 4 areas, limit).
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
            "AP": known_mean(precision[..., 0, -1]),
            "AP50": known_mean(precision[0, ..., 0, -1]),
            "AP75": known_mean(precision[5, ..., 0, -1]),
        }
        figures |= {f"AP{size}": known_mean(precision[..., k, -1]) for size, k in sizes}
        figures |= {f"AR{n}": known_mean(recall[..., 0, k]) for k, n in enumerate(self.limits)}
        return figures | {f"AR{size}": known_mean(recall[..., k, -1]) for size, k in sizes}


def known_mean(values: np.ndarray) -> float:
    """The mean of the entries of a COCO array that are not -1; -1 if there are none."""
    known = values[values > -1]
    return float(known.mean()) if len(known) else -1.0


def detection_limits(max_det: int) -> list[int]:
    """Most detections of a class in an image, for COCO's AR1, AR10 and all other figures."""
    return sorted({n for n in (1, 10, max_det) if n <= max_det})


def coco_evaluation(
    truth: list[dict[str, Any]],
    found: list[dict[str, Any]],
    sizes: Sequence[tuple[int, int]],
    names: Mapping[int, str],
    max_det: int,
) -> CocoResult | None:
    """COCO's arrays for annotations `truth` and `found`; None without labels or without detections.

    Args:
        truth, found: see coco_annotations. sizes: (height, width) of each image. names: class index -> name.
    """
    if not found or all(row["iscrowd"] for row in truth):
        return None
    images = [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(sizes)]
    shared = {"images": images, "categories": [{"id": c, "name": name} for c, name in names.items()]}
    evaluation = COCOeval_faster(
        COCO(shared | {"annotations": truth}),
        COCO(shared | {"annotations": found}),
        iouType="bbox",
        print_function=lambda *_: None,
    )
    limits = detection_limits(max_det)
    evaluation.params.maxDets = limits
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [list(r) for r in AREAS.values()], list(AREAS)
    evaluation.evaluate()
    evaluation.accumulate()
    column = {c: k for k, c in enumerate(evaluation.params.catIds)}
    order = [column[c] for c in names]
    precision, recall = (np.asarray(evaluation.eval[key]) for key in ("precision", "recall"))
    return CocoResult(precision[:, :, order], recall[:, order], limits)


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
