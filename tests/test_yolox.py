"""YOLOX's checkpoints and loss against recorded numbers of an independent implementation."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from shared import oracle, randomize_norms
from torch import Tensor
from torch.testing import assert_close

import train
from models.heads import Decoupled
from models.weights.checkpoint import build_model, load_checkpoint
from models.weights.start import start_model
from models.weights.yolox import PARTS, ROWS, rgb_stem
from models.yolo import DetectionModel
from utils.boxes import Targets, xywh2xyxy
from utils.hyp import Hyp
from utils.loss import cell_grid
from utils.loss_simota import assign_simota, class_cost

SIZES = {"nano": 912_159, "tiny": 5_055_855, "s": 8_968_255, "m": 25_326_495}
both = pytest.mark.parametrize("size", ["nano", "tiny"])


def recorded_model(size: str, folder: Path) -> tuple[DetectionModel, dict[str, Any], Tensor]:
    """The recorded checkpoint as it is loaded from a file, what was recorded, and its images as RGB in 0..1."""
    recorded = oracle(f"yolox_{size}.pt")
    torch.save(recorded["checkpoint"], folder / f"yolox_{size}.pth")
    model = build_model(load_checkpoint(folder / f"yolox_{size}.pth"))
    return model, recorded, recorded["input_bgr_0_255"].flip(1).float() / 255


def recorded_targets(recorded: dict[str, Any]) -> Targets:
    rows = recorded["targets_class_cxcywh_px"]
    image, place = (rows.abs().sum(dim=2) > 0).nonzero(as_tuple=True)
    h, w = recorded["input_bgr_0_255"].shape[-2:]
    return Targets(image, rows[image, place, 0].long(), rows[image, place, 1:] / torch.tensor([w, h, w, h]))


def as_yolox(model: DetectionModel, bgr: bool = True) -> dict[str, Tensor]:
    """The state dict of a yolox-*.yaml in YOLOX's own names, for BGR in 0..255: the inverse of the import."""
    names = {row: old for old, row in ROWS.items()}
    parts = {new: old for old, new in PARTS.items() if new not in "01"}
    depthwise = isinstance(model.model[1], torch.nn.Sequential)
    state = {}
    for name, tensor in model.state_dict().items():
        words = name.split(".")
        if words[-1] == "stride":
            continue
        rest = [parts.get(word, word) for word in words[2:]]
        if depthwise:  # the last number before conv or bn is the part of a pair, unless a tower or block has it
            for i, word in enumerate(rest):
                pair = word in "01" and i + 1 < len(rest) and rest[i + 1] in ("conv", "bn")
                tower = i >= 2 and rest[i - 2] in ("cls_convs", "reg_convs")
                if pair and not tower and rest[i - 1] not in ("stems",):
                    rest[i] = ("dconv", "pconv")[int(word)]
        state[".".join([names[int(words[1])], *rest])] = tensor.clone()
    stem = "backbone.backbone.stem.conv.conv.weight"
    state[stem] = state[stem].unflatten(1, (4, 3)).flip(2).flatten(1, 2) / 255
    return state


@both
def test_decoded_rows_equal_the_recorded(size: str, tmp_path: Path) -> None:
    model, recorded, images = recorded_model(size, tmp_path)
    with torch.no_grad():
        decoded, _ = model(images)
    assert_close(decoded, recorded["decoded_cxcywh_obj_cls"], rtol=1e-4, atol=1e-3)
    assert model.where == f"yolox-{size}.yaml" and model.letterbox == "top-left"
    assert (model.names[0], model.names[79]) == ("person", "toothbrush")


@both
def test_loss_and_assignment_equal_the_recorded(size: str, tmp_path: Path) -> None:
    model, recorded, images = recorded_model(size, tmp_path)
    targets, expected = recorded_targets(recorded), recorded["loss"]
    with torch.no_grad():
        decoded, raw = model(images)
        loss, parts = model.head.criterion(Hyp(nominal_batch=2), 256)(raw, targets)
    assert parts["box"].item() == pytest.approx(expected["iou_loss"], rel=1e-5)
    assert parts["obj"].item() == pytest.approx(expected["obj_loss"], rel=1e-5)
    assert parts["cls"].item() == pytest.approx(expected["cls_loss"], rel=1e-5)
    assert loss.item() == pytest.approx(expected["total_loss"], rel=1e-5)  # a batch of the nominal size: the mean
    grid = cell_grid(raw, model.stride)
    rows = torch.cat([level.flatten(2) for level in raw], dim=2).transpose(1, 2)
    count = 0
    for i in range(2):
        own = targets[targets.image == i]
        truth = xywh2xyxy(own.xywhn * grid.size)
        count += len(
            assign_simota(rows[i], xywh2xyxy(decoded[i, :, :4]), truth, own.label, grid.centers, grid.stride).cell
        )
    assert count / len(targets) == pytest.approx(expected["num_fg"])


@pytest.mark.parametrize("size", SIZES)
def test_every_size_comes_back_from_yoloxs_layout(size: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = randomize_norms(DetectionModel(f"yolox-{size}.yaml")).eval()
    assert sum(p.numel() for p in model.parameters()) == SIZES[size]
    state = as_yolox(model)
    assert "head.cls_convs.0.0.conv.weight" in state or "head.cls_convs.0.0.dconv.conv.weight" in state
    torch.save({"model": state, "start_epoch": 300}, tmp_path / "a.pth")
    again = build_model(load_checkpoint(tmp_path / "a.pth"))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert_close(again(images)[0], model(images)[0], rtol=1e-4, atol=1e-3)


def test_the_stem_for_rgb_gives_what_the_stem_for_bgr_gave() -> None:
    stem = DetectionModel("yolox-nano.yaml").model[0].eval()
    pixels = torch.randint(0, 256, (1, 3, 16, 16)).float()
    with torch.no_grad():
        expected = stem(pixels)
        stem.conv.conv.weight.copy_(rgb_stem(stem.conv.conv.weight))
        assert_close(stem(pixels.flip(1) / 255), expected, rtol=1e-4, atol=1e-4)


def test_names_of_other_classes_are_numbered(tmp_path: Path) -> None:
    torch.save({"model": as_yolox(DetectionModel("yolox-tiny.yaml", nc=2))}, tmp_path / "a.pth")
    assert load_checkpoint(tmp_path / "a.pth").names == {0: "class0", 1: "class1"}


def test_fine_tuning_keeps_all_but_the_new_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    old = DetectionModel("yolox-nano.yaml")
    torch.save({"model": as_yolox(old)}, tmp_path / "a.pth")
    model, report = start_model({0: "ship", 1: "dog"}, weights=str(tmp_path / "a.pth"))
    assert report is not None and report.boxes and report.classes == ("dog",)
    assert isinstance(model.head, Decoupled) and model.letterbox == "top-left"
    assert report.parts["neck"][0] == report.parts["neck"][1]
    assert len(report.skipped) == 6  # weight and bias of the class convolutions
    for own, before in zip(model.head.classes, old.head.classes, strict=True):
        assert torch.equal(own.weight[1], before.weight[16]) and not torch.equal(own.weight[0], before.weight[0])
    assert "1 new class: ship; 1 class known by name: dog" in caplog.text


def test_a_run_starts_from_yolox_weights(tmp_path: Path, small_set: Path) -> None:
    torch.manual_seed(0)
    torch.save({"model": as_yolox(DetectionModel("yolox-nano.yaml"))}, tmp_path / "yolox_nano.pth")
    options: dict[str, Any] = {"batch_size": 4, "workers": 0, "noplots": True, "device": "cpu", "epochs": 1}
    options |= {"weights": str(tmp_path / "yolox_nano.pth"), "data": str(small_set), "imgsz": 64}
    assert train.main(train.TrainConfig(project=str(tmp_path), name="run", **options)) is not None
    assert build_model(load_checkpoint(tmp_path / "run/weights/best.pt")).letterbox == "top-left"


def drop(name: str) -> Callable[[dict], Any]:
    return lambda state: state.pop(name)


def put(name: str, value: Any) -> Callable[[dict], Any]:
    return lambda state: state.__setitem__(name, value)


STEM, LAST = "backbone.backbone.stem.conv.conv.weight", "head.cls_preds.0.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop(STEM), "expected the keys"),
        (drop(LAST), r"no cls_preds\.0\.bias"),
        (put(LAST, torch.zeros(())), r"no cls_preds\.0\.bias"),
        (put(LAST, torch.zeros(0)), r"no cls_preds\.0\.bias"),
        (put(LAST, torch.zeros(81)), "tensors do not fit the rows"),
        (put(LAST, torch.zeros(80, 2)), r"no cls_preds\.0\.bias"),
        (drop("head.obj_preds.2.bias"), r"1 tensor does not fit the rows, the first is model\.24\.objectness\.2\.bias"),
        (drop("backbone.C3_p3.conv3.bn.running_var"), r"model\.17\.cv3\.bn\.running_var"),
        (put("head.reg_preds.0.weight", torch.zeros(5, 64, 1, 1)), r"model\.24\.boxes\.0\.weight"),
        (put("neck.extra", torch.zeros(1)), "its tensor neck.extra is none of a YOLOX detector"),
        (put("head.extra", torch.zeros(1)), r"model\.24\.extra"),
        (put("x" * 5000, torch.zeros(1)), "none of a YOLOX detector"),
        (put(STEM, torch.zeros(())), "a YOLOX whose stem has 0 channels"),
        (put(STEM, torch.zeros(17, 12, 3, 3)), "a YOLOX whose stem has 17 channels and whose first stage has 1 blocks"),
        (put(STEM, torch.zeros(16, 3, 3, 3)), r"model\.0\.conv\.conv\.weight"),
        (put(STEM, torch.zeros(16)), r"model\.0\.conv\.conv\.weight"),
        (put(STEM, "text"), "something other than tensors"),
        (put(LAST, [1, 2]), "something other than tensors"),
        (put("head.x", None), "something other than tensors"),
        (put(3, torch.zeros(1)), "something other than tensors"),
        (put("backbone.backbone.dark2.1.m.7.conv1.conv.weight", torch.zeros(1)), "first stage has 2 blocks"),
        (put("backbone.backbone.dark2.1.m.7", torch.zeros(1)), r"model\.2\.m\.7"),
    ],
)
def test_damaged_files_are_one_line(change: Callable[[dict], Any], message: str, tmp_path: Path) -> None:
    state: dict = as_yolox(DetectionModel("yolox-nano.yaml"))
    change(state)
    torch.save({"model": state}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(tmp_path / "a.pth")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('run')",)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    state = as_yolox(DetectionModel("yolox-nano.yaml"))
    torch.save({"model": state, "optimizer": Evil()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="nothing in it was run"):
        load_checkpoint(tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps({"model": Evil()}))
    with pytest.raises(ValueError, match="nothing in it was run"):
        load_checkpoint(tmp_path / "b.pth")
    with pytest.raises(FileNotFoundError, match=r"weights '.*c\.pth' not found"):
        load_checkpoint(tmp_path / "c.pth")


def test_class_cost_is_binary_cross_entropy_of_the_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(7, 5 + 4, generator=generator) * 3
    label = torch.tensor([2, 0, 3])
    score = (rows[:, 5:].sigmoid() * rows[:, 4:5].sigmoid()).sqrt()
    expected = [
        [torch.nn.functional.binary_cross_entropy(p, torch.eye(4)[c], reduction="sum") for p in score] for c in label
    ]
    assert_close(class_cost(rows, label), torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_a_cell_serves_one_box_and_every_box_has_cells() -> None:
    grid = cell_grid([torch.zeros(1, 1, s, s) for s in (16, 8, 4)], torch.tensor([8.0, 16.0, 32.0]))
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(len(grid.stride), 5 + 3, generator=generator)
    middle = torch.rand(9, 2, generator=generator) * 100 + 14
    truth = torch.cat([middle - 12, middle + 12], dim=1)
    half = grid.stride[:, None] * torch.rand(len(rows), 2, generator=generator) * 2
    xyxy = torch.cat([grid.centers - half, grid.centers + half], dim=1)
    label = torch.randint(0, 3, (9,), generator=generator)
    found = assign_simota(rows, xyxy, truth, label, grid.centers, grid.stride)
    assert len(found.cell.unique()) == len(found.cell)
    offset = (grid.centers[found.cell] - middle[found.box]).abs().amax(dim=1)
    assert (offset < 1.5 * grid.stride[found.cell]).all()
    assert len(found.box.unique()) >= 8  # two boxes at nearly one place may want the same cell
    empty = assign_simota(rows, xyxy, truth[:0], label[:0], grid.centers, grid.stride)
    assert len(empty.cell) == len(empty.box) == len(empty.iou) == 0
