"""TensorBoard logs hold what was logged; without the package nothing is written and nothing fails."""

from __future__ import annotations

import io
import math
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from data_sets import noise
from PIL import Image

from models.yolo import DetectionModel
from utils.images import imwrite
from utils.train import tensorboard
from utils.train.tensorboard import TensorBoard


def read(folder: Path):  # type: ignore[no-untyped-def]
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return accumulator.EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()


def test_scalars_come_back_and_a_resumed_run_replaces_what_it_does_again(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path)
    for epoch in range(4):
        board.scalars({"epoch": epoch, "train/box_loss": 0.5 - epoch / 10, "val/box_loss": math.nan})
    board.close()
    board = TensorBoard(tmp_path, start=2)  # the checkpoint was that of the second epoch
    board.scalars({"epoch": 2, "train/box_loss": 7.0, "val/box_loss": 0.25})
    board.close()
    log = read(tmp_path)
    assert [(e.step, round(e.value, 6)) for e in log.Scalars("train/box_loss")] == [(0, 0.5), (1, 0.4), (2, 7.0)]
    assert [(e.step, e.value) for e in log.Scalars("val/box_loss")] == [(2, 0.25)]
    assert log.Tags()["scalars"] == ["train/box_loss", "val/box_loss"]


def test_images_come_back(tmp_path: Path) -> None:
    image = noise((8, 12), 0)
    imwrite(tmp_path / "train_batch0.png", image)
    board = TensorBoard(tmp_path)
    board.images([tmp_path / "train_batch0.png"], epoch=3)
    board.close()
    (event,) = read(tmp_path).Images("train_batch0")
    assert event.step == 3
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(event.encoded_image_string))), image)


@pytest.mark.parametrize("name", ["yolov5n.yaml", "yolov5-mobilevit.yaml"])
def test_graph_has_every_layer_and_leaves_the_run_as_it_was(name: str, tmp_path: Path) -> None:
    model = DetectionModel(name, nc=3).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    board = TensorBoard(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        board.graph(model, model.grid)
    board.close()
    assert model.training and all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
    assert (states[2] == np.random.get_state()[1]).all()
    nodes = {node.name for node in read(tmp_path).Graph().node}
    assert all(any(f"[{i}]" in node for node in nodes) for i in range(len(model.model)))


def test_without_the_package_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tensorboard.importlib.util, "find_spec", lambda name: None)
    with caplog.at_level("INFO"):
        board = TensorBoard(tmp_path)
    board.scalars({"epoch": 0, "train/box_loss": 1.0})
    board.images([tmp_path / "none.png"])
    board.graph(torch.nn.Identity(), 32)
    board.close()
    assert not list(tmp_path.iterdir())
    assert caplog.messages == ["TensorBoard logs are off, they need: pip install tensorboard"]
