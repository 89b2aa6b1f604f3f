"""Weights people already have: YOLOv5's checkpoints, this project's in both formats, MobileViT's from ImageNet."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
from shared import oracle, randomize_norms, shared
from torch import Tensor, nn
from torch.testing import assert_close

import train
from models import common, yolo
from models.heads import Detect
from models.mobilevit import SIZES, MobileViT, from_checkpoint, from_published, to_published
from models.runtimes.load import load_backend
from models.weights.checkpoint import Checkpoint, build_model, load_checkpoint, save_checkpoint, save_safetensors
from models.weights.imagenet import load_backbone, read_published
from models.weights.start import start_model
from models.weights.transfer import TransferReport, fine_tune, transfer
from models.yolo import DetectionModel
from tools import classify, convert
from utils.boxes import pairwise_iou
from utils.data.data_yaml import read_data_yaml
from utils.images import imread, letterbox, to_input
from utils.nms import non_max_suppression

CPU = torch.device("cpu")


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics and scales that are not those of a fresh model, so that a mix-up shows."""
    torch.manual_seed(seed)
    return randomize_norms(model)


def write_as_yolov5(path: Path, model: DetectionModel, key: str = "model", **changes: Any) -> None:
    """A pickled module tree as YOLOv5 leaves it: fp16, anchors in units of the stride, its own attribute names.

    Args:
        changes: attributes of the model, or of its head with the prefix "head_".
    """
    model = deepcopy(model).half()
    head = model.head
    stride = head.stride
    head.anchors = head.anchors / stride.view(-1, 1, 1)
    del head.stride
    head.stride = stride
    model.hyp, model.yaml_file = {"lr0": np.float64(0.01)}, "custom.yaml"
    for module in model.modules():
        if isinstance(module, common.Bottleneck | common.CrossConv):
            module.add = module.__dict__.pop("skip")
    for name, value in changes.items():
        if name.startswith("head_"):
            setattr(head, name.removeprefix("head_"), value)
        else:
            setattr(model, name, value)
    content = {"epoch": -1, "best_fitness": np.float64(0.3), "model": None, "ema": None, "opt": {"save_dir": Path("a")}}
    with detect_in_yolo():
        torch.save(content | {key: model}, path)


@contextmanager
def detect_in_yolo() -> Iterator[None]:
    """Pickles written here name the head models.yolo.Detect, as YOLOv5's do."""
    before, Detect.__module__ = Detect.__module__, "models.yolo"
    yolo.Detect = Detect  # type: ignore[attr-defined]  # where the pickles are read again
    try:
        yield
    finally:
        Detect.__module__ = before


def half_rounded(model: DetectionModel) -> DetectionModel:
    """What is left of a model after its weights were written in half precision."""
    anchors = model.head.anchors / model.stride.view(-1, 1, 1)
    rounded = deepcopy(model).half().float()
    rounded.head.anchors.copy_(anchors.half().float() * model.stride.view(-1, 1, 1))
    return rounded.eval()


def same_outputs(a: nn.Module, b: nn.Module, size: int = 128) -> None:
    x = torch.rand(1, 3, size, size)
    with torch.inference_mode():
        assert torch.equal(a.eval()(x)[0], b.eval()(x)[0])


# --- YOLOv5's checkpoints ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["model", "ema"])
@pytest.mark.parametrize("names", [["cat", "dog", "eel"], {0: "cat", 1: "dog", 2: "eel"}])
def test_a_pickled_model_becomes_this_projects(tmp_path: Path, key: str, names: Any) -> None:
    model = randomize(DetectionModel("yolov5n.yaml", nc=3))
    write_as_yolov5(tmp_path / "w.pt", model, key, names=names)
    checkpoint = load_checkpoint(tmp_path / "w.pt")
    imported = build_model(checkpoint)
    assert imported.names == {0: "cat", 1: "dog", 2: "eel"}
    assert all(t.dtype in (torch.float32, torch.int64) for t in checkpoint.model.values())
    same_outputs(imported, half_rounded(model))
    assert load_backend(tmp_path / "w.pt", CPU).names == imported.names
    save_checkpoint(tmp_path / "ours.pt", checkpoint)
    same_outputs(build_model(load_checkpoint(tmp_path / "ours.pt")), imported)


def test_older_and_newer_attributes_of_yolov5(tmp_path: Path) -> None:
    """v5 had `anchor_grid` as a buffer; before v6.2 the activation was changed in the code; torch <1.6 wrote no zip."""
    model = randomize(DetectionModel("yolov5n.yaml", nc=2))
    grid = torch.ones(3, 1, 3, 1, 1, 2)
    model.head.register_buffer("anchor_grid", grid)
    for module in model.modules():
        if isinstance(module, common.Conv):
            module.act = nn.LeakyReLU(0.1)
    write_as_yolov5(tmp_path / "w.pt", model, inplace=True, class_weights=torch.ones(2))
    imported = build_model(load_checkpoint(tmp_path / "w.pt"))
    assert imported.yaml["activation"] == "nn.LeakyReLU(0.1)"
    same_outputs(imported, half_rounded(model))
    content = torch.load(tmp_path / "w.pt", weights_only=False)
    with detect_in_yolo():
        torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    same_outputs(build_model(load_checkpoint(tmp_path / "old.pt")), imported)


def test_batch_norms_of_another_eps_are_kept(tmp_path: Path) -> None:
    model = randomize(DetectionModel("yolov5n.yaml", nc=2))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-5
    write_as_yolov5(tmp_path / "w.pt", model)
    imported = build_model(load_checkpoint(tmp_path / "w.pt"))
    assert {m.eps for m in imported.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-5}
    same_outputs(imported, half_rounded(model))


def changed_conv(model: DetectionModel) -> None:
    model.model[1].conv.stride = (1, 1)


def segment_head(model: DetectionModel) -> None:
    class Segment(Detect):
        pass

    Segment.__module__, Segment.__qualname__ = "models.yolo", "Segment"
    model.head.__class__ = Segment


def no_yaml(model: DetectionModel) -> None:
    model.yaml = None


def no_bias(model: DetectionModel) -> None:
    model.head.m[0].bias = None


def too_few_names(model: DetectionModel) -> None:
    model.names = ["one"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed_conv, r"model\.1\.conv \(Conv2d\) has another stride"),
        (segment_head, r"its head is models\.yolo\.Segment, expected models\.yolo\.Detect"),
        (no_yaml, r"has no rows, expected a mapping 'yaml'"),
        (no_bias, r"1 tensor does not fit the rows, the first is model\.24\.m\.0\.bias"),
        (too_few_names, r"its names do not fit its 2 classes"),
    ],
)
def test_a_model_that_would_be_another_one_is_refused(
    change: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = DetectionModel("yolov5n.yaml", nc=2)
    change(model)
    monkeypatch.setattr("models.yolo.Segment", type(model.head), raising=False)
    write_as_yolov5(tmp_path / "w.pt", model)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path / "w.pt")


IMAGES = ["bus.jpg", "zidane.jpg", *(f"{i:012}.jpg" for i in (9, 25, 30, 34, 36, 42, 49, 61))]


def test_yolov5n_gives_upstreams_outputs_and_boxes() -> None:
    recorded, images = oracle("yolov5n_detections.pt"), shared("datasets/coco128/images/train").parent.parent.parent
    assert recorded.keys() == set(IMAGES)
    backend = load_backend(shared("weights/yolov5n.pt"), CPU)
    for name, expected in recorded.items():
        folder = "images" if name in ("bus.jpg", "zidane.jpg") else "coco128/images/train"
        image = imread(images / folder / name)
        assert list(image.shape) == expected["shape"]
        canvas, placed = letterbox(image, (640, 640))
        decoded = backend(to_input(torch.from_numpy(canvas).permute(2, 0, 1)[None].contiguous(), CPU))
        assert_close(decoded[0, ::997], expected["raw_sample"], atol=1e-3, rtol=0)
        boxes, wanted = non_max_suppression(decoded)[0], expected["detections_xyxy_conf_cls"].numpy()
        boxes = boxes.at(placed.to_image(boxes.xyxy))
        assert len(boxes) == len(wanted)
        if len(wanted):
            boxes = boxes[pairwise_iou(wanted[:, :4], boxes.xyxy).argmax(axis=1)]
            assert_close(boxes.xyxy, wanted[:, :4], atol=1.0, rtol=0)
            assert_close(boxes.score, wanted[:, 4], atol=0.005, rtol=0)
            assert boxes.label.tolist() == wanted[:, 5].tolist()


# --- this project's checkpoints ---------------------------------------------------------------------------------------


def test_both_formats_give_the_same_model_and_hold_plain_data(tmp_path: Path) -> None:
    model = randomize(DetectionModel("yolov5-mobilevit.yaml", nc=2))
    model.names = {0: "Häuser", 1: "b"}
    training = {"optimizer": {"a": 1}}
    content = replace(Checkpoint.of(model), epoch=3, fitness=float("nan"), hyp={"lr0": 0.01}, training=training)
    save_checkpoint(tmp_path / "w.pt", content)
    save_safetensors(tmp_path / "w.safetensors", content)
    raw = torch.load(tmp_path / "w.pt", weights_only=True)
    assert raw["grid"] == 64 and raw["stride"] == [8, 16, 32] and raw["version"] == 1
    assert raw["anchors"][0] == [10, 13, 16, 30, 33, 23]
    for path in (tmp_path / "w.pt", tmp_path / "w.safetensors"):
        loaded = load_checkpoint(path)
        built = build_model(loaded)
        assert built.names == model.names and loaded.epoch == 3 and loaded.hyp == {"lr0": 0.01}
        assert loaded.training == (training if path.suffix == ".pt" else None)
        same_outputs(built, model)
    assert {p.name for p in tmp_path.iterdir()} == {"w.pt", "w.safetensors"}  # no partial files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, r"w\.pt: checkpoint version 2, expected 1"),
        ({"names": {0: "a"}}, r"w\.pt: the checkpoint has 1 names for 2 classes"),
        ({"model": {"a": 1}}, r"w\.pt: model\.a is a int, expected a tensor"),
        ({"yaml": "yolov5n.yaml"}, r"w\.pt: 'yaml' of the checkpoint is a str, expected a mapping"),
    ],
)
def test_a_checkpoint_that_contradicts_itself_says_so(change: dict, message: str, tmp_path: Path) -> None:
    torch.save(Checkpoint.of(DetectionModel("yolov5n.yaml", nc=2)).as_dict() | change, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path / "w.pt")


def test_weights_that_do_not_fit_their_rows_say_which(tmp_path: Path) -> None:
    content = Checkpoint.of(DetectionModel("yolov5n.yaml", nc=2))
    del content.model["model.3.bn.bias"]
    with pytest.raises(ValueError, match=r"1 tensor does not fit the rows, the first is model\.3\.bn\.bias: None in"):
        build_model(content)


@pytest.mark.parametrize("data", [b"", b"junk", b"\x08\0\0\0\0\0\0\0{}      ", b"\xff" * 64])
def test_a_damaged_safetensors_file_is_one_line(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"w\.safetensors: not a checkpoint of this project in safetensors") as caught:
        load_checkpoint(tmp_path / "w.safetensors")
    assert "\n" not in str(caught.value)
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match=r"foreign\.safetensors: .* \(no key 'checkpoint' in its metadata\)"):
        load_checkpoint(tmp_path / "foreign.safetensors")


def test_convert_strips_and_changes_the_format(tmp_path: Path) -> None:
    model = randomize(DetectionModel("yolov5n.yaml", nc=2))
    averaged = Checkpoint.of(randomize(deepcopy(model), seed=1)).model
    state = {"optimizer": {"m": torch.zeros(10**6)}}
    run = replace(Checkpoint.of(model), ema=averaged, training=state, opt={"data": "/home"}, epoch=7, hyp={"lr0": 0.01})
    save_checkpoint(tmp_path / "best.pt", run)
    expected = build_model(load_checkpoint(tmp_path / "best.pt"))
    paths = [
        convert.main(convert.ConvertConfig(str(tmp_path / "best.pt"), format=format))
        for format in ("pt", "safetensors")
    ]
    assert [p.name for p in paths] == ["best-stripped.pt", "best.safetensors"]
    for path in paths:
        stripped = load_checkpoint(path)
        assert (stripped.ema, stripped.training, stripped.opt) == (None, None, {})
        assert (stripped.epoch, stripped.hyp) == (7, {"lr0": 0.01})
        assert path.stat().st_size < (tmp_path / "best.pt").stat().st_size / 2
        same_outputs(build_model(stripped), expected)
    half = convert.main(convert.ConvertConfig(str(paths[1]), half=True, out=str(tmp_path / "new" / "half.pt")))
    assert half.stat().st_size < 0.6 * paths[0].stat().st_size
    same_outputs(build_model(load_checkpoint(half)), half_rounded_parameters(expected))
    with pytest.raises(ValueError, match=r"expected a name that ends in \.safetensors"):
        convert.main(convert.ConvertConfig(str(half), format="safetensors", out="a.pt"))


def half_rounded_parameters(model: DetectionModel) -> DetectionModel:
    rounded = deepcopy(model)
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_(parameter.half().float())
    return rounded


# --- fine-tuning ------------------------------------------------------------------------------------------------------


def test_transfer_takes_what_fits_and_names_the_rest() -> None:
    source, target = DetectionModel("yolov5n.yaml", nc=2), DetectionModel("yolov5n.yaml", nc=5)
    done = transfer(target, source.state_dict())
    head = [f"model.24.m.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")]
    assert list(done.skipped) == head
    assert done.parts == {"backbone": (198, 198), "neck": (144, 144), "head": (1, 7)}  # 343/349, as YOLOv5 counts them
    assert torch.equal(source.model[0].conv.weight, target.model[0].conv.weight)
    first, second = done.text("a.pt").splitlines()
    assert second == "6 tensors start from new values (--verbose names them)"
    _, *rest = done.text("a.pt", verbose=True).splitlines()
    assert first == "transferred 343/349 tensors (backbone 198/198, neck 144/144, head 1/7) from a.pt"
    assert rest[0] == "  not transferred: model.24.m.0.weight (21x64x1x1 in the file, 30x64x1x1 in the model)"
    assert [line.split()[2] for line in rest] == head


def test_transfer_into_other_rows_counts_by_part() -> None:
    source, target = DetectionModel("yolov5n.yaml", nc=2), DetectionModel("yolov5-mobilevit.yaml", nc=2)
    before = {k: t.clone() for k, t in target.state_dict().items()}
    done = transfer(target, source.state_dict())
    assert done.copied + len(done.skipped) == len(before) - 1  # the strides are not counted
    for name, tensor in target.state_dict().items():
        expected = before[name] if name in done.skipped or name.endswith(".stride") else source.state_dict()[name]
        assert torch.equal(tensor, expected)
    assert len(done.text("a.pt", verbose=True).splitlines()) == 1 + len(done.skipped)


def test_a_head_with_other_classes_takes_boxes_objectness_and_the_classes_of_the_same_name() -> None:
    source, target = DetectionModel("yolov5n.yaml", nc=4), DetectionModel("yolov5n.yaml", nc=2)
    source.names, target.names = {0: "cat", 1: "dog", 2: "bus", 3: "car"}, {0: "bus", 1: "tree"}
    before = deepcopy(target)
    done = fine_tune(target, source)
    assert (
        done.boxes
        and done.classes == ("bus",)
        and "1 new class: tree; 1 class known by name: bus;" in done.text("a.pt")
    )
    x = torch.rand(1, 3, 64, 64)
    expected = source.eval()(x)[0][..., [0, 1, 2, 3, 4, 7]]
    assert torch.allclose(target.eval()(x)[0][..., :6], expected, atol=1e-5)
    for own, old in zip(target.head.m, before.head.m, strict=True):  # "tree" is new
        assert torch.equal(own.weight.view(3, 7, -1)[:, 6], old.weight.view(3, 7, -1)[:, 6])
    same = DetectionModel("yolov5n.yaml", nc=4)
    same.names = dict(source.names)
    assert fine_tune(same, source).classes == ("cat", "dog", "bus", "car")
    assert torch.equal(same.eval()(x)[0], source(x)[0])
    renamed = DetectionModel("yolov5n.yaml", nc=4)
    done = fine_tune(renamed, source, skip=["model.24.anchors"])
    assert (
        done.boxes and not done.classes and "all classes are new to the weights" in done.text("a.pt")
    )  # none by its number
    assert torch.allclose(renamed.eval()(x)[0][..., :5], source(x)[0][..., :5], atol=1e-5)


def test_a_head_with_other_anchors_or_inputs_starts_from_random_weights() -> None:
    source = DetectionModel("yolov5n.yaml", nc=4)
    other = yaml_with_anchors([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16], [17, 18, 19, 20, 21, 22]])
    assert not fine_tune(DetectionModel(other, nc=2), source, skip=["model.24.anchors"]).boxes
    assert not fine_tune(DetectionModel("yolov5-mobilevit.yaml", nc=2), source).boxes


@pytest.fixture
def tiny_data(tmp_path: Path) -> str:
    for folder in ("images", "labels"):
        (tmp_path / folder / "all").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "images" / "all" / "a.png"), np.zeros((64, 64, 3), np.uint8))
    (tmp_path / "labels" / "all" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("path: .\ntrain: images/all\nval: images/all\nnames: [red, blue]\n")
    return str(tmp_path / "data.yaml")


def test_fine_tuning_a_yolov5_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Anchors of the weights, names of the data; with --cfg the anchors of that file."""
    other = yaml_with_anchors([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16], [17, 18, 19, 20, 21, 22]])
    model = DetectionModel(other, nc=80)
    write_as_yolov5(tmp_path / "w.pt", model)
    names = {0: "red", 1: "blue"}
    with caplog.at_level(logging.INFO):
        tuned, report = start_model(names, weights=str(tmp_path / "w.pt"))
    assert report and report.boxes
    assert "transferred 343/349 tensors (backbone 198/198, neck 144/144, head 1/7)" in caplog.text
    assert tuned.names == names and tuned.nc == 2
    assert tuned.head.anchors.flatten(1).tolist() == other["anchors"]
    assert torch.equal(tuned.model[0].conv.weight, half_rounded(model).model[0].conv.weight)
    with caplog.at_level(logging.INFO):
        with_cfg, _ = start_model(names, "yolov5n.yaml", str(tmp_path / "w.pt"), verbose=True)
    assert with_cfg.head.anchors.flatten(1).tolist()[0] == [10, 13, 16, 30, 33, 23]
    assert "transferred 342/349" in caplog.text and "model.24.anchors (kept)" in caplog.text


def yaml_with_anchors(anchors: list) -> dict:
    return DetectionModel("yolov5n.yaml").yaml | {"anchors": anchors}


# --- MobileViT's ImageNet weights -------------------------------------------------------------------------------------

ROWS = {5: "out_l3", 7: "out_l4", 9: "out_l5"}


def backbone_maps(model: DetectionModel, x: Tensor) -> dict[int, Tensor]:
    """Outputs of the rows in ROWS."""
    maps, hooks = {}, []
    for row in ROWS:
        hooks.append(model.model[row].register_forward_hook(lambda m, i, out, row=row: maps.update({row: out})))
    with torch.inference_mode():
        model.eval()(x)
    for hook in hooks:
        hook.remove()
    return maps


def test_recorded_cvnets_weights_in_classifier_and_backbone(tmp_path: Path) -> None:
    recorded = oracle("cvnets_mobilevit_xxs.pt")
    x = recorded["input"]
    classifier = from_checkpoint("xxs", recorded["state_dict"])
    assert classifier.color_order == "BGR" and not classifier.training
    with torch.inference_mode():
        assert_close(classifier(x), recorded["logits"], atol=1e-4, rtol=0)
    detector = DetectionModel("yolov5-mobilevit-xxs.yaml", nc=2)
    done = load_backbone(detector, str(shared("oracles/cvnets_mobilevit_xxs.pt")))
    copied, count = done.parts["backbone"]
    assert copied == count == 303 and done.copied == 303 and not done.skipped
    maps = backbone_maps(detector, x.flip(1))  # a detector reads RGB, CVNets' networks BGR
    for row, name in ROWS.items():
        assert_close(maps[row], recorded["features"][name], atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_timm_weights_in_classifier_and_backbone(size: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed: pip install timm to compare with its MobileViT")
    theirs = randomize(timm.create_model(f"mobilevit_{size}", pretrained=False)).eval()
    nn.init.normal_(theirs.head.fc.weight, std=0.1)
    x = torch.rand(1, 3, 128, 192)
    classifier = from_checkpoint(size, theirs.state_dict())
    torch.save(theirs.state_dict(), tmp_path / "w.pth", _use_new_zipfile_serialization=False)  # as timm's own files
    detector = DetectionModel(f"yolov5-mobilevit-{size}.yaml", nc=2)
    done = load_backbone(detector, str(tmp_path / "w.pth"))
    assert done.parts["backbone"][0] == done.parts["backbone"][1] > 300
    assert classifier.color_order == "RGB"
    maps, stages = backbone_maps(detector, x), [theirs.stem(x)]
    with torch.inference_mode():
        assert_close(classifier(x), theirs(x), atol=1e-4, rtol=1e-4)
        for stage in theirs.stages:
            stages.append(stage(stages[-1]))
        for row, expected in zip(ROWS, stages[3:], strict=True):
            assert_close(maps[row], expected, atol=1e-4, rtol=1e-4)
    assert to_published(classifier.state_dict(), "timm").keys() == theirs.state_dict().keys()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", ["cvnets", "timm"])
def test_conversion_and_back_is_the_same(layout: str, size: str) -> None:
    state = MobileViT(size, classes=7).state_dict()
    published = to_published(state, layout)
    assert len(published) == len(state)
    back = from_published(published)
    assert back.keys() == state.keys() and all(back[k] is state[k] for k in state)
    if (layout, size) == ("cvnets", "xxs"):
        assert published.keys() == oracle("cvnets_mobilevit_xxs.pt")["state_dict"].keys()
    assert from_checkpoint(size, published).classifier.out_features == 7


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "module."])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_files_that_published_weights_come_in(wrapper: str, suffix: str, tmp_path: Path) -> None:
    import safetensors.torch

    state = to_published(MobileViT("xxs", classes=2).state_dict(), "cvnets")
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file({k: t.contiguous() for k, t in state.items()}, path)
    elif wrapper == "module.":
        torch.save({f"module.{k}": t for k, t in state.items()}, path)
    else:
        torch.save({wrapper: state, "epoch": 3}, path)
    read = read_published(str(path))
    assert read.keys() == state.keys() and all(torch.equal(read[k], state[k]) for k in state)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (
            "yolov5-mobilevit-xs.yaml",
            r"\(MobileViT-XXS\): \d+ tensors of the backbone do not match yolov5-mobilevit-xs\.yaml, the first is",
        ),
        (
            "yolov5-mobilevit.yaml",
            r"backbone do not match yolov5-mobilevit\.yaml.*--partial transfers what fits",
        ),
    ],
)
def test_a_backbone_that_does_not_match_is_an_error_unless_partial(
    cfg: str, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    published = to_published(randomize(MobileViT("xxs")).state_dict(), "timm")
    torch.save(published, tmp_path / "w.pt")
    model = DetectionModel(cfg, nc=2)
    before = {k: t.clone() for k, t in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_backbone(model, str(tmp_path / "w.pt"))
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    done = load_backbone(model, str(tmp_path / "w.pt"), partial=True)
    copied, count = done.parts["backbone"]
    assert 0 < copied < count and len(done.skipped) == count - copied
    assert any("in the file" in why and "in the model" in why for why in done.skipped.values())
    assert ("put 'norm_eps: 1.0e-5' into the YAML" in caplog.text) == (cfg == "yolov5-mobilevit.yaml")


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    model = DetectionModel("yolov5-mobilevit-xxs.yaml", nc=2)
    torch.save(nn.Conv2d(3, 3, 1).state_dict(), tmp_path / "conv.pt")
    with pytest.raises(ValueError, match=r"conv\.pt: neither CVNets' nor timm's names of a MobileViT"):
        load_backbone(model, str(tmp_path / "conv.pt"), partial=True)
    with pytest.raises(FileNotFoundError, match=r"'none\.pt' not found, expected a \.pt, \.pth or \.safetensors file"):
        load_backbone(model, "none.pt")
    torch.save(to_published(MobileViT("xxs").state_dict(), "timm"), tmp_path / "vit.pt")
    with pytest.raises(ValueError, match=r"yolov5n\.yaml has no MobileViT backbone, expected a yolov5-mobilevit-"):
        load_backbone(DetectionModel("yolov5n.yaml", nc=2), str(tmp_path / "vit.pt"), partial=True)
    with pytest.raises(ValueError, match=r"timm:resnet50: expected timm: and one of mobilevit_xxs"):
        load_backbone(model, "timm:resnet50")
    with pytest.raises(ValueError, match=r"size 'm', expected one of xxs, xs, s"):
        from_checkpoint("m", to_published(MobileViT("xxs").state_dict(), "timm"))
    with pytest.raises(ValueError, match=r"tensors do not fit mobilevit-s, the first is"):
        from_checkpoint("s", to_published(MobileViT("xxs").state_dict(), "timm"))
    with pytest.raises(ValueError, match=r"1 tensor does not belong to a MobileViT, the first is extra\.weight"):
        from_checkpoint("xxs", to_published(MobileViT("xxs").state_dict(), "timm") | {"extra.weight": torch.zeros(1)})


def test_timm_is_asked_only_when_the_user_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed: pip install timm to test fetching by it")
    asked = []
    real = timm.create_model

    def fetch(name: str, pretrained: bool) -> nn.Module:
        asked.append((name, pretrained))
        return real(name.partition(".")[0], pretrained=False)

    monkeypatch.setattr(timm, "create_model", fetch)
    model = DetectionModel("yolov5-mobilevit-xxs.yaml", nc=2)
    assert asked == []
    load_backbone(model, "timm:mobilevit_xxs.cvnets_in1k")
    assert asked == [("mobilevit_xxs.cvnets_in1k", True)]

    def fail(name: str, pretrained: bool) -> nn.Module:
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ValueError, match=r"timm could not load it \(no route to host\)$"):
        load_backbone(model, "timm:mobilevit_xxs")


def test_train_takes_backbone_weights_and_warns_of_random_ones(
    tiny_data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = tmp_path / "mobilevit_xxs.pt"
    published = to_published(MobileViT("xxs").state_dict(), "cvnets")
    torch.save(published, weights)
    names, cfg = {0: "red", 1: "blue"}, "yolov5-mobilevit-xxs.yaml"
    with caplog.at_level(logging.INFO):
        model, report = start_model(names, cfg, backbone_weights=str(weights))
    assert re.search(r"transferred 303/\d+ tensors \(backbone 303/303, neck 0/\d+, head 0/7\) from ", caplog.text)
    assert torch.equal(model.model[0].conv.weight, published["conv_1.block.conv.weight"].flip(1))
    write_as_yolov5(tmp_path / "n.pt", DetectionModel("yolov5n.yaml", nc=2))
    scan = read_data_yaml(tiny_data).scan("train")

    def warnings_of(model: DetectionModel, report: TransferReport | None) -> str:
        caplog.clear()
        train.describe(train.TrainConfig(data=tiny_data), scan, model, report)
        return "\n".join(r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING)

    assert "random weights" not in warnings_of(model, report)
    warning = warnings_of(*start_model(names, cfg))
    assert "starts from random weights on 1 images" in warning
    assert "--cfg yolov5-mobilevit-xxs.yaml --backbone-weights timm:mobilevit_xxs.cvnets_in1k" in warning
    of_another = start_model(names, cfg, str(tmp_path / "n.pt"))
    assert "starts from random weights on 1 images" in warnings_of(*of_another)  # hardly any of it fits the backbone
    assert "random weights" not in warnings_of(*start_model(names, "yolov5n.yaml"))
    with pytest.raises(ValueError, match="--weights and --backbone-weights both give a backbone"):
        start_model(names, weights="a.pt", backbone_weights="b.pt")


# --- the classifier ---------------------------------------------------------------------------------------------------


def test_preparation_equals_timms(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed: pip install timm to compare with its transform")
    from PIL import Image
    from timm.data import create_transform, resolve_data_config

    smooth = cv2.resize(np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8), (500, 400))
    transform = create_transform(**resolve_data_config({}, model=timm.create_model("mobilevit_xxs")))
    ours = classify.prepare(smooth, "RGB")[0]
    assert_close(ours, transform(Image.fromarray(smooth)), atol=2 / 255, rtol=0)
    assert_close(classify.prepare(smooth, "BGR")[0].flip(0).mean(), ours.mean(), atol=0.02, rtol=0)
    assert classify.prepare(smooth, "BGR").shape == (1, 3, 256, 256)


@pytest.mark.parametrize("layout", ["cvnets", "timm"])
def test_classify_prints_the_classes_of_imagenet(layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The red plane of an image comes first for timm's weights and last for CVNets'."""
    model = randomize(MobileViT("xxs"))
    nn.init.normal_(model.classifier.weight)
    torch.save(to_published(model.state_dict(), layout), tmp_path / "w.pt")
    image = np.zeros((300, 400, 3), np.uint8)
    image[..., 0] = 255  # red
    cv2.imwrite(str(tmp_path / "red.png"), image[..., ::-1])
    with caplog.at_level(logging.INFO):
        top = classify.main(classify.ClassifyConfig(str(tmp_path / "red.png"), weights=str(tmp_path / "w.pt")))
    assert len(top) == 5 and [p for _, p in top] == sorted((p for _, p in top), reverse=True)
    assert len(caplog.messages) == 5 and all(re.match(r" *\d+\.\d\d%  \w", line) for line in caplog.messages)
    pixels = torch.tensor([1.0, 0, 0] if layout == "timm" else [0, 0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 256, 256)
    with torch.inference_mode():
        expected = model.eval()(pixels)[0].softmax(0)
    assert top[0][1] == pytest.approx(float(expected.max()), abs=1e-5)


def test_classify_says_what_is_wrong(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((9, 9, 3), np.uint8))
    state = to_published(MobileViT("xxs").state_dict(), "timm")
    torch.save({k: t for k, t in state.items() if not k.startswith("head")}, tmp_path / "w.pt")
    for weights, message in (
        ("", "--weights is missing"),
        (str(tmp_path / "w.pt"), r"w\.pt: no classifier of a MobileViT's width"),
    ):
        with pytest.raises(ValueError, match=message):
            classify.main(classify.ClassifyConfig(str(tmp_path / "a.png"), weights=weights))


def test_the_metadata_of_a_safetensors_file_is_json(tmp_path: Path) -> None:
    import safetensors

    save_safetensors(tmp_path / "w.safetensors", Checkpoint.of(DetectionModel("yolov5n.yaml", nc=2)))
    with safetensors.safe_open(tmp_path / "w.safetensors", "pt") as file:
        plain = json.loads(file.metadata()["checkpoint"])
    assert plain["names"] == {"0": "0", "1": "1"} and plain["grid"] == 32 and "model" not in plain
