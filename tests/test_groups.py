"""Matching of all images at once equals, to the bit, faster-coco-eval and a loop over images and classes."""

from __future__ import annotations

import numpy as np
import pytest

from tools.bench_core import (
    collected,
    crowded_rows,
    decode_rows,
    in_turns,
    metrics_rows,
    plain_coco,
    plain_matches,
    random_detections,
)
from utils.boxes import Boxes, Truth
from utils.evaluate.groups import label_counts, places
from utils.evaluate.metrics import DetectionMetrics


def assert_equal(metrics: DetectionMetrics) -> None:
    for k, c in enumerate(metrics.names):
        labels = [int((truth.label[~truth.crowd] == c).sum()) for truth in metrics.truth]
        assert [int(numbers[k]) for numbers in metrics.counts] == [sum(labels), sum(n > 0 for n in labels)]
        assert (k in metrics.class_matches) == (sum(labels) > 0)
        if sum(labels):
            score, hit = plain_matches(metrics, c)
            assert metrics.class_matches[k].labels == sum(labels)
            assert np.array_equal(metrics.class_matches[k].scores, score)
            assert np.array_equal(metrics.class_matches[k].hits, hit)
    if metrics.coco_result is None:
        named = any(np.isin(found.label, list(metrics.names)).any() for found in metrics.found)
        assert not (metrics.counts[0].any() and named)
        return
    precision, recall = plain_coco(metrics)
    assert np.array_equal(metrics.coco_result.precision, precision)
    assert np.array_equal(metrics.coco_result.recall, recall)


@pytest.mark.parametrize("block", range(6))
def test_random_sets(block):
    """Ties, crowds, areas unlike the boxes', unnamed classes, names that are not 0, 1, ..., unsorted detections."""
    for seed in range(12 * block, 12 * block + 12):
        rng = np.random.default_rng(seed)
        nc = int(rng.integers(1, 6))
        metrics = DetectionMetrics({(3 * i) % 7: str(i) for i in range(nc)}, int(rng.choice([1, 2, 7, 10, 100, 300])))
        for found, truth in random_detections(int(rng.integers(1, 9)), int(rng.integers(0, 60)), nc + 1, seed):
            steps = int(rng.choice([3, 20, 10**6]))
            found = Boxes(found.xyxy.round(), found.label, (found.score * steps).round() / steps)
            truth = truth if rng.random() < 0.7 else truth[:0]
            crowd, area = rng.random(len(truth)) < 0.3, truth.area * rng.uniform(0.2, 2, len(truth))
            truth = Truth(truth.xyxy.round(), truth.label, truth.score, crowd, area)
            metrics.update(found[rng.permutation(len(found))], truth, (640, 640))
        assert_equal(metrics)


def test_many_classes_and_float32_labels():
    images = random_detections(25)
    assert_equal(collected(images))
    small = [(f, Truth(t.xyxy.astype(np.float32), t.label, t.score, t.crowd, t.area)) for f, t in images]
    assert_equal(collected(small))


def test_chunks_of_pairs(monkeypatch):
    monkeypatch.setattr("utils.evaluate.groups.MOST_PAIRS", 40)
    assert_equal(collected(random_detections(12, 60, 3), nc=3))


@pytest.mark.parametrize("case", ["no images", "no labels", "no detections", "crowds only", "unnamed only"])
def test_nothing(case):
    images = random_detections(4, 30, 3)
    empty = {
        "no images": [],
        "no labels": [(found, truth[:0]) for found, truth in images],
        "no detections": [(found[:0], truth) for found, truth in images],
        "crowds only": [(f, Truth(t.xyxy, t.label, t.score, np.ones(len(t), bool), t.area)) for f, t in images],
        "unnamed only": [(Boxes(f.xyxy, f.label + 9, f.score), t) for f, t in images],
    }[case]
    metrics = collected(empty, nc=3)
    assert metrics.coco_result is None
    assert_equal(metrics)
    assert metrics.compute().map50 == 0


def test_places_and_counts():
    assert places(np.array([5, 1, 2, 9, 1]), {9: "a", 1: "b", 5: "c"}).tolist() == [2, 1, -1, 0, 1]
    assert places(np.array([], np.int64), {0: "a"}).tolist() == [] and places(np.array([3]), {}).tolist() == [-1]
    assert [numbers.tolist() for numbers in label_counts([], {0: "a", 1: "b"})] == [[0, 0], [0, 0]]


def test_rows_of_the_benchmark():
    """Small sizes: every row has a name and times."""
    rows = [*decode_rows(64, rounds=1), *metrics_rows(4, 20, part=2)]
    assert all(row.name and row.plain_ms >= 0 and row.now_ms >= 0 for row in rows) and len(rows) == 4
    assert (crowded_rows()[:, 4] > 0.001).sum() == 2500
    assert len(in_turns([lambda: None, lambda: None], 1)) == 2
