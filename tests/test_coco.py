"""COCO's metrics compared with pycocotools on random sets; crowds, curves and the confusion matrix."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import write_tiny

from tools import coco_parity
from tools.coco_parity import pycocotools_figures
from utils.boxes import Boxes, Truth
from utils.evaluate.coco import AREAS
from utils.evaluate.metrics import DetectionMetrics
from val import ValConfig

pytest.importorskip("pycocotools")
SIZE = (400, 500)
NAMES = {0: "a", 1: "b", 2: "c"}


def random_image(rng, ties):
    """Detections (n, 6) xyxy, score, class, and labels (m, 5) class, xyxy, of one image with crowd and areas (m,).

    Either may be empty; sizes are 2 to 250 px.
    """
    m = int(rng.integers(0, 12)) * int(rng.random() > 0.2)
    n = int(rng.integers(0, 40)) * int(rng.random() > 0.15)
    low = rng.uniform(0, 250, (m, 2))
    labels = np.concatenate([rng.integers(0, 2, (m, 1)), low, low + np.exp(rng.uniform(0.7, 5, (m, 2)))], axis=1)
    crowd = rng.random(m) < 0.2
    areas = (labels[:, 3:] - labels[:, 1:3]).prod(axis=1) * rng.uniform(0.4, 1, m)
    low = rng.uniform(0, 250, (n, 2))
    boxes = np.concatenate([low, low + np.exp(rng.uniform(0.7, 5, (n, 2)))], axis=1)
    classes = rng.integers(0, 3, n)
    if m:
        near = rng.random(n) < 0.7
        chosen = rng.integers(0, m, n)
        jitter = rng.normal(0, 2, (n, 4)) * (rng.random((n, 1)) < 0.8)  # some boxes equal their label, or each other
        boxes[near] = labels[chosen[near], 1:] + jitter[near]
        classes[near] = labels[chosen[near], 0]
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 0.5)
    scores = rng.integers(1, ties, n) / ties
    return np.concatenate([boxes, scores[:, None], classes[:, None]], axis=1), labels, crowd, areas


def collect(images, max_det=100):
    metrics = DetectionMetrics(NAMES, max_det)
    for boxes, labels, crowd, areas in images:
        found = Boxes(boxes[:, :4], boxes[:, 5].astype(np.int64), boxes[:, 4])
        truth = Truth(labels[:, 1:], labels[:, 0].astype(np.int64), np.ones(len(labels)), crowd, areas)
        metrics.update(found, truth, SIZE)
    return metrics


@pytest.mark.parametrize("block", range(10))
def test_figures_equal_pycocotools(block):
    """200 sets of few images: ties, crowds, areas unlike the boxes', images and classes with nothing."""
    for seed in range(20 * block, 20 * block + 20):
        rng = np.random.default_rng(seed)
        images = [random_image(rng, ties=int(rng.choice([3, 20, 10**6]))) for _ in range(int(rng.integers(1, 7)))]
        metrics = collect(images, max_det=int(rng.choice([1, 5, 10, 100, 300])))
        result = metrics.compute()
        assert result.coco == pytest.approx(pycocotools_figures(metrics), abs=1e-4), f"set {seed}"
        if result.instances:
            assert result.map50 == pytest.approx(max(result.coco["AP50"], 0), abs=1e-9)
            assert result.map50_95 == pytest.approx(max(result.coco["AP"], 0), abs=1e-9)


def test_the_tool_compares_a_data_set(tmp_path, caplog):
    weights = write_tiny(tmp_path)
    (tmp_path / "labels").mkdir()
    for image in (tmp_path / "images").iterdir():
        (tmp_path / "labels" / f"{image.stem}.txt").write_text("0 0.5 0.5 0.5 0.5\n1 0.3 0.3 0.2 0.2\n")
    (tmp_path / "data.yaml").write_text("path: .\ntrain: images\nval: images\nnames: [cat, Bär, dog]\n")
    cfg = ValConfig(weights=str(weights), data=str(tmp_path / "data.yaml"), imgsz=128, workers=0, device="cpu")
    with caplog.at_level("INFO"):
        coco_parity.main(cfg)
    lines = [line.split() for line in caplog.messages if line.startswith("A")]
    assert [line[0] for line in lines][:3] == ["AP", "AP50", "AP75"] and len(lines) == 12
    assert "3 images, largest difference" in caplog.text


def test_hundreds_of_tiny_boxes():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 390, (900, 2))
    labels = np.concatenate([np.zeros((900, 1)), low, low + rng.uniform(0.5, 3, (900, 2))], axis=1)
    boxes = np.concatenate([labels[:, 1:], np.full((900, 1), 0.5), labels[:, :1]], axis=1)
    images = [(boxes, labels, np.zeros(900, bool), (labels[:, 3:] - labels[:, 1:3]).prod(axis=1))]
    whole = collect(images, max_det=1000).compute()
    assert whole.coco["APs"] == pytest.approx(1) and whole.coco["APl"] == -1
    assert whole.recall == 1 and whole.instances == 900
    assert collect(images, max_det=300).compute().coco["AR300"] == pytest.approx(1 / 3)


def test_boxes_without_area_neither_crash_nor_count():
    labels = np.array([[0, 10.0, 10, 10, 10], [0, 50, 50, 90, 90]])
    boxes = np.array([[10.0, 10, 10, 10, 0.9, 0], [50, 50, 90, 90, 0.8, 0]])
    metrics = collect([(boxes, labels, np.zeros(2, bool), np.array([0.0, 1600]))])
    result = metrics.compute()
    assert result.coco == pytest.approx(pycocotools_figures(metrics), abs=1e-6)
    assert metrics.confusion_matrix().sum() == 3  # a pair and two unmatched: boxes without area never overlap


CROWD = np.array([[0, 100.0, 100, 300, 300], [0, 10, 10, 50, 50]])
IN_CROWD = np.array([[120.0, 120, 160, 160, 0.9, 0], [200, 200, 260, 260, 0.8, 0], [10, 10, 50, 50, 0.7, 0]])


def test_detections_in_a_crowd_are_neither_right_nor_wrong():
    image = (IN_CROWD, CROWD, np.array([True, False]), np.array([40000.0, 1600]))
    result = collect([image]).compute()
    assert (result.instances, result.precision, result.recall) == (1, 1, 1)
    assert result.map50_95 == pytest.approx(1)
    matrix = collect([image]).confusion_matrix()
    assert matrix.sum() == matrix[0, 0] == 1
    plain = collect([(IN_CROWD, CROWD, np.array([False, False]), image[3])])
    assert plain.confusion_matrix()[0].tolist() == [1, 0, 0, 2] and plain.confusion_matrix()[3, 0] == 1


def test_confusion_matrix_counts_everything_once():
    labels = np.array([[0, 0.0, 0, 100, 100], [1, 200, 0, 300, 100], [2, 0, 200, 100, 300]])
    boxes = np.array(
        [
            [0.0, 0, 100, 95, 0.9, 0],  # right
            [205, 0, 300, 100, 0.9, 0],  # a where b is
            [200, 0, 300, 90, 0.8, 1],  # overlaps b less, which is already matched: background
            [0, 200, 100, 300, 0.2, 2],  # below the confidence threshold, so c is missed
        ]
    )
    matrix = collect([(boxes, labels, np.zeros(3, bool), np.full(3, 1e4))]).confusion_matrix()
    expected = np.zeros((4, 4), int)
    expected[0, 0] = expected[0, 1] = expected[1, 3] = expected[3, 2] = 1
    assert (matrix == expected).all()


def test_curves_agree_with_the_metrics():
    rng = np.random.default_rng(7)
    metrics = collect([random_image(rng, 50) for _ in range(8)])
    curves, result = metrics.curves(), metrics.compute()
    shown = [c for c in result.per_class if c.instances]
    assert curves.names == [c.name for c in shown]
    assert curves.envelope.mean(axis=1) == pytest.approx([c.map50 for c in shown])
    for k, c in enumerate(shown):
        total = c.instances
        _, score, hit = metrics.class_matches[list(NAMES.values()).index(c.name)]
        at = int(rng.integers(1000))
        kept = hit[score >= curves.confidence[at]]
        assert curves.recall[k, at] == kept.sum() / total
        assert curves.precision[k, at] == pytest.approx(kept.mean() if len(kept) else np.nan, nan_ok=True)
    assert curves.f1.mean(axis=0).max() >= 0.98 * np.mean([f1(c.precision, c.recall) for c in shown])
    nothing = DetectionMetrics(NAMES).curves()
    assert nothing.names == [] and nothing.f1.shape == (0, 1000) and nothing.envelope.shape == (0, 101)


def f1(precision, recall):
    return 2 * precision * recall / (precision + recall)


def test_area_names_are_cocos():
    assert AREAS["s"][1] == AREAS["m"][0] == 1024 and AREAS["m"][1] == AREAS["l"][0] == 9216
