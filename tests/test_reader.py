"""One decoder: the scan, the loaders, the Python API and detect.py see the same pixels, upright, or give one line."""

from __future__ import annotations

import io
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from data_sets import noise, rectangles, to_boxes, write_set
from PIL import Image, PngImagePlugin
from shared import shared

from hubconf import gather
from utils.data.data_yaml import read_data_yaml
from utils.data.dataset import Augmentation, DetectionDataset
from utils.data.loader import build_loader
from utils.data.scan import scan
from utils.decode import decode, from_pillow, pillow_formats, probe, to_uint8, turned, turned_boxes
from utils.hyp import Hyp
from utils.images import imread, imwrite
from utils.predict.frames import Broken, Frame
from utils.predict.sources import open_source

IMAGE = rectangles((24, 40), to_boxes([0, 2, 3, 12, 9], [1, 20, 12, 38, 22]), [(250, 60, 20), (10, 90, 240)])
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{}"/></x:xmpmeta>'


def encoded(kind: str, orientation: int) -> bytes:
    """IMAGE in the camera's frame with an orientation in EXIF, in the TIFF tag or in XMP."""
    file, picture, exif, form = io.BytesIO(), Image.fromarray(IMAGE), Image.Exif(), kind.partition("-")[0]
    exif[0x0112] = orientation
    xmp = XMP.format(orientation)
    if kind == "PNG-xmp":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp)
        picture.save(file, form, pnginfo=info)
    elif kind.endswith("-xmp"):
        picture.save(file, form, xmp=xmp.encode(), **({"lossless": True} if form == "WEBP" else {"quality": 100}))
    else:
        picture.save(file, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "JPEG-xmp", "PNG-xmp", "WEBP-xmp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_everybody_turns_an_image_the_same_way(kind: str, orientation: int, tmp_path: Path) -> None:
    data = encoded(kind, orientation)
    path = tmp_path / f"a.{kind.partition('-')[0].lower()}"
    path.write_bytes(data)
    upright = turned(IMAGE, orientation)
    image = imread(path)
    assert image.shape == upright.shape and np.abs(image.astype(int) - upright).mean() < (20 if "JPEG" in kind else 0.1)
    assert probe(data, path).size == image.shape[:2] == tuple(scan([path], 1).sizes[0])
    assert probe(data, path).orientation == orientation
    by_path, by_pillow = gather([str(path), Image.open(path)])[0]
    assert np.array_equal(by_path, image) and np.array_equal(by_pillow, image)
    (frame,) = open_source(str(path))
    assert isinstance(frame, Frame) and np.array_equal(frame.image, image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_with_the_image(orientation: int) -> None:
    image = rectangles((24, 40), to_boxes([0, 4, 6, 20, 12]), gray=0)
    h, w = (40, 24) if orientation > 4 else (24, 40)
    ys, xs = np.nonzero(turned(image, orientation)[..., 0])
    box = turned_boxes(np.array([[4 / 40, 6 / 24, 20 / 40, 12 / 24]]), orientation)[0] * [w, h, w, h]
    np.testing.assert_allclose(box, [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp"])
def test_ordinary_files_have_the_pixels_that_opencv_gives(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    imwrite(path, noise((33, 47), 1))
    assert np.array_equal(imread(path), cv2.imread(str(path))[..., ::-1])


GRAY = np.linspace(0, 1, 24 * 40).reshape(24, 40)
DEEP = {
    "a.png": (GRAY * 65535).astype(np.uint16),
    "b.tif": (GRAY * 65535).astype(np.uint16),
    "c.tif": GRAY.astype(np.float32),
    "d.tif": (GRAY * 255).astype(np.float32),
    "e.tif": (GRAY * 20 + 290).astype(np.float32),
    "f.tif": (GRAY * 255).astype(np.int32),
    "g.tif": (GRAY * 65535).astype(np.int32),
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_images_are_converted_by_one_rule(name: str, tmp_path: Path) -> None:
    Image.fromarray(DEEP[name]).save(tmp_path / name)
    image = imread(tmp_path / name)
    assert np.abs(image[..., 0] - GRAY * 255).max() <= 1.01 and (image == image[..., :1]).all()
    assert np.array_equal(from_pillow(Image.open(tmp_path / name)), image)
    assert len(scan([tmp_path / name], 1)) == 1


def test_numbers_that_are_none_are_black() -> None:
    assert to_uint8(np.array([np.nan, np.inf, 0.0, 1.0, 0.5])).tolist() == [0, 0, 0, 255, 128]
    assert to_uint8(np.array([7.0, 7.0])).tolist() == [7, 7] and not to_uint8(np.zeros((0, 3))).size
    with pytest.raises(ValueError, match="no pixel is a finite number"):
        to_uint8(np.full(3, np.nan))
    assert to_uint8(np.array([-5.0, 5.0, 15.0])).tolist() == [0, 128, 255]
    assert to_uint8(np.array([True, False])).tolist() == [255, 0]


def test_floats_of_the_python_api() -> None:
    image = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0))
    plain, half = (gather(image.to(dtype))[0][0] for dtype in (torch.float32, torch.bfloat16))
    assert np.abs(plain.astype(int) - half).max() <= 1
    (over,) = gather(np.full((8, 8, 3), 1.0000001))[0]
    assert (over == 255).all()
    with pytest.raises(ValueError, match=r"floats in 0\.\.2"):
        gather(np.array([0.0, 2.0] * 24).reshape(4, 4, 3))


def formats() -> dict[str, bytes]:
    made = {}
    for name in ("TGA", "PCX", "ICO", "AVIF", "JPEG2000", "PPM", "GIF"):
        if name in pillow_formats():
            file = io.BytesIO()
            Image.fromarray(noise((32, 32), 3)).save(file, name)
            made[name] = file.getvalue()
    return made


@pytest.mark.parametrize("form", formats())
def test_other_formats_under_jpg_are_read_everywhere(form: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(formats()[form])
    assert imread(path).shape == (32, 32, 3) and tuple(scan([path], 1).sizes[0]) == (32, 32)
    assert DetectionDataset(scan([path], 1), 32, 32)[0, 0].image.shape == (3, 32, 32)


def test_a_png_without_its_last_chunk_is_whole(tmp_path: Path) -> None:
    imwrite(tmp_path / "a.png", noise((30, 30), 1))
    data = (tmp_path / "a.png").read_bytes()
    assert np.array_equal(decode(data[: data.rindex(b"IEND") - 4], "a.png").image, noise((30, 30), 1))
    with pytest.raises(ValueError, match=r"^a\.png: not a readable image"):
        decode(data[: len(data) // 2], "a.png")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n10 10 moveto\nshowpage\n"
HUGE = b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01" + bytes(40)


@pytest.mark.parametrize("data", [b"", b"no image", EPS, HUGE, b"\x89PNG\r\n\x1a\n" + bytes(30), b"BM" + bytes(60)])
def test_what_is_no_image_is_one_line_with_its_name(data: bytes, tmp_path: Path, caplog) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    for reader in (imread, lambda p: probe(p.read_bytes(), p)):
        with pytest.raises(ValueError, match=r"a\.jpg: not a readable image") as caught:
            reader(path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    (broken,) = open_source(str(path))
    assert isinstance(broken, Broken) and "a.jpg" in broken.reason
    imwrite(tmp_path / "b.jpg", IMAGE)
    assert len(scan([path, tmp_path / "b.jpg"], 1)) == 1
    assert "a.jpg: left out, not a readable image" in caplog.text


def test_random_damage_is_judged_alike(tmp_path: Path) -> None:
    """What the scan admits can be decoded, at the size it said; no other exception than ValueError."""
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "TIFF-xmp"):
        whole = encoded(kind, 6) if kind != "TIFF-xmp" else formats()["TGA"]
        for _ in range(60):
            data = bytearray(whole)
            for at in rng.integers(0, len(data), rng.integers(1, 6)):
                data[at] = rng.integers(0, 256)
            data = bytes(data[: rng.integers(1, len(data) + 1)] if rng.random() < 0.3 else data)
            try:
                info = probe(data, "a")
            except ValueError:
                with pytest.raises(ValueError):
                    decode(data, "a")
            else:
                assert decode(data, "a").image.shape[:2] == info.size


def test_a_suffix_without_an_encoder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"a\.xyz: no encoder for \.xyz images"):
        imwrite(tmp_path / "a.xyz", IMAGE)
    with pytest.raises(OSError, match=r"b\.webp: (no encoder|could not encode)"):
        imwrite(tmp_path / "b.webp", np.zeros((20000, 2, 3), np.uint8))


def test_the_shared_cases_of_images(tmp_path: Path) -> None:
    for case in ("d1_exif_tif", "d1_xmp_jpg", "d1_xmp_png", "d2", "d3", "d4"):
        folder = shared(f"cases/train/{case}/images")
        for path in folder.rglob("*.*"):
            assert probe(path.read_bytes(), path).size == imread(path).shape[:2]
    deep = shared("cases/detect/c10_deep")
    for name in ("float01.tif", "float255.tif", "grey16.png", "grey16.tif"):
        assert np.abs(imread(deep / name).astype(int) - imread(deep / "grey8.png")).max() <= 1
        assert np.array_equal(gather(Image.open(deep / name))[0][0], imread(deep / name))


# ---- images that break after the scan -------------------------------------------------------------------------------


def make(root: Path, count: int = 6) -> list[Path]:
    write_set(
        root, [noise((40, 50), i) for i in range(count)], [to_boxes([i % 2, 5, 5, 20, 30]) for i in range(count)], "ab"
    )
    return sorted((root / "images").iterdir())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache", ["", "ram", "disk"])
def test_an_image_that_breaks_is_skipped_in_val_and_replaced_in_train(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int, cache: str
) -> None:
    images = make(tmp_path)
    data = read_data_yaml(tmp_path / "data.yaml").scan("train")
    images[1].unlink()
    images[4].write_bytes(b"no image any more")
    imwrite(images[2], noise((30, 30), 9))  # another size
    val = build_loader(DetectionDataset(data, 64, 32, rect=True, batch_size=3, cache=cache), 3, workers)
    for _ in range(2):
        assert sorted(row for batch in val for row in batch.rows) == [0, 3, 5]
    train = build_loader(
        DetectionDataset(data, 64, 32, augment=Augmentation(Hyp()), cache=cache), 3, workers, shuffle=True
    )
    first, second = (list(train) for _ in range(2))
    assert sum(len(batch.images) for batch in first) == 6
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, second, strict=True))
    if workers == 0:
        for name in (images[1].name, images[2].name, images[4].name):
            lines = [r.getMessage() for r in caplog.records if name in r.getMessage()]
            assert len(lines) == 2 and "skipped" in lines[0] and "replaced" in lines[1]


def test_if_all_images_break_a_run_ends_with_one_line(tmp_path: Path) -> None:
    images = make(tmp_path, 2)
    data = read_data_yaml(tmp_path / "data.yaml").scan("train")
    for image in images:
        image.unlink()
    with pytest.raises(ValueError, match="this and all other images"):
        DetectionDataset(data, 64, 32, augment=Augmentation(Hyp()))[0, 0]
    (batch,) = build_loader(DetectionDataset(data, 64, 32), 4)
    assert batch.images.shape == (0, 3, 1, 1) and batch.rows == [] and len(batch.targets) == 0


# ---- images at URLs -------------------------------------------------------------------------------------------------


def test_an_image_at_a_url_is_turned_and_is_an_image(tmp_path: Path) -> None:
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers.get("Authorization"))
            if self.path.endswith("gone.jpg"):
                self.send_error(404)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(encoded("JPEG", 6))

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    port = server.server_address[1]
    (frame,) = open_source(f"http://joe:secret@127.0.0.1:{port}/cam/a.JPG")
    assert isinstance(frame, Frame) and frame.video is None and frame.image.shape == (40, 24, 3)
    assert frame.path.name == "127_0_0_1_cam_a.jpg" and asked == ["Basic am9lOnNlY3JldA=="]
    (gone,) = open_source(f"http://joe:secret@127.0.0.1:{port}/gone.jpg")
    assert isinstance(gone, Broken) and "404" in gone.reason and "secret" not in gone.reason
    server.shutdown()
