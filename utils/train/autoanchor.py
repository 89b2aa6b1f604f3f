"""AutoAnchor: whether the anchors of a model fit the boxes of a data set, and new anchors if they do not.

A box can be learned only if it matches an anchor, see `utils.loss.assign_targets`: no side differs by more than the
factor `anchor_t`. In logarithms this is a distance, the larger of two differences.
"""

from __future__ import annotations

import logging
import math

import numpy as np
from torch import Tensor

from utils.data.scan import Scan
from utils.text import counted
from utils.train.flags import TrainConfig

LOGGER = logging.getLogger(__name__)
MIN_RECALL = 0.98  # anchors with a recall of this or more are kept, as in YOLOv5
MIN_RECALL_TRAINED = 0.9  # for the anchors of a trained head, with others its boxes would be wrong
MIN_SIDE = 2.0  # pixels; boxes whose longer side is shorter can hardly be seen and do not count
MAX_FITTED = 10_000  # boxes that anchors are fitted to; the recall is that of all boxes
KMEANS_ITERATIONS = 100
REFINE_STEPS, STEP_SIZE = 1000, 0.1  # the standard deviation of a random step, in logarithms


def label_sizes(scan: Scan, imgsz: int, tile: int = 0) -> np.ndarray:
    """(M, 2) width, height in pixels of every label, with images scaled to a long side of `imgsz`.

    With `tile` those of larger images come twice: as they are in the whole image, and in a tile that is scaled so.
    """
    longest = scan.sizes.max(axis=1, keepdims=True, initial=1)
    counts = np.diff(scan.offsets)

    def scaled_by(factors: np.ndarray) -> np.ndarray:
        return scan.xywhn[:, 2:] * np.repeat((scan.sizes.astype(np.float64) * factors)[:, ::-1], counts, axis=0)

    sizes = scaled_by(imgsz / longest)
    if not tile:
        return sizes
    in_tiles = np.minimum(scaled_by(np.full_like(longest, imgsz / tile, dtype=np.float64)), imgsz)
    return np.concatenate([sizes, in_tiles[np.repeat(longest[:, 0] > tile, counts)]])


def nearest(log_wh: np.ndarray, log_anchors: np.ndarray) -> np.ndarray:
    """(M,) distance of each box (M, 2) to the nearest anchor (K, 2), all in logarithms of pixels."""
    best = np.full(len(log_wh), np.inf)
    for anchor in log_anchors:
        np.minimum(best, np.abs(log_wh - anchor).max(axis=1), out=best)
    return best


def best_possible_recall(wh: np.ndarray, anchors: np.ndarray, anchor_t: float) -> float:
    """The fraction of boxes that match at least one anchor; 0 if there are no boxes.

    Args:
        wh, anchors: (M, 2) and (K, 2) width, height, positive, in the same unit.
    """
    if not len(wh):
        return 0.0
    return float((nearest(np.log(wh), np.log(anchors)) < math.log(anchor_t)).mean())


def fit_anchors(wh: np.ndarray, count: int, anchor_t: float = 4.0, seed: int = 0) -> np.ndarray:
    """(count, 2) width, height of anchors for the boxes `wh` (M, 2), sorted by area; deterministic for a seed.

    K-means in logarithms, then random steps, of which those are kept that raise the similarity to the boxes.

    Raises:
        ValueError: there are fewer different boxes than anchors.
    """
    rng = np.random.default_rng(seed)
    different = len(np.unique(wh, axis=0))
    if different < count:
        raise ValueError(f"{different} different box sizes, expected at least {count}")
    if len(wh) > MAX_FITTED and len(np.unique(chosen := rng.choice(wh, MAX_FITTED, replace=False), axis=0)) >= count:
        wh = chosen
    boxes = np.log(wh)
    anchors = np.exp(refine(boxes, k_means(boxes, count, rng), math.log(anchor_t), rng))
    return anchors[np.argsort(anchors.prod(axis=1), kind="stable")]


def k_means(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 2) centers of clusters of `points` (M, 2), of which at least `count` differ; no cluster is empty.

    Source: Arthur and Vassilvitskii 2007 for the initial centers (k-means++), Lloyd 1982 for the iterations.
    """

    def squared_distances(centers: np.ndarray) -> np.ndarray:
        return ((points[:, None] - centers[None]) ** 2).sum(axis=2)

    centers = points[rng.integers(len(points), size=1)]
    while len(centers) < count:
        nearest_center = squared_distances(centers).min(axis=1)
        chosen = rng.choice(len(points), size=1, p=nearest_center / nearest_center.sum())
        centers = np.concatenate([centers, points[chosen]])
    for _ in range(KMEANS_ITERATIONS):
        distances = squared_distances(centers)
        cluster = distances.argmin(axis=1)
        moved = centers.copy()
        for k in range(count):
            members = cluster == k
            if members.any():
                moved[k] = points[members].mean(axis=0)
            else:  # a cluster without points restarts at the point that is farthest from all centers
                moved[k] = points[distances.min(axis=1).argmax()]
        if np.array_equal(moved, centers):
            break
        centers = moved
    return centers


def refine(boxes: np.ndarray, anchors: np.ndarray, limit: float, rng: np.random.Generator) -> np.ndarray:
    """`anchors` (K, 2) after random steps, of which those are kept that raise the mean similarity to boxes (M, 2).

    The similarity of a box and its nearest anchor is the smaller ratio of their sides, at most 1, or 0 if their
    distance is `limit` or more. All sizes and `limit` are logarithms.
    """

    def similarity(candidate: np.ndarray) -> float:
        distance = nearest(boxes, candidate)
        return float((np.exp(-distance) * (distance < limit)).mean())

    best = similarity(anchors)
    for _ in range(REFINE_STEPS):
        step = rng.normal(0, STEP_SIZE, anchors.shape) * rng.random() * (rng.random(anchors.shape) < 0.5)
        score = similarity(anchors + step)
        if score > best:
            anchors, best = anchors + step, score
    return anchors


def check_anchors(
    wh: np.ndarray, anchors: Tensor, strides: Tensor, anchor_t: float = 4.0, seed: int = 0, trained_head: bool = False
) -> tuple[Tensor, str]:
    """The anchors to train with, and a log line with the reason: the given ones if they fit, else new ones.

    It is deterministic, so that all processes of a run get the same, and raises nothing: data sets that are too small
    or too uniform keep the given anchors.

    Args:
        wh: (M, 2) width, height of the labels in pixels at the training size (`label_sizes`); M may be 0.
        anchors: (levels, A, 2) width, height in pixels; not modified. strides: (levels,) pixels.
        trained_head: the head was trained with these anchors.

    Returns:
        (levels, A, 2) anchors, the larger ones at the larger strides; the line.
    """
    boxes = wh[np.isfinite(wh).all(axis=1) & (wh > 0).all(axis=1)]
    boxes = boxes[boxes.max(axis=1) >= MIN_SIDE] if len(boxes) else boxes
    left_out = len(wh) - len(boxes)
    ignored = f" (without {left_out} below {MIN_SIDE:.0f} px)" if left_out else ""
    given = anchors.detach().cpu().double().numpy().reshape(-1, 2)
    recall = best_possible_recall(boxes, given, anchor_t)
    line = f"AutoAnchor: {recall:.2%} of {counted(len(boxes), 'box', 'boxes')} can match the model's anchors{ignored}"
    if recall >= (MIN_RECALL_TRAINED if trained_head else MIN_RECALL):
        return anchors, f"{line}; kept{' because the head was trained with them' if recall < MIN_RECALL else ''}"
    reason = too_few(boxes, len(given))
    if reason is not None:
        return anchors, f"{line}; kept: {reason}"
    fitted = fit_anchors(boxes, len(given), anchor_t, seed)
    better = best_possible_recall(boxes, fitted, anchor_t)
    if better <= recall:
        return anchors, f"{line}; kept: new ones fitted to the boxes reach {better:.2%}. A larger --imgsz may help"
    new = anchors.new_tensor(fitted).reshape(anchors.shape)
    by_stride = anchors.new_empty(anchors.shape)
    by_stride[strides.argsort().to(anchors.device)] = new
    sizes = " ".join(f"{w:.0f}x{h:.0f}" for w, h in fitted)
    return by_stride, f"{line}; {better:.2%} match new anchors, which are used: {sizes}"


def too_few(boxes: np.ndarray, count: int) -> str | None:
    """The reason why `count` anchors cannot be fitted to `boxes` (M, 2) pixels; None if they can."""
    if len(boxes) < count:
        return f"{counted(len(boxes), 'box is', 'boxes are')} too few to fit {count} anchors"
    different = len(np.unique(boxes.round(), axis=0))
    if different < count:
        return f"{counted(different, 'box size is', 'different box sizes are')} too few to fit {count} anchors"
    return None


def adapt_anchors(
    anchors: Tensor, strides: Tensor, scan: Scan, cfg: TrainConfig, anchor_t: float, trained_head: bool
) -> None:
    """Replace the anchors of a model, in place, if they do not fit the labels of the scan; logs the reason.

    Args:
        anchors, strides, anchor_t, trained_head: see check_anchors.
    """
    sizes = label_sizes(scan, cfg.imgsz, cfg.tile_train)
    fitted, line = check_anchors(sizes, anchors, strides, anchor_t, cfg.seed, trained_head)
    anchors.copy_(fitted)
    LOGGER.info(line)
