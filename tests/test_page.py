"""The modules of the web page without a browser: archives, tables, labels, names, geometry and places of labels."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from utils.files import REPO
from utils.palette import PALETTE, class_color, text_color

PAGE = REPO / "examples" / "web"
pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def run(folder: Path, module: str, code: str) -> Any:
    """What the JavaScript `code` passes to `give`, as JSON; it has all that the module exports."""
    text = f"import * as m from {json.dumps((PAGE / module).as_uri())};\nimport {{ writeFileSync }} from 'node:fs';\n"
    text += f"const give = (value) => writeFileSync('out.json', JSON.stringify(value));\n{code}"
    (folder / "x.mjs").write_text(text, encoding="utf-8")
    result = subprocess.run(["node", "x.mjs"], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    out = folder / "out.json"
    return json.loads(out.read_text(encoding="utf-8")) if out.exists() else None


def test_zip_holds_what_was_put_in(tmp_path):
    code = """
      const bytes = Uint8Array.from({ length: 100000 }, (_, i) => (i * i) % 251);
      const texts = [["labels/bär 1.txt", "0 0.5 0.5 1 1\\n"], ["empty.txt", ""]];
      const blob = await m.zip([["images/bär 1.jpg", new Blob([bytes])], ...texts], new Date(2026, 10, 25, 13, 14, 16));
      writeFileSync("out.zip", new Uint8Array(await blob.arrayBuffer()));
      writeFileSync("none.zip", new Uint8Array(await (await m.zip([])).arrayBuffer()));"""
    run(tmp_path, "zip.mjs", code)
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["images/bär 1.jpg", "labels/bär 1.txt", "empty.txt"]
        assert archive.read("images/bär 1.jpg") == bytes(i * i % 251 for i in range(100000))
        assert archive.read("labels/bär 1.txt") == b"0 0.5 0.5 1 1\n" and archive.read("empty.txt") == b""
        assert archive.infolist()[0].date_time == (2026, 11, 25, 13, 14, 16)
    with zipfile.ZipFile(tmp_path / "none.zip") as archive:
        assert archive.namelist() == []


def test_zip_refuses_what_its_form_cannot_hold(tmp_path):
    code = """
      const error = await m.zip(Array.from({ length: 65536 }, (_, i) => [String(i), ""])).catch((e) => e.message);
      give(error);"""
    assert run(tmp_path, "zip.mjs", code) == "65536 files are too many for one zip, at most 65535"


def test_labels_and_data_yaml_are_those_of_yolo(tmp_path):
    names = ["cat", 'say "cheese"', "yes", "001", "#", "ä: b"]
    code = f"""
      const names = {json.dumps(names)};
      const box = {{ x1: 10, y1: 20, x2: 50, y2: 100, name: "001" }};
      const boxes = [box, {{ x1: 0, y1: 0, x2: 200, y2: 100, name: "cat" }}];
      give([m.labelFile(boxes, 200, 100, names), m.dataYaml(names)]);"""
    labels, text = run(tmp_path, "formats.mjs", code)
    assert labels == "3 0.15000000 0.60000000 0.20000000 0.80000000\n0 0.50000000 0.50000000 1.00000000 1.00000000\n"
    assert yaml.safe_load(text) == {"path": ".", "train": "images", "val": "images", "names": dict(enumerate(names))}


def test_table_is_csv_and_starts_no_formula(tmp_path):
    rows = [["=1+1", "+a", "-a", "@a", "\ta", 'a "b", c', "line\nbreak", -1.5, 3, "a=b"]]
    text = run(tmp_path, "formats.mjs", f"give(m.csv({json.dumps(rows)}));")
    (read,) = csv.reader(io.StringIO(text, newline=""))
    assert read == ["'=1+1", "'+a", "'-a", "'@a", "'\ta", 'a "b", c', "line\nbreak", "-1.5", "3", "a=b"]


def test_rows_of_the_table_say_which_boxes_are_a_persons(tmp_path):
    code = """
      const box = { x1: 1.234, y1: 2, x2: 3, y2: 4, name: "dog" };
      const image = { name: "a.jpg", width: 20, height: 10, checked: true };
      const boxes = [{ ...box, score: 0.123456 }, { ...box, score: null }];
      give([m.CSV_HEADER, ...m.csvRows(image, boxes, ["cat", "dog"])]);"""
    header, model, person = run(tmp_path, "formats.mjs", code)
    assert len(header) == len(model)
    assert model == ["a.jpg", 20, 10, 1, "dog", 0.1235, 1.23, 2, 3, 4, "yes"]
    assert person[5] == "" and person[:5] == model[:5]


@pytest.mark.parametrize(
    ("name", "others", "wanted"),
    [
        ("a.jpg", [], "a.jpg"),
        ("a.jpg", ["a.png"], "a-2.jpg"),  # their label files would be one
        ("A.jpg", ["a.png", "a-2.png"], "A-3.jpg"),
        ("x/y\\b.jpg", [], "b.jpg"),
        ("../../.hidden.png", [], "hidden.png"),
        ('a<b>:"c|?*.png', [], "a_b___c___.png"),
        ("no suffix", [], "no suffix"),
        ("", [], "image"),
        ("two.dots.jpeg", ["two.jpg"], "two.dots.jpeg"),
    ],
)
def test_names_of_images_are_safe_and_have_a_label_file_of_their_own(tmp_path, name, others, wanted):
    code = f"give(m.imageName({json.dumps(name)}, {json.dumps(others)}));"
    assert run(tmp_path, "formats.mjs", code) == wanted


@pytest.mark.parametrize(("count", "side"), [(1, 40), (12, 390), (80, 390), (300, 800), (3, 10)])
def test_labels_are_inside_and_none_covers_another(tmp_path, count, side):
    rng = np.random.default_rng(count)
    corners = rng.uniform(0, side, (count, 2, 2))
    boxes = [
        dict(zip(("x1", "y1", "x2", "y2"), [*map(float, pair.min(0)), *map(float, pair.max(0))], strict=True))
        for pair in corners
    ]
    widths = rng.uniform(min(20, side), min(90, side), count).tolist()
    area = {"width": side, "height": side}
    code = f"give(m.placeLabels({json.dumps(boxes)}, {json.dumps(widths)}, 19, {json.dumps(area)}));"
    places = run(tmp_path, "draw.mjs", code)
    assert len(places) == count and (places[0] is None) == (side < 19)
    rects = [(p["x"], p["y"], p["x"] + w, p["y"] + 19) for p, w in zip(places, widths, strict=True) if p]
    for i, (x1, y1, x2, y2) in enumerate(rects):
        assert x1 >= 0 and y1 >= 0 and x2 <= side + 1e-6 and y2 <= side + 1e-6
        for a1, b1, a2, b2 in rects[:i]:
            assert min(x2, a2) - max(x1, a1) <= 1e-6 or min(y2, b2) - max(y1, b1) <= 1e-6
    if count == 12:
        assert len(rects) == count  # with room, every box has one


def test_nothing_is_drawn_over_a_label(tmp_path):
    code = """
      const calls = [];
      const context = new Proxy({}, {
        get: (_, name) => (...values) => (calls.push([name, ...values]), { width: 50 }),
        set: () => true,
      });
      const box = (i) => ({ x1: 5 + i, y1: 100 + i, x2: 60 + i, y2: 140 + i, label: i, name: "a", score: 0.5 });
      const boxes = Array.from({ length: 40 }, (_, i) => box(i));
      m.drawBoxes(context, boxes, { palette: ["#112233"], area: { width: 300, height: 300 }, marked: 7 });
      give(calls.map(([name]) => name));"""
    calls = run(tmp_path, "draw.mjs", code)
    first = calls.index("fillText")
    assert calls[:first].count("strokeRect") == 2 * 40 + 1  # all boxes, and the edge of the first label
    assert "stroke" in calls[:first]  # the lines to labels
    assert set(calls[first:]) == {"fillText", "fillRect", "strokeRect"}
    assert calls.count("fillText") == calls[first - 2 :].count("strokeRect") > 10  # only the labels' own edges


def test_text_on_every_color_is_that_of_drawn_images(tmp_path):
    got = run(tmp_path, "draw.mjs", f"give({json.dumps(PALETTE)}.map(m.textColor));")
    assert got == ["#{:02x}{:02x}{:02x}".format(*text_color(class_color(i))) for i in range(len(PALETTE))]


def test_shares_are_written_one_way(tmp_path):
    code = "give([0, 0.004, 0.256, 0.999, 1].map(m.percent).concat(m.caption({name: 'a', score: null})));"
    assert run(tmp_path, "draw.mjs", code) == ["0%", "0%", "26%", "100%", "100%", "a"]


def test_sides_of_a_box_within_reach(tmp_path):
    code = """
      const box = { x1: 100, y1: 100, x2: 200, y2: 140 };
      const sides = ["left", "top", "right", "bottom"];
      const at = (x, y, reach) => sides.filter((side) => m.sidesAt(box, { x, y }, reach)?.[side]).join("");
      give([at(100, 100, 20), at(85, 120, 20), at(210, 150, 20), at(150, 120, 20), at(150, 108, 20), at(150, 112, 20),
        at(150, 165, 20), at(195, 120, 20), at(50, 50, 20)]);"""
    wanted = ["lefttop", "left", "rightbottom", "", "top", "", "", "right", ""]
    assert run(tmp_path, "edit.mjs", code) == wanted


def test_boxes_stay_in_the_image(tmp_path):
    code = """
      const area = { width: 100, height: 50 }, box = { x1: 10, y1: 10, x2: 30, y2: 20, name: "a" };
      const left = { left: true, top: true, right: false, bottom: false };
      const right = { left: false, top: false, right: true, bottom: true };
      const corners = ({ x1, y1, x2, y2 }) => [x1, y1, x2, y2];
      const moves = [[500, 5], [-500, -500]].map((by) => m.moved(box, ...by, area));
      const sizes = [[right, 500, 500], [left, -500, 3], [left, 40, 0], [right, -20, -10]];
      give([...moves, ...sizes.map((by) => m.resized(box, ...by, area))].map(corners));"""
    moved, back, wide, high, past, least = run(tmp_path, "edit.mjs", code)
    assert moved == [80, 15, 100, 25] and back == [0, 0, 20, 10]
    assert wide == [10, 10, 100, 50] and high == [0, 13, 30, 20]
    assert past == [30, 10, 50, 20]  # a side that passes the opposite one
    assert least == [10, 10, 11, 11]  # a pixel remains


def test_a_tap_finds_the_smallest_box_first(tmp_path):
    code = """
      const corners = [[0, 0, 100, 100], [40, 40, 60, 60], [70, 0, 90, 90]];
      const boxes = corners.map(([x1, y1, x2, y2]) => ({ x1, y1, x2, y2 }));
      give([50, 80, 101].map((x) => m.boxesAt(boxes, { x, y: 50 })));"""
    assert run(tmp_path, "edit.mjs", code) == [[1, 0], [2, 0], []]


def test_view_fits_zooms_and_keeps_the_image_in_sight(tmp_path):
    code = """
      const view = new m.View();
      view.fit(40, 20, { width: 400, height: 400 });
      const whole = view.toPage({ x1: 0, y1: 0, x2: 40, y2: 20 });
      const before = view.toImage(300, 150);
      view.zoom(3, 300, 150);
      const after = view.toImage(300, 150);
      view.move(10000, 0);
      const edge = view.toImage(0, 0).x;
      view.zoom(0.001, 0, 0);
      give([whole, before, after, edge, view.toPage({ x1: 0, y1: 0, x2: 40, y2: 20 })]);"""
    whole, before, after, edge, again = run(tmp_path, "view.mjs", code)
    assert (whole["x1"], whole["y1"], whole["x2"], whole["y2"]) == (0, 100, 400, 300)  # small images are scaled up
    assert after["x"] == pytest.approx(before["x"]) and edge == 0 and again == whole


def test_an_image_has_at_most_1000_boxes(tmp_path):
    code = """
      const rows = Array.from({ length: 1500 }, (_, i) => [20 * i, 0, 20 * i + 10, 10, 0.9 - i / 1e4, i % 2]);
      const kept = m.suppress(Float32Array.from(rows.flat()), 0.25, 0.45);
      give([kept.length, kept.at(-1).x1]);"""
    assert run(tmp_path, "detector.mjs", code) == [1000, 20 * 999]
