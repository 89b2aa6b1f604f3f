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
import torch
import yaml
from blobs import BlobBackend, make_set

import val
from utils.boxes import Boxes, xywhn2xyxy
from utils.data.data_yaml import SINGLE_CLASS, read_data_yaml
from utils.data.dataset import DetectionDataset
from utils.data.loader import build_loader
from utils.evaluate import evaluation, metrics
from utils.images import imread
from utils.nms import NmsSettings
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


def test_a_perfect_model_has_every_chart_and_number(run, caplog) -> None:
    with caplog.at_level("INFO"):
        result, folder = run(save_txt=True, save_conf=True)
    assert result.map50 == pytest.approx(1) and result.coco["AP75"] > 0.9
    charts = {f"{name}_curve.png" for name in ("P", "R", "F1", "PR")} | {"confusion_matrix.png", "reliability.png"}
    charts |= {f"val_batch{k}_{kind}.jpg" for k in range(2) for kind in ("labels", "pred")}
    assert {p.name for p in folder.iterdir()} == charts | {
        "metrics.json",
        "labels",
        ".outputs",
        "errors.html",
        "suspects.csv",
    }
    assert all(imread(folder / name).std() > 5 for name in charts)
    assert json.loads((folder / "metrics.json").read_text())["coco"]["APs"] == pytest.approx(result.coco["APs"])
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
    cocoeval, reader = pytest.importorskip("pycocotools.cocoeval"), pytest.importorskip("pycocotools.coco")
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
    result, folder = run(data=str(root / "coco.yaml"), save_json=True, plots=False, max_det=100)
    assert result.instances == 7
    with contextlib.redirect_stdout(io.StringIO()):
        labels = reader.COCO(str(truth))
        reference = cocoeval.COCOeval(labels, labels.loadRes(str(folder / "predictions.json")), "bbox")
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    assert result.coco == pytest.approx(dict(zip(names, reference.stats, strict=True)), abs=1e-4)
    assert 0.3 < result.map50_95 < 0.99


def test_json_ids_without_an_annotation_file(run) -> None:
    _, folder = run(save_json=True, plots=False)
    rows = json.loads((folder / "predictions.json").read_text())
    assert {r["image_id"] for r in rows} == set(range(6)) and {r["category_id"] for r in rows} <= {0, 1}


def test_hybrid_labels_replace_what_overlaps_them(run, tmp_path) -> None:
    (tmp_path / "set" / "labels" / "000001.txt").write_text("0 0.2 0.25 0.2 0.3\n")
    _, folder = run(save_hybrid=True, save_conf=True, plots=False)
    rows = np.loadtxt(folder / "labels" / "000001.txt", ndmin=2)
    assert rows[0] == pytest.approx([0, 0.2, 0.25, 0.2, 0.3, 1])
    xyxy = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 30, 30]], float)
    boxes = Boxes(xyxy, np.array([0, 1, 0]), np.array([0.5, 0.6, 0.7]))
    truth = Boxes.labeled(np.array([[0, 0, 10, 11]], float), np.array([0]))
    merged = hybrid(boxes, truth, 0.6)
    assert merged.score.tolist() == [1, 0.7] and merged.label.tolist() == [0, 0]
    half = Boxes.labeled(np.array([[0, 0, 10, 5]], float), np.array([0]))  # IoU 0.5: another object of its class,
    assert hybrid(boxes, half, 0.6).score.tolist() == [1, 0.5, 0.7]  # but no other class on this one
    assert len(hybrid(boxes[:0], truth[:0], 0.6)) == 0
    assert len(hybrid(boxes, truth[:0], 0.6)) == 3 and hybrid(boxes[:0], truth, 0.6).score.tolist() == [1]


def test_speed_uses_the_thresholds_of_detection(run, monkeypatch) -> None:
    seen = []
    real = evaluation.non_max_suppression
    monkeypatch.setattr(
        evaluation, "non_max_suppression", lambda d, settings: seen.append(settings) or real(d, settings)
    )
    result, folder = run(task="speed", conf_thres=0.001)
    assert set(seen) == {NmsSettings(0.25, 0.45, 300, multi_label=True)}
    assert set(result.speed_ms) == {"pre", "inference", "nms"}
    assert {p.name for p in folder.iterdir()} == {"metrics.json"}


def test_study_measures_every_size_of_every_model(run, monkeypatch) -> None:
    monkeypatch.setattr(val, "STUDY_SIZES", (64, 128))
    _, folder = run(task="study", weights=("a.pt", "b.pt"))
    assert {p.name for p in folder.iterdir()} == {"study.png", "study_data_a.csv", "study_data_b.csv"}
    with (folder / "study_data_a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["imgsz"] for r in rows] == ["64", "128"]
    assert float(rows[1]["map50_95"]) > 0.9 and float(rows[0]["ms"]) > 0
    _, folder = run(task="study", weights=("one/best.pt", "two/best.pt"), name="same")
    files = {"study.png", "study_data_best.csv", "study_data_best-2.csv"}
    assert {p.name for p in (folder.parent / "same").iterdir()} == files


def test_one_class_for_all(run) -> None:
    result, folder = run(single_cls=True)
    assert [c.name for c in result.per_class] == [SINGLE_CLASS] and result.map50 == pytest.approx(1)
    assert (folder / "confusion_matrix.png").is_file()


def test_mistakes(run, tmp_path) -> None:
    (tmp_path / "set" / "three.yaml").write_text("val: images\nnames: [a, b, c]\n")
    with pytest.raises(ValueError, match=r"x.pt has 2 classes \(wide, high\), but .*three.yaml has 3 \(a, b, c\)"):
        run(data=str(tmp_path / "set" / "three.yaml"))
    with pytest.raises(ValueError, match="--batch-size 0"):
        run(batch_size=0)


def test_detections_and_labels_are_matched_once(run, tmp_path, monkeypatch) -> None:
    """The table, metrics.json, the curves and the confusion matrix share one COCO evaluation and one matching."""
    evaluations, matchings = [], []
    evaluation, matching = metrics.coco_evaluation, metrics.match_all
    monkeypatch.setattr(metrics, "coco_evaluation", lambda *a: evaluations.append(a) or evaluation(*a))
    monkeypatch.setattr(metrics, "match_all", lambda *a: matchings.append(a) or matching(*a))
    result, folder = run(plots=True)
    assert (folder / "PR_curve.png").is_file() and (folder / "confusion_matrix.png").is_file()
    assert len(evaluations) == len(matchings) == 1
    assert result.map50 == pytest.approx(1)


def test_without_weights_and_data_those_of_the_newest_run(run, tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.chdir(tmp_path)
    opened = []
    monkeypatch.setattr(val, "load_model", lambda weights, *_: opened.append(weights) or BlobBackend())
    run_folder = tmp_path / "runs" / "train" / "site" / "a"
    (run_folder / "weights").mkdir(parents=True)
    (run_folder / "weights" / "best.pt").write_bytes(b"")
    (run_folder / "opt.yaml").write_text("data: set/data.yaml\n")
    with caplog.at_level("INFO"):
        result, _ = run(weights="", data="", plots=False)
    best = str(Path("runs", "train", "site", "a", "weights", "best.pt"))
    assert opened == [best] and result.instances == 9 and result.map50 == pytest.approx(1)
    assert f"using {best}" in caplog.text and f"{Path('set', 'data.yaml')}, on which" in caplog.text


def test_evaluate_writes_plots_into_a_given_folder(tmp_path: Path) -> None:
    """The one call that train.py makes for its last validation."""
    make_set(tmp_path / "set")
    data = read_data_yaml(tmp_path / "set" / "data.yaml")
    loader = build_loader(DetectionDataset(data.scan("val"), 128, 32), 4)
    result = evaluation.evaluate(BlobBackend(), loader, data.names, torch.device("cpu"), plots=tmp_path / "out")
    assert result.map50 == pytest.approx(1)
    assert (tmp_path / "out" / "val_batch1_pred.jpg").is_file() and (tmp_path / "out" / "PR_curve.png").is_file()


def test_images_that_break_after_the_scan_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_set(tmp_path / "set")
    data = read_data_yaml(tmp_path / "set" / "data.yaml")
    found = data.scan("val")
    Path(found.paths[0]).write_bytes(b"")
    settings = evaluation.EvalSettings.of(False)
    for batch_size in (1, 4):  # a batch without an image, and one that lacks one
        loader = build_loader(DetectionDataset(found, 128, 32), batch_size)
        result = evaluation.detect_all(BlobBackend(), loader, data.names, torch.device("cpu"), settings)
        assert result.rows == list(range(1, len(found))) and result.metrics().map50 == pytest.approx(1)
    assert f"{found.paths[0]}: skipped, it has changed since the scan: not a readable image" in caplog.text
