"""Pre-annotations for annotation tools, and their exports as data sets: round trips, and what is left out is said."""

from __future__ import annotations

import json
import logging
import re
import shutil
import zipfile
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny import write_tiny

import detect
from tools.import_labels import ImportConfig
from tools.import_labels import main as import_labels
from tools.proposal_study import judge
from utils.annotate.dataset import validation
from utils.annotate.exported import around_turned
from utils.annotate.proposals import FORMATS, PreAnnotations
from utils.boxes import Boxes, xywhn2xyxy
from utils.data.data_yaml import read_data_yaml
from utils.images import imread, imwrite
from utils.runs import OutputFiles

NAMES = {0: "cat", 1: 'Bär & "dog\'s" <a>, b', 2: "two  words", 3: "unused"}
ODD = (
    "plain",
    "a b  c",
    "größe é 猫",
    "q'uo\"te",
    "x&<y>;z",
    "comma, semi; 50%25",
    "line\nbreak",
    "a.b.c",
    "#hash?d=1",
)
EXACT = {"yolo": 1e-8, "labelstudio": 1e-12}  # of the image's side; others are rounded, pixels:
ROUNDED = {"voc": 0.005, "cvat": 0.005, "coco": 0.0011}
FLOAT = 2e-7  # of the image's side: labels are single precision with eight digits


def make_images(folder: Path, rng: np.random.Generator) -> dict[Path, Boxes]:
    """Images of odd names and sizes, one of 1x1 pixel, with 0 to 5 boxes."""
    found = {}
    for k, stem in enumerate(ODD):
        size = (1, 1) if k == 1 else tuple(rng.integers(2, 90, 2).tolist())
        path = folder / ("sub" if k % 3 == 2 else "") / f"{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        imwrite(path, rng.integers(0, 255, (*size, 3), dtype=np.uint8))
        n = 0 if k == 3 else int(rng.integers(1, 6))
        low = rng.uniform(0, 0.7, (n, 2))
        xyxy = np.concatenate([low, low + rng.uniform(0.05, 0.3, (n, 2))], axis=1) * np.array(
            [*size[::-1], *size[::-1]]
        )
        found[path] = Boxes(xyxy, rng.integers(0, 3, n), np.sort(rng.uniform(0.3, 1, n))[::-1])
    return found


def write(kind: str, folder: Path, found: dict[Path, Boxes], root: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with PreAnnotations(kind, OutputFiles(folder), NAMES, root) as annotations:
        for path, boxes in found.items():
            annotations.add(path, imread(path), boxes, path.stem, is_frame=False)
    return folder / "annotations"


def submitted(tasks: Path) -> Path:
    """The tasks as Label Studio exports them when each prediction was submitted as it is."""
    content = json.loads(tasks.read_text())
    for k, task in enumerate(content, start=1):
        task |= {"id": k, "annotations": [{"result": task["predictions"][0]["result"], "was_cancelled": False}]}
    tasks.write_text(json.dumps(content))
    return tasks


def read_set(out: Path) -> dict[str, tuple[list[str], np.ndarray]]:
    """Name of an image -> class names and corners in pixels, from both splits of a data set."""
    data, found = read_data_yaml(out / "data.yaml"), {}
    for split in (path.name for path in (out / "images").iterdir()):
        scan = data.scan(split)
        for i, path in enumerate(scan.paths.tolist()):
            rows = slice(scan.offsets[i], scan.offsets[i + 1])
            xyxy = xywhn2xyxy(scan.xywhn[rows].astype(np.float64), scan.size(i))
            name = Path(path).relative_to(out.resolve() / "images" / split).as_posix()
            found[name] = ([data.names[label] for label in scan.label[rows].tolist()], xyxy)
    return found


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("seed", range(3))
def test_what_is_proposed_comes_back(kind: str, seed: int, tmp_path: Path) -> None:
    """Every image, class name and box, whatever the names hold; XML is well-formed."""
    images = tmp_path / "photos, all"
    found = make_images(images, np.random.default_rng(seed))
    folder = write(kind, tmp_path / "run", found)
    for file in folder.rglob("*.xml"):
        ElementTree.fromstring(file.read_text(encoding="utf-8"))
    if kind == "labelstudio":
        submitted(folder / "tasks.json")
    summary = import_labels(ImportConfig(str(folder), str(images), out=str(tmp_path / "set"), val=0.3))
    assert sum(summary.images.values()) == len(found) and summary.boxes == sum(map(len, found.values()))
    back = read_set(tmp_path / "set")
    assert set(back) == {path.relative_to(images).as_posix() for path in found}
    for path, boxes in found.items():
        names, xyxy = back[path.relative_to(images).as_posix()]
        h, w = imread(path).shape[:2]
        limit = np.array([w, h, w, h]) * (EXACT.get(kind, 0) + FLOAT) + ROUNDED.get(kind, 0)
        assert names == [NAMES[label] for label in boxes.label.tolist()]
        assert (np.abs(xyxy - boxes.xyxy) <= limit).all()
    in_order = import_labels(
        ImportConfig(str(folder), str(images), str(folder / "classes.txt"), str(tmp_path / "same"), val=0)
    )
    assert in_order.classes == len(NAMES) and list(read_data_yaml(tmp_path / "same").names.values()) == list(
        NAMES.values()
    )
    given = list(yaml.safe_load((tmp_path / "set" / "data.yaml").read_text())["names"].values())
    assert (
        given == list(NAMES.values())
        if kind in ("yolo", "coco", "cvat")
        else set(given) == set(NAMES.values()) - {"unused"}
    )


def test_scores_are_where_the_tools_look_for_them(tmp_path: Path) -> None:
    image = tmp_path / "in" / "a.png"
    image.parent.mkdir()
    imwrite(image, np.zeros((50, 200, 3), np.uint8))
    boxes = Boxes(np.array([[20.0, 10, 60, 40]]), np.array([1]), np.array([0.875]))
    coco, cvat, studio = (write(kind, tmp_path / kind, {image: boxes}) for kind in ("coco", "cvat", "labelstudio"))
    (row,) = json.loads((coco / "annotations.json").read_text())["annotations"]
    assert (row["score"], row["bbox"], row["category_id"]) == (0.875, [20, 10, 40, 30], 2)
    box = ElementTree.fromstring((cvat / "annotations.xml").read_text()).find("image/box")
    assert box is not None and box.findtext("attribute[@name='score']") == "0.8750"
    assert [label["name"] for label in json.loads((cvat / "labels.json").read_text())] == list(NAMES.values())
    (task,) = json.loads((studio / "tasks.json").read_text())
    (region,) = task["predictions"][0]["result"]
    assert task["data"]["image"] == "/data/local-files/?d=in/a.png" and region["score"] == 0.875
    assert region["value"] == {
        "x": 10,
        "y": 20,
        "width": 20,
        "height": 60,
        "rotation": 0,
        "rectanglelabels": [NAMES[1]],
    }
    assert (region["original_width"], region["original_height"], region["image_rotation"]) == (200, 50, 0)
    labels = ElementTree.fromstring((studio / "interface.xml").read_text()).iter("Label")
    assert [label.get("value") for label in labels] == list(NAMES.values())


def test_local_files_are_named_from_the_root(tmp_path: Path) -> None:
    found = make_images(tmp_path / "deep" / "photos", np.random.default_rng(0))
    tasks = json.loads((write("labelstudio", tmp_path / "run", found, str(tmp_path)) / "tasks.json").read_text())
    places = {unquote(task["data"]["image"].partition("?d=")[2]) for task in tasks}
    assert places == {path.relative_to(tmp_path).as_posix() for path in found}
    with pytest.raises(ValueError, match=r"--annotate-root .* is not a folder below it"):
        write("labelstudio", tmp_path / "other", found, str(tmp_path / "deep" / "photos"))


def test_what_a_format_cannot_hold_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = [tmp_path / name for name in ("a\x01.png", "b.png", "b.jpg")]
    for image in images:
        imwrite(image, np.zeros((5, 5, 3), np.uint8))
    none = Boxes(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    folder = write("voc", tmp_path / "run", dict.fromkeys(images, none))
    assert [path.name for path in folder.glob("*.xml")] == ["b.xml"]
    assert "1 image left out" in caplog.text and "names voc cannot hold" in caplog.text
    assert "an earlier one has the label file" in caplog.text
    with pytest.raises(ValueError, match="has characters that it cannot hold"):
        PreAnnotations("cvat", OutputFiles(tmp_path), {0: "a\x01"})


def test_detect_writes_them_and_frames_become_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = str(write_tiny(tmp_path))
    gif = [np.full((64, 64, 3), v, np.uint8) for v in (40, 200)]
    Image.fromarray(gif[0]).save(tmp_path / "clip.gif", save_all=True, append_images=[Image.fromarray(gif[1])])
    caplog.set_level(logging.INFO)
    for kind, source in (("cvat", tmp_path / "images"), ("yolo", tmp_path / "clip.gif")):
        cfg = detect.DetectConfig(
            weights=weights, source=str(source), imgsz=(128,), conf_thres=0.01, nosave=True, annotate=kind, max_det=9
        )
        run = detect.main(detect.replace(cfg, project=str(tmp_path / "runs"), name=kind))
        summary = import_labels(
            ImportConfig(
                str(run / "annotations"), "" if kind == "yolo" else str(source), out=str(tmp_path / f"{kind}-set")
            )
        )
        assert sum(summary.images.values()) == (3 if kind == "cvat" else 2) and summary.boxes == 9 * sum(
            summary.images.values()
        )
    assert len(list((run / "annotations/images/train").glob("clip_*.jpg"))) == 2
    assert (
        f"annotations: {run / 'annotations'}" in caplog.text
        and f"for {kind}, docs/annotate.md" in caplog.text
        and "import_labels.py EXPORT --images" in caplog.text
    )


# ---- exports, as the tools write them -------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images of 100 x 200 (height, width)."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png", "c d.png"):
        imwrite(folder / name, np.zeros((100, 200, 3), np.uint8))
    return folder


def said(caplog: pytest.LogCaptureFixture, line: str) -> bool:
    """Whether a line 'what: count (...)' was printed for a '<count> <start of what>'."""
    count, _, what = line.partition(" ")
    return any(m.startswith(what) and re.search(rf": {count} \(", m) for m in caplog.messages)


def run_import(export: Path, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, **flags: str) -> dict:
    """The data set of an export, as read_set; the log has what was left out."""
    caplog.set_level(logging.INFO)
    out = tmp_path / f"set{len(list(tmp_path.glob('set*')))}"
    import_labels(ImportConfig(str(export), str(photos), out=str(out), **flags))  # type: ignore[arg-type]
    return read_set(out)


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><job><id>7</id><labels>
    <label><name>cell</name><color>#fa3253</color><type>any</type><attributes></attributes></label>
    <label><name>spot</name><attributes></attributes></label>
  </labels></job></meta>
  <image id="0" name="photos/a.png" width="200" height="100">
    <box label="spot" source="auto" occluded="0" xtl="0.00" ytl="0.00" xbr="0.50" ybr="1.00" z_order="0"></box>
    <box label="cell" source="manual" occluded="1" xtl="80" ytl="40" xbr="120" ybr="60" rotation="90" z_order="0">
      <attribute name="score">0.9</attribute><attribute name="blurred">true</attribute></box>
    <polygon label="cell" source="manual" occluded="0" points="10.00,10.00;30.00,20.00;20.00,50.00" z_order="0"/>
    <ellipse label="cell" source="manual" occluded="0" cx="100" cy="50" rx="20" ry="10" rotation="90.00" z_order="0"/>
    <mask label="cell" source="semi-auto" occluded="0" rle="1, 2" left="5" top="6" width="7" height="8" z_order="0"/>
    <polyline label="cell" source="manual" occluded="0" points="1,2;3,4" z_order="0"/>
    <points label="cell" source="manual" occluded="0" points="1,2" z_order="0"/>
    <box label="cell" source="manual" occluded="0" xtl="a" ytl="0" xbr="1" ybr="1" z_order="0"/>
    <tag label="cell" source="manual"/>
  </image>
  <image id="1" name="photos/b.png" width="200" height="100"></image>
  <image id="2" name="photos/gone.png" width="200" height="100"></image>
</annotations>
"""


def test_cvat(photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    export = tmp_path / "annotations.xml"
    export.write_text(CVAT)
    found = run_import(export, photos, tmp_path, caplog, names="")
    assert set(found) == {"a.png", "b.png"} and found["b.png"][0] == []
    names, xyxy = found["a.png"]
    wanted: list[list[float]] = [[0, 0, 0.5, 1], [90, 30, 110, 70], [10, 10, 30, 50], [90, 30, 110, 70], [5, 6, 12, 14]]
    wanted.pop(3)  # the ellipse's box is that of the turned box: given twice
    assert names == ["spot", "cell", "cell", "cell"] and np.allclose(xyxy, wanted, atol=1e-4)
    for line in (
        "1 rotated boxes, the upright box around each is used",
        "3 polygons, ellipses and masks, the box around each is used",
        "1 CVAT's shapes of the kind 'polyline', which have no box, left out",
        "1 CVAT's shapes of the kind 'points'",
        "1 CVAT's shapes of the kind 'tag'",
        "1 attributes 'blurred', which YOLO labels cannot hold",
        "1 annotations that cannot be read, left out",
        "1 boxes outside of their image",
        "1 images of the export that are not in",
        "1 images in",
    ):
        assert said(caplog, line), line
    assert "photos/a.png: box: xtl is a, expected a number" in caplog.text
    assert "CVAT for images 1.1: 2 images (1 train, 1 val), 4 boxes, 2 classes" in caplog.text
    export.write_text(CVAT.replace('<image id="1"', '<track id="0" label="cell"></track><image id="1"'))
    with pytest.raises(ValueError, match="CVAT for video"):
        run_import(export, photos, tmp_path, caplog)
    export.write_text(
        CVAT.replace("<annotations>", '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotations>')
    )
    with pytest.raises(ValueError, match=r"no export that is known.*DOCTYPE"):
        run_import(export, photos, tmp_path, caplog)


def region(kind: str, value: dict, **more: object) -> dict:
    return {"type": kind, "from_name": "label", "to_name": "image", "value": value} | {
        "original_width": 200,
        "original_height": 100,
        "image_rotation": 0,
        **more,
    }


def rectangle(x: float, y: float, w: float, h: float, name: str, rotation: float = 0, **more: object) -> dict:
    value = {"x": x, "y": y, "width": w, "height": h, "rotation": rotation, "rectanglelabels": [name]}
    return region("rectanglelabels", value, **more)


def test_label_studio(photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    square = {"x": 50, "y": 20, "width": 10, "height": 20, "rotation": 0}
    results = [
        rectangle(10, 20, 30, 40, "cell"),
        rectangle(50, 50, 10, 30, "cell", rotation=90),  # 20 x 30 pixels, turned about its upper left corner
        region("polygonlabels", {"points": [[1, 2], [3, 2], [2, 8]], "polygonlabels": ["spot"]}),
        region(
            "ellipselabels", {"x": 50, "y": 50, "radiusX": 5, "radiusY": 20, "rotation": 0, "ellipselabels": ["spot"]}
        ),
        region("keypointlabels", {"x": 1, "y": 1, "width": 0.2, "keypointlabels": ["cell"]}),
        region("brushlabels", {"format": "rle", "rle": [1, 2], "brushlabels": ["cell"]}),
        region("rectangle", square, id="r"),
        region("labels", square | {"labels": ["spot", "cell"]}, id="r"),
        region("rectangle", square | {"x": 5}),
        {"type": "choices", "from_name": "quality", "to_name": "image", "value": {"choices": ["good"]}},
        rectangle("x", 0, 1, 1, "cell"),  # type: ignore[arg-type]
    ]
    old = {"result": [], "was_cancelled": False, "updated_at": "2025-01-01T00:00:00Z"}
    new = {"result": results, "was_cancelled": False, "updated_at": "2026-01-01T00:00:00Z"}
    tasks = [
        {"id": 1, "data": {"image": "/data/local-files/?d=photos/a.png"}, "annotations": [new, old], "predictions": []},
        {"id": 2, "data": {"image": "/data/upload/3/0a1b2c3d-b.png"}, "annotations": [{"result": []}]},
        {"id": 3, "data": {"image": "s3://bucket/c%20d.png"}, "annotations": [old | {"was_cancelled": True}]},
        {"id": 4, "data": {"image": "http://x/gone.png?sig=1"}, "annotations": [old]},
        {"id": 5, "data": {"text": "no image"}, "annotations": [old]},
    ]
    export = tmp_path / "project-1.json"
    export.write_text(json.dumps(tasks))
    found = run_import(export, photos, tmp_path, caplog)
    assert set(found) == {"a.png", "b.png"} and found["b.png"][0] == []
    names, xyxy = found["a.png"]
    wanted = [
        [20, 20, 80, 60],
        [70, 50, 100, 70],
        [2, 2, 6, 8],
        [90, 30, 110, 70],
        [100, 20, 120, 40],
        [100, 20, 120, 40],
    ]
    assert names == ["cell", "cell", "spot", "spot", "spot", "cell"] and np.allclose(xyxy, wanted, atol=1e-4)
    for line in (
        "1 images with several annotations, the newest is used",
        "1 rotated boxes",
        "2 polygons, ellipses and masks",
        "1 Label Studio's shapes 'keypointlabels'",
        "1 Label Studio's shapes 'brushlabels'",
        "1 boxes without a class, left out",
        "1 results 'choices', which are no boxes",
        "1 annotations that cannot be read",
        "1 images that nobody has labeled",
        "1 tasks without an image",
        "1 images of the export that are not in",
    ):
        assert said(caplog, line), line
    tasks[0]["annotations"][0]["result"][0]["image_rotation"] = 90  # type: ignore[index]
    export.write_text(json.dumps(tasks))
    tasks[1]["annotations"] = [{"result": [rectangle(0, 0, 50, 50, "cell")]}]
    export.write_text(json.dumps(tasks))
    assert set(run_import(export, photos, tmp_path, caplog)) == {"b.png"}
    assert said(caplog, "1 images that were rotated in Label Studio")


def test_label_studio_min(photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    box = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0, "rectanglelabels": ["cell"]}
    more = {
        "annotator": 1,
        "annotation_id": 5,
        "created_at": "2026-01-01",
        "updated_at": "2026-01-01",
        "lead_time": 1.0,
    }
    items = [
        {"image": "/data/upload/1/12345678__c_d.png", "id": 1, "label": [box], "quality": "good", **more},
        {"image": "/data/upload/1/12345678-a.png", "id": 2, **more},
        {"image": "/data/upload/1/12345678-b.png", "id": 3, **more, "annotation_id": None},
    ]
    export = tmp_path / "min.json"
    export.write_text(json.dumps(items))
    found = run_import(export, photos, tmp_path, caplog)
    assert set(found) == {"a.png", "c d.png"} and found["a.png"][0] == []
    assert found["c d.png"][0] == ["cell"] and np.allclose(found["c d.png"][1], [[20, 20, 80, 60]], atol=1e-4)
    assert said(caplog, "1 images that nobody has labeled")


def test_coco_in_a_zip(photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As CVAT writes it: turned boxes in an attribute, polygons, a crowd; with the images in the zip."""
    shapes: list[dict[str, object]] = [
        {"bbox": [10, 20, 30, 40], "segmentation": [[10, 20, 40, 20, 40, 60, 10, 60]], "attributes": {"rotation": 0.0}},
        {"bbox": [80, 40, 40, 20], "segmentation": [], "attributes": {"occluded": False, "rotation": 90.0}},
        {"bbox": [], "segmentation": [[1, 2, 9, 4, 5, 30]]},
        {"bbox": [0, 0, 50, 50], "iscrowd": 1, "segmentation": {"size": [100, 200], "counts": [1]}},
    ]
    rows: list[dict[str, object]] = [
        {"id": k, "image_id": 1, "category_id": 2, **shape} for k, shape in enumerate(shapes)
    ]
    images: list[dict[str, object]] = [{"id": 1, "file_name": "a.png", "width": 200, "height": 100}]
    images.append(images[0] | {"id": 2, "file_name": "c d.png"})
    content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "x"}, {"id": 2, "name": "cell"}]}
    export = tmp_path / "export.zip"
    with zipfile.ZipFile(export, "w") as file:
        file.writestr("annotations/instances_default.json", json.dumps(content))
        for name in ("a.png", "c d.png"):
            file.write(photos / name, f"images/default/{name}")
        file.writestr("../escape.txt", "x")
    caplog.set_level(logging.INFO)
    import_labels(ImportConfig(str(export), out=str(tmp_path / "set"), names=""))
    found = read_set(tmp_path / "set")
    assert found["a.png"][0] == ["cell"] * 3 and found["c d.png"][0] == []
    assert np.allclose(found["a.png"][1], [[10, 20, 40, 60], [90, 30, 110, 70], [1, 2, 9, 30]], atol=1e-4)
    assert all(said(caplog, line) for line in ("1 rotated boxes", "2 polygons", "1 crowds and difficult"))
    assert not (tmp_path / "escape.txt").exists()


def test_voc_and_yolo_with_classes_in_a_given_order(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """New classes are appended; images without a file are not background, an empty file is."""
    voc, yolo = tmp_path / "voc" / "Annotations", tmp_path / "yolo"
    voc.mkdir(parents=True)
    corners = "<bndbox><xmin>80</xmin><ymin>40</ymin><xmax>120</xmax><ymax>60</ymax></bndbox>"
    turned = "<attributes><attribute><name>rotation</name><value>90.0</value></attribute></attributes>"
    (voc / "a.xml").write_text(
        "<annotation><filename>a.png</filename><size><width>200</width><height>100</height></size>"
        f"<object><name>new</name>{corners}</object><object><name>cell</name>{corners}{turned}</object></annotation>"
    )
    (voc / "c d.xml").write_text("<annotation></annotation>")
    order = tmp_path / "classes.txt"
    order.write_text("spot\ncell\n")
    found = run_import(voc.parent, photos, tmp_path, caplog, names=str(order))
    assert set(found) == {"a.png", "c d.png"} and found["a.png"][0] == ["new", "cell"]
    assert np.allclose(found["a.png"][1], [[80, 40, 120, 60], [90, 30, 110, 70]], atol=1e-4)
    assert yaml.safe_load((tmp_path / "set0" / "data.yaml").read_text())["names"] == {0: "spot", 1: "cell", 2: "new"}
    assert "1 new class, appended: new" in caplog.text and said(caplog, "1 images in")
    (yolo / "obj_train_data").mkdir(parents=True)  # as CVAT's YOLO 1.1 has it
    (yolo / "obj.names").write_text("cell\nspot\n")
    (yolo / "train.txt").write_text("data/obj_train_data/a.png\n")
    (yolo / "obj_train_data" / "a.txt").write_text("1 0.5 0.5 0.2 0.2\n0 0.1 0.1 0.2 0.1 0.2 0.3\n")
    (yolo / "obj_train_data" / "b.txt").write_text("")
    found = run_import(yolo, photos, tmp_path, caplog, names=str(order))
    assert set(found) == {"a.png", "b.png"} and found["a.png"][0] == ["spot", "cell"]
    assert np.allclose(found["a.png"][1], [[80, 40, 120, 60], [20, 10, 40, 30]], atol=1e-4)
    assert said(caplog, "1 polygons")


def test_mistakes_are_one_line(photos: Path, tmp_path: Path) -> None:
    export = tmp_path / "export.json"
    out = str(tmp_path / "set")
    cases = {"[]": "no export that is known", "{": "not JSON", '[{"id": 1}]': "the export has no class"}
    for text, message in cases.items():
        export.write_text(text)
        with pytest.raises(ValueError, match=message) as caught:
            import_labels(ImportConfig(str(export), str(photos), out=out))
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    for flags, kind in (
        ({"out": ""}, ValueError),
        ({"out": str(photos)}, ValueError),
        ({"images": "none"}, FileNotFoundError),
    ):
        export.write_text(
            json.dumps([{"data": {"image": "a.png"}, "annotations": [{"result": [rectangle(0, 0, 9, 9, "c")]}]}])
        )
        with pytest.raises(kind):
            import_labels(ImportConfig(**({"export": str(export), "images": str(photos), "out": out} | flags)))  # type: ignore[arg-type]
    alone = shutil.copy(export, tmp_path / "new.json")
    (tmp_path / "empty").mkdir()
    alone = shutil.move(alone, tmp_path / "empty" / "new.json")
    with pytest.raises(ValueError, match="has no images, expected --images"):
        import_labels(ImportConfig(str(alone), out=out))
    assert not Path(out).exists()


def mutated(value: object, rng: np.random.Generator, junk: list[object]) -> object:
    """A copy of JSON content in which about one value in 25 is replaced by junk, or left out."""
    if rng.random() < 0.04:
        return junk[rng.integers(len(junk))]
    if isinstance(value, dict):
        return {key: mutated(item, rng, junk) for key, item in value.items() if rng.random() > 0.02}
    if isinstance(value, list):
        return [mutated(item, rng, junk) for item in value]
    return value


def test_damaged_exports_end_in_one_line_or_are_read(photos: Path, tmp_path: Path) -> None:
    junk: list[object] = [None, True, -1, 1e400, "", "x", [], {}, [1], [[1, 2, 3]], {"a": 1}, "NaN", 10**400, "a\udcff"]
    square = {"x": 50, "y": 20, "width": 10, "height": 20, "rotation": 5}
    regions = [
        rectangle(10, 20, 30, 40, "cell", id="r"),
        region("polygonlabels", {"points": [[1, 2], [3, 2], [2, 8]], "polygonlabels": ["spot"]}),
        region(
            "ellipselabels", {"x": 50, "y": 5, "radiusX": 5, "radiusY": 2, "rotation": 9, "ellipselabels": ["spot"]}
        ),
        region("rectangle", square, id="r"),
    ]
    tasks = [{"id": 1, "data": {"image": "a.png"}, "annotations": [{"result": regions, "was_cancelled": False}]}]
    least = [{"id": 1, "image": "a.png", "label": [square | {"rectanglelabels": ["cell"], "original_width": 9}]}]
    outline = [[1, 2, 9, 4, 5, 30]]
    rows = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "attributes": {"rotation": 5.0}}]
    rows += [{"id": 2, "image_id": 1, "category_id": 1, "bbox": [], "segmentation": outline}]
    image = {"id": 1, "file_name": "a.png", "width": 200, "height": 100}
    coco = {"images": [image], "annotations": rows, "categories": [{"id": 1, "name": "cell"}]}
    rng, read, export = np.random.default_rng(0), 0, tmp_path / "export.json"
    for k in range(240):
        export.write_text(json.dumps(mutated((tasks, least, coco)[k % 3], rng, junk)))
        try:
            import_labels(ImportConfig(str(export), str(photos), out=str(tmp_path / f"set{k}")))
            read += 1
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 400
    for k in range(100):
        words = re.split(r'(?<=")([^"<>]*)(?=")', CVAT)
        for place in range(1, len(words), 2):
            if rng.random() < 0.02:
                words[place] = ["", "x", "-5", "1e999", "nan", ";,;"][rng.integers(6)]
        export.with_suffix(".xml").write_text("".join(words))
        try:
            import_labels(ImportConfig(str(export.with_suffix(".xml")), str(photos), out=str(tmp_path / f"xml{k}")))
            read += 1
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 400
    assert 100 < read < 340


def test_images_for_validation_stay_when_the_set_grows() -> None:
    names = [Path(f"{k}.jpg") for k in range(200)]
    few, many = (validation({path: path.name for path in names[:n]}, 0.2) for n in (40, 200))
    assert few <= many and 20 < len(many) < 60
    assert len(validation({path: path.name for path in names[:2]}, 0.2)) == 1
    assert not validation({names[0]: "a"}, 0.5) and not validation({path: path.name for path in names}, 0)


def test_the_box_around_a_turned_one() -> None:
    assert np.allclose(around_turned((0, 0, 20, 30), 90, (0, 0)), (-30, 0, 0, 20))
    assert np.allclose(around_turned((80, 40, 120, 60), 180, (100, 50)), (80, 40, 120, 60))


def test_verdicts_of_the_study() -> None:
    """A label belongs to one box; the good one comes before a better score."""
    truth = Boxes.labeled(
        np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10.0]]), np.array([0, 0, 1, 1])
    )
    xyxy = np.array([[0, 0, 10, 14.0], [0, 0, 10, 10], [20, 0, 30, 15], [40, 0, 50, 10], [80, 0, 90, 10]])
    found = Boxes(xyxy, np.array([0, 0, 0, 0, 1]), np.array([0.9, 0.8, 0.7, 0.6, 0.5]))
    assert judge(found, truth, 0.75) == (["delete", "right", "move", "rename", "unlabeled"], 1)
    assert judge(found[:0], truth, 0.75) == ([], 4) and judge(found[:1], truth[:0], 0.75) == (["unlabeled"], 0)
