"""Compare val.py's figures with pycocotools: `python tools/coco_parity.py --weights best.pt --data my.yaml`.

Takes val.py's flags, detects once, and lets both judge the same detections and labels.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import val
from models.runtimes.ensemble import load_model
from utils.config import run_script
from utils.data.dataset import read_data_yaml
from utils.device import select_device
from utils.evaluate.metrics import AREAS, DetectionMetrics

LOGGER = logging.getLogger(__name__)
TOLERANCE = 1e-4


def pycocotools_figures(metrics: DetectionMetrics) -> dict[str, float]:
    """`Metrics.coco` of what `metrics` holds, by pycocotools.

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
        judge = COCOeval(*sides, "bbox")
        judge.params.maxDets = metrics.limits()
        judge.evaluate()
        judge.accumulate()
    return summarise(judge.eval["precision"], judge.eval["recall"], metrics.limits())


def summarise(p: np.ndarray, r: np.ndarray, limits: list[int]) -> dict[str, float]:
    """The figures of COCO's arrays: p (IoU, recall, class, area, limit), r (IoU, class, area, limit)."""

    def mean(values: np.ndarray) -> float:
        return float(values[values > -1].mean()) if (values > -1).any() else -1.0

    sizes = [(size, k) for k, size in enumerate(AREAS) if size]
    figures = {"AP": mean(p[..., 0, -1]), "AP50": mean(p[0, ..., 0, -1]), "AP75": mean(p[5, ..., 0, -1])}
    figures |= {f"AP{size}": mean(p[..., k, -1]) for size, k in sizes}
    figures |= {f"AR{n}": mean(r[..., 0, k]) for k, n in enumerate(limits)}
    return figures | {f"AR{size}": mean(r[..., k, -1]) for size, k in sizes}


def main(cfg: val.ValConfig) -> None:
    """Print both columns.

    Raises:
        ValueError: they differ by more than TOLERANCE.
    """
    device, data = select_device(cfg.device), read_data_yaml(cfg.data)
    model = load_model(cfg.weights, device, cfg.half, cfg.augment)
    loader = val.split_loader(cfg, data, model, cfg.imgsz)
    metrics = val.measure(cfg, model, loader, data.names, device, None).metrics
    ours, theirs = metrics.compute().coco, pycocotools_figures(metrics)
    for name, value in ours.items():
        LOGGER.info(f"{name:<6}{value:>10.6f}{theirs[name]:>10.6f}")
    worst = max(abs(ours[name] - theirs[name]) for name in ours)
    LOGGER.info(f"{len(metrics.sizes)} images, largest difference {worst:.1e}")
    if worst > TOLERANCE:
        raise ValueError(f"figures differ from pycocotools by {worst:.1e}, expected at most {TOLERANCE:g}")


if __name__ == "__main__":
    run_script(main, val.ValConfig)
