"""The page in Chromium: its controls, a batch of files, videos, links, thresholds, other heads, no network."""

from __future__ import annotations

import csv
import json
import shutil

import cv2
import numpy as np
import pytest
from browser import CHROMIUM, NEEDS, ORT_WEB, Browser, served
from page_driver import (
    LABEL,
    STATUS,
    SURE,
    assert_same,
    boxes,
    boxes_of_pytorch,
    change,
    detected,
    downloaded,
    open_image,
    page_of,
    shot,
    tiny_site,
    to_onnx,
)
from PIL import Image
from test_heads import small_model

from models.weights.checkpoint import Checkpoint, save_checkpoint
from utils.nms import NmsSettings

KEPT = "navigator.serviceWorker.ready.then(() => Boolean(navigator.serviceWorker.controller))"
CONTROLS = """[...document.querySelectorAll("input, button, select")]
  .filter((e) => e.checkVisibility() && !["file", "only-checked"].includes(e.id))"""  # they have a larger label
UNNAMED = f"{CONTROLS}.filter((e) => !(e.labels?.length || e.textContent.trim() || e.ariaLabel)).map((e) => e.id)"
SMALL = f"""{CONTROLS}.filter((e) => e.offsetWidth < 44 || e.offsetHeight < 32).map((e) => e.id || e.textContent)"""
pytestmark = pytest.mark.skipif(CHROMIUM is None or ORT_WEB is None, reason=NEEDS)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return tiny_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def folder(site, tmp_path_factory):
    """The page of the tiny network."""
    return page_of(tmp_path_factory.mktemp("page") / "tiny_web", site / "tiny.onnx", title="cards")


@pytest.fixture
def url(folder):
    """The address of a server of its own, so that tests share no session."""
    with served(folder) as address:
        yield address


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("chromium"), "--host-resolver-rules=MAP plain.test 127.0.0.1")
    yield browser
    browser.close()


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
        assert page.run(UNNAMED) == [] and page.run(SMALL) == []
        assert page.run("document.documentElement.scrollWidth") <= width
    assert not page.problems()


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
    change(page, "confidence", SURE)
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
    page = open_image(chromium, url, small, 1280, 800, confidence=None)
    page.run("new Promise((go) => setTimeout(go, 200))")
    code = """(() => {
      const { width, height } = picture;
      const { data } = picture.getContext("2d").getImageData(0, 0, width, height);
      return data.filter((value, at) => at % 4 === 3 && value > 0).length / (width * height);
    })()"""
    assert page.run(code) > 0.8


def test_airplane_mode_after_the_first_visit(chromium, site, tmp_path):
    folder = page_of(tmp_path / "web", site / "tiny.onnx", title="first")
    with served(folder) as url:
        port = int(url.rstrip("/").rpartition(":")[2])
        page = chromium.open(url, 390, 844)
        page.ready()
        page.wait(KEPT)
    image = site / "images" / "1.png"
    page = open_image(chromium, url, image, confidence=None)  # no server: the port is closed
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
        page = open_image(chromium, url, image, confidence=None)
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
    image = site / "images" / "0.png"  # wider than high
    with served(folder) as url:
        page = open_image(chromium, url, image, confidence=None)
        assert_same(boxes(page), boxes_of_pytorch(tmp_path / "other.pt", image, 128))


def test_a_photo_lies_as_its_camera_was_held(chromium, url, site, tmp_path):
    image = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.open(site / "images" / "0.png").save(image, quality=100, subsampling=0, exif=exif)
    page = open_image(chromium, url, image, confidence=None)
    assert_same(boxes(page), boxes_of_pytorch(site / "tiny.pt", image, 128))


def test_a_browser_that_keeps_nothing_is_named(chromium, url, site):
    page = chromium.open("about:blank", 1280, 800)
    nothing = "Object.defineProperty(window, 'indexedDB', { value: null })"
    page.call("Page.addScriptToEvaluateOnNewDocument", source=nothing)
    page.go(url)
    page.ready()
    page.choose([site / "images" / "0.png"])
    assert len(detected(page, "0.png")) > 0
    assert "not kept for the next visit: this browser keeps nothing" in page.run(STATUS)


def test_a_missing_model_is_named(chromium, site, tmp_path):
    folder = page_of(tmp_path / "web", site / "tiny.onnx")
    (folder / "model.onnx").unlink()
    with served(folder) as url:
        page = chromium.open(url)
        page.wait(f"{STATUS} === 'The model could not be loaded: /model.onnx: 404 File not found'")


def test_the_page_reaches_no_other_host(chromium, folder):
    with served(folder) as other, served(folder) as url:
        page = chromium.open(url)
        page.ready()
        assert page.run("fetch('model.json').then((r) => r.ok)")
        elsewhere = f"fetch('{other}model.json', {{ mode: 'no-cors' }})"
        assert page.run(f"{elsewhere}.then(() => 'sent', () => 'blocked')") == "blocked"
