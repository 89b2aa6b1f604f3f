"""The doctor's checks: each one finds its fault, and finds nothing in a set that has it not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from doctor_sets import LINES, NAMES, blotches, checks, doctor, fingerprint, healthy_set, voc_text
from PIL import Image

from utils.doctor.duplicates import Hashes, nearest
from utils.doctor.findings import ERROR, NOTE, WARNING
from utils.doctor.survey import ImageRecord
from utils.images import imread, imwrite


@pytest.fixture(scope="module", params=["yolo", "coco", "voc"])
def healthy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return healthy_set(tmp_path_factory.mktemp(str(request.param)), request.param)


def test_nothing_is_found_in_a_healthy_set_of_any_form(healthy: Path) -> None:
    before = fingerprint(healthy.parent)
    result = doctor(healthy)
    assert result.findings == [] and result.healthy and result.verdict == "Nothing would make training wrong."
    assert fingerprint(healthy.parent) == before  # no cache either


def test_counts_classes_sizes_and_recipe(healthy: Path) -> None:
    result = doctor(healthy)
    summary = result.summary
    assert summary.splits == ["train", "val", "test"]
    assert summary.facts["images"] == ["20", "3", "2"] and summary.facts["boxes"] == ["40", "6", "4"]
    assert [(row.name, row.counts, row.share) for row in summary.classes] == [(n, [20, 3, 2], 0.5) for n in NAMES]
    sizes = {row.name: row.counts for row in summary.sizes}
    assert sizes["32 to 96 px"] == [40, 6, 4] and sum(map(sum, sizes.values())) == 50
    line = "recipe of train.py: AdamW, learning rate 0.004, batch 16, mosaic 100%, not in the last 15 epochs"
    assert result.recipe == (line,)


# ---- faults of files ------------------------------------------------------------------------------------------------


def first(root: Path) -> tuple[Path, Path]:
    """The first image of train and its label file."""
    return root / "images/train/train0.png", root / "labels/train/train0.txt"


def edit_yaml(root: Path, **values: object) -> None:
    content = yaml.safe_load((root / "data.yaml").read_text())
    content.update(values)
    (root / "data.yaml").write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))


def empty_split(root: Path) -> None:
    shutil.rmtree(root / "images/val")
    (root / "images/val").mkdir()


def missing_file(root: Path) -> None:
    (root / "train.txt").write_text("images/train/train0.png\nimages/train/train1.png\nimages/train/gone.png\n")
    edit_yaml(root, train="train.txt")


def unreadable(root: Path) -> None:
    first(root)[0].write_bytes(b"no image")
    (root / "images/train/train1.png").write_bytes(b"")
    (root / "images/val/val0.png").write_bytes(b"")  # which is no copy of the one in train


def all_unreadable(root: Path) -> None:
    for image in (root / "images/train").iterdir():
        image.write_bytes(b"no image")


def damaged(root: Path) -> None:
    content = first(root)[0].read_bytes()
    chunk = b"\0\0\0\4tEXta\0bc" + b"crc?"  # a comment with a wrong check sum, which only Pillow minds
    first(root)[0].write_bytes(content[:33] + chunk + content[33:])


def no_label_files(root: Path) -> None:
    shutil.rmtree(root / "labels/train")


def most_without_label_file(root: Path) -> None:
    for i in range(15):
        (root / f"labels/train/train{i}.txt").unlink()


def orphaned_txt(root: Path) -> None:
    (root / "labels/train/nothing.txt").write_text(LINES)


def passed_over(root: Path) -> None:
    (root / "images/train/a.psd").write_bytes(b"8BPS")


def hidden(root: Path) -> None:
    (root / "images/train/.ipynb_checkpoints").mkdir()
    shutil.copy(first(root)[0], root / "images/train/.ipynb_checkpoints/a.png")


def linked(root: Path) -> None:
    (root / "elsewhere").mkdir()
    imwrite(root / "elsewhere/new.png", blotches(901))
    (root / "elsewhere/new.txt").write_text(LINES)
    os.symlink(root / "elsewhere", root / "images/train/more")
    (root / "labels/train/more").mkdir()
    (root / "labels/train/more/new.txt").write_text(LINES)


def other_name(root: Path) -> None:
    label = first(root)[1]
    label.rename(label.with_name("TRAIN0.TXT"))


def backslashes(root: Path) -> None:
    names = [f"images/train/train{i}.png" for i in range(20)]
    (root / "train.txt").write_text("\n".join(f"/somewhere/data/{name}" for name in names))
    edit_yaml(root, train="train.txt")


def shared_label(root: Path) -> None:
    imwrite(root / "images/train/train0.jpg", blotches(902))


def turned(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(blotches(903)).save(root / "images/train/phone.jpg", exif=exif)
    (root / "labels/train/phone.txt").write_text(LINES)


def gray(root: Path) -> None:
    Image.fromarray(blotches(904)[..., 0]).save(first(root)[0])


def pages(root: Path) -> None:
    frames = [Image.fromarray(blotches(905 + i)) for i in range(2)]
    frames[0].save(root / "images/train/pages.tif", save_all=True, append_images=frames[1:])
    (root / "labels/train/pages.txt").write_text(LINES)


# ---- faults of boxes ------------------------------------------------------------------------------------------------


def label(root: Path, text: str) -> None:
    first(root)[1].write_text(text)


def every_label(root: Path, text: str) -> None:
    for file in (root / "labels/train").iterdir():
        file.write_text(text)


def many_boxes(root: Path) -> None:
    rows = [f"0 {0.02 + 0.048 * x:.3f} {0.02 + 0.048 * y:.3f} 0.04 0.04\n" for x in range(20) for y in range(16)]
    label(root, "".join(rows))


def rare(root: Path) -> None:
    many_boxes(root)
    for i in range(1, 10):
        shutil.copy(first(root)[1], root / f"labels/train/train{i}.txt")
    for i in range(10, 20):
        (root / f"labels/train/train{i}.txt").write_text(LINES + "1 0.2 0.8 0.3 0.3\n" * (i < 19))


def moved_class(root: Path) -> None:
    every_label(root, LINES.splitlines()[0])


# ---- duplicates and leaks -------------------------------------------------------------------------------------------


def leak(root: Path) -> None:
    shutil.copy(first(root)[0], root / "images/val/other-name.png")
    (root / "labels/val/other-name.txt").write_text(LINES)


def same_folder(root: Path) -> None:
    edit_yaml(root, val="images/train")


def copied(root: Path, text: str = LINES) -> None:
    shutil.copy(first(root)[0], root / "images/train/copy.png")
    (root / "labels/train/copy.txt").write_text(text)


def near(root: Path, split: str) -> None:
    image = cv2.resize(imread(first(root)[0]), None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA)
    image = np.clip(image * 0.9 + 10, 0, 255).astype(np.uint8)
    imwrite(root / f"images/{split}/smaller.jpg", image)
    (root / f"labels/{split}/smaller.txt").write_text(LINES)


def versions(root: Path) -> None:
    for split, version, seed in (("train", "0123456789abcdef", 906), ("val", "fedcba9876543210", 907)):
        imwrite(root / f"images/{split}/photo_jpg.rf.{version}.png", blotches(seed))
        (root / f"labels/{split}/photo_jpg.rf.{version}.txt").write_text(LINES)


FAULTS: list[tuple[Callable[[Path], None], str, str]] = [
    (empty_split, "splits", ERROR),
    (lambda root: edit_yaml(root, train=None), "splits", ERROR),
    (lambda root: edit_yaml(root, val=None), "splits", WARNING),
    (lambda root: edit_yaml(root, test="images/gone"), "splits", WARNING),
    (missing_file, "unusable images", WARNING),
    (unreadable, "unusable images", WARNING),
    (all_unreadable, "unusable images", ERROR),
    (damaged, "damaged images", WARNING),
    (no_label_files, "unlabeled images", ERROR),
    (most_without_label_file, "unlabeled images", WARNING),
    (lambda root: first(root)[1].unlink(), "unlabeled images", NOTE),
    (orphaned_txt, "orphaned labels", WARNING),
    (passed_over, "passed over", WARNING),
    (hidden, "hidden files", NOTE),
    (linked, "linked folders", NOTE),
    (other_name, "misplaced labels", NOTE),
    (backslashes, "misplaced images", NOTE),
    (shared_label, "shared label files", ERROR),
    (turned, "orientation", WARNING),
    (gray, "image kinds", NOTE),
    (pages, "image kinds", WARNING),
    (lambda root: label(root, "0 0.5 0.5\n"), "label errors", ERROR),
    (lambda root: label(root, "7 0.5 0.5 0.1 0.1\n"), "label errors", ERROR),
    (lambda root: label(root, "0 60 50 40 40\n"), "label errors", ERROR),
    (lambda root: label(root, LINES + "0 0.9 0.2 0.4 0.2\n"), "boxes outside", WARNING),
    (lambda root: every_label(root, "0 0.9 0.2 0.4 0.2\n"), "boxes outside", ERROR),
    (lambda root: label(root, LINES + "0 0.5 0.5 0 0.1\n"), "boxes without area", WARNING),
    (lambda root: label(root, LINES + LINES.splitlines()[0]), "equal boxes", WARNING),
    (lambda root: label(root, LINES + "0 0.8 0.2 0.05 0.2\n"), "small boxes", NOTE),
    (lambda root: every_label(root, LINES + "0 0.8 0.2 0.05 0.2\n"), "small boxes", WARNING),
    (lambda root: label(root, LINES + "0 0.8 0.2 0.01 0.2\n"), "slivers", WARNING),
    (lambda root: label(root, LINES + "0 0.5 0.5 1 1\n"), "huge boxes", NOTE),
    (lambda root: every_label(root, "0 0.5 0.5 1 1\n"), "huge boxes", WARNING),
    (lambda root: label(root, LINES + "0 0.2188 0.2917 0.313 0.417\n"), "twins", WARNING),
    (lambda root: label(root, LINES + "1 0.2188 0.2917 0.313 0.417\n"), "twins of two classes", NOTE),
    (many_boxes, "crowded images", WARNING),
    (moved_class, "class balance", WARNING),
    (lambda root: edit_yaml(root, names=[*NAMES, "cow"]), "class balance", WARNING),
    (lambda root: label(root, ""), "class balance", NOTE),
    (rare, "class balance", NOTE),
    (leak, "leaks", ERROR),
    (same_folder, "leaks", ERROR),
    (copied, "copies", WARNING),
    (lambda root: copied(root, "1 0.5 0.5 0.5 0.5\n"), "contradicting copies", WARNING),
    (lambda root: near(root, "val"), "near-duplicates", WARNING),
    (lambda root: near(root, "train"), "near-duplicates", NOTE),
    (versions, "common sources", WARNING),
]


@pytest.mark.parametrize(("spoil", "check", "level"), FAULTS)
def test_each_fault_is_found(spoil: Callable[[Path], None], check: str, level: str, tmp_path: Path) -> None:
    data = healthy_set(tmp_path)
    spoil(tmp_path)
    before = fingerprint(tmp_path)
    result = doctor(data)
    assert checks(result).get(check) == level, checks(result)
    assert result.healthy == (ERROR not in checks(result).values())
    assert fingerprint(tmp_path) == before


def test_two_empty_files_are_no_copies(tmp_path: Path) -> None:
    data = healthy_set(tmp_path)
    unreadable(tmp_path)
    assert set(checks(doctor(data))) == {"unusable images", "class balance"}  # 18 boxes are left of each class


# ---- faults of annotation files -------------------------------------------------------------------------------------


def edit_json(root: Path, edit: Callable[[dict[str, list[dict[str, object]]]], object]) -> None:
    content = json.loads((root / "train.json").read_text())
    edit(content)
    (root / "train.json").write_text(json.dumps(content))


def all_crowds(content: dict[str, list[dict[str, object]]]) -> None:
    for row in content["annotations"]:
        row["iscrowd"] = 1


def lost_objects(content: dict[str, list[dict[str, object]]]) -> None:
    content["annotations"][0]["image_id"] = content["annotations"][1]["image_id"] = 999


def other_size(content: dict[str, list[dict[str, object]]]) -> None:
    content["images"][0]["width"] = 500


COCO_FAULTS: list[tuple[Callable[[dict[str, list[dict[str, object]]]], object], str, str]] = [
    (all_crowds, "crowds only", ERROR),
    (lost_objects, "orphaned labels", ERROR),
    (other_size, "image sizes", WARNING),
    (lambda c: c["images"].append({"id": 50, "file_name": "gone.png"}), "orphaned labels", WARNING),
    (lambda c: c["images"].pop(0), "unusable images", WARNING),
    (lambda c: c["annotations"][0].pop("bbox"), "label errors", ERROR),
    (lambda c: c.pop("categories"), "splits", ERROR),
    (lambda c: c["annotations"].append(c["annotations"][0] | {"id": 999}), "equal boxes", WARNING),
]


@pytest.mark.parametrize(("edit", "check", "level"), COCO_FAULTS)
def test_each_fault_of_coco_files(
    edit: Callable[[dict[str, list[dict[str, object]]]], object], check: str, level: str, tmp_path: Path
) -> None:
    data = healthy_set(tmp_path, "coco")
    edit_json(tmp_path, edit)
    assert checks(doctor(data)).get(check) == level


def test_faults_of_voc_files(tmp_path: Path) -> None:
    data = healthy_set(tmp_path, "voc")
    shutil.copy(tmp_path / "Annotations/train/train0.xml", tmp_path / "Annotations/train/nothing.xml")
    assert checks(doctor(data)) == {"orphaned labels": WARNING}
    (tmp_path / "Annotations/train/nothing.xml").unlink()
    (tmp_path / "Annotations/train/train1.xml").unlink()
    assert checks(doctor(data))["unlabeled images"] == NOTE
    for file in (tmp_path / "Annotations/train").iterdir():
        file.write_text(voc_text(difficult=1))
    assert checks(doctor(data))["crowds only"] == ERROR


# ---- near-duplicates of many images ---------------------------------------------------------------------------------


def test_near_duplicates_equal_a_plain_search_and_thousands_take_seconds() -> None:
    rng = np.random.default_rng(0)
    records = []
    for i in range(3000):
        bits = int(rng.integers(2**63)) if i % 3 else 0  # a third of the images has one hash
        thumb = rng.integers(0, 256, (16, 16), dtype=np.uint8)
        records.append(ImageRecord(Path(str(i)), size=(9, 9), digest=i.to_bytes(16, "little"), dhash=bits, thumb=thumb))
    for i in range(1, 3000, 30):  # copies that differ in two bits and a little in the miniature
        other = records[i]
        assert other.thumb is not None
        records[i + 1].dhash, records[i + 1].thumb = other.dhash ^ 5, np.clip(other.thumb, 3, 250)
    hashes = Hashes(records)
    found = {(int(str(a.path)), int(str(b.path))) for a, b, _ in nearest(hashes, hashes)}
    assert found == {(i + 1, i) for i in range(1, 3000, 30)}
