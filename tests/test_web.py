"""The web page in headless Chromium and examples/onnx_detect.py: both find the boxes that detect.py finds."""

from __future__ import annotations

import gzip
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
from browser import CHROMIUM, NEEDS, ORT_WEB, Browser, served
from page_driver import DROP, LABEL, STATUS, assert_same, boxes, boxes_of_pytorch, detected, page_of
from shared import shared
from tiny import NAMES, write_tiny

import export
from models.export.writers import FORMATS
from models.yolo import DetectionModel
from utils.files import REPO, size_of
from utils.images import letterbox
from utils.palette import PALETTE
from utils.proof.web import RUNTIME, copy_runtime, page_title, write_page

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
    assert len(code.splitlines()) < 155
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
        (folder / "dist" / name).write_bytes(b"x" * 1000)
    return folder


def test_page_is_complete_and_loads_nothing_from_other_hosts(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    page = tmp_path / "page"
    write_page(page, tmp_path / "model.onnx", '{"names": {}}', str(fake_package(tmp_path / "package")), "cards")
    names = {p.relative_to(page).as_posix() for p in page.rglob("*") if p.is_file()}
    sources = {p.name for p in (REPO / "examples" / "web").iterdir() if p.suffix != ".txt"}
    runtime = {f"ort/{name}".replace(".wasm", ".wasm.gz").replace("ort.wasm.gz", "ort.wasm") for name in RUNTIME}
    assert names == sources | {"files.json", "model.json", "model.onnx", "ort/LICENSE.txt"} | runtime
    for name in sources - {"icon.svg"}:  # an SVG file has to name its namespace
        assert "://" not in (page / name).read_text()
    assert gzip.decompress((page / "ort" / f"{RUNTIME[-1]}.gz").read_bytes()) == b"x" * 1000
    model, files = (json.loads((page / f"{name}.json").read_text()) for name in ("model", "files"))
    assert model["title"] == "cards" and tuple(model["palette"]) == PALETTE and model["names"] == {}
    assert set(files["files"]) == names  # all of it is kept for use without a network


def test_version_of_the_page_follows_its_content(tmp_path):
    package = str(fake_package(tmp_path / "package"))

    def version(name: str, onnx: bytes, title: str = "") -> tuple[str, str]:
        (tmp_path / "model.onnx").write_bytes(onnx)
        write_page(tmp_path / name, tmp_path / "model.onnx", "{}", package, title)
        model, files = (json.loads((tmp_path / name / f"{file}.json").read_text()) for file in ("model", "files"))
        return files["version"], model["fingerprint"]

    first = version("a", b"onnx")
    assert version("b", b"onnx") == first
    other, titled = version("c", b"other"), version("d", b"onnx", "cards")
    assert other[0] != first[0] and other[1] != first[1]
    assert titled[0] != first[0] and titled[1] == first[1]


@pytest.mark.skipif(ORT_WEB is None, reason=NEEDS)
def test_page_of_the_fast_network_is_small(tmp_path):
    weights = sum(p.numel() for p in DetectionModel(REPO / "models" / "yolov5-mobilevit-fast.yaml").parameters())
    (tmp_path / "model.onnx").write_bytes(bytes(4 * weights))
    write_page(tmp_path / "page", tmp_path / "model.onnx", "{}", str(ORT_WEB))
    assert size_of(tmp_path / "page") < 10e6


@pytest.mark.parametrize(
    ("weights", "title"),
    [("runs/train/cards/weights/best.pt", "cards"), ("best.pt", "best"), ("weights/yolov5n.pt", "yolov5n")],
)
def test_title_of_the_page_is_the_name_of_the_run_or_the_file(weights, title):
    assert page_title(Path(weights)) == title


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


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@needs_browser
def test_page_in_chromium_finds_what_pytorch_finds(site, tmp_path, chromium):
    images = sorted((site / "images").iterdir())
    with served(page_of(tmp_path / "page", site / "tiny.onnx", images)) as url:
        page = chromium.open(url, 390, 844)
        page.ready()
        page.run(DROP.replace("NAMES", json.dumps([images[0].name])))
        assert_same(detected(page, images[0].name), boxes_of_pytorch(site / "tiny.pt", images[0], 128))
        page.choose(images[1:])
        for path in images[1:]:
            wanted = boxes_of_pytorch(site / "tiny.pt", path, 128)
            page.wait(f"[...document.querySelectorAll('#thumbnails button')].some((b) => b.title === {path.name!r})")
            page.click(f"#thumbnails button[title={json.dumps(path.name)}]")
            assert_same(detected(page, path.name), wanted)
        page.run("confidence.value = 0.95; confidence.dispatchEvent(new Event('input'))")
        assert len(boxes(page)) < len(wanted)
        assert "ms network" in page.run(STATUS)
        assert not page.problems()


@needs_browser
def test_page_shows_the_camera(site, tmp_path, chromium):
    with served(page_of(tmp_path / "page", site / "tiny.onnx")) as url:
        page = chromium.open(url, 390, 844)
        page.ready()
        page.click("#camera")
        page.wait(f"{LABEL}.startsWith('Camera:')")
        assert page.run("camera.getAttribute('aria-pressed')") == "true" and len(boxes(page)) > 0
        page.click("#keep")
        page.wait("document.querySelectorAll('#thumbnails li').length === 1")
        page.click("#camera")
        name = page.run("document.querySelector('#thumbnails button').title")
        assert name.startswith("camera-") and len(detected(page, name)) > 0
        assert page.run("camera.getAttribute('aria-pressed')") == "false"
        assert page.run("video.srcObject === null")  # its light goes out
        assert not page.problems()


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_page_with_real_images(real, tmp_path, chromium, dark):
    """yolov5n.pt at desktop and phone size. With $SHOTS the screenshots are kept."""
    weights, onnx, images = real
    with served(page_of(tmp_path / "page", onnx, title="yolov5n")) as url:
        for name, image, width, height in (("desktop", images[1], 1280, 800), ("phone", images[0], 390, 844)):
            page = chromium.open(url, width, height, dark)
            page.ready()
            page.choose([image])
            assert_same(detected(page, image.name), boxes_of_pytorch(weights, image, 640))
            shot = Path(SHOTS or tmp_path) / f"page-{name}-{'dark' if dark else 'light'}.png"
            page.screenshot(shot)
            corner = cv2.imread(str(shot))[4, -4]
            assert (corner.max() < 60) if dark else (corner.min() > 200)
