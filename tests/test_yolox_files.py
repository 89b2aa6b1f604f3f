"""YOLOX files in all sizes, with what else they hold, and hostile ones: what loads, is ignored, is refused."""

from __future__ import annotations

import builtins
import os
import shlex
import subprocess
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile import Call
from shared import randomize_norms
from test_yolox import as_yolox
from torch import Tensor
from torch.testing import assert_close

import detect
from models.weights.checkpoint import build_model, load_checkpoint, save_checkpoint
from models.weights.yolox import import_yolox, new_name
from models.yolo import DetectionModel
from utils.images import imwrite

PUBLISHED = {"nano": 0.91, "tiny": 5.06, "s": 8.97, "m": 25.3, "l": 54.2, "x": 99.1}  # millions of parameters


@pytest.mark.parametrize("size", PUBLISHED)
def test_names_and_shapes_of_every_size_fit(size: str) -> None:
    """On shapes alone, for the largest would take 400 MB."""
    with torch.device("meta"):
        model = DetectionModel(f"yolox-{size}.yaml")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(PUBLISHED[size], rel=0.005)
    state = as_yolox(model)
    found = import_yolox({"model": state})
    assert found["yaml"]["name"] == f"yolox-{size}.yaml" and found["yaml"]["letterbox"] == "top-left"
    assert found["model"].keys() == model.state_dict().keys()
    assert {name: t.shape for name, t in found["model"].items()} == {
        name: t.shape for name, t in model.state_dict().items()
    }


def test_names_are_those_that_yolox_publishes() -> None:
    """Some of each kind, written down from the public description of its modules."""
    with torch.device("meta"):
        plain, nano = (as_yolox(DetectionModel(f"yolox-{size}.yaml")) for size in ("s", "nano"))
    expected = {
        "backbone.backbone.stem.conv.conv.weight": (32, 12, 3, 3),
        "backbone.backbone.dark2.0.bn.running_mean": (64,),
        "backbone.backbone.dark3.1.m.2.conv2.conv.weight": (64, 64, 3, 3),
        "backbone.backbone.dark5.1.conv2.conv.weight": (512, 1024, 1, 1),
        "backbone.backbone.dark5.2.m.0.conv1.bn.num_batches_tracked": (),
        "backbone.lateral_conv0.conv.weight": (256, 512, 1, 1),
        "backbone.C3_n4.conv3.conv.weight": (512, 512, 1, 1),
        "head.stems.2.conv.weight": (128, 512, 1, 1),
        "head.cls_convs.0.1.conv.weight": (128, 128, 3, 3),
        "head.reg_preds.1.weight": (4, 128, 1, 1),
        "head.obj_preds.2.bias": (1,),
        "head.cls_preds.0.bias": (80,),
    }
    assert {name: tuple(plain[name].shape) for name in expected} == expected
    pairs = {
        "backbone.backbone.dark2.0.dconv.conv.weight": (16, 1, 3, 3),
        "backbone.backbone.dark2.0.pconv.conv.weight": (32, 16, 1, 1),
        "backbone.backbone.dark2.1.m.0.conv2.dconv.bn.weight": (16,),
        "backbone.bu_conv1.pconv.conv.weight": (128, 128, 1, 1),
        "head.reg_convs.2.1.dconv.conv.weight": (64, 1, 3, 3),
    }
    assert {name: tuple(nano[name].shape) for name in pairs} == pairs
    assert new_name("head.cls_convs.0.1.conv.weight") == "model.24.class_towers.0.1.conv.weight"


def training_file(state: dict[str, Tensor], folder: Path) -> Path:
    """What YOLOX's trainer writes: an ordered state dict that carries versions, momentum of SGD, scores, a scaler."""
    ordered: OrderedDict[str, Tensor] = OrderedDict(state)
    ordered._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(layer.parameters(), 0.01, momentum=0.9, nesterov=True)
    layer(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    content: dict[str, Any] = {"start_epoch": 300, "model": ordered, "optimizer": optimizer.state_dict()}
    content |= {"best_ap": np.float64(0.405), "curr_ap": 0.404, "amp": torch.amp.GradScaler("cpu").state_dict()}
    content["ema_model"] = OrderedDict(state)
    torch.save(content, folder / "latest_ckpt.pth")
    return folder / "latest_ckpt.pth"


@pytest.mark.parametrize("size", ["nano", "s"])
def test_a_training_file_loads_decodes_and_comes_back(size: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = randomize_norms(DetectionModel(f"yolox-{size}.yaml")).eval()
    again = build_model(load_checkpoint(training_file(as_yolox(model), tmp_path)))
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(images)[0]
        assert_close(again(images)[0], expected, rtol=1e-4, atol=1e-3)
        save_checkpoint(tmp_path / "own.pt", load_checkpoint(tmp_path / "latest_ckpt.pth"))
        own = build_model(load_checkpoint(tmp_path / "own.pt"))
        assert torch.equal(own(images)[0], again(images)[0])
    assert (own.letterbox, own.names[79]) == ("top-left", "toothbrush")
    back, state = as_yolox(again), as_yolox(model)
    assert back.keys() == state.keys()
    for name, tensor in back.items():
        assert_close(tensor, state[name], rtol=1e-5, atol=1e-7)


def test_detect_takes_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = training_file(as_yolox(randomize_norms(DetectionModel("yolox-nano.yaml"))), tmp_path)
    imwrite(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (50, 80, 3), np.uint8))
    options: dict[str, Any] = {"imgsz": 64, "device": "cpu", "project": str(tmp_path), "conf_thres": 0.0, "max_det": 5}
    detect.main(detect.DetectConfig(weights=str(path), source=str(tmp_path / "a.png"), save_csv=True, **options))
    assert len((tmp_path / "exp" / "predictions.csv").read_text().splitlines()) == 6


CALLS: dict[str, Callable] = {
    "os.system": os.system,
    "eval": eval,
    "exec": exec,
    "subprocess.getoutput": subprocess.getoutput,
    "getattr": builtins.getattr,
}
PLACES: dict[str, Callable[[dict, Any], dict]] = {
    "a tensor's place": lambda state, call: {"model": state | {"head.cls_preds.0.weight": call}},
    "beside the model": lambda state, call: {"model": state, "best_ap": call},
    "inside the optimizer": lambda state, call: {
        "model": state,
        "optimizer": {"state": {0: {"momentum_buffer": call}}},
    },
    "the model itself": lambda state, call: {"model": call},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("call", CALLS)
def test_a_hostile_pth_does_nothing_and_gives_one_line(call: str, place: str, tmp_path: Path) -> None:
    """Twenty files: the names of nano's tensors, and a call where one of them, or something beside them, should be."""
    left = tmp_path / "left behind"
    command = f"touch {shlex.quote(str(left))}"
    words = {"eval": f"__import__('os').system({command!r})", "exec": f"__import__('os').system({command!r})"}
    with torch.device("meta"):
        names = as_yolox(DetectionModel("yolox-nano.yaml"))
    state = {name: torch.zeros(1) for name in names}
    evil = Call(CALLS[call], *((os, "system") if call == "getattr" else (words.get(call, command),)))
    if call == "getattr":
        evil = Call(getattr, "text", "upper")
    torch.save(PLACES[place](state, evil), tmp_path / "yolox_nano.pth")
    with pytest.raises(ValueError, match=r"yolox_nano\.pth: .*nothing in it was run") as caught:
        load_checkpoint(tmp_path / "yolox_nano.pth")
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    assert {path.name for path in tmp_path.iterdir()} == {"yolox_nano.pth"}
