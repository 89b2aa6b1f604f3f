"""Confidence thresholds chosen on a split, and how far confidences are from the share of right detections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.evaluate.matching import ClassMatches
from utils.thresholds import NEAR_BEST_F1, Thresholds

STEPS = 10_000  # thresholds 0, 0.0001, ... 0.9999: what is stored is what was measured, and is short to type
GRID = np.arange(STEPS) / STEPS
SLACK = 0.015  # by how much F1 is below the best where a threshold counts 1/e
POOLED = 1 / 3  # weight of the F1 of all boxes together beside the mean over the classes, which is noisier
BINS = 15  # of the reliability curve
LOWEST = 0.05  # least confidence of a detection that counts for calibration
TEMPERATURES = np.geomspace(0.25, 4, 161)
TINY = 1e-6  # keeps logarithms finite


@dataclass(frozen=True)
class Counts:
    """Of one class or several: labels, and (STEPS,) detections above each threshold of GRID, and right ones of them."""

    labels: int
    kept: np.ndarray
    right: np.ndarray

    @classmethod
    def of(cls, matches: ClassMatches) -> Counts:
        """The counts of one class."""
        kept = np.searchsorted(-matches.scores, -GRID, side="left")  # more than the threshold, as NMS keeps them
        return cls(matches.labels, kept, np.append(0, matches.hits.cumsum())[kept])

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.labels + other.labels, self.kept + other.kept, self.right + other.right)

    @property
    def precision(self) -> np.ndarray:
        """(STEPS,) 0 where there are no detections."""
        return self.right / np.maximum(self.kept, 1)

    @property
    def recall(self) -> np.ndarray:
        """(STEPS,)."""
        return self.right / self.labels

    @property
    def f1(self) -> np.ndarray:
        """(STEPS,)."""
        return 2 * self.right / (self.kept + self.labels)


def choose_thresholds(
    matches: Mapping[int, ClassMatches],
    names: Sequence[str],
    precision: float | None = None,
    recall: float | None = None,
) -> Thresholds | None:
    """The thresholds near the best F1, or the lowest with a wanted precision, or the highest with a wanted recall.

    The very best F1 of some dozens of images is a matter of chance: of all thresholds, weighted by how near the best
    their F1 is, the mean is better on other images (docs/val.md).
    A wanted precision or recall is that of the boxes of all classes together, which a user sees. Where it cannot be
    reached the threshold is the one that comes nearest, and the rule says "not reached".

    Args:
        matches: place in names -> matches of a class with labels, see DetectionMetrics.class_matches.

    Returns:
        None without right detections.
    """
    counts = {names[place]: Counts.of(m) for place, m in matches.items()}
    if not any(c.right[0] for c in counts.values()):
        return None
    pooled = sum_of(list(counts.values()))
    best_f1 = precision is None and recall is None
    if best_f1:
        best = middle(center_of_best((1 - POOLED) * mean(counts, "f1") + POOLED * pooled.f1, pooled), pooled.kept)
        p, r, f1 = (float(mean(counts, key)[best]) for key in ("precision", "recall", "f1"))
        rule = NEAR_BEST_F1
    else:
        best = place_of(pooled, precision, recall)
        p, r, f1 = (float(getattr(pooled, key)[best]) for key in ("precision", "recall", "f1"))
        what, wanted, got = ("precision", precision, p) if precision is not None else ("recall", recall or 0.0, r)
        rule = f"{what} {wanted:g}" + (", not reached" if got < wanted else "")
    own = {name: float(GRID[place_of(c, precision, recall)]) for name, c in counts.items() if c.right[0]}
    return Thresholds(float(GRID[best]), rule, "", p, r, f1, own)


def sum_of(counts: Sequence[Counts]) -> Counts:
    """The counts of all classes together."""
    total = counts[0]
    for more in counts[1:]:
        total = total + more
    return total


def mean(counts: Mapping[str, Counts], key: str) -> np.ndarray:
    """(STEPS,) mean over the classes of their precision, recall or F1."""
    total = np.zeros(STEPS)
    for each in counts.values():
        total += getattr(each, key)
    return total / len(counts)


def place_of(counts: Counts, precision: float | None, recall: float | None) -> int:
    """The place in GRID of the threshold of one group of detections, see choose_thresholds."""
    if precision is None and recall is None:
        return middle(center_of_best(counts.f1, counts), counts.kept)
    curve, wanted = (counts.precision, precision) if precision is not None else (counts.recall, recall)
    enough = np.flatnonzero(curve >= wanted)
    if not len(enough):
        return middle(last_best(curve), counts.kept)
    return middle(int(enough[0] if precision is not None else enough[-1]), counts.kept)


def center_of_best(f1: np.ndarray, counts: Counts) -> int:
    """The place in GRID of the mean of all thresholds, weighted by exp((f1 - best) / SLACK).

    What is averaged is the logarithm of detections and labels together, which F1 is divided by: the confidences of one
    model crowd near 0, those of another near 1.

    Args:
        f1: (STEPS,). counts: of the detections that it is about.
    """
    first = np.flatnonzero(np.diff(counts.kept, prepend=counts.kept[0] + 1))  # where a detection is left out
    size = np.log(counts.kept[first] + counts.labels)
    width = np.abs(np.gradient(size)) if len(first) > 1 else np.ones(1)
    weight = width * np.exp((f1[first] - f1.max()) / SLACK)
    center = (weight * size).sum() / weight.sum()
    return int(first[np.abs(size - center).argmin()])


def last_best(curve: np.ndarray) -> int:
    """The place of the highest value, the last of equal ones."""
    return STEPS - 1 - int(curve[::-1].round(10).argmax())


def middle(place: int, kept: np.ndarray) -> int:
    """The middle of the places that keep as many detections as `place`: the farthest from those that decided it."""
    first, end = np.searchsorted(-kept, -kept[place], side="left"), np.searchsorted(-kept, -kept[place], side="right")
    return int(first + end - 1) // 2


def f1_at(matches: Mapping[int, ClassMatches], confidence: float) -> float:
    """Mean F1 over the classes of the detections above a threshold."""
    scores = []
    for m in matches.values():
        kept = m.hits[m.scores > confidence]
        scores.append(2 * float(kept.sum()) / (len(kept) + m.labels))
    return float(np.mean(scores)) if scores else 0.0


@dataclass(frozen=True)
class Calibration:
    """How far confidences are from the share of right detections.

    Attributes:
        confidence, share, count: (BINS,) mean confidence of each bin, share of right detections, detections; NaN
            where there are none. error: expected calibration error, 0..1.
        temperature: dividing the log-odds of confidences by it makes them fit best; 1: they do already.
        error_after: the error with it.
    """

    confidence: np.ndarray
    share: np.ndarray
    count: np.ndarray
    error: float
    temperature: float
    error_after: float

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return {"ece": self.error, "temperature": self.temperature, "ece_with_temperature": self.error_after}

    def __str__(self) -> str:
        return (
            f"expected calibration error {self.error:.3f}; "
            f"a temperature of {self.temperature:.2f} would make it {self.error_after:.3f}"
        )


def calibration(matches: Mapping[int, ClassMatches]) -> Calibration | None:
    """The calibration of all detections with a confidence of at least LOWEST; None without any.

    Source: Guo et al. 2017, arXiv:1706.04599.
    """
    scores, hits = confident(matches)
    if not len(scores):
        return None
    temperature = best_temperature(scores, hits)
    bins, error = reliability(scores, hits)
    return Calibration(*bins, error, temperature, reliability(scaled(scores, temperature), hits)[1])


def confident(matches: Mapping[int, ClassMatches]) -> tuple[np.ndarray, np.ndarray]:
    """Scores and hits, floats, of the detections of all classes with a confidence of at least LOWEST."""
    parts = list(matches.values())
    scores, hits = (np.concatenate([getattr(m, key) for m in parts] or [np.zeros(0)]) for key in ("scores", "hits"))
    kept = scores >= LOWEST
    return scores[kept].astype(np.float64), hits[kept].astype(np.float64)


def reliability(scores: np.ndarray, hits: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], float]:
    """Mean confidence, share of hits and count of each of BINS equal bins, and their mean difference by count."""
    place = np.minimum((scores * BINS).astype(int), BINS - 1)
    count = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(place, scores, BINS) / count
        share = np.bincount(place, hits, BINS) / count
    error = float(np.nansum(np.abs(confidence - share) * count) / max(len(scores), 1))
    return (confidence, share, count), error


def scaled(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Confidences whose log-odds are divided by `temperature`."""
    safe = np.clip(scores, TINY, 1 - TINY)
    odds = np.log(safe / (1 - safe)) / temperature
    return 1 / (1 + np.exp(-odds))


def best_temperature(scores: np.ndarray, hits: np.ndarray) -> float:
    """The temperature with the least cross-entropy, of detections rounded to three digits."""
    values, place = np.unique(scores.round(3), return_inverse=True)
    right, count = np.bincount(place, hits), np.bincount(place)
    losses = []
    for temperature in TEMPERATURES:
        p = np.clip(scaled(values, float(temperature)), TINY, 1 - TINY)
        losses.append(-(right * np.log(p) + (count - right) * np.log(1 - p)).sum())
    return float(TEMPERATURES[int(np.argmin(losses))])
