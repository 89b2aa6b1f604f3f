"""Training on a small data set: train, validate, detect; the size rule on every path; files and errors."""

from __future__ import annotations

import csv
import json
import logging
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHAPES

import detect
import train
import val
from models.weights.checkpoint import Checkpoint, build_model, load_checkpoint, save_checkpoint
from models.yolo import DetectionModel
from utils.boxes import Targets
from utils.config import run_script
from utils.data.data_yaml import read_data_yaml
from utils.data.dataset import Augmentation, DetectionDataset
from utils.data.loader import build_loader
from utils.distributed import Dist
from utils.files import REPO
from utils.hyp import Hyp
from utils.images import check_imgsz, imread, imwrite, rect_or_square
from utils.loss import DetectionLoss
from utils.train.optim import ModelEMA, Schedule, build_optimizer


def config(data: Path, project: Path, **changes: object) -> train.TrainConfig:
    base = {"data": str(data), "project": str(project), "imgsz": 64, "epochs": 1, "batch_size": 4, "workers": 0}
    return train.TrainConfig(**(base | {"cfg": "yolov5-mobilevit.yaml", "device": "cpu"} | changes))


def test_train_val_detect_and_the_files_they_leave(shapes_set: Path, tmp_path: Path) -> None:
    train.main(config(shapes_set, tmp_path, epochs=2, name="run"))
    run = tmp_path / "run"
    files = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file() and "tfevents" not in p.name}
    plots = {"labels.jpg", "train_batch0.jpg", "train_batch1.jpg", "train_batch2.jpg", "results.png", "report.html"}
    written = {"opt.yaml", "hyp.yaml", "results.csv", "metrics.json", "weights/best.pt", "weights/last.pt"}
    plots |= {f"{name}_curve.png" for name in ("PR", "F1", "P", "R")}
    plots |= {"confusion_matrix.png", "errors.html", "suspects.csv"}
    plots |= {f"val_batch0_{kind}.jpg" for kind in ("labels", "pred")}
    assert files == written | plots
    rows = list(csv.DictReader((run / "results.csv").open()))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert all(math.isfinite(float(v)) for row in rows for v in row.values())
    best = str(run / "weights" / "best.pt")
    common = {"weights": best, "imgsz": 64, "device": "cpu", "project": str(tmp_path)}
    metrics = val.main(val.ValConfig(data=str(shapes_set), name="val", workers=0, **common))
    written = json.loads((tmp_path / "val" / "metrics.json").read_text())
    assert {"map50", "map50_95", "precision", "recall", "per_class", "speed_ms"} <= set(written)
    assert written["map50"] == metrics.map50
    assert json.loads((run / "metrics.json").read_text())["map50_95"] == pytest.approx(metrics.map50_95, abs=1e-6)
    folder = detect.main(detect.DetectConfig(source=str(shapes_set.parent / "images" / "all"), name="det", **common))
    assert len(list(folder.glob("*.png"))) == 8


def test_same_seed_same_weights_whatever_the_workers(shapes_set: Path, tmp_path: Path) -> None:
    states = []
    for i, workers in enumerate((0, 2)):
        train.main(config(shapes_set, tmp_path, cfg="yolov5n.yaml", name=f"run{i}x", workers=workers))
        states.append(load_checkpoint(tmp_path / f"run{i}x" / "weights" / "last.pt").model)
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


@pytest.mark.parametrize("cfg", ["yolov5-mobilevit.yaml", "yolov5n.yaml"])
@pytest.mark.parametrize("imgsz", [320, 384, 416, 448, 640])
def test_size_rule(cfg: str, imgsz: int, shapes_set: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = DetectionModel(cfg, nc=2)
    with caplog.at_level(logging.WARNING):
        fitted = check_imgsz(imgsz, model.grid)[0]
    assert fitted == (448 if (imgsz, model.grid) == (416, 64) else imgsz)
    assert len(caplog.records) == (fitted != imgsz)
    found = read_data_yaml(shapes_set).scan("train")
    rect = rect_or_square(None, model.grid, int(model.stride.max()))
    assert rect == (cfg == "yolov5n.yaml")
    sizes = set()
    for hyp, rectangular in ((Hyp(), False), (Hyp(), rect), (None, rect)):  # train, train --rect, val
        dataset = DetectionDataset(
            found, fitted, model.grid, augment=hyp and Augmentation(hyp), rect=rectangular, batch_size=2
        )
        sizes |= {tuple(batch.images.shape[-2:]) for batch in build_loader(dataset, 2)}
    images = torch.rand(1, 3, fitted, fitted)
    rng = np.random.default_rng(0)
    sizes |= {tuple(train.rescale(images, model.grid, rng).shape[-2:]) for _ in range(4)}
    assert all(side % model.grid == 0 for size in sizes for side in size)
    sizes = {size for size in sizes if max(size) <= fitted}
    with torch.inference_mode():
        for h, w in sizes:
            assert len(model.train()(torch.rand(1, 3, h, w))) == 3
        decoded = [model.eval()(torch.ones(1, 3, h, w))[0] for h, w in sizes]
        model.fuse()
        for (h, w), before in zip(sizes, decoded, strict=True):
            torch.testing.assert_close(model(torch.ones(1, 3, h, w))[0], before, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_detect_reads_every_shape(shape: tuple[int, int], tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "w.pt", Checkpoint.of(DetectionModel("yolov5-mobilevit.yaml", nc=2)))
    imwrite(tmp_path / "a.png", np.zeros((*shape, 3), np.uint8))
    folder = detect.main(
        detect.DetectConfig(str(tmp_path / "w.pt"), str(tmp_path / "a.png"), 100, project=str(tmp_path), device="cpu")
    )
    assert imread(folder / "a.png").shape[:2] == shape


def test_rect_and_multi_scale_train_and_rect_says_that_it_is_off(
    shapes_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        train.main(config(shapes_set, tmp_path, rect=True, multi_scale=True, imgsz=100))
    assert sum("rect is off" in r.message for r in caplog.records) == 1
    assert sum("using 128" in r.message for r in caplog.records) == 1


def test_checkpoint_round_trip_is_exact_and_safe(tmp_path: Path) -> None:
    model = DetectionModel("yolov5n.yaml", nc=2).eval()
    model.names = {0: "röt", 1: "blue"}
    save_checkpoint(tmp_path / "a.pt", Checkpoint.of(model))
    again = build_model(load_checkpoint(tmp_path / "a.pt"))
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(model(image)[0], again(image)[0])
    assert again.names == model.names
    with pytest.raises(ValueError, match="only tensors and plain data"):
        save_checkpoint(tmp_path / "a.pt", replace(Checkpoint.of(model), training={"bad": subprocess.Popen}))
    assert load_checkpoint(tmp_path / "a.pt").names == model.names  # the old file survives
    (tmp_path / "junk.pt").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"junk.pt: not a usable checkpoint"):
        load_checkpoint(tmp_path / "junk.pt")


def test_schedule_accumulates_to_the_nominal_batch() -> None:
    model = DetectionModel("yolov5n.yaml", nc=2)
    hyp = Hyp(warmup_epochs=1, warmup_min_steps=20)
    optimizer = build_optimizer(model, "SGD", hyp, 5e-4)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0, 0, 5e-4]
    schedule = Schedule(optimizer, hyp, epochs=10, batches=10, batch_size=16, cosine=False)
    assert schedule.warmup == 20
    updates = []
    for step in range(100):
        schedule.set(step)
        if step == 0:
            assert schedule.rates() == [0.1, 0, 0]
            assert optimizer.param_groups[0]["momentum"] == 0.8
        if schedule.update_due(step):
            updates.append(step)
    assert np.diff(updates)[-5:].tolist() == [4] * 5
    assert updates[:3] == [0, 1, 2]
    assert schedule.rates() == pytest.approx([0.01 * (0.01 + 0.99 * 0.1)] * 3)
    assert schedule.factor(0) == 1 and schedule.factor(10) == pytest.approx(0.01)


def test_ema_equals_its_formula() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    ema = ModelEMA(model)
    expected = {k: v.clone() for k, v in model.state_dict().items()}
    for n in range(1, 6):
        with torch.no_grad():
            for p in model.parameters():
                p += torch.randn_like(p)
        model(torch.randn(4, 3))
        ema.update(model)
        d = 0.9999 * (1 - math.exp(-n / 2000))
        for k, v in model.state_dict().items():
            expected[k] = expected[k] * d + v * (1 - d) if v.is_floating_point() else v
    assert ema.updates == 5
    for k, v in ema.module.state_dict().items():
        torch.testing.assert_close(v, expected[k])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "nowhere.yaml"], "'nowhere.yaml' not found, tried:"),
        (["--cfg", "nothing.yaml"], "'nothing.yaml' not found, tried:"),
        (["--epochs", "0"], "--epochs 0: expected at least 1"),
        (["--device", "9"], "--device 9: "),
        (["--weights", "none.pt"], "weights 'none.pt' not found"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    words: list[str],
    message: str,
    shapes_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--data", str(shapes_set), "--project", str(tmp_path), *words])
    with pytest.raises(SystemExit) as stop:
        run_script(train.main, train.TrainConfig)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "exp").exists()  # nothing was begun


def test_a_loss_that_is_not_finite_names_the_images(
    shapes_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object, preds: list, targets: Targets) -> tuple:
        return preds[0].sum() * math.nan, dict.fromkeys(("box", "obj", "cls"), torch.zeros(()))

    monkeypatch.setattr(DetectionLoss, "__call__", broken)
    with pytest.raises(FloatingPointError, match=r"epoch 1; images, or those mixed into them: .*\.png"):
        train.main(config(shapes_set, tmp_path))


def test_hyp_rejects_unknown_keys(tmp_path: Path) -> None:
    path = tmp_path / "h.yaml"
    path.write_text("lr: 0.1\n")
    with pytest.raises(ValueError, match=r"h.yaml: unknown key lr, expected: .*lr0"):
        Hyp.from_yaml(path)
    assert Hyp.from_yaml(REPO / "data/hyps/hyp.scratch-low.yaml") == Hyp()


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_a_step_is_as_long_as_the_clipped_gradient(shapes_set: Path, tmp_path: Path, clip: float) -> None:
    """One update of plain SGD: the weights move by rate * the smaller of the gradient's norm and the limit."""
    zero = {"momentum": 1e-9, "weight_decay": 0.0, "warmup_epochs": 0.0, "warmup_min_steps": 0, "lr0": 1e-3}
    hyp = replace(Hyp(), nominal_batch=4, **zero)
    cfg = config(shapes_set, tmp_path, clip_grad=clip, optimizer="SGD", noplots=True, fraction=0.01)
    job = train.set_up(cfg, hyp, Dist(torch.device("cpu")), None)
    before = [p.detach().clone() for p in job.model.parameters()]
    train.train_one_epoch(job, 0)
    steps = [(p.detach() - b).norm() for p, b in zip(job.model.parameters(), before, strict=True)]
    moved = torch.stack(steps).norm().item() / 1e-3
    assert moved == pytest.approx(0.5, rel=1e-2) if clip else moved > 1


@pytest.mark.parametrize(("amp", "dtype"), [("bf16", torch.bfloat16), ("off", torch.float32), ("auto", torch.float32)])
def test_amp_is_the_type_of_the_forward_pass(amp: str, dtype: torch.dtype, small_set: Path, tmp_path: Path) -> None:
    cfg = config(small_set, tmp_path, cfg="yolov5n.yaml", amp=amp, noplots=True)
    job = train.set_up(cfg, Hyp(), Dist(torch.device("cpu")))
    before = {name: p.detach().clone() for name, p in job.model.named_parameters()}
    seen: set[torch.dtype] = set()
    for module in job.model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    losses = train.train_one_epoch(job, 0)
    assert seen == {dtype}
    assert all(math.isfinite(part) and part > 0 for part in losses.values())
    for name, p in job.model.named_parameters():
        assert p.dtype == torch.float32 and p.isfinite().all() and not torch.equal(p, before[name]), name


def test_quad_trains_on_images_of_twice_the_side(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[tuple[torch.Tensor, Targets]] = []
    plot = train.plot_batch

    def record(images: torch.Tensor, targets: Targets, *rest: Any) -> None:
        batches.append((images, targets))
        plot(images, targets, *rest)

    monkeypatch.setattr(train, "plot_batch", record)
    train.main(config(small_set, tmp_path, cfg="yolov5n.yaml", hyp="hyp.no-augmentation.yaml", quad=True, name="run"))
    assert [tuple(images.shape) for images, _ in batches] == [(1, 3, 128, 128)] * 3  # of 4, 4 and 3 images
    assert sum(len(targets) for _, targets in batches) > 3
    colors = {0: {(255, 255, 0), (255, 0, 255)}, 1: {(255, 0, 255)}}  # of the set; class 1 may cover class 0
    for images, targets in batches:
        for image, label, xywhn in zip(targets.image, targets.label, targets.xywhn, strict=True):
            x, y = (int(v) for v in xywhn[:2] * 128)
            assert tuple(images[image, :, y, x].tolist()) in colors[int(label)]
    assert imread(tmp_path / "run" / "train_batch2.jpg").shape[0] >= 320
    (row,) = csv.DictReader((tmp_path / "run" / "results.csv").open())
    assert all(math.isfinite(float(value)) for value in row.values())


@pytest.mark.parametrize("value", [-0.5, -2.0, float("nan")])
def test_an_impossible_gradient_limit_is_refused(shapes_set: Path, tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match=r"--clip-grad .*expected"):
        train.main(config(shapes_set, tmp_path, clip_grad=value))
