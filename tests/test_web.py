"""The web page in headless Chromium and examples/onnx_detect.py: both find the boxes that detect.py finds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from browser import CHROMIUM, NEEDS, ORT_WEB, Visit, browse
from shared import shared
from tiny import NAMES, write_tiny

import export
from models.export.writers import FORMATS
from models.runtimes.load import load_backend
from utils.files import REPO
from utils.images import imread, letterbox
from utils.nms import NmsSettings
from utils.predict.predictor import Predictor
from utils.proof.web import RUNTIME, copy_runtime, write_page

CPU = torch.device("cpu")
SHOTS = os.environ.get("SHOTS", "")  # a folder in which screenshots are kept


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the tiny model, its ONNX file and its page; the runtime of the page only where it is installed."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("web")
    write_tiny(folder)
    base = export.ExportConfig(
        weights=str(folder / "tiny.pt"), include=("onnx",), imgsz=(128,), images=(str(folder / "images"),), threads=1
    )
    export.main(base)
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """(a real checkpoint, its ONNX file, two photographs)."""
    pytest.importorskip("onnxscript")
    weights, places = shared("weights/yolov5n.pt"), [shared(f"datasets/images/{n}.jpg") for n in ("bus", "zidane")]
    out = tmp_path_factory.mktemp("real")
    images = tuple(map(str, places))
    export.main(export.ExportConfig(str(weights), include=("onnx",), images=images, threads=1, out=str(out)))
    return weights, out / "yolov5n.onnx", places


def boxes_of_pytorch(weights: Path, image: Path, imgsz: int) -> np.ndarray:
    """(n, 6) xyxy, score, class: detections of detect.py on a square canvas, which exported files have."""
    backend = load_backend(weights, CPU, threads=1)
    return Predictor(backend, CPU, imgsz, NmsSettings(max_det=1000), rect=False)([imread(image)])[0].boxes.table()


def test_one_file_detector_finds_the_same_boxes(site, tmp_path):
    command = [sys.executable, str(REPO / "examples" / "onnx_detect.py"), "tiny.onnx", "images", "--out", str(tmp_path)]
    result = subprocess.run([*command, "--threads", "1"], cwd=site, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    for image in sorted((site / "images").iterdir()):
        wanted = boxes_of_pytorch(site / "tiny.pt", image, 128)
        start = next(i for i, line in enumerate(lines) if line.startswith(f"images/{image.name}:"))
        assert f"{len(wanted)} boxes" in lines[start]
        for line, box in zip(lines[start + 1 :], wanted, strict=False):
            name, score, _, *xyxy = line.split()
            assert name == NAMES[int(box[5])] and abs(float(score) - box[4]) < 2e-3
            assert np.abs(np.array(xyxy, dtype=float) - box[:4]).max() < 0.1
    assert len(list(tmp_path.iterdir())) == 3


def test_one_file_detector_imports_only_what_its_docstring_names():
    code = (REPO / "examples" / "onnx_detect.py").read_text()
    assert len(code.splitlines()) < 140
    imported = {line.split()[1].split(".")[0] for line in code.splitlines() if line.startswith(("import ", "from "))}
    assert imported - set(sys.stdlib_module_names) == {"cv2", "numpy", "onnxruntime"}


@pytest.mark.parametrize(
    ("weights", "words"), [("none.onnx", "none.onnx"), ("tiny.pt", "tiny.pt"), ("x.onnx", "no metadata")]
)
def test_one_file_detector_has_errors_of_one_line(site, weights, words):
    onnx = pytest.importorskip("onnx")
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Identity", ["images"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [value("images", 1, [1])], [value("y", 1, [1])])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), site / "x.onnx"
    )
    command = [sys.executable, str(REPO / "examples" / "onnx_detect.py"), weights, "images"]
    result = subprocess.run(command, cwd=site, capture_output=True, text=True)
    assert result.returncode == 1 and result.stderr.startswith("error: ") and words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def fake_package(folder: Path) -> Path:
    (folder / "dist").mkdir(parents=True)
    for name in RUNTIME:
        (folder / "dist" / name).write_bytes(b"x")
    return folder


def test_page_is_complete_and_loads_nothing_from_other_hosts(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    write_page(tmp_path / "page", tmp_path / "model.onnx", "{}", str(fake_package(tmp_path / "package")))
    names = sorted(p.relative_to(tmp_path / "page").as_posix() for p in (tmp_path / "page").rglob("*") if p.is_file())
    assert names == sorted(
        ["app.mjs", "detector.mjs", "index.html", "model.json", "model.onnx", "ort/LICENSE.txt"]
        + [f"ort/{name}" for name in RUNTIME]
    )
    for name in ("index.html", "app.mjs", "detector.mjs"):
        assert "://" not in (tmp_path / "page" / name).read_text()


def test_package_without_the_runtime_is_named(tmp_path):
    package = fake_package(tmp_path / "package")
    (package / "dist" / RUNTIME[0]).unlink()
    with pytest.raises(FileNotFoundError, match="expected the package onnxruntime-web"):
        copy_runtime(package, tmp_path / "ort")


def test_page_is_compared_and_replaces_one_that_failed(site, tmp_path, monkeypatch):
    onnx = replace(FORMATS["onnx"], write=lambda job, path: shutil.copy(site / "tiny.onnx", path))
    monkeypatch.setitem(FORMATS, "onnx", onnx)  # written once is enough
    package = fake_package(tmp_path / "package")
    cfg = export.ExportConfig(
        weights=str(site / "tiny.pt"),
        include=("web",),
        imgsz=(128,),
        images=(str(site / "images"),),
        threads=1,
        out=str(tmp_path / "out"),
        ort_web=str(tmp_path / "nowhere"),
    )
    with pytest.raises(ValueError, match=r"web: .*nowhere.*expected the package onnxruntime-web"):
        export.main(cfg)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["tiny_web.failed"]
    row = export.main(replace(cfg, ort_web=str(package)))[0]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["tiny_web"]
    assert row.parity.same == row.parity.total > 0 and not row.failed
    assert json.loads((row.path / "model.json").read_text())["names"]["1"] == NAMES[1]


def test_letterbox_in_javascript_gives_the_same_pixels(tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    image = np.random.default_rng(0).integers(0, 256, (75, 110, 3), dtype=np.uint8)
    code = """import { letterbox } from MODULE; import { readFileSync, writeFileSync } from "fs";
      const data = new Uint8ClampedArray(readFileSync("in"));
      for (const [h, w] of [[64, 64], [96, 160], [160, 64]]) {
        const { tensor } = letterbox({ data, width: 110, height: 75 }, h, w);
        writeFileSync(`${h}x${w}`, Uint8Array.from(tensor, (v) => Math.round(v * 255)));
      }"""
    (tmp_path / "x.mjs").write_text(code.replace("MODULE", json.dumps(str(REPO / "examples" / "web" / "detector.mjs"))))
    np.dstack([image, np.full((75, 110), 255, np.uint8)]).tofile(tmp_path / "in")
    subprocess.run([node, "x.mjs"], cwd=tmp_path, check=True)
    for size in ((64, 64), (96, 160), (160, 64)):
        wanted = letterbox(image, size)[0].transpose(2, 0, 1)
        got = np.fromfile(tmp_path / f"{size[0]}x{size[1]}", np.uint8).reshape(3, *size)
        off = np.abs(got.astype(int) - wanted)
        assert off.max() <= (wanted.shape[1:] == (96, 160)) and (off > 0).mean() < 0.01  # enlarged


needs_browser = pytest.mark.skipif(CHROMIUM is None or ORT_WEB is None, reason=NEEDS)


def page_of(folder: Path, onnx: Path, images: list[Path]) -> Path:
    """A page with the ONNX file, and images for its tests beside it."""
    write_page(folder, onnx, load_backend(onnx, CPU).meta.to_json(), str(ORT_WEB))
    for path in images:
        shutil.copy(path, folder / path.name)
    return folder


def assert_same(got: list, wanted: np.ndarray) -> None:
    """Boxes of the page compared with (n, 6) of PyTorch, the best first."""
    found = np.array(got)
    assert len(found) == len(wanted) > 0
    assert np.abs(found[:, :4] - wanted[:, :4]).max() < 2 and np.abs(found[:, 4] - wanted[:, 4]).max() < 0.01
    assert np.array_equal(found[:, 5], wanted[:, 5])


@needs_browser
def test_page_in_chromium_finds_what_pytorch_finds(site, tmp_path):
    images = sorted((site / "images").iterdir())
    page = page_of(tmp_path / "page", site / "tiny.onnx", images)
    visit = Visit([path.name for path in images], camera=True)
    answer = browse(page, visit, tmp_path / "phone.png", tmp_path / "profile")
    assert "error" not in answer, answer
    for path in images:
        wanted = boxes_of_pytorch(site / "tiny.pt", path, 128)
        assert_same(answer["results"][path.name], wanted)
        assert_same(answer["dropped"][path.name], wanted)
    sure, of_all = answer["sure"]
    assert sure < of_all
    assert "ms network" in answer["status"] and answer["unlabelled"] == answer["small"] == 0 and answer["wide"] <= 390
    assert answer["camera"]["pressed"] == "true" and answer["camera"]["after"] == "false"
    assert min(answer["camera"]["size"]) > 100
    assert cv2.imread(str(tmp_path / "phone.png")).shape == (844, 390, 3)


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_page_with_real_images(real, tmp_path, dark):
    """yolov5n.pt at desktop and phone size. With $SHOTS the screenshots are kept."""
    weights, onnx, images = real
    for name, visit in {
        "desktop": Visit([images[1].name], 1280, 800, dark),
        "phone": Visit([images[0].name], 390, 844, dark, scale=2),
    }.items():
        page = page_of(tmp_path / name, onnx, images)
        shot = Path(SHOTS or tmp_path) / f"page-{name}-{'dark' if dark else 'light'}.png"
        answer = browse(page, visit, shot, tmp_path / f"profile-{name}")
        assert "error" not in answer, answer
        for image, boxes in answer["results"].items():
            assert_same(boxes, boxes_of_pytorch(weights, images[0].parent / image, 640))
        corner = cv2.imread(str(shot))[4, -4]
        assert (corner.max() < 60) if dark else (corner.min() > 200)
