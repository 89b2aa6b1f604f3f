"""AutoAnchor: whether a model's anchors suit the boxes it is to learn, and better ones where they do not.

A box can be learned only if an anchor is near it in the sense of `utils.loss.assign_targets`: no side differs by more
than the factor `anchor_t`. In logarithms that is a distance, the larger of two differences.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from utils.data.scan import Scan

ENOUGH = 0.98  # from this recall on the anchors stay, as in YOLOv5
ENOUGH_LEARNED = 0.9  # for anchors of a head that is trained: with other ones it would place every box wrongly
SMALLEST = 2.0  # pixels; a box whose longer side is shorter can hardly be seen and has no say
SAMPLE = 10_000  # boxes that are fitted to, at most; recall is always that of all
ROUNDS, STEPS, SPREAD = 100, 1000, 0.1  # of k-means; of the refinement and the size of its steps, in logarithms


def label_sizes(scan: Scan, imgsz: int) -> np.ndarray:
    """(M, 2) width, height of every label in pixels, in pictures whose long side is `imgsz`."""
    sides = scan.sizes.astype(np.float64) * (imgsz / scan.sizes.max(axis=1, keepdims=True, initial=1))
    return scan.labels[:, 3:5] * np.repeat(sides[:, ::-1], np.diff(scan.offsets), axis=0)


def nearest(log_wh: np.ndarray, log_anchors: np.ndarray) -> np.ndarray:
    """(M,) distance of each box (M, 2) to the nearest anchor (K, 2), all in logarithms of pixels."""
    best = np.full(len(log_wh), np.inf)
    for anchor in log_anchors:
        np.minimum(best, np.abs(log_wh - anchor).max(axis=1), out=best)
    return best


def best_possible_recall(wh: np.ndarray, anchors: np.ndarray, anchor_t: float) -> float:
    """The fraction of boxes that match at least one anchor; 0 without boxes.

    Args:
        wh, anchors: (M, 2) and (K, 2) width, height, positive, in one unit.
    """
    if not len(wh):
        return 0.0
    return float((nearest(np.log(wh), np.log(anchors)) < math.log(anchor_t)).mean())


def fit_anchors(wh: np.ndarray, count: int, anchor_t: float = 4.0, seed: int = 0) -> np.ndarray:
    """(count, 2) width, height of anchors for the boxes `wh` (M, 2), by area; the same for the same seed.

    K-means in logarithms, then random steps that are kept where they make boxes and anchors more alike.

    Raises:
        ValueError: fewer different boxes than anchors.
    """
    rng = np.random.default_rng(seed)
    different = len(np.unique(wh, axis=0))
    if different < count:
        raise ValueError(f"{different} different box sizes, expected at least {count}")
    if len(wh) > SAMPLE and len(np.unique(chosen := rng.choice(wh, SAMPLE, replace=False), axis=0)) >= count:
        wh = chosen
    boxes = np.log(wh)
    anchors = np.exp(refine(boxes, k_means(boxes, count, rng), math.log(anchor_t), rng))
    return anchors[np.argsort(anchors.prod(axis=1), kind="stable")]


def k_means(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 2) centres of clusters of `points` (M, 2), of which at least `count` differ; no cluster is empty.

    Source: Arthur and Vassilvitskii 2007 for the start (k-means++), Lloyd 1982 for the rounds.
    """

    def squared(centres: np.ndarray) -> np.ndarray:
        return ((points[:, None] - centres[None]) ** 2).sum(axis=2)

    centres = points[rng.integers(len(points), size=1)]
    while len(centres) < count:
        far = squared(centres).min(axis=1)
        centres = np.concatenate([centres, points[rng.choice(len(points), size=1, p=far / far.sum())]])
    for _ in range(ROUNDS):
        distances = squared(centres)
        owner = distances.argmin(axis=1)
        moved = centres.copy()
        for k in range(count):
            mine = owner == k
            if mine.any():
                moved[k] = points[mine].mean(axis=0)
            else:  # a cluster without points starts again at the point that is worst off
                moved[k] = points[distances.min(axis=1).argmax()]
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres


def refine(boxes: np.ndarray, anchors: np.ndarray, limit: float, rng: np.random.Generator) -> np.ndarray:
    """`anchors` (K, 2) after STEPS random steps, each kept if it raises the mean likeness to the boxes (M, 2).

    The likeness of a box and its nearest anchor is their worse ratio of sides, at most 1, or 0 beyond `limit`; all
    sizes and `limit` are logarithms.
    """

    def likeness(candidate: np.ndarray) -> float:
        distance = nearest(boxes, candidate)
        return float((np.exp(-distance) * (distance < limit)).mean())

    best = likeness(anchors)
    for _ in range(STEPS):
        step = rng.normal(0, SPREAD, anchors.shape) * rng.random() * (rng.random(anchors.shape) < 0.5)
        score = likeness(anchors + step)
        if score > best:
            anchors, best = anchors + step, score
    return anchors


def check_anchors(
    wh: np.ndarray, anchors: Tensor, strides: Tensor, anchor_t: float = 4.0, seed: int = 0, learned: bool = False
) -> tuple[Tensor, str]:
    """The anchors to train with, and a line that says why: the given ones where they do, else ones fitted to `wh`.

    Equal input gives equal output, so every process of a run may ask for itself. Whatever the boxes are, nothing is
    raised: sets that are too small or too uniform keep the given anchors.

    Args:
        wh: (M, 2) width, height of the labels in pixels at the training size (`label_sizes`); M may be 0.
        anchors: (levels, A, 2) width, height in pixels; not modified. strides: (levels,) pixels.
        learned: the head was trained with these anchors.

    Returns:
        (levels, A, 2) like `anchors`, larger ones where the stride is larger; the line.
    """
    boxes = wh[np.isfinite(wh).all(axis=1) & (wh > 0).all(axis=1)]
    boxes = boxes[boxes.max(axis=1) >= SMALLEST] if len(boxes) else boxes
    left_out = len(wh) - len(boxes)
    ignored = f" (without {left_out} below {SMALLEST:.0f} px)" if left_out else ""
    given = anchors.detach().cpu().double().numpy().reshape(-1, 2)
    recall = best_possible_recall(boxes, given, anchor_t)
    line = f"AutoAnchor: {recall:.2%} of {len(boxes)} boxes can match the model's anchors{ignored}"
    if recall >= (ENOUGH_LEARNED if learned else ENOUGH):
        return anchors, f"{line}; kept{', for the head was trained with them' if recall < ENOUGH else ''}"
    reason = unfit(boxes, len(given))
    if reason:
        return anchors, f"{line}; kept all the same: {reason}"
    fitted = fit_anchors(boxes, len(given), anchor_t, seed)
    better = best_possible_recall(boxes, fitted, anchor_t)
    if better <= recall:
        return anchors, f"{line}; kept all the same: fitted ones reach {better:.2%}. A larger --imgsz may help"
    new = anchors.new_tensor(fitted).reshape(anchors.shape)
    by_stride = anchors.new_empty(anchors.shape)
    by_stride[strides.argsort().to(anchors.device)] = new
    sizes = " ".join(f"{w:.0f}x{h:.0f}" for w, h in fitted)
    return by_stride, f"{line}; {better:.2%} match new ones, used instead: {sizes}"


def unfit(boxes: np.ndarray, count: int) -> str:
    """Why no `count` anchors can be fitted to `boxes` (M, 2) pixels; '' if they can."""
    if len(boxes) < count:
        return f"{len(boxes)} boxes are too few to fit {count} anchors to"
    different = len(np.unique(boxes.round(), axis=0))
    if different < count:
        return f"{different} different sizes among the boxes are too few to fit {count} anchors to"
    return ""
