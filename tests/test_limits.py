"""What weights fix: the size of the input and NMS in a file; detect warns, val refuses what would be wrong."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from blobs import BlobBackend, draw, make_set
from tiny import tiny_model, write_tiny

import detect
import export
import val
from models.runtimes.ensemble import Augmented, Ensemble, joint_limits
from models.runtimes.load import load_backend
from models.weights.checkpoint import Checkpoint, save_checkpoint
from utils.backend import ModelLimits, input_size, refuse_nms, warn_of_nms
from utils.config import parse_cli
from utils.images import as_size, check_imgsz, fit_canvas, imwrite
from utils.nms import NmsSettings, non_max_suppression
from utils.predict.predictor import Predictor

CPU = torch.device("cpu")
INSIDE = NmsSettings(0.25, 0.45, 300)


class Fixed(BlobBackend):
    """The stand-in as an exported file: it refuses every size but its own."""

    def __init__(self, size: tuple[int, int], nms: NmsSettings | None = None):
        super().__init__()
        self.limits = ModelLimits("best.onnx", size, fixed=True, nms=nms)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[2:] == self.limits.imgsz
        return super().__call__(images)


# ---- sizes ----------------------------------------------------------------------------------------------------------


def test_one_type_for_sizes():
    assert as_size(320) == as_size((320,)) == as_size([320, 320]) == as_size(np.int64(320)) == (320, 320)
    assert as_size((192, 320)) == (192, 320)
    for wrong in ((), (1, 2, 3), 0, (64, -1), 64.0, True, "64", ("64",)):
        with pytest.raises(ValueError, match=r"^--imgsz .{,40}: expected one number, or height and width"):
            as_size(wrong)


def test_the_command_lines_take_height_and_width():
    for config in (detect.DetectConfig, val.ValConfig, export.ExportConfig):
        assert parse_cli(config, ["--imgsz", "192", "320"]).imgsz == (192, 320)
        assert parse_cli(config, ["--img", "320"]).imgsz == (320,) and parse_cli(config, []).imgsz == ()
        with pytest.raises(ValueError, match="--imgsz 0: expected at least 1"):
            parse_cli(config, ["--imgsz", "64", "0"])


def test_check_imgsz_rounds_each_side(caplog):
    assert check_imgsz((190, 320), 64) == (192, 320) and check_imgsz(300, 32) == (320, 320)
    assert [r.getMessage() for r in caplog.records] == [
        "--imgsz 190x320 is not a multiple of this model's grid of 64; using 192x320",
        "--imgsz 300 is not a multiple of this model's grid of 32; using 320",
    ]


@pytest.mark.parametrize("image", [(100, 200), (200, 100), (50, 700), (333, 101), (64, 64), (1, 999)])
@pytest.mark.parametrize("largest", [(192, 320), (320, 192), (320, 320)])
def test_every_image_fits(image, largest):
    h, w = fit_canvas(image, largest, 32)
    assert h <= largest[0] and w <= largest[1] and h % 32 == w % 32 == 0
    ratio = min(largest[0] / image[0], largest[1] / image[1])
    assert h - 32 < max(round(image[0] * ratio), 1) <= h and w - 32 < max(round(image[1] * ratio), 1) <= w


@pytest.mark.parametrize(
    ("asked", "limits", "size", "words"),
    [
        ((), ModelLimits("a.pt"), (640, 640), ""),
        ((), ModelLimits("a.pt", (320, 320)), (320, 320), "--imgsz not given: using 320, the size that a.pt was made"),
        ((), ModelLimits("a.onnx", (96, 160), True), (96, 160), "using 96x160, the size that a.onnx was made for"),
        (256, ModelLimits("a.pt", (320, 320)), (256, 256), ""),
        ((96, 160), ModelLimits("a.onnx", (96, 160), True), (96, 160), ""),
        (640, ModelLimits("a.onnx", (96, 160), True), (96, 160), "--imgsz 640: a.onnx takes 96x160 only"),
    ],
)
def test_the_size_follows_the_file(asked, limits, size, words, caplog):
    with caplog.at_level(logging.INFO):
        assert input_size(asked, limits, 32) == size
    assert words in caplog.text and bool(words) == bool(caplog.records)


@pytest.mark.parametrize("size", [(96, 160), (160, 96), (128, 128)])
@pytest.mark.parametrize("image", [(120, 160), (160, 120), (300, 90)])
def test_boxes_of_a_fixed_size_come_back(size, image):
    """Landscape and portrait, with and without tiles and test-time augmentation's padding."""
    boxes = [[10, 12, 60, 40], [15, 60, 45, 115]]
    picture = draw(image, boxes)
    for predictor in (Predictor(Fixed(size), CPU), Predictor(Fixed(size), CPU, rect=False)):
        found = predictor([picture])[0]
        assert found.canvas == size and len(found.boxes) == 2
        xyxy = found.boxes.xyxy[np.argsort(found.boxes.xyxy[:, 1])]
        assert np.abs(xyxy - boxes).max() <= 2.5
    assert len(Predictor(Fixed(size), CPU, tile=100)([picture])[0].boxes) >= 1


def test_a_checkpoint_is_used_at_the_size_of_its_training(tmp_path):
    checkpoint = Checkpoint.of(tiny_model())
    for opt, size in (({"imgsz": 96}, (96, 96)), ({}, None), ({"imgsz": "big"}, None), ({"imgsz": 10**9}, None)):
        save_checkpoint(tmp_path / "w.pt", replace(checkpoint, opt=opt))
        backend = load_backend(tmp_path / "w.pt", CPU)
        assert backend.limits == ModelLimits("w.pt", size)
    assert Predictor(backend, CPU).size == (640, 640)


def test_members_of_an_ensemble_agree():
    pt, big = ModelLimits("a.pt", (96, 96)), ModelLimits("b.pt", (64, 128))
    onnx = ModelLimits("c.onnx", (64, 128), True, INSIDE)
    assert joint_limits([pt, big], 32) == ModelLimits("a.pt, b.pt", (96, 128))
    assert joint_limits([pt, onnx], 32) == ModelLimits("a.pt, c.onnx", (64, 128), True, INSIDE)
    with pytest.raises(ValueError, match=r"same input size, c\.onnx and d\.onnx differ"):
        joint_limits([onnx, ModelLimits("d.onnx", (96, 96), True)], 32)
    with pytest.raises(ValueError, match=r"same settings of the NMS inside, c\.onnx and d\.onnx"):
        joint_limits([onnx, replace(onnx, file="d.onnx", nms=NmsSettings(0.1))], 32)
    with pytest.raises(ValueError, match=r"c\.onnx takes 64x128 only, others need multiples of 96"):
        joint_limits([onnx, pt], 96)
    ensemble = Ensemble([Fixed((96, 160)), BlobBackend()])
    assert Predictor(ensemble, CPU, 640).size == (96, 160) and Augmented(ensemble).limits == ensemble.limits


def test_val_of_a_fixed_size_that_is_not_square(tmp_path, monkeypatch, caplog):
    """The stand-in finds every object, so the mAP is 1 at any size, also of portrait images."""
    data = make_set(tmp_path / "set")
    backend = Fixed((96, 160))
    monkeypatch.setattr(val, "load_model", lambda *_, **__: backend)
    flags = {"weights": "best.onnx", "data": str(data), "workers": 0, "plots": False, "project": str(tmp_path / "r")}
    with caplog.at_level(logging.INFO):
        metrics = val.main(val.ValConfig(device="cpu", rect=True, **flags))
    assert metrics.map50 > 0.99 and {shape[2:] for shape in backend.seen} == {(96, 160)}
    assert "rect is off: best.onnx takes 96x160 only" in caplog.text
    with pytest.raises(ValueError, match=r"--task study: best\.onnx takes one size only"):
        val.main(val.ValConfig(device="cpu", task="study", **flags))


# ---- NMS in a file --------------------------------------------------------------------------------------------------


def test_settings_that_nms_in_a_file_cannot_give_are_warned_of_and_refused(caplog):
    model = Fixed((96, 160), INSIDE)
    fine = [INSIDE, replace(INSIDE, conf_thres=0.5), replace(INSIDE, max_det=10), replace(INSIDE, classes=(1,))]
    for settings in fine:
        warn_of_nms(model, settings)
        refuse_nms(model, settings)
    assert not caplog.records
    for change, words in (
        ({"conf_thres": 0.001}, "confidence threshold 0.001 (inside: 0.25)"),
        ({"iou_thres": 0.6}, "IoU threshold 0.6 (inside: 0.45)"),
        ({"agnostic": True}, "class-agnostic NMS (inside: within each class)"),
    ):
        caplog.clear()
        warn_of_nms(model, replace(INSIDE, **change))
        assert len(caplog.records) == 1 and words in caplog.text and "\n" not in caplog.records[0].getMessage()
        with pytest.raises(ValueError, match="metrics would be wrong") as error:
            refuse_nms(model, replace(INSIDE, **change))
        assert words in str(error.value) and len(str(error.value)) < 400
    with pytest.raises(ValueError, match=r"301 detections per image \(inside: 300\)"):
        refuse_nms(model, replace(INSIDE, max_det=301))
    caplog.clear()
    refuse_nms(model, replace(INSIDE, multi_label=True))
    assert "keeps the best class of a box" in caplog.text
    refuse_nms(BlobBackend(), replace(INSIDE, conf_thres=0, max_det=999))


def test_a_file_that_is_full_says_so_once(caplog):
    """Forty rows are all that the stand-in has."""

    class Full(Fixed):
        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            rows = super().__call__(images)
            rows[..., 4] = 0.9
            return rows

    for settings, most, lines in ((INSIDE, 40, 1), (replace(INSIDE, max_det=40), 40, 0), (INSIDE, 50, 0)):
        caplog.clear()
        predictor = Predictor(Full((96, 160), replace(INSIDE, max_det=most)), CPU, nms=settings)
        predictor([draw((96, 160), [])] * 10)
        assert len(caplog.records) == lines
    assert not Predictor(Fixed((96, 160), replace(INSIDE, max_det=40)), CPU)([draw((96, 160), [])])[0].boxes


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """tiny.pt, images with labels, and tiny-nms.onnx for 96x160 with conf 0.3, iou 0.5, at most 50 boxes."""
    if any(importlib.util.find_spec(p) is None for p in ("onnx", "onnxscript", "onnxslim", "onnxruntime")):
        pytest.skip("needs onnx, onnxscript, onnxslim, onnxruntime, see requirements-export.txt")
    place = tmp_path_factory.mktemp("nms")
    write_tiny(place)
    (place / "labels").mkdir()
    for image in (place / "images").iterdir():
        (place / "labels" / f"{image.stem}.txt").write_text("0 0.5 0.5 0.5 0.5\n1 0.3 0.3 0.2 0.2\n")
    (place / "data.yaml").write_text("path: .\ntrain: images\nval: images\nnames: [cat, Bär, dog]\n")
    flags = {"images": (str(place / "images"),), "imgsz": (96, 160), "threads": 1}
    nms = {"nms": True, "conf_thres": 0.3, "iou_thres": 0.5, "max_det": 50}
    for more in (nms, {}):
        export.main(export.ExportConfig(weights=str(place / "tiny.pt"), include=("onnx",), **flags, **more))
    return place


def test_an_exported_file_says_what_it_fixes(folder, caplog):
    backend = load_backend(folder / "tiny-nms.onnx", CPU)
    inside = NmsSettings(0.3, 0.5, 50)
    assert backend.limits == ModelLimits("tiny-nms.onnx", (96, 160), fixed=True, nms=inside)
    image = np.random.default_rng(0).integers(0, 255, (7, 5, 3), np.uint8).repeat(30, 0).repeat(30, 1)  # portrait
    plain = Predictor(load_backend(folder / "tiny.pt", CPU), CPU, (96, 160), inside, rect=False)([image])[0].boxes
    for name in ("tiny-nms.onnx", "tiny.onnx"):
        with caplog.at_level(logging.WARNING):
            boxes = Predictor(load_backend(folder / name, CPU), CPU, nms=inside)([image])[0].boxes
        assert len(boxes) == len(plain) > 3 and np.abs(boxes.table() - plain.table()).max() < 0.01
    assert not caplog.records
    Predictor(backend, CPU, nms=NmsSettings(0.1, 0.5, 50))
    assert [r.getMessage() for r in caplog.records] == [
        "tiny-nms.onnx has NMS inside, which cannot be undone: confidence threshold 0.1 (inside: 0.3); boxes may "
        "differ from those of the checkpoint: export it with these values, or without --nms"
    ]


def test_val_refuses_thresholds_that_the_file_does_not_have(folder, tmp_path):
    flags = {"data": str(folder / "data.yaml"), "workers": 0, "plots": False, "device": "cpu", "rect": False}
    cfg = val.ValConfig(weights=str(folder / "tiny-nms.onnx"), project=str(tmp_path), **flags)
    with pytest.raises(ValueError, match=r"confidence threshold 0\.001 \(inside: 0\.3\); IoU threshold 0\.6"):
        val.main(cfg)
    same = {"conf_thres": 0.3, "iou_thres": 0.5, "max_det": 50}
    got = val.main(replace(cfg, **same))
    checkpoint = replace(cfg, weights=str(folder / "tiny.pt"), imgsz=(96, 160), **same)
    assert got.map50_95 == pytest.approx(val.main(checkpoint).map50_95, abs=0.02)
    plain = val.main(replace(cfg, weights=str(folder / "tiny.onnx")))
    exact = val.main(replace(checkpoint, conf_thres=cfg.conf_thres, iou_thres=cfg.iou_thres, max_det=cfg.max_det))
    assert plain.coco == pytest.approx(exact.coco, abs=1e-3)


def test_detect_runs_it_and_warns(folder, tmp_path, caplog):
    imwrite(tmp_path / "portrait.png", np.full((200, 90, 3), 120, np.uint8))
    with caplog.at_level(logging.INFO):
        detect.main(
            detect.DetectConfig(
                weights=str(folder / "tiny-nms.onnx"),
                source=str(tmp_path / "portrait.png"),
                conf_thres=0.1,
                device="cpu",
                project=str(tmp_path / "r"),
            )
        )
    assert "--imgsz not given: using 96x160, the size that tiny-nms.onnx was made for" in caplog.text
    assert "confidence threshold 0.1 (inside: 0.3); IoU threshold 0.45 (inside: 0.5)" in caplog.text


def test_the_example_says_it_too(folder, capsys):
    place = Path(export.__file__).parent / "examples" / "onnx_detect.py"
    spec = importlib.util.spec_from_file_location("onnx_detect", place)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    path = str(folder / "tiny-nms.onnx")
    image = np.random.default_rng(0).integers(0, 255, (210, 150, 3), np.uint8)
    own = example.Detector(path)
    assert (own.conf_thres, own.iou_thres) == (0.3, 0.5) and capsys.readouterr().err == ""
    example.Detector(path, conf_thres=0.1)
    assert "NMS inside" in capsys.readouterr().err
    canvas = torch.from_numpy(own.letterbox(image)[0][..., ::-1].copy())
    decoded = load_backend(path, CPU)(canvas.permute(2, 0, 1)[None] / 255)
    assert len(own(image)) == len(non_max_suppression(decoded, NmsSettings(0.3, 0.5))[0])
