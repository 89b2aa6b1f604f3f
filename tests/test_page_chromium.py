"""The web page in Chromium, with touches, keys, files and networks that go away: corrections, downloads, the session."""

from __future__ import annotations

import csv
import json
import os
import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from browser import CHROMIUM, NEEDS, ORT_WEB, Browser, served
from page_driver import BOXES, LABEL, STATUS, assert_same, boxes, boxes_of_pytorch, count_of, detected, downloaded
from page_driver import on_screen, page_of
from test_heads import small_model
from tiny import NAMES, write_tiny

import export
from models.weights.checkpoint import Checkpoint, save_checkpoint
from utils.data.data_yaml import read_data_yaml
from utils.data.labels import read_labels
from utils.data.listing import list_images
from utils.nms import NmsSettings

pytestmark = pytest.mark.skipif(CHROMIUM is None or ORT_WEB is None, reason=NEEDS)
SHOTS = os.environ.get("SHOTS", "")  # a folder in which screenshots are kept
SURE = "confidence.value = 0.75; confidence.dispatchEvent(new Event('input'))"  # few boxes of the tiny network
KEPT = "navigator.serviceWorker.ready.then(() => Boolean(navigator.serviceWorker.controller))"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the tiny model, its ONNX file and images."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("site")
    write_tiny(folder)
    to_onnx(folder / "tiny.pt", folder / "images")
    return folder


def to_onnx(weights: Path, images: Path) -> Path:
    cfg = export.ExportConfig(str(weights), include=("onnx",), imgsz=(128,), images=(str(images),), threads=1)
    return export.main(cfg)[0].path


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("chromium"), "--host-resolver-rules=MAP plain.test 127.0.0.1")
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def folder(site, tmp_path_factory):
    """The page of the tiny model."""
    return page_of(tmp_path_factory.mktemp("page") / "tiny_web", site / "tiny.onnx", title="cards")


@pytest.fixture
def url(folder):
    """The address of a server of its own, so that tests share no session."""
    with served(folder) as address:
        yield address


def shot(page, name: str) -> None:
    if SHOTS:
        page.screenshot(Path(SHOTS, f"page-{name}.png"))


def open_image(chromium, url: str, image: Path, width: int = 390, height: int = 844, sure: bool = True):
    """A page with one image on display."""
    page = chromium.open(url, width, height)
    page.ready()
    if sure:
        page.run(SURE)
    page.choose([image])
    detected(page, image.name)
    return page


def size_of(image: Path) -> tuple[int, int]:
    """Width and height."""
    return cv2.imread(str(image)).shape[1::-1]


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 800)], ids=["phone", "desktop"])
def test_every_control_has_a_name_and_room_for_a_thumb(chromium, url, site, width, height):
    page = chromium.open(url, width, height)
    page.ready()
    assert page.run("document.title") == "cards: cat, Bär and dog"
    assert page.run("document.querySelector('h1').textContent") == "cards finds cat, Bär and dog"
    page.choose(sorted((site / "images").iterdir()))
    page.wait("document.querySelectorAll('#thumbnails li').length === 3")
    page.wait(f"{LABEL} !== 'No image yet'")
    for opened in (
        "0",
        "edit.click()",
        "done.click(); save.click()",
        "document.getElementById('save-close').click(); keys.click()",
    ):
        page.run(opened)
        controls = "[...document.querySelectorAll('input, button, select')].filter((e) => e.checkVisibility() && e.id !== 'file')"
        named = "(e) => !(e.labels?.length || e.textContent.trim() || e.ariaLabel)"
        assert page.run(f"{controls}.filter({named}).map((e) => e.id)") == []
        small = "(e) => { const r = e.getBoundingClientRect(); return r.width < 20 || r.height < 20 || r.width * r.height < 1400; }"
        assert (
            page.run(
                f"{controls}.filter((e) => e.type !== 'checkbox').filter({small}).map((e) => e.id || e.textContent)"
            )
            == []
        )
        assert page.run("document.documentElement.scrollWidth") <= width
    assert not page.problems()


def test_corrections_by_touch_on_a_phone_are_what_the_zip_holds(chromium, url, site, tmp_path):
    chromium.downloads(tmp_path)
    image = site / "images" / "0.png"
    page = open_image(chromium, url, image)
    w, h = size_of(image)
    before = boxes(page)
    page.click("#edit")
    page.run("new Promise((go) => setTimeout(go, 300))")  # the stage has its new size

    def at(x: float, y: float) -> tuple[float, float]:
        return on_screen(page, w, h, x, y)

    def at_box(number: int, right: float, down: float) -> tuple[float, float]:
        x1, y1, x2, y2 = boxes(page)[number, :4]
        return at(x1 + right * (x2 - x1), y1 + down * (y2 - y1))

    page.touch(at(20, 70), at(40, 80), at(60, 92))  # draws a box
    drawn = count_of(page, len(before) + 1)
    new = len(before)
    assert np.abs(drawn[new, :4] - [20, 70, 60, 92]).max() < 1.5 and drawn[new, 4] == -1
    np.testing.assert_allclose(drawn[:new], before, atol=1e-3)
    shot(page, "correcting")

    page.touch(at_box(new, 0.5, 0.5), at(30, 60), at(50, 71))  # moves it, by its middle
    page.wait(f"{BOXES}[{new}][1] < 65")
    moved = boxes(page)[new, :4]
    assert np.abs(moved - [30, 60, 70, 82]).max() < 1.5

    page.touch(at_box(new, 1, 1), at(85, 88), at(100, 92))  # resizes it, by its lower right corner
    page.wait(f"{BOXES}[{new}][2] > 90")
    resized = boxes(page)[new, :4]
    assert np.abs(resized - [30, 60, 100, 92]).max() < 1.5

    page.run(
        "document.getElementById('class').value = 'dog'; document.getElementById('class').dispatchEvent(new Event('change'))"
    )
    page.wait(f"{BOXES}[{new}][5] === 2")

    page.click("#found li button")  # selects the model's best box
    page.click("#delete")
    left = count_of(page, new)
    np.testing.assert_allclose(left[:-1], before[1:], atol=1e-3)
    page.click("#undo")
    count_of(page, new + 1)
    page.click("#found li button")
    page.click("#delete")
    left = count_of(page, new)
    page.click("#done")
    assert "checked" in page.run(STATUS) and page.run("confidence.disabled")

    page.click("#save")
    shot(page, "saving")
    page.click("#save-labels")
    with zipfile.ZipFile(downloaded(tmp_path, "labels.zip")) as archive:
        assert archive.testzip() is None
        assert set(archive.namelist()) == {"classes.txt", "data.yaml", "images/0.png", "labels/0.txt"}
        assert archive.read("images/0.png") == image.read_bytes()
        assert archive.read("classes.txt").decode().split() == list(NAMES.values())
        rows = np.array([line.split() for line in archive.read("labels/0.txt").decode().splitlines()], float)
        archive.extractall(tmp_path / "set")
    assert len(rows) == len(left) and np.array_equal(rows[:, 0], left[:, 5])
    centers, sides = rows[:, 1:3] * (w, h), rows[:, 3:] * (w, h)
    np.testing.assert_allclose(np.hstack([centers - sides / 2, centers + sides / 2]), left[:, :4], atol=1e-3)
    data = read_data_yaml(tmp_path / "set" / "data.yaml")  # as train.py reads it
    assert list(data.names.values()) == list(NAMES.values()) and len(list_images(data.split("train"))) == 1
    read = read_labels(tmp_path / "set" / "labels" / "0.txt", data.nc)
    assert not read.errors and not read.warnings and np.array_equal(read.label, left[:, 5])
    assert not page.problems()


def test_two_fingers_zoom_and_change_no_box(chromium, url, site):
    image = site / "images" / "1.png"
    page = open_image(chromium, url, image)
    page.click("#edit")
    page.run("new Promise((go) => setTimeout(go, 300))")
    before, (w, h) = boxes(page), size_of(image)
    center = on_screen(page, w, h, w / 2, h / 2)
    pairs = [tuple((center[0] + side * reach, center[1]) for side in (-1, 1)) for reach in (30, 50, 70, 90)]
    page.pinch(*pairs)
    assert np.array_equal(boxes(page), before) and "checked" not in page.run(STATUS)
    page.touch((center[0] - 30, center[1] - 30), (center[0], center[1]), (center[0] + 30, center[1] + 30))
    drawn = count_of(page, len(before) + 1)[-1]
    unzoomed = 60 / (page.run("picture.clientWidth") / w)
    assert drawn[2] - drawn[0] == pytest.approx(unzoomed / 3, rel=0.1)  # 180 px between the fingers, 60 at first


def test_corrections_by_keys(chromium, url, site):
    page = open_image(chromium, url, site / "images" / "0.png", 1280, 800)
    before = boxes(page)
    page.press("e")
    page.press("n")
    page.press("ArrowRight")
    page.press("ArrowDown", "Shift")
    page.press("ArrowLeft", "Alt")
    moved = page.wait(f"{BOXES}[0][4] === -1 && {BOXES}")[0]
    x1, y1, x2, y2 = before[0, :4]
    w, h = size_of(site / "images" / "0.png")
    right, down = min(1, w - x2), min(10, h - y2)
    np.testing.assert_allclose(moved[:4], [x1 + right, y1 + down, x2 + right - 1, y2 + down], atol=1e-3)
    page.press("3")
    page.wait(f"{BOXES}[0][5] === 2")
    page.press("Delete")
    count_of(page, len(before) - 1)
    page.press("z", "Control")
    count_of(page, len(before))
    page.press("a")
    count_of(page, len(before) + 1)
    page.press("Enter")
    assert not page.run("document.body.classList.contains('correcting')")
    page.click("#reset")
    np.testing.assert_allclose(count_of(page, len(before)), before, atol=1e-3)
    assert not page.problems()


def test_a_class_that_the_model_does_not_know(chromium, url, site, tmp_path):
    chromium.downloads(tmp_path)
    page = open_image(chromium, url, site / "images" / "0.png")
    count = len(boxes(page))
    page.click("#edit")
    page.click("#add")
    count_of(page, count + 1)
    page.run(
        """{ const list = document.getElementById('class'); list.value = '\\0new'; list.dispatchEvent(new Event('change')); }"""
    )
    page.run(
        "document.getElementById('class-name').value = 'zebra'; document.querySelector('#class-dialog [value=ok]').click()"
    )
    page.wait(f"{BOXES}[{count}][5] === 3")
    page.click("#done")
    page.click("#save")
    page.click("#save-labels")
    with zipfile.ZipFile(downloaded(tmp_path, "labels.zip")) as archive:
        assert archive.read("classes.txt").decode().split() == [*NAMES.values(), "zebra"]
        assert archive.read("labels/0.txt").decode().splitlines()[-1].startswith("3 ")


def test_a_batch_its_table_and_its_pictures(chromium, url, site, tmp_path):
    chromium.downloads(tmp_path / "out")
    images = sorted((site / "images").iterdir())
    formula = tmp_path / "=1.png"
    shutil.copy(images[0], formula)
    text = tmp_path / "notes.png"
    text.write_text("no image")
    page = chromium.open(url, 1280, 800)
    page.ready()
    page.choose([*images, formula, text])
    page.wait("document.querySelectorAll('#thumbnails li').length === 4")
    assert "notes.png: no image or video" in page.wait(f"{STATUS}.includes('notes.png') && {STATUS}")
    page.wait("[...document.querySelectorAll('#thumbnails span')].every((e) => /^[0-9]+$/.test(e.textContent))")
    page.click("#save")
    page.click("#save-csv")
    with downloaded(tmp_path / "out", "boxes.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["image"] for row in rows} == {*(path.name for path in images), "'=1.png"}
    for path in images:
        own = [
            [float(row[key]) for key in ("x1", "y1", "x2", "y2", "confidence", "class")]
            for row in rows
            if row["image"] == path.name
        ]
        assert_same(own, boxes_of_pytorch(site / "tiny.pt", path, 128))
    page.run(SURE)
    page.click(f"#thumbnails button[title={json.dumps(images[1].name)}]")
    detected(page, images[1].name)
    page.click("#save")
    page.click("#save-image")
    saved = cv2.imread(str(downloaded(tmp_path / "out", "1-boxes.png")))
    assert max(saved.shape) == 960  # enlarged, so that its labels can be read
    plain = cv2.resize(cv2.imread(str(images[1])), saved.shape[1::-1])
    assert (np.abs(saved.astype(int) - plain) > 60).any(axis=2).mean() > 0.005  # there are boxes on it


def test_a_row_of_the_list_highlights_its_box(chromium, url, site):
    page = open_image(chromium, url, site / "images" / "0.png", 1280, 800)
    image = "picture.toDataURL()"
    page.run("new Promise((go) => setTimeout(go, 200))")
    plain = page.run(image)
    page.click("#found li:nth-child(2) button")
    page.wait("document.querySelector('#found li:nth-child(2)').classList.contains('marked')")
    page.wait(f"{image} !== {plain!r}")
    shot(page, "marked")
    page.click("#found li:nth-child(2) button")
    page.wait(f"{image} === {plain!r}")


def test_small_images_fill_the_stage(chromium, url, tmp_path):
    small = tmp_path / "small.png"
    cv2.imwrite(str(small), np.full((24, 32, 3), 200, np.uint8))
    page = open_image(chromium, url, small, 1280, 800, sure=False)
    page.run("new Promise((go) => setTimeout(go, 200))")
    code = """(() => { const { width, height } = picture; const data = picture.getContext('2d').getImageData(0, 0, width, height).data;
      let filled = 0; for (let at = 3; at < data.length; at += 4) filled += data[at] > 0; return filled / (width * height); })()"""
    assert page.run(code) > 0.8


def test_the_session_is_there_on_the_next_visit(chromium, url, site):
    image = site / "images" / "2.png"
    page = open_image(chromium, url, image)
    page.click("#edit")
    page.click("#add")
    page.click("#done")
    wanted = boxes(page)
    assert wanted[-1, 4] == -1
    page.wait("indexedDB.databases().then((all) => all.length === 1)")
    again = chromium.open(url, 390, 844)
    again.ready()
    np.testing.assert_allclose(detected(again, image.name), wanted, atol=1e-3)
    assert again.run("confidence.value") == "0.75" and "checked" in again.run(STATUS)
    again.run("window.confirm = () => true; clear.click()")
    again.wait("document.body.classList.contains('empty')")
    empty = chromium.open(url, 390, 844)
    empty.ready()
    assert empty.run("document.body.classList.contains('empty')")


def test_boxes_are_right_goes_to_the_next_image(chromium, url, site, tmp_path):
    chromium.downloads(tmp_path)
    page = chromium.open(url, 390, 844)
    page.ready()
    page.choose(sorted((site / "images").iterdir()))
    detected(page, "0.png")
    page.wait("document.querySelectorAll('#thumbnails li').length === 3")
    page.click("#confirm")
    detected(page, "1.png")
    assert page.run("document.querySelectorAll('#thumbnails .checked').length") == 1
    page.click("#save")
    assert page.run("document.getElementById('only-checked').checked")
    page.click("#save-labels")
    with zipfile.ZipFile(downloaded(tmp_path, "labels.zip")) as archive:
        assert [name for name in archive.namelist() if name.startswith("images/")] == ["images/0.png"]


def test_airplane_mode_after_the_first_visit(chromium, site, tmp_path):
    folder = page_of(tmp_path / "web", site / "tiny.onnx", title="first")
    with served(folder) as url:
        port = int(url.rstrip("/").rpartition(":")[2])
        page = chromium.open(url, 390, 844)
        page.ready()
        page.wait(KEPT)
    image = site / "images" / "1.png"
    page = open_image(chromium, url, image, sure=False)  # no server: the port is closed
    assert_same(boxes(page), boxes_of_pytorch(site / "tiny.pt", image, 128))
    assert page.run("crossOriginIsolated")  # so the network has several threads, which servers allow with headers only

    shutil.rmtree(folder)
    page_of(folder, site / "tiny.onnx", title="second")
    with served(folder, port):
        newer = chromium.open(url)
        newer.ready()
        assert newer.run("document.title").startswith("second:")
    offline = chromium.open(url)
    offline.ready()
    assert offline.run("document.title").startswith("second:")
    assert offline.run("caches.keys().then((names) => names.length)") == 2  # the first one is gone

    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "index.html").write_text("<title>another site</title>")
    with served(folder, port):
        other = chromium.open(url)
        other.wait("document.title === 'another site'")
        assert other.run("navigator.serviceWorker.getRegistrations().then((all) => all.length)") == 0


def test_the_camera_button_says_why_it_cannot_work(chromium, folder):
    with served(folder) as url:
        page = chromium.open(url.replace("127.0.0.1", "plain.test"), 390, 844)  # http, and not localhost
        page.ready()
        assert page.run("camera.disabled") and "needs https" in page.run(
            "document.getElementById('camera-note').textContent"
        )
        shot(page, "empty-phone")


def test_a_linked_image_and_one_of_another_server(chromium, site, tmp_path):
    images = sorted((site / "images").iterdir())
    with served(page_of(tmp_path / "web", site / "tiny.onnx", images)) as url:
        page = chromium.open(f"{url}?image=1.png")
        assert_same(detected(page, "1.png"), boxes_of_pytorch(site / "tiny.pt", images[1], 128))
        page.go(f"{url}?image=http://example.test/a.png")
        assert "another server" in page.wait(f"{STATUS}.includes('example.test') && {STATUS}")


def test_a_video_file_plays_and_gives_frames(chromium, url, site, tmp_path):
    clip = tmp_path / "clip.webm"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"VP80"), 10, (128, 96))
    if not writer.isOpened():
        pytest.skip("OpenCV writes no webm here")
    image = cv2.imread(str(site / "images" / "0.png"))
    for i in range(20):
        writer.write(np.ascontiguousarray(np.roll(image, 2 * i, axis=1)))
    writer.release()
    page = chromium.open(url, 390, 844)
    page.ready()
    page.choose([clip])
    assert len(detected(page, "clip.webm")) > 0
    page.wait("Number(seek.value) > 0")
    page.click("#play")
    page.wait("video.paused && play.textContent === 'Play'")
    shot(page, "video")
    page.click("#keep")
    name = page.wait("document.querySelector('#thumbnails button')?.title")
    assert name.startswith("clip-") and name.endswith("s.jpg")
    page.click("#camera")  # Stop
    assert len(detected(page, name)) > 0
    assert not page.problems()


@pytest.mark.parametrize("threshold", [None, 0.613, 0.02])
def test_the_threshold_of_the_model_is_used(chromium, site, tmp_path, threshold):
    folder = page_of(tmp_path / "web", site / "tiny.onnx")
    model = json.loads((folder / "model.json").read_text()) | ({"conf_threshold": threshold} if threshold else {})
    (folder / "model.json").write_text(json.dumps(model))
    image = site / "images" / "0.png"
    with served(folder) as url:
        page = open_image(chromium, url, image, sure=False)
        wanted = boxes_of_pytorch(site / "tiny.pt", image, 128, NmsSettings(threshold or 0.25, max_det=10_000))
        assert_same(boxes(page), wanted)
        assert ("own threshold" in page.run("document.getElementById('confidence-note').textContent")) == bool(
            threshold
        )


@pytest.mark.parametrize(("head", "position"), [("Decoupled", "top-left"), ("DetectV8", "center")])
def test_other_heads_and_the_other_letterbox(chromium, site, tmp_path, head, position):
    model = small_model(head, letterbox=position)
    save_checkpoint(tmp_path / "other.pt", Checkpoint.of(model))
    folder = page_of(tmp_path / "web", to_onnx(tmp_path / "other.pt", site / "images"))
    with served(folder) as url:
        for image in sorted((site / "images").iterdir())[1:]:
            page = open_image(chromium, url, image, sure=False)
            assert_same(boxes(page), boxes_of_pytorch(tmp_path / "other.pt", image, 128))
