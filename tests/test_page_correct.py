"""Correcting boxes on the page in Chromium, by touch and by keys; the labels that it saves, and its session."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from browser import CHROMIUM, NEEDS, ORT_WEB, Browser, served
from page_driver import (
    BOXES,
    STATUS,
    boxes,
    change,
    correct,
    count_of,
    detected,
    downloaded,
    on_screen,
    open_image,
    page_of,
    shot,
    size_of,
    tiny_site,
)
from tiny import NAMES

from utils.data.data_yaml import read_data_yaml
from utils.data.labels import read_labels
from utils.data.listing import list_images

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
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


def test_corrections_by_touch_on_a_phone_are_what_the_zip_holds(chromium, url, site, tmp_path):
    chromium.downloads(tmp_path)
    image = site / "images" / "0.png"
    page = open_image(chromium, url, image)
    w, h = size_of(image)
    before = boxes(page)
    correct(page)

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

    change(page, "class", "dog")
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
    correct(page)
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
    correct(page)
    page.click("#add")
    count_of(page, count + 1)
    change(page, "class", "\0new")
    page.run("document.getElementById('class-name').value = 'zebra'")
    page.click("#class-dialog [value=ok]")
    page.wait(f"{BOXES}[{count}][5] === 3")
    page.click("#done")
    page.click("#save")
    page.click("#save-labels")
    with zipfile.ZipFile(downloaded(tmp_path, "labels.zip")) as archive:
        assert archive.read("classes.txt").decode().split() == [*NAMES.values(), "zebra"]
        assert archive.read("labels/0.txt").decode().splitlines()[-1].startswith("3 ")


def test_the_session_is_there_on_the_next_visit(chromium, url, site):
    image = site / "images" / "2.png"
    page = open_image(chromium, url, image)
    correct(page)
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


def test_a_twitch_draws_no_box(chromium, url, site):
    image = site / "images" / "0.png"
    page = open_image(chromium, url, image)
    correct(page)
    before = boxes(page)
    x, y = on_screen(page, *size_of(image), 30, 60)
    page.touch((x, y), (x + 12, y + 1), (x + 24, y + 2))
    page.touch((x, y), (x + 30, y + 30))
    drawn = count_of(page, len(before) + 1)  # of the second stroke only
    assert drawn[-1, 3] - drawn[-1, 1] > 5
