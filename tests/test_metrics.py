"""utils/evaluate/metrics.py against pycocotools and a brute-force reference."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest

from utils.boxes import Boxes, Truth, areas
from utils.evaluate.matching import best_confidence, covered
from utils.evaluate.metrics import DetectionMetrics

NAMES = {0: "ball", 1: "star", 2: "cup", 3: "never seen"}
SIZE = (120, 160)


def random_set(seed, images=12, most=8, boxes=30, steps=20):
    """Per image (boxes (n, 6), labels (m, 5)); scores tie in `steps` steps; some images empty; class 3 unlabeled."""
    rng = np.random.default_rng(seed)
    sets = []
    for i in range(images):
        m = 0 if i % 5 == 3 else int(rng.integers(1, most + 1))
        n = 0 if i % 7 == 4 else boxes
        corner = rng.uniform(0, 100, (m, 2))
        labels = np.concatenate([rng.integers(0, 3, (m, 1)), corner, corner + rng.uniform(8, 50, (m, 2))], axis=1)
        xyxy = np.empty((n, 4))
        classes = rng.integers(0, 4, n)
        for k in range(n):
            if m and rng.random() < 0.7:  # near a label
                source = labels[rng.integers(m)]
                xyxy[k] = source[1:] + rng.normal(0, 3, 4) * (rng.random() < 0.9)
                classes[k] = source[0] if rng.random() < 0.9 else classes[k]
            else:
                low = rng.uniform(0, 100, 2)
                xyxy[k] = [*low, *(low + rng.uniform(8, 50, 2))]
        xyxy[:, 2:] = np.maximum(xyxy[:, 2:], xyxy[:, :2] + 1)
        scores = rng.integers(1, steps, n) / steps
        found = np.concatenate([xyxy, scores[:, None], classes[:, None]], axis=1)
        sets.append((found, labels))
    return sets


def filled(sets, max_det=300, names=NAMES):
    """Metrics of images, each of rows (n, 6) xyxy, score, class and labels (m, 5) class, xyxy."""
    metrics = DetectionMetrics(names, max_det)
    for rows, labels in sets:
        found = Boxes(rows[:, :4], rows[:, 5].astype(int), rows[:, 4])
        truth = Boxes.labeled(labels[:, 1:], labels[:, 0].astype(int))
        crowd = np.zeros(len(truth), dtype=bool)
        metrics.update(found, Truth(truth.xyxy, truth.label, truth.score, crowd, areas(truth.xyxy)), SIZE)
    return metrics


def reference_ap(sets, max_det):
    """(AP50, AP) per class by pycocotools; -1 without labels."""
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")

    def row(i, count, image, label, box):
        x1, y1, x2, y2 = box
        size = [x2 - x1, y2 - y1]
        return {
            "id": count + 1, "image_id": image, "category_id": int(label) + 1, "bbox": [x1, y1, *size],
            "area": size[0] * size[1], "iscrowd": 0,
        }  # fmt: skip

    images = [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in range(len(sets))]
    categories = [{"id": c + 1, "name": name} for c, name in NAMES.items()]
    truth, found = [], []
    for image, (boxes, labels) in enumerate(sets):
        for label in labels.tolist():
            truth.append(row(image, len(truth), image, label[0], label[1:]))
        for box in boxes.tolist():
            found.append(row(image, len(found), image, box[5], box[:4]) | {"score": box[4]})
    with contextlib.redirect_stdout(io.StringIO()):
        gt = coco.COCO()
        gt.dataset = {"images": images, "annotations": truth, "categories": categories}
        gt.createIndex()
        reference = cocoeval.COCOeval(gt, gt.loadRes(found), "bbox")
        reference.params.maxDets = [max_det]
        reference.params.areaRng, reference.params.areaRngLbl = [[0, 1e10]], ["all"]
        reference.evaluate()
        reference.accumulate()
    curves = reference.eval["precision"][:, :, :, 0, 0].mean(axis=1)
    return curves[0], curves.mean(axis=0)


@pytest.mark.parametrize(
    ("seed", "boxes", "max_det", "steps"),
    [(0, 30, 300, 20), (1, 30, 300, 3), (2, 300, 300, 50), (3, 300, 7, 1000), (4, 1, 300, 20), (5, 60, 300, 10**6)],
)
def test_ap_equals_pycocotools(seed, boxes, max_det, steps):
    sets = random_set(seed, boxes=boxes, steps=steps)
    expected50, expected = reference_ap(sets, max_det)
    result = filled(sets, max_det).compute()
    for k, c in enumerate(result.per_class):
        assert c.map50 == pytest.approx(max(expected50[k], 0), abs=1e-4)
        assert c.map50_95 == pytest.approx(max(expected[k], 0), abs=1e-4)
    seen = expected >= 0
    assert seen.tolist() == [True, True, True, False]
    assert result.map50 == pytest.approx(expected50[seen].mean(), abs=1e-4)
    assert result.map50_95 == pytest.approx(expected[seen].mean(), abs=1e-4)
    assert result.fitness == pytest.approx(0.1 * result.map50 + 0.9 * result.map50_95)


def iou(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(w, 0) * max(h, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def reference_pr(sets, max_det):
    """Precision and recall per labeled class, every threshold tried, everything matched anew with plain loops."""
    classes = sorted({int(c) for _, labels in sets for c in labels[:, 0]})
    best = None
    for threshold in sorted({s for boxes, _ in sets for s in boxes[:, 4].tolist()}, reverse=True):
        p, r, f = [], [], []
        for c in classes:
            hits = tried = total = 0
            for boxes, labels in sets:
                free = [row[1:] for row in labels.tolist() if row[0] == c]
                total += len(free)
                mine = sorted((b for b in boxes.tolist() if b[5] == c), key=lambda b: -b[4])[:max_det]
                for b in (b for b in mine if b[4] >= threshold):
                    tried += 1
                    overlaps = [iou(b, t) for t in free]
                    if overlaps and max(overlaps) >= 0.5:
                        free.pop(overlaps.index(max(overlaps)))
                        hits += 1
            p.append(hits / tried if tried else 0.0)
            r.append(hits / total)
            f.append(2 * p[-1] * r[-1] / (p[-1] + r[-1]) if hits else 0.0)
        if best is None or np.mean(f) > best[0] + 1e-9:
            best = np.mean(f), p, r
    return best


@pytest.mark.parametrize(("seed", "max_det", "steps"), [(10, 300, 20), (11, 300, 4), (12, 3, 40), (13, 300, 1000)])
def test_precision_and_recall_equal_brute_force(seed, max_det, steps):
    sets = random_set(seed, images=8, boxes=12, steps=steps)
    _, precision, recall = reference_pr(sets, max_det)
    result = filled(sets, max_det).compute()
    assert [c.precision for c in result.per_class if c.instances] == pytest.approx(precision)
    assert [c.recall for c in result.per_class if c.instances] == pytest.approx(recall)
    assert result.precision == pytest.approx(np.mean(precision))
    assert result.recall == pytest.approx(np.mean(recall))


def perfect(labels, score=0.9):
    return np.column_stack([labels[:, 1:], np.full(len(labels), score, labels.dtype), labels[:, 0]])


def test_perfect_predictions_score_one():
    sets = [(perfect(labels), labels) for _, labels in random_set(20)]
    m = filled(sets).compute()
    assert (m.precision, m.recall, m.fitness) == pytest.approx((1, 1, 1))
    assert m.map50 == pytest.approx(1)
    assert m.map50_95 == pytest.approx(1)


def test_float32_inputs_are_accepted():
    sets = [(perfect(labels).astype(np.float32), labels.astype(np.float32)) for _, labels in random_set(21)]
    assert filled(sets).compute().map50_95 == pytest.approx(1)


@pytest.mark.parametrize("case", ["no images", "no labels", "no boxes", "neither", "wrong class only"])
def test_nothing_gives_zeros(case):
    boxes, labels = random_set(22)[0]
    sets = {
        "no images": [],
        "no labels": [(boxes, labels[:0])],
        "no boxes": [(boxes[:0], labels)],
        "neither": [(boxes[:0], labels[:0])],
        "wrong class only": [(boxes[boxes[:, 5] == 3], labels)],
    }[case]
    m = filled(sets).compute()
    assert m.images == len(sets)
    assert m.instances == sum(len(labels) for _, labels in sets)
    assert (m.precision, m.recall, m.map50, m.map50_95, m.fitness) == (0, 0, 0, 0, 0)
    assert m.table().splitlines()[1].split()[0] == "all"


def test_max_det_counts_only_the_best():
    label = np.array([[0, 10.0, 10, 50, 50]])
    wrong = np.array([[60.0, 60, 90, 90, 0.9, 0], [60.0, 20, 90, 50, 0.8, 0]])
    boxes = np.concatenate([perfect(label, 0.5), wrong])
    assert filled([(boxes, label)], max_det=3).compute().map50 == pytest.approx(1 / 3)
    limited = filled([(boxes, label)], max_det=2).compute()
    assert (limited.map50, limited.recall) == (0, 0)


def test_best_confidence_takes_equal_scores_together():
    assert best_confidence([np.array([0.9, 0.5, 0.5])], [np.array([True, True, False])], [2]) == 0.5
    assert best_confidence([np.array([0.9, 0.5])], [np.array([True, False])], [1]) == 0.9
    assert best_confidence([], [], []) == float("inf")


def test_table_and_dict_show_counts():
    a = np.array([[0, 10.0, 10, 50, 50], [0, 60.0, 60, 90, 90], [1, 5.0, 5, 20, 20]])
    b = np.array([[0, 10.0, 10, 50, 50]])
    m = filled([(perfect(a), a), (perfect(b)[:0], b), (np.zeros((0, 6)), np.zeros((0, 5)))]).compute()
    lines = [line.split() for line in m.table().splitlines()]
    assert lines[0] == ["Class", "Images", "Instances", "P", "R", "mAP50", "mAP50-95"]
    assert [line[0] for line in lines[1:]] == ["all", "ball", "star"]
    assert [line[1:3] for line in lines[1:]] == [["3", "4"], ["2", "3"], ["1", "1"]]
    assert len({len(line) for line in m.table().splitlines()}) == 1

    read = json.loads(json.dumps(m.as_dict()))
    assert set(read) == {
        "map50", "map50_95", "precision", "recall", "images", "instances", "per_class", "speed_ms", "coco",
        "thresholds", "calibration",
    }  # fmt: skip
    assert read["per_class"]["ball"]["recall"] == pytest.approx(2 / 3)
    assert read["per_class"]["ball"]["instances"] == 3
    assert read["map50"] == m.map50


def test_nothing_can_be_added_after_the_metrics_were_computed():
    metrics = filled(random_set(24))
    metrics.compute()
    with pytest.raises(RuntimeError, match="computed already"):
        metrics.update(metrics.found[0], metrics.truth[0], SIZE)


def test_the_covered_fraction_is_the_intersection_over_the_first_area():
    rng = np.random.default_rng(25)
    for n, m in ((30, 7), (1, 1), (0, 3), (3, 0), (0, 0)):
        corners = rng.integers(0, 60, (2, max(n, m), 2)).astype(float)
        a, b = (np.concatenate([low, low + rng.integers(1, 50, low.shape)], axis=1) for low in corners)
        a, b = a[:n], b[:m]
        expected = np.zeros((n, m))
        for i, j in np.ndindex(n, m):
            w, h = np.minimum(a[i, 2:], b[j, 2:]) - np.maximum(a[i, :2], b[j, :2])
            expected[i, j] = max(w, 0) * max(h, 0) / areas(a[i : i + 1])[0]
        assert covered(a, b) == pytest.approx(expected.max(axis=1, initial=0), abs=1e-12)
    assert covered(np.array([[5.0, 5, 5, 5]]), np.array([[0.0, 0, 9, 9]])).tolist() == [0]


def test_compute_prints_nothing(capsys):
    filled(random_set(23)).compute()
    assert capsys.readouterr() == ("", "")
