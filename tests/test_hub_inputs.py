"""The Python API: folders, iterators, videos and URLs as input; networks by name; results in notebooks."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from blobs import BlobBackend, draw
from fuzz_http import Server, head
from PIL import Image

import hubconf
import utils.predict.inputs as inputs
from models.weights.checkpoint import Checkpoint, save_checkpoint
from models.yolo import DetectionModel
from utils.boxes import Boxes
from utils.images import imwrite
from utils.predict import notebook
from utils.predict.results import Detections

REPO = Path(hubconf.__file__).parent
BOXES = [[20, 30, 80, 60], [100, 20, 120, 90]]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> hubconf.Model:
    monkeypatch.setattr(hubconf, "load_model", lambda *_, **__: BlobBackend())
    return hubconf.load("x.pt", device="cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, and a text."""
    (tmp_path / "in").mkdir()
    for k in range(3):
        imwrite(tmp_path / "in" / f"{k}.png", draw((120, 160), BOXES[: k % 3]))
    (tmp_path / "in" / "notes.md").write_text("words")
    return tmp_path / "in"


def counts(results: Detections) -> list[int]:
    return [len(rows) for rows in results.xyxy]


def test_folders_patterns_and_lists(model: hubconf.Model, folder: Path, tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text("".join(f"{path}\n" for path in sorted(folder.glob("*.png"))))
    for source in (folder, str(folder), str(folder / "*.png"), listing):
        results = model(source, size=160)
        assert results.files == ["0.png", "1.png", "2.png"] and counts(results) == [0, 1, 2]
    mixed = model([folder, folder / "2.png", draw((50, 60), [])], size=160)
    assert mixed.files == ["0.png", "1.png", "2.png", "2.png", "image4.jpg"] and counts(mixed) == [0, 1, 2, 2, 0]


def test_a_folder_too_large_or_with_videos_says_what_to_do(
    model: hubconf.Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "AT_ONCE", 2)
    with pytest.raises(ValueError, match=r"3 images, expected at most 2 at once; .*model\(iter\(paths\)\)"):
        model(folder)
    monkeypatch.setattr(inputs, "AT_ONCE", 20)
    (folder / "clip.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"clip\.mp4 is a video"):
        model(folder)


def test_an_iterator_gives_results_as_they_are_asked_for(model: hubconf.Model, folder: Path) -> None:
    seen = []

    def images() -> Iterator[str | np.ndarray]:
        for item in (str(folder / "2.png"), draw((64, 64), []), str(folder / "1.png")):
            seen.append(item)
            yield item

    results = model(images(), size=160)
    assert not seen and counts(next(results)) == [2] and len(seen) == 1
    rest = list(results)
    assert [one.files for one in rest] == [["image1.jpg"], ["1.png"]] and [counts(one) for one in rest] == [[0], [1]]


def test_a_video_gives_results_frame_by_frame(model: hubconf.Model, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25, (160, 120))
    for _ in range(4):
        writer.write(draw((120, 160), BOXES))
    writer.release()
    for source in (path, str(path)):
        results = list(model(source, size=160))
        assert [one.files[0] for one in results] == [f"clip_{k}.jpg" for k in range(1, 5)]
        assert all(one.n == 1 and one.ims[0].shape == (120, 160, 3) for one in results)
    path.write_bytes(b"words")
    with pytest.raises(ValueError, match="not a readable video"):
        list(model(path))


def test_an_image_at_a_url(model: hubconf.Model) -> None:
    data = notebook.encoded(draw((120, 160), BOXES), ".png")
    with Server(lambda connection, _: connection.sendall(head(Content_Length=len(data)) + data)) as server:
        results = model(f"http://me:secret@{server.address}/cats/a.png?token=secret", size=160)
    assert counts(results) == [2] and results.files == ["a.png"]
    with (
        Server(lambda connection, _: connection.sendall(head("404 \x1b[31mNo", Content_Length=0))) as server,
        pytest.raises(ValueError, match=r"image 1: 127_0_0_1_a\.jpg: not downloaded: HTTP error 404: \[31mNo$"),
    ):
        model([draw((64, 64), []), f"http://{server.address}/a.jpg"])
    with pytest.raises(ValueError, match="scheme 'file://'"):
        model("file:///etc/a.jpg")


# ---- networks by name -----------------------------------------------------------------------------------------------


def test_every_network_is_an_entry_of_the_hub() -> None:
    names = {path.stem for path in (REPO / "models").glob("*.yaml")}
    assert len(names) > 20 and names | {"custom"} <= set(dir(hubconf))
    with pytest.raises(AttributeError, match="hubconf has no 'yolov9', expected custom, load, or a network: yolov5"):
        hubconf.yolov9  # noqa: B018


def test_a_network_with_random_weights_and_with_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, options = "yolov5-mobilevit-xxs", {"source": "local", "device": "cpu", "trust_repo": True}
    with pytest.raises(FileNotFoundError, match=f"weights '{name}.pt' not found; .*; pretrained=False") as error:
        torch.hub.load(str(REPO), name, **options)
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)
    model = torch.hub.load(str(REPO), name, pretrained=False, classes=2, **options)
    assert model.backend.nc == 2 and model(np.zeros((64, 64, 3), np.uint8), size=64).n == 1
    torch.manual_seed(0)
    network = DetectionModel(f"{name}.yaml", nc=3)
    network.names = {0: "cat", 1: "dog", 2: "owl"}
    for file in (Path(f"{name}.pt"), tmp_path / "mine.pt"):
        save_checkpoint(file, Checkpoint.of(network))
    for pretrained in (True, tmp_path / "mine.pt"):
        assert torch.hub.load(str(REPO), name, pretrained=pretrained, **options).names == network.names
    with pytest.raises(ValueError, match="has 3 classes, expected 2"):
        hubconf.network(name, classes=2, device="cpu")


# ---- notebooks ------------------------------------------------------------------------------------------------------


def results_of(count: int, size: tuple[int, int] = (120, 160)) -> Detections:
    boxes = Boxes(np.array([[5.0, 5, 60, 60]]), np.array([0]), np.array([0.9]))
    images = [np.full((*size, 3), 90, np.uint8) for _ in range(count)]
    return Detections(images, [boxes] * count, [f"{k}.jpg" for k in range(count)], {0: "<script>\x1b"})


def test_a_cell_shows_a_few_small_images() -> None:
    page = results_of(30, (900, 1200))._repr_html_()
    assert page.count("<img") == notebook.PREVIEWED and "The first 12 of 30 images" in page
    assert "<script>" not in page and "&lt;script&gt;" in page and "\x1b" not in page and len(page) < 2_000_000
    data = results_of(5, (900, 1200))._repr_png_()
    assert data is not None
    image = Image.open(io.BytesIO(data))
    assert image.format == "PNG" and max(image.size) <= notebook.SHEET + 20 and len(data) < 2_000_000
    assert len(np.unique(np.asarray(image))) > 3  # boxes are drawn
    single = Image.open(io.BytesIO(results_of(1)._repr_png_() or b""))
    assert single.size == (160, 160)
    empty = results_of(0)
    assert empty._repr_png_() is None and "<img" not in empty._repr_html_()


def test_show_without_a_viewer_saves_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    results_of(2).show()
    assert capsys.readouterr().out == "no viewer for images here: 2 images saved in runs/detect/exp\n"
    assert sorted(path.name for path in Path("runs/detect/exp").iterdir()) == ["0.jpg", "1.jpg"]
    monkeypatch.setenv("DISPLAY", ":0")
    shown = []
    monkeypatch.setattr("utils.predict.results.ImageShow.show", lambda image: shown.append(image.size) or True)
    results_of(2).show()
    assert shown == [(160, 120)] * 2 and not capsys.readouterr().out
