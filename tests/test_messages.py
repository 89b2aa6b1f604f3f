"""Messages that a newcomer meets: a folder as --data, a GPU that is not there, published weights that are not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import train
import val
from models.runtimes.load import load_backend
from models.weights.checkpoint import load_checkpoint
from utils.data.data_yaml import find_data_yaml, read_data_yaml
from utils.device import select_device


def test_data_may_be_a_folder(small_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    folder = tmp_path / "set"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"set: a folder without a data\.yaml, expected a data\.yaml, which"):
        val.read_data(str(folder))
    (folder / "mine.yaml").write_text(f"path: {small_set.parent}\n" + small_set.read_text().replace("path:", "was:"))
    assert read_data_yaml(folder).names == read_data_yaml(folder / "mine.yaml").names
    assert f"--data {folder}: using {folder / 'mine.yaml'}" in caplog.text
    (folder / "other.yml").write_text("names: [a]")
    with pytest.raises(FileNotFoundError, match="expected one of its 2 YAMLs"):
        find_data_yaml(str(folder))
    (folder / "data.yaml").write_text("names: [b]")
    assert find_data_yaml(str(folder)) == folder / "data.yaml"


@pytest.mark.parametrize(
    ("gpus", "text", "expected"),
    [
        (0, "0", "--device 0: no GPU was found on this machine, expected cpu"),
        (1, "1", "--device 1: 1 GPU was found, expected 0, or cpu"),
        (4, "7", "--device 7: 4 GPUs were found, expected 0 to 3, or cpu"),
        (0, "gpu", "--device gpu: expected cpu, mps or a GPU number"),
    ],
)
def test_a_gpu_that_is_not_there(gpus: int, text: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ValueError) as error:
        select_device(text)
    assert str(error.value).startswith(expected)


def test_published_weights_that_are_not_there_come_from_somewhere(small_set: Path) -> None:
    for load in (load_checkpoint, lambda path: load_backend(path, torch.device("cpu"))):
        with pytest.raises(FileNotFoundError, match=r"'yolov5n\.pt' not found; .* docs/weights\.md says where"):
            load("yolov5n.pt")
        with pytest.raises(FileNotFoundError, match=r"'runs/mine\.pt' not found$"):
            load("runs/mine.pt")
    with pytest.raises(FileNotFoundError, match=r"weights 'yolox_tiny\.pth' not found; a published file"):
        train.main(train.TrainConfig(weights="yolox_tiny.pth", data=str(small_set), device="cpu"))
