"""The demo: what it makes, what it prints, and that it is heard of while its output is piped."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import data.make_shapes as shapes
from tools import demo
from utils.files import REPO


@pytest.fixture
def little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both recipes with a few images, drawn below a folder of this test."""
    monkeypatch.setattr(demo, "shapes_folder", lambda: tmp_path / "datasets" / "shapes")
    quick = {"train_images": 8, "val_images": 3, "imgsz": 64, "epochs": 1}
    full = quick | {"flags": demo.FULL.flags | {"workers": 0, "noplots": True}, "threads": 1}
    monkeypatch.setattr(demo, "QUICK", replace(demo.QUICK, **quick))
    monkeypatch.setattr(demo, "FULL", replace(demo.FULL, **full))
    return tmp_path


@pytest.mark.parametrize("full", [False, True])
def test_it_ends_with_images_a_video_and_the_paths(
    little: Path, full: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    monkeypatch.setattr(demo.torch, "set_num_threads", called.append)
    demo.main(demo.DemoConfig(full=full, device="cpu", project=str(little / "runs")))
    text = capsys.readouterr().out
    images = Path(re.search(r"images with boxes after \d+ s: (.+)", text)[1])
    assert text.index("images with boxes") < text.index("mAP50 ")
    folder = "shapes" if full else "shapes-demo"
    drawn = sorted(path.name for path in (little / "datasets" / folder / "images" / "val").iterdir())
    assert len(drawn) == 3 and sorted(path.name for path in images.glob("*.jpg")) == drawn
    with Image.open(images / drawn[0]) as image:
        assert max(image.size) == 320
    assert Path(re.search(r"video: +(.+)", text)[1]).is_file() and called[0] == 1
    assert ("report: " in text) == full == (little / "runs" / "val").is_dir()
    assert ("make demo-full" in text) != full


def test_the_set_of_the_demo_has_larger_objects_and_is_another_set(tmp_path: Path) -> None:
    sizes = []
    for side in (shapes.TYPICAL_SIDE, 110):
        layers = [layer for i in range(60) for layer in shapes.draw_image(0, 0, i, side)[1] if layer.label >= 0]
        sizes.append(sorted(max(layer.alpha.shape) for layer in layers)[len(layers) // 2])
    assert sizes[1] > 1.2 * sizes[0]
    shapes.ensure_shapes(tmp_path / "set", 1, 1, clip_frames=0, side=110)
    assert '"side": 110' in (tmp_path / "set" / "made.json").read_text()
    with pytest.raises(FileExistsError, match="does not hold this data set"):
        shapes.ensure_shapes(tmp_path / "set", 1, 1, clip_frames=0)
    shapes.ensure_shapes(tmp_path / "plain", 1, 1, clip_frames=0)
    assert "side" not in (tmp_path / "plain" / "made.json").read_text()
    with pytest.raises(ValueError, match="side 8: expected more than 8 and less than 200 pixels"):
        shapes.ensure_shapes(tmp_path / "other", 1, 1, side=8)


def test_the_makefile_has_both() -> None:
    text = (REPO / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^demo: .*\n\t\$\(RUN\) tools/demo.py --project \$\(DEMO\)\n", text, re.M)
    assert re.search(r"^demo-full: .*\n\t\$\(RUN\) tools/demo.py --full --project \$\(DEMO\)-full\n", text, re.M)
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    assert "\nmake demo " in readme and "\nmake demo-full " in readme


def test_drawing_says_every_30_seconds_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = iter(range(0, 10_000, 11))  # 11 seconds between two looks at it
    monkeypatch.setattr(shapes.time, "monotonic", lambda: next(clock))
    shapes.write_set(tmp_path / "set", {"version": 0, "seed": 0, "train": 7, "val": 2, "clip_frames": 0})
    lines = [record.message for record in caplog.records]
    assert lines == [f"{done} of 9 images drawn" for done in (3, 6, 9)]
