"""Labels from COCO JSON and Pascal VOC XML equal those of label files; mistakes are named with their place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from data_sets import noise, to_boxes, write_set

from utils.boxes import Boxes, areas, xywhn2xyxy
from utils.data.annotations import annotation_reader
from utils.data.coco import CocoLabels
from utils.data.data_yaml import read_data_yaml
from utils.data.dataset import DetectionDataset
from utils.data.listing import list_images
from utils.data.scan import scan
from utils.data.voc import VocLabels, voc_xml

NAMES = ["cat", "dog", "Ente & Größe"]
SIZES = [(60, 90), (90, 60), (64, 64), (40, 120)]


def make(root: Path) -> dict[str, Boxes]:
    """A data set of noise images, the first of them background; returns the boxes of each by its file name."""
    rng = np.random.default_rng(1)
    boxes = []
    for i in range(len(SIZES)):
        low = rng.integers(0, 20, (i, 2))
        boxes.append(to_boxes(*np.hstack([rng.integers(0, 3, (i, 1)), low, low + rng.integers(5, 20, (i, 2))])))
    write_set(root, [noise(size, i) for i, size in enumerate(SIZES)], boxes, NAMES, suffix=".jpg")
    return {f"{i:06}.jpg": own for i, own in enumerate(boxes)}


def coco(truth: dict[str, Boxes], folder: str = "") -> dict:
    """A COCO file whose category and image ids are not consecutive; the last object of the last image is a crowd."""
    images, rows = [], []
    for k, (name, boxes) in enumerate(truth.items()):
        h, w = SIZES[k]
        images.append({"id": 100 + 7 * k, "file_name": folder + name, "height": h, "width": w})
        for label, (x1, y1, x2, y2) in zip(boxes.label, boxes.xyxy, strict=True):
            box = [x1, y1, x2 - x1, y2 - y1]
            row = {"id": len(rows), "image_id": 100 + 7 * k, "category_id": 11 + 3 * int(label), "bbox": box}
            rows.append(row | {"area": 0.7 * box[2] * box[3], "iscrowd": 0})
    rows[-1]["iscrowd"] = 1
    categories = [{"id": 11 + 3 * c, "name": name} for c, name in enumerate(NAMES)]
    return {"images": images, "annotations": rows, "categories": categories}


def write_yaml(root: Path, **more: object) -> Path:
    path = root / "data.yaml"
    path.write_text(yaml.safe_dump({"train": "images", "val": "images", "names": NAMES, **more}), encoding="utf-8")
    return path


def test_coco_and_voc_equal_label_files(tmp_path: Path) -> None:
    truth = make(tmp_path)
    (tmp_path / "xml").mkdir()
    for k, (name, boxes) in enumerate(truth.items()):
        if len(boxes):
            text = voc_xml(name, SIZES[k], [NAMES[c] for c in boxes.label], boxes.xyxy)
            (tmp_path / "xml" / Path(name).with_suffix(".xml")).write_text(text, encoding="utf-8")
    (tmp_path / "all.json").write_text(json.dumps(coco(truth)), encoding="utf-8")
    given = write_yaml(tmp_path, annotations={"train": "xml", "val": "all.json"})
    data = read_data_yaml(given)
    plain = read_data_yaml(write_yaml(tmp_path)).scan("train")
    voc, from_json = data.scan("train"), data.scan("val")
    assert plain.box_count == 6
    for other in (voc, from_json):
        assert (other.paths == plain.paths).all() and (other.sizes == plain.sizes).all()
        assert (other.offsets == plain.offsets).all()
        assert (other.label == plain.label).all() and other.xywhn == pytest.approx(plain.xywhn, abs=1e-4)
    assert not voc.crowd.any() and from_json.crowd.tolist() == [False] * 5 + [True]
    assert len(from_json.training_boxes(3, SIZES[3])) == 2 and len(from_json.truth(3)) == 3
    pixels = plain.truth(3).area
    assert pixels == pytest.approx(areas(truth["000003.jpg"].xyxy), rel=1e-5)
    assert from_json.truth(3).area == pytest.approx(0.7 * pixels, rel=1e-5)
    again = data.scan("val")  # from the cache
    assert all(np.array_equal(getattr(again, k), getattr(from_json, k)) for k in ("label", "xywhn", "crowd", "area"))


def test_crowds_are_not_trained_on(tmp_path: Path) -> None:
    truth = make(tmp_path)
    (tmp_path / "all.json").write_text(json.dumps(coco(truth)), encoding="utf-8")
    data = read_data_yaml(write_yaml(tmp_path, annotations={"train": "all.json"}))
    dataset = DetectionDataset(data.scan("train"), 64, 32)
    assert [len(dataset[0, i].targets) for i in range(4)] == [0, 1, 2, 2]
    assert torch.equal(dataset[0, 3].targets.label, torch.from_numpy(truth["000003.jpg"].label[:2]))
    whole = dataset[0, 3].truth
    assert whole is not None and whole.crowd.tolist() == [False, False, True]
    single = read_data_yaml(tmp_path / "data.yaml", single_cls=True).scan("train").truth(3)
    assert not single.label.any() and single.crowd.tolist() == whole.crowd.tolist()


def test_images_are_found_by_the_end_of_their_path(tmp_path: Path) -> None:
    content = coco({"a.jpg": to_boxes([0, 1, 2, 10, 20])}, folder="val/")
    content["images"].append({"id": 5, "file_name": "train/a.jpg", "height": 10, "width": 10})
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    reader = CocoLabels(path, dict(enumerate(NAMES)))
    found, background, missing = (reader.read(Path(f"/d/{s}/a.jpg"), (60, 90)) for s in ("val", "train", "test"))
    assert len(found.label) == 1 and found.skip_reason is None
    assert len(background.label) == 0 and background.skip_reason is None
    assert missing.skip_reason == f"/d/test/a.jpg: left out, {path} has no entry for it, or several"
    assert reader.category_ids() == {0: 11, 1: 14, 2: 17}


def test_an_image_that_the_json_lacks_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    truth = make(tmp_path)
    truth.pop("000000.jpg")
    (tmp_path / "all.json").write_text(json.dumps(coco({"x.jpg": truth["000001.jpg"]} | truth)))
    data = read_data_yaml(write_yaml(tmp_path, annotations={"val": "all.json"}))
    assert len(data.scan("val")) == 3
    assert "has no entry for 1 image, left out:" in caplog.text and "000000.jpg" in caplog.text


def test_mistakes_name_their_place(tmp_path: Path) -> None:
    truth = make(tmp_path)
    names = dict(enumerate(NAMES))
    content = coco(truth)
    content["categories"][0]["name"] = "cow"
    path = tmp_path / "all.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"all\.json: annotation \d+: class 'cow', expected one of the names: cat"):
        scan(list_images([tmp_path / "images"]), 3, CocoLabels(path, names))
    for text, match in (("{", "not JSON"), ("[]", "not a COCO"), ('{"images": []}', "no key 'annotations'")):
        path.write_text(text)
        with pytest.raises(ValueError, match=match):
            CocoLabels(path, names)
    (tmp_path / "xml").mkdir()
    with pytest.raises(ValueError, match=r"no \.xml"):
        annotation_reader(tmp_path / "xml", names)
    with pytest.raises(ValueError, match="expected a COCO"):
        annotation_reader(tmp_path / "images" / "000000.jpg", names)
    with pytest.raises(ValueError, match="annotations is"):
        read_data_yaml(write_yaml(tmp_path, annotations={"valid": "xml"}))
    with pytest.raises(FileNotFoundError, match="annotations of val is 'nowhere'"):
        read_data_yaml(write_yaml(tmp_path, annotations={"val": "nowhere"}))


XML = """<annotation><size><width>{w}</width><height>100</height></size><object><name>cat</name>
<difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin><ymin>10</ymin><xmax>50</xmax><ymax>60</ymax></bndbox>
</object></annotation>"""


def test_voc_details(tmp_path: Path) -> None:
    reader, image, file = VocLabels(tmp_path, {0: "cat"}), Path("in/a.jpg"), tmp_path / "a.xml"
    assert len(reader.read(image, (100, 200)).label) == 0  # no file: background
    file.write_text(XML.format(w=200, difficult=1, x1=10))
    found = reader.read(image, (50, 100))  # the image was halved since
    assert found.crowd.tolist() == [True]
    assert xywhn2xyxy(found.xywhn, (50, 100)) == pytest.approx(np.array([[5, 5, 25, 30]]))
    file.write_text(XML.format(w=0, difficult=0, x1=10))  # no size: that of the image
    assert xywhn2xyxy(reader.read(image, (100, 200)).xywhn, (100, 200))[0, 0] == pytest.approx(10)
    file.write_text(XML.format(w=200, difficult=0, x1=50))
    assert "without area" in reader.read(image, (100, 200)).warnings[0]
    file.write_text(XML.format(w=200, difficult=0, x1=-30))
    assert "beyond its edge" in reader.read(image, (100, 200)).warnings[0]
    for x1, match in (("wide", "a.xml: object 1: <xmin> is 'wide', expected a number"), ("", "object 1: no <xmin>")):
        file.write_text(XML.format(w=200, difficult=0, x1=x1))
        assert match in reader.read(image, (100, 200)).errors[0]
    file.write_text("<annotation>")
    assert "not XML" in reader.read(image, (100, 200)).errors[0]


def test_splits_that_share_a_labels_folder_keep_their_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)
    images = list_images([tmp_path / "images"])
    halves = images[:2], images[2:]
    first = [scan(half, 3) for half in halves]
    monkeypatch.setattr("utils.data.scan._scan_files", lambda *_: pytest.fail("a cache was overwritten"))
    assert all((scan(half, 3).paths == before.paths).all() for half, before in zip(halves, first, strict=True))
