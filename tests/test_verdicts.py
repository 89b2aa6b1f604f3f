"""Verdicts on detections and labels: by hand, against COCO's AP, and against a slow second implementation."""

from __future__ import annotations

import numpy as np
import pytest

from utils.boxes import Boxes, Truth
from utils.evaluate.matching import average_precision
from utils.evaluate.metrics import DetectionMetrics
from utils.evaluate.verdicts import ERRORS, ErrorAnalysis, Verdict, judge_image

NAMES = {0: "cat", 1: "dog"}


def boxes(*rows: tuple[float, ...]) -> Boxes:
    """Rows x1, y1, x2, y2, score, class."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    return Boxes(table[:, :4], table[:, 5].astype(np.int64), table[:, 4])


def truth(*rows: tuple[float, ...], crowd: tuple[int, ...] = ()) -> Truth:
    """Rows x1, y1, x2, y2, class."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    is_crowd = np.isin(np.arange(len(table)), crowd)
    area = (table[:, 2] - table[:, 0]) * (table[:, 3] - table[:, 1])
    return Truth(table[:, :4], table[:, 4].astype(np.int64), np.ones(len(table)), is_crowd, area)


def random_set(seed: int, images: int = 20) -> tuple[list[Boxes], list[Truth]]:
    """Labels, and detections that are right, shifted, of another class, doubled or anywhere."""
    chance = np.random.default_rng(seed)
    found, labels = [], []
    for _ in range(images):
        count = int(chance.integers(0, 7))
        low = chance.uniform(0, 80, (count, 2))
        table = np.column_stack([low, low + chance.uniform(8, 40, (count, 2)), chance.integers(0, 2, count)])
        labels.append(truth(*table.tolist()))
        rows = []
        for _ in range(int(chance.integers(0, 12))):
            if count and chance.random() < 0.8:
                base = table[chance.integers(count)]
                shift = chance.normal(0, chance.choice([0.5, 4, 12]), 4)
                corners = base[:4] + shift
                corners[2:] = np.maximum(corners[2:], corners[:2] + 1)
                label = base[4] if chance.random() < 0.8 else 1 - base[4]
            else:
                start = chance.uniform(0, 90, 2)
                corners, label = np.append(start, start + chance.uniform(5, 30, 2)), chance.integers(0, 2)
            rows.append((*corners, chance.random(), label))
        found.append(boxes(*rows))
    return found, labels


def test_each_kind_by_hand() -> None:
    labels = truth((0, 0, 10, 10, 0), (20, 0, 30, 10, 0), (40, 0, 50, 10, 1), (60, 0, 70, 10, 1), (0, 50, 40, 90, 0))
    found = boxes(
        (0, 0, 10, 9, 0.9, 0),  # right
        (0, 0, 10, 10, 0.8, 0),  # the same label again
        (20, 0, 30, 10, 0.7, 1),  # a dog on a cat
        (40, 4, 50, 18, 0.6, 1),  # IoU 6/18
        (61, 5, 71, 16, 0.5, 0),  # a cat near a dog
        (80, 80, 90, 90, 0.4, 0),  # near nothing
    )
    verdicts = judge_image(found, labels)
    expected = ["RIGHT", "DUPLICATE", "WRONG_CLASS", "BADLY_PLACED", "BOTH", "BACKGROUND"]
    assert [Verdict(v).name for v in verdicts.detection] == expected
    assert verdicts.about.tolist() == [0, 0, 1, 2, 3, -1]
    assert [Verdict(v).name for v in verdicts.label] == ["RIGHT", "WRONG_CLASS", "BADLY_PLACED", "MISSED", "MISSED"]
    assert verdicts.by.tolist() == [0, 2, 3, -1, -1]


def test_crowds_are_ignored_on_both_sides() -> None:
    labels = truth((0, 0, 100, 100, 0), (0, 0, 10, 10, 0), crowd=(0,))
    found = boxes((0, 0, 10, 10, 0.9, 0), (30, 30, 50, 50, 0.8, 0), (30, 30, 50, 50, 0.8, 1))
    verdicts = judge_image(found, labels)
    assert verdicts.detection.tolist() == [Verdict.RIGHT, Verdict.IGNORED, Verdict.BACKGROUND]
    assert verdicts.label.tolist() == [Verdict.IGNORED, Verdict.RIGHT]


@pytest.mark.parametrize("side", ["found", "labels", "both"])
def test_nothing_found_or_nothing_labeled(side: str) -> None:
    found = boxes() if side != "labels" else boxes((0, 0, 9, 9, 0.9, 0))
    labels = truth() if side != "found" else truth((0, 0, 9, 9, 0))
    analysis = ErrorAnalysis(NAMES, [found], [labels], 0.25)
    assert analysis.map50() == 0 and all(abs(gain) < 1e-12 for k, gain in analysis.gains().items())
    counts = analysis.counts()
    assert counts[Verdict.MISSED] == (0, len(labels)) and counts[Verdict.BACKGROUND] == (len(found), 0)
    empty = ErrorAnalysis(NAMES, [], [], 0.25)
    assert empty.map50() == 0 and set(empty.counts().values()) == {(0, 0)}


@pytest.mark.parametrize("seed", range(6))
def test_map50_is_that_of_coco_and_every_box_has_one_verdict(seed: int) -> None:
    found, labels = random_set(seed)
    metrics = DetectionMetrics(NAMES)
    for f, t in zip(found, labels, strict=True):
        metrics.update(f, t, (128, 128))
    analysis = ErrorAnalysis(NAMES, found, labels, 0.0)
    assert analysis.map50() == pytest.approx(metrics.compute().map50, abs=1e-9)
    counts = analysis.counts()
    assert sum(c[0] for c in counts.values()) == sum(map(len, found))
    assert sum(c[1] for c in counts.values()) == sum(map(len, labels))
    assert counts[Verdict.RIGHT][0] == counts[Verdict.RIGHT][1]


@pytest.mark.parametrize("seed", range(6))
def test_gains_against_corrected_inputs(seed: int) -> None:
    """Each gain equals COCO's mAP50 after the boxes themselves were corrected, less that before."""
    found, labels = random_set(seed)
    analysis = ErrorAnalysis(NAMES, found, labels, 0.0)
    gains = analysis.gains()
    for kind in ERRORS:
        fixed, kept = [], []
        for f, t, v in zip(found, labels, analysis.all_verdicts, strict=True):
            rows = []
            for i in range(len(f)):
                row = [*f.xyxy[i], f.score[i], f.label[i]]
                if v.detection[i] == kind:
                    j = v.about[i]
                    if kind not in (Verdict.WRONG_CLASS, Verdict.BADLY_PLACED) or v.by[j] != i:
                        continue
                    row = [*t.xyxy[j], f.score[i], t.label[j]]
                rows.append(row)
            fixed.append(boxes(*rows))
            kept.append(t[v.label != Verdict.MISSED] if kind == Verdict.MISSED else t)
        metrics = DetectionMetrics(NAMES)
        for f, t in zip(fixed, kept, strict=True):
            metrics.update(f, t, (128, 128))
        after = metrics.compute().map50
        assert gains[kind] == pytest.approx(after - analysis.map50(), abs=0.02), kind
        assert gains[kind] >= -1e-9


def test_confidence_decides_what_is_shown_but_not_the_map() -> None:
    found, labels = random_set(9)
    low, high = (ErrorAnalysis(NAMES, found, labels, c) for c in (0.0, 0.7))
    assert low.map50() == high.map50() and low.gains() == high.gains()
    assert sum(c[0] for c in high.counts().values()) == sum(int((f.score >= 0.7).sum()) for f in found)


def test_average_precision_by_hand() -> None:
    assert average_precision(np.array([True, True]), 2) == 1
    assert average_precision(np.zeros(0, bool), 3) == 0
    assert average_precision(np.array([True, False]), 2) == pytest.approx(51 / 101)
    assert average_precision(np.array([False, True]), 1) == pytest.approx(0.5)
