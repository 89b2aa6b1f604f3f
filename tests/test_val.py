"""val.py's tasks and files, with a stand-in for the model that finds white rectangles."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from blobs import BlobBackend, make_set

import val
from utils.boxes import xywhn2xyxy
from utils.images import imread
from utils.predict.writers import hybrid


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function: flags -> (metrics, the run's folder). The data set is in tmp_path/set."""
    make_set(tmp_path / "set")
    monkeypatch.setattr(val, "load_model", lambda *_: BlobBackend())

    def start(**flags):
        base = val.ValConfig(
            data=str(tmp_path / "set" / "data.yaml"), weights="x.pt", imgsz=128, workers=0, batch_size=4, device="cpu",
            project=str(tmp_path / "runs"), name="run", exist_ok=True,
        )  # fmt: skip
        return val.main(replace(base, **flags)), tmp_path / "runs" / "run"

    return start


def test_a_perfect_model_has_every_picture_and_number(run, caplog) -> None:
    with caplog.at_level("INFO"):
        metrics, folder = run(save_txt=True, save_conf=True)
    assert metrics.map50 == pytest.approx(1) and metrics.coco["AP75"] > 0.9
    pictures = {f"{name}_curve.png" for name in ("P", "R", "F1", "PR")} | {"confusion_matrix.png"}
    pictures |= {f"val_batch{k}_{kind}.jpg" for k in range(2) for kind in ("labels", "pred")}
    assert {p.name for p in folder.iterdir()} == pictures | {"metrics.json", "labels"}
    assert all(imread(folder / name).std() > 5 for name in pictures)
    assert json.loads((folder / "metrics.json").read_text())["coco"]["APs"] == pytest.approx(metrics.coco["APs"])
    assert "AR300" in caplog.text and "speed:" in caplog.text
    rows = np.loadtxt(folder / "labels" / "000001.txt", ndmin=2)
    truth = np.loadtxt(folder.parent.parent / "set" / "labels" / "000001.txt", ndmin=2)
    assert rows.shape == (2, 6) and rows[:, 5] == pytest.approx(0.9)
    assert rows[:, :5][rows[:, 0].argsort()] == pytest.approx(truth[truth[:, 0].argsort()], abs=0.03)


def test_no_plots_means_none(run) -> None:
    _, folder = run(plots=False)
    assert {p.name for p in folder.iterdir()} == {"metrics.json"}


def test_predictions_json_scores_the_same_in_pycocotools(run, tmp_path) -> None:
    """The annotation file and the result file alone give what val.py printed."""
    cocoeval, coco = pytest.importorskip("pycocotools.cocoeval"), pytest.importorskip("pycocotools.coco")
    root, images, rows = tmp_path / "set", [], []
    for k, path in enumerate(sorted((root / "images").iterdir())):
        h, w = imread(path).shape[:2]
        images.append({"id": 1000 + k, "file_name": path.name, "height": h, "width": w})
        labels = np.loadtxt(root / "labels" / f"{path.stem}.txt", ndmin=2)
        for label, (x1, y1, x2, y2) in zip(labels[:, 0], xywhn2xyxy(labels[:, 1:], (h, w)), strict=True):
            shift = 4 * (k % 3)  # so that not all is right
            box = [x1 + shift, y1, x2 - x1, y2 - y1]
            row = {"id": len(rows) + 1, "image_id": 1000 + k, "category_id": 7 + int(label), "bbox": box}
            rows.append(row | {"area": 0.8 * box[2] * box[3], "iscrowd": int(k == 5)})
    categories = [{"id": 7, "name": "wide"}, {"id": 8, "name": "high"}]
    truth = root / "truth.json"
    truth.write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}))
    given = {"val": "images", "annotations": {"val": "truth.json"}, "names": ["wide", "high"]}
    (root / "coco.yaml").write_text(yaml.safe_dump(given))
    metrics, folder = run(data=str(root / "coco.yaml"), save_json=True, plots=False, max_det=100)
    assert metrics.instances == 7
    with contextlib.redirect_stdout(io.StringIO()):
        side = coco.COCO(str(truth))
        judge = cocoeval.COCOeval(side, side.loadRes(str(folder / "predictions.json")), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    assert metrics.coco == pytest.approx(dict(zip(names, judge.stats, strict=True)), abs=1e-4)
    assert 0.3 < metrics.map50_95 < 0.99


def test_json_ids_without_an_annotation_file(run) -> None:
    _, folder = run(save_json=True, plots=False)
    rows = json.loads((folder / "predictions.json").read_text())
    assert {r["image_id"] for r in rows} == set(range(6)) and {r["category_id"] for r in rows} <= {0, 1}


def test_hybrid_labels_replace_what_overlaps_them(run, tmp_path) -> None:
    (tmp_path / "set" / "labels" / "000001.txt").write_text("0 0.2 0.25 0.2 0.3\n")
    _, folder = run(save_hybrid=True, save_conf=True, plots=False)
    rows = np.loadtxt(folder / "labels" / "000001.txt", ndmin=2)
    assert rows[0] == pytest.approx([0, 0.2, 0.25, 0.2, 0.3, 1])
    boxes = np.array([[0, 0, 10, 10, 0.5, 0], [0, 0, 10, 10, 0.6, 1], [20, 20, 30, 30, 0.7, 0]], float)
    merged = hybrid(boxes, np.array([[0, 0, 0, 10, 11]], float), 0.6)
    assert merged[:, 4].tolist() == [1, 0.6, 0.7]
    assert hybrid(boxes[:0], np.zeros((0, 5)), 0.6).shape == (0, 6)


def test_speed_uses_the_thresholds_of_detection(run, monkeypatch) -> None:
    seen = []
    real = val.non_max_suppression
    monkeypatch.setattr(
        val, "non_max_suppression", lambda d, conf, iou, **k: seen.append((conf, iou)) or real(d, conf, iou, **k)
    )
    metrics, folder = run(task="speed", conf_thres=0.001)
    assert set(seen) == {(0.25, 0.45)} and set(metrics.speed_ms) == {"pre", "inference", "nms"}
    assert {p.name for p in folder.iterdir()} == {"metrics.json"}


def test_study_measures_every_size_of_every_model(run, monkeypatch) -> None:
    monkeypatch.setattr(val, "STUDY_SIZES", (64, 128))
    _, folder = run(task="study", weights=("a.pt", "b.pt"))
    assert {p.name for p in folder.iterdir()} == {"study.png", "study_data_a.csv", "study_data_b.csv"}
    with (folder / "study_data_a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["imgsz"] for r in rows] == ["64", "128"]
    assert float(rows[1]["map50_95"]) > 0.9 and float(rows[0]["ms"]) > 0


def test_one_class_for_all(run) -> None:
    metrics, folder = run(single_cls=True)
    assert [c.name for c in metrics.per_class] == ["object"] and metrics.map50 == pytest.approx(1)
    assert (folder / "confusion_matrix.png").is_file()


def test_mistakes(run, tmp_path, monkeypatch) -> None:
    (tmp_path / "set" / "three.yaml").write_text("val: images\nnames: [a, b, c]\n")
    with pytest.raises(ValueError, match=r"has 2 classes, but .* has 3"):
        run(data=str(tmp_path / "set" / "three.yaml"))
    with pytest.raises(ValueError, match="--batch-size 0"):
        run(batch_size=0)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="--weights is missing"):
        val.main(val.ValConfig(data=str(tmp_path / "set" / "data.yaml"), device="cpu"))


def test_evaluate_draws_when_told_where(tmp_path: Path) -> None:
    """The one call that train.py makes for its last validation."""
    import torch

    from utils.data.dataset import DetectionDataset, read_data_yaml, scan_split
    from utils.data.loader import build_loader

    make_set(tmp_path / "set")
    data = read_data_yaml(tmp_path / "set" / "data.yaml")
    loader = build_loader(DetectionDataset(scan_split(data, "val"), 128, 32), 4)
    metrics = val.evaluate(BlobBackend(), loader, data.names, torch.device("cpu"), plots=tmp_path / "out")
    assert metrics.map50 == pytest.approx(1)
    assert (tmp_path / "out" / "val_batch1_pred.jpg").is_file() and (tmp_path / "out" / "PR_curve.png").is_file()
