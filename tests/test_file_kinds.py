"""Weights files that are something else than their name says, or hold what a model leaves behind when it is used."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from shared import shared
from test_weights import half_rounded, randomize, same_outputs, write_as_yolov5
from tiny import CFG

import train
from models.weights.checkpoint import Checkpoint, build_model, load_checkpoint, save_checkpoint
from models.weights.safe_pickle import MAX_EXPANDED
from models.yolo import DetectionModel


def refusal(path: Path) -> str:
    """The one line with which a checkpoint is refused."""
    with pytest.raises(ValueError) as error:
        build_model(load_checkpoint(path))
    line = str(error.value)
    assert str(path) in line and "\n" not in line and len(line) < 400
    return line


@pytest.mark.parametrize("size", [(1, 3, 20, 20, 2), (1, 3, 160, 160, 2)])
def test_grids_of_a_model_that_was_used_before_it_was_saved(tmp_path: Path, size: tuple[int, ...]) -> None:
    """They are views that repeat a few numbers along dimensions of stride 0; no weight is one."""
    model = randomize(DetectionModel("yolov5n.yaml", nc=2))
    model.head.anchor_grid = [torch.rand(1, 3, 1, 1, 2).expand(size) for _ in range(3)]
    model.head.grid = [torch.rand(1, 1, *size[2:]).expand(size) for _ in range(3)]
    write_as_yolov5(tmp_path / "w.pt", model)
    same_outputs(build_model(load_checkpoint(tmp_path / "w.pt")), half_rounded(model))


def test_repeated_bytes_are_limited(tmp_path: Path) -> None:
    """Many views, each of which would be allowed, are refused together."""
    model = randomize(DetectionModel("yolov5n.yaml", nc=2))
    model.head.grid = [torch.rand(1).expand(MAX_EXPANDED // 4) for _ in range(5)]
    write_as_yolov5(tmp_path / "w.pt", model)
    assert "repeat their bytes to more than 4,194,304 elements" in refusal(tmp_path / "w.pt")
    model.head.grid = [torch.rand(8).as_strided((4, 4), (1, 1))]  # overlaps without stride 0
    write_as_yolov5(tmp_path / "w.pt", model)
    assert "does not fit its storage" in refusal(tmp_path / "w.pt")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_program_that_is_named_pt(tmp_path: Path, compression: int) -> None:
    """TorchScript of every age, and torch.export: what the file is comes before how it is stored."""
    traced = torch.jit.trace(torch.nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 8, 8))
    torch.jit.save(traced, tmp_path / "new.zip")
    with zipfile.ZipFile(tmp_path / "new.zip") as old, zipfile.ZipFile(tmp_path / "s.pt", "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert "it is a TorchScript program, not a checkpoint; if export.py wrote it, name it *.torchscript" in refusal(
        tmp_path / "s.pt"
    )
    program = torch.export.export(torch.nn.Conv2d(3, 4, 1), (torch.zeros(1, 3, 8, 8),))
    torch.export.save(program, tmp_path / "program.pt2")
    (tmp_path / "program.pt2").rename(tmp_path / "p.pt")
    assert "it is a program of torch.export, not a checkpoint; if export.py wrote it, name it *.pt2" in refusal(
        tmp_path / "p.pt"
    )


@pytest.mark.parametrize("channels", [1, 4])
def test_models_for_other_images_than_rgb_are_refused_when_they_are_loaded(tmp_path: Path, channels: int) -> None:
    checkpoint = Checkpoint.of(DetectionModel(CFG))
    checkpoint.yaml["ch"] = channels
    save_checkpoint(tmp_path / "w.pt", checkpoint)
    words = f"ch is {channels}, expected 3: every image is read as RGB, gray ones too"
    with pytest.raises(ValueError, match=words):
        build_model(load_checkpoint(tmp_path / "w.pt"))
    with pytest.raises(ValueError, match=words):
        DetectionModel({**CFG, "ch": channels})
    assert DetectionModel({**CFG, "ch": 3}).nc == 3


def test_a_model_yaml_for_gray_images_is_refused_before_training(tmp_path: Path, small_set: Path) -> None:
    (tmp_path / "gray.yaml").write_text("nc: 2\nch: 1\nanchors: []\nbackbone: []\nhead: []\n")
    cfg = train.TrainConfig(data=str(small_set), cfg=str(tmp_path / "gray.yaml"), project=str(tmp_path), workers=0)
    with pytest.raises(ValueError, match=r"gray\.yaml: ch is 1, expected 3"):
        train.main(cfg)


def test_the_files_of_public_reports() -> None:
    assert build_model(load_checkpoint(shared("cases/weights/fp32_before_inference.pt"))).nc == 2
    assert "ch is 1, expected 3" in refusal(shared("cases/weights/one_channel.pt"))
    assert "it is a TorchScript program" in refusal(shared("cases/weights/ts_renamed.pt"))
