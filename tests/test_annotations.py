"""Labels from COCO JSON and Pascal VOC XML equal those of label files; mistakes are named with their place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from utils.boxes import xywhn2xyxy
from utils.data.annotations import CocoLabels, VocLabels, annotation_reader, voc_xml
from utils.data.dataset import DetectionDataset, list_images, read_data_yaml, scan_split
from utils.data.scan import scan

NAMES = ["cat", "dog", "Ente & Größe"]
SIZES = [(60, 90), (90, 60), (64, 64), (40, 120)]


def make(root: Path, labels: bool = True) -> dict[str, np.ndarray]:
    """Pictures in `root`/images with label files; gives class + xyxy pixels of each picture by its name."""
    rng = np.random.default_rng(1)
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    truth = {}
    for i, (h, w) in enumerate(SIZES):
        Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)).save(root / "images" / f"{i:04}.jpg")
        low = rng.integers(0, 20, (i, 2))
        rows = np.concatenate([rng.integers(0, 3, (i, 1)), low, low + rng.integers(5, 20, (i, 2))], axis=1)
        truth[f"{i:04}.jpg"] = rows.astype(float)
        if labels and i:
            xy, wh = (rows[:, 1:3] + rows[:, 3:]) / 2, rows[:, 3:] - rows[:, 1:3]
            lines = np.concatenate([rows[:, :1], xy / [w, h], wh / [w, h]], axis=1)
            (root / "labels" / f"{i:04}.txt").write_text("\n".join(" ".join(map(str, line)) for line in lines))
    return truth


def coco(truth: dict[str, np.ndarray], folder: str = "") -> dict:
    """A COCO file whose category and image ids are not consecutive; the last object of the last image is a crowd."""
    images, rows = [], []
    for k, (name, boxes) in enumerate(truth.items()):
        h, w = SIZES[k]
        images.append({"id": 100 + 7 * k, "file_name": folder + name, "height": h, "width": w})
        for label, x1, y1, x2, y2 in boxes:
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
    for k, (name, rows) in enumerate(truth.items()):
        if len(rows):
            text = voc_xml(name, SIZES[k], [NAMES[int(c)] for c in rows[:, 0]], rows[:, 1:])
            (tmp_path / "xml" / Path(name).with_suffix(".xml")).write_text(text, encoding="utf-8")
    (tmp_path / "all.json").write_text(json.dumps(coco(truth)), encoding="utf-8")
    given = write_yaml(tmp_path, annotations={"train": "xml", "val": "all.json"})
    data = read_data_yaml(given)
    plain = scan_split(read_data_yaml(write_yaml(tmp_path)), "train")
    voc, from_json = scan_split(data, "train"), scan_split(data, "val")
    assert len(plain.labels) == 6
    for other in (voc, from_json):
        assert (other.paths == plain.paths).all() and (other.sizes == plain.sizes).all()
        assert (other.offsets == plain.offsets).all()
        assert other.labels == pytest.approx(plain.labels, abs=1e-4)
    assert not voc.crowd.any() and from_json.crowd.tolist() == [False] * 5 + [True]
    assert len(from_json.labels_of(3)) == 2 and len(from_json.truth_of(3).labels) == 3
    pixels = plain.truth_of(3).areas
    assert pixels == pytest.approx((truth["0003.jpg"][:, 3:] - truth["0003.jpg"][:, 1:3]).prod(axis=1), rel=1e-5)
    assert from_json.truth_of(3).areas == pytest.approx(0.7 * pixels, rel=1e-5)
    again = scan_split(data, "val")  # from the cache
    assert all(np.array_equal(getattr(again, k), getattr(from_json, k)) for k in ("labels", "crowd", "areas"))


def test_crowds_are_not_trained_on(tmp_path: Path) -> None:
    truth = make(tmp_path, labels=False)
    (tmp_path / "all.json").write_text(json.dumps(coco(truth)), encoding="utf-8")
    data = read_data_yaml(write_yaml(tmp_path, annotations={"train": "all.json"}))
    dataset = DetectionDataset(scan_split(data, "train"), 64, 32)
    assert [len(dataset[0, i].targets) for i in range(4)] == [0, 1, 2, 2]
    assert torch.equal(dataset[0, 3].targets[:, 1], torch.tensor(truth["0003.jpg"][:2, 0]).float())
    single = DetectionDataset(scan_split(data, "train"), 64, 32, single_cls=True)
    assert not single.truth_of(3).labels[:, 0].any() and len(single.truth_of(3).labels) == 3


def test_images_are_found_by_the_end_of_their_path(tmp_path: Path) -> None:
    content = coco({"a.jpg": np.array([[0, 1, 2, 10, 20.0]])}, folder="val/")
    content["images"].append({"id": 5, "file_name": "train/a.jpg", "height": 10, "width": 10})
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    reader = CocoLabels(path, dict(enumerate(NAMES)))
    assert len(reader.read(Path("/d/val/a.jpg"), (60, 90)).boxes) == 1
    assert len(reader.read(Path("/d/train/a.jpg"), (10, 10)).boxes) == 0
    assert "does not name it" in reader.read(Path("/d/test/a.jpg"), (10, 10)).absent
    assert reader.category_ids() == {0: 11, 1: 14, 2: 17}


def test_an_image_that_the_json_lacks_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    truth = make(tmp_path, labels=False)
    truth.pop("0000.jpg")
    (tmp_path / "all.json").write_text(json.dumps(coco({"x.jpg": truth["0001.jpg"]} | truth)))
    data = read_data_yaml(write_yaml(tmp_path, annotations={"val": "all.json"}))
    assert len(scan_split(data, "val")) == 3
    assert "0000.jpg: left out" in caplog.text


def test_mistakes_name_their_place(tmp_path: Path) -> None:
    truth = make(tmp_path, labels=False)
    names = dict(enumerate(NAMES))
    content = coco(truth)
    content["categories"][0]["name"] = "cow"
    path = tmp_path / "all.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"all\.json: annotation \d+: class 'cow', expected one of the names: cat"):
        scan(list_images([tmp_path / "images"]), 3, CocoLabels(path, names))
    for text, match in (("{", "not JSON"), ("[]", "not a COCO"), ('{"images": []}', "no key 'categories'")):
        path.write_text(text)
        with pytest.raises(ValueError, match=match):
            CocoLabels(path, names)
    (tmp_path / "xml").mkdir()
    with pytest.raises(ValueError, match=r"no \.xml"):
        annotation_reader(tmp_path / "xml", names)
    with pytest.raises(ValueError, match="expected a COCO"):
        annotation_reader(tmp_path / "images" / "0000.jpg", names)
    with pytest.raises(ValueError, match="annotations is"):
        read_data_yaml(write_yaml(tmp_path, annotations={"valid": "xml"}))
    with pytest.raises(FileNotFoundError, match="annotations of val is 'nowhere'"):
        read_data_yaml(write_yaml(tmp_path, annotations={"val": "nowhere"}))


XML = """<annotation><size><width>{w}</width><height>100</height></size><object><name>cat</name>
<difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin><ymin>10</ymin><xmax>50</xmax><ymax>60</ymax></bndbox>
</object></annotation>"""


def test_voc_details(tmp_path: Path) -> None:
    reader, image, file = VocLabels(tmp_path, {0: "cat"}), Path("in/a.jpg"), tmp_path / "a.xml"
    assert len(reader.read(image, (100, 200)).boxes) == 0  # no file: background
    file.write_text(XML.format(w=200, difficult=1, x1=10))
    found = reader.read(image, (50, 100))  # the picture was halved since
    assert found.crowd.tolist() == [True]
    assert xywhn2xyxy(found.boxes[:, 1:], (50, 100)) == pytest.approx(np.array([[5, 5, 25, 30]]))
    file.write_text(XML.format(w=0, difficult=0, x1=10))  # no size: that of the picture
    assert xywhn2xyxy(reader.read(image, (100, 200)).boxes[:, 1:], (100, 200))[0, 0] == pytest.approx(10)
    file.write_text(XML.format(w=200, difficult=0, x1=50))
    assert "without area" in reader.read(image, (100, 200)).warnings[0]
    file.write_text(XML.format(w=200, difficult=0, x1=-30))
    assert "beyond its edge" in reader.read(image, (100, 200)).warnings[0]
    for x1, match in (("wide", "a.xml: could not convert"), ("", "expected finite numbers")):
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
    assert all((scan(half, 3).paths == held.paths).all() for half, held in zip(halves, first, strict=True))
