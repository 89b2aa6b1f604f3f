"""Every head keeps one contract: decoding, loss, transfer, exports, training and resuming."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import shutil
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from runs import stop_after
from tiny import CFG, NAMES, write_tiny
from torch import Tensor
from torch.testing import assert_close

import detect
import export
import train
from models.export.metadata import Metadata
from models.heads import HEADS, Decoupled, Detect
from models.runtimes.exported import decoder
from models.visualize import record_activations
from models.weights.checkpoint import Checkpoint, build_model, load_checkpoint, save_checkpoint
from models.weights.transfer import fine_tune
from models.yolo import BLOCKS, DetectionModel
from utils.boxes import Targets
from utils.files import REPO
from utils.hyp import Hyp
from utils.images import POSITIONS, letterbox, place
from utils.train.plots import panels, plot_results

ROWS: dict[str, tuple[str, list]] = {
    "Detect": ("Detect", ["nc", "anchors"]),
    "Decoupled": ("Decoupled", ["nc"]),
    "Decoupled, depthwise": ("Decoupled", ["nc", {"depthwise": True, "width": 24}]),
    "DetectV8": ("DetectV8", ["nc"]),
    "DetectV8, no bins": ("DetectV8", ["nc", {"reg_max": 1, "depthwise": True, "enlarge": 2.0}]),
}
every_head = pytest.mark.parametrize("name", ROWS)
new_heads = pytest.mark.parametrize("name", ["Decoupled", "DetectV8", "DetectV8, no bins"])  # Detect has its own tests


def network(name: str, **changes: Any) -> dict[str, Any]:
    """The rows of tests/tiny.py with a neck and another head."""
    block, args = ROWS[name]
    cfg = deepcopy(CFG) | changes
    cfg["head"][-1:] = [[-1, 1, "Conv", [40, 1]], [[7, 4], 1, block, args]]
    return cfg


def small_model(name: str, nc: int = 3, **changes: Any) -> DetectionModel:
    """`network` in eval mode, which finds something in nearly every cell."""
    torch.manual_seed(0)
    model = DetectionModel(network(name, nc=nc, **changes))
    model.names = dict(NAMES) if nc == 3 else {i: f"c{i}" for i in range(nc)}
    return finding(model)


def finding(model: DetectionModel, bias: float = 1.0) -> DetectionModel:
    """`model` in eval mode with statistics that fit, and biases of class and objectness at which it finds much."""
    model.train()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the plain mean: statistics that fit
    with torch.no_grad():
        for _ in range(4):
            model(torch.nn.functional.interpolate(torch.rand(8, 3, 7, 7), (128, 128)))
        for conv in model.head.objectness if isinstance(model.head, Decoupled) else ():
            conv.bias.fill_(bias)
        for conv, label in model.head.class_rows():
            conv.bias[label >= 0] = bias
            if isinstance(model.head, Detect):
                conv.bias.view(model.head.na, -1)[:, 4] = bias
    return model.eval()


def two_images() -> Tensor:
    return torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))


def some_targets() -> Targets:
    xywhn = torch.tensor([[0.3, 0.4, 0.3, 0.2], [0.7, 0.6, 0.5, 0.6], [0.5, 0.5, 0.04, 0.03], [0.2, 0.8, 0.1, 0.3]])
    return Targets(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 2, 1, 0]), xywhn)


def test_every_head_is_tested_here() -> None:
    assert {block for block, _ in ROWS.values()} == set(HEADS)


@every_head
def test_decoded_rows_are_pixels_and_probabilities(name: str) -> None:
    model, images = small_model(name), two_images()
    with torch.no_grad():
        decoded, raw = model(images)
        alone, _ = model(images[1:])
        model.train()
        assert [level.shape for level in model(images)] == [level.shape for level in raw]
    cells = sum((128 // s) ** 2 for s in model.stride.int().tolist())
    anchors = 1 if model.head.anchors is None else model.head.anchors.shape[1]
    assert decoded.shape == (2, cells * anchors, 5 + 3) and decoded.dtype == torch.float32
    assert (decoded[..., 2:4] >= 0).all() and ((decoded[..., 4:] >= 0) & (decoded[..., 4:] <= 1)).all()
    assert_close(alone[0], decoded[1], atol=1e-4, rtol=1e-5)
    if name.startswith("DetectV8"):
        assert (decoded[..., 4] == 1).all()


@every_head
def test_the_loss_reaches_every_parameter_and_falls(name: str) -> None:
    model, images, targets = small_model(name).train(), two_images(), some_targets()
    criterion = model.head.criterion(Hyp(), 128)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    history = []
    for _ in range(25):
        loss, parts = criterion(model(images), targets)
        assert tuple(parts) == criterion.names and not any(part.requires_grad for part in parts.values())
        optimizer.zero_grad()
        loss.backward()
        history.append(loss.item())
        if len(history) == 1:
            assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
            assert all(conv.weight.grad.abs().sum() > 0 for conv, _ in model.head.class_rows())
        optimizer.step()
    assert history[-1] < 0.75 * history[0]


@every_head
def test_images_without_labels_have_a_finite_loss(name: str) -> None:
    model = small_model(name).train()
    nothing = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    loss, parts = model.head.criterion(Hyp(), 128)(model(two_images()), nothing)
    loss.backward()
    assert loss.isfinite() and parts["box"] == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@every_head
def test_processes_that_share_a_batch_compute_the_loss_of_the_whole(name: str) -> None:
    model, images, targets = small_model(name), two_images(), some_targets()
    with torch.no_grad():
        raw = model(images)[1]
    whole, parts = model.head.criterion(Hyp(), 128)(raw, targets)
    halves = []
    for i in range(2):
        own = targets[targets.image == i]
        halves.append(([level[i : i + 1] for level in raw], Targets(own.image * 0, own.label, own.xywhn)))
    counts: list[Tensor] = []

    def record(values: Tensor) -> Tensor:
        counts.append(values)
        return values

    for half in halves:
        model.head.criterion(Hyp(), 128, all_reduce_sum=record)(*half)
    total = torch.stack(counts).sum(dim=0)
    shared = model.head.criterion(Hyp(), 128, all_reduce_sum=lambda values: total)
    results = [shared(*half) for half in halves]
    assert_close(results[0][0] + results[1][0], whole)
    for key, part in parts.items():
        assert_close(results[0][1][key] + results[1][1][key], part)
    assert_close(shared.for_one_process()(raw, targets)[0], whole)


@every_head
def test_the_prior_makes_objects_rare(name: str) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        decoded = DetectionModel(network(name, nc=10)).eval()(torch.rand(1, 3, 128, 128))[0]
    scores = (decoded[..., 5:] * decoded[..., 4:5]).amax(dim=-1)
    assert scores.mean() < 0.05


@every_head
def test_class_rows_name_every_class_as_often(name: str) -> None:
    head = small_model(name).head
    for conv, label in head.class_rows():
        assert len(label) == conv.out_channels
        counts = [(label == c).sum().item() for c in range(3)]
        assert counts == [counts[0]] * 3 and counts[0] >= 1


@every_head
def test_metadata_decode_the_raw_form(name: str) -> None:
    model = small_model(name)
    meta = Metadata.of(model, (128, 128), 2, form="raw")
    again = Metadata.from_strings(meta.to_strings(), "file")
    assert again == meta == Metadata.from_json(meta.to_json(), "file")
    kept: list[list[Tensor]] = []
    maps = model.head.maps
    model.head.maps = lambda x: kept.append(maps(x)) or kept[-1]  # type: ignore[method-assign, assignment]
    with torch.no_grad():
        decoded = model(two_images())[0]
        assert torch.equal(decoder(again).decode_all(kept[0]), decoded)


def test_metadata_of_an_unknown_head_are_refused() -> None:
    meta = Metadata.of(small_model("DetectV8"), (128, 128), 1).to_json().replace('"DetectV8"', '"DetectV99"')
    with pytest.raises(ValueError, match=r"file: no metadata .*head 'DetectV99', expected one of Detect, Decoupled"):
        Metadata.from_json(meta, "file")


@every_head
def test_a_checkpoint_comes_back_to_the_bit(name: str, tmp_path: Path) -> None:
    model = small_model(name)
    save_checkpoint(tmp_path / "a.pt", Checkpoint.of(model))
    again = build_model(load_checkpoint(tmp_path / "a.pt"))
    images = two_images()
    with torch.no_grad():
        assert torch.equal(again(images)[0], model(images)[0])
    with torch.no_grad():  # and folded norms change nothing but roundings
        assert_close(again.fuse()(images)[0], model(images)[0], atol=1e-2, rtol=1e-3)


@every_head
def test_fine_tuning_keeps_boxes_and_the_rows_of_known_classes(name: str) -> None:
    old, new = small_model(name), small_model(name, nc=4)
    new.names = {0: "tree", 1: "dog", 2: "cat", 3: "car"}
    before = deepcopy(new)
    report = fine_tune(new, old)
    assert report.boxes and report.by_rows and report.classes == ("dog", "cat")
    with torch.no_grad():
        was, now, fresh = (model(two_images())[0] for model in (old, new, before))
    assert_close(now[..., :5], was[..., :5])
    assert_close(now[..., 5:][..., [1, 2]], was[..., 5:][..., [2, 0]])
    assert not torch.allclose(now[..., 5:][..., [0, 3]], fresh[..., 5:][..., [0, 3]])  # other towers below them
    for (a, rows), (b, _) in zip(new.head.class_rows(), before.head.class_rows(), strict=True):
        for c, kept in ((0, False), (1, True), (2, True), (3, False)):
            assert torch.equal(a.weight[rows == c], b.weight[rows == c]) is not kept


def test_heads_of_another_kind_share_no_rows() -> None:
    report = fine_tune(small_model("DetectV8", nc=4), small_model("Decoupled"))
    assert not report.boxes and report.share("neck") == 1 and report.classes == ()
    bins = fine_tune(small_model("DetectV8", nc=4), small_model("DetectV8, no bins"))
    assert not bins.boxes


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, "torchscript") for name in ROWS),
        ("Decoupled", "onnx --nms"),
        ("DetectV8", "onnx"),
        ("DetectV8", "onnx --nms"),
    ],
)
def test_exports_equal_pytorch(name: str, form: str, tmp_path: Path) -> None:
    kind, _, nms = form.partition(" ")
    if kind == "onnx" and any(importlib.util.find_spec(p) is None for p in ("onnx", "onnxscript", "onnxruntime")):
        pytest.skip("onnx needs onnx, onnxscript and onnxruntime, see requirements-export.txt")
    write_tiny(tmp_path)
    save_checkpoint(tmp_path / "tiny.pt", Checkpoint.of(small_model(name)))
    options: dict[str, Any] = {"images": (str(tmp_path / "images"),), "threads": 1, "nms": bool(nms)}
    (row,) = export.main(
        export.ExportConfig(weights=str(tmp_path / "tiny.pt"), include=(kind,), imgsz=(128,), **options)
    )
    assert row.parity is not None and row.parity.total > 0 and row.parity.same == row.parity.total


@new_heads
def test_training_resumes_to_the_bit_and_names_its_losses(
    name: str, small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.yaml").write_text(yaml.safe_dump(network(name)))
    base: dict[str, Any] = {"data": str(small_set), "cfg": str(tmp_path / "net.yaml"), "imgsz": 64, "device": "cpu"}
    base |= {"batch_size": 4, "workers": 0, "noplots": True, "project": str(tmp_path), "epochs": 2}
    train.main(train.TrainConfig(name="whole", **base))

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stopped by the test"):
        stop_after(patch, 1)
        train.main(train.TrainConfig(name="parts", **base))
    train.main(train.TrainConfig(resume=str(tmp_path / "parts"), device="cpu", workers=0))
    whole, parts = (load_checkpoint(tmp_path / run / "weights" / "last.pt") for run in ("whole", "parts"))
    assert whole.model.keys() == parts.model.keys()
    assert all(torch.equal(whole.model[key], parts.model[key]) for key in whole.model)

    with (tmp_path / "whole" / "results.csv").open() as file:
        columns = next(csv.reader(file))
    names = build_model(whole).head.criterion(Hyp(), 128).names
    assert [c for c in columns if c.startswith("train/")] == [f"train/{n}_loss" for n in names]
    assert [c for c in columns if c.startswith("val/")] == [f"val/{n}_loss" for n in names]
    assert set(panels(columns)) <= set(columns) and len(panels(columns)) == 10
    plot_results(tmp_path / "whole" / "results.csv", tmp_path / "results.png")
    assert (tmp_path / "results.png").stat().st_size > 10_000


@every_head
def test_detect_with_views_and_tiles(name: str, tmp_path: Path) -> None:
    write_tiny(tmp_path)
    save_checkpoint(tmp_path / "tiny.pt", Checkpoint.of(small_model(name)))
    base: dict[str, Any] = {"weights": str(tmp_path / "tiny.pt"), "source": str(tmp_path / "images"), "imgsz": 128}
    base |= {"project": str(tmp_path), "device": "cpu", "save_txt": "yolo", "conf_thres": 0.1}
    for i, more in enumerate(({}, {"augment": True}, {"tile": 64})):
        detect.main(detect.DetectConfig(name=f"run{i}", **base, **more))
        texts = [path for path in (tmp_path / f"run{i}").rglob("*.txt") if path.name != "classes.txt"]
        assert len(texts) == 3 and all(path.read_text() for path in texts)
    inside = record_activations(small_model(name), two_images()[:1], (0.5, 0.5))
    assert len(inside.features) == len(network(name)["backbone"]) + len(network(name)["head"]) - 1


def test_the_head_of_the_docs_is_one_class_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.heads.HEADS", dict(HEADS))
    (code,) = re.findall(r"^```python\n(.*?)^```", (REPO / "docs" / "heads.md").read_text(), re.M | re.S)
    made: dict[str, Any] = {}
    exec(compile(code, "docs/heads.md", "exec"), made)
    monkeypatch.setitem(BLOCKS, "Squares", made["Squares"])
    cfg = network("Decoupled")
    cfg["head"][-1][2] = "Squares"
    model = DetectionModel(cfg)
    with torch.no_grad():
        decoded, raw = model.eval()(two_images())
    assert torch.equal(decoded[..., 2], decoded[..., 3])
    assert model.head.criterion(Hyp(), 128)(raw, some_targets())[0].isfinite()


def test_a_head_elsewhere_than_last_is_refused() -> None:
    cfg = deepcopy(CFG)
    cfg["head"] = [[[3, 4], 1, "DetectV8", ["nc"]], [-1, 1, "Conv", [8]]]
    with pytest.raises(ValueError, match=r"row 5: DetectV8 must be the last row"):
        DetectionModel(cfg)


def test_the_shownof_an_image_is_the_models(tmp_path: Path) -> None:
    assert (place((50, 100), (100, 100)).top, place((50, 100), (100, 100), position="top-left").top) == (25, 0)
    image = np.full((50, 100, 3), 200, np.uint8)
    canvas, placed = letterbox(image, (100, 100), position="top-left")
    assert (canvas[:50] == 200).all() and (canvas[50:] == 114).all()
    box = np.array([[10.0, 5.0, 90.0, 45.0]])
    np.testing.assert_allclose(placed.to_image(placed.to_canvas(box)), box)

    model = small_model("Decoupled", letterbox="top-left")
    save_checkpoint(tmp_path / "a.pt", Checkpoint.of(model))
    assert build_model(load_checkpoint(tmp_path / "a.pt")).letterbox == "top-left"
    assert Metadata.of(model, (128, 128), 1).letterbox == "top-left"
    with pytest.raises(ValueError, match=r"letterbox is 'left', expected one of center, top-left"):
        small_model("Decoupled", letterbox="left")


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize("position", POSITIONS)
def test_the_web_page_places_images_as_python_does(position: str, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8)
    canvas, placed = letterbox(image, (128, 160), position=position)
    rgba = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    (tmp_path / "rgba.bin").write_bytes(rgba.tobytes())
    (tmp_path / "x.mjs").write_text(
        f'import {{ letterbox }} from "{(REPO / "examples/web/detector.mjs").as_uri()}";\n'
        'import { readFileSync, writeFileSync } from "node:fs";\n'
        'const data = new Uint8ClampedArray(readFileSync("rgba.bin"));\n'
        f"const centered = {str(position == 'center').lower()};\n"
        "const { tensor, place } = letterbox({ data, width: 130, height: 90 }, 128, 160, centered);\n"
        'writeFileSync("out.bin", Buffer.from(tensor.buffer));\n'
        'writeFileSync("place.json", JSON.stringify(place));\n'
    )
    subprocess.run(["node", "x.mjs"], cwd=tmp_path, check=True)
    tensor = np.fromfile(tmp_path / "out.bin", np.float32).reshape(3, 128, 160)
    np.testing.assert_allclose(tensor * 255, canvas.transpose(2, 0, 1), atol=1.01)
    shown = json.loads((tmp_path / "place.json").read_text())
    assert (shown["top"], shown["left"]) == (placed.top, placed.left)
