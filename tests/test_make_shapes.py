"""The generator of the built-in data set: what it draws, that it repeats, and how it treats folders."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

SCRIPT = Path(__file__).resolve().parents[1] / "data" / "make_shapes.py"
SMALL = ["--train", "4", "--val", "2", "--clip-frames", "5"]


def _load():
    spec = importlib.util.spec_from_file_location("make_shapes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


shapes = _load()


@pytest.fixture(scope="module")
def pictures():
    return [shapes.draw_picture(0, 0, index) for index in range(80)]


@pytest.fixture
def made(tmp_path):
    out = tmp_path / "set"
    assert shapes.main(["--out", str(out), *SMALL]) == 0
    return out


def _files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def _refusal(capsys, argv: list[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        shapes.main(argv)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_boxes_are_the_extent_of_the_masks(pictures):
    for picture in pictures:
        assert picture.masks.shape == (len(picture.boxes), *picture.image.shape[:2])
        for (x1, y1, x2, y2), mask in zip(picture.boxes, picture.masks, strict=True):
            inside = mask[y1:y2, x1:x2]
            assert inside.sum() == mask.sum()
            assert all(side.any() for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))


@pytest.mark.parametrize("label", range(len(shapes.NAMES)))
@pytest.mark.parametrize("size", [12, 30, 90])
def test_boxes_fit_the_pixels_painted(label, size):
    rng = np.random.default_rng((label, size))
    for at in (40, -size // 3):  # whole, and cut by the top left corner
        layer = shapes.make_layer(rng, label, size)
        layer.x = layer.y = at
        flat = np.full((160, 160, 3), 0.5, np.float32)
        canvas = flat.copy()
        shapes.paint(rng, canvas, layer, shadow=0)
        changed = shapes.mask_box(np.abs(canvas - flat).max(axis=2) > 0.01)
        box = shapes.mask_box(shapes._silhouette(layer, 160, 160))
        assert np.abs(changed - box).max() <= 2  # the rim is blended, half a pixel to either side
        if at > 0:
            assert abs(np.ptp(box.reshape(2, 2), axis=0).max() - size) <= 2


def test_objects_are_seen_varied_and_in_range(pictures):
    sides = np.concatenate([(p.boxes[:, 2:] - p.boxes[:, :2]).max(axis=1) for p in pictures])
    seen = np.concatenate([p.visible for p in pictures])
    counts = [len(p.labels) for p in pictures]
    assert set(np.concatenate([p.labels for p in pictures])) == set(range(len(shapes.NAMES)))
    assert sides.min() >= shapes.MIN_SIDE and sides.max() <= shapes.MAX_SIDE
    assert ((sides >= 20) & (sides <= 120)).mean() > 0.75
    assert sides.min() < 20 and sides.max() > 120
    assert seen.min() >= shapes.MIN_VISIBLE and (seen < 0.9).any() and (seen == 1).mean() > 0.4
    assert 0 in counts and max(counts) <= 12 and 2 < np.mean(counts) < 7
    assert len({p.image.shape for p in pictures}) >= 4


def test_labels_are_shares_of_the_picture(pictures):
    for picture in pictures:
        h, w = picture.image.shape[:2]
        rows = np.array(shapes.label_text(picture).split(), float).reshape(-1, 5)
        centre, size = rows[:, 1:3] * (w, h), rows[:, 3:] * (w, h)
        assert (rows[:, 1:] > 0).all() and (rows[:, 1:] <= 1).all()
        np.testing.assert_array_equal(rows[:, 0], picture.labels)
        boxes = np.hstack([centre - size / 2, centre + size / 2])
        np.testing.assert_allclose(boxes, picture.boxes, atol=1e-3)


def test_nine_of_ten_objects_wear_the_hue_of_their_class():
    backdrop, rng = np.full(3, 0.5), np.random.default_rng(0)
    for label, name in enumerate(shapes.NAMES):
        layer = shapes.Layer(label, *[np.zeros((40, 40), np.float32)] * 3)
        hues = []
        for _ in range(300):
            colour = shapes._fill(rng, layer, backdrop).mean(axis=(0, 1), dtype=np.float32)
            hues.append(cv2.cvtColor(colour[None, None], cv2.COLOR_RGB2HSV)[0, 0, 0])
        off = (np.array(hues) - shapes.HUES[name] + 180) % 360 - 180
        assert 0.8 < np.mean(np.abs(off) < 2 * shapes.HUE_SPREAD) < 1


def test_pictures_do_not_depend_on_their_order(pictures):
    again = shapes.draw_picture(0, 0, 7)
    assert shapes.jpeg(again) == shapes.jpeg(pictures[7])
    assert shapes.jpeg(shapes.draw_picture(0, 1, 7)) != shapes.jpeg(again)
    assert shapes.jpeg(shapes.draw_picture(1, 0, 7)) != shapes.jpeg(again)


def test_same_seed_same_bytes(made, tmp_path, capsys):
    assert shapes.main(["--out", str(tmp_path / "again"), *SMALL]) == 0
    assert "train: 4 pictures" in capsys.readouterr().out
    assert _files(made) == _files(tmp_path / "again")
    assert shapes.main(["--out", str(tmp_path / "more"), *SMALL, "--train", "5"]) == 0
    more = _files(tmp_path / "more")
    assert all(more[name] == data for name, data in _files(made).items() if name != "made.json")


def test_layout_of_the_set(made):
    config = yaml.safe_load((made / "data.yaml").read_text())
    assert config["path"] == "." and config["names"] == dict(enumerate(shapes.NAMES))
    bundled = yaml.safe_load((SCRIPT.parent / "shapes.yaml").read_text())
    assert bundled == {**config, "path": "../datasets/shapes"}
    for split, count in (("train", 4), ("val", 2)):
        names = [f"{index:06d}" for index in range(count)]
        assert sorted(p.stem for p in (made / config[split]).glob("*.jpg")) == names
        assert sorted(p.stem for p in (made / "labels" / split).glob("*.txt")) == names
    picture = cv2.imread(str(made / "images/train/000001.jpg"))[..., ::-1].astype(int)
    assert np.abs(picture - shapes.draw_picture(0, 0, 1).image).mean() < 8  # RGB was not stored as BGR


def test_clip_decodes_to_its_frame_count(made):
    video = cv2.VideoCapture(str(made / "clip.mp4"))
    frames = []
    while (read := video.read())[0]:
        frames.append(read[1])
    assert len(frames) == video.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    assert video.get(cv2.CAP_PROP_FPS) == 15
    assert all(frame.shape == (240, 320, 3) for frame in frames)
    assert np.abs(frames[0].astype(int) - frames[4]).mean() > 1


def test_complete_set_is_left_alone(made, capsys):
    stamps = {p: p.stat().st_mtime_ns for p in made.rglob("*")}
    assert shapes.main(["--out", str(made), *SMALL]) == 0
    assert "already" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in made.rglob("*")} == stamps


def test_half_or_other_set_is_remade(made):
    before = _files(made)
    (made / "labels/train/000002.txt").unlink()
    (made / "labels/train.cache.npz").write_text("left by a loader")
    assert shapes.main(["--out", str(made), *SMALL]) == 0
    assert _files(made) == before
    assert shapes.main(["--out", str(made), *SMALL, "--train", "3"]) == 0
    assert "images/train/000003.jpg" not in _files(made)


def test_interruption_leaves_nothing_behind(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "draw_clip", stop)
    with pytest.raises(KeyboardInterrupt):
        shapes.main(["--out", str(tmp_path / "set"), *SMALL])
    assert list(tmp_path.iterdir()) == []


def test_foreign_folders_are_refused_untouched(made, tmp_path, capsys):
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    assert "not made by this script" in _refusal(capsys, ["--out", str(foreign), *SMALL])
    assert _files(foreign) == {"thesis.txt": b"years of work"}
    assert "not made by this script" in _refusal(capsys, ["--out", str(foreign / "thesis.txt"), *SMALL])
    (made / "images/train/mine.jpg").write_bytes(b"added by hand")
    before = _files(made)
    capsys.readouterr()
    assert "mine.jpg" in _refusal(capsys, ["--out", str(made), *SMALL, "--seed", "5"])
    assert _files(made) == before


@pytest.mark.parametrize(
    "bad", [["--train", "0"], ["--val", "-1"], ["--seed", "-3"], ["--clip-frames", "-1"], ["--train", "many"]]
)
def test_bad_numbers_are_refused(bad, tmp_path, capsys):
    assert bad[0] in _refusal(capsys, ["--out", str(tmp_path / "set"), *bad])
    assert not (tmp_path / "set").exists()


def test_samples(tmp_path):
    assert shapes.main(["--samples", str(tmp_path)]) == 0
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2 and all(f.stat().st_size < 60_000 for f in files)
    assert all(cv2.imread(str(f)) is not None for f in files)
