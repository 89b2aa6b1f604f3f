"""Names of files and classes with control characters, formulas and thousands of characters, in everything written."""

from __future__ import annotations

import csv
import json
import logging
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from fuzz_http import jpeg

from tools import benchmark_table
from utils.boxes import Boxes
from utils.data.voc import VocLabels, voc_xml
from utils.predict.frames import Broken, Frame
from utils.predict.outputs import Output, OutputSettings
from utils.predict.predictor import Prediction
from utils.predict.results import Detections
from utils.predict.sources import open_source
from utils.predict.writers import csv_text, file_name, folder_name, json_text
from utils.runs import OutputFiles
from utils.text import visible

CLASSES = {
    0: "=cmd|'/c calc'!A1",
    1: "cat\x1b[31m\x07\r\nINFO: fake",
    2: "\u202egnp.exe\u2028x\ufffe\x00<b>&",
    3: "n" * 300,
    4: "../../etc",
    5: "\x1b",
    6: "@SUM(A1)",
}
FILES = [
    "=1+1.jpg",
    "-2.jpg",
    "a\x1b[2Jb.jpg",
    "new\nline.jpg",
    "bidi\u202e.jpg",
    "\x07.jpg",
    "s\x1b[2Jb.jpg",
    "n" * 250 + ".jpg",
]
FLAGS = {"save_csv": True, "save_json": True, "save_crop": True}


def is_clean(text: str) -> bool:
    return all(visible(character) or character == "\n" for character in text)


@pytest.fixture(params=["yolo", "voc"])
def run(request: pytest.FixtureRequest, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Path:
    """The folder of a run over FILES, each with a box of every class, and a broken file."""
    source, folder = tmp_path / "in", tmp_path / "run"
    source.mkdir()
    folder.mkdir()
    for name in FILES:
        (source / name).write_bytes(jpeg())
    (source / "bad\x1b[31m.jpg").write_text("words")
    n = len(CLASSES)
    boxes = Boxes(np.tile([5.0, 5, 30, 30], (n, 1)), np.arange(n), np.linspace(0.9, 0.5, n))
    caplog.set_level(logging.INFO)
    settings = OutputSettings(save_txt=request.param, **FLAGS)  # type: ignore[arg-type]
    with Output(settings, OutputFiles(folder), CLASSES) as output:
        for frame in open_source(str(source)):
            if isinstance(frame, Frame):
                output.add(frame, Prediction(boxes, (48, 64), (0.0, 0.0, 0.0)))
            else:
                assert isinstance(frame, Broken) and "bad" in frame.reason
    return folder


def test_nothing_written_holds_a_control_character(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    for path in run.rglob("*"):
        assert is_clean(path.relative_to(run).as_posix()) and len(os.fsencode(path.name)) <= 255
        if path.suffix in (".csv", ".json", ".xml", ".txt"):
            assert is_clean(path.read_text(encoding="utf-8"))
    lines = [record.getMessage() for record in caplog.get_records("setup")]
    assert len(lines) >= len(FILES) and all(is_clean(line) for line in lines) and max(map(len, lines)) < 2000
    assert len(list(run.glob("*.jpg"))) == len(FILES)
    assert len(list((run / "crops").iterdir())) == len(CLASSES)


def test_tables_hold_no_formula_and_the_paths_are_found_again(run: Path) -> None:
    rows = list(csv.reader((run / "predictions.csv").open(encoding="utf-8", newline="")))
    assert len(rows) == 1 + len(FILES) * len(CLASSES) and {len(row) for row in rows} == {8}
    assert not [cell for row in rows for cell in (row[0], row[1], row[7]) if cell.startswith(("=", "+", "-", "@"))]
    assert {"'=1+1.jpg", "'-2.jpg"} <= {row[0] for row in rows} and "'@SUM(A1)" in {row[1] for row in rows}
    renamed = list(csv.reader((run / "renamed.csv").open(encoding="utf-8", newline="")))
    assert len(renamed) == 1 + 6 and "'-2" not in dict(renamed).values()
    found = json.loads((run / "predictions.json").read_text(encoding="utf-8"))
    assert {Path(row["path"]).name for row in found} == set(FILES)


def test_xml_is_well_formed_whatever_a_name_holds(tmp_path: Path) -> None:
    names = [*CLASSES.values(), *map(chr, range(0, 0x10FFFF, 9973)), "\ud800", "\uffff", "]]>", "&#0;"]
    boxes = np.tile([1.0, 1, 5, 5], (len(names), 1))
    for file in FILES:
        root = ElementTree.fromstring(voc_xml(file, (48, 64), names, boxes).encode("utf-8", "backslashreplace"))
        assert len(root.findall("object")) == len(names)
    (tmp_path / "a.xml").write_text(voc_xml("a.jpg", (48, 64), ["dog"], boxes[:1]))
    assert len(VocLabels(tmp_path, {0: "dog"}).read(Path("a.jpg"), (48, 64)).label) == 1


def test_single_values() -> None:
    assert file_name("a\x1bb\u202ec\x7f") == "a_b_c_" and file_name("größe \udcff") == "größe \udcff"
    assert csv_text("\t=1") == "'=1" and csv_text("bad\udcff") == "bad\\udcff"
    for text in ("\x7f\u202e\u2028\x9b", "\U000e0001", "\udcff", 'a"b\\c', "größe"):
        assert json.loads(json_text([text])) == [text] and is_clean(json_text([text]))
    assert folder_name("..\x1b") == "_" and folder_name("\x1b") == "_"


def test_results_print_clean(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    boxes = Boxes(np.tile([5.0, 5, 30, 30], (2, 1)), np.array([1, 2]), np.array([0.9, 0.8]))
    results = Detections([np.zeros((48, 64, 3), np.uint8)], [boxes], ["a\x1b.jpg"], CLASSES)
    results.print()
    assert is_clean(capsys.readouterr().out) and is_clean(results.to_json())
    folder = results.save(save_dir=tmp_path / "out")
    results.crop(save_dir=tmp_path / "crops")
    assert [path.name for path in folder.iterdir()] == ["a_.jpg"]
    assert all(is_clean(path.name) for path in tmp_path.rglob("*"))


def test_the_table_of_a_benchmark_holds_no_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_table, "plot", lambda *_: None)
    benchmark_table.write_tables([{"model": "=1+1", "imgsz": "64", "size MB": "-"}], 1, tmp_path)
    rows = list(csv.DictReader((tmp_path / "benchmark.csv").open(newline="")))
    assert rows == [{"model": "'=1+1", "imgsz": "64", "size MB": "-"}]
