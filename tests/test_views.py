"""What makes the loader fast changes no law: windows for warps, images out of view, small decoding, strips, buffers."""

from __future__ import annotations

import io
import math
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from data_sets import noise, to_boxes, write_set
from PIL import Image
from torch import nn

from tools import bench_loader
from utils.boxes import Boxes
from utils.data import dataset as dataset_module
from utils.data import loader as loader_module
from utils.data.augmentations import STEPS, finished, mosaic, random_affine, recolored
from utils.data.dataset import Augmentation, DetectionDataset
from utils.data.image_cache import DiskCache, RecentImages, key_of
from utils.data.listing import list_images
from utils.data.loader import build_loader, collate
from utils.data.scan import Scan, scan
from utils.data.views import Canvas, Region, View, random_view
from utils.decode import decode, decode_small
from utils.hyp import Hyp
from utils.image_header import jpeg_head
from utils.images import PAD, imread, imread_small, place, resize
from utils.train.optim import ModelEMA

STILL = Hyp(hsv_h=0, hsv_s=0, hsv_v=0, translate=0, scale=0, fliplr=0, mosaic=0)
NONE = to_boxes()
GRAY = (PAD, PAD, PAD)


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """An image whose neighbors are alike, as those of photographs."""
    return cv2.resize(noise((height // 8 + 2, width // 8 + 2), seed), (width, height), interpolation=cv2.INTER_CUBIC)


def jpeg(image: np.ndarray, orientation: int = 1, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=95, exif=exif, **options)
    return data.getvalue()


def photo_set(root: Path, sizes: list[tuple[int, int]], suffix: str = ".jpg") -> Scan:
    images = [smooth(*size, seed) for seed, size in enumerate(sizes)]
    boxes = [to_boxes([k % 2, 5, 5, 25 + k, 20 + k]) for k in range(len(sizes))]
    write_set(root, images, boxes, ["a", "b"], "train", suffix)
    return scan(list_images([root / "images" / "train"]), 2)


# ---- views ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_a_window_is_the_warp_of_its_matrix(seed: int) -> None:
    """Within one gray level; at the sample's edge a window repeats its last pixels, so that is left out."""
    rng, size = np.random.default_rng(seed), (150 + 7 * seed, 210 - 5 * seed)
    canvas = Canvas((200, 240), [smooth(120, 150, seed), smooth(90, 130, seed + 50)], [(-20, 30), (130, 100)])
    boxes = to_boxes([0, 20, 40, 60, 90], [1, 140, 110, 190, 170])
    view = random_view(canvas.size, size, Hyp(scale=0.5, translate=0.2), rng)
    assert view.window is not None
    image, moved = view.of(canvas, boxes)
    warped, same = View(size, view.matrix, view.zoom, None).of(canvas, boxes)
    assert image.shape == warped.shape == (*size, 3)
    assert np.abs(image.astype(int) - warped)[1:-1, 1:-1].max() <= 1
    np.testing.assert_allclose(moved.xyxy, same.xyxy)
    assert len(moved) and moved.label.tolist() == same.label.tolist()


@pytest.mark.parametrize("seed", range(20))
def test_a_window_is_the_random_view_in_whole_pixels(seed: int) -> None:
    """A vanishing rotation asks for the exact view from the same random numbers."""
    hyp, canvas, size = Hyp(scale=0.5, translate=0.1), (1280, 1280), (640, 640)
    window = random_view(canvas, size, hyp, np.random.default_rng(seed))
    exact = random_view(canvas, size, replace(hyp, degrees=1e-12), np.random.default_rng(seed))
    assert exact.window is None and window.window is not None
    corners = np.array([[0, 0, 1], [640, 0, 1], [640, 640, 1], [0, 640, 1]], float).T
    a, b = (np.linalg.inv(view.matrix) @ corners for view in (window, exact))
    assert np.abs(a - b).max() <= 1.0  # half a pixel of the window's side, half of its place
    np.testing.assert_allclose(a[:2].round(6) % 1, 0)
    assert math.isclose(window.zoom, exact.zoom, rel_tol=0.01)


@pytest.mark.parametrize("changes", [{"degrees": 5.0}, {"shear": 2.0}, {"perspective": 0.0005}])
def test_what_is_no_window_is_warped(changes: dict[str, float]) -> None:
    image = smooth(160, 160)
    view = random_view((160, 160), (80, 80), Hyp(**changes), np.random.default_rng(3))
    assert view.window is None and view.shows((10_000, 0), (5, 5))
    got, _ = random_affine(image, NONE, (80, 80), Hyp(**changes), np.random.default_rng(3))
    shift = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
    expected = cv2.warpPerspective(
        image, np.linalg.inv(shift) @ view.matrix @ shift, (80, 80), borderMode=cv2.BORDER_CONSTANT, borderValue=GRAY
    )
    assert np.abs(got.astype(int) - expected).max() <= 6  # the warps round coordinates to 1/32 pixel in different ways


def test_very_small_zooms_are_warped() -> None:
    kinds = set()
    for seed in range(40):
        view = random_view((160, 160), (80, 80), Hyp(scale=0.9), np.random.default_rng(seed))
        kinds.add(view.window is None)
        if view.window:
            assert view.window.width <= 160 and view.window.height <= 160
    assert kinds == {True, False}


def test_a_canvas_is_painted_where_it_is_looked_at() -> None:
    image, other = smooth(30, 40), smooth(20, 20, 1)
    canvas = Canvas((60, 70), [image, other], [(-5, 10), (55, 45)])
    whole = np.full((60, 70, 3), PAD, np.uint8)
    whole[10:40, :35] = image[:, 5:]
    whole[45:, 55:] = other[:15, :15]
    assert np.array_equal(canvas.paint(), whole)
    framed = np.full((100, 110, 3), PAD, np.uint8)
    framed[20:80, 20:90] = whole
    for left, top, width, height in [
        (0, 0, 70, 60),
        (10, 15, 20, 20),
        (-20, -20, 110, 100),
        (50, 40, 30, 40),
        (40, 0, 9, 9),
    ]:
        region = Region(left, top, width, height)
        expected = framed[top + 20 : top + 20 + height, left + 20 : left + 20 + width]
        assert np.array_equal(canvas.paint(region), expected)


# ---- mosaics --------------------------------------------------------------------------------------------------------


def test_images_out_of_view_are_not_read_and_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = photo_set(tmp_path, [(48, 64), (64, 48), (64, 64), (40, 64), (64, 30)])
    hyp = replace(STILL, mosaic=1.0, scale=0.5, translate=0.1)
    lazy = DetectionDataset(data, 64, 32, augment=hyp and Augmentation(hyp))
    read: list[int] = []
    load = lazy._load
    monkeypatch.setattr(lazy, "_load", lambda k, rng: (read.append(k), load(k, rng))[1])
    for epoch in range(60):
        sample = lazy[epoch, 0]
        rng = np.random.default_rng((0, epoch, 0))
        rng.random()  # whether there is a mosaic
        chosen = [0, *rng.integers(len(data), size=3).tolist()]
        images, boxes, _ = zip(*(load(k, rng) for k in chosen), strict=True)
        image, merged = random_affine(*mosaic(images, boxes, 64, rng), (64, 64), hyp, rng)
        assert sample is not None and np.array_equal(sample.image.permute(1, 2, 0), image)
        assert sample.targets.label.tolist() == merged.label.tolist()
    assert 60 * 2 < len(read) < 60 * 4


def test_a_substitute_lies_where_the_model_expects_images(tmp_path: Path) -> None:
    data = photo_set(tmp_path, [(48, 64), (30, 64)])
    sets = [
        DetectionDataset(data, 64, 32, augment=Augmentation(STILL), letterbox=position)
        for position in ("top-left", "center")
    ]
    Path(sets[0].path_of(0)).unlink()
    places = [made._load(0, np.random.default_rng(0))[2] for made in sets]
    assert [(placed.left, placed.top) for placed in places] == [(0, 0), (0, 17)]


# ---- decoding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_large_jpegs_are_decoded_smaller_and_upright(orientation: int) -> None:
    data = jpeg(smooth(250, 403), orientation)
    whole = decode(data, "a").image
    size = whole.shape[:2]
    for least, factor in [((126, 202), 1), ((125, 202), 2), ((64, 64), 2), ((63, 63), 4), ((25, 25), 8), ((1, 1), 8)]:
        if orientation > 4:
            least = least[::-1]
        image, found = decode_small(data, "a", least)
        assert found == size and image.shape[:2] == tuple(-(-side // factor) for side in size)
        assert all(side >= wanted for side, wanted in zip(image.shape, least, strict=False))
        assert factor > 1 or np.array_equal(image, whole)
    data = jpeg(cv2.resize(noise((5, 7), 0), (400, 256), interpolation=cv2.INTER_LINEAR), orientation)
    whole = decode(data, "a").image.astype(float)
    for factor in (2, 4, 8):  # the mean of each block
        h, w = (side // factor for side in whole.shape[:2])
        image, _ = decode_small(data, "a", (h, w))
        blocks = whole.reshape(h, factor, w, factor, 3).mean(axis=(1, 3))
        assert image.shape == blocks.shape and np.abs(image - blocks).mean() < 2


def test_only_whole_jpegs_become_smaller(tmp_path: Path) -> None:
    image = smooth(200, 300)
    for suffix in (".png", ".bmp", ".webp"):
        Image.fromarray(image).save(tmp_path / f"a{suffix}")
        got, size = imread_small(tmp_path / f"a{suffix}", (20, 30))
        assert np.array_equal(got, imread(tmp_path / f"a{suffix}")) and size == (200, 300)
    gray, size = decode_small(jpeg(image[..., 0]), "a", (20, 30))
    assert gray.shape == (25, 38, 3) and size == (200, 300)
    for damaged in (b"", b"\xff\xd8", jpeg(image)[:300], b"\xff\xd8" + bytes(500)):
        with pytest.raises(ValueError) as whole:
            decode(damaged, "a")
        with pytest.raises(ValueError) as small:
            decode_small(damaged, "a", (20, 30))
        assert str(small.value) == str(whole.value)


def test_the_head_of_a_jpeg_ends_at_its_first_scan() -> None:
    image = smooth(64, 96)
    for data in (jpeg(image, 6), jpeg(image, 6, icc_profile=bytes(200_000)), jpeg(image, 6, progressive=True)):
        end = jpeg_head(data)
        assert data[end : end + 2] == b"\xff\xda" and b"\xff\xda\x00" not in data[:end] and b"Exif" in data[:end]
        assert decode(data, "a").orientation == 6
    assert jpeg_head(b"\xff\xd8\xff") == 3 and jpeg_head(b"\xff\xd8abc") == 5
    assert jpeg_head(data[:10] + b"x" + data[10:]) == len(data) + 1


def test_only_training_reads_small(tmp_path: Path) -> None:
    data = photo_set(tmp_path, [(200, 300), (150, 240)])  # 4.7 and 3.8 times what is needed
    plain, train = DetectionDataset(data, 64, 32), DetectionDataset(data, 64, 32, augment=Augmentation(STILL))
    sizes = [place(data.size(k), (64, 64)).resized for k in range(2)]
    for k, path in enumerate(data.paths):
        assert np.array_equal(plain._read(k), resize(imread(path), sizes[k]))
        twice = (2 * sizes[k][0], 2 * sizes[k][1])
        assert np.array_equal(train._read(k), resize(imread_small(path, twice)[0], sizes[k]))
    assert not np.array_equal(plain._read(0), train._read(0)) and np.array_equal(plain._read(1), train._read(1))
    Image.fromarray(smooth(100, 150)).save(data.paths[0])
    with pytest.raises(ValueError, match=r"\(100, 150\) pixels, but \(200, 300\) when it was scanned"):
        train._read(0)


def test_a_split_that_is_train_and_val_has_two_disk_caches_only_if_they_differ(tmp_path: Path) -> None:
    for name, sizes, expected in (("large", [(200, 300)], 2), ("small", [(90, 100)], 1)):
        data = photo_set(tmp_path / name, sizes)
        caches = [
            DetectionDataset(data, 64, 32, augment=hyp and Augmentation(hyp), cache="disk")._cache
            for hyp in (None, STILL)
        ]
        assert all(isinstance(cache, DiskCache) for cache in caches)
        assert len({cache.file for cache in caches if isinstance(cache, DiskCache)}) == expected
    assert key_of(np.ones((1, 2)), "a", "small") != key_of(np.ones((1, 2)), "a")


def test_recent_images_make_room_for_newer_ones() -> None:
    recent = RecentImages(3 * 12)
    for k in range(5):
        recent.keep(k, np.full((2, 2, 3), k, np.uint8))
    assert [k for k in range(5) if recent.get(k) is not None] == [2, 3, 4] and recent.held == 36
    recent.keep(5, np.zeros((4, 4, 3), np.uint8))
    assert recent.held == 0 and not recent.images


def test_recent_images_take_a_share_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []
    for free in (1 << 40, 32 << 20):
        monkeypatch.setattr(dataset_module, "free_memory", lambda _, free=free: free)
        limits.append(dataset_module.recent_limit())
    assert limits == [256 << 20, 2 << 20]
    monkeypatch.setattr(dataset_module, "free_memory", lambda _: (_ for _ in ()).throw(ValueError("unknown")))
    assert dataset_module.recent_limit() == 256 << 20


def test_recent_images_are_read_once_and_again_if_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = photo_set(tmp_path, [(64, 64)] * 3, ".png")
    reads: list[object] = []
    original = dataset_module.imread_small
    monkeypatch.setattr(dataset_module, "imread_small", lambda p, least: (reads.append(p), original(p, least))[1])
    held = DetectionDataset(data, 64, 32, augment=Augmentation(Hyp()))
    monkeypatch.setattr(dataset_module, "RECENT", 0)
    anew = DetectionDataset(data, 64, 32, augment=Augmentation(Hyp()))
    for epoch in range(8):
        a, b = held[epoch, 0], anew[epoch, 0]
        assert a is not None and b is not None and torch.equal(a.image, b.image)
    assert len(reads) > 3 + 8 and not anew._recent.images and len(held._recent.images) <= 3
    still = replace(STILL, mosaic=0)
    held, reads[:] = DetectionDataset(data, 64, 32, augment=Augmentation(still)), []
    monkeypatch.setattr(held, "_recent", RecentImages(1 << 20))
    before = [held[0, 0], held[1, 0]]
    assert len(reads) == 1
    Image.fromarray(smooth(64, 64, 9)).save(data.paths[0])
    os.utime(data.paths[0], ns=(1, 1))
    after = held[2, 0]
    assert len(reads) == 2 and after is not None and before[1] is not None
    assert np.array_equal(after.image.permute(1, 2, 0), smooth(64, 64, 9)) and not torch.equal(
        after.image, before[1].image
    )


# ---- pixels and batches ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factors", [(1015, 1700, 650), (1010, 300, 1433), (1030, 1024, 1024), (1500, 1024, 1024)])
def test_colors_are_those_of_a_table(factors: tuple[int, int, int]) -> None:
    image, f = noise((90, 110), 0), np.array(factors) / STEPS
    levels = np.arange(256)
    tables = [np.floor(levels * f[0]) % 180, *(np.floor(levels * k).clip(0, 255) for k in f[1:])]
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    expected = np.stack([table[hsv[..., k]] for k, table in enumerate(tables)], axis=-1).astype(np.uint8)
    kept = image.copy()
    difference = recolored(image, f).astype(int) - cv2.cvtColor(expected, cv2.COLOR_HSV2RGB)
    assert np.abs(difference).max() <= 1 and np.array_equal(image, kept)


@pytest.mark.parametrize("axes", [(), (0,), (1,), (0, 1)])
def test_strips_are_the_whole_image(axes: tuple[int, ...]) -> None:
    image, factors = noise((150, 70), 3), np.array([1.0, 1.25, 0.75])
    for f in (None, factors):
        whole = image if f is None else recolored(image, f)
        expected = np.flip(whole, axes) if axes else whole
        got = finished(image, f, axes)
        assert got.shape == (3, 150, 70) and got.is_contiguous() and np.array_equal(got.permute(1, 2, 0), expected)


def test_batches_of_loader_processes_are_written_into_shared_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = DetectionDataset(photo_set(tmp_path, [(48, 64)] * 3), 64, 32)
    samples = [dataset[0, k] for k in range(3)]
    plain = collate(samples).images
    monkeypatch.setattr(loader_module, "get_worker_info", lambda: SimpleNamespace(id=0))
    shared = collate(samples).images
    assert not plain.is_shared() and shared.is_shared() and torch.equal(plain, shared) and shared.is_contiguous()
    monkeypatch.undo()
    (batch,) = build_loader(dataset, 3, workers=1)
    assert torch.equal(batch.images, plain)


def test_averages_of_all_tensors_at_once_are_those_of_each() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(4, 4)).to(memory_format=torch.channels_last)
    ema = ModelEMA(model, decay=0.9, ramp=5)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for update in range(1, 5):
        for value in model.state_dict().values():
            value.copy_(torch.randn_like(value) if value.is_floating_point() else value + 3)
        ema.update(model)
        d = 0.9 * (1 - math.exp(-update / 5))
        for name, value in model.state_dict().items():
            expected[name] = expected[name] * d + value * (1 - d) if value.is_floating_point() else value.clone()
    averaged = ema.module.state_dict()
    assert all(torch.equal(averaged[name], value) for name, value in expected.items()) and len(expected) > 6


def test_the_benchmark_has_a_row_for_everything(tmp_path: Path) -> None:
    photo_set(tmp_path, [(48, 64)] * 3)
    before = dataset_module.RECENT
    cfg = bench_loader.BenchLoaderConfig(
        data=str(tmp_path / "data.yaml"), imgsz=64, samples=3, rounds=1, step_imgsz=64, batch_size=2
    )
    rows = bench_loader.main(cfg)
    assert [row.name.split(",")[0] for row in rows] == [
        "read and decode one image of the train split",
        *["loader"] * 3,
        "loader process",
        *["training step"] * 2,
        "peak memory of this process so far",
    ]
    assert all(row.value > 0 for row in rows) and rows[6].unit == "%" and rows[6].value < 100
    assert before == dataset_module.RECENT


def test_the_plain_attention_of_the_benchmark_computes_the_same_and_is_put_back() -> None:
    fused = F.scaled_dot_product_attention
    q, k, v = torch.randn(3, 2, 4, 16, 8)
    expected = F.scaled_dot_product_attention(q, k, v)
    with bench_loader.plain_scores():
        assert F.scaled_dot_product_attention is not fused
        torch.testing.assert_close(F.scaled_dot_product_attention(q, k, v), expected)
    assert F.scaled_dot_product_attention is fused


def test_no_image_in_view_is_a_gray_sample() -> None:
    view = View((32, 32), np.eye(3), 1.0, Region(0, 0, 32, 32))
    image, boxes = view.of(Canvas((64, 64), [], []), Boxes.labeled(np.zeros((0, 4)), np.zeros(0, np.int64)))
    assert image.shape == (32, 32, 3) and (image == PAD).all() and not len(boxes)
    assert not view.shows((32, 0), (10, 10)) and view.shows((31, 31), (10, 10)) and not view.shows((-10, 0), (10, 10))
