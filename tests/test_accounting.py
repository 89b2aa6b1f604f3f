"""Every file of a data set is accounted for: found, matched under another name, passed over, skipped or refused."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_sets import noise, to_boxes, write_set
from shared import shared

from utils.data.data_yaml import read_data_yaml
from utils.data.labels import TextLabels, read_labels
from utils.data.listing import find_images, list_images, read_image_list
from utils.data.scan import Scan, cache_file, scan
from utils.images import imwrite
from val import warn_of_max_det


def make(root: Path, count: int = 4) -> list[Path]:
    boxes = [to_boxes([i % 2, 5, 5, 20, 30]) for i in range(count)]
    write_set(root, [noise((40, 50), i) for i in range(count)], boxes, ["a", "b"])
    return sorted((root / "images").iterdir())


def log_of(root: Path, caplog: pytest.LogCaptureFixture) -> tuple[Scan, list[str]]:
    """The scan of the train split, and what it logs."""
    caplog.set_level(logging.INFO)
    caplog.clear()
    found = read_data_yaml(root / "data.yaml").scan("train")
    return found, [record.getMessage() for record in caplog.records]


def test_one_line_when_all_is_well(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path)
    for _ in range(2):  # from the files, then from the cache
        _, lines = log_of(tmp_path, caplog)
        assert len(lines) == 1 and "4 images, 0 of them background, 4 boxes, 0 bad images" in lines[0]


# ---- images ---------------------------------------------------------------------------------------------------------


def test_hidden_and_system_folders_are_skipped_and_other_suffixes_counted(tmp_path: Path, caplog) -> None:
    images = make(tmp_path)
    for place in (".ipynb_checkpoints/a-checkpoint.png", "@eaDir/a.png/thumb.png", "__MACOSX/b.png", "._000000.png"):
        file = images[0].parent / place
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(images[0], file)
    for name in ("x.gif", "y.gif", "z.psd"):
        (images[0].parent / name).write_bytes(b"")
    found, lines = log_of(tmp_path, caplog)
    assert len(found) == 4
    assert any(line.startswith("skipped 4 hidden or system names: ") for line in lines)
    assert any("passed over, no images by their suffix: 2 .gif, 1 .psd" in line for line in lines)


def test_links_are_followed_once_and_loops_are_broken(tmp_path: Path, caplog) -> None:
    images = make(tmp_path / "a")
    make(tmp_path / "b", 3)
    (tmp_path / "a/images/more").symlink_to(tmp_path / "b/images")
    (tmp_path / "b/images/back").symlink_to(tmp_path / "a/images")
    (tmp_path / "a/images/again").symlink_to(tmp_path / "a/images")
    listing = find_images([tmp_path / "a/images"])
    assert len(listing.images) == 7 and set(images) < set(listing.images)
    assert any(note.startswith("followed 1 linked folder") for note in listing.notes)
    assert any(note.startswith("not followed: 2 linked folders whose target was seen") for note in listing.notes)
    found, lines = log_of(tmp_path / "a", caplog)
    assert found.box_count == 7  # with the label files of the linked images
    assert any(line.startswith("3 label files found under another name or place") for line in lines)


def test_lists_of_other_machines(tmp_path: Path) -> None:
    images = make(tmp_path)
    file = tmp_path / "list.txt"
    for text in (".\\images\\{}", "./images/{}", "images/{}"):
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            file.write_text("\n".join(text.format(image.name) for image in images), encoding=encoding)
            assert read_image_list(file) == ([tmp_path / "images" / i.name for i in images], [])
    file.write_text("\n".join(f"/data/obj/images/{image.name}" for image in images))
    found, notes = read_image_list(file)
    assert found == images and "4 lines found without the first folders of the name" in notes[0]
    file.write_text(f"images/{images[0].name}\nimages/gone.png\n")
    assert read_image_list(file)[1] == [f"{file}: 1 of 2 lines name no file: images/gone.png"]
    file.write_text(f"elsewhere/{images[0].name}\nother/b.png\n")  # another folder: not the same image
    with pytest.raises(ValueError, match=r"list\.txt: none of its 2 lines is a file, such as 'elsewhere/000000\.png'"):
        list_images([file])
    file.write_bytes(b"\xff\x81\x00")
    with pytest.raises(ValueError, match=r"list\.txt: not UTF-8 text"):
        list_images([file])


def test_no_images_says_what_was_seen(tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no images, expected .*; passed over, .* 1 \.gif"):
        list_images([tmp_path])


# ---- label files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["{}.png.txt", "{}.TXT", "{}.Txt"])
def test_label_files_of_other_spelling_are_used_and_named(tmp_path: Path, caplog, other: str) -> None:
    images = make(tmp_path)
    for image in images[:2]:
        (tmp_path / "labels" / f"{image.stem}.txt").rename(tmp_path / "labels" / other.format(image.stem))
    found, lines = log_of(tmp_path, caplog)
    assert np.diff(found.offsets).tolist() == [1, 1, 1, 1]
    assert len(lines) == 2 and lines[0].startswith("2 label files found under another name or place: ")


def test_an_image_in_capitals_does_not_get_the_labels_of_another(tmp_path: Path, caplog) -> None:
    images = make(tmp_path)
    shutil.copy(images[0], tmp_path / "images" / "A.png")
    imwrite(tmp_path / "images" / "a.png", noise((40, 50), 8))
    (tmp_path / "labels" / "a.txt").write_text("0 .5 .5 .5 .5\n")
    found, lines = log_of(tmp_path, caplog)
    counts = dict(zip([Path(path).name for path in found.paths], np.diff(found.offsets).tolist(), strict=True))
    assert counts["a.png"] == 1 and counts["A.png"] == 0
    assert any(
        "1 image without a label file, read as background, 1 of them where other images have" in x for x in lines
    )


def test_labels_beside_images_that_lie_in_a_folder_called_images(tmp_path: Path, caplog) -> None:
    images = make(tmp_path)
    for file in (tmp_path / "labels").iterdir():
        file.rename(images[0].parent / file.name)
    found, lines = log_of(tmp_path, caplog)
    assert len(found) == found.box_count == 4 and lines[0].startswith("4 label files found under another name or place")


def test_orphans_and_images_without_labels_are_counted(tmp_path: Path, caplog) -> None:
    images = make(tmp_path, 6)
    (tmp_path / "labels" / "classes.txt").write_text("a\nb\n")
    for image in images[:2]:
        image.unlink()
    (tmp_path / "labels" / f"{images[5].stem}.txt").unlink()
    _, lines = log_of(tmp_path, caplog)
    assert any(line.startswith("2 label files without an image: ") and "000000.txt" in line for line in lines)
    assert any(line.startswith("1 image without a label file, read as background, 1 of them where") for line in lines)


def test_a_list_of_some_images_has_no_orphans(tmp_path: Path) -> None:
    images = make(tmp_path, 6)
    assert TextLabels(2).match(images[:3]) == []


def test_two_images_of_one_stem_are_said_to_share_labels(tmp_path: Path) -> None:
    images = make(tmp_path)
    shutil.copy(images[0], images[0].with_suffix(".jpg"))
    (note,) = TextLabels(2).match(list_images([tmp_path / "images"]))
    assert note.startswith("1 label file used for several images of that name: ")


# ---- rows that are no YOLO labels -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "looks"),
    [
        ("0 320 240 100 80", "looks like pixels: divide by the image's width and height;"),
        ("0 50 50 10 20\n1 99 20 1 5", "pixels: divide by the image's width and height, or percent: divide by 100"),
        ("0 99 99 80 80", "looks like percent: divide by 100;"),
        ("0 5000 5000 1 1", "is far outside the image;"),
    ],
)
def test_boxes_in_pixels_and_percent_are_called_that(tmp_path: Path, rows: str, looks: str) -> None:
    file, size = tmp_path / "a.txt", (100, 110) if "99 99" in rows else (480, 640)
    file.write_text(rows)
    labels = read_labels(file, 2, size)
    assert len(labels.label) == 0 and len(labels.errors) == 1
    assert labels.errors[0].startswith(f"{file}:1: box ") and looks in labels.errors[0]


def test_face_rows_are_refused_and_polygons_of_seven_points_are_not(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("0 0.5 0.5 0.2 0.4 0.45 0.42 0.55 0.42 0.5 0.5 0.46 0.58 0.54 0.58\n0 .5 .5 .2 .2" + " -1" * 10)
    labels = read_labels(file, 1)
    assert len(labels.label) == 0 and all("5 face landmarks" in error for error in labels.errors[:2])
    rng = np.random.default_rng(0)
    for turn in (1, -1):
        for _ in range(300):  # convex polygons of seven points, both ways round, anywhere
            angles = np.sort(rng.uniform(0, 2 * np.pi, 7))[::turn]
            center, radius = rng.uniform(0.2, 0.8, 2), rng.uniform(0.02, 0.2, 2)
            points = center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
            file.write_text("0 " + " ".join(f"{value:.6f}" for value in points.ravel()))
            found = read_labels(file, 1)
            assert not found.errors and len(found.label) == 1
            np.testing.assert_allclose(found.xywhn[0, 2:], np.ptp(points, axis=0), atol=1e-5)


def test_label_files_in_utf_16(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.25 0.5\n", encoding="utf-16")
    assert read_labels(tmp_path / "a.txt", 1).xywhn.tolist() == [[0.5, 0.5, 0.25, 0.5]]


# ---- long lists -----------------------------------------------------------------------------------------------------


def test_long_lists_are_cut_and_a_file_holds_all(tmp_path: Path, caplog) -> None:
    images = make(tmp_path, 14)
    log_file = cache_file(images, TextLabels(2)).with_name("x")
    for image in images:
        (tmp_path / "labels" / f"{image.stem}.txt").write_text("0 .5 .5 0 0\n")
    caplog.set_level(logging.INFO)
    scan(images, 2)
    more = [r.getMessage() for r in caplog.records if r.getMessage().startswith("... and 4 more messages")]
    log_file = Path(more[0].partition("all in ")[2])
    assert len(log_file.read_text().splitlines()) == 14 and len(caplog.records) < 14
    for image in images:
        (tmp_path / "labels" / f"{image.stem}.txt").write_text("9 .5 .5 .1 .1\n")
    with pytest.raises(ValueError, match=r"(?s)14 label error.*and 4 more label errors, all in"):
        scan(images, 2)
    assert "class 9" in log_file.read_text()
    for image in images:
        (tmp_path / "labels" / f"{image.stem}.txt").write_text("1 .5 .5 .1 .1\n")
    scan(images, 2)
    assert not log_file.exists()


def test_more_labels_than_max_det_is_said(tmp_path: Path, caplog) -> None:
    images = make(tmp_path)
    (tmp_path / "labels" / "000001.txt").write_text("".join(f"0 0.5 0.5 0.1 0.{n}\n" for n in range(10, 15)))
    found = scan(images, 2)
    warn_of_max_det(found, 5)
    assert not caplog.records
    warn_of_max_det(found, 4)
    assert "--max-det 4: 1 image has more labels" in caplog.text and "000001.png has 5" in caplog.text


# ---- recorded situations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "images", "boxes", "says"),
    [
        ("cvat", 14, 28, "14 lines found without the first folders"),
        ("f_case", 6, 12, "4 label files found under another name"),
        ("f_jpgtxt", 6, 12, "4 label files found under another name"),
        ("f_upper", 6, 12, "4 label files found under another name"),
        ("jupyter", 6, 12, "skipped 2 hidden or system names"),
        ("l_bslash", 6, 12, ""),
        ("l_utf16", 6, 12, ""),
        ("o_mixed", 8, 16, "4 label files found under another name"),
        ("d1_exif_tif", 3, 6, ""),
        ("d4", 7, 14, ""),
    ],
)
def test_the_shared_cases_of_files(tmp_path: Path, caplog, case: str, images: int, boxes: int, says: str) -> None:
    shutil.copytree(shared(f"cases/train/{case}"), tmp_path / "set", copy_function=shutil.copyfile)
    for folder, _, _ in os.walk(tmp_path):
        os.chmod(folder, 0o755)
    found, lines = log_of(tmp_path / "set", caplog)
    assert (len(found), found.box_count) == (images, boxes) and int((np.diff(found.offsets) == 0).sum()) == 0
    assert any(says in line for line in lines) and len(lines) == (2 if says else 1)


@pytest.mark.parametrize(
    ("case", "says"), [("f_pixels", "looks like pixels"), ("f_face5", "15 numbers that look like a box and 5 face")]
)
def test_the_shared_cases_of_rows(tmp_path: Path, case: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_data_yaml(shared(f"cases/train/{case}") / "data.yaml").scan("train")
