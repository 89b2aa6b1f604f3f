"""The built-in data set: what is drawn, that it repeats, and how folders are treated."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from data import make_shapes as shapes
from data import shape_drawing
from utils.files import REPO

SCRIPT = REPO / "data" / "make_shapes.py"
SMALL = {"train": 4, "val": 2, "clip_frames": 5}


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def command(out: Path, **numbers: int) -> list[str]:
    flags = [word for name, value in numbers.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return [sys.executable, str(SCRIPT), "--out", str(out), *flags]


@pytest.fixture(scope="module")
def drawn():
    return [shape_drawing.draw_image(0, shapes.TRAIN, index) for index in range(80)]


@pytest.fixture
def made(tmp_path):
    return shapes.ensure_shapes(tmp_path / "set", **SMALL).parent


@pytest.mark.parametrize("label", range(len(shape_drawing.NAMES)))
@pytest.mark.parametrize("size", [12, 30, 90])
def test_masks_fit_the_painted_pixels(label, size):
    rng = np.random.default_rng((label, size))
    for at in (40, -size // 3):  # whole, and cut by the top left corner
        layer = shape_drawing.draw_object(rng, label, size)
        layer.x = layer.y = at
        gray = np.full((160, 160, 3), 0.5, np.float32)
        canvas = gray.copy()
        shape_drawing.paint(rng, canvas, layer, shadow=0)
        changed = cv2.boundingRect((np.abs(canvas - gray).max(axis=2) > 0.01).astype(np.uint8))
        box = cv2.boundingRect(layer.mask(160, 160))
        assert np.abs(np.subtract(changed, box)).max() <= 2  # the rim is blended, half a pixel to either side
        if at > 0:
            assert abs(max(box[2:]) - size) <= 2


def test_labels_are_the_extent_of_the_masks(drawn):
    for image, layers, _ in drawn:
        h, w = image.shape[:2]
        rows = np.array(shapes.label_text(layers, h, w).split(), float).reshape(-1, 5)
        objects = [layer for layer in layers if layer.label >= 0]
        assert rows[:, 0].tolist() == [layer.label for layer in objects]
        assert (rows[:, 1:] > 0).all() and (rows[:, 1:] <= 1).all()
        for (cx, cy, bw, bh), layer in zip(rows[:, 1:], objects, strict=True):
            y, x = np.nonzero(layer.mask(h, w))
            edges = [x.min(), y.min(), x.max() + 1, y.max() + 1]
            corners = [(cx - bw / 2) * w, (cy - bh / 2) * h, (cx + bw / 2) * w, (cy + bh / 2) * h]
            np.testing.assert_allclose(corners, edges, atol=1e-3)


def test_objects_are_visible_varied_and_in_range(drawn):
    sides, visible, labels, counts = [], [], set(), []
    for image, layers, _ in drawn:
        covered = np.zeros(image.shape[:2], bool)
        counts.append(sum(layer.label >= 0 for layer in layers))
        for layer in layers:  # front to back
            mask = layer.mask(*covered.shape)
            if layer.label >= 0:
                labels.add(layer.label)
                sides.append(max(cv2.boundingRect(mask)[2:]))
                visible.append((mask.astype(bool) & ~covered).sum() / (layer.alpha >= 0.5).sum())
            covered |= mask.astype(bool)
    sides, visible = np.array(sides), np.array(visible)
    assert labels == set(range(len(shape_drawing.NAMES)))
    assert sides.min() >= shape_drawing.MIN_SIDE and sides.max() <= shape_drawing.MAX_SIDE
    assert ((sides >= 20) & (sides <= 120)).mean() > 0.75
    assert sides.min() < 20 and sides.max() > 120
    assert visible.min() >= shape_drawing.MIN_VISIBLE and (visible < 0.9).any() and (visible == 1).mean() > 0.4
    assert 0 in counts and max(counts) <= 12 and 2 < np.mean(counts) < 7
    assert len({image.shape for image, _, _ in drawn}) >= 4


def test_nine_of_ten_objects_have_the_hue_of_their_class():
    backdrop, rng = np.full(3, 0.5), np.random.default_rng(0)
    for label, hue in enumerate(shape_drawing.HUES):
        layer = shape_drawing.Layer(label, *[np.zeros((40, 40), np.float32)] * 3)
        hues = []
        for _ in range(300):
            color = shape_drawing.colorize(rng, layer, backdrop).mean(axis=(0, 1), dtype=np.float32)
            hues.append(cv2.cvtColor(color[None, None], cv2.COLOR_RGB2HSV)[0, 0, 0])
        off = (np.array(hues) - hue + 180) % 360 - 180
        assert 0.8 < np.mean(np.abs(off) < 2 * shape_drawing.HUE_SPREAD) < 1


def test_images_do_not_depend_on_their_order(drawn):
    again = shape_drawing.draw_image(0, shapes.TRAIN, 7)[0]
    assert np.array_equal(again, drawn[7][0])
    for other in ((0, shapes.VAL, 7), (1, shapes.TRAIN, 7)):
        assert not np.array_equal(again, shape_drawing.draw_image(*other)[0])


def test_same_seed_same_bytes(made, tmp_path):
    shapes.ensure_shapes(tmp_path / "again", **SMALL)
    assert files(made) == files(tmp_path / "again")
    shapes.ensure_shapes(tmp_path / "more", **{**SMALL, "train": 5})
    more = files(tmp_path / "more")
    assert all(more[name] == data for name, data in files(made).items() if name != "made.json")


def test_layout_of_the_set(made):
    config = yaml.safe_load((made / "data.yaml").read_text())
    assert config["path"] == "." and config["names"] == dict(enumerate(shape_drawing.NAMES))
    bundled = yaml.safe_load((SCRIPT.parent / "shapes.yaml").read_text())
    assert bundled == {**config, "path": "../datasets/shapes"}
    for split, count in (("train", 4), ("val", 2)):
        names = [f"{index:06d}" for index in range(count)]
        assert sorted(p.stem for p in (made / config[split]).glob("*.jpg")) == names
        assert sorted(p.stem for p in (made / "labels" / split).glob("*.txt")) == names
    image = cv2.imread(str(made / "images/train/000001.jpg"))[..., ::-1].astype(int)
    assert np.abs(image - shape_drawing.draw_image(0, shapes.TRAIN, 1)[0]).mean() < 8  # RGB was not stored as BGR


def test_clip_decodes_to_its_frame_count(made):
    video = cv2.VideoCapture(str(made / "clip.mp4"))
    frames = []
    while (read := video.read())[0]:
        frames.append(read[1])
    assert len(frames) == video.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    assert video.get(cv2.CAP_PROP_FPS) == 15
    assert all(frame.shape == (240, 320, 3) for frame in frames)
    assert np.abs(frames[0].astype(int) - frames[4]).mean() > 1


def test_set_is_drawn_once_with_one_line(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    out = tmp_path / "set"
    out.mkdir()  # an empty folder is filled
    assert shapes.ensure_shapes(out, **SMALL) == out / "data.yaml"
    assert [record.getMessage() for record in caplog.records] == [
        f"{out}: drawing the built-in data set, 6 images, about 1 s; nothing is downloaded"
    ]
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert shapes.ensure_shapes(out, **SMALL) == out / "data.yaml"
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == stamps and len(caplog.records) == 1
    assert list(tmp_path.iterdir()) == [out]


def test_two_processes_at_once_leave_one_whole_set(made, tmp_path):
    both = [subprocess.Popen(command(tmp_path / "at" / "once", **SMALL)) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert files(tmp_path / "at" / "once") == files(made)
    assert [p.name for p in (tmp_path / "at").iterdir()] == ["once"]


def test_slower_process_keeps_the_set_of_the_faster_one(tmp_path, monkeypatch):
    out, draw = tmp_path / "set", shapes.write_set

    def be_overtaken(folder, recipe):
        monkeypatch.setattr(shapes, "write_set", draw)
        draw(folder, recipe)
        shapes.ensure_shapes(out, **SMALL)
        (out / "labels/train.cache.npz").write_text("left by a loader of the faster process")

    monkeypatch.setattr(shapes, "write_set", be_overtaken)
    assert shapes.ensure_shapes(out, **SMALL) == out / "data.yaml"
    assert "labels/train.cache.npz" in files(out) and list(tmp_path.iterdir()) == [out]


def test_interruption_leaves_nothing_behind(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "draw_clip", stop)
    with pytest.raises(KeyboardInterrupt):
        shapes.ensure_shapes(tmp_path / "set", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_killed_process_leaves_no_half_set(tmp_path):
    process = subprocess.Popen(command(tmp_path / "set", train=5000))
    until = time.monotonic() + 60
    while not list(tmp_path.glob(".set-*/set/images/train/*.jpg")) and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert list(tmp_path.glob(".set-*")) and not (tmp_path / "set").exists()
    assert shapes.ensure_shapes(tmp_path / "set", **SMALL).is_file()


def test_other_folders_are_refused_untouched(made, tmp_path):
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    for out, numbers in ((other, SMALL), (other / "thesis.txt", SMALL), (made, {**SMALL, "seed": 5})):
        before = files(tmp_path)
        with pytest.raises(FileExistsError, match="does not hold this data set; delete it or choose another folder"):
            shapes.ensure_shapes(out, **numbers)
        assert files(tmp_path) == before


@pytest.mark.parametrize("bad", [{"train": 0}, {"val": -1}, {"seed": -3}, {"clip_frames": -1}])
def test_bad_numbers_are_refused(bad, tmp_path):
    [(name, value)] = bad.items()
    with pytest.raises(ValueError, match=rf"{name} {value}\b.*: expected at least 1, 1, 0, 0"):
        shapes.ensure_shapes(tmp_path / "set", **bad)
    assert list(tmp_path.iterdir()) == []


def test_command_line(made, tmp_path):
    result = subprocess.run(command(made, **SMALL), capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout == f"the data set is {made / 'data.yaml'}\n" and not result.stderr
    result = subprocess.run(command(made, **{**SMALL, "seed": 5}), capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.startswith(f"error: {made} exists")
    assert result.stderr.count("\n") == 1


def test_folder_is_in_the_repository_or_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "REPO", tmp_path)  # as where the project is installed as a package
    assert shapes.shapes_folder() == Path("datasets/shapes")
    (tmp_path / "pyproject.toml").touch()  # a clone
    assert shapes.shapes_folder() == tmp_path / "datasets" / "shapes"
    monkeypatch.setattr(shapes.os, "access", lambda *_: False)  # one that cannot be written
    assert shapes.shapes_folder() == Path("datasets/shapes")
    (tmp_path / "datasets" / "shapes").mkdir(parents=True)  # but has the set
    assert shapes.shapes_folder() == tmp_path / "datasets" / "shapes"


def test_only_the_built_in_yaml_is_drawn_and_a_set_of_another_size_stays(made, tmp_path, monkeypatch):
    assert shapes.draw_if_built_in(made / "data.yaml") == made / "data.yaml"
    monkeypatch.setattr(shapes, "shapes_folder", lambda: tmp_path / "new")
    monkeypatch.setattr(shapes, "write_set", lambda folder, recipe: shapes_of(made, folder, recipe))
    assert shapes.draw_if_built_in(REPO / "data" / "shapes.yaml") == tmp_path / "new" / "data.yaml"
    monkeypatch.setattr(shapes, "shapes_folder", lambda: made)  # 4 images, not 480
    assert shapes.draw_if_built_in(REPO / "data" / "shapes.yaml") == made / "data.yaml"


def shapes_of(made: Path, folder: Path, recipe: dict[str, int]) -> None:
    """In place of drawing 600 images: a copy of the small set."""
    assert (recipe["train"], recipe["val"]) == (480, 120)
    shutil.copytree(made, folder)
