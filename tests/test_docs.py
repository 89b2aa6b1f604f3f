"""Every command and every piece of Python in docs/ runs as it is written.

Blocks marked `bash` run, those marked `sh` need a camera, a screen or a pipe and are only parsed, `python` blocks of a
page run one after another.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from blobs import draw, make_set

import detect
import val
from models.weights.checkpoint import model_state, save_checkpoint
from models.yolo import DetectionModel
from tools import coco_parity
from utils.config import REPO, parse_cli
from utils.images import imwrite

DOCS = ("val.md", "detect.md", "python-api.md")
MAINS = {
    "detect.py": (detect.main, detect.DetectConfig),
    "val.py": (val.main, val.ValConfig),
    "tools/coco_parity.py": (coco_parity.main, val.ValConfig),
}


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", (REPO / "docs" / page).read_text(encoding="utf-8"), re.M | re.S)


def commands(kind: str) -> list[str]:
    return [line for page in DOCS for block in blocks(page, kind) for line in block.splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the pages name: weights, pictures, a clip, a list and a data set."""
    root = tmp_path_factory.mktemp("docs")
    torch.manual_seed(0)
    model = DetectionModel("yolov5n.yaml", nc=3)
    model.names = {0: "wide", 1: "high", 2: "star"}
    for name in ("best.pt", "last.pt"):
        save_checkpoint(root / name, model_state(model))
    make_set(root / "set", count=2)
    (root / "my.yaml").write_text("path: set\nval: images\ntest: images\nnames: [wide, high, star]\n")
    picture = draw((96, 128), [[20, 20, 60, 40]])
    (root / "pictures").mkdir()
    for name in ("picture.jpg", "pictures/a.jpg", "pictures/b.jpg"):
        imwrite(root / name, picture)
    imwrite(root / "large.jpg", draw((700, 900), [[20, 20, 60, 40]]))
    (root / "list.txt").write_text("pictures/a.jpg\npictures/b.jpg\n")
    writer = cv2.VideoWriter(str(root / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (128, 96))
    for _ in range(4):
        writer.write(np.ascontiguousarray(picture))
    writer.release()
    return root


def parse(line: str):
    """The function that runs a command and its config; a pipe before it is left out."""
    words = shlex.split(line.rpartition("|")[2])
    assert words[0] == "python", line
    main, config = MAINS[words[1]]
    return main, parse_cli(config, words[2:])


@pytest.mark.parametrize("line", commands("bash"))
def test_commands_run(line: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(val, "STUDY_SIZES", (64, 128))
    monkeypatch.setattr(val, "write_plots", lambda *_: None)  # tested, and slow, elsewhere
    main, cfg = parse(line)
    quick = {"workers": 0} if isinstance(cfg, val.ValConfig) else {}
    cfg = replace(cfg, imgsz=min(cfg.imgsz, 192), **quick)
    assert main(cfg) is not None or main is coco_parity.main


@pytest.mark.parametrize("line", commands("sh"))
def test_commands_that_need_more_are_understood(line: str) -> None:
    assert parse(line)[1].weights == ("best.pt",)


def test_there_are_commands_of_every_script() -> None:
    assert {shlex.split(line)[1] for line in commands("bash")} == set(MAINS)
    assert len(commands("bash")) > 20 and len(commands("sh")) > 5


def test_python_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    space: dict = {}
    for block in blocks("python-api.md", "python"):
        exec(block.replace("path/to/yolov5-mobilevit", str(REPO)), space)
    assert len(space["results"]) == 5 and space["metrics"].images == 2
    assert (place / "runs" / "detect" / "api" / "picture.jpg").is_file()


@pytest.mark.parametrize("cls", [detect.DetectConfig, val.ValConfig])
def test_every_flag_is_explained(cls: type) -> None:
    """In its page, or it is one that every script has."""
    text = "".join((REPO / "docs" / page).read_text(encoding="utf-8") for page in DOCS).replace("--no-", "--")
    usual = {"device", "data", "project", "name", "exist_ok"}
    missing = [f.name for f in fields(cls) if f.name not in usual and "--" + f.name.replace("_", "-") not in text]
    assert missing == []
