"""Tiles in training and in validation: which parts of large images are used, and what becomes of the boxes."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from blobs import BlobBackend, draw
from data_sets import noise, rectangles, to_boxes, write_set
from runs import config, resume
from test_data import STILL

import train
import val
from models.weights.checkpoint import load_checkpoint
from tools.kill_and_resume import differences
from utils.boxes import areas
from utils.data.augmentations import WHOLE, random_tile
from utils.data.data_yaml import read_data_yaml
from utils.data.dataset import Augmentation, DetectionDataset, Sample
from utils.data.loader import build_loader
from utils.data.scan import Scan
from utils.data.views import MIN_AREA
from utils.evaluate.evaluation import EvalSettings, detect_all
from utils.hyp import Hyp
from utils.images import imread
from utils.next_steps import after_training
from utils.predict.predictor import Predictor
from utils.tiles import EDGE, uncut
from utils.train.autoanchor import label_sizes
from utils.train.start import log_tiles

CPU = torch.device("cpu")
LARGE = to_boxes([0, 100, 60, 140, 100], [1, 250, 200, 290, 230], [0, 10, 10, 30, 40])


def places() -> np.ndarray:
    """(240, 320, 3): every pixel holds its y, and its x in two parts."""
    y, x = np.mgrid[:240, :320]
    return np.stack([y, x % 256, x // 256], axis=2).astype(np.uint8)


def corner(part: np.ndarray) -> tuple[int, int]:
    """The y and x of the first pixel of a part of `places`."""
    y, low, high = part[0, 0].tolist()
    return y, low + 256 * high


@pytest.fixture(scope="module")
def large_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images of 240 x 320 with noise around rectangles, one of 48 x 60."""
    root, images = tmp_path_factory.mktemp("large"), []
    for seed in range(8):
        image = rectangles((240, 320), LARGE, [(250, 40, 40), (40, 250, 40)])
        images.append(np.where(image == 30, noise((240, 320), seed, 60), image).astype(np.uint8))
    small = to_boxes([1, 5, 5, 30, 30])
    return write_set(root, [*images, rectangles((48, 60), small)], [LARGE] * 8 + [small], ["red", "green"])


@pytest.fixture(scope="module")
def found(large_set: Path) -> Scan:
    return read_data_yaml(large_set).scan("train")


def same(a: Sample | None, b: Sample | None) -> bool:
    assert a is not None and b is not None
    return torch.equal(a.image, b.image) and torch.equal(a.targets.xywhn, b.targets.xywhn)


def test_a_random_tile_is_a_part_of_the_image_with_its_boxes_clipped() -> None:
    image, whole, cut, dropped, near = places(), 0, 0, 0, 0
    for seed in range(400):
        part, boxes = random_tile(image, LARGE, 64, np.random.default_rng(seed))
        if part.shape == image.shape:
            whole += 1
            assert boxes is LARGE
            continue
        assert part.shape == (64, 64, 3)
        y, x = corner(part)
        assert np.array_equal(image[y : y + 64, x : x + 64], part)
        moved = LARGE.xyxy - [x, y, x, y]
        inside = moved.clip(0, 64)
        kept = areas(inside) >= MIN_AREA * areas(moved)
        kept &= (inside[:, 2:] - inside[:, :2]).min(axis=1) >= 2
        assert np.array_equal(boxes.xyxy, inside[kept]) and np.array_equal(boxes.label, LARGE.label[kept])
        cut += int((inside[kept] != moved[kept]).any())
        dropped += int(((inside[:, 2:] > inside[:, :2]).all(axis=1) & ~kept).sum())
        near += len(boxes) > 0
    assert abs(whole / 400 - WHOLE) < 0.08 and cut > 30 and dropped > 3
    assert near > 0.5 * (400 - whole)  # half of them look for a box


def test_what_the_edge_of_a_training_tile_cuts_is_what_detection_drops() -> None:
    image, size = places(), (240, 320)
    for seed in range(200):
        part, boxes = random_tile(image, LARGE, 64, np.random.default_rng(seed))
        if part.shape == image.shape:
            continue
        y, x = corner(part)
        left = uncut(boxes, slice(y, y + 64), slice(x, x + 64), size).xyxy.tolist()
        inside = [b for b in LARGE.xyxy.tolist() if b[0] >= x + EDGE and b[1] >= y + EDGE]
        assert left == [b for b in inside if b[2] <= x + 64 - EDGE and b[3] <= y + 64 - EDGE]


def test_samples_depend_on_seed_epoch_and_image_only(found: Scan, tmp_path: Path) -> None:
    for hyp in (STILL, Hyp()):  # without and with mosaics
        plain = DetectionDataset(found, 64, 32, augment=Augmentation(hyp, seed=3, tile=96))
        again = DetectionDataset(found, 64, 32, augment=Augmentation(hyp, seed=3, tile=96))
        cached = [
            DetectionDataset(found, 64, 32, augment=Augmentation(hyp, seed=3, tile=96), cache=kind)
            for kind in ("ram", "disk")
        ]
        for key in ((1, 4), (0, 0), (2, 8), (1, 0)):
            sample = plain[key]
            assert sample is not None and sample.image.shape == (3, 64, 64)
            assert all(same(sample, other[key]) for other in (again, *cached))
            assert bool(((sample.targets.xywhn >= 0) & (sample.targets.xywhn <= 1)).all())
        assert any(not same(plain[0, i], plain[1, i]) for i in range(8))
        other = DetectionDataset(found, 64, 32, augment=Augmentation(hyp, seed=4, tile=96))
        assert any(not same(plain[0, i], other[0, i]) for i in range(8))


def test_a_tile_fills_the_canvas_and_its_boxes_lie_on_the_objects(found: Scan) -> None:
    data, tiles = DetectionDataset(found, 128, 32, augment=Augmentation(STILL, tile=64)), 0
    for epoch in range(4):
        for i in range(8):
            sample = data[epoch, i]
            assert sample is not None
            tiles += not bool((sample.image[:, 0] == 114).all())  # a whole image has gray borders
            for label, (x, y, w, h) in zip(sample.targets.label, sample.targets.xywhn * 128, strict=True):
                inside = sample.image[
                    :, int(y - h / 2 + 3) : int(y + h / 2 - 3), int(x - w / 2 + 3) : int(x + w / 2 - 3)
                ]
                assert not inside.numel() or inside[label].float().mean() > 235
    assert 16 <= tiles <= 30


def test_small_images_and_no_tiles_are_as_before(found: Scan) -> None:
    plain = DetectionDataset(found, 64, 32, augment=Augmentation(STILL))
    assert same(plain[0, 8], DetectionDataset(found, 64, 32, augment=Augmentation(STILL, tile=64))[0, 8])
    assert all(
        same(plain[0, i], DetectionDataset(found, 64, 32, augment=Augmentation(STILL, tile=320))[0, i])
        for i in range(9)
    )
    with pytest.raises(ValueError, match="tile 64: random tiles are square"):
        DetectionDataset(found, 64, 32, augment=Augmentation(STILL, tile=64), rect=True)
    with pytest.raises(ValueError, match=r"--rect --tile-train 64: tiles are square, expected one of them"):
        train.TrainConfig(rect=True, tile_train=64)
    with pytest.raises(ValueError, match=r"--tile 5: expected at least 32 or 0"):
        val.ValConfig(tile=5)


def test_an_image_that_is_gone_is_replaced_by_a_tile_of_the_next(tmp_path: Path) -> None:
    yaml_file = write_set(tmp_path, [noise((200, 200), 0), noise((200, 200), 1)], [to_boxes()] * 2, ["a"])
    data = DetectionDataset(read_data_yaml(yaml_file).scan("train"), 64, 32, augment=Augmentation(STILL, tile=64))
    (tmp_path / "images" / "000000.png").unlink()
    other = imread(tmp_path / "images" / "000001.png")
    samples = [data[epoch, 0] for epoch in range(8)]
    parts = {tuple(s.image[:, 0, 0].tolist()) for s in samples if s is not None}
    assert len(parts) > 4 and sum((other == p).all(axis=2).any() for p in parts) > 3


def test_anchors_are_fitted_to_boxes_in_tiles_and_in_whole_images(found: Scan) -> None:
    plain, both = label_sizes(found, 64), label_sizes(found, 64, 96)
    assert np.array_equal(both[: len(plain)], plain) and len(both) == len(plain) + 8 * len(LARGE)
    np.testing.assert_allclose(both[len(plain)], np.array([40, 40]) * 64 / 96, rtol=1e-5)
    assert np.array_equal(label_sizes(found, 64, 320), plain)


def test_validation_with_tiles_finds_what_detect_finds(tmp_path: Path) -> None:
    small = [[x, y, x + 24, y + 16] for x in range(40, 700, 150) for y in range(30, 560, 120)]
    truth = to_boxes(*([0, *box] for box in small))
    sizes = [(600, 800), (90, 100)]
    images = [draw((600, 800), small), draw((90, 100), [[10, 10, 40, 30]])]
    data = read_data_yaml(write_set(tmp_path, images, [truth, to_boxes([0, 10, 10, 40, 30])], ["wide", "high"]))
    scan, model = data.scan("val"), BlobBackend(least=6)
    for rect in (False, True):
        loader = build_loader(DetectionDataset(scan, 160, 32, rect=rect, batch_size=2), 2)
        whole = detect_all(model, loader, data.names, CPU, EvalSettings.of(False))
        assert len(whole.detections.found[0]) == 0  # too small for it
        settings = replace(EvalSettings.of(False), tile=160)
        tiled = detect_all(model, loader, data.names, CPU, settings, plots=tmp_path / "plots")
        assert tiled.metrics().map50 == pytest.approx(1.0) and (tmp_path / "plots" / "val_batch0_pred.jpg").is_file()
        predictor = Predictor(model, CPU, 160, settings.nms, rect=rect, tile=160)
        for image, size, mine in zip(images, sizes, tiled.detections.found, strict=True):
            theirs = predictor([image])[0].boxes
            assert image.shape[:2] == size and len(theirs) == len(mine)
            np.testing.assert_allclose(mine.xyxy, theirs.xyxy, atol=1e-2)
    big = replace(settings, tile=800)
    again = detect_all(model, loader, data.names, CPU, big)  # no image is larger
    assert [f.table().tolist() for f in again.detections.found] == [f.table().tolist() for f in whole.detections.found]


def test_an_image_that_changed_keeps_the_detections_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image = draw((300, 400), [[40, 40, 200, 140]])
    data = read_data_yaml(write_set(tmp_path, [image], [to_boxes([0, 40, 40, 200, 140])], ["wide", "high"]))
    loader = build_loader(DetectionDataset(data.scan("val"), 160, 32), 2)
    monkeypatch.setattr("utils.evaluate.tiled.imread", lambda path: image[:100])
    settings = replace(EvalSettings.of(False), tile=160)
    result = detect_all(BlobBackend(), loader, data.names, CPU, settings)
    assert len(result.detections.found[0]) == 1
    assert "no tiles, it has changed since the scan: (100, 400) pixels, but (300, 400)" in caplog.text


def test_a_run_on_tiles_resumes_to_the_same_bits_and_names_the_flag(
    large_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    cfg = config(large_set, tmp_path, epochs=2, tile_train=96, cache="disk")
    metrics = train.main(replace(cfg, name="whole"))
    assert "--tile-train 96: 8 of 9 images are larger" in caplog.text
    assert caplog.text.count("--tile 96") >= 3  # the log line, and the commands that follow
    original = train.train_one_epoch

    def strike(job, epoch):
        if epoch == 1:
            raise KeyboardInterrupt
        return original(job, epoch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "train_one_epoch", strike)
        train.main(cfg)
    resume(tmp_path / "run")
    assert differences(tmp_path / "whole", tmp_path / "run") == []
    best = tmp_path / "whole" / "weights" / "best.pt"
    assert load_checkpoint(best).opt["tile_train"] == 96
    assert yaml.safe_load((tmp_path / "run" / "opt.yaml").read_text())["tile_train"] == 96
    again = val.main(
        val.ValConfig(
            weights=str(best), data=str(large_set), project=str(tmp_path), workers=0, device="cpu", plots=False, tile=96
        )
    )
    assert metrics is not None and again.map50 == pytest.approx(metrics.map50, abs=1e-3)


def test_a_tile_larger_than_all_images_is_said_to_do_nothing(
    found: Scan, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    log_tiles(found, 320)
    assert "--tile-train 320: no training image is larger, so all are trained whole" in caplog.text
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "best.pt").touch()
    lines = " ".join(line for _, line in after_training(tmp_path, "my.yaml", tile=96))
    assert lines.count("--tile 96") == 2 and "--tile" not in str(after_training(tmp_path, "my.yaml"))
