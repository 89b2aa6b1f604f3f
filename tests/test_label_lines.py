"""Every writer of YOLO labels writes the same lines, and what is read from them is the box that was written."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from doctor_sets import doctor, healthy_set

from utils.annotate.dataset import _write_image
from utils.annotate.proposal import Proposal, yolo_text
from utils.boxes import Boxes, xywhn2xyxy, xyxy2xywhn
from utils.data.labels import label_line, read_labels
from utils.data.objects import ImageLabels
from utils.files import REPO
from utils.images import imwrite
from utils.predict.writers import label_text

LINE = r"\d+( \d\.\d{8}){4}\n"


@pytest.mark.parametrize("side", [30, 640, 10_000])
def test_boxes_come_back_to_a_thousandth_of_a_pixel(side: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(side)
    low = rng.random((200, 2)) * side * 0.8
    xyxy = np.concatenate([low, low + 1 + rng.random((200, 2)) * side * 0.19], axis=1)
    lines = [label_line(i % 3, row) for i, row in enumerate(xyxy2xywhn(xyxy, (side, side)).tolist())]
    (tmp_path / "a.txt").write_text("".join(lines))
    found = read_labels(tmp_path / "a.txt", nc=3)
    assert found.errors == found.warnings == [] and found.label.tolist() == [i % 3 for i in range(200)]
    assert np.abs(xywhn2xyxy(found.xywhn, (side, side)) - xyxy).max() < 1e-3
    again = [label_line(c, row) for c, row in zip(found.label.tolist(), found.xywhn.tolist(), strict=True)]
    assert [float(a) for line in again for a in line.split()] == pytest.approx(
        [float(b) for line in lines for b in line.split()], abs=1e-7
    )


def test_small_numbers_have_no_exponent_and_more_follows() -> None:
    assert label_line(2, [1e-7, 0.5, 1, 1 / 3], 7) == "2 0.00000010 0.50000000 1.00000000 0.33333333 7\n"


def test_all_writers_write_such_lines(tmp_path: Path) -> None:
    boxes = Boxes(np.array([[10.0, 20, 30.5, 40], [0, 0, 100, 50]]), np.array([1, 0]), np.array([0.75, 0.5]))
    expected = [label_line(c, row) for c, row in zip([1, 0], xyxy2xywhn(boxes.xyxy, (50, 100)).tolist(), strict=True)]
    assert label_text(boxes, (50, 100), scores=False) == "".join(expected)
    scores = label_text(boxes, (50, 100), scores=True).splitlines()
    assert scores == [f"{line.strip()} {s}" for line, s in zip(expected, ("0.75000000", "0.50000000"), strict=True)]
    assert yolo_text(Proposal(Path("a.jpg"), "a.jpg", (50, 100), boxes)) == "".join(expected)


def test_a_repaired_copy_has_such_lines(tmp_path: Path) -> None:
    doctor(healthy_set(tmp_path / "set"), fix=str(tmp_path / "out"))
    texts = [path.read_text() for path in (tmp_path / "out" / "labels").rglob("*.txt")]
    assert texts and all(re.fullmatch(f"({LINE})+", text) for text in texts)


def test_an_imported_export_has_such_lines(tmp_path: Path) -> None:
    image = tmp_path / "in" / "a.png"
    image.parent.mkdir()
    imwrite(image, np.zeros((50, 100, 3), np.uint8))
    found = ImageLabels(np.array([2]), np.array([[1 / 3, 0.5, 0.1, 2 / 7]], np.float32), np.zeros(1, bool), np.ones(1))
    assert _write_image(image, tmp_path / "out" / "images" / "a.png", found) == 1
    assert re.fullmatch(LINE, (tmp_path / "out" / "labels" / "a.txt").read_text())


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_page_writes_such_lines() -> None:
    module = json.dumps((REPO / "examples" / "web" / "formats.mjs").as_uri())
    box = {"x1": 10, "y1": 20, "x2": 30.5, "y2": 40, "name": "b"}
    code = f"import {{ labelFile }} from {module}; console.log(labelFile([{json.dumps(box)}], 100, 50, ['a', 'b']))"
    done = subprocess.run(["node", "--input-type=module", "-e", code], capture_output=True, text=True, check=True)
    assert done.stdout == label_line(1, [0.2025, 0.6, 0.205, 0.4]) + "\n"
