"""What tests do on the web page of a model: give it images, read its boxes, find points of an image on the screen."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import ORT_WEB, Browser, Page
from tiny import write_tiny

import export
from models.runtimes.load import load_backend
from utils.images import imread
from utils.nms import NmsSettings
from utils.predict.predictor import Predictor
from utils.proof.web import write_page

CPU = torch.device("cpu")
SHOTS = os.environ.get("SHOTS", "")  # a folder in which screenshots are kept
BOXES = "[...document.querySelectorAll('#found li')].map((li) => li.dataset.box.split(' ').map(Number))"
STATUS = "document.getElementById('status').textContent"
SURE = 0.75  # a confidence at which few boxes of the tiny network are left
LABEL = "document.getElementById('picture').getAttribute('aria-label')"
DROP = """(async () => {
  const files = new DataTransfer();
  for (const name of NAMES) files.items.add(new File([await (await fetch(name)).blob()], name));
  document.dispatchEvent(new DragEvent("drop", { dataTransfer: files, bubbles: true }));
})()"""


def tiny_site(folder: Path) -> Path:
    """The folder with the tiny network, its ONNX file and three images in `images`."""
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    to_onnx(write_tiny(folder), folder / "images")
    return folder


def to_onnx(weights: Path, images: Path) -> Path:
    """The ONNX file of a checkpoint, for squares of 128 pixels."""
    cfg = export.ExportConfig(str(weights), include=("onnx",), imgsz=(128,), images=(str(images),), threads=1)
    return export.main(cfg)[0].path


def page_of(folder: Path, onnx: Path, images: Sequence[Path] = (), title: str = "") -> Path:
    """A page with the ONNX file, and images for its tests beside it."""
    write_page(folder, onnx, load_backend(onnx, CPU).meta.to_json(), str(ORT_WEB), title)
    for path in images:
        shutil.copy(path, folder / path.name)
    return folder


def boxes_of_pytorch(weights: Path, image: Path, imgsz: int, settings: NmsSettings | None = None) -> np.ndarray:
    """(n, 6) xyxy, score, class: detections of detect.py on a square canvas, which exported files have."""
    backend = load_backend(weights, CPU, threads=1)
    settings = settings or NmsSettings(max_det=1000)
    return Predictor(backend, CPU, imgsz, settings, rect=False)([imread(image)])[0].boxes.table()


def assert_same(got: Sequence[Sequence[float]], wanted: np.ndarray) -> None:
    """Boxes of the page compared with (n, 6) of PyTorch, the best first."""
    found = np.array(got)
    assert len(found) == len(wanted) > 0
    assert np.abs(found[:, :4] - wanted[:, :4]).max() < 2 and np.abs(found[:, 4] - wanted[:, 4]).max() < 0.01
    assert np.array_equal(found[:, 5], wanted[:, 5])


def boxes(page: Page) -> np.ndarray:
    """(n, 6) the boxes in the page's list: x1, y1, x2, y2, score (-1: a person's), class."""
    return np.array(page.run(BOXES)).reshape(-1, 6)


def detected(page: Page, name: str) -> np.ndarray:
    """The boxes of an image of this name, once it is on display and detected."""
    page.wait(f"{LABEL}.startsWith({name + ':'!r})")
    return boxes(page)


def count_of(page: Page, number: int) -> np.ndarray:
    """The boxes, once there are `number` of them."""
    page.wait(f"document.querySelectorAll('#found li').length === {number}", 10)
    return boxes(page)


def on_screen(page: Page, width: int, height: int, x: float, y: float) -> tuple[float, float]:
    """Where a point of an image of this size, not zoomed, is on the screen, in CSS pixels."""
    rect = page.run("(({left, top, width, height}) => [left, top, width, height])(picture.getBoundingClientRect())")
    left, top, wide, high = rect
    scale = min(wide / width, high / height)
    return left + (wide - width * scale) / 2 + x * scale, top + (high - height * scale) / 2 + y * scale


def downloaded(folder: Path, name: str) -> Path:
    """The file that the browser has written into the folder of its downloads."""
    path = folder / name
    for _ in range(400):
        if path.exists() and not list(folder.glob("*.crdownload")):
            return path
        time.sleep(0.05)
    raise TimeoutError(f"{name}: not downloaded, there are {[p.name for p in folder.iterdir()]}")


def shot(page: Page, name: str) -> None:
    """Keeps a screenshot in the folder $SHOTS, if there is one."""
    if SHOTS:
        page.screenshot(Path(SHOTS, f"page-{name}.png"))


def change(page: Page, control: str, value: object) -> None:
    """Sets a slider or a choice as a person does."""
    element = f"document.getElementById({control!r})"
    page.run(f"{element}.value = {json.dumps(value)}")
    page.run(f"['input', 'change'].forEach((kind) => {element}.dispatchEvent(new Event(kind)))")


def open_image(
    browser: Browser, url: str, image: Path, width: int = 390, height: int = 844, confidence: float | None = SURE
) -> Page:
    """A page with one image on display; `confidence` None leaves the slider where it starts."""
    page = browser.open(url, width, height)
    page.ready()
    if confidence is not None:
        change(page, "confidence", confidence)
    page.choose([image])
    detected(page, image.name)
    return page


def correct(page: Page) -> None:
    """Starts correcting, and waits until the stage has the size for it."""
    page.click("#edit")
    page.run("new Promise((go) => setTimeout(go, 300))")


def size_of(image: Path) -> tuple[int, int]:
    """Width and height."""
    height, width = imread(image).shape[:2]
    return width, height
