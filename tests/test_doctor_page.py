"""The doctor's page, its exit codes, and the labels that a detector contradicts."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from doctor_sets import LINES, PIXELS, checks, doctor, fingerprint, healthy_set

import tools.doctor
from tools.doctor import DoctorConfig, main
from utils.boxes import Boxes, Truth
from utils.config import run_script
from utils.doctor.findings import WARNING
from utils.doctor.page import text_page
from utils.doctor.survey import ImageRecord
from utils.doctor.suspects import classes_by_name, read_suspects
from utils.evaluate.suspects import MISSING, SWAPPED, UNSUPPORTED, find_suspects

MODEL = {0: "dog", 1: "cat", 2: "zebra"}  # other order than in the data, and one class more
CAT, DOG = PIXELS  # rows of class, x1, y1, x2, y2


def predictions(*rows: tuple[float, ...]) -> Boxes:
    """Boxes of the model from rows of its class, x1, y1, x2, y2, confidence."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    return Boxes(table[:, 1:5], table[:, 0].astype(np.int64), table[:, 5])


RIGHT = ((1, *CAT[1:], 0.9), (0, *DOG[1:], 0.3))  # as the labels, by the model's classes


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> Callable[[Boxes], None]:
    """A function that makes the doctor's detector find the given boxes in every image."""

    def use(found: Boxes) -> None:
        monkeypatch.setattr(tools.doctor, "load_model", lambda *_: SimpleNamespace(names=MODEL))
        monkeypatch.setattr(tools.doctor, "Predictor", lambda *_: lambda images: [SimpleNamespace(boxes=found)])

    return use


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (predictions(*RIGHT), set()),
        (predictions(*RIGHT, (1, 10, 60, 50, 90, 0.95)), {"missing labels"}),
        (predictions(*RIGHT, (1, 10, 60, 50, 90, 0.4)), set()),  # not confident
        (predictions(*RIGHT, (2, 10, 60, 50, 90, 0.95)), set()),  # a class that the data have not
        (predictions(*RIGHT, (1, 10, 10, 25, 25, 0.95)), set()),  # a part of the labeled cat
        (predictions(RIGHT[0]), {"unsupported labels"}),
        (predictions(), {"no predictions"}),
        (predictions((0, *CAT[1:], 0.9), RIGHT[1]), {"class swaps"}),
        (predictions((1, 20, 20, 60, 60, 0.95), RIGHT[1]), {"shifted boxes"}),
        (predictions((0, *CAT[1:], 0.9), *RIGHT), set()),  # the label's own class was found as well
    ],
)
def test_contradictions_of_labels_and_predictions(
    found: Boxes, expected: set[str], detector: Callable[[Boxes], None], tmp_path: Path
) -> None:
    data = healthy_set(tmp_path)
    detector(found)
    assert checks(doctor(data, weights="best.pt")) == dict.fromkeys(expected, WARNING)


def test_crowds_and_labeled_objects_explain_predictions() -> None:
    box, one = np.array([[0.0, 0, 40, 40]]), np.ones(1)
    labels = [Truth(box, np.array([0]), one, np.array([crowd]), one) for crowd in (True, False)]
    found = predictions((1, 50, 50, 90, 90, 0.9), (0, 2, 2, 12, 12, 0.7))  # the second is a part of the label
    kinds = [{s.kind for s in find_suspects([found], [own], {0: "cat", 1: "dog"})} for own in labels]
    assert kinds == [{MISSING}, {MISSING, UNSUPPORTED}]


def test_suspects_of_a_run_are_read(tmp_path: Path) -> None:
    data = healthy_set(tmp_path)
    image, table = tmp_path / "images/train/train0.png", tmp_path / "suspects.csv"
    head = "score,strength,kind,image,class,found,x1,y1,x2,y2,found x1,found y1,found x2,found y2\n"
    rows = [
        f"0.9,0.9,{SWAPPED},{image},'=cat,dog,8,8,48,48,8,8,48,48",
        f"0.05,0.7,{MISSING},{image},,dog,,,,,60,60,80,80",
        f"0.1,0.1,{SWAPPED},{image},cat,dog,8,8,48,48,8,8,48,48",  # hardly suspicious
        f"0.9,0.9,{SWAPPED},{tmp_path}/elsewhere.png,cat,dog,8,8,48,48,8,8,48,48",
    ]
    table.write_text(head + "\n".join(rows))
    result = doctor(data, suspects=str(table))
    assert checks(result) == {"class swaps": WARNING, "missing labels": WARNING}
    assert {found.count for found in result.findings} == {1}
    texts = [item.text for found in result.findings for item in found.examples]
    assert any(text.endswith("labeled =cat, found dog, suspicion 0.90") for text in texts)
    for text, message in (
        ("score,strength,kind\n1,1,x\n", "no column"),
        (head + rows[-1], "none of its images"),
        (head + rows[0].replace("0.9", "high"), r"suspects\.csv:2: .*expected numbers"),
    ):
        table.write_text(text)
        with pytest.raises(ValueError, match=message):
            doctor(data, suspects=str(table))
    table.write_text(head)
    assert read_suspects(table, [ImageRecord(image)]) == []


def test_classes_are_compared_by_name() -> None:
    assert classes_by_name(MODEL, {0: "cat", 1: "dog"}) == {0: 1, 1: 0}
    with pytest.raises(
        ValueError, match=r"--weights: the model has 3 classes .*the data has 1 \(cow\).*expected common names"
    ):
        classes_by_name(MODEL, {0: "cow"})


# ---- the page -------------------------------------------------------------------------------------------------------


def test_html_page_has_images_and_escapes_names(tmp_path: Path) -> None:
    data = healthy_set(tmp_path)
    (tmp_path / "labels/train/train0.txt").write_text(LINES + "0 0.8 0.2 0.01 0.2\n")
    for folder, suffix in (("images", ".png"), ("labels", ".txt")):
        (tmp_path / folder / f"train/train0{suffix}").rename(tmp_path / folder / f"train/<b>&{suffix}")
    data.write_text(data.read_text().replace("cat", "<i>cat"))
    before = fingerprint(tmp_path)
    page = tmp_path / "new/page.html"
    doctor(data, html=str(page))
    text = page.read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp;.png" in text and "<b>" not in text and "<i>" not in text
    assert "slivers" in text and text.count("data:image/jpeg;base64,") > 10
    assert not re.search(r'(?:src|href)="(?!data:)', text)  # nothing is loaded from elsewhere
    page.unlink()
    page.parent.rmdir()
    assert fingerprint(tmp_path) == before


def test_text_page_is_narrow_and_its_paths_are_short(tmp_path: Path) -> None:
    data = healthy_set(tmp_path)
    (tmp_path / "labels/train/train0.txt").write_text(LINES + "0 0.9 0.2 0.4 0.2\n1 0.5 0.5\n")
    lines = text_page(doctor(data)).splitlines()
    assert max(map(len, lines)) <= 120 and lines[-1].startswith("Training or its metrics would be wrong")
    assert any(line.startswith("    labels/train/train0.txt:4: 3 numbers, expected") for line in lines)
    assert not any(str(tmp_path) in line for line in lines[1:] if not line.startswith("Paths below"))


def test_names_of_any_bytes_and_many_classes(tmp_path: Path) -> None:
    data = healthy_set(tmp_path)
    (tmp_path / "labels/train/train0.txt").unlink()
    (tmp_path / "images/train/train0.png").rename(tmp_path / "images/train/a\nb\x1b[31m.png")
    names = "".join(f"  {i}: class-{i}\n" for i in range(40))
    data.write_text(f"path: .\ntrain: images/train\nval: images/val\nnames:\n{names}")
    text = text_page(doctor(data, html=str(tmp_path / "p.html")))
    assert "a\\nb\\x1b[31m.png" in text and "\x1b" not in text and "... 10 classes between these" in text


# ---- the command ----------------------------------------------------------------------------------------------------


def test_exit_code_1_if_training_would_be_wrong_else_none(tmp_path: Path) -> None:
    data = healthy_set(tmp_path)
    (tmp_path / "labels/train/train0.txt").unlink()
    main(DoctorConfig(data=str(data), imgsz=128))  # a warning or a note only
    (tmp_path / "labels/train/train1.txt").write_text("1 0.5 0.5\n")
    with pytest.raises(SystemExit) as ended:
        main(DoctorConfig(data=str(data), imgsz=128))
    assert ended.value.code == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "--data is missing"),
        ("--data gone.yaml", "gone.yaml"),
        ("--data SET --imgsz 0", "imgsz"),
        ("--data SET --html SET", "--html is"),
        ("--data SET --fix FOLDER", "exists already"),
        ("--data SET --weights gone.pt", "gone.pt"),
        ("--data BAD", "names is"),
    ],
)
def test_exit_code_2_for_a_wrong_command(
    flags: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = healthy_set(tmp_path)
    (tmp_path / "bad.yaml").write_text("train: images/train\nnames: 3\n")
    before = fingerprint(tmp_path)
    for word, path in (("SET", data), ("FOLDER", tmp_path / "images"), ("BAD", tmp_path / "bad.yaml")):
        flags = flags.replace(word, str(path))
    monkeypatch.setattr(sys, "argv", ["doctor.py", *flags.split()])
    with pytest.raises(SystemExit) as ended:
        run_script(main, DoctorConfig)
    assert ended.value.code == 2 and message in capsys.readouterr().err
    assert fingerprint(tmp_path) == before
