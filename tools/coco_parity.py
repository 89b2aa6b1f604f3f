"""Compare val.py's metrics with pycocotools: `python tools/coco_parity.py --weights best.pt --data my.yaml`.

It has val.py's flags, detects once, and evaluates the same detections and labels with both.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import val
from models.runtimes.load import load_model
from utils.config import run_script
from utils.device import select_device
from utils.evaluate.coco import AREAS, detection_limits
from utils.evaluate.evaluation import detect_all
from utils.evaluate.metrics import DetectionMetrics
from utils.runs import training_data, weights_or_newest

LOGGER = logging.getLogger(__name__)
TOLERANCE = 1e-4


def pycocotools_figures(metrics: DetectionMetrics) -> dict[str, float]:
    """`Metrics.coco` of the images in `metrics`, computed by pycocotools.

    Raises:
        ImportError: pycocotools is not installed.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images = [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(metrics.sizes)]
    categories = [{"id": c, "name": name} for c, name in metrics.names.items()]
    sides = []
    with contextlib.redirect_stdout(io.StringIO()):
        for rows in metrics.coco_annotations():
            side = COCO()
            side.dataset = {"images": images, "categories": categories, "annotations": [dict(row) for row in rows]}
            side.createIndex()
            sides.append(side)
        evaluation = COCOeval(*sides, "bbox")
        evaluation.params.maxDets = detection_limits(metrics.max_det)
        evaluation.evaluate()
        evaluation.accumulate()
    return summarize(evaluation.eval["precision"], evaluation.eval["recall"], detection_limits(metrics.max_det))


def summarize(p: np.ndarray, r: np.ndarray, limits: list[int]) -> dict[str, float]:
    """The figures of COCO's arrays: p (IoU, recall, class, area, limit), r (IoU, class, area, limit)."""

    def mean(values: np.ndarray) -> float:
        return float(values[values > -1].mean()) if (values > -1).any() else -1.0

    sizes = [(size, k) for k, size in enumerate(AREAS) if size]
    figures = {"AP": mean(p[..., 0, -1]), "AP50": mean(p[0, ..., 0, -1]), "AP75": mean(p[5, ..., 0, -1])}
    figures |= {f"AP{size}": mean(p[..., k, -1]) for size, k in sizes}
    figures |= {f"AR{n}": mean(r[..., 0, k]) for k, n in enumerate(limits)}
    return figures | {f"AR{size}": mean(r[..., k, -1]) for size, k in sizes}


def main(cfg: val.ValConfig) -> None:
    """Print each metric by val.py and by pycocotools.

    Raises:
        ValueError: they differ by more than TOLERANCE; see val.main.
    """
    weights = weights_or_newest(cfg.weights)
    cfg = replace(cfg, weights=weights, data=cfg.data or training_data(weights))
    device, data = select_device(cfg.device), val.read_data(cfg.data, cfg.single_cls)
    model = load_model(cfg.weights, device, cfg.half, cfg.augment, cfg.threads, cfg.compile)
    loader = val.split_loader(cfg, data, model, cfg.imgsz)
    network = val.match_classes(model, data, str(cfg.weights))
    metrics = detect_all(network, loader, data.names, device, val.eval_settings(cfg)).detections
    ours, theirs = metrics.compute().coco, pycocotools_figures(metrics)
    for name, value in ours.items():
        LOGGER.info(f"{name:<6}{value:>10.6f}{theirs[name]:>10.6f}")
    worst = max(abs(ours[name] - theirs[name]) for name in ours)
    LOGGER.info(f"{len(metrics.sizes)} images, largest difference {worst:.1e}")
    if worst > TOLERANCE:
        raise ValueError(f"metrics differ from pycocotools by {worst:.1e}, expected at most {TOLERANCE:g}")


if __name__ == "__main__":
    run_script(main, val.ValConfig)
