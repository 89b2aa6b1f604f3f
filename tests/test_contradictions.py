"""COCO and VOC annotations that contradict themselves or the images: put right where it is clear, said, or refused."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_sets import noise, rectangles, to_boxes
from PIL import Image
from shared import shared

from utils.boxes import xywhn2xyxy
from utils.data.coco import CocoLabels
from utils.data.data_yaml import read_data_yaml
from utils.data.dataset import DetectionDataset
from utils.data.scan import scan
from utils.data.voc import VocLabels
from utils.images import imwrite

NAMES = {0: "cat", 1: "dog"}
ROW = {"id": 1, "image_id": 5, "category_id": 1, "bbox": [10, 20, 30, 40], "area": 1200, "iscrowd": 0}
CONTENT: dict[str, Any] = {
    "images": [{"id": 5, "file_name": "a.jpg", "width": 100, "height": 80}],
    "annotations": [ROW],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
}
IMAGE = Path("images/a.jpg")


def coco(folder: Path, **changes: Any) -> CocoLabels:
    """A COCO file with some of its lists replaced."""
    path = folder / "all.json"
    path.write_text(json.dumps(copy.deepcopy(CONTENT) | changes), encoding="utf-8")
    return CocoLabels(path, NAMES)


# ---- COCO -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"images": [*CONTENT["images"], {"id": 5, "file_name": "b.jpg"}]}, "id 5 stands for 'a.jpg' and 'b.jpg'"),
        ({"categories": [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]}, "id 1 stands for 'cat' and 'dog'"),
        ({"images": [{"file_name": "a.jpg"}]}, "images, row 1: id is null"),
        ({"images": [{"id": 5}]}, "images, row 1: file_name is null"),
        ({"annotations": [{"id": 7}]}, "annotation 7: image_id is null, expected the id of an image"),
        ({"annotations": [[1, 2]]}, "annotations is not a list of mappings"),
        ({"categories": None}, "categories is not a list of mappings"),
    ],
)
def test_a_file_that_means_two_things_is_refused(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        coco(tmp_path, **changes)
    assert str(caught.value).startswith(str(tmp_path / "all.json")) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bbox": None}, "bbox is null, expected [x, y, width, height] in pixels"),
        ({"bbox": [[1, 2, 3, 4]]}, "bbox is [[1, 2, 3, 4]], expected [x"),
        ({"bbox": [1, 2, 3]}, "bbox is [1, 2, 3], expected [x"),
        ({"bbox": [1, 2, 3, 10**400]}, "expected [x"),
        ({"bbox": [0.1, 0.2, 0.3, 0.4]}, "looks like fractions of the image, expected pixels"),
        ({"category_id": None}, "category_id is null, expected a whole number"),
        ({"category_id": 9}, "class 'category 9', expected one of the names: cat, dog"),
        ({"iscrowd": "maybe"}, 'iscrowd is "maybe", expected 0 or 1'),
        ({"area": "large"}, 'area is "large", expected square pixels'),
    ],
)
def test_bad_rows_are_named_by_annotation_id(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    (error,) = coco(tmp_path, annotations=[ROW | change]).read(IMAGE, (80, 100)).errors
    assert error.startswith(f"{tmp_path / 'all.json'}: annotation 1: ") and says in error and len(error) < 400


@pytest.mark.parametrize(("value", "crowd"), [("0", False), ("1", True), ("false", False), (True, True), (0.0, False)])
def test_iscrowd_as_text(tmp_path: Path, value: object, crowd: bool) -> None:
    labels = coco(tmp_path, annotations=[ROW | {"iscrowd": value}]).read(IMAGE, (80, 100))
    assert labels.crowd.tolist() == [crowd] and not labels.errors


def test_equal_boxes_strangers_and_absent_images_are_counted(tmp_path: Path) -> None:
    rows = [ROW, ROW | {"id": 2}, ROW | {"id": 2, "bbox": [1, 1, 9, 9]}, ROW | {"id": 4, "image_id": 77}]
    images = [*CONTENT["images"], {"id": 6, "file_name": "b.jpg"}]
    reader = coco(tmp_path, annotations=rows, images=images)
    notes = " | ".join(reader.match([IMAGE, Path("images/c.jpg")]))
    assert "1 annotation of images that it does not list, left out: annotation 4 (image 77)" in notes
    assert "1 annotation id used twice: 2" in notes and "1 image of the file not among the 2 on disk: b.jpg" in notes
    assert "has no entry for 1 image, left out: images/c.jpg" in notes
    labels = reader.read(IMAGE, (80, 100))
    assert len(labels.label) == 2 and "annotation 2: the same box as in" in labels.warnings[0]


@pytest.mark.parametrize(
    "name",
    [
        *("..\\..\\label-studio\\media\\upload\\4\\a b.jpg", "images/1/a b.jpg", "C:\\data\\train\\a b.jpg"),
        *("/data/local-files/?d=train/a%20b.jpg", "https://host/x/train/a%20b.jpg", "../a b.jpg", "a b.jpg"),
    ],
)
def test_file_names_of_other_machines(tmp_path: Path, name: str) -> None:
    image = Path("/d/images/train/a b.jpg")
    for other in ("other.jpg", "b.jpg"):
        images = [{"id": 5, "file_name": name}, {"id": 6, "file_name": other}]
        reader = coco(tmp_path, images=images)
        reader.match([image, Path("/d/images/train/other.jpg")])
        entry = reader.entry(image)
        assert entry is not None and entry["id"] == 5


def test_an_end_that_is_not_unique_is_not_used(tmp_path: Path) -> None:
    images = [{"id": 5, "file_name": "a.jpg"}]
    reader, twins = coco(tmp_path, images=images), [Path("/d/cam1/a.jpg"), Path("/d/cam2/a.jpg")]
    assert "2 images fit several entries, left out" in " ".join(reader.match(twins))
    assert reader.entry(twins[0]) is None and reader.read(twins[1], (9, 9)).skip_reason
    reader = coco(tmp_path, images=[{"id": 5, "file_name": "x/cam1/a.jpg"}, {"id": 6, "file_name": "x/cam2/a.jpg"}])
    reader.match(twins)
    assert [entry["id"] for twin in twins if (entry := reader.entry(twin))] == [5, 6]


def test_a_set_of_crowds_cannot_be_trained_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "images").mkdir()
    imwrite(tmp_path / "images/a.jpg", noise((80, 100), 0))
    coco(tmp_path, annotations=[ROW | {"iscrowd": 1}])
    (tmp_path / "d.yaml").write_text("train: images\nval: images\nnames: [cat, dog]\nannotations: {train: all.json}\n")
    with pytest.raises(ValueError, match=r"the train split has only labels of crowds or difficult objects \(1\)"):
        read_data_yaml(tmp_path / "d.yaml").training_scan()
    assert "no box can be learned, all are crowds" in caplog.text


def test_annotations_can_be_cached_on_disk(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    imwrite(tmp_path / "images/a.jpg", noise((80, 100), 0))
    found = scan([tmp_path / "images/a.jpg"], 2, coco(tmp_path))
    plain, cached = (DetectionDataset(found, 64, 32, cache=cache) for cache in ("", "disk"))
    assert torch.equal(plain[0, 0].image, cached[0, 0].image) and len(list(tmp_path.rglob("*.pixels-*"))) == 1


# ---- the camera's frame ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(5, 9))
def test_boxes_in_the_cameras_frame_are_turned(tmp_path: Path, orientation: int) -> None:
    drawn = rectangles((96, 128), to_boxes([0, 10, 20, 60, 50]), gray=0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(drawn).save(tmp_path / "a.png", exif=exif)
    images = [{"id": 5, "file_name": "a.png", "width": 128, "height": 96}]
    reader = coco(tmp_path, images=images, annotations=[ROW | {"bbox": [10, 20, 50, 30]}])
    found = scan([tmp_path / "a.png"], 2, reader)
    box = found.truth(0).xyxy[0]
    sample = DetectionDataset(found, 128, 32)[0, 0]
    ys, xs = np.nonzero(sample.image[0].numpy() > 200)
    drawn_box = [xs.min() - sample.letterbox.left, ys.min(), xs.max() + 1 - sample.letterbox.left, ys.max() + 1]
    np.testing.assert_allclose(box, drawn_box, atol=1e-4)


def test_other_frames_are_scaled_and_other_shapes_are_said(tmp_path: Path) -> None:
    studio = coco(tmp_path, images=[{"id": 5, "file_name": "a.jpg", "width": 128, "height": 96}])
    studio = CocoLabels(studio.path, NAMES)
    studio.fractions = True  # as for a file whose info names Label Studio
    labels = studio.read(IMAGE, (128, 96), 6)
    assert "boxes are scaled, as Label Studio writes them" in labels.warnings[0]
    np.testing.assert_allclose(xywhn2xyxy(labels.xywhn, (96, 128)), [[10, 20, 40, 60]], atol=1e-4)
    same_shape, other = (coco(tmp_path).read(IMAGE, size) for size in ((40, 50), (80, 80)))
    assert not same_shape.warnings and "made for 100 x 80 pixels, but the image has 80 x 80" in other.warnings[0]


# ---- VOC ------------------------------------------------------------------------------------------------------------

XML = "<annotation><folder>{folder}</folder><object>{name}<bndbox><xmin>5</xmin><ymin>5</ymin>{x2}<ymax>50</ymax>"
XML += "</bndbox></object></annotation>"


def xml(name: str = "<name>cat</name>", x2: str = "<xmax>60</xmax>", folder: str = "") -> str:
    return XML.format(name=name, x2=x2, folder=folder)


@pytest.mark.parametrize(
    ("head", "encoding", "warning"),
    [
        ("", "utf-8", ""),
        ('<?xml version="1.0" encoding="gbk"?>', "gbk", ""),
        ("<?xml version='1.0' encoding='GB2312'?>", "gb2312", ""),
        ('<?xml version="1.0" encoding="utf-8"?>', "utf-8-sig", ""),
        ('<?xml version="1.0" encoding="UTF-16"?>', "utf-16", ""),
        ('<?xml version="1.0" encoding="gb18030x"?>', "utf-8", "encoding 'gb18030x' is not known, read as UTF-8"),
        ("", "gb18030", "not UTF-8, read as GB18030"),
    ],
)
def test_encodings(tmp_path: Path, head: str, encoding: str, warning: str) -> None:
    (tmp_path / "a.xml").write_bytes((head + xml("<name>图像</name>")).encode(encoding))
    labels = VocLabels(tmp_path, {0: "图像"}).read(Path("a.jpg"), (100, 100))
    assert labels.label.tolist() == [0] and not labels.errors
    assert labels.warnings == ([f"{tmp_path / 'a.xml'}: {warning}"] if warning else [])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (xml(name=""), "object 1: no <name>"),
        (xml(x2=""), "object 1: no <xmax>, expected pixels"),
        (xml(x2="<xmax>wide</xmax>"), "object 1: <xmax> is 'wide', expected a number"),
        ('<?xml version="1.0" encoding="ascii"?>' + xml("<name>Ä</name>"), "not XML"),
        ('<?xml version="1.0" encoding="klingon"?><a>', "not XML"),
        ("", "not XML"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a.xml").write_text(text, encoding="utf-8")
    (error,) = VocLabels(tmp_path, NAMES).read(Path("a.jpg"), (100, 100)).errors
    assert error.startswith(f"{tmp_path / 'a.xml'}: ") and says in error and "\n" not in error


def test_sub_folders_and_equal_stems(tmp_path: Path) -> None:
    for place in ("day1/a.xml", "b.xml", "camA/c.xml", "camB/c.xml", "d.xml", "e.xml"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(xml(folder="camA" if place == "d.xml" else "x"))
    images = [Path("/i", name) for name in ("a.jpg", "night/b.jpg", "camA/c.jpg", "camB/c.jpg")]
    twins = [Path("/i", name) for name in ("camA/d.jpg", "camB/d.jpg", "camA/e.jpg", "camB/e.jpg")]
    reader = VocLabels(tmp_path, NAMES)
    notes = " | ".join(reader.match([*images, *twins]))
    places = [reader.file(image).relative_to(tmp_path).as_posix() for image in images]
    assert places == ["day1/a.xml", "b.xml", "camA/c.xml", "camB/c.xml"]
    assert [reader.read(twin, (100, 100)).skip_reason is None for twin in twins] == [True, False, False, False]
    assert "1 .xml file in another folder" in notes and "3 images left out, another has the same name" in notes


# ---- recorded situations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "images", "boxes", "says"),
    [
        ("c1", 6, 12, "6 images found by the end of file_name"),
        ("c1c", 6, 12, "6 images found by the end of file_name"),
        ("c4", 3, 6, "5 images of the file not among the 3 on disk"),
        ("c4b", 8, 4, "12 annotations of images that it does not list"),
        ("c5", 6, 12, ""),
        ("c6q", 6, 12, "the same box as in"),
        ("k_decl_bad", 6, 12, "is not known, read as UTF-8"),
        ("k_dup", 6, 12, "the same box as in"),
        ("k_exif", 7, 13, "boxes are turned with the image"),
        ("k_flat", 7, 13, "1 image left out, another has the same name"),
        ("k_gbk", 6, 12, ""),
        ("k_sub", 6, 12, "4 .xml files in another folder"),
        ("o_ls", 3, 5, "boxes are scaled, as Label Studio writes them"),
    ],
)
def test_the_shared_cases(tmp_path: Path, caplog, case: str, images: int, boxes: int, says: str) -> None:
    shutil.copytree(shared(f"cases/train/{case}"), tmp_path / "set", copy_function=shutil.copyfile)
    for folder, _, _ in os.walk(tmp_path):
        os.chmod(folder, 0o755)
    found = read_data_yaml(tmp_path / "set/data.yaml").training_scan()
    assert (len(found), found.box_count) == (images, boxes) and says in caplog.text
    if case in ("k_exif", "o_ls"):
        row = [Path(path).name for path in found.paths].index("cam.jpg")
        np.testing.assert_allclose(found.truth(row).xyxy, [[46, 10, 76, 60]], atol=1e-3)


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("c3", r"only labels of crowds or difficult objects \(12\)"),
        ("k_diff1", r"only labels of crowds or difficult objects \(12\)"),
        ("c6a", "annotation 4: no bbox"),
        ("c6b", r"annotation 4: bbox is \[\]"),
        ("c6c", "annotation 4: bbox is null"),
        ("o_dup1", "the id 0 stands for 'p000.jpg' and 'p005.jpg'"),
        ("p_catdup", "the id 1 stands for 'red' and 'blue'"),
    ],
)
def test_the_shared_cases_that_are_refused(case: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_data_yaml(shared(f"cases/train/{case}") / "data.yaml").training_scan()
