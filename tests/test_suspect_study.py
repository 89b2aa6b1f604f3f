"""Planting label errors: what is spoiled, that it is found again, and how many detections like one have a label."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from tests.test_error_page import NAMES, clean_set
from tests.test_verdicts import boxes, truth
from tools.suspect_study import KINDS, is_among, row_of, spoil
from utils.boxes import Boxes, Truth
from utils.evaluate.metrics import DetectionMetrics
from utils.evaluate.suspects import MISSING, SHIFTED, SWAPPED, find_suspects

SIZE = 210, 210


def test_a_share_of_the_labels_is_spoiled_a_third_each_way() -> None:
    _, labels = clean_set(20)
    spoiled, planted = spoil(labels, [SIZE] * 20, [0, 1], 0.1, 3)
    assert [sum(error.kind == kind for error in planted) for kind in KINDS] == [4, 4, 4]
    assert sum(map(len, labels)) - sum(map(len, spoiled)) == 4
    for error in planted:
        before, after = labels[error.image], spoiled[error.image]
        assert (error.row < 0) == (error.kind == MISSING)
        if error.kind == SWAPPED:
            same = (before.xyxy == after.xyxy[error.row]).all(axis=1)
            assert before.label[same].tolist() == [1 - after.label[error.row]]
        if error.kind == SHIFTED:
            assert not (before.xyxy == after.xyxy[error.row]).all(axis=1).any()
    again, _ = spoil(labels, [SIZE] * 20, [0, 1], 0.1, 3)
    assert all((a.xyxy == b.xyxy).all() for a, b in zip(again, spoiled, strict=True))


def test_planted_errors_are_among_the_suspects_and_counted() -> None:
    found, labels = clean_set(40)
    spoiled, planted = spoil(labels, [SIZE] * 40, [0, 1], 0.05, 0)
    suspects = find_suspects(found, spoiled, NAMES)
    assert all(is_among(suspects, error) for error in planted)
    assert not any(is_among([], error) for error in planted)
    part = DetectionMetrics(NAMES)
    for own, label in zip(found, labels, strict=True):
        part.update(own, label, SIZE)
    row = row_of(part, 0.05, 4)
    assert (row["labels"], row["planted"]) == ("240", "12") and float(row["in the first tenth"].split()[0]) >= 0.8


def partly_labeled(images: int = 30) -> tuple[list[Boxes], list[Truth]]:
    """Images whose objects all have a label, and as many where half of them have; all are found."""
    rows = [(x, y, x + 30.0, y + 30.0) for x in range(0, 200, 50) for y in range(0, 200, 50)]
    found = [boxes(*((*row, 0.8, 0) for row in rows)) for _ in range(2 * images)]
    whole, half = ([(*row, 0) for row in rows[::step]] for step in (1, 2))
    return found, [truth(*whole)] * images + [truth(*half)] * images


def test_one_missing_label_of_an_image_is_more_suspicious_than_many() -> None:
    found, labels = partly_labeled()
    labels[3] = truth(*((*row, 0) for row in labels[3].xyxy[1:].tolist()))
    first, second = find_suspects(found, labels, NAMES)[:2]
    assert (first.kind, first.image) == (MISSING, 3) and first.score > 2 * second.score


def test_a_contradiction_that_is_common_is_less_suspicious_and_as_strong() -> None:
    scores = []
    for swapped in (1, 20):
        found, labels = clean_set(40)
        labels = [
            Truth(t.xyxy, 1 - t.label if i < swapped else t.label, t.score, t.crowd, t.area)
            for i, t in enumerate(labels)
        ]
        own = [s for s in find_suspects(found, labels, NAMES) if s.kind == SWAPPED]
        scores.append((max(s.score for s in own), max(s.strength for s in own)))
    (rare, strong), (common, as_strong) = scores
    assert rare > 2 * common and as_strong > 0.8 * strong


def test_a_detector_that_finds_nothing_suspects_nothing() -> None:
    labels = [truth((0, 0, 40, 40, 0))] * 3
    assert find_suspects([boxes()] * 3, labels, NAMES) == []
    assert find_suspects([boxes((0, 0, 40, 40, 0.04, 0))] * 3, labels, NAMES) == []
    found = find_suspects([boxes((100, 100, 140, 140, 0.9, 0)), boxes(), boxes()], labels, NAMES)
    assert len(found) == 4 and all(a.score >= b.score for a, b in pairwise(found))
    assert np.isfinite([s.score for s in found]).all()
