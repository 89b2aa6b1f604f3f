"""The demo page in headless Chromium, and the detector of one file: both find what detect.py finds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import NAMES, write_tiny

import export
from models.backends import load_backend
from utils.config import REPO
from utils.images import imread, letterbox
from utils.predictor import Predictor
from utils.web import RUNTIME, copy_runtime, write_page

CPU = torch.device("cpu")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
ORT_WEB = next((p for p in (REPO / "node_modules" / "onnxruntime-web",) if p.is_dir()), None)
DRIVER = """<!doctype html><iframe id="page" src="index.html" width="390" height="844"></iframe><script type="module">
const frame = document.getElementById("page");
const until = async (ready) => { while (!ready()) await new Promise((go) => setTimeout(go, 50)); };
const send = (what) => fetch("result", { method: "POST", body: JSON.stringify(what) });
try {
  await until(() => frame.contentDocument?.body?.dataset.ready);
  const page = frame.contentDocument, of = (id) => page.getElementById(id);
  const found = () => [...page.querySelectorAll("#found li")].map((li) => li.dataset.box.split(" ").map(Number));
  const results = {};
  for (const name of PICTURES) {
    const blob = await (await fetch(name)).blob();
    const files = new DataTransfer();
    files.items.add(new File([blob], name));
    const before = of("picture").getAttribute("aria-label");
    of("picture").setAttribute("aria-label", "waiting");
    of("file").files = files.files;
    of("file").dispatchEvent(new Event("change"));
    await until(() => of("picture").getAttribute("aria-label") !== "waiting");
    results[name] = found();
  }
  const all = found().length;
  of("confidence").value = 0.95;
  of("confidence").dispatchEvent(new Event("input"));
  const controls = [...page.querySelectorAll("input, button")];
  const unlabelled = controls.filter((e) => !e.labels?.length && !e.textContent.trim());
  send({ results, all, sure: found().length, status: of("status").textContent, unlabelled: unlabelled.length,
         wide: page.documentElement.scrollWidth });
} catch (error) { send({ error: String(error) }); }
</script>"""


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


def boxes_of_detect(folder: Path, picture: Path) -> np.ndarray:
    backend = load_backend(folder / "tiny.onnx", CPU, threads=1)
    return Predictor(backend, CPU, 128)([imread(picture)])[0].boxes


def test_one_file_detector_finds_the_same_boxes(site, tmp_path):
    command = [sys.executable, str(REPO / "examples" / "onnx_detect.py"), "tiny.onnx", "images", "--out", str(tmp_path)]
    result = subprocess.run([*command, "--threads", "1"], cwd=site, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    for picture in sorted((site / "images").iterdir()):
        wanted = boxes_of_detect(site, picture)
        start = next(i for i, line in enumerate(lines) if line.startswith(f"images/{picture.name}:"))
        assert f"{len(wanted)} boxes" in lines[start]
        for line, box in zip(lines[start + 1 :], wanted, strict=False):
            name, score, _, *xyxy = line.split()
            assert name == NAMES[int(box[5])] and abs(float(score) - box[4]) < 2e-3
            assert np.abs(np.array(xyxy, dtype=float) - box[:4]).max() < 0.1
    assert len(list(tmp_path.iterdir())) == 3


def test_one_file_detector_needs_no_more_than_it_says():
    code = (REPO / "examples" / "onnx_detect.py").read_text()
    assert len(code.splitlines()) < 120
    imported = {line.split()[1].split(".")[0] for line in code.splitlines() if line.startswith(("import ", "from "))}
    assert imported - set(sys.stdlib_module_names) == {"cv2", "numpy", "onnxruntime"}


def fake_package(folder: Path) -> Path:
    (folder / "dist").mkdir(parents=True)
    for name in RUNTIME:
        (folder / "dist" / name).write_bytes(b"x")
    return folder


def test_page_is_whole_and_names_no_other_host(tmp_path):
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
        assert off.max() <= (wanted.shape[1:] == (96, 160)) and (off > 0).mean() < 0.01  # enlarging rounds otherwise


class Handler(SimpleHTTPRequestHandler):
    """Serves the page; what the page posts goes to `server.posted`."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
        self.server.posted = json.loads(body)
        self.server.done.set()

    def log_message(self, *_: object) -> None:
        pass


def test_page_in_chromium_finds_what_detect_finds(site, tmp_path):
    """`npm install onnxruntime-web` in the repository, and Chromium, are what it needs."""
    if CHROMIUM is None or ORT_WEB is None:
        pytest.skip("needs Chromium and node_modules/onnxruntime-web (npm install onnxruntime-web)")
    meta = load_backend(site / "tiny.onnx", CPU).meta
    page = tmp_path / "page"
    write_page(page, site / "tiny.onnx", meta.to_json(), str(ORT_WEB))
    images = sorted((site / "images").iterdir())
    for path in images:
        shutil.copy(path, page / path.name)
    (page / "driver.html").write_text(DRIVER.replace("PICTURES", json.dumps([p.name for p in images])))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(page)))
    server.done = threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    url = f"http://127.0.0.1:{server.server_address[1]}/driver.html"
    quiet = subprocess.DEVNULL
    browser = subprocess.Popen([CHROMIUM, *flags, "--remote-debugging-port=0", url], stdout=quiet, stderr=quiet)
    try:
        assert server.done.wait(90), "the page did not answer"
    finally:
        browser.terminate()
        browser.wait()
        server.shutdown()
    posted = server.posted
    assert "error" not in posted, posted
    for path in images:
        wanted = boxes_of_detect(site, path)
        got = np.array(posted["results"][path.name])
        assert len(got) == len(wanted) > 0
        assert np.abs(got[:, :4] - wanted[:, :4]).max() < 2 and np.array_equal(got[:, 5], wanted[:, 5])
    assert posted["sure"] < posted["all"]
    assert "ms network" in posted["status"] and posted["unlabelled"] == 0 and posted["wide"] <= 390
