"""The page in Chromium finds in a photo what detect.py finds with the same file: other heads, and four levels."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import CHROMIUM, NEEDS, ORT_WEB, Browser, served
from page_driver import boxes, open_image, page_of, to_onnx
from shared import shared
from test_heads import finding, small_model
from tiny import NAMES, write_tiny

import detect
from models.weights.checkpoint import Checkpoint, save_checkpoint
from models.yolo import DetectionModel

pytestmark = pytest.mark.skipif(CHROMIUM is None or ORT_WEB is None, reason=NEEDS)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory):
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


def finder(cfg: str, position: str) -> DetectionModel:
    """The network of a YAML, which finds something in many cells of each level; the tiny one with a head by name."""
    if not cfg.endswith(".yaml"):
        return small_model(cfg, letterbox=position)
    torch.manual_seed(0)
    model = DetectionModel(cfg, nc=3)
    model.names = dict(NAMES)
    return finding(model, bias=0.0)


@pytest.mark.parametrize(
    ("cfg", "position"),
    [
        *[("Decoupled", "top-left"), ("DetectV8", "center"), ("DetectV8, no bins", "top-left")],
        *[("yolov5-mobilevit-fast-p2.yaml", "center"), ("yolov5-mobilevit-fast-v8.yaml", "center")],
    ],
)
def test_the_page_finds_in_a_photo_what_detect_finds(
    chromium: Browser, cfg: str, position: str, tmp_path: Path
) -> None:
    photo = sorted((shared("datasets/bccd") / "images").rglob("*.jpg"))[0]
    write_tiny(tmp_path)
    save_checkpoint(tmp_path / "other.pt", Checkpoint.of(finder(cfg, position)))
    onnx = to_onnx(tmp_path / "other.pt", tmp_path / "images")
    settings = detect.DetectConfig(str(onnx), str(photo), imgsz=128, device="cpu", save_csv=True, project=str(tmp_path))
    detect.main(settings)
    number = {name: i for i, name in NAMES.items()}
    with (tmp_path / "exp" / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows, "nothing was found"
    keys = ("x1", "y1", "x2", "y2")
    wanted = np.array([[*(float(r[k]) for k in keys), float(r["Confidence"]), number[r["Prediction"]]] for r in rows])
    with served(page_of(tmp_path / "web", onnx)) as url:
        found = boxes(open_image(chromium, url, photo, confidence=None))
    assert len(found) == len(wanted) > 5
    left = list(range(len(wanted)))
    for box in found:  # in another order where scores are nearly equal
        same = [i for i in left if wanted[i, 5] == box[5] and np.abs(wanted[i, :4] - box[:4]).max() < 2]
        same = [i for i in same if abs(wanted[i, 4] - box[4]) < 0.01]
        assert same, box
        left.remove(same[0])
