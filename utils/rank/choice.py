"""The order in which images are labeled: uncertain ones first, each unlike those before it.

Sources: scores summed up by class and weighted by it: Brust et al. 2018, arXiv:1809.09875; each next image far from
those chosen (core-set): Sener and Savarese 2018, arXiv:1708.00489. Their product, and the surprise, are this project's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from utils.boxes import Boxes
from utils.rank.views import Impression
from utils.text import clean, counted

SURE = 0.25  # confidence from which on something counts as found, YOLOv5's default threshold
FLOOR = 0.25  # added to an uncertainty of 0..1: an image that is unlike all others is worth a label at any certainty
EQUAL = 0.05  # distance below which two images are nearly the same; random ones are about 1.4 apart
UNSTEADY = 0.75  # share of the images whose detections change less, from which on a reason says that they do
DOUBTFUL = (0.15, 0.7)  # confidences that a reason calls doubtful


@dataclass(frozen=True)
class Uncertainty:
    """How uncertain a detector is about n images; each is (n,).

    Attributes:
        entropy: of the scores, weighted by class; about 1 on average. disagreement: between views, likewise.
        surprise: 0..1, nothing was found although most images have something.
        total: 0..1, the share of the images about which it is less uncertain.
    """

    entropy: np.ndarray
    disagreement: np.ndarray
    surprise: np.ndarray
    total: np.ndarray


@dataclass(frozen=True)
class Choice:
    """An image of the list.

    Attributes:
        row: of the image. distance: to the nearest one that is known or listed before; NaN for the first of all.
        nearest: row of that one; -1: a known one, or none.
    """

    row: int
    distance: float
    nearest: int


def bits(score: np.ndarray) -> np.ndarray:
    """Binary entropy of scores in 0..1: 1 at 0.5, 0 at both ends."""
    p = np.clip(score.astype(np.float64), 1e-9, 1 - 1e-9)
    return -p * np.log2(p) - (1 - p) * np.log2(1 - p)


def share_below(values: np.ndarray) -> np.ndarray:
    """(n,) 0..1, the share of the other values that are lower; equal values get the same."""
    return np.searchsorted(np.sort(values), values, side="left") / max(len(values) - 1, 1)


def uncertainty(seen: Sequence[Impression], nc: int) -> Uncertainty:
    """The uncertainty about the images of a pool, compared with each other; `nc` is the number of classes."""
    by_class = np.array([class_entropy(item.found, nc) for item in seen]).reshape(len(seen), nc)
    usual = np.sqrt(by_class.mean(axis=0)) if len(seen) else np.ones(nc)
    weighted = np.divide(by_class, usual, out=np.zeros_like(by_class), where=usual > 0)  # rare classes count more
    entropy = by_mean(weighted.sum(axis=1))
    doubt = by_mean(np.array([item.disagreement for item in seen], dtype=np.float64))
    best = np.array([item.found.score.max(initial=0) for item in seen], dtype=np.float64)
    surprise = (best >= SURE).mean() * np.clip(1 - best / SURE, 0, 1) if len(seen) else best
    return Uncertainty(entropy, doubt, surprise, share_below((entropy + doubt) / 2 + 2 * surprise))


def class_entropy(found: Boxes, nc: int) -> np.ndarray:
    """(nc,) entropy of the detections of each class of one image."""
    return np.bincount(found.label, bits(found.score), minlength=nc).astype(np.float64)  # integers without detections


def by_mean(values: np.ndarray) -> np.ndarray:
    """Values divided by their mean, if that is not 0."""
    mean = values.mean() if len(values) else 0.0
    return values / mean if mean > 0 else values


def standardized(features: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both (n, C) and (m, C), each channel with mean 0 and variance 1 / C over all: random images are 1.4 apart."""
    both = np.concatenate([features, known])
    spread = both.std(axis=0)
    scale = np.divide(1, spread, out=np.zeros_like(spread), where=spread > 1e-9) / max(both.shape[1], 1) ** 0.5
    both = (both - both.mean(axis=0)) * scale
    return both[: len(features)], both[len(features) :]


def choose(total: np.ndarray, features: np.ndarray, count: int, known: np.ndarray | None = None) -> list[Choice]:
    """The images to label, the first ones first; of equal ones the one with the lower row.

    Each has the largest product of FLOOR + total and of its distance to the nearest image that is known or was chosen.

    Args:
        total: (n,) uncertainty, 0..1. features: (n, C). count: images to choose; all if there are fewer.
        known: (m, C) features of images that have labels; m may be 0.
    """
    if not len(total):
        return []
    features, known = standardized(features, np.zeros((0, features.shape[1])) if known is None else known)
    distance, nearest = np.full(len(total), np.inf), np.full(len(total), -1)
    for row in known:
        distance = np.minimum(distance, np.linalg.norm(features - row, axis=1))
    free, chosen = np.ones(len(total), dtype=bool), list[Choice]()
    for _ in range(min(count, len(total))):
        worth = (FLOOR + total) * np.where(np.isinf(distance), 1, distance)
        row = int(np.where(free, worth, -1).argmax())
        chosen.append(Choice(row, float(distance[row]) if np.isfinite(distance[row]) else float("nan"), nearest[row]))
        free[row] = False
        apart = np.linalg.norm(features - features[row], axis=1)
        nearest[apart < distance] = row
        distance = np.minimum(distance, apart)
    return chosen


def reason(choice: Choice, doubts: Uncertainty, found: Boxes, names: Mapping[int, str], paths: Sequence[str]) -> str:
    """Why an image is in the list, in words."""
    if choice.distance < EQUAL:
        twin = clean(paths[choice.nearest].rpartition("/")[2], 60) if choice.nearest >= 0 else "an image with labels"
        return f"nearly the same as {twin}: little would be learned"
    i, parts = choice.row, list[str]()
    if doubts.surprise[i] > 0.25:
        parts.append("nothing found, most images have something")
    unsure = found[(found.score >= DOUBTFUL[0]) & (found.score < DOUBTFUL[1])]
    if doubts.entropy[i] >= 1 and len(unsure):
        order = np.argsort(np.abs(unsure.score - 0.5), kind="stable").tolist()
        most = {int(unsure.label[k]): float(unsure.score[k]) for k in reversed(order)}  # of each class
        which = ", ".join(f"{clean(names[c], 30)} {most[c]:.2f}" for c in list(reversed(most))[:3])
        parts.append(f"{counted(len(unsure), 'doubtful detection')} ({which})")
    steadier = float(share_below(doubts.disagreement)[i])
    if steadier >= UNSTEADY:
        others = "all others" if steadier == 1 else f"{steadier:.0%} of the images"
        parts.append(f"detections change when it is mirrored or smaller, more than in {others}")
    if choice.distance >= 1 or not parts:
        parts.append("unlike the images before it" if choice.distance == choice.distance else "the most uncertain")
    return "; ".join(parts)
