"""int8: which weights and operators are quantized, and how much is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import write_tiny

import export
from export import ExportConfig
from models.export import int8 as quantize
from models.runtimes.load import load_backend
from models.weights.checkpoint import build_model, load_checkpoint
from utils.boxes import xyxy2xywhn
from utils.images import imread, letterbox
from utils.nms import NmsSettings, non_max_suppression

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("int8")
    write_tiny(place)
    model = build_model(load_checkpoint(place / "tiny.pt"))
    write_labels(place, lambda images: model(images)[0].detach())
    return place


def write_labels(folder: Path, reference) -> Path:
    """A data YAML whose labels are the model's own detections: its mAP is high, and an int8 file can lose it."""
    (folder / "labels").mkdir(exist_ok=True)
    for path in sorted((folder / "images").iterdir()):
        image = imread(path)
        canvas, place = letterbox(image, (128, 128))
        rows = reference(torch.from_numpy(canvas).permute(2, 0, 1)[None].float() / 255)
        boxes = non_max_suppression(rows, NmsSettings(conf_thres=0.5))[0]
        xywh = xyxy2xywhn(place.to_image(boxes.xyxy), image.shape[:2]).clip(0, 1)
        lines = [f"{c} {' '.join(f'{v:.6f}' for v in b)}" for b, c in zip(xywh, boxes.label, strict=True)]
        (folder / "labels" / f"{path.stem}.txt").write_text("\n".join(lines) + "\n")
    (folder / "data.yaml").write_text("path: .\ntrain: images\nval: images\nnames: [cat, Bär, dog]\n")
    return folder / "data.yaml"


@pytest.mark.parametrize("ops", quantize.INT8_OPS)
def test_int8_keeps_the_decoding_in_float(folder, tmp_path, monkeypatch, ops):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(export, "INT8_LOSS", 1.0)  # random weights; the losses of trained ones are in docs/export.md
    cfg = ExportConfig(
        weights=str(folder / "tiny.pt"),
        include=("onnx",),
        imgsz=(128,),
        data=str(folder / "data.yaml"),
        int8=True,
        int8_ops=ops,
        threads=1,
        out=str(tmp_path),
    )
    row = export.main(cfg)[0]
    assert row.path.name == "tiny-int8.onnx" and row.maps[0] > 0.3 and row.maps[1] > row.maps[0] - 0.3
    assert load_backend(row.path, CPU).meta.precision == f"int8 {ops}"
    graph = onnx.load(row.path)
    kinds = [node.op_type for node in graph.graph.node]
    assert ("QuantizeLinear" in kinds) == (ops != "weights") and "DequantizeLinear" in kinds
    large = [w.name for w in graph.graph.initializer if w.data_type == 1 and np.prod(w.dims) >= quantize.SMALL]
    assert large == []
    decoding, head = quantize.decoding_and_head(graph)
    kinds_of = {node.name: node.op_type for node in graph.graph.node}
    assert len(decoding) > 10 and [kinds_of[name] for name in head] == ["Conv", "Conv"]
    assert "QuantizeLinear" not in {kinds_of[name] for name in decoding}


def test_stored_weights_are_near_the_float_ones():
    onnx = pytest.importorskip("onnx")
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(32, 16, 3, 3)).astype(np.float32) * np.geomspace(0.01, 10, 32)[
        :, None, None, None
    ].astype("f4")
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"])
    inputs, outputs = [value("x", 1, [1, 16, 8, 8])], [value("y", 1, [1, 32, 6, 6])]
    graph = onnx.helper.make_graph([node], "g", inputs, outputs, [onnx.numpy_helper.from_array(weight, "w")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)])
    x = rng.normal(size=(1, 16, 8, 8)).astype(np.float32)
    run = onnx.reference.ReferenceEvaluator
    before = run(model).run(None, {"x": x})[0]
    small = quantize.store_weights(model)
    onnx.checker.check_model(small)
    after = run(small).run(None, {"x": x})[0]
    scale = np.abs(before).max(axis=(0, 2, 3), keepdims=True)  # per channel: a small one beside large ones is kept
    assert 0 < (np.abs(after - before) / scale).max() < 0.02
