"""Flags: spellings that YOLOv5's users type, optional values, lists."""

from __future__ import annotations

import pytest

from detect import DetectConfig
from utils.config import parse_cli
from val import ValConfig


def test_spellings() -> None:
    for words in ("--conf-thres 0.5", "--conf_thres 0.5", "--conf 0.5", "--conf=0.5", "--conf_thres=0.5"):
        assert parse_cli(DetectConfig, words.split()).conf_thres == 0.5
    assert parse_cli(ValConfig, ["--iou", "0.7", "--batch", "8", "--img", "320"]).iou_thres == 0.7
    assert parse_cli(DetectConfig, ["--source", "--a_b"[2:]]).source == "a_b"


def test_values_that_may_be_left_out_and_lists() -> None:
    def read(line: str) -> DetectConfig:
        return parse_cli(DetectConfig, line.split())

    assert read("").save_txt == "" and read("--save-txt").save_txt == "yolo"
    assert read("--save-txt voc --nosave").save_txt == "voc"
    assert read("--classes 0 cat 7").classes == ("0", "cat", "7")
    assert read("--weights a.pt b.pt --source x").weights == ("a.pt", "b.pt")
    assert read("--no-rect").rect is False and read("--rect").rect is True and read("").rect is None


@pytest.mark.parametrize("line", ["--save-txt coco", "--save", "--imgsz big", "--task nothing"])
def test_bad_words_exit_with_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_cli(ValConfig if "task" in line else DetectConfig, line.split())
    assert ended.value.code == 2 and line.split()[0] in capsys.readouterr().err
