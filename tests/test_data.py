"""Laws of the data walk: data YAML, labels, scan, samples, augmentations, batches."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_sets import noise, rectangles, to_boxes, write_set
from PIL import Image

from utils.boxes import Boxes, Targets, areas, xywh2xyxy, xywhn2xyxy, xyxy2xywhn
from utils.data.augmentations import (
    copy_paste,
    finished,
    hsv_factors,
    mirrored,
    mixup,
    mosaic,
    random_affine,
    recolored,
)
from utils.data.data_yaml import read_data_yaml
from utils.data.dataset import Augmentation, DetectionDataset, Sample
from utils.data.labels import TextLabels, label_path, read_labels
from utils.data.listing import list_images
from utils.data.loader import Batch, EpochBatchSampler, build_loader, collate, collate_quad
from utils.data.scan import Scan, cache_file, scan
from utils.hyp import Hyp
from utils.images import PAD, imread

STILL = Hyp(hsv_h=0, hsv_s=0, hsv_v=0, translate=0, scale=0, fliplr=0, mosaic=0)
NONE = to_boxes()
GRAYS = [(255 - c,) * 3 for c in range(4)]


def draw(height: int, width: int, boxes: Boxes) -> np.ndarray:
    """White rectangles on black; class c has the gray 255 - c."""
    return rectangles((height, width), boxes, GRAYS, gray=0)


def rows(boxes: Boxes) -> list[list[float]]:
    """Class, x1, y1, x2, y2 of each box."""
    return np.column_stack([boxes.label, boxes.xyxy]).tolist()


def bright(image: np.ndarray, low: int = 185) -> np.ndarray:
    """x1, y1, x2, y2 around the pixels of at least `low`."""
    ys, xs = np.nonzero(image[..., 0] >= low)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


def make_set(root: Path, sizes: list[tuple[int, int]], split: str = "train") -> list[Path]:
    """One noise image for each (height, width), with none, one and two boxes in turn; returns the images' paths."""
    images = [noise(size, seed) for seed, size in enumerate(sizes)]
    boxes = []
    for i, (h, w) in enumerate(sizes):
        xywhn = [(0.5, 0.4, (k + 2) / 10, (k + 3) / 10) for k in range(i % 3)]
        boxes.append(Boxes.labeled(xywhn2xyxy(np.array(xywhn).reshape(-1, 4), (h, w)), np.arange(i % 3)))
    write_set(root, images, boxes, ["a", "b"], split, ".jpg")
    return list_images([root / "images" / split])


def same(a: Scan, b: Scan) -> bool:
    return all(np.array_equal(getattr(a, k), getattr(b, k)) for k in ("paths", "sizes", "label", "xywhn", "offsets"))


def same_targets(a: Targets, b: Targets) -> bool:
    return all(torch.equal(getattr(a, k), getattr(b, k)) for k in ("image", "label", "xywhn"))


MIXED = [(60, 90), (90, 60), (64, 64), (40, 120), (120, 40), (100, 80), (33, 77)]


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_scan_and_imread_agree_on_exif(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "images").mkdir()
    file = tmp_path / "images" / "a.jpg"
    Image.new("RGB", (40, 20)).save(file, exif=exif)
    expected = (20, 40) if orientation < 5 else (40, 20)
    assert imread(file).shape == (*expected, 3)
    assert tuple(scan([file], 1).sizes[0]) == expected


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16", "P", "1"])
def test_every_kind_of_png_is_read(tmp_path: Path, mode: str) -> None:
    file = tmp_path / "bild-ä.png"
    image = Image.fromarray(np.full((9, 13), 40000, np.uint16)) if mode == "I;16" else Image.new(mode, (13, 9))
    image.save(file)
    result = scan([file], 1)
    sample = DetectionDataset(result, 32, 32)[0, 0]
    assert tuple(result.sizes[0]) == (9, 13) and sample.image.shape == (3, 32, 32) and len(sample.targets) == 0
    if mode == "I;16":
        assert abs(int(sample.image[0, 16, 16]) - 40000 // 256) <= 1


def test_label_path() -> None:
    assert label_path("/d/images/x/images/a.b.jpg") == Path("/d/images/x/labels/a.b.txt")
    assert label_path("d/images/sub/a.png") == Path("d/labels/sub/a.txt")
    assert label_path("d/my_images/images.png") == Path("d/my_images/images.txt")


def test_labels_good_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text(
        "1 0.5 0.5 0.2 0.4\n\n0 0.1 0.2 0.5 0.2 0.3 0.8\n"  # a box, a triangle
        "0 0.1 0.5 0.201 0.2\n0 0.0 0.5 0.4 0.2\n"  # just outside: silent; far outside: a warning
        "0 0.5 0.5 0 0.2\n1 0.5 0.5 0.2 0.4\n0 1.5 0.5 0.2 0.2\n"  # no area, a duplicate, wholly outside
    )
    labels = read_labels(file, 2)
    want = [[1, 0.5, 0.5, 0.2, 0.4], [0, 0.3, 0.5, 0.4, 0.6], [0, 0.10025, 0.5, 0.2005, 0.2], [0, 0.1, 0.5, 0.2, 0.2]]
    assert labels.label.dtype == np.int64 and labels.xywhn.dtype == np.float32 and not labels.errors
    np.testing.assert_allclose(np.column_stack([labels.label, labels.xywhn]), want, atol=1e-6)
    assert not labels.crowd.any() and np.isnan(labels.area).all()
    assert [w.split(": ")[0] for w in labels.warnings] == [f"{file}:{n}" for n in (5, 6, 7, 8, 8)]


@pytest.mark.parametrize("text", ["", "\n \n", None])
def test_background_has_no_message(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "a.txt"
    if text is not None:
        file.write_text(text)
    labels = read_labels(file, 2)
    assert len(labels.label) == 0 and labels.xywhn.shape == (0, 4) and not labels.warnings and not labels.errors


def test_label_errors_name_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "000012.txt"
    bad = ["80 .5 .5 .1 .1", "-1 .5 .5 .1 .1", "1.5 .5 .5 .1 .1", "0 .5 .5 .1", "0 .1 .1 .2 .2 .3", "cat .5 .5 .1 .1"]
    bad += ["0 nan .5 .1 .1", "0 .5 inf .1 .1", "nan .5 .5 .1 .1", "0 .1 .1 .2 .2 .3 .3 .4"]
    file.write_text("0 .5 .5 .1 .1\n" + "\n".join(bad))
    labels = read_labels(file, 80)
    errors = labels.errors
    assert len(labels.label) == 1 and len(errors) == len(bad)
    assert errors[0] == f"{file}:2: class 80, but data.yaml has 80 classes (0..79)"
    assert [e.split(": ")[0] for e in errors] == [f"{file}:{n}" for n in range(2, len(bad) + 2)]
    file.write_bytes(b"\xff\xfe\x00\x81")
    assert read_labels(file, 80).errors[0].startswith(f"{file}:1:")


def test_scan_reports_all_label_errors_at_once(tmp_path: Path) -> None:
    images = make_set(tmp_path, MIXED)
    label_path(images[0]).write_text("9 .5 .5 .1 .1\n" * 8)
    label_path(images[6]).write_text("oops\n" * 7)
    with pytest.raises(
        ValueError, match=r"(?s)15 label error.*000000\.txt:1: class 9.*000006\.txt:2:.*5 more"
    ) as caught:
        scan(images, 2)
    assert str(caught.value).count("\n") == 11


def test_scan_leaves_out_corrupt_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = make_set(tmp_path, MIXED)
    images[1].write_bytes(images[1].read_bytes()[:700])
    images[2].write_bytes(b"")
    caplog.set_level(logging.INFO)
    for _ in range(2):  # from the files, then from the cache
        caplog.clear()
        result = scan([*images, tmp_path / "images/train/gone.jpg"], 2)
        assert len(result) == 5
        assert sum("left out" in r.message for r in caplog.records) == 3
        assert "5 images, 3 of them background, 3 boxes, 3 bad" in caplog.records[-1].message
    with pytest.raises(ValueError, match="none of 1"):
        scan(images[2:3], 2)


def test_cache_equals_rescan_and_goes_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_set(tmp_path, MIXED)
    first, file = scan(images, 2), cache_file(images, TextLabels(2))
    assert file.is_file() and list(file.parent.glob("*.part")) == []
    with monkeypatch.context() as patch:
        patch.setattr("utils.data.scan._scan_files", lambda *_: pytest.fail("the cache was not used"))
        assert same(first, scan(images, 2))
    label_path(images[0]).write_text("0 0.5 0.5 0.1 0.1\n")  # a new label file
    assert len(scan(images, 2).truth(0)) == 1
    label_path(images[0]).write_text("1 0.5 0.5 0.1 0.1\n")  # same size, other time
    os.utime(label_path(images[0]), ns=(1, 1))
    assert scan(images, 2).truth(0).label[0] == 1
    assert len(scan(images[1:], 2)) == len(images) - 1
    with pytest.raises(ValueError, match="has 1 classes"):
        scan(images, 1)
    whole = scan(images, 2)
    for damage in (b"", b"PK\x03\x04 no", file.read_bytes()[:400], b"not a zip file"):
        file.write_bytes(damage)
        assert same(whole, scan(images, 2))


def test_unwritable_folder_only_means_no_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = make_set(tmp_path, MIXED[:3])
    cache_file(images, TextLabels(2)).mkdir()
    caplog.set_level(logging.INFO)
    assert len(scan(images, 2)) == 3
    assert any("not cached" in r.message and r.levelno == logging.INFO for r in caplog.records)
    assert list((tmp_path / "labels").glob("*.part")) == []


# ---- the data YAML --------------------------------------------------------------------------------------------------


def test_yaml_path_beside_the_file_wins_over_cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("cfg", "work"):
        make_set(tmp_path / place / "set", MIXED[:3])
    file = tmp_path / "cfg" / "d.yaml"
    file.write_text("path: set\ntrain: images/train\nval: [images/train, images]\ntest: none\nnames: [a, b]\nnc: 2\n")
    monkeypatch.chdir(tmp_path / "work")
    data = read_data_yaml(file)
    assert data.nc == 2 and data.names == {0: "a", 1: "b"}
    assert data.split("train") == [tmp_path / "cfg/set/images/train"] and len(data.split("val")) == 2
    assert len(list_images(data.split("val"))) == 3
    with pytest.raises(FileNotFoundError, match="none"):
        list_images(data.split("test"))
    (tmp_path / "cfg/set").rename(tmp_path / "cfg/moved")
    assert read_data_yaml(file).split("train") == [tmp_path / "work/set/images/train"]
    (tmp_path / "work/set").rename(tmp_path / "work/moved")
    with pytest.raises(FileNotFoundError, match=r"d\.yaml: path is 'set', expected .* tried: .*cfg/set, .*work/set"):
        read_data_yaml(file)


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("names: [a]", ValueError, "at least one of the keys train"),
        ("train: .", ValueError, "names is None"),
        ("train: .\nnames: {0: a, 2: b}", ValueError, r"expected 0\.\.1"),
        ("train: .\nnames: [a]\nnc: 2", ValueError, "nc is 2, but names has 1"),
        ("train: {a: 3}\nnames: [a]", ValueError, "train is {'a': '3'}"),
        ("train: 3\nnames: [a]", FileNotFoundError, "train is '3', expected an existing folder"),
        ("train: gone\nnames: [a]", FileNotFoundError, r"d\.yaml: train is 'gone'.*tried"),
    ],
)
def test_yaml_mistakes(tmp_path: Path, text: str, error: type[Exception], match: str) -> None:
    file = tmp_path / "d.yaml"
    file.write_text(text)
    with pytest.raises(error, match=match) as caught:
        read_data_yaml(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_yaml_absent_split(tmp_path: Path) -> None:
    (tmp_path / "d.yaml").write_text("train: .\nnames: {0: a}\n")
    with pytest.raises(ValueError, match=r"d\.yaml: no 'val:'"):
        read_data_yaml(tmp_path / "d.yaml").split("val")


def test_a_single_class_replaces_all_classes(tmp_path: Path) -> None:
    make_set(tmp_path, MIXED)
    plain, single = (read_data_yaml(tmp_path / "data.yaml", single_cls=s) for s in (False, True))
    assert (plain.nc, plain.names) == (2, {0: "a", 1: "b"}) and (single.nc, list(single.names)) == (1, [0])
    before, after = plain.scan("train"), single.scan("train")
    assert before.label.any() and not after.label.any()
    assert np.array_equal(before.xywhn, after.xywhn) and np.array_equal(before.offsets, after.offsets)


def test_a_fraction_of_the_training_images(tmp_path: Path) -> None:
    make_set(tmp_path, MIXED)
    data = read_data_yaml(tmp_path / "data.yaml")
    whole, some = data.training_scan(), data.training_scan(0.6, seed=1)
    assert len(some) == 4 and set(some.paths) < set(whole.paths)
    for i, path in enumerate(some.paths):
        (row,) = np.flatnonzero(whole.paths == path)
        assert rows(some.truth(i)) == rows(whole.truth(row)) and some.size(i) == whole.size(row)
    assert same(some, data.training_scan(0.6, seed=1)) and not same(some, data.training_scan(0.6, seed=2))
    for file in (tmp_path / "labels" / "train").iterdir():
        file.write_text("")
    with pytest.raises(ValueError, match="the train split has no labels at all"):
        data.training_scan()


def test_txt_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_set(tmp_path / "set", MIXED[:4])
    monkeypatch.chdir(tmp_path)
    names = [f"images/train/{i:06}.jpg" for i in range(4)]
    lines = [f"./{names[3]}", names[0], "", f"set/{names[1]}", str(images[2])]
    (tmp_path / "set" / "list.txt").write_text("\n".join([*lines, lines[0]]))
    found = list_images([tmp_path / "set" / "list.txt"])
    assert found == images
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images"):
        list_images([tmp_path / "empty"])


# ---- samples --------------------------------------------------------------------------------------------------------


def test_rect_batches_hold_their_images(tmp_path: Path) -> None:
    data = scan(make_set(tmp_path, MIXED * 2), 2)
    dataset = DetectionDataset(data, 96, 32, rect=True, batch_size=3)
    loader = build_loader(dataset, 3)
    seen = []
    for batch in loader:
        height, width = batch.images.shape[2:]
        assert height % 32 == width % 32 == 0 and max(height, width) == 96
        for box in batch.letterboxes:
            assert box is not None and box.canvas == (height, width) and max(box.resized) == 96
            assert box.top + box.resized[0] <= height and box.left + box.resized[1] <= width
        seen += batch.rows
    assert sorted(seen) == list(range(len(data)))
    ratios = [h / w for h, w in data.sizes[seen]]
    assert ratios == sorted(ratios)
    assert min(dataset.canvases.prod(axis=1)) < 96 * 96
    with pytest.raises(ValueError, match="batch size 4"):
        build_loader(dataset, 4)
    augmented = DetectionDataset(data, 96, 32, rect=True, batch_size=3, augment=Augmentation(Hyp(mosaic=1.0)))
    assert {b.images.shape for b in build_loader(augmented, 3)} == {b.images.shape for b in loader}


def test_samples_do_not_depend_on_workers_or_cache(tmp_path: Path) -> None:
    data = scan(make_set(tmp_path, MIXED), 2)
    hyp = Hyp(degrees=5, mixup=0.5, copy_paste=0.5, flipud=0.5, shear=2, perspective=0.0005)
    batches = []
    for workers, cache in ((0, ""), (2, ""), (0, "ram"), (0, "disk")):
        loader = build_loader(
            DetectionDataset(data, 64, 32, augment=hyp and Augmentation(hyp), cache=cache), 3, workers, shuffle=True
        )
        assert isinstance(loader.batch_sampler, EpochBatchSampler)
        loader.batch_sampler.set_epoch(5)
        batches.append(list(loader))
    for other in batches[1:]:
        for a, b in zip(batches[0], other, strict=True):
            assert torch.equal(a.images, b.images) and same_targets(a.targets, b.targets) and a.rows == b.rows
    plain, held = (DetectionDataset(data, 64, 32, rect=True, batch_size=4, cache=c) for c in ("", "ram"))
    for i in range(len(data)):
        assert torch.equal(plain[0, i].image, held[0, i].image) and plain[0, i].letterbox == held[0, i].letterbox


def test_epoch_and_seed_change_the_sample(tmp_path: Path) -> None:
    data = scan(make_set(tmp_path, MIXED), 2)
    one, two = (DetectionDataset(data, 64, 32, augment=Augmentation(Hyp(), seed=s)) for s in (0, 1))
    assert torch.equal(one[3, 1].image, one[3, 1].image)
    assert not torch.equal(one[3, 1].image, one[4, 1].image)
    assert not torch.equal(one[3, 1].image, two[3, 1].image)
    assert one[3, 1].letterbox is None


def test_letterbox_round_trip_and_targets(tmp_path: Path) -> None:
    data = scan(make_set(tmp_path, MIXED), 2)
    dataset = DetectionDataset(data.as_single_class(), 64, 32)
    for i in range(len(dataset)):
        sample, truth = dataset[0, i], data.truth(i)
        assert sample.letterbox is not None and sample.image.dtype == torch.uint8
        assert len(sample.targets) == len(truth) == len(sample.truth)
        assert (sample.targets.label == 0).all() and (sample.truth.label == 0).all()
        assert (sample.targets.image == 0).all()
        back = sample.letterbox.to_image(xywh2xyxy(sample.targets.xywhn * 64).numpy())
        np.testing.assert_allclose(back, truth.xyxy, atol=1e-3)
        np.testing.assert_allclose(sample.truth.xyxy, truth.xyxy)


def test_still_augmentation_is_the_letterbox(tmp_path: Path) -> None:
    data = scan(make_set(tmp_path, MIXED), 2)
    plain, still = DetectionDataset(data, 64, 32), DetectionDataset(data, 64, 32, augment=Augmentation(STILL))
    for i in range(len(data)):
        assert torch.equal(plain[0, i].image, still[0, i].image)
        torch.testing.assert_close(plain[0, i].targets.xywhn, still[0, i].targets.xywhn)
        assert torch.equal(plain[0, i].targets.label, still[0, i].targets.label)


def test_drawn_boxes_survive_the_whole_pipeline(tmp_path: Path) -> None:
    """The only white area of the image is where the target is, through mosaic, affine and flips."""
    files = [str(tmp_path / name) for name in ("drawn.png", "black.png")]
    for file, boxes in zip(files, (to_boxes([0, 30, 20, 90, 70]), NONE), strict=True):
        Image.fromarray(draw(100, 120, boxes)).save(file)
    many = 10_000  # so that the image with the box is never chosen twice
    data = Scan(
        paths=np.array(files[:1] + files[1:] * (many - 1)),
        sizes=np.tile([100, 120], (many, 1)),
        label=np.zeros(1, np.int64),
        xywhn=np.array([[0.5, 0.45, 0.5, 0.5]], np.float32),
        offsets=np.minimum(np.arange(many + 1), 1),
        crowd=np.zeros(1, bool),
        area=np.full(1, np.nan),
    )
    hyp = replace(STILL, mosaic=1.0, scale=0.2, translate=0.1, fliplr=0.5, flipud=0.5)
    dataset, checked = DetectionDataset(data, 128, 32, augment=hyp and Augmentation(hyp)), 0
    for epoch in range(40):
        sample = dataset[epoch, 0]
        if len(sample.targets):
            found = bright(sample.image.permute(1, 2, 0).numpy())
            np.testing.assert_allclose(xywh2xyxy(sample.targets.xywhn[0] * 128), found, atol=1.5)
            checked += 1
    assert checked > 20


# ---- augmentations --------------------------------------------------------------------------------------------------


def test_affine_identity() -> None:
    boxes = to_boxes([1, 10, 12, 50, 40], [0, 0, 0, 80, 60])
    image = noise((60, 80), 0)
    warped, kept = random_affine(image, boxes, (60, 80), STILL, np.random.default_rng(0))
    assert np.array_equal(warped, image)
    np.testing.assert_allclose(rows(kept), rows(boxes), atol=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_affine_box_matches_the_pixels(seed: int) -> None:
    boxes = to_boxes([0, 70, 60, 130, 110])
    strong = Hyp(degrees=30, translate=0.1, scale=0.3, shear=10, perspective=0.0005 * (seed % 2))
    warped, kept = random_affine(draw(180, 200, boxes), boxes, (170, 210), strong, np.random.default_rng(seed))
    assert warped.shape == (170, 210, 3) and len(kept) == 1
    np.testing.assert_allclose(kept.xyxy[0], bright(warped), atol=2.0)


def test_affine_drops_what_left_the_image() -> None:
    boxes = to_boxes([0, 0, 0, 20, 20], [1, 90, 90, 110, 110], [2, 100, 100, 101, 150], [3, 60, 120, 81, 140])
    _, kept = random_affine(np.zeros((200, 200, 3), np.uint8), boxes, (80, 80), STILL, np.random.default_rng(0))
    assert kept.label.tolist() == [1, 3]  # the middle of the image: 60..140
    zoomed = replace(STILL, scale=0.9)
    for seed in range(20):  # zooming alone never counts as lost area
        image, box = np.zeros((400, 400, 3), np.uint8), to_boxes([0, 170, 170, 230, 230])
        _, kept = random_affine(image, box, (400, 400), zoomed, np.random.default_rng(seed))
        assert len(kept) == 1


@pytest.mark.parametrize("seed", range(8))
def test_mosaic_boxes_match_the_pixels(seed: int) -> None:
    sizes = [(64, 40), (40, 64), (64, 64), (50, 64)]
    boxes = [to_boxes([k, 4 + k, 6, 30, 34 - k]) for k in range(4)]
    images = [draw(*size, box) for size, box in zip(sizes, boxes, strict=True)]
    canvas, merged = mosaic(images, boxes, 64, np.random.default_rng(seed))
    assert canvas.shape == (128, 128, 3) and len(merged) >= 1
    for label, *xyxy in rows(merged):
        ys, xs = np.nonzero(canvas[..., 0] == 255 - label)
        assert xyxy == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert (canvas == PAD).any()


@pytest.mark.parametrize("axis", [0, 1])
def test_flip_is_an_involution_and_follows_the_pixels(axis: int) -> None:
    boxes = to_boxes([0, 5, 7, 20, 30])
    image = draw(40, 60, boxes)
    once = finished(image, axes=[axis]).permute(1, 2, 0).numpy()
    moved = mirrored(boxes, (40, 60), axis)
    assert np.array_equal(bright(once), moved.xyxy[0]) and rows(moved) != rows(boxes)
    assert np.array_equal(finished(once, axes=[axis]).permute(1, 2, 0), image)
    assert rows(mirrored(moved, (40, 60), axis)) == rows(boxes)


def test_copy_paste() -> None:
    boxes = to_boxes([3, 5, 7, 20, 30])
    image, rng = draw(40, 60, boxes), np.random.default_rng(0)
    pasted, found = copy_paste(image, boxes, 1.0, rng)
    assert rows(found) == [[3, 5, 7, 20, 30], [3, 40, 7, 55, 30]]
    assert np.array_equal(pasted, np.maximum(image, image[:, ::-1])) and image[10, 45, 0] == 0
    middle = to_boxes([3, 20, 7, 40, 30])  # its mirror image lies on itself
    assert len(copy_paste(image, middle, 1.0, rng)[1]) == 1
    assert len(copy_paste(image, boxes, 0.0, rng)[1]) == 1


def test_mixup_and_hsv() -> None:
    rng = np.random.default_rng(0)
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    mixed, boxes = mixup(black, to_boxes([0] * 5, [0] * 5), white, to_boxes([1] * 5), rng)
    assert 60 < mixed.mean() < 195 and boxes.label.tolist() == [0, 0, 1]
    image = noise((50, 50), 0)
    kept = image.copy()
    assert hsv_factors((0, 0, 0), rng) is None
    factors = hsv_factors((0.0, 0.0, 0.4), rng)
    assert factors is not None
    shifted = recolored(image, factors)
    ratio = shifted.max(axis=2).sum() / image.max(axis=2).sum()
    assert np.array_equal(image, kept) and shifted.dtype == np.uint8 and 0.55 < ratio < 1.45 and ratio != 1


def test_no_boxes_anywhere() -> None:
    image, rng = np.zeros((32, 32, 3), np.uint8), np.random.default_rng(0)
    results = [
        mosaic([image] * 4, [NONE] * 4, 32, rng),
        random_affine(image, NONE, (32, 32), Hyp(degrees=9, perspective=0.001), rng),
        mixup(image, NONE, image, NONE, rng),
        copy_paste(image, NONE, 1.0, rng),
        (image, mirrored(NONE, (32, 32), 0)),
        (image, mirrored(NONE, (32, 32), 1)),
    ]
    assert all(boxes.xyxy.shape == (0, 4) and len(boxes.label) == 0 for _, boxes in results)


# ---- batches --------------------------------------------------------------------------------------------------------


def test_collate_numbers_the_images(tmp_path: Path) -> None:
    data = scan(make_set(tmp_path, MIXED), 2)
    batch = collate([DetectionDataset(data, 64, 32)[0, i] for i in (2, 0, 1)])
    assert batch.images.shape == (3, 3, 64, 64) and batch.targets.xywhn.dtype == torch.float32
    assert batch.targets.image.tolist() == [0, 0, 2] and batch.rows == [2, 0, 1]
    empty = collate([DetectionDataset(data, 64, 32)[0, 0]])
    assert len(empty.targets) == 0 and empty.targets.xywhn.shape == (0, 4)


def quad_samples(count: int, first: int) -> list[Sample]:
    """Samples of 64 x 64 pixels, each with one box, whose class is its place among four."""
    boxes = [to_boxes([i % 4, 10 + 2 * i, 8, 30 + 3 * i, 40 + i]) for i in range(count)]
    samples = []
    for i, box in enumerate(boxes):
        image = torch.from_numpy(draw(64, 64, box)).permute(2, 0, 1)
        targets = Targets(
            torch.zeros(1, dtype=torch.long),
            torch.from_numpy(box.label),
            torch.from_numpy(xyxy2xywhn(box.xyxy, (64, 64)).astype(np.float32)),
        )
        samples.append(Sample(image, targets, f"{i}.png", first + i, None, None))
    return samples


def quad_boxes(batch: Batch) -> np.ndarray:
    """(M, 4) corner pixels of the targets on canvases of 128 pixels."""
    return xywh2xyxy(batch.targets.xywhn * 128).numpy()


def test_quad_is_the_first_image_enlarged_or_all_four_side_by_side() -> None:
    ways = []
    for first in range(12):
        samples = quad_samples(4, first)
        batch = collate_quad(samples)
        assert batch.images.shape == (1, 3, 128, 128) and batch.images.dtype == torch.uint8
        assert batch.paths == ["0.png", "1.png", "2.png", "3.png"] and not batch.targets.image.any()
        image, boxes = batch.images[0].permute(1, 2, 0).numpy(), quad_boxes(batch)
        before = [areas(xywh2xyxy(sample.targets.xywhn * 64).numpy())[0] for sample in samples]
        if len(boxes) == 1:
            np.testing.assert_allclose(boxes[0], bright(image), atol=1)
            np.testing.assert_allclose(areas(boxes), 4 * before[0])
        else:
            np.testing.assert_allclose(areas(boxes), before, rtol=1e-5)
            assert batch.targets.label.tolist() == [0, 1, 2, 3]
            for k, (top, left) in enumerate([(0, 0), (0, 64), (64, 0), (64, 64)]):
                quarter = image[top : top + 64, left : left + 64]
                assert np.array_equal(quarter, samples[k].image.permute(1, 2, 0))
                np.testing.assert_allclose(boxes[k], bright(quarter) + np.array([left, top, left, top]), atol=1e-4)
        ways.append(len(boxes))
    assert set(ways) == {1, 4}


def test_quad_of_a_number_that_four_does_not_divide_repeats_images() -> None:
    for first in range(30):
        batch = collate_quad(quad_samples(6, first))
        assert len(batch.images) == 2 and len(batch.paths) == 6
        if batch.targets.image.tolist() == [0] + 4 * [1]:
            break
    else:
        pytest.fail("no batch in 30 has one image enlarged and one of four")
    assert batch.targets.label.tolist() == [0, 0, 1, 0, 1]  # of image 0, then of the images 4, 5, 0, 1


def test_epoch_batches() -> None:
    plain = EpochBatchSampler(10, 4)
    assert len(plain) == 3 and [[i for _, i in b] for b in plain] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    shuffled = EpochBatchSampler(50, 4, shuffle=True)
    first = list(shuffled)
    assert first == list(shuffled) and sorted(i for b in first for _, i in b) == list(range(50))
    shuffled.set_epoch(1)
    again = list(shuffled)
    assert {e for b in again for e, _ in b} == {1}
    assert [[i for _, i in b] for b in again] != [[i for _, i in b] for b in first]
    rect = list(EpochBatchSampler(50, 4, shuffle=True, rect=True))
    assert rect != sorted(rect) and sorted(rect) == list(EpochBatchSampler(50, 4))
