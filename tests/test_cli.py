"""Flags: spellings that YOLOv5's users type, optional values, lists, and what is used when a flag is left out."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import yaml

import detect
import val
from detect import DetectConfig
from utils.config import parse_cli, run_script
from utils.runs import training_data, weights_or_newest
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


def test_help_names_every_flag_and_the_defaults_that_say_something(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_cli(DetectConfig, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0 and "--img-size" in text and "--no-rect" in text
    assert "0..1 (default: 0.25)" in text and "0: off, the default" in text
    assert "(default: )" not in text and "(default: False)" not in text and "(default: None)" not in text


@pytest.mark.parametrize("line", ["--save-txt coco", "--save", "--imgsz big", "--task nothing"])
def test_bad_words_exit_with_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_cli(ValConfig if "task" in line else DetectConfig, line.split())
    assert ended.value.code == 2 and line.split()[0] in capsys.readouterr().err


# ---- --weights and --data left out ----------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The working folder and the folder of the project, both empty."""
    work, repo = tmp_path / "work", tmp_path / "repo"
    work.mkdir()
    repo.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr("utils.runs.REPO", repo)
    return work, repo


def make_run(root: Path, name: str, time: float, data: str = "") -> Path:
    """The best.pt, of that modification time, of a run runs/train/<name> below `root`."""
    best = root / "runs" / "train" / name / "weights" / "best.pt"
    best.parent.mkdir(parents=True)
    best.write_bytes(b"")
    os.utime(best, (time, time))
    if data:
        (best.parent.parent / "opt.yaml").write_text(yaml.safe_dump({"data": data}))
    return best


@pytest.mark.parametrize("script", [val, detect])
def test_without_a_run_one_line_names_the_command_that_makes_one(script, folders, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py"])
    with pytest.raises(SystemExit) as ended:
        run_script(script.main, ValConfig if script is val else DetectConfig)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --weights not given") and "python train.py --cfg" in line and len(line) < 400
    assert not list(folders[0].iterdir())


def test_the_newest_run_is_used_however_nested_its_name(folders, caplog) -> None:
    work, repo = folders
    plain, nested = make_run(work, "exp", 1000), make_run(work, "site/a", 2000)
    make_run(repo, "exp", 3000)
    (work / "runs" / "best.pt").write_bytes(b"")  # newer, but not in a run's weights folder
    with caplog.at_level("INFO"):
        assert weights_or_newest("") == str(nested.relative_to(work))
    assert f"using {nested.relative_to(work)}, the newest training run" in caplog.text
    os.utime(plain, (4000, 4000))
    assert weights_or_newest(()) == str(plain.relative_to(work))
    assert weights_or_newest("a.pt") == "a.pt" and weights_or_newest(("a.pt", "b.pt")) == ("a.pt", "b.pt")


def test_from_another_folder_the_projects_own_runs_are_used(folders) -> None:
    work, repo = folders
    make_run(repo, "exp", 1000)
    nested = make_run(repo, "site/a", 2000)
    assert weights_or_newest("") == str(nested)
    own = make_run(work, "exp", 1)
    assert weights_or_newest("") == str(own.relative_to(work))


def test_the_data_is_that_of_the_run(folders, monkeypatch, caplog) -> None:
    work, repo = folders
    best = make_run(work, "site/a", 1000, data="sets/mine.yaml")
    with pytest.raises(FileNotFoundError, match=r"sets/mine\.yaml, on which .* was trained, not found; pass --data"):
        training_data(str(best))
    (work / "sets").mkdir()
    (work / "sets" / "mine.yaml").write_text("names: [a]\n")
    caplog.set_level("INFO")
    assert Path(training_data((str(best), "other.pt"))).samefile(work / "sets" / "mine.yaml")
    assert "mine.yaml, on which" in caplog.text
    monkeypatch.chdir(repo)
    assert Path(training_data(str(best))).samefile(work / "sets" / "mine.yaml")
    best = make_run(work, "b", 1000, data="data/shapes.yaml")
    (repo / "data").mkdir()
    (repo / "data" / "shapes.yaml").write_text("names: [a]\n")
    monkeypatch.chdir(work)
    assert Path(training_data(str(best))) == repo / "data" / "shapes.yaml"
    assert training_data(str(work / "downloaded.pt")) == "data/shapes.yaml"
    assert "built-in set" in caplog.text
