"""The network with a fourth output at stride 4: shapes, weights, loss, anchors, training and export."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from blobs import make_set
from data_sets import noise
from test_fast_networks import spread
from torch.testing import assert_close

import detect
import export
import train
from models.runtimes.load import load_backend
from models.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.weights.transfer import fine_tune
from models.yolo import DetectionModel
from utils.boxes import Targets
from utils.hyp import Hyp
from utils.images import imwrite
from utils.loss import BALANCE
from utils.train.autoanchor import check_anchors

FAST, P2 = "yolov5-mobilevit-fast.yaml", "yolov5-mobilevit-fast-p2.yaml"
STRIDES = [4, 8, 16, 32]


@pytest.fixture(scope="module")
def model() -> DetectionModel:
    return spread(DetectionModel(P2, nc=3))


def test_four_maps_and_their_rows(model: DetectionModel) -> None:
    assert model.stride.tolist() == STRIDES and model.grid == 32
    decoded, raw = model(torch.rand(2, 3, 64, 96))
    assert [tuple(level.shape) for level in raw] == [(2, 3, 64 // s, 96 // s, 8) for s in STRIDES]
    assert decoded.shape == (2, 3 * sum(64 // s * (96 // s) for s in STRIDES), 8)
    assert sum(p.numel() for p in DetectionModel(P2).parameters()) == 1_280_781
    assert DetectionModel(P2).gflops(640) < 1.35 * DetectionModel(FAST).gflops(640)


def test_it_takes_the_backbone_and_half_of_the_neck_of_the_fast_network() -> None:
    torch.manual_seed(1)
    source, target = DetectionModel(FAST, nc=3), DetectionModel(P2, nc=3)
    source.names = target.names = {0: "a", 1: "b", 2: "c"}
    report = fine_tune(target, source, skip=["model.31.anchors"])
    assert report.share("backbone") == 1
    rows = {name.split(".")[1] for name, value in target.state_dict().items() if value.is_floating_point()}
    own, theirs = target.state_dict(), source.state_dict()
    same = {r for r in rows if all(torch.equal(own[n], theirs[n]) for n in own if n.split(".")[1] == r and n in theirs)}
    assert {str(r) for r in range(18)} & rows <= same


def test_a_small_box_is_learned_at_stride_4(model: DetectionModel) -> None:
    criterion = model.head.criterion(Hyp(), 128)
    assert criterion.balance == BALANCE[4] and len(criterion.balance) == 4
    preds = [torch.zeros(1, 3, 128 // s, 128 // s, 8, requires_grad=True) for s in STRIDES]
    targets = Targets(torch.tensor([0]), torch.tensor([1]), torch.tensor([[0.3, 0.6, 6 / 128, 6 / 128]]))
    loss, parts = criterion(preds, targets)
    loss.backward()
    assert torch.isfinite(loss) and parts["box"] > 0
    moved = [bool(p.grad is not None and p.grad[..., :4].any()) for p in preds]
    assert moved[0] and not any(moved[2:])
    cell = preds[0].grad[0, :, int(0.6 * 32), int(0.3 * 32), :4]
    assert bool(cell.any())


def test_twelve_anchors_are_fitted_in_the_order_of_the_strides(model: DetectionModel) -> None:
    sizes = np.exp(np.random.default_rng(0).uniform(np.log(3), np.log(9), (400, 2))) * [[1, 20]]
    fitted, line = check_anchors(sizes, model.head.anchors, model.stride)
    assert "new anchors" in line and fitted.shape == (4, 3, 2)
    area = fitted.prod(dim=2).flatten().tolist()
    assert area == sorted(area)


def test_it_trains_and_detects(tmp_path: Path) -> None:
    data = make_set(tmp_path / "set")
    metrics = train.main(
        train.TrainConfig(
            cfg=P2, data=str(data), imgsz=64, epochs=1, batch_size=4, workers=0, device="cpu", noplots=True,
            project=str(tmp_path), name="run", tile_train=64,
        )
    )  # fmt: skip
    assert metrics is not None and metrics.images == 6
    best = tmp_path / "run" / "weights" / "best.pt"
    assert load_checkpoint(best).model["model.31.stride"].tolist() == STRIDES
    folder = detect.main(
        detect.DetectConfig(
            weights=str(best), source=str(tmp_path / "set" / "images"), conf_thres=0.0, max_det=5, project=str(tmp_path)
        )
    )
    assert len(list(folder.glob("*.png"))) == 6


def test_the_exported_file_gives_the_same_boxes(
    model: DetectionModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    missing = [p for p in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(p) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}, see requirements-export.txt")
    caplog.set_level(logging.INFO)
    save_checkpoint(tmp_path / "p2.pt", Checkpoint.of(model))
    (tmp_path / "images").mkdir()
    imwrite(tmp_path / "images" / "a.png", noise((96, 64), 3))
    results = export.main(
        export.ExportConfig(
            weights=str(tmp_path / "p2.pt"),
            include=("onnx",),
            imgsz=(96, 64),
            images=(str(tmp_path / "images"),),
            threads=1,
        )
    )
    assert results[0].path.is_file()
    images = torch.rand(2, 3, 96, 64)
    got, expected = load_backend(results[0].path, torch.device("cpu"), threads=1)(images), model(images)[0]
    assert_close(got[..., 4:], expected[..., 4:], atol=2e-4, rtol=0)
    assert_close(got[..., :4], expected[..., :4], atol=2e-2, rtol=1e-3)
