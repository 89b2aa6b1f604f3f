"""Confidence thresholds chosen on a split, and how far confidences are from the share of right detections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from utils.evaluate.matching import STEPS, confidence_curves
from utils.evaluate.metrics import ClassMatches

SMOOTH = 31  # steps of 0.001 over which F1 is averaged, so that one box of a small split does not decide
BINS = 15  # of the reliability curve
LOWEST = 0.05  # least confidence of a detection that counts for calibration
TEMPERATURES = np.geomspace(0.25, 4, 161)
TINY = 1e-6  # keeps logarithms finite


@dataclass(frozen=True)
class Thresholds:
    """Confidence thresholds for one model.

    Attributes:
        confidence: for all classes. per_class: class name -> its own. rule: how they were chosen, in words. data: the
            split that they were chosen on. precision, recall, f1: there, of `confidence`; means over the classes with
            labels.
    """

    confidence: float
    per_class: dict[str, float] = field(default_factory=dict)
    rule: str = "best F1"
    data: str = ""
    precision: float = 0.0
    recall: float = 0.0
    f1: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for checkpoints and the metadata of exported files."""
        return asdict(self)

    def text(self) -> str:
        """'0.381 (best F1 on my.yaml, val: precision 0.81, recall 0.77)'."""
        where = f" on {self.data}" if self.data else ""
        return f"{self.confidence:.3f} ({self.rule}{where}: precision {self.precision:.2f}, recall {self.recall:.2f})"


def choose_thresholds(
    matches: Mapping[int, ClassMatches],
    names: Sequence[str],
    precision: float | None = None,
    recall: float | None = None,
    data: str = "",
) -> Thresholds | None:
    """The thresholds of best F1, or the lowest with a wanted precision, or the highest with a wanted recall.

    Precision and recall are those of all classes together: of the detections that a user sees. A class that cannot
    reach what is wanted gets the threshold that comes nearest.

    Args:
        matches: place in names -> matches of a class with labels, see DetectionMetrics.class_matches.

    Returns:
        None without detections or labels.

    Raises:
        ValueError: all classes together do not reach the wanted precision or recall.
    """
    if not any(len(m.scores) for m in matches.values()):
        return None
    parts = list(matches.values())
    scores, hits = (np.concatenate([getattr(m, key) for m in parts]) for key in ("scores", "hits"))
    order = (-scores).argsort(kind="stable")
    pooled = ClassMatches(sum(m.labels for m in parts), scores[order], hits[order])
    own = {names[k]: threshold(m, precision, recall)[0] for k, m in matches.items() if len(m.scores)}
    rule = "best F1"
    if precision is None and recall is None:
        best = best_mean_f1(parts)
    else:
        best, reached = threshold(pooled, precision, recall)
        what, wanted = ("precision", precision) if precision is not None else ("recall", recall)
        rule = f"{what} {wanted}"
        if reached is not None:
            raise ValueError(f"--at-{what} {wanted}: not reached at any confidence, the best is {reached:.3f}")
    p, r, f1 = mean_at(parts, best)
    return Thresholds(round(best, 4), {n: round(v, 4) for n, v in own.items()}, rule, data, p, r, f1)


def best_mean_f1(parts: Sequence[ClassMatches]) -> float:
    """The confidence, in steps of 1 / 999, where the mean F1 over classes is best once it is smoothed."""
    f1 = np.mean([confidence_curves(*part_of(m))[2] for m in parts], axis=0)
    return float(np.linspace(0, 1, STEPS)[smooth(f1).argmax()])


def part_of(m: ClassMatches) -> tuple[np.ndarray, np.ndarray, int]:
    """Scores, hits, labels: the arguments of confidence_curves."""
    return m.scores, m.hits, m.labels


def smooth(curve: np.ndarray) -> np.ndarray:
    """The mean of a curve over SMOOTH steps, of fewer at its ends."""
    kernel = np.ones(SMOOTH)
    return np.convolve(curve, kernel, "same") / np.convolve(np.ones_like(curve), kernel, "same")


def threshold(m: ClassMatches, precision: float | None, recall: float | None) -> tuple[float, float | None]:
    """The threshold of one group of detections, and what was reached if that is less than wanted; see above."""
    if precision is None and recall is None:
        return best_mean_f1([m]), None
    right = m.hits.cumsum()
    ends = np.flatnonzero(np.append(m.scores[1:] != m.scores[:-1], True))  # equal scores enter together
    curve = right[ends] / (ends + 1) if precision is not None else right[ends] / m.labels
    wanted = float(precision if precision is not None else recall or 0.0)
    enough = np.flatnonzero(curve >= wanted)
    if not len(enough):
        return float(m.scores[ends[curve.argmax()]]), float(curve.max())
    return float(m.scores[ends[enough[-1] if precision is not None else enough[0]]]), None


def mean_at(parts: Sequence[ClassMatches], confidence: float) -> tuple[float, float, float]:
    """Mean precision, recall and F1 over classes of the detections with at least `confidence`."""
    rows = []
    for m in parts:
        kept = m.hits[m.scores >= confidence]
        right = float(kept.sum())
        rows.append((right / max(len(kept), 1), right / m.labels, 2 * right / (len(kept) + m.labels)))
    p, r, f1 = np.mean(rows, axis=0).tolist()
    return p, r, f1


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


def calibration(matches: Mapping[int, ClassMatches]) -> Calibration:
    """The calibration of all detections with a confidence of at least LOWEST.

    Source: Guo et al. 2017, arXiv:1706.04599.
    """
    parts = list(matches.values())
    scores, hits = (np.concatenate([getattr(m, key) for m in parts] or [np.zeros(0)]) for key in ("scores", "hits"))
    kept = scores >= LOWEST
    scores, hits = scores[kept].astype(np.float64), hits[kept].astype(np.float64)
    temperature = best_temperature(scores, hits)
    bins, error = reliability(scores, hits)
    return Calibration(*bins, error, temperature, reliability(scaled(scores, temperature), hits)[1])


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
    """The temperature with the least cross-entropy; 1 without detections."""
    if not len(scores):
        return 1.0
    losses = []
    for temperature in TEMPERATURES:
        p = np.clip(scaled(scores, float(temperature)), TINY, 1 - TINY)
        losses.append(-(hits * np.log(p) + (1 - hits) * np.log(1 - p)).mean())
    return float(TEMPERATURES[int(np.argmin(losses))])
