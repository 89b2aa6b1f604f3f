"""What somebody who starts with the project stumbled over: sizes, names and lines that contradict each other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import config, resume

import train
from models.runtimes.load import load_model
from utils.files import REPO, find, read_yaml
from utils.train.report import model_name


@pytest.mark.parametrize(
    ("name", "folder", "meant"),
    [
        ("yolov5-mobilevitt.yaml", "models", " (did you mean yolov5-mobilevit.yaml?)"),
        ("hyp.scratch-lo.yaml", "data/hyps", " (did you mean hyp.scratch-low.yaml?)"),
        ("zzz", "models", ""),
        ("nothing.yaml", "models", ""),
    ],
)
def test_a_file_that_is_not_found_may_be_a_known_one_misspelled(name: str, folder: str, meant: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        find(name, folder)
    assert str(caught.value).startswith(f"'{name}' not found{meant}, tried: {name}, ")


def test_in_the_repository_a_place_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    with pytest.raises(FileNotFoundError) as caught:
        find("nowhere.yaml", "data")
    places = str(caught.value).partition("tried: ")[2].split(", ")
    assert places == ["nowhere.yaml", str(REPO / "data" / "nowhere.yaml")]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, ""),
        ({"cfg": "", "weights": ""}, "yolov5-mobilevit"),
        ({"cfg": "models/yolov5n.yaml", "weights": ""}, "yolov5n"),
        ({"cfg": "", "weights": "yolov5n.pt"}, "yolov5n"),
    ],
)
def test_a_run_without_cfg_has_a_model_too(options: dict[str, str], name: str) -> None:
    assert model_name(options) == name


@pytest.mark.parametrize("script", ["train.py", "val.py", "detect.py", "export.py", "tools/doctor.py"])
def test_help_fits_80_columns_and_breaks_no_flag(script: str) -> None:
    words = [sys.executable, script, "--help"]
    text = subprocess.run(words, cwd=REPO, env=os.environ | {"COLUMNS": "80"}, capture_output=True, text=True).stdout
    lines = text.splitlines()
    assert len(lines) > 20 and max(map(len, lines)) <= 80
    assert not [line for line in lines if line.endswith("-")]


def test_a_size_that_is_rounded_up_is_the_size_of_the_run(small_set: Path, tmp_path: Path) -> None:
    train.main(config(small_set, tmp_path, imgsz=50, epochs=1))
    weights = tmp_path / "run" / "weights" / "best.pt"
    assert read_yaml(tmp_path / "run" / "opt.yaml")["imgsz"] == 64
    assert load_model(str(weights), torch.device("cpu")).limits.imgsz == (64, 64)


def test_a_resumed_run_does_not_speak_of_a_flag_that_was_not_given(small_set: Path, tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO")
    train.main(config(small_set, tmp_path, epochs=1))
    assert "best weights, on the validation images:\n" in caplog.text and "resumed run" not in caplog.text
    caplog.clear()
    resume(tmp_path / "run", epochs=2)
    assert "        from the resumed run; " in caplog.text and "--hyp" not in caplog.text


def test_long_names_do_not_make_the_error_page_wider_than_a_phone() -> None:
    page = (REPO / "utils" / "evaluate" / "errors.html.j2").read_text(encoding="utf-8")
    (rule,) = [line for line in page.splitlines() if line.startswith(".soft, figcaption {")]
    assert "overflow-wrap: anywhere" in rule
