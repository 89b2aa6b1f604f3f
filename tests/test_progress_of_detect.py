"""What detect.py says: the number of each image, a line every 30 seconds in logs, totals, files and next commands."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzz_http import jpeg

import detect
import utils.predict.progress as progress_module
import utils.progress as line_module
from models.weights.checkpoint import Checkpoint, save_checkpoint
from models.yolo import DetectionModel
from utils.boxes import Boxes
from utils.predict.frames import Frame, VideoInfo
from utils.predict.outputs import Output, OutputSettings
from utils.predict.predictor import Prediction
from utils.predict.progress import InputProgress
from utils.predict.summary import RunSummary, has_double, written
from utils.predict.writers import counted_class, write_classes
from utils.runs import OutputFiles

REPO = Path(__file__).resolve().parents[1]
IMAGE = np.zeros((48, 64, 3), np.uint8)
NAMES = {0: "cat", 1: "dog", 2: "skis", 3: "RBC", 4: "ace of spades"}


def boxes(*labels: int, shift: float = 100) -> Boxes:
    """A box for each label, each `shift` pixels beside the one before."""
    xyxy = np.array([[shift * k, 0, shift * k + 50, 40] for k in range(len(labels))], float).reshape(-1, 4)
    return Boxes(xyxy, np.array(labels, int), np.linspace(0.9, 0.5, len(labels)))


def prediction(found: Boxes) -> Prediction:
    return Prediction(found, (640, 480), (1.0, 10.0, 1.3))


def test_names_are_counted_in_words() -> None:
    texts = [counted_class(2, name) for name in NAMES.values()]
    assert texts == ["2 cats", "2 dogs", "2 skis", "2 RBC", "2 ace of spades"] and counted_class(1, "cat") == "1 cat"


def test_each_image_has_its_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Output(OutputSettings(nosave=True), OutputFiles(tmp_path), NAMES, InputProgress(67)) as output:
        for k in range(1, 3):
            output.add(Frame(IMAGE, tmp_path / "in" / f"{k}.jpg"), prediction(boxes(0, 1, 0)))
    assert caplog.messages[1].startswith("image 2/67 ")
    assert caplog.messages[1].endswith("2.jpg: 640x480 2 cats, 1 dog, 12.3 ms")


def test_a_log_has_a_line_every_30_seconds(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now)
    caplog.set_level(logging.INFO)
    progress = InputProgress(3)
    assert progress.in_log  # under pytest there is no terminal
    video = VideoInfo(25, 2400, (48, 64))
    for number in range(1, 961):
        now += 0.125
        progress.step(Frame(IMAGE, Path("a.mp4"), number, video))
    assert len(caplog.messages) == 4  # 120 s
    assert caplog.messages[-1] == "video 1/3 a.mp4: frame 960/2400, 13%, 8.0 frames/s, 13:00 left"
    now += 40
    progress.step(Frame(IMAGE, Path("b.jpg")))
    assert caplog.messages[-1] == "image 2/3 b.jpg: 67%, 6.0 images/s, 1:20 left"
    live = InputProgress()
    now += 40
    live.step(Frame(IMAGE, Path("cam"), 7, VideoInfo(25, 0, (48, 64), live=True)))
    assert caplog.messages[-1] == "stream 1 cam: frame 7, 0.0 frames/s"
    assert not [line for line in caplog.messages if "\r" in line or "\n" in line]


def test_on_a_terminal_a_line_of_a_video_is_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now)
    monkeypatch.setattr(line_module.shutil, "get_terminal_size", lambda: os.terminal_size((70, 20)))
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    progress = InputProgress(2)
    assert not progress.in_log
    video = VideoInfo(25, 100, (48, 64))
    with Output(OutputSettings(nosave=True), OutputFiles(tmp_path), NAMES, progress) as output:
        for number in range(1, 5):
            now += 0.0625
            frame = Frame(IMAGE, Path("a.mp4"), number, video)
            output.add(frame, prediction(boxes(0)))
            progress.step(frame, "1 cat")
        assert "".join(capsys.readouterr().err).split("\r") == [
            "",
            "video 1/2 a.mp4: frame 2/100, 1%, 16.0 frames/s, 0:12 left: 1 cat",
            "video 1/2 a.mp4: frame 4/100, 2%, 16.0 frames/s, 0:12 left: 1 cat",
        ]
        output.add(Frame(IMAGE, Path("b.jpg")), prediction(boxes(0)))
        assert capsys.readouterr().err == f"\r{' ' * 65}\r"  # gone before the line of the image
        progress.last.draw("x" * 100)
        assert capsys.readouterr().err == "\r" + "x" * 69
    assert capsys.readouterr().err.endswith("\r")  # and at the end


def test_the_end_has_totals_by_class() -> None:
    summary = RunSummary()
    for found in (boxes(0, 0, 1), boxes(1), boxes()):
        summary.add(Frame(IMAGE, Path("a.jpg")), prediction(found))
    assert summary.lines(NAMES, False) == [
        "4 boxes in 3 images; each took 1.0 ms letterbox, 10.0 ms model, 1.3 ms NMS",
        "by class: 2 cats, 2 dogs",
    ]
    summary.add(Frame(IMAGE, Path("a.mp4"), 1, VideoInfo(25, 1, (48, 64))), prediction(boxes(3)))
    assert summary.lines(NAMES, False)[0].startswith("5 boxes in 3 images and 1 frame; ")
    many = RunSummary()
    many.add(Frame(IMAGE, Path("a.jpg")), prediction(boxes(*range(30), 2)))
    assert many.lines({}, False)[1].startswith("by class: 2 2, 1 0, 1 1, ")
    assert many.lines({}, False)[1].endswith(", 1 19, 10 of 10 other classes")


@pytest.mark.parametrize(("found", "double"), [
    (boxes(0, 1, shift=2), True), (boxes(0, 0, shift=2), False), (boxes(0, 1), False), (boxes(0), False),
    (boxes(), False), (boxes(0, 0, 1, shift=2), True), (boxes(0, 1, shift=10), False),
])  # fmt: skip
def test_several_classes_on_one_object(found: Boxes, double: bool) -> None:
    assert has_double(found) is double
    summary = RunSummary()
    for _ in range(3):
        summary.add(Frame(IMAGE, Path("a.jpg")), prediction(found))
    for _ in range(10):
        summary.add(Frame(IMAGE, Path("a.jpg")), prediction(boxes(0)))
    hints = [line for line in summary.lines(NAMES, False) if "--agnostic-nms" in line]
    assert len(hints) == double and "--agnostic-nms" not in "".join(summary.lines(NAMES, True))
    if double:
        assert hints[0].startswith("3 of 13 ") and "IoU over 0.8" in hints[0]
        for _ in range(30):
            summary.add(Frame(IMAGE, Path("a.jpg")), prediction(boxes(0)))
        assert "--agnostic-nms" not in "".join(summary.lines(NAMES, False))  # few of them


def test_labels_come_with_the_names_of_the_classes(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    files = OutputFiles(tmp_path)
    write_classes(files, NAMES)
    assert not (tmp_path / "labels" / "classes.txt").exists()  # no labels
    with Output(OutputSettings(save_txt="yolo", nosave=True), files, NAMES | {6: "a\x1b\nb"}) as output:
        output.add(Frame(IMAGE, Path("in/a.jpg")), prediction(boxes(0, 1)))
    lines = (tmp_path / "labels" / "classes.txt").read_text().splitlines()
    assert lines == ["cat", "dog", "skis", "RBC", "ace of spades", "5", "a b"]
    assert written(files) == [("labels", f"{tmp_path.as_posix()}/labels: 1 file")]
    other = OutputFiles(tmp_path / "other")
    with Output(OutputSettings(save_txt="yolo", nosave=True), other, NAMES) as output:
        output.add(Frame(IMAGE, Path("in/classes.jpg")), prediction(boxes(0)))
    assert (tmp_path / "other" / "labels" / "classes.txt").read_text().startswith("0 ")  # the label of that image
    voc = OutputFiles(tmp_path / "voc")
    with Output(OutputSettings(save_txt="voc", nosave=True), voc, NAMES) as output:
        output.add(Frame(IMAGE, Path("in/a.jpg")), prediction(boxes(0)))
    assert sorted(path.name for path in (tmp_path / "voc" / "labels").iterdir()) == ["a.xml"]


def test_the_end_of_a_run_names_files_and_commands(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = tmp_path / "best of all.pt"
    torch.manual_seed(0)
    save_checkpoint(weights, Checkpoint.of(DetectionModel("yolov5-mobilevit-xxs.yaml", nc=2)))
    for k in range(3):
        (tmp_path / f"{k}.jpg").write_bytes(jpeg())
    command = [sys.executable, str(REPO / "detect.py"), "--weights", weights.name, "--source", str(tmp_path)]
    flags = ["--imgsz", "64", "--conf", "0", "--max-det", "2", "--device", "cpu", "--project", "runs"]
    done = subprocess.run([*command, *flags], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "\r" not in done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("image ")] == ["1/3", "2/3", "3/3"]
    end = "\n".join(lines[next(k for k, line in enumerate(lines) if " in 3 images; each took " in line) :])
    assert "6 boxes in 3 images" in end and "by class: " in end and "results in runs/exp" in end
    assert "images: runs/exp: 3 files" in end
    for words in ("detect.py --weights 'best of all.pt' --source", "val.py --weights", "export.py --weights"):
        assert words in end
    weighted = detect.DetectConfig(weights=("a.pt", "b.onnx"), source="rtsp://me:secret@host/a", save_txt="yolo")
    assert [purpose for purpose, _ in detect.next_commands(weighted)] == ["measure it on a data set"]
    assert "secret" not in str(detect.next_commands(detect.DetectConfig(weights="a.pt", source="rtsp://me:secret@h/a")))
