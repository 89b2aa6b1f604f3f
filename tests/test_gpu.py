"""What only a GPU shows: half precision, NCCL, and results as on the CPU. Skipped on a machine without one."""

from __future__ import annotations

import csv
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from runs import config, resume, stop_after
from shared import shared
from test_sparse import make_head, raw_maps, same
from tiny import tiny_model
from torch import nn

import export
import train
import val
from models.runtimes.load import load_backend
from models.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.yolo import DetectionModel
from utils.boxes import pairwise_iou
from utils.distributed import Dist
from utils.images import imread
from utils.nms import NmsSettings, non_max_suppression
from utils.predict.predictor import Predictor

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
NETWORKS = (
    "yolov5n",
    "yolov5-mobilevit",
    "yolov5-mobilevit-fast",
    "yolov5n-v8",
    "yolox-nano",
    "yolov5-mobilenetv4-vit",
)


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 throughout: cuDNN otherwise multiplies in TF32, of ten bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def column(run: Path, name: str) -> np.ndarray:
    with (run / "results.csv").open(newline="", encoding="utf-8") as file:
        return np.array([float(row[name]) for row in csv.DictReader(file)])


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_compute_what_they_do_on_the_cpu(name: str) -> None:
    torch.manual_seed(0)
    model = DetectionModel(f"{name}.yaml", nc=3).eval()
    images = torch.rand(2, 3, 192, 256)
    with torch.inference_mode():
        expected = model(images)[0]
        found = model.to(GPU)(images.to(GPU))[0].cpu()
    scale = expected.abs().amax(dim=(0, 1))
    assert ((found - expected).abs() <= 1e-4 * scale + 1e-5).all()


@pytest.mark.parametrize("name", ["Detect", "Decoupled", "DetectV8", "DetectV8, no bins"])
@pytest.mark.parametrize("least", [0.25, 0.001])
def test_sparse_decoding_is_the_dense_one(name: str, least: float) -> None:
    head, maps = make_head(name).to(GPU), [level.to(GPU) for level in raw_maps(make_head(name), 2, 0, -1.0)]
    settings = NmsSettings(conf_thres=least)
    with torch.inference_mode():
        dense, sparse = head.decode_all(maps), head.decode_above(maps, least)
    assert same(non_max_suppression(sparse, settings), non_max_suppression(dense, settings))


@pytest.mark.parametrize("cfg", ["", "yolov5-mobilevit-fast.yaml", "yolov5n-v8.yaml", "yolox-nano.yaml"])
@pytest.mark.parametrize("amp", ["fp16", "bf16"])
def test_mixed_precision_trains_as_float32_does(cfg: str, amp: str, small_set: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"device": "0", "noautoanchor": True, **({"cfg": cfg} if cfg else {})}
    losses = []
    for kind in (amp, "off"):
        train.main(config(small_set, tmp_path, name=kind, amp=kind, **changes))
        names = load_columns(tmp_path / kind)
        losses.append(np.stack([column(tmp_path / kind, name) for name in names]))
    mixed, exact = np.stack(losses)
    assert np.isfinite(mixed).all()
    assert mixed[:, 0] == pytest.approx(exact[:, 0], rel=0.25)  # of the first epoch: then small differences grow
    weights = load_checkpoint(tmp_path / amp / "weights" / "last.pt").model
    assert all(torch.isfinite(value).all() for value in weights.values() if value.is_floating_point())


def load_columns(run: Path) -> list[str]:
    """The names of the training losses of a run."""
    header = (run / "results.csv").read_text().splitlines()[0].split(",")
    return [name for name in header if name.startswith("train/")]


def test_an_interrupted_run_goes_on(small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train.main(config(small_set, tmp_path, name="whole", device="0"))
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stopped by the test"):
        stop_after(patch, 2)
        train.main(config(small_set, tmp_path, name="run", device="0"))
    resume(tmp_path / "run", device="0")
    for name in load_columns(tmp_path / "whole"):  # sums on a GPU have no fixed order: two runs differ by some percent
        assert column(tmp_path / "run", name) == pytest.approx(column(tmp_path / "whole", name), rel=0.1)


def test_the_batch_size_that_fits_is_found(small_set: Path, tmp_path: Path) -> None:
    train.main(config(small_set, tmp_path, device="0", batch_size=-1, epochs=1))
    assert (tmp_path / "run" / "weights" / "best.pt").exists()


def test_loader_processes_and_pinned_memory(small_set: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        train.main(config(small_set, tmp_path, name=f"w{workers}", device="0", workers=workers, epochs=1, amp="off"))
    for name in load_columns(tmp_path / "w0"):
        assert column(tmp_path / "w0", name) == pytest.approx(column(tmp_path / "w2", name), rel=1e-3)


@pytest.fixture(scope="module")
def coco_scores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """mAP50-95 of the official yolov5n on coco128's val images: on the CPU, the GPU, and there in half precision."""
    weights, data = shared("weights/yolov5n.pt"), shared("datasets/coco128/data.yaml")
    found = {}
    for name, changes in {"cpu": {"device": "cpu"}, "gpu": {"device": "0"}, "half": {"half": True}}.items():
        project = str(tmp_path_factory.mktemp(name))
        cfg = val.ValConfig(weights=str(weights), data=str(data), project=project, plots=False, workers=0, **changes)
        found[name] = val.main(cfg).coco["AP"]
    return found


def test_validation_measures_the_same(coco_scores: dict[str, float]) -> None:
    assert coco_scores["gpu"] == pytest.approx(coco_scores["cpu"], abs=5e-4)
    assert coco_scores["half"] == pytest.approx(coco_scores["cpu"], abs=3e-3)


def tiny_file(folder: Path) -> Path:
    path = folder / "tiny.pt"
    save_checkpoint(path, Checkpoint.of(tiny_model()))
    return path


def test_half_precision_finds_the_same_objects() -> None:
    weights = shared("weights/yolov5n.pt")
    image = imread(min(shared("datasets/coco128/images").rglob("*.jpg")))
    found = []
    for device, half in ((CPU, False), (GPU, False), (GPU, True)):
        predictor = Predictor(load_backend(weights, device, half), device, half=half)
        found.append(predictor([image])[0].boxes)
    expected = found[0]
    assert len(expected)
    for boxes in found[1:]:
        assert np.array_equal(np.sort(boxes.label), np.sort(expected.label))
        overlaps = pairwise_iou(expected.xyxy, boxes.xyxy)
        assert (overlaps.max(axis=1) > 0.95).all()


def test_exported_files_take_images_on_the_gpu(tmp_path: Path) -> None:
    path = tiny_file(tmp_path)
    export.main(export.ExportConfig(weights=str(path), include=("torchscript", "onnx"), imgsz=(64,)))
    images = torch.rand(1, 3, 64, 64)
    expected = load_backend(path, CPU)(images)
    for name in ("tiny.torchscript", "tiny.onnx"):
        found = load_backend(tmp_path / name, GPU)(images.to(GPU)).cpu()
        assert found.numpy() == pytest.approx(expected.numpy(), abs=1e-2, rel=1e-3)


def test_nccl_averages_gradients_and_statistics() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    dist.init_process_group("nccl", init_method=address, rank=0, world_size=1)
    try:
        # Two processes cannot share a GPU: one, which says that there are two, calls NCCL in all that it does.
        job = Dist(GPU, rank=0, world=2, cpu_group=dist.new_group(backend="gloo"))
        torch.manual_seed(0)
        plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 2, 1)).to(GPU)
        images = torch.rand(4, 3, 16, 16, device=GPU)
        plain(images).square().sum().backward()
        expected = [parameter.grad.clone() for parameter in plain.parameters()]
        statistics = plain[1].running_mean.clone()
        plain.zero_grad()
        plain[1].reset_running_stats()
        wrapped = job.wrap(plain, sync_bn=True)
        with job.gradient_sync(wrapped, True):
            wrapped(images).square().sum().backward()
        found = [parameter.grad for parameter in wrapped.parameters()]
        assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(found, expected, strict=True))
        norm = next(module for module in wrapped.modules() if hasattr(module, "running_mean"))
        assert torch.allclose(norm.running_mean, statistics, rtol=1e-4, atol=1e-6)
        assert job.all_reduce_sum(torch.tensor([2.0], device=GPU)).item() == 2.0
        assert job.broadcast({"stop": True}) == {"stop": True}
    finally:
        dist.destroy_process_group()
