"""Thresholds and calibration against exhaustive search and known distributions."""

from __future__ import annotations

import numpy as np
import pytest

from utils.evaluate.metrics import ClassMatches
from utils.evaluate.thresholds import calibration, choose_thresholds, mean_at, scaled


def matches_of(seed: int, labels: int = 200, power: float = 1.0) -> ClassMatches:
    """Detections whose share of right ones is confidence ** power."""
    chance = np.random.default_rng(seed)
    scores = -np.sort(-chance.uniform(0, 1, 2 * labels))
    hits = chance.uniform(0, 1, len(scores)) < scores**power
    return ClassMatches(max(labels, int(hits.sum())), scores, hits)


@pytest.mark.parametrize("seed", range(5))
def test_best_f1_is_near_that_of_an_exhaustive_search(seed: int) -> None:
    parts = {0: matches_of(seed), 1: matches_of(seed + 100, 80)}
    chosen = choose_thresholds(parts, ["a", "b"])
    best = max(mean_at(list(parts.values()), t)[2] for t in np.linspace(0, 1, 2001))
    assert chosen is not None and best - 0.02 < chosen.f1 <= best
    assert set(chosen.per_class) == {"a", "b"} and chosen.rule == "best F1"


@pytest.mark.parametrize("wanted", [0.5, 0.8, 0.9])
def test_wanted_precision_and_recall_are_kept_and_cannot_be_had_for_less(wanted: float) -> None:
    m = matches_of(3)
    at_precision = choose_thresholds({0: m}, ["a"], precision=wanted)
    kept = m.hits[m.scores >= at_precision.confidence - 1e-4]
    assert kept.mean() >= wanted - 0.01
    below = [m.hits[m.scores >= t].mean() for t in m.scores[m.scores < at_precision.confidence - 1e-4]]
    assert all(p < wanted for p in below)
    total = m.hits.sum() / m.labels
    if wanted < total:
        at_recall = choose_thresholds({0: m}, ["a"], recall=wanted)
        assert m.hits[m.scores >= at_recall.confidence - 1e-4].sum() / m.labels >= wanted
        assert m.hits[m.scores > at_recall.confidence + 1e-4].sum() / m.labels < wanted


def test_what_cannot_be_reached_is_an_error_and_nothing_is_none() -> None:
    m = ClassMatches(10, np.array([0.9, 0.8]), np.array([True, False]))
    with pytest.raises(ValueError, match=r"--at-recall 0\.5: not reached at any confidence, the best is 0\.100"):
        choose_thresholds({0: m}, ["a"], recall=0.5)
    none = ClassMatches(3, np.zeros(0), np.zeros(0, bool))
    assert choose_thresholds({}, ["a"]) is None and choose_thresholds({0: none}, ["a"]) is None
    with_silent_class = choose_thresholds({0: m, 1: none}, ["a", "b"])
    assert with_silent_class is not None and set(with_silent_class.per_class) == {"a"}
    assert "best F1 on x, val" in choose_thresholds({0: m}, ["a"], data="x, val").text()


def test_calibrated_confidences_have_no_error_and_sharpened_ones_are_repaired() -> None:
    fair = calibration({0: matches_of(0, 20_000)})
    assert fair.error < 0.02 and fair.temperature == pytest.approx(1, abs=0.1)
    m = matches_of(0, 20_000)
    sharp = calibration({0: ClassMatches(m.labels, scaled(m.scores, 0.5), m.hits)})
    assert sharp.error > 0.05 and sharp.temperature == pytest.approx(2, abs=0.25) and sharp.error_after < 0.03
    assert fair.count.sum() == (m.scores >= 0.05).sum()
    empty = calibration({})
    assert empty.error == 0 and empty.temperature == 1 and np.isnan(empty.share).all()
