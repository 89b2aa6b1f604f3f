"""The doctor's repaired copy: nothing that can be corrected is left, and training reads the same boxes from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from doctor_sets import LINES, PIXELS, SIZE, blotches, checks, doctor, fingerprint, healthy_set, voc_text

from utils.boxes import xyxy2xywhn
from utils.data.data_yaml import read_data_yaml
from utils.images import imwrite

FIXABLE = {
    *("label errors", "boxes outside", "boxes without area", "equal boxes", "twins"),
    *("unusable images", "copies", "contradicting copies", "leaks", "shared label files"),
}
TRUTH = xyxy2xywhn(np.array([row[1:] for row in PIXELS]), SIZE)


def boxes_of(data: Path, split: str) -> dict[str, np.ndarray]:
    """Image's name -> (n, 5) class and box, sorted, as the scan of training reads them."""
    found = read_data_yaml(data).scan(split)
    rows = np.column_stack([found.label, found.xywhn])
    return {
        Path(str(path)).name: (own := rows[found.offsets[i] : found.offsets[i + 1]])[np.lexsort(own.T)]
        for i, path in enumerate(found.paths)
    }


@pytest.mark.parametrize("form", ["yolo", "coco", "voc"])
def test_a_healthy_set_is_copied_as_it_is(form: str, tmp_path: Path) -> None:
    data = healthy_set(tmp_path / "set", form)
    before = fingerprint(tmp_path / "set")
    doctor(data, fix=str(tmp_path / "out"))
    assert fingerprint(tmp_path / "set") == before
    copy = tmp_path / "out/data.yaml"
    for split in ("train", "val", "test"):
        ours, theirs = boxes_of(data, split), boxes_of(copy, split)
        assert ours.keys() == theirs.keys()
        for name, rows in ours.items():
            assert np.allclose(rows, theirs[name], rtol=0, atol=1e-6) and np.allclose(rows[:, 1:], TRUTH, atol=1e-6)
            image = f"images/{split}/{name}"
            assert (tmp_path / "set" / image).read_bytes() == (tmp_path / "out" / image).read_bytes()
    assert doctor(copy).findings == []
    assert not list(tmp_path.glob("*.part"))


def spoil(root: Path) -> None:
    """All faults that a repair takes away."""
    train, labels = root / "images/train", root / "labels/train"
    (labels / "train0.txt").write_text(
        f"{LINES}{LINES.splitlines()[0]}\n"  # the same box
        "0 0.9 0.2 0.4 0.2\n"  # outside
        "0 0.5 0.5 0 0.1\n"  # no area
        "1 0.7188 0.625 0.4372 0.5833\n"  # a twin
        "1 0.5 0.5\n"  # not a label
    )
    (labels / "train1.txt").write_text("0 60 50 40 40\n")  # pixels: not one label can be read
    shutil.copy(train / "train2.png", train / "copy.png")  # with fewer labels
    (labels / "copy.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    shutil.copy(train / "train3.png", root / "images/val/leak.png")
    (root / "labels/val/leak.txt").write_text(LINES)
    shutil.copy(root / "images/val/val0.png", root / "images/test/leak.png")
    (root / "labels/test/leak.txt").write_text(LINES)
    (train / "train4.png").write_bytes(b"no image")
    imwrite(train / "train5.jpg", blotches(900))  # with the label file of train5.png


def test_what_can_be_corrected_is_gone_from_the_copy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = healthy_set(tmp_path / "set")
    spoil(tmp_path / "set")
    before = fingerprint(tmp_path / "set")
    with caplog.at_level("INFO"):
        found = doctor(data, fix=str(tmp_path / "out"))
    assert checks(found).keys() >= FIXABLE  # the set has every fault
    assert fingerprint(tmp_path / "set") == before
    after = doctor(tmp_path / "out/data.yaml")
    assert not FIXABLE & checks(after).keys() and after.healthy
    train = boxes_of(tmp_path / "out/data.yaml", "train")
    names = {f"train{i}.png" for i in range(20) if i not in (1, 3, 4)}
    assert set(train) == {*names, "train5-2.jpg"} or set(train) == {
        *names - {"train5.png"},
        "train5.jpg",
        "train5-2.png",
    }
    clipped = [0, 0.85, 0.2, 0.3, 0.2]
    expected = np.array([[0, *TRUTH[0]], clipped, [1, *TRUTH[1]]])
    assert np.allclose(train["train0.png"], expected[np.lexsort(expected.T)], atol=1e-6)
    assert len(train["train2.png"]) == 2  # of copies the one with most boxes
    assert set(boxes_of(tmp_path / "out/data.yaml", "val")) == {"val1.png", "val2.png", "leak.png"}
    for line in (
        "1 labels dropped that cannot be read",
        "1 twins dropped",
        "1 copies of images dropped",
        "1 images dropped none of whose labels can be read",
        "1 images of train dropped that are in a later split",
        "1 images of val dropped that are in a later split",
        "1 images dropped that cannot be used",
        "1 images renamed that shared a label file",
    ):
        assert f"  {line}" in caplog.text, caplog.text


def test_crowds_of_annotation_files_are_dropped(tmp_path: Path) -> None:
    data = healthy_set(tmp_path / "set", "coco")
    file = tmp_path / "set/train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["iscrowd"] = 1
    file.write_text(json.dumps(content))
    doctor(data, fix=str(tmp_path / "out"))
    rows = boxes_of(tmp_path / "out/data.yaml", "train")
    assert len(rows["train0.png"]) == 1 and sum(map(len, rows.values())) == 39


def test_a_train_split_that_is_its_val_split_is_kept(tmp_path: Path) -> None:
    data = healthy_set(tmp_path / "set")
    content = yaml.safe_load(data.read_text()) | {"val": "images/train"}
    data.write_text(yaml.safe_dump(content))
    doctor(data, fix=str(tmp_path / "out"))
    copy = tmp_path / "out/data.yaml"
    assert len(boxes_of(copy, "train")) == len(boxes_of(copy, "val")) == 20
    assert "leaks" in checks(doctor(copy))  # what is left needs a decision


def test_folders_called_images_on_both_sides(tmp_path: Path) -> None:
    root = tmp_path / "set"
    data = healthy_set(root, "voc")
    for k, folder in enumerate(("site1/images", "site2")):
        (root / folder).mkdir(parents=True)
        imwrite(root / folder / f"{k}.png", blotches(800 + k))
        (root / f"Annotations/train/{k}.xml").write_text(voc_text())
    content = yaml.safe_load(data.read_text()) | {"train": ["site1", "site2"]}
    data.write_text(yaml.safe_dump(content))
    doctor(data, fix=str(tmp_path / "out"))
    rows = boxes_of(tmp_path / "out/data.yaml", "train")
    assert sorted(rows) == ["0.png", "1.png"] and all(np.allclose(r[:, 1:], TRUTH, atol=1e-6) for r in rows.values())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["data.yaml", "images", "labels"]


@pytest.mark.parametrize(
    "place", ["set", "set/images/train", "set/images/train/new", "set/labels/train/new", "file.txt"]
)
def test_never_in_place(place: str, tmp_path: Path) -> None:
    data = healthy_set(tmp_path / "set")
    (tmp_path / "file.txt").write_text("mine")
    before = fingerprint(tmp_path)
    with pytest.raises(ValueError, match=r"--fix .* expected"):
        doctor(data, fix=str(tmp_path / place))
    assert fingerprint(tmp_path) == before


def test_nothing_is_written_if_no_image_is_left(tmp_path: Path) -> None:
    data = healthy_set(tmp_path / "set")
    for split in ("train", "val", "test"):
        for file in (tmp_path / "set/labels" / split).iterdir():
            file.write_text("0 60 50 40 40\n")
    with pytest.raises(ValueError, match=r"no image of .* can be used"):
        doctor(data, fix=str(tmp_path / "out"))
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
