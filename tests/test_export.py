"""export.py: every file is loaded in its own runtime and compared with PyTorch, and holds its metadata."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import sys
import tomllib
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree
from inspection import operators, refused
from tiny import NAMES, tiny_model, write_tiny
from torchvision.ops import batched_nms

import detect
import export
import val
from export import ExportConfig
from models.common import Focus
from models.export.graph import ExportHead, export_form, focus_as_convolution
from models.export.metadata import Metadata, append_metadata, appended_metadata
from models.export.writers import FORMATS, Job
from models.heads import Detect
from models.runtimes.exported import final_to_decoded, move_devices
from models.runtimes.load import load_backend
from models.weights.checkpoint import build_model, load_checkpoint
from models.yolo import DetectionModel
from utils.backend import ModelLimits
from utils.boxes import xywh2xyxy
from utils.config import parse_cli, spelling
from utils.files import REPO, VERSION
from utils.nms import NmsSettings, non_max_suppression
from utils.proof.parity import LIMITS, compare

CPU = torch.device("cpu")


def requires(name: str) -> None:
    """Skip where the packages of a format are not installed."""
    if missing := FORMATS[name].missing():
        pytest.skip(f"{name} needs {', '.join(missing)}, see requirements-export.txt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("export")
    write_tiny(place)
    return place


@pytest.fixture(scope="module")
def made(folder):
    """A function: format, flags -> its file, made once for the module."""
    done: dict[tuple, Path] = {}

    def make(name: str, **flags) -> Path:
        requires(name)
        key = (name, *sorted(flags.items()))
        if key not in done:
            out = folder / f"out{len(done)}"
            done[key] = export.main(config(folder, name, out=str(out), **flags))[0].path
        return done[key]

    return make


def config(folder: Path, name: str, **flags) -> ExportConfig:
    base = ExportConfig(
        weights=str(folder / "tiny.pt"), include=(name,), imgsz=(128,), images=(str(folder / "images"),), threads=1
    )
    return replace(base, **flags)


@pytest.fixture(scope="module")
def reference(folder):
    model = build_model(load_checkpoint(folder / "tiny.pt"))
    return lambda images: model(images)[0].detach()


def images_of(*shape: int) -> torch.Tensor:
    """Coarse patterns: on plain noise all cells look alike, and scores tie."""
    coarse = torch.rand(shape[0], 3, 7, 7, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.interpolate(coarse, shape[2:]) if shape[0] else torch.zeros(shape)


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().abs().max())


@pytest.mark.parametrize("name", [n for n in FORMATS if n != "coreml"])
def test_file_equals_pytorch_for_any_batch(made, reference, name):
    path = made(name)
    backend = load_backend(path, CPU, threads=1)
    assert (backend.names, backend.nc, backend.stride, backend.grid) == (NAMES, 3, 16, 16)
    assert backend.limits == ModelLimits(path.name, (128, 128), fixed=True)
    for count in (1, 3):  # the file takes one at a time
        images = images_of(count, 3, 128, 128)
        assert apart(backend(images), reference(images)) < 2e-3
    assert backend(images_of(0, 3, 128, 128)).shape == (0, *reference(images_of(1, 3, 128, 128)).shape[1:])


MOBILE = ("onnx", "coreml", "tflite", "ncnn", "executorch")


@pytest.mark.parametrize("name", MOBILE)
def test_mobile_graphs_have_no_tensor_above_rank_4_and_no_custom_operators(made, name):
    seen = operators(made(name))
    assert len(seen) > 50 or name == "executorch"  # whose delegate runs many operators at once
    assert max(operator.rank for operator in seen) == (0 if name == "ncnn" else 4)
    assert any(("xnnpack" if name == "executorch" else "conv") in operator.name.lower() for operator in seen)
    assert refused(made(name)) == []


@pytest.mark.parametrize(
    ("yaml", "fused"), [("yolov5n.yaml", True), ("yolov5-mobilevit.yaml", True), ("yolov5-mobilevit-xxs.yaml", False)]
)
def test_models_are_captured_without_a_tensor_above_rank_4(yaml, fused):
    """The graph that all converters start from; in ExecuTorch's file the delegate hides it."""
    module = export_form(DetectionModel(yaml, nc=3).eval(), fused_attention=fused)
    graph = torch.export.export(module, (torch.zeros(1, 3, 64, 64),)).graph
    values = [
        v for node in graph.nodes for v in pytree.tree_leaves(node.meta.get("val")) if isinstance(v, torch.Tensor)
    ]
    assert len(values) > 100 and max(v.ndim for v in values) == 4
    targets = {str(node.target).split(".")[0] for node in graph.nodes if node.op == "call_function"}
    assert targets <= {"aten", "<built-in function getitem>"}


def test_the_inspection_sees_ranks_and_custom_operators(tmp_path):
    onnx = pytest.importorskip("onnx")
    value = onnx.helper.make_tensor_value_info
    nodes = [onnx.helper.make_node("Transpose", ["x"], ["y"], perm=[0, 1, 3, 2, 4])]
    shape = [1, 2, 3, 4, 5]
    graph = onnx.helper.make_graph(nodes, "g", [value("x", 1, shape)], [value("y", 1, [1, 2, 4, 3, 5])])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "x.onnx")
    assert refused(tmp_path / "x.onnx") == [("Transpose", 5, False)]
    nodes = [onnx.helper.make_node("Odd", ["x"], ["y"], domain="com.example")]
    graph = onnx.helper.make_graph(nodes, "g", [value("x", 1, [1, 2])], [value("y", 1, [1, 2])])
    domains = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("com.example", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=domains), tmp_path / "y.onnx")
    assert refused(tmp_path / "y.onnx") == [("Odd", 2, True)]
    folder = tmp_path / "x_ncnn_model"
    folder.mkdir()
    (folder / "model.ncnn.param").write_text("7767517\n1 1\nTensor.slice a 1 1 in0 out0\n")
    assert refused(folder) == [("Tensor.slice", 0, True)]


@pytest.mark.parametrize("dynamic", ["batch", "size"])
def test_dynamic_sizes(folder, tmp_path, reference, dynamic):
    task = export.prepare(config(folder, "onnx", dynamic=dynamic))
    job = task.job("onnx")  # its network is captured once for all three
    shapes = [(1, 3, 128, 128), (16, 3, 128, 128)] + [(2, 3, 64, 160), (1, 3, 96, 32)] * (dynamic == "size")
    for name in ("onnx",) if dynamic == "size" else ("torch_export", "onnx", "openvino"):  # open sides take long
        requires(name)
        path = tmp_path / f"x{FORMATS[name].ending}"
        with export.quiet():
            FORMATS[name].write(job, path)
        backend = load_backend(path, CPU, threads=1)
        assert backend.grid == 16 and backend.limits.fixed == (dynamic == "batch")
        for shape in shapes:
            assert apart(backend(images_of(*shape)), reference(images_of(*shape))) < 1e-3, (name, shape)


def test_file_of_a_fixed_size_takes_smaller_images_and_refuses_larger(made, reference):
    backend = load_backend(made("torchscript", imgsz=(64, 128)), CPU)
    small = images_of(1, 3, 32, 112)
    padded = torch.nn.functional.pad(small, (0, 16, 0, 32), value=114 / 255)
    assert apart(backend(small), reference(padded)) < 1e-3
    with pytest.raises(ValueError, match="exported for 64x128, got an image of 128x128"):
        backend(images_of(1, 3, 128, 128))


@pytest.mark.parametrize("batch", [1, 2])
def test_onnx_with_nms_finds_what_nms_finds(made, reference, batch):
    path = made("onnx", nms=True, batch_size=batch, max_det=40, conf_thres=0.3)
    backend = load_backend(path, CPU, threads=1)
    images = images_of(3, 3, 128, 128)
    wanted = non_max_suppression(reference(images), NmsSettings(0.3, 0.45, max_det=40))
    found = non_max_suppression(backend(images), NmsSettings(0.3, 0.45))
    assert [len(boxes) for boxes in wanted] == [len(boxes) for boxes in found]
    assert min(len(boxes) for boxes in wanted) > 2
    for a, b in zip(wanted, found, strict=True):
        assert np.abs(a.table() - b.table()).max() < 1e-3
    session = backend.session
    assert [o.name for o in session.get_outputs()] == ["boxes", "scores", "classes", "count"]
    assert [o.shape for o in session.get_outputs()] == [[batch, 40, 4], [batch, 40], [batch, 40], [batch]]
    boxes, scores, _, count = session.run(None, {"images": images[:batch].numpy()})
    assert not boxes[0, count[0] :].any() and not scores[0, count[0] :].any()


def test_nms_form_without_detections_and_with_more_than_it_holds():
    model = tiny_model()
    x = images_of(1, 3, 128, 128)
    boxes, scores, _, count = export_form(model, "nms", NmsSettings(conf_thres=1.0))(x)
    assert count.tolist() == [0] and not boxes.any() and not scores.any()
    full = export_form(model, "nms", NmsSettings(conf_thres=0.0, iou_thres=1.0, max_det=7))(x)
    assert full[3].tolist() == [7] and (full[1] > 0).all()
    rows = final_to_decoded(*full[:3], nc=3)
    back = non_max_suppression(rows, NmsSettings(0.0, 1.0))[0]
    assert np.allclose(back.xyxy, full[0][0], atol=1e-4) and back.label.tolist() == full[2][0].tolist()


class Suppress(torch.nn.Module):
    """The NMS of the graph, alone: decoded rows (N, 5+nc) -> boxes, scores, classes, count."""

    def __init__(self, nc: int, settings: NmsSettings):
        super().__init__()
        self.head = ExportHead(Detect(nc, [[10, 10]], [4]), "nms", settings)

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.head.suppress(rows)


def test_nms_in_the_graph_keeps_fractions_of_a_pixel_with_1000_classes(tmp_path):
    """Two boxes of every class overlap a little more or less than the threshold: a quarter of a pixel decides."""
    nc, generator = 1000, torch.Generator().manual_seed(0)
    first = torch.cat([torch.rand(nc, 2, generator=generator) * 1200, torch.full((nc, 2), 8.0)], dim=1)
    second = first.clone()
    second[:, 0] += 3 + 0.08 * (torch.rand(nc, generator=generator) < 0.5)  # IoU 0.4545 or 0.4440
    xywh, label = torch.cat([first, second]), torch.arange(nc).repeat(2)
    score = 0.3 + 0.7 * torch.rand(2 * nc, generator=generator)
    rows = torch.zeros(2 * nc, 5 + nc)
    rows[:, :4], rows[:, 4], rows[torch.arange(2 * nc), 5 + label] = xywh, 1, score
    xyxy = xywh2xyxy(xywh)
    kept = batched_nms(xyxy, score, label, 0.45)  # for so many boxes class by class, without offsets
    assert 1.3 * nc < len(kept) < 1.7 * nc
    module = Suppress(nc, NmsSettings(iou_thres=0.45, max_det=2 * nc))
    outputs = [module(rows)]
    if not FORMATS["onnx"].missing():
        import onnxruntime

        with export.quiet():
            torch.onnx.export(module, (rows,), tmp_path / "nms.onnx", dynamo=True, external_data=False)
        session = onnxruntime.InferenceSession(tmp_path / "nms.onnx", providers=["CPUExecutionProvider"])
        run = session.run(None, {session.get_inputs()[0].name: rows.numpy()})
        outputs.append(tuple(map(torch.from_numpy, run)))
    for boxes, scores, classes, count in outputs:
        assert int(count) == len(kept)
        assert torch.equal(boxes[:count], xyxy[kept]) and torch.equal(scores[:count], score[kept])
        assert torch.equal(classes[:count], label[kept])


def test_focus_as_convolution_computes_the_same():
    torch.manual_seed(1)
    focus = Focus(3, 8, 3).eval()
    focus.conv.bn.running_mean.normal_()
    focus.conv.bn.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 20, 28)
    before = focus(x)
    focus.conv.fold_norm()
    assert apart(focus_as_convolution(focus)(x), before) < 1e-5


def test_export_form_does_not_modify_the_model():
    model = tiny_model()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    export_form(model, "raw", fused_attention=False)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert isinstance(model(images_of(1, 3, 64, 64)), tuple)


def test_half_is_smaller_and_near(made):
    plain, half = (load_backend(made("onnx", half=flag), CPU) for flag in (False, True))
    images = images_of(1, 3, 128, 128)
    assert 0 < apart(half(images), plain(images)) < 1
    assert half.path.name == "tiny-fp16.onnx"
    assert half.meta.precision == "float16"
    assert half.path.stat().st_size < 0.8 * plain.path.stat().st_size


@pytest.mark.parametrize("name", ["onnx", "openvino", "torchscript", "torch_export", "ncnn"])
def test_metadata_is_in_the_file(made, name):
    meta = load_backend(made(name), CPU).meta
    assert (meta.imgsz, meta.batch, meta.grid, meta.strides) == ((128, 128), 1, 16, [8, 16])
    assert (meta.form, meta.dynamic, meta.task, meta.version) == ("decoded", "none", "detect", VERSION)
    assert "Apache-2.0" in meta.license and meta.names == NAMES


def test_coreml_program_and_pipeline(made):
    requires("coreml")
    import coremltools as ct

    spec = ct.utils.load_spec(str(made("coreml")))
    assert spec.description.input[0].type.imageType.width == 128
    assert Metadata.from_strings(dict(spec.description.metadata.userDefined), "x").grid == 16
    pipeline = ct.utils.load_spec(str(made("coreml", nms=True)))
    assert [o.name for o in pipeline.description.output] == ["confidence", "coordinates"]
    layer = pipeline.pipeline.models[1].nonMaximumSuppression
    assert list(layer.stringClassLabels.vector) == list(NAMES.values())
    assert abs(layer.iouThreshold - 0.45) < 1e-6
    assert refused(made("coreml", nms=True)) == []


def test_what_cannot_run_here_says_so(folder, tmp_path, caplog):
    requires("coreml")
    with caplog.at_level("INFO"):
        row = export.main(config(folder, "coreml", out=str(tmp_path)))[0]
    assert row.parity is None and not row.failed and "| not run here, only on Apple devices |" in caplog.text
    with pytest.raises(ValueError, match=r"tiny\.mlpackage: Core ML files are not run here"):
        load_backend(row.path, CPU)


def test_the_package_has_the_version_of_the_files():
    project = tomllib.loads((REPO / "pyproject.toml").read_text())
    module, _, name = project["tool"]["setuptools"]["dynamic"]["version"]["attr"].rpartition(".")
    assert getattr(importlib.import_module(module), name) == VERSION == Metadata.of(tiny_model(), (64, 64), 1).version


def test_metadata_round_trips(tmp_path):
    for form in ({"form": "raw"}, {"form": "nms", "conf_thres": 0.3, "iou_thres": 0.5, "max_det": 7}):
        meta = Metadata.of(tiny_model(), (64, 96), 2, **form)
        assert Metadata.from_json(meta.to_json(), "x") == Metadata.from_strings(meta.to_strings(), "x") == meta
    assert meta.nms == NmsSettings(0.3, 0.5, 7)
    for change in ({"max_det": 0}, {"conf_thres": 2}, {"iou_thres": "x"}):
        with pytest.raises(ValueError, match="x: no metadata of this project"):
            Metadata.from_json(json.dumps(json.loads(meta.to_json()) | change), "x")
    meta = Metadata.of(tiny_model(), (64, 96), 2, form="raw")
    assert Metadata.from_json(meta.to_json(), "x") == meta
    assert Metadata.from_strings(meta.to_strings() | {"other": "{"}, "x") == meta
    for change in ({"batch": 0}, {"grid": "x"}, {"imgsz": [64]}, {"form": "odd"}, {"strides": [8]}, {"extra": 1}):
        with pytest.raises(ValueError, match="x: no metadata of this project"):
            Metadata.from_json(json.dumps(json.loads(meta.to_json()) | change), "x")
    path = tmp_path / "x.bin"
    path.write_bytes(b"TFL3 and more")
    append_metadata(path, meta)
    assert appended_metadata(path) == meta
    assert path.read_bytes().startswith(b"TFL3 and more")


@pytest.mark.parametrize("suffix", [".onnx", ".torchscript", ".pt2", ".tflite"])
def test_a_file_that_is_something_else(tmp_path, suffix):
    requires({".onnx": "onnx", ".tflite": "tflite", ".pt2": "torch_export"}.get(suffix, "torchscript"))
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"this is not a model" * 20)
    with pytest.raises(ValueError, match="x" + suffix):
        load_backend(path, CPU)


def test_exported_files_refuse_half(made):
    with pytest.raises(ValueError, match=r"--half is for \.pt weights"):
        load_backend(made("torchscript"), CPU, half=True)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"include": ("onx",)}, "--include onx: expected all, or some of torchscript"),
        ({"weights": "none.pt"}, "weights 'none.pt' not found"),
        ({"int8": True}, "--int8 needs --data"),
        ({"nms": True, "dynamic": "batch"}, "--nms with --dynamic"),
        ({"imgsz": (1, 2, 3)}, "expected one number, or height and width"),
        ({"batch_size": 0}, "--batch-size 0: expected at least 1"),
        ({"iou_thres": 2.0}, "--iou-thres 2.0: expected at least 0, at most 1"),
        ({"images": ("nowhere",)}, "nowhere: no such file or folder"),
        ({"opset": 17}, "--opset 17"),
        ({"include": ("torchscript",), "nms": True}, "no --nms for torchscript, only for onnx, coreml"),
        ({"include": ("torch_export",), "half": True}, "no --half for torch_export"),
        ({"include": ("ncnn",), "batch_size": 2}, "ncnn takes one image at a time"),
        ({"include": ("coreml",), "batch_size": 2}, "coreml takes one image at a time"),
        ({"include": ("web",), "batch_size": 2}, "web takes one image at a time"),
        ({"include": ("web",), "nms": True}, "no --nms for web, only for onnx, coreml"),
        ({"include": ("web",), "dynamic": "size"}, "no --dynamic size for web"),
        ({"include": ("engine",)}, "engine: not made here: TensorRT builds it"),
        ({"include": ("edgetpu",)}, "edgetpu: not made here"),
    ],
)
def test_one_line_errors(folder, tmp_path, flags, words):
    with pytest.raises((ValueError, OSError), match=words.replace("(", r"\(")):
        export.main(replace(config(folder, "onnx", out=str(tmp_path)), **flags))
    assert not list(tmp_path.iterdir())


def test_a_file_that_differs_is_renamed_and_an_error(folder, tmp_path, monkeypatch):
    right = FORMATS["torchscript"].write

    def wrong(job, path):
        job.module.model[0][0].weight.mul_(1.05)
        right(job, path)

    monkeypatch.setitem(FORMATS, "torchscript", replace(FORMATS["torchscript"], write=wrong))
    with pytest.raises(ValueError, match=r"torchscript: over the limit of 0\.1 px"):
        export.main(config(folder, "torchscript", out=str(tmp_path)))
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.torchscript.failed"]


def test_what_a_converter_cannot_do_stops_no_other_format(folder, tmp_path, monkeypatch, caplog):
    def refuse(job, path):
        path.write_bytes(b"half a file")
        raise RuntimeError("operator 'odd' is unknown\nand a long trace")

    monkeypatch.setitem(FORMATS, "torchscript", replace(FORMATS["torchscript"], write=refuse))
    cfg = replace(config(folder, "torchscript", out=str(tmp_path)), include=("torchscript", "torch_export"))
    with caplog.at_level("INFO"), pytest.raises(ValueError, match=r"torchscript: operator 'odd' is unknown$"):
        export.main(cfg)
    assert "| torch_export | tiny.pt2 |" in caplog.text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.pt2", "tiny.torchscript.failed"]


def test_missing_package_names_the_command(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        ValueError,
        match=r'onnx is missing: pip install -r requirements-export\.txt, or pip install "yolov5-mobilevit\[export\]"',
    ):
        export.main(config(folder, "onnx", out=str(tmp_path)))


def test_openvino_cannot_report(made):
    """The converter and nncf send usage data to their maker if they find the package for it."""
    made("openvino")
    with pytest.raises(ImportError):
        import openvino_telemetry  # noqa: F401


def test_compare_counts_and_measures():
    limits = LIMITS["float32"]
    rows = torch.tensor([[[50.0, 50, 20, 20, 1, 0.9, 0.1], [90, 90, 10, 10, 1, 0.2, 0.8], [9, 9, 9, 9, 0.01, 1, 0]]])
    assert compare(rows, rows, limits).within(limits)
    moved = rows.clone()
    moved[0, 0, 0] += 3
    parity = compare(rows, moved, limits)
    assert (parity.box_px, parity.same, parity.total) == (3.0, 1, 2) and not parity.within(limits)
    fewer = compare(rows, rows[:, :1], limits)
    assert (fewer.same, fewer.total) == (1, 2) and not fewer.within(limits)
    assert not compare(rows, rows * float("nan"), limits).within(limits)
    places = torch.rand(60, 2, generator=torch.Generator().manual_seed(0)) * 600 + 20
    sizes = torch.tensor([1e-6, 1e-6, 9.0]).repeat(20)[:, None].expand(-1, 2)  # too small for single precision there
    scores = torch.tensor([[1, 0.9, 0.1]]).expand(60, -1)
    flat = torch.cat([places, sizes, scores], dim=1)[None]  # models with random weights find such
    parity = compare(flat, flat, limits)
    assert parity.same == parity.total > 40


def commands() -> list[str]:
    """Every line of docs/export.md that is typed into a shell."""
    text = (REPO / "docs" / "export.md").read_text(encoding="utf-8")
    return [line for block in re.findall(r"^```(?:ba)?sh\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()]


@pytest.mark.parametrize("line", [line for line in commands() if "export.py" in line])
def test_commands_of_the_page_are_understood(line):
    """Each flag on the page is a flag of export.py, and the config has the values that are written there."""
    words = shlex.split(line)[2:]
    cfg = parse_cli(ExportConfig, words)
    export.check_config(cfg)
    written: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            written[word] = []
        else:
            written[list(written)[-1]].append(word)
    values = {spelling(f.name): getattr(cfg, f.name) for f in fields(cfg)}
    for name, given in written.items():
        value = values[name]
        assert given == ([] if value is True else [str(v) for v in (value if isinstance(value, tuple) else [value])])
    unmentioned = {f.name for f in fields(cfg) if spelling(f.name) not in written}
    assert all(getattr(cfg, name) == getattr(ExportConfig(), name) for name in unmentioned)


def test_without_weights_the_newest_run_is_exported(folder, tmp_path, monkeypatch, caplog):
    weights = tmp_path / "runs" / "train" / "exp" / "weights" / "best.pt"
    weights.parent.mkdir(parents=True)
    shutil.copy(folder / "tiny.pt", weights)
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("INFO"):
        row = export.main(config(folder, "torchscript", weights=""))[0]
    assert row.path.resolve() == weights.with_suffix(".torchscript") and row.path.is_file()
    assert "--weights not given: using" in caplog.text


def test_the_page_names_every_flag_and_format():
    text = (REPO / "docs" / "export.md").read_text(encoding="utf-8")
    usual = {"batch_size", "opset", "simplify"}
    missing = [
        f.name for f in fields(ExportConfig) if f.name not in usual and "--" + f.name.replace("_", "-") not in text
    ]
    assert missing == []
    for name, form in FORMATS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        for option in ("half", "int8", "nms"):
            column = [c.strip() for c in row.split("|")][{"half": 3, "int8": 4, "nms": 5}[option]]
            assert bool(column) == (option in form.options), (name, option)


def test_compile_is_asked_of_torch_and_only_for_checkpoints(folder, made, monkeypatch, reference):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: asked.append(options) or model)
    backend = load_backend(folder / "tiny.pt", CPU, compiled=True)
    assert len(asked) == 1 and apart(backend(images_of(1, 3, 64, 64)), reference(images_of(1, 3, 64, 64))) < 1e-3
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="needs a C"):
        load_backend(folder / "tiny.pt", CPU, compiled=True)
    with pytest.raises(ValueError, match=r"--compile is for \.pt weights"):
        load_backend(made("torchscript"), CPU, compiled=True)


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_detect_and_val_run_it(folder, made, tmp_path, name):
    """Detections and mAP of the file are those of the checkpoint."""
    labels = folder / "labels"
    labels.mkdir(exist_ok=True)
    for image in (folder / "images").iterdir():
        (labels / f"{image.stem}.txt").write_text("0 0.5 0.5 0.5 0.5\n1 0.3 0.3 0.2 0.2\n")
    (folder / "data.yaml").write_text("path: .\ntrain: images\nval: images\nnames: [cat, Bär, dog]\n")
    flags = {"imgsz": 128, "device": "cpu", "threads": 1, "project": str(tmp_path), "rect": False}
    rows, metrics = [], []
    for weights in (str(folder / "tiny.pt"), str(made(name))):
        run = detect.main(
            detect.DetectConfig(
                weights=weights, source=str(folder / "images"), save_txt="yolo", save_conf=True, **flags
            )
        )
        texts = [path.read_text() for path in sorted((run / "labels").iterdir()) if path.name != "classes.txt"]
        rows.append(np.array([line.split() for text in texts for line in sorted(text.splitlines())], float))
        data = str(folder / "data.yaml")
        metrics.append(val.main(val.ValConfig(weights=weights, data=data, workers=0, plots=False, **flags)))
    assert rows[0].shape == rows[1].shape and len(rows[0]) > 10
    assert np.abs(rows[0] - rows[1]).max() < 1e-3
    assert metrics[1].coco == pytest.approx(metrics[0].coco, abs=1e-3)


def test_torchscript_makes_its_new_tensors_on_the_device_it_runs_on(tmp_path: Path) -> None:
    """The grid of the decoding is made by the graph, which names the device it was traced on."""
    model, path = tiny_model(), tmp_path / "x.torchscript"
    FORMATS["torchscript"].write(Job(model, Metadata.of(model, (64, 64), 1), torch.rand(1, 3, 64, 64)), path)
    module = torch.jit.load(path)
    move_devices(module.graph, torch.device("meta"))
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        module(torch.rand(1, 3, 64, 64))
